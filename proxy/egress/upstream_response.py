"""An attempt's answer: read as far as it takes to know whether it is one.

What has not been shown to the app can be tried again. So an answer that comes at once is read whole, and of a
stream the start-up events are held back until the first that says something.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from proxy.egress.call import Call
from proxy.egress.dialects import Dialect, EventKind, StreamObserver, StreamState
from proxy.egress.headers import Fields, first
from proxy.egress.json_ends import JsonEnds
from proxy.egress.sse import EventSplitter, EventTooLarge
from proxy.errors import AttemptFailed
from proxy.http.outgoing_client import OutgoingResponse
from proxy.util.json_bytes import parse_json

MAX_BUFFERED_RESPONSE = 4 * 1024 * 1024  # bytes that are read before the first goes to the app
MAX_HELD_EVENTS = 64  # events
MAX_HELD_BYTES = 256 * 1024  # bytes
READABLE_ENCODINGS = ("identity", "gzip", "deflate")  # those that are read here
MALFORMED = "its stream has an event that is no JSON"
JudgedEvents = Iterator[tuple[bytes, EventKind]]


@dataclass(slots=True)
class UpstreamResponse:
    """An answer of the upstream, as far as it was read.

    `judged_status` is the status that retries and breaker go by: that of an error at the beginning of a stream, if
    there is one, else the answer's own. `body` is set if all of it is there; else `held` was read already and the rest
    comes from `response`.
    """

    method: str
    status: int
    reason: str
    fields: Fields
    judged_status: int
    body: bytes | None = None
    held: list[bytes] = field(default_factory=list)
    unread: JudgedEvents | None = None  # what of a stream came with its first events, and has yet to be judged
    response: OutgoingResponse | None = None
    splitter: EventSplitter | None = None
    stream: StreamState | None = None
    media: StreamObserver | None = None  # a stream that passes as it comes
    ends: JsonEnds | None = None  # of JSON that is too large to be kept
    complete: bool = False  # it passed to its end
    parsed: object = None
    tap: StreamTap | None = None  # who reads along in a stream that passes as it comes
    errored: bool = False  # the stream had an error event, of its own or of ours
    error_status: int = 0  # what its own error event would have been as an answer; 0 if it has none
    permanent: bool = False  # its own error event is one that no retry mends
    broken: str | None = None  # what is wrong with the stream, found behind its first event
    encoding: str = "identity"  # of its content (RFC 9110 section 8.4)

    def release(self) -> None:
        """Give back or close what still holds a connection."""
        if self.response is not None:
            self.response.release()

    def record_error(self, state: StreamState) -> None:
        """The stream's own error event came."""
        self.errored = True
        self.error_status = state.error_status
        self.permanent = not state.retryable

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields by lower-case name, the first of each; none of an answer that was made up."""
        return self.response.headers if self.response is not None else {}

    @property
    def is_redirect(self) -> bool:
        """Whether it says where an answer is, or that there is no newer one (3xx); the app may follow it."""
        return 300 <= self.status < 400

    def get_field(self, name: str) -> str | None:
        """The value of the first header field of this name, which is in lower case."""
        return self.response.headers.get(name) if self.response is not None else first(self.fields, name)


async def read_response(
    response: OutgoingResponse, call: Call, dialect: Dialect, *, strip_usage: bool
) -> UpstreamResponse:
    """Raises AttemptFailed if the answer breaks off, or is none, before anything of it was shown."""
    status = response.status
    answer = UpstreamResponse(call.method, status, response.reason, response.fields, status, response=response)
    if "content-encoding" in response.headers:
        answer.encoding = response.headers["content-encoding"].strip().lower() or "identity"
    # An error is read whatever its type: retries, fallbacks and the app go by what it says.
    if response.status >= 400:
        answer.body, complete = await response.read_whole(MAX_BUFFERED_RESPONSE)
        answer.parsed = parse_body(answer)
        if not complete:
            answer.held, answer.body = [answer.body], None
        return answer
    # What is no inference passes unread, and these others have no body to read.
    unread = call.endpoint is None and call.followed is None
    if unread or call.method == "HEAD" or response.status == 204 or answer.is_redirect:
        return answer
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if call.endpoint is None:
        await _read_followed(answer, response, kind, dialect)
        return answer
    if kind == "text/event-stream":
        # Streams are asked for without an encoding; one that has it all the same passes unread.
        if answer.encoding == "identity":
            answer.stream = dialect.stream_state(call.endpoint, strip_usage=strip_usage)
            answer.media = dialect.media_stream(call.endpoint) if answer.stream is None else None
        if answer.stream is not None:
            await _read_first_events(answer, answer.stream)
        return answer
    due = dialect.required_keys(call.endpoint)
    # A proxy's or a portal's page with status 200 would reach the SDK as an answer.
    if kind == "text/html" and due:
        raise AttemptFailed("malformed", "it answered with a page (text/html) where JSON was due", sent=True)
    if not due and kind != "application/json":
        return answer  # sound and pictures pass as they come
    body, complete = await response.read_whole(MAX_BUFFERED_RESPONSE)
    # Too large to be judged whole: it passes, and its usage is read at either end.
    if not complete:
        answer.held = [body]
        answer.ends = _make_ends(answer, kind)
        return answer
    answer.body = body
    answer.parsed = parse_body(answer)
    if response.status == 200 and answer.encoding in READABLE_ENCODINGS:
        if due:
            _judge_json(answer, due, dialect)
        else:
            _judge_error(answer, dialect)
    return answer


async def _read_followed(answer: UpstreamResponse, response: OutgoingResponse, kind: str, dialect: Dialect) -> None:
    """Read along in an answer on background work: it passes whatever it is, and what it shows is noted."""
    if kind == "text/event-stream":
        # Of all that goes on in the background only a response is streamed.
        state = dialect.stream_state("responses", strip_usage=False)
        if state is not None and not response.headers.get("content-encoding"):
            answer.tap = StreamTap(state)
    elif kind == "application/json":
        body, complete = await response.read_whole(MAX_BUFFERED_RESPONSE)
        if complete:
            answer.body = body
            answer.parsed = parse_body(answer)
        else:
            answer.held = [body]
            answer.ends = _make_ends(answer, kind)


class StreamTap:
    """Reads along in a stream that passes, and never fails. `state` knows what was seen."""

    __slots__ = ("_splitter", "state")

    def __init__(self, state: StreamState) -> None:
        self.state = state
        self._splitter: EventSplitter | None = EventSplitter()

    def read_along(self, data: bytes) -> None:
        """Classify the events in the next bytes of the stream."""
        if self._splitter is None:
            return
        try:
            for _ in judge_events(self._splitter, self.state, data):
                pass
        except AttemptFailed:  # an event that is larger than any: what follows cannot be told apart
            self._splitter = None


def _judge_json(answer: UpstreamResponse, due: frozenset[str], dialect: Dialect) -> None:
    """A success that is none: no JSON, or JSON without what was asked for. Some hosts (OpenRouter) answer 200
    with an error in it; that gets the status of its kind, which every SDK raises. Raises AttemptFailed."""
    found = answer.parsed
    if not isinstance(found, dict):
        raise AttemptFailed("malformed", "its answer is no JSON object where one was due", sent=True)
    # With a member that was due it is an answer, whatever error stands beside that.
    if any(found.get(key) is not None for key in due):
        return
    if found.get("error") is None:
        wanted = " or ".join(sorted(due))
        raise AttemptFailed("malformed", f"its answer lacks what was asked for ({wanted})", sent=True)
    answer.status = answer.judged_status = dialect.error_status(found["error"])
    answer.reason = ""


ANSWER_MEMBERS = ("data", "text", "id")  # of images, of sound, of what was ordered: with an error too, it is an answer


def _judge_error(answer: UpstreamResponse, dialect: Dialect) -> None:
    """Judge an answer that need not be JSON: if it is, and has nothing but an error, it gets the error's status."""
    found = answer.parsed
    if (
        isinstance(found, dict)
        and found.get("error") is not None
        and all(found.get(key) is None for key in ANSWER_MEMBERS)
    ):
        answer.status = answer.judged_status = dialect.error_status(found["error"])
        answer.reason = ""


