"""An attempt's answer: read as far as it takes to know whether it is one.

What has not been shown to the app can be tried again. So an answer that comes at once is read whole, and of a
stream the start-up events are held back until the first that says something.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp

from proxy.egress.call import Call
from proxy.egress.dialects import Dialect, EventKind, StreamObserver, StreamState
from proxy.egress.headers import Fields, fields
from proxy.egress.http_client import chunk, discard, whole
from proxy.egress.json_ends import Ends
from proxy.egress.sse import EventTooLarge, Splitter
from proxy.errors import AttemptFailed

LARGEST = 4 * 1024 * 1024  # bytes that are read before the first goes to the app
MOST_HELD = 64  # events
LARGEST_HELD = 256 * 1024  # bytes
ENCODINGS = ("identity", "gzip", "deflate")  # those that are read here
MALFORMED = "its stream has an event that is no JSON"


@dataclass(slots=True)
class Answer:
    """`judged` is the status that retries and breaker go by: that of an error inside a stream, where there
    is one, else the answer's own. `body` is set where it is all there; else `held` was read already and the
    rest comes from `response`."""

    method: str
    status: int
    reason: str
    fields: Fields
    judged: int
    body: bytes | None = None
    held: list[bytes] = field(default_factory=list)
    response: aiohttp.ClientResponse | None = None
    splitter: Splitter | None = None
    state: StreamState | None = None
    media: StreamObserver | None = None  # a stream that passes as it comes
    ends: Ends | None = None  # of JSON that is too large to be kept
    complete: bool = False  # it passed to its end
    parsed: object = None
    tap: Tap | None = None  # who reads along in a stream that passes as it comes
    errored: bool = False  # the stream had an error event, of its own or of ours
    error_status: int = 0  # what its own error event would have been as an answer; 0 where it has none
    permanent: bool = False  # its own error event is one that no retry mends
    broken: str | None = None  # what is wrong with the stream, found behind its first event

    def release(self) -> None:
        """Give back or close what still holds a connection."""
        discard(self.response)

    def err(self, state: StreamState) -> None:
        """The stream's own error event came."""
        self.errored = True
        self.error_status = state.error_status
        self.permanent = not state.retryable

    def learnt(self) -> Mapping[str, str]:
        """The header fields by name, for whoever looks for limits in them."""
        return self.response.headers if self.response is not None else {}

    @property
    def redirected(self) -> bool:
        """It says where an answer is, or that there is no newer one (3xx): the app's to follow."""
        return 300 <= self.status < 400

    def field(self, name: str) -> str | None:
        for key, value in self.fields:
            if key.lower() == name:
                return value
        return None


async def read(response: aiohttp.ClientResponse, call: Call, dialect: Dialect, *, strip_usage: bool) -> Answer:
    """Raises AttemptFailed where the answer breaks off, or is none, before anything of it was shown."""
    raw = fields(response.raw_headers)
    answer = Answer(call.method, response.status, response.reason or "", raw, response.status, response=response)
    if response.status >= 400:
        answer.body, complete = await whole(response, LARGEST)
        answer.parsed = parsed(answer)
        if not complete:
            answer.held, answer.body = [answer.body], None
        return answer
    unread = call.endpoint is None and call.follows is None
    if unread or call.method == "HEAD" or response.status == 204 or answer.redirected:
        return answer
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if call.endpoint is None:
        await _follow(answer, response, kind, dialect)
        return answer
    if kind == "text/event-stream":
        if not response.headers.get("Content-Encoding"):
            answer.state = dialect.stream(call.endpoint, strip_usage=strip_usage)
            answer.media = dialect.media(call.endpoint) if answer.state is None else None
        if answer.state is not None:
            await _begin(answer, answer.state)
        return answer
    due = dialect.due(call.endpoint)
    if kind == "text/html" and due:
        raise AttemptFailed("malformed", "it answered with a page (text/html) where JSON was due", sent=True)
    if not due and kind != "application/json":
        return answer  # sound and pictures pass as they come
    body, complete = await whole(response, LARGEST)
    if not complete:
        answer.held = [body]
        answer.ends = _ends(answer, kind)
        return answer
    answer.body = body
    answer.parsed = parsed(answer)
    if response.status == 200 and _readable(answer):
        if due:
            _judge(answer, due, dialect)
        else:
            _judge_error(answer, dialect)
    return answer


