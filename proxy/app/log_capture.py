"""`app_output: wrap`: the lines that the app prints become events of the log. The app is never held up: its pipes are
always drained.

A traceback is one event: its lines come within milliseconds of each other. No line is dropped for its level, since the
app decided to print it. Control sequences (colours) are removed.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import IO

from proxy.observe.emit import EmitEvent, LogLevel
from proxy.observe.request_registry import Attribution

MAX_LINE_BYTES = 64 * 1024  # bytes of one line; the rest of a longer one becomes further lines
MAX_BLOCK_LENGTH = 32 * 1024  # characters of one traceback; the rest of a longer one becomes further events
BLOCK_GAP_SECONDS = 0.05  # seconds within which the next line of a traceback must come

TOKEN_MARK = re.compile("\x1e([0-9A-Za-z]{1,64})\x1f")  # a request's token, put there by the hooks inside the app
CONTROL_SEQUENCE = re.compile("\x1b\\[[0-?]*[ -/]*[@-~]")  # any control sequence (ECMA-48 section 5.4)
TRACEBACK_START = re.compile(r"[ +|]*(?:Exception Group )?Traceback \(most recent call last\):")
TRACEBACK_CHAINS = ("During handling of the above exception", "The above exception was the direct cause")

FindAttribution = Callable[[str], Attribution | None]


class LineCapture(asyncio.Protocol):
    """Splits what comes from a pipe into lines, and emits each with the request whose token it bears.

    A line that looks like the beginning of a traceback opens a block, which is emitted as one event when a line comes
    that does not belong to it, or after `BLOCK_GAP_SECONDS` without a line.
    """

    def __init__(self, emit: EmitEvent, stream: str, find: FindAttribution) -> None:
        self._emit = emit
        self._stream = stream
        self._find_attribution = find
        self._rest = b""
        self._block: list[str] = []
        self._block_length = 0
        self._block_token: str | None = None  # of the request that the open block belongs to
        # inside the frames of a traceback: every line belongs to it up to the exception's own line
        self._in_frames = False
        self._in_group = False  # inside the traceback of an ExceptionGroup
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        lines = (self._rest + data).split(b"\n")
        # The last line is not complete; what it already has beyond the limit is emitted, so that the rest stays
        # bounded.
        *begun, self._rest = _split_long_line(lines.pop())
        for line in (*lines, *begun):
            self._capture_line(line)
        if self._block:
            self._restart_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._capture_line(self._rest)
            self._rest = b""
        self._flush_block()

    def _capture_line(self, line: bytes) -> None:
        for piece in _split_long_line(line):
            text = piece.decode("utf-8", "replace").rstrip("\r")
            token = None
            # Most lines have neither: a search for one character is cheaper than a regular expression.
            if "\x1b" in text:
                text = CONTROL_SEQUENCE.sub("", text)
            if "\x1e" in text:
                found = TOKEN_MARK.search(text)
                token = found[1] if found is not None else None
                text = TOKEN_MARK.sub("", text)
            self._sort_line(text, token)

    def _sort_line(self, text: str, token: str | None) -> None:
        """Add a line to the open block, open a block with it, or emit it."""
        if self._block:
            # A line with the token of another request cannot belong to the block.
            if (
                self._belongs_to_block(text)
                and self._block_length < MAX_BLOCK_LENGTH
                and token in (None, self._block_token)
            ):
                self._add_to_block(text)
                return
            self._flush_block()
        if not text:
            return
        level = detect_level(text)
        if level == "error":
            begins = TRACEBACK_START.match(text)
            self._block_token = token
            self._in_frames, self._in_group = begins is not None, begins is not None and "+" in begins[0]
            self._add_to_block(text)
        else:
            self._emit_line(text, token, level)

    def _belongs_to_block(self, text: str) -> bool:
        if begins := TRACEBACK_START.match(text):
            self._in_frames, self._in_group = True, self._in_group or "+" in begins[0]
            return True
        if self._in_frames:
            # Frames are indented; the first line that is not is the exception's own. A group is indented to its end.
            self._in_frames = not text or text[0] in " \t|+"
            return self._in_frames or not self._in_group
        return not text or text[0] in " \t|+" or text.startswith(TRACEBACK_CHAINS)

    def _add_to_block(self, text: str) -> None:
        self._block.append(text)
        self._block_length += len(text) + 1

    def _restart_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(BLOCK_GAP_SECONDS, self._flush_block)

    def _flush_block(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        block, self._block, self._block_length = self._block, [], 0
        text = "\n".join(block).rstrip("\n")
        if text:
            self._emit_line(text, self._block_token, "error")

    def _emit_line(self, text: str, token: str | None, level: LogLevel) -> None:
        facts: dict[str, object] = {"stream": self._stream}
        owner = self._find_attribution(token) if token is not None else None
        if owner is not None:
            facts["request_id"], facts["trace_id"] = owner.request_id, owner.trace_id
        self._emit("app", text, level=level, **facts)


def _split_long_line(line: bytes) -> Iterator[bytes]:
    """Pieces of at most MAX_LINE_BYTES, cut between UTF-8 characters."""
    while len(line) > MAX_LINE_BYTES:
        at = MAX_LINE_BYTES
        while at > MAX_LINE_BYTES - 4 and line[at] & 0xC0 == 0x80:
            at -= 1
        yield line[:at]
        line = line[at:]
    yield line


_LEVEL_WORDS: dict[str, LogLevel] = {
    "trace": "debug", "debug": "debug", "info": "info", "notice": "info", "warn": "warning", "warning": "warning",
    "error": "error", "err": "error", "critical": "error", "fatal": "error", "panic": "error", "alert": "error",
    "emergency": "error",
}  # fmt: skip
# A word in capitals near the beginning of the line, one in brackets, one before a colon with at most a time before it,
# or a logfmt field. The first match counts: later ones are part of the message.
_LEVEL_PATTERN = re.compile(
    r"\b(TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL)\b"
    r"|\[(?i:(trace|debug|info|notice|warn|warning|error|critical|fatal|alert))\]"
    r"|^[\d\s:.,/TZ+-]*\b(?i:(debug|info|warn|warning|error|critical|fatal|panic)):"
    r"|\b(?:level|lvl|severity)=\"?(?i:([a-z]+))"
)
_EXCEPTION_LINE = re.compile(r"(?:Uncaught )?(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception)(?::|$)")
_LEVEL_NUMBERS: tuple[tuple[int, LogLevel], ...] = (
    (50, "error"),
    (40, "warning"),
    (30, "info"),
    (0, "debug"),
)  # pino's and bunyan's


def detect_level(line: str) -> LogLevel:
    """The level that a line states: in a JSON field, in a word near its beginning, or by being the line of an
    exception; info if it states none."""
    if line.startswith("{"):
        found = _json_level(line)
        if found is not None:
            return found
    if TRACEBACK_START.match(line) or _EXCEPTION_LINE.match(line):
        return "error"
    said = _LEVEL_PATTERN.search(line[:120])
    word = next((group for group in said.groups() if group), "") if said is not None else ""
    return _LEVEL_WORDS.get(word.lower(), "info")


def _json_level(line: str) -> LogLevel | None:
    try:
        facts = json.loads(line)
    except (ValueError, RecursionError):
        return None
    for key in ("level", "severity", "levelname", "log.level", "lvl"):
        value = facts.get(key)
        if isinstance(value, str) and value.lower() in _LEVEL_WORDS:
            return _LEVEL_WORDS[value.lower()]
        if type(value) is int:  # True is one, too
            return next((level for least, level in _LEVEL_NUMBERS if value >= least), "debug")
    return None


async def capture_output(pipe: IO[bytes], emit: EmitEvent, stream: str, find: FindAttribution) -> None:
    """Start to drain a pipe into the log, until its end."""
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: LineCapture(emit, stream, find), pipe)