def _make_ends(answer: UpstreamResponse, kind: str) -> JsonEnds | None:
    readable = kind == "application/json" and answer.encoding in READABLE_ENCODINGS
    return JsonEnds(answer.encoding) if readable else None


async def _read_first_events(answer: UpstreamResponse, state: StreamState) -> None:
    """Hold back events until the first real one."""
    assert answer.response is not None
    splitter = answer.splitter = EventSplitter()
    held, count, size = answer.held, 0, 0
    while True:
        data = await answer.response.read_chunk()
        begun = False
        events = judge_events(splitter, state, data)
        for event, verdict in events:
            if verdict is EventKind.DROP:
                continue
            if verdict is EventKind.MALFORMED:
                # Nothing has gone to the app yet, so the attempt may be made again; behind a first event it may not.
                if not begun:
                    raise AttemptFailed("reset", MALFORMED, sent=True)
                answer.broken = MALFORMED
                return
            if verdict is EventKind.ERROR:
                answer.record_error(state)
                # An error before anything else is judged like an answer of that status, and tried again.
                if not begun:
                    answer.judged_status = state.error_status
            held.append(event)
            count += 1
            size += len(event)
            begun = begun or verdict is not EventKind.PREAMBLE
            # At these limits it counts as begun: an app must not wait for ever behind events that say nothing.
            if begun or count >= MAX_HELD_EVENTS or size >= MAX_HELD_BYTES:
                answer.unread = events
                return
        if not data:
            raise AttemptFailed("reset", "its stream ended before its first event", sent=True)


