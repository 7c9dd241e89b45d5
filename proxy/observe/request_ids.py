"""Identifies a request: its id, the trace id of its `traceparent` (W3C Trace Context), and a token that cannot be
guessed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

_ID_DIGITS = 32  # hexadecimal digits: 128 bits
_RANDOM_BATCH_BYTES = 4096  # read at once: enough for 256 ids and tokens

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?", re.DOTALL)


class IdGenerator:
    """Generates request ids and tokens from a buffer of the system's random bytes; each bit is used once.

    An id is shown to clients and logged. Since ids and tokens share no bit, an id reveals nothing of a token. Not for
    processes that fork without exec: both would generate the same ids.
    """

    __slots__ = ("_at", "_pool", "_random")

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        self._random = random
        self._pool = ""
        self._at = 0

    def new_token(self) -> str:
        """128 random bits as 32 hexadecimal digits: the X-Outrigger-Request of one request."""
        # os.urandom is a system call: one read is shared by 256 ids.
        at = self._at
        if at + _ID_DIGITS > len(self._pool):
            self._pool = self._random(_RANDOM_BATCH_BYTES).hex()
            at = 0
        self._at = at + _ID_DIGITS
        return self._pool[at : at + _ID_DIGITS]

    def new_pair(self) -> tuple[str, str]:
        """An id and a token, as `new_token` makes them."""
        at = self._at
        end = at + 2 * _ID_DIGITS
        if end > len(self._pool):
            self._pool = self._random(_RANDOM_BATCH_BYTES).hex()
            at, end = 0, 2 * _ID_DIGITS
        self._at = end
        return self._pool[at : at + _ID_DIGITS], self._pool[at + _ID_DIGITS : end]

    def choose_request_id(self, request_id: str | None, correlation_id: str | None = None) -> str:
        """The client's own id, as `find_request_id` finds it; else a new one."""
        return find_request_id(request_id, correlation_id) or self.new_token()


def find_request_id(request_id: str | None, correlation_id: str | None) -> str:
    """The client's X-Request-Id or X-Correlation-Id, the first that has 1 to 128 of [A-Za-z0-9._-]; empty if neither
    has."""
    if request_id is not None and _REQUEST_ID.fullmatch(request_id):
        return request_id
    if correlation_id is not None and _REQUEST_ID.fullmatch(correlation_id):
        return correlation_id
    return ""


def parse_traceparent(traceparent: str | None) -> str | None:
    """The trace-id of a valid `traceparent` (W3C Trace Context, section 3.2), for our own log lines; else None.

    The gateway starts no trace, and it passes the header on unchanged, valid or not: it is between client and app.
    A version above 00 may have more fields than those known here; version ff is forbidden, and so are a trace-id and a
    parent-id of zeros.
    """
    if traceparent is None:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, parent_id, more_fields = found.groups()
    if version == "ff" or (version == "00" and more_fields is not None):
        return None
    if trace_id == "0" * 32 or parent_id == "0" * 16:
        return None
    return trace_id
