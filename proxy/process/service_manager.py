"""What a service manager is told of our state (sd_notify(3)): ready, reloading, stopping, alive."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Says nothing where no manager listens (NOTIFY_SOCKET), and waits for nobody: a message that cannot be taken at
    once is lost."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._path = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        self._every = _watchdog(environ)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._path else None
        if self._sock is not None:
            self._sock.setblocking(False)

    def starting(self, seconds: float) -> None:
        """It may take that long from now on."""
        self._send("STATUS=Starting the app.", f"EXTEND_TIMEOUT_USEC={_micro(seconds)}")

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """To be followed by `ready`; with the moment that Type=notify-reload asks for."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={_micro(time.monotonic())}")

    def stopping(self, seconds: float) -> None:
        """It may take that long."""
        self._send("STOPPING=1", "STATUS=Stopping.", f"EXTEND_TIMEOUT_USEC={_micro(seconds)}")

    async def live(self) -> None:
        """WATCHDOG=1 twice in each period that is asked for: the event loop turns."""
        while self._sock is not None and self._every is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._every)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, *lines: str) -> None:
        if self._sock is not None:
            try:
                self._sock.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), self._path)
            except OSError:
                pass


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC in seconds, where it is meant for this process (sd_watchdog_enabled(3))."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not (text.isascii() and text.isdigit()):
        return None
    return int(text) / 2e6 or None


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
