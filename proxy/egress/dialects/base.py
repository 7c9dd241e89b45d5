"""What a dialect is asked, and the answers of an unknown one: everything passes, nothing is metered.

A new vendor is a subclass of Dialect in a file that names the vendor's page, its endpoints in endpoints.py, and a line
in `dialect_for` (__init__.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Any, Protocol

from proxy.egress.dialects.delta_template import DeltaTemplate, PlainRun
from proxy.egress.dialects.output_size import OutputSize
from proxy.util.json_bytes import json_bytes, read_again

Json = Mapping[str, Any]


# The values that each call makes are not frozen: a frozen dataclass takes 1.2 µs to make where this takes 0.2. None of
# them is changed once it is made.


@dataclass(slots=True)
class RequestInfo:
    """What a request says about itself. `user` is the end user that the app names in it."""

    model: str | None = None
    stream: bool = False
    user: str | None = None
    deterministic: bool = False  # temperature 0, a seed, or embeddings
    max_tokens: int | None = None  # of one answer
    choices: int = 1  # answers asked for at once
    background: bool = False  # the vendor works on it after it has answered


NO_REQUEST_INFO = RequestInfo()


@dataclass(slots=True)
class Usage:
    """Tokens of a call, as its vendor reported them.

    input: with the cached ones; output: with those of reasoning
    details: the vendor's own object
    parts: what the call was made of, if the vendor tells that apart: each part is priced by its own model and context,
        and the whole by its parts alone
    endpoint: the kind of call that a part was, if it is another than the whole's
    """

    input: int
    cached_input: int
    output: int
    reasoning: int
    model: str | None
    details: Json = field(default_factory=dict)
    parts: tuple[Usage, ...] = ()
    endpoint: str | None = None


UNFINISHED_STATUSES = frozenset(("queued", "in_progress"))
UNBILLED_STATUSES = frozenset(("failed", "cancelled"))  # unless usage says otherwise


@dataclass(frozen=True, slots=True)
class BackgroundStatus:
    """What an answer says about a call that the vendor goes on with by itself; `reference` is the vendor's id of it."""

    reference: str
    status: str | None
    usage: Usage | None
    background: bool | None = None  # None: the answer does not say
    deleted: bool = False
    output_size: OutputSize = field(default_factory=OutputSize)

    @property
    def finished(self) -> bool:
        """Whether its price is final. Some hosts report usage while they are still at it."""
        if self.status in UNFINISHED_STATUSES:
            return False
        return self.deleted or self.status is not None or self.usage is not None


@dataclass(frozen=True, slots=True)
class SyntheticResponse:
    content_type: str
    body: bytes


class EventKind(Enum):
    PREAMBLE = auto()  # nothing of the answer yet
    CONTENT = auto()
    DROP = auto()  # the gateway asked for it, so the app does not get it
    ERROR = auto()  # the stream's own error event
    END = auto()
    MALFORMED = auto()


class StreamState:
    """One streamed answer as it passes: each event is classified before it goes on.

    usage: as reported so far
    ended: a clean end of the connection now ends a whole answer
    usage_is_final: the usage, if there is any, covers the whole answer
    retryable, error_status: of the stream's own error event
    output_size: what was written so far
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.retryable = False
        self.error_status = 500
        self.model: str | None = None
        self.output_size = OutputSize()
        self._template: DeltaTemplate | None = None  # of the events that have nothing but text
        self._templates_learnt = 0

    @property
    def usage_is_final(self) -> bool:
        return True

    @property
    def is_over(self) -> bool:
        """Whether the dialect's last event has passed, so that the answer is whole whatever becomes of the
        connection."""
        return self.ended

    @property
    def background_status(self) -> BackgroundStatus | None:
        """The last status of a call that goes on without this stream; None if it is no such call."""
        return None

    def pass_plain(self, data: bytes, at: int = 0) -> int:
        """Count the whole events at `at` that have nothing but text, as `classify` would; returns where they end."""
        if self._template is None or self.ended:
            return at
        run = self._template.match_run(data, at)
        if run is None:
            return at
        self._count_plain(run)
        return run.end

    def classify(self, event: bytes) -> EventKind:
        """Look at one whole event, and learn from it."""
        if self.pass_plain(event) == len(event):
            return EventKind.CONTENT
        return self.classify_parsed(event)

    def classify_parsed(self, event: bytes) -> EventKind:
        """The same for one that is not known to have nothing but text."""
        raise NotImplementedError

    def _count_plain(self, run: PlainRun) -> None:
        self.output_size.text_bytes += run.size

    def error_event(self, code: str, message: str) -> bytes:
        """The error event that makes the dialect's SDK raise."""
        raise NotImplementedError


