"""Where a request ends that asks to switch to a protocol other than WebSocket (RFC 9110 section 7.8).

Until its answer has said whether the protocol is switched, what comes behind it is neither HTTP nor that protocol
and has to be kept. aiohttp's parser does so for `websocket` alone; of any other it goes on as HTTP, and drops what
lay behind the request in the same packet.
"""

from __future__ import annotations

import httptools

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: -\r\nTransfer-Encoding: chunked\r\n\r\n"
BLANK_LINE = b"\r\n\r\n"


class UpgradeRequest:
    """`begun` is what came of the request from its head's first byte on; whole requests may come before it.

    `end`: how much of `begun` is the request's and theirs, or None where it is not whole yet or cannot be read.
    """

    def __init__(self, begun: bytes) -> None:
        self._body_left = 0  # bytes of a body of known length
        self._is_chunked = False
        self._chunk_parser: httptools.HttpRequestParser | None = None  # reads a body without one
        self._complete = False
        self.end: int | None = None
        head = self._parse_head(begun)
        if head is None:
            return
        if self._is_chunked:
            chunks = httptools.HttpRequestParser(self)
            chunks.feed_data(CHUNKED_HEAD)
            self._chunk_parser = chunks
        found = self.find_end(begun[head:])
        self.end = None if found is None else head + found

    def find_end(self, data: bytes) -> int | None:
        """How much of the next bytes is still the request's; None: all, and it goes on."""
        if self._chunk_parser is not None:
            return self._find_end_of_chunks(data)
        if self._body_left > len(data):
            self._body_left -= len(data)
            return None
        return self._body_left

    def _parse_head(self, begun: bytes) -> int | None:
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(begun)
        except httptools.HttpParserUpgrade as switch:
            end: int = switch.args[0]
            return end
        except httptools.HttpParserError:
            pass
        return None

    def _find_end_of_chunks(self, data: bytes) -> int | None:
        """The last chunk ends with an empty line, which may be cut anywhere."""
        assert self._chunk_parser is not None
        at = 0
        while at < len(data):
            found = data.find(BLANK_LINE, max(0, at + 1 - len(BLANK_LINE)))  # one may have begun before
            to = at + 1 if at < len(BLANK_LINE) - 1 else len(data) if found < 0 else found + len(BLANK_LINE)
            try:
                self._chunk_parser.feed_data(data[at:to])
            except httptools.HttpParserError:
                return None  # aiohttp's parser says so as well
            if self._complete:
                return to
            at = to
        return None

    # ── httptools ────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        if self._chunk_parser is None:
            self._body_left, self._is_chunked = 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self._body_left = int(value)
        elif name.lower() == b"transfer-encoding":
            self._is_chunked = True

    def on_message_complete(self) -> None:
        self._complete = self._chunk_parser is not None
