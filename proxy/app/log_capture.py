"""`app_output: wrap`: the app's lines become log lines. It is never stalled: its pipes are always drained.

A traceback is one event: what belongs to it comes within some milliseconds. No line is ever left out for its level:
the app decided to print it. Colours are left out: they are a terminal's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import IO

from proxy.observe.emit import EmitEvent, LogLevel
from proxy.observe.request_registry import Attribution

LONGEST = 64 * 1024  # bytes of one line; the rest of a longer one becomes further lines
BLOCK = 32 * 1024  # characters of one traceback; the rest of a longer one becomes further events
SOON = 0.05  # seconds within which the next line of a traceback comes

MARK = re.compile("\x1e([0-9A-Za-z]{1,64})\x1f")  # a request's token, put there by the attribution inside the app
COLOUR = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")  # any control sequence (ECMA-48 section 5.4)
BEGINS = re.compile(r"[ +|]*(?:Exception Group )?Traceback \(most recent call last\):")
CHAINS = ("During handling of the above exception", "The above exception was the direct cause")

FindAttribution = Callable[[str], Attribution | None]


class LineCapture(asyncio.Protocol):
    """Cuts what a pipe brings into lines and tells each, with the request that it bears the token of.

    A line that looks like the beginning of a traceback waits `SOON` for what follows it.
    """

    def __init__(self, emit: EmitEvent, stream: str, find: FindAttribution) -> None:
        self._emit = emit
        self._stream = stream
        self._find = find
        self._rest = b""
        self._block: list[str] = []
        self._size = 0
        self._token: str | None = None  # of the block
        self._framed = False  # in its frames: whatever comes belongs to it up to the exception's own line
        self._grouped = False  # an ExceptionGroup's
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        *begun, self._rest = _pieces(lines.pop())
        for line in (*lines, *begun):
            self._take(line)
        if self._block:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._take(self._rest)
            self._rest = b""
        self._flush()

    def _take(self, line: bytes) -> None:
        for piece in _pieces(line):
            text = piece.decode("utf-8", "replace").rstrip("\r")
            token = None
            if "\x1b" in text:
                text = COLOUR.sub("", text)
            if "\x1e" in text:
                found = MARK.search(text)
                token = found[1] if found is not None else None
                text = MARK.sub("", text)
            self._place(text, token)

    def _place(self, text: str, token: str | None) -> None:
        """Into the block that is open, into one of its own, or out at once."""
        if self._block:
            if self._belongs(text) and self._size < BLOCK and token in (None, self._token):
                self._add(text)
                return
            self._flush()
        if not text:
            return
        level = detect_level(text)
        if level == "error":
            begins = BEGINS.match(text)
            self._token = token
            self._framed, self._grouped = begins is not None, begins is not None and "+" in begins[0]
            self._add(text)
        else:
            self._tell(text, token, level)

    def _belongs(self, text: str) -> bool:
        if begins := BEGINS.match(text):
            self._framed, self._grouped = True, self._grouped or "+" in begins[0]
            return True
        if self._framed:
            # Frames are indented; the first line that is not is the exception's own. A group is indented to its end.
            self._framed = not text or text[0] in " \t|+"
            return self._framed or not self._grouped
        return not text or text[0] in " \t|+" or text.startswith(CHAINS)

    def _add(self, text: str) -> None:
        self._block.append(text)
        self._size += len(text) + 1

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(SOON, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        block, self._block, self._size = self._block, [], 0
        text = "\n".join(block).rstrip("\n")
        if text:
            self._tell(text, self._token, "error")

    def _tell(self, text: str, token: str | None, level: LogLevel) -> None:
        facts: dict[str, object] = {"stream": self._stream}
        owner = self._find(token) if token is not None else None
        if owner is not None:
            facts["request_id"], facts["trace_id"] = owner.request_id, owner.trace_id
        self._emit("app", text, level=level, **facts)


def _pieces(line: bytes) -> Iterator[bytes]:
    """Of at most LONGEST bytes, cut between characters."""
    while len(line) > LONGEST:
        at = LONGEST
        while at > LONGEST - 4 and line[at] & 0xC0 == 0x80:
            at -= 1
        yield line[:at]
        line = line[at:]
    yield line


_WORDS: dict[str, LogLevel] = {
    "trace": "debug", "debug": "debug", "info": "info", "notice": "info", "warn": "warning", "warning": "warning",
    "error": "error", "err": "error", "critical": "error", "fatal": "error", "panic": "error", "alert": "error",
    "emergency": "error",
}  # fmt: skip
# A word in capitals near the line's beginning, any in brackets, one before a colon with at most a time before it, or
# a field of logfmt. The first one counts: what comes after it is what the line is about.
_SAID = re.compile(
    r"\b(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|\[(?i:(trace|debug|info|notice|warn|warning|error|critical|fatal|alert))\]"
    r"|^[\d\s:.,/TZ+-]*\b(?i:(debug|info|warn|warning|error|critical|fatal|panic)):"
    r"|\b(?:level|lvl|severity)=\"?(?i:([a-z]+))"
)
_RAISED = re.compile(r"(?:Uncaught )?(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception)(?::|$)")
_NUMBERS: tuple[tuple[int, LogLevel], ...] = (
    (50, "error"),
    (40, "warning"),
    (30, "info"),
    (0, "debug"),
)  # pino's and bunyan's


def detect_level(line: str) -> LogLevel:
    """What the line says of itself: as JSON with a level, at its beginning in words, or by being an exception's;
    info where it says nothing."""
    if line.startswith("{"):
        found = _of_json(line)
        if found is not None:
            return found
    if BEGINS.match(line) or _RAISED.match(line):
        return "error"
    said = _SAID.search(line[:120])
    word = next((group for group in said.groups() if group), "") if said is not None else ""
    return _WORDS.get(word.lower(), "info")


def _of_json(line: str) -> LogLevel | None:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    for key in ("level", "severity", "levelname", "log.level", "lvl"):
        value = facts.get(key)
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        if type(value) is int:  # True is one, too
            return next((level for least, level in _NUMBERS if value >= least), "debug")
    return None


async def capture_output(pipe: IO[bytes], emit: EmitEvent, stream: str, find: FindAttribution) -> None:
    """Drain a pipe into the log until its end."""
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: LineCapture(emit, stream, find), pipe)
