"""Finding the end of a request that asks to switch to a protocol other than WebSocket (RFC 9110 section 7.8).

Until the response says whether the protocol is switched, what comes behind the request may be HTTP or that protocol,
and has to be kept. aiohttp's parser does so only for `websocket`. For any other protocol it goes on with HTTP, and
drops what came behind the request in the same packet. So the request is parsed a second time here, by llhttp.
"""

from __future__ import annotations

import httptools

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: -\r\nTransfer-Encoding: chunked\r\n\r\n"
BLANK_LINE = b"\r\n\r\n"
# HTTP/2 in a tunnel would carry requests past every limit. RFC 9113 has deprecated this upgrade.
REFUSED_UPGRADES = frozenset(("h2c", "h2"))


def requested_upgrade(connection: str | None, upgrade: str | None) -> str | None:
    """The protocol that a request asks to switch to, or None if it asks for none that may be passed on."""
    if not upgrade or not connection:
        return None
    # RFC 9110 section 7.8: Upgrade counts only if Connection names it.
    if not any(token.strip().lower() == "upgrade" for token in connection.split(",")):
        return None
    wanted = [token.strip() for token in upgrade.split(",")]
    kept = [token for token in wanted if token.lower() not in REFUSED_UPGRADES]
    return ", ".join(kept) or None


class UpgradeRequest:
    """`received` is what has come since the first byte of the request's head; whole requests may come before it.

    `end` is how much of `received` belongs to the request and those before it; None if it is not complete, or cannot be
    parsed.
    """

    def __init__(self, received: bytes) -> None:
        self._body_left = 0  # bytes still to come of a body of known length
        self._is_chunked = False
        self._chunk_parser: httptools.HttpRequestParser | None = None  # for a body without a length
        self._complete = False
        self.end: int | None = None
        head = self._parse_head(received)
        if head is None:
            return
        if self._is_chunked:
            chunks = httptools.HttpRequestParser(self)
            # A parser of its own, which a made-up head brings to the beginning of a chunked body.
            chunks.feed_data(CHUNKED_HEAD)
            self._chunk_parser = chunks
        found = self.find_end(received[head:])
        self.end = None if found is None else head + found

    def find_end(self, data: bytes) -> int | None:
        """How much of the next bytes still belongs to the request; None if all do, and it goes on."""
        if self._chunk_parser is not None:
            return self._find_end_of_chunks(data)
        # A body of known length needs no parser, only counting.
        if self._body_left > len(data):
            self._body_left -= len(data)
            return None
        return self._body_left

    def _parse_head(self, received: bytes) -> int | None:
        """How much of `received` is the head, and the requests before it; None if it cannot be told."""
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(received)
        except httptools.HttpParserUpgrade as switch:
            end: int = switch.args[0]
            return end
        except httptools.HttpParserError:
            pass
        return None

    def _find_end_of_chunks(self, data: bytes) -> int | None:
        """The end of a chunked body: an empty line behind the last chunk, which may be cut anywhere.

        Pieces are fed up to each empty line, so that the parser never gets a byte of what comes behind the request.
        """
        assert self._chunk_parser is not None
        at = 0
        while at < len(data):
            found = data.find(BLANK_LINE, max(0, at + 1 - len(BLANK_LINE)))  # one may have received before
            to = at + 1 if at < len(BLANK_LINE) - 1 else len(data) if found < 0 else found + len(BLANK_LINE)
            try:
                self._chunk_parser.feed_data(data[at:to])
            except httptools.HttpParserError:
                return None  # aiohttp's parser raises too, and refuses it
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
