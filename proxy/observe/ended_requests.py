"""Ended requests by their tokens, kept for a time and within a bound: the work that they left running is still
theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

SEGMENTS = 16  # one segment goes as a whole when there are too many requests
SEGMENTS_PER_LIFETIME = 10  # at least so many segments cover the time that a request is kept
NO_TRACE = "-"  # in place of a trace id, which has only hexadecimal digits


class Request(Protocol):
    user: str
    tier: str
    request_id: str
    trace_id: str | None

    @property
    def route_name(self) -> str: ...


class EndedRequest:
    """What is kept of a request. `ended_at` is by the clock of `EndedRequests`; `packed` is what `pack_request`
    made."""

    __slots__ = ("ended_at", "packed")

    def __init__(self, at: float, packed: bytes) -> None:
        self.ended_at = at
        self.packed = packed

    @property
    def unpack(self) -> tuple[str, str, str, str, str | None]:
        """User, tier, route, request id, trace id."""
        user, tier, route, request_id, trace_id = self.packed.decode("utf-8", "surrogatepass").split("\0")
        return user, tier, route, request_id, None if trace_id == NO_TRACE else trace_id


def pack_request(request: Request) -> bytes:
    """The fields of a request as one object in place of five: about 100 bytes in place of 250. A NUL separates them, so
    one inside a field is replaced."""
    words = (request.user, request.tier, request.route_name, request.request_id, request.trace_id or NO_TRACE)
    text = "\0".join(words)
    if text.count("\0") >= len(words):
        text = "\0".join(word.replace("\0", "\ufffd") for word in words)
    return text.encode("utf-8", "surrogatepass")


class _Segment(dict[str, EndedRequest]):
    """Requests that ended one after the other, up to `until`; `last` is when the last one ended."""

    __slots__ = ("last", "until")

    def __init__(self, now: float, until: float) -> None:
        super().__init__()
        self.last = now
        self.until = until


class EndedRequests:
    """At most `most` ended requests, each for `keep` seconds.

    They are kept in segments by age. The oldest segment is dropped as a whole: when the time of its last request is
    over, or to make room. So expiry costs nothing per request.
    """

    def __init__(self, most: int, keep: float, clock: Callable[[], float]) -> None:
        self._segment_size = max(1, most // SEGMENTS)
        self._keep_seconds = keep
        self._clock = clock
        self._segments: deque[_Segment] = deque()
        self._newest: _Segment | None = None

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def add(self, token: str, ended: EndedRequest) -> None:
        now = self._clock()
        newest = self._newest
        if newest is None or now > newest.until or len(newest) >= self._segment_size:
            newest = self._start_segment(now)
        newest[token] = ended
        newest.last = now

    def find(self, token: str) -> EndedRequest | None:
        for piece in reversed(self._segments):
            found = piece.get(token)
            if found is not None:
                # A segment is dropped as a whole, so one of its requests may be over before that.
                return found if self._clock() <= found.ended_at + self._keep_seconds else None
        return None

    def pop(self, token: str) -> EndedRequest | None:
        """Find a request and remove it."""
        found = self.find(token)
        if found is not None:
            # It is in one of them; which one is not kept.
            for piece in self._segments:
                piece.pop(token, None)
        return found

    def _start_segment(self, now: float) -> _Segment:
        pieces = self._segments
        while pieces and now > pieces[0].last + self._keep_seconds:
            pieces.popleft()
        room = self._segment_size * (SEGMENTS - 1)  # so that a full new segment still fits
        while pieces and len(self) > room:
            pieces.popleft()
        self._newest = newest = _Segment(now, now + self._keep_seconds / SEGMENTS_PER_LIFETIME)
        pieces.append(newest)
        return newest