async def _follow(answer: Answer, response: aiohttp.ClientResponse, kind: str, dialect: Dialect) -> None:
    """Of what the vendor goes on with by itself: it passes whatever it is, and what it shows is read."""
    if kind == "text/event-stream":
        state = dialect.stream("responses", strip_usage=False)
        if state is not None and not response.headers.get("Content-Encoding"):
            answer.tap = Tap(state)
    elif kind == "application/json":
        body, complete = await whole(response, LARGEST)
        if complete:
            answer.body = body
            answer.parsed = parsed(answer)
        else:
            answer.held = [body]
            answer.ends = _ends(answer, kind)


class Tap:
    """Reads a stream that passes, whatever comes of it: `state` knows what was seen."""

    __slots__ = ("_splitter", "state")

    def __init__(self, state: StreamState) -> None:
        self.state = state
        self._splitter: Splitter | None = Splitter()

    def see(self, data: bytes) -> None:
        if self._splitter is None:
            return
        try:
            for event in events(self._splitter, data):
                self.state.judge(event)
        except AttemptFailed:  # an event that is larger than any: what follows cannot be told apart
            self._splitter = None


def _judge(answer: Answer, due: frozenset[str], dialect: Dialect) -> None:
    """A success that is none: no JSON, or JSON without what was asked for. Some hosts (OpenRouter) answer 200
    with an error in it; that gets the status of its kind, which every SDK raises. Raises AttemptFailed."""
    found = answer.parsed
    if not isinstance(found, dict):
        raise AttemptFailed("malformed", "its answer is no JSON object where one was due", sent=True)
    if any(found.get(key) is not None for key in due):
        return
    if found.get("error") is None:
        wanted = " or ".join(sorted(due))
        raise AttemptFailed("malformed", f"its answer lacks what was asked for ({wanted})", sent=True)
    answer.status = answer.judged = dialect.error_status(found["error"])
    answer.reason = ""


ANSWERS = ("data", "text", "id")  # of images, of sound, of what was ordered: with an error too, it is an answer


def _judge_error(answer: Answer, dialect: Dialect) -> None:
    """The same of answers that need not be JSON: where they are, and have an error alone."""
    found = answer.parsed
    if isinstance(found, dict) and found.get("error") is not None and all(found.get(key) is None for key in ANSWERS):
        answer.status = answer.judged = dialect.error_status(found["error"])
        answer.reason = ""


def _readable(answer: Answer) -> bool:
    return _encoding(answer) in ENCODINGS


def _ends(answer: Answer, kind: str) -> Ends | None:
    encoding = _encoding(answer)
    return Ends(encoding) if kind == "application/json" and encoding in ENCODINGS else None


def _encoding(answer: Answer) -> str:
    return answer.learnt().get("Content-Encoding", "identity").strip().lower()


async def _begin(answer: Answer, state: StreamState) -> None:
    """Hold back events until the first real one."""
    assert answer.response is not None
    splitter = answer.splitter = Splitter()
    held, count, size = answer.held, 0, 0
    while True:
        data = await chunk(answer.response)
        begun = False
        for event in events(splitter, data):
            verdict = state.judge(event)
            if verdict is EventKind.DROP:
                continue
            if verdict is EventKind.MALFORMED:
                if not begun:
                    raise AttemptFailed("reset", MALFORMED, sent=True)
                answer.broken = MALFORMED
                return
            if verdict is EventKind.ERROR:
                answer.err(state)
                if not begun:
                    answer.judged = state.error_status
            held.append(event)
            count += 1
            size += len(event)
            begun = begun or verdict is not EventKind.START
        if begun or count >= MOST_HELD or size >= LARGEST_HELD:
            return
        if not data:
            raise AttemptFailed("reset", "its stream ended before its first event", sent=True)


def events(splitter: Splitter, data: bytes) -> list[bytes]:
    """The events that `data` completes; at the end of the stream also one that lacks its blank line."""
    try:
        if data:
            return splitter.feed(data)
    except EventTooLarge as error:
        raise AttemptFailed("reset", str(error), sent=True) from error
    rest = splitter.rest()
    if not rest.strip():
        return []
    if rest.endswith((b"\r\r", b"\n\r")):  # its last CR might have been half a CRLF
        return [rest]
    return [rest + (b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n")]


def plain(answer: Answer) -> bytes:
    """A whole answer's body without its encoding; empty where that is not one of ours."""
    body, encoding = answer.body or b"", _encoding(answer)
    if encoding == "identity":
        return body
    if encoding not in ENCODINGS:
        return b""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, 8 * LARGEST)
    except zlib.error:
        return b""


def parsed(answer: Answer) -> object:
    """The JSON of a whole answer, or None."""
    try:
        return json.loads(plain(answer))
    except (ValueError, RecursionError):
        return None
