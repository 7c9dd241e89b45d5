"""A PostgreSQL of a test's own, which can be killed and started again under the same address."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _demo() -> ModuleType:
    """The demo's own way of starting it, which also works for root."""
    spec = importlib.util.spec_from_file_location("demo_database", ROOT / "deploy/demo/database.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_database"] = module
    spec.loader.exec_module(module)
    return module


class Server:
    def __init__(self, folder: Path) -> None:
        self._database = _demo().Database(folder, f"test-{uuid.uuid4().hex}")
        self.url: str = self._database.url

    def start(self) -> None:
        self._database.start()

    def crash(self) -> None:
        """Every server process quits at once, without a checkpoint: as good as kill -9, and nothing is left over."""
        process = self._database._process
        process.send_signal(signal.SIGQUIT)
        process.wait(20)

    async def crashed_for(self, seconds: float) -> None:
        await asyncio.to_thread(self.crash)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.start)

    def remove(self) -> None:
        self._database.stop()
        shutil.rmtree(self._database._data, ignore_errors=True)


@contextmanager
def postgres(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()


class Relay:
    """Bytes both ways, but the answers to the next `swallow` commits, whose connections it breaks instead."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.swallow = 0
        self.swallowed = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        back, forth = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(self._pass(back, writer))
        try:
            while data := await reader.read(65536):
                forth.write(data)
                if self.swallow and b"COMMIT" in data:
                    self.swallow -= 1
                    self.swallowed += 1
                    answers.cancel()
                    await back.read(65536)  # it is done, and nobody will hear of it
                    return
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            writer.transport.abort()
            forth.transport.abort()
            self._tasks.discard(task)

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
            writer.transport.abort()
        except ConnectionError:
            writer.transport.abort()
