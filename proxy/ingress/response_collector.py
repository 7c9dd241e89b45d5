"""A response that is kept whole, for a task: nobody reads it while it comes."""

from __future__ import annotations

import asyncio

from proxy.errors import OutriggerError
from proxy.http.upstream_connection import UpstreamConnection
from proxy.units import format_size


class ResultTooLarge(OutriggerError):
    """The app's answer to a task is larger than `tasks.max_result`."""


class ResponseCollector:
    """The `BodySink` of a connection to the app.

    - `size`: bytes that have come. `is_too_large`: they are more than may be kept, and the rest is dropped.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, app_connection: UpstreamConnection, max_bytes: int) -> None:
        self._loop = loop
        self._app_connection = app_connection
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self.size = 0
        self.is_too_large = False

    def write_body(self, data: bytes) -> bool:
        """Keep a piece of the body. The app is never paused: there is room for all that may come."""
        if self.is_too_large:
            return True
        self.size += len(data)
        if self.size > self._max_bytes:
            self.is_too_large = True
            self._pieces.clear()
            # Not at once: this is called by the parser, which is in the middle of what it has read.
            self._loop.call_soon(self._app_connection.fail, self._error())
        else:
            self._pieces.append(data)
        return True

    def check_size(self) -> None:
        """Raises ResultTooLarge, also if the end of the body came together with what was too much."""
        if self.is_too_large:
            raise self._error()

    def body(self) -> bytes:
        return b"".join(self._pieces)

    def _error(self) -> ResultTooLarge:
        return ResultTooLarge(f"The app's answer is larger than {format_size(self._max_bytes)} (tasks.max_result).")