class StreamObserver(Protocol):
    """A stream that is read as it passes, whatever the size of its events: nothing of it is held back."""

    usage: Usage | None
    output_size: OutputSize
    image_count: int
    failed: bool

    def feed(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Dialect:
    """The dialect of `kind: http`, and the base of the others."""

    def endpoint(self, method: str, path: str) -> str | None:
        """Which inference endpoint this plain path below the base is; None for everything that only passes."""
        return None

    def deployment(self, path: str) -> str | None:
        """The model, if the vendor's path names it."""
        return None

    def required_keys(self, endpoint: str) -> frozenset[str]:
        """Keys of which a whole answer has at least one; empty if it need not be JSON."""
        return frozenset()

    # Some hosts answer 200 with an error inside; the breaker and the retries must see it as what it is.
    def error_status(self, error: object) -> int:
        """The status that an error inside a 200 should have had."""
        return 502

    def is_repeatable(self, endpoint: str, body: Json | None) -> bool:
        """Whether an inference call may be sent again after bytes of it were sent."""
        return True

    def parse_request(self, endpoint: str | None, body: Json | None) -> RequestInfo:
        return NO_REQUEST_INFO

    def with_usage_option(self, endpoint: str, raw: bytes, body: Json) -> bytes | None:
        """The body of a stream, changed so that it asks for usage; None if it does already, or cannot."""
        return None

    # For a fallback to another model: everything else of the request stays.
    def with_model(self, raw: bytes, model: str) -> bytes:
        return json_bytes({**read_again(raw), "model": model})

    def usage(self, endpoint: str, answer: object) -> Usage | None:
        return None

    def output_size(self, endpoint: str, answer: object) -> OutputSize:
        """How much the model wrote, in a whole answer."""
        return OutputSize()

    def background_reference(self, method: str, path: str) -> str | None:
        """The reference of the background call that this call polls, cancels or deletes; None if there is none."""
        return None

    def background_status(self, answer: object) -> BackgroundStatus | None:
        """What a whole answer says about a background call; None if it is none."""
        return None

    def error_body(self, code: str, status: int, message: str, *, request_id: str) -> bytes:
        """A refusal in the dialect's shape; an unknown dialect gets OpenAI's, which has room for everything."""
        kind = {"cost_cap_exceeded": "insufficient_quota", "rate_limit_exceeded": "rate_limit_error"}.get(code)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": None, "code": code}
        return json_bytes({"error": error})

    # A 429 is usually worth a retry, but vendors also send it for an empty account.
    def is_permanent(self, status: int, answer: object) -> bool:
        """Whether no retry can mend this error, though its status says otherwise."""
        return False

    def stream_state(self, endpoint: str, *, strip_usage: bool) -> StreamState | None:
        return None

    def media_stream(self, endpoint: str) -> StreamObserver | None:
        """The observer of a stream of images or sound; None for other endpoints."""
        return None

    def synthetic_response(
        self, endpoint: str, body: Json, text: str, *, id: str, created: int
    ) -> SyntheticResponse | None:
        return None


MAX_MODEL_NAME = 200  # characters; no model has a longer one
MAX_COUNT = 10**9  # of anything that one call could have taken; more is no count


def to_count(value: object) -> int:
    """A number of tokens; anything else counts as 0. Some hosts write 12.0."""
    if type(value) is int:  # and no bool
        return 0 if value < 0 else value if value < MAX_COUNT else MAX_COUNT
    return int(min(value, MAX_COUNT)) if isinstance(value, float) and value >= 0 else 0


def to_decimal(value: object) -> Decimal | None:
    """A JSON number as it was written; None for what is none, NaN and the infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    found = Decimal(min(value, MAX_COUNT)) if isinstance(value, int) else Decimal(repr(value))
    return found if found.is_finite() else None


def model_name(value: object) -> str | None:
    """The model that a call or an answer names. A name that is too long is cut, since much is remembered by model and
    callers can send anything; it stays longer than any real name, so it never has another model's price."""
    name = as_text(value)
    return name[: MAX_MODEL_NAME + 1] if name is not None else None


def as_mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