def judge_events(splitter: EventSplitter, state: StreamState, data: bytes) -> JudgedEvents:
    """The events that `data` completes, each with what it is. Those that have nothing but text come together, as they
    came. Raises AttemptFailed if one is larger than any."""
    at = 0
    while True:
        classify = state.classify
        if splitter.is_between_events:
            if (end := state.pass_plain(data, at)) > at:
                yield data[at:end], EventKind.CONTENT
                at = end
                if at == len(data):
                    return
            classify = state.classify_parsed  # the next event is none of those
        blank = data.find(b"\n\n", at)
        end = blank + 2 if blank >= 0 else len(data)
        for event in split_events(splitter, data[at:end]):
            yield event, classify(event)
        at = end
        if at == len(data):
            return


def split_events(splitter: EventSplitter, data: bytes) -> list[bytes]:
    """The events that `data` completes; at the end of the stream also one that lacks its blank line."""
    try:
        if data:
            return splitter.feed(data)
    except EventTooLarge as error:
        raise AttemptFailed("reset", str(error), sent=True) from error
    rest = splitter.flush()
    if not rest.strip():
        return []
    if rest.endswith((b"\r\r", b"\n\r")):  # its last CR might have been half a CRLF
        return [rest]
    return [rest + (b"\n" if rest.endswith((b"\n", b"\r")) else b"\n\n")]


def decoded_body(answer: UpstreamResponse) -> bytes:
    """A whole answer's body without its encoding; empty if that encoding cannot be read here."""
    body = answer.body or b""
    if answer.encoding == "identity":
        return body
    if answer.encoding not in READABLE_ENCODINGS:
        return b""
    try:
        # Bounded, since a small body may unpack to gigabytes; 32 accepts gzip and zlib.
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, 8 * MAX_BUFFERED_RESPONSE)
    except zlib.error:
        return b""


def parse_body(answer: UpstreamResponse) -> object:
    """The JSON of a whole answer, or None."""
    try:
        return parse_json(answer.body or b"" if answer.encoding == "identity" else decoded_body(answer))
    except (ValueError, RecursionError):
        return None
