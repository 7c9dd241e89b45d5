"""A whole gateway in the test's own process, app and all, so that a test can reach into its parts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from free_ports import free_port

from proxy import build
from proxy.gateway import Gateway
from proxy.observe.log import EventLog
from proxy.policy.loading import load_policy, read_file


class InProcessGateway:
    def __init__(self, gateway: Gateway, file: Path, head: str, out: Path, port: int) -> None:
        self.gateway = gateway
        self.port = port
        self._file = file
        self._head = head
        self._out = out

    def save(self, policy: str) -> None:
        self._file.write_text(self._head + policy)

    def reload(self, policy: str) -> None:
        self.save(policy)
        self.gateway.reloader.reload()

    @property
    def refused(self) -> str | None:
        return self.gateway.reloader.refused

    @property
    def waiting(self) -> dict[str, str]:
        return {one.key: one.until for one in self.gateway.reloader.pending}

    def output(self) -> str:
        return self._out.read_text()


@asynccontextmanager
async def in_process_gateway(
    tmp: Path, monkeypatch, *words: str, policy: str = "", environ: dict[str, str] | None = None
) -> AsyncIterator[InProcessGateway]:
    """Its app is ready. `policy` gets the listeners' addresses put in front of it."""
    port = free_port()
    head = (
        f"listen: {{public: '127.0.0.1:{port}', admin: '127.0.0.1:{free_port()}', egress: '127.0.0.1:{free_port()}'}}\n"
    )
    file, out = tmp / "policy.yaml", tmp / "log"
    file.write_text(head + policy)
    found: list[Gateway] = []

    class Reached(Gateway):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            found.append(self)

    monkeypatch.setattr(build, "Gateway", Reached)
    monkeypatch.setattr(build, "freeze_startup_objects", lambda: None)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp), **(environ or {})}
    source = read_file(file, "policy.yaml")
    parsed = load_policy(source, environ)
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = EventLog(parsed.log, out=descriptor)
    life = asyncio.get_running_loop().create_task(build.serve(source, parsed, words, environ, log))
    try:
        async with asyncio.timeout(30):
            while not (found and found[0].parts.app.is_ready):
                assert not life.done(), out.read_text()
                await asyncio.sleep(0.02)
        yield InProcessGateway(found[0], file, head, out, port)
    finally:
        if found and not life.done():
            found[0]._handle_stop_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(20):
                await life
        finally:
            log.close()
            os.close(descriptor)
