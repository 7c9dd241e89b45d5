"""Notifications to a service manager about our state (sd_notify(3)): ready, reloading, stopping, alive."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Mapping

MAX_UNSENT = 16  # messages that wait for a manager that is busy


class ServiceNotifier:
    """Sends nothing if no manager listens (no NOTIFY_SOCKET), and never waits: what the manager's socket cannot take at
    once goes out before the next message, but for a sign of life, which is worth nothing later."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace (unix(7)); other texts than a path are for vsock, which we have
        # not.
        self._path = f"\0{path[1:]}" if path.startswith("@") else path if path.startswith("/") else ""
        self._watchdog_interval = _read_watchdog_interval(environ)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._path else None
        if self._sock is not None:
            self._sock.setblocking(False)
        self._unsent: deque[bytes] = deque(maxlen=MAX_UNSENT)

    def notify_starting(self, seconds: float) -> None:
        """The start may take that long from now on."""
        self._send_message("STATUS=Starting the app.", f"EXTEND_TIMEOUT_USEC={_to_microseconds(seconds)}")

    def notify_ready(self, status: str) -> None:
        self._send_message("READY=1", f"STATUS={status}")

    def notify_reloading(self) -> None:
        """`notify_ready` has to follow. MONOTONIC_USEC is what Type=notify-reload asks for."""
        self._send_message("RELOADING=1", f"MONOTONIC_USEC={_to_microseconds(time.monotonic())}")

    def notify_stopping(self, seconds: float) -> None:
        """The stop may take that long."""
        self._send_message("STOPPING=1", "STATUS=Stopping.", f"EXTEND_TIMEOUT_USEC={_to_microseconds(seconds)}")

    async def run_watchdog(self) -> None:
        """Send WATCHDOG=1 twice in each period of the watchdog: it proves that the event loop is not blocked."""
        # Half the period, as sd_watchdog_enabled(3) advises: one late turn of the loop is no failure.
        while self._sock is not None and self._watchdog_interval is not None:
            if self._send_unsent():
                self._send_message("WATCHDOG=1")
                self._unsent.clear()
            await asyncio.sleep(self._watchdog_interval)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send_message(self, *lines: str) -> None:
        if self._sock is not None:
            self._unsent.append("\n".join(line.replace("\n", " ") for line in lines).encode())
            self._send_unsent()

    def _send_unsent(self) -> bool:
        """Whether nothing is left to send."""
        while self._sock is not None and self._unsent:
            try:
                self._sock.sendto(self._unsent[0], self._path)
            except BlockingIOError:  # a queue of ten, on most machines, and the manager is busy
                return False
            except OSError:
                pass  # the manager is gone; it goes by what it sees of the process then
            self._unsent.popleft()
        return True


def _read_watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """Half of WATCHDOG_USEC in seconds, or None if no watchdog is set for this process (sd_watchdog_enabled(3))."""
    text = environ.get("WATCHDOG_USEC", "")
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not (text.isascii() and text.isdigit()):
        return None
    return int(text) / 2e6 or None


def _to_microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
