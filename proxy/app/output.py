"""`app_output: wrap`: the app's lines become log lines. It is never stalled: its pipes are always drained."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import IO

from proxy.observe.events import Emit, Level
from proxy.observe.requests import Owner

LONGEST = 64 * 1024  # bytes of one line; the rest of a longer one becomes further lines
READ = 64 * 1024


MARK = re.compile("\x1e([0-9A-Za-z]{1,64})\x1f")  # a request's token, put there by the attribution inside the app

Find = Callable[[str], Owner | None]


class Lines(asyncio.Protocol):
    """Cuts what a pipe brings into lines and tells each, with the request that it bears the token of."""

    def __init__(self, emit: Emit, stream: str, find: Find) -> None:
        self._emit = emit
        self._stream = stream
        self._find = find
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._tell(line)
        while len(self._rest) > LONGEST:
            self._tell(self._rest[:LONGEST])
            self._rest = self._rest[LONGEST:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._tell(self._rest)
            self._rest = b""

    def _tell(self, line: bytes) -> None:
        for at in range(0, max(len(line), 1), LONGEST):
            text = line[at : at + LONGEST].decode("utf-8", "replace").rstrip("\r")
            facts: dict[str, object] = {"stream": self._stream}
            if "\x1e" in text:
                text = self._unmarked(text, facts)
            if text:
                self._emit("app", text, level=level_of(text), **facts)

    def _unmarked(self, text: str, facts: dict[str, object]) -> str:
        found = MARK.search(text)
        owner = self._find(found[1]) if found is not None else None
        if owner is not None:
            facts["request_id"], facts["trace_id"] = owner.request_id, owner.trace_id
        return MARK.sub("", text)


def level_of(line: str) -> Level:
    """What the line says of itself at its beginning; info where it says nothing."""
    start = line[:60].upper()
    if "ERROR" in start or "CRITICAL" in start or start.startswith("TRACEBACK"):
        return "error"
    if "WARN" in start:
        return "warning"
    return "info"


async def follow(pipe: IO[bytes], emit: Emit, stream: str, find: Find) -> None:
    """Drain a pipe into the log until its end."""
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: Lines(emit, stream, find), pipe)
