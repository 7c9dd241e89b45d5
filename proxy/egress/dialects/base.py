"""What a dialect is asked, and the answers of one that is not known: everything passes, nothing is metered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum, auto
from typing import Any, Protocol

from proxy.egress.dialects.output_size import OutputSize
from proxy.util.json_bytes import json_bytes

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What a request says of itself. `user` is its own word for whom it is."""

    model: str | None = None
    stream: bool = False
    user: str | None = None
    deterministic: bool = False  # temperature 0, a seed, or embeddings
    max_tokens: int | None = None  # of one answer
    choices: int = 1  # answers asked for at once
    background: bool = False  # the vendor goes on with it by itself


NO_REQUEST_INFO = RequestInfo()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. `input` has the cached ones too, `output` those of reasoning; `details` is the vendor's own.

    `parts` is what the call was made of, where the vendor tells that apart: each is priced by its own model and
    context, and the whole by its parts alone. `endpoint` is the kind of call that a part was, where another.
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
UNBILLED_STATUSES = frozenset(("failed", "cancelled"))  # where no usage says otherwise


@dataclass(frozen=True, slots=True)
class BackgroundStatus:
    """What an answer shows of something that a vendor goes on with by itself: `reference` is the vendor's id of it."""

    reference: str
    status: str | None
    usage: Usage | None
    background: bool | None = None  # None: the answer does not say
    deleted: bool = False
    output_size: OutputSize = field(default_factory=OutputSize)

    @property
    def finished(self) -> bool:
        """Whether its price will be no other. Some likenesses count as they go."""
        if self.status in UNFINISHED_STATUSES:
            return False
        return self.deleted or self.status is not None or self.usage is not None


@dataclass(frozen=True, slots=True)
class SyntheticResponse:
    content_type: str
    body: bytes


class EventKind(Enum):
    PREAMBLE = auto()  # start-up: nothing of the answer yet
    CONTENT = auto()
    DROP = auto()  # asked for by us: not for the app
    ERROR = auto()  # the stream's own error event
    END = auto()
    MALFORMED = auto()


class StreamState:
    """One streamed answer as it passes. `ended`: a clean end of the connection now ends a whole answer. `final`: its
    usage, where there is any, is that of all of it."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.ended = False
        self.retryable = False
        self.error_status = 500
        self.model: str | None = None
        self.output_size = OutputSize()

    @property
    def usage_is_final(self) -> bool:
        return True

    @property
    def background_status(self) -> BackgroundStatus | None:
        """What it said last of something that goes on without it; None: it is no such thing."""
        return None

    def classify(self, event: bytes) -> EventKind:
        raise NotImplementedError

    def error_event(self, code: str, message: str) -> bytes:
        """The error event that makes the dialect's SDK raise."""
        raise NotImplementedError


class StreamObserver(Protocol):
    """A stream that is read as it passes, whatever the size of its events. `drawn`: images, previews too; `failed`:
    it had an error event of its own."""

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
        """The model, where the vendor's whole path names it."""
        return None

    def required_keys(self, endpoint: str) -> frozenset[str]:
        """Of which keys a whole answer has one at least; empty where it need not be JSON."""
        return frozenset()

    def error_status(self, error: object) -> int:
        """The status that an error inside a 200 should have had."""
        return 502

    def is_repeatable(self, endpoint: str, body: Json | None) -> bool:
        """Whether an inference call may be sent again after bytes of it were sent."""
        return True

    def parse_request(self, endpoint: str | None, body: Json | None) -> RequestInfo:
        return NO_REQUEST_INFO

    def with_usage_option(self, endpoint: str, raw: bytes, body: Json) -> bytes | None:
        """The body of a stream that also asks for usage; None where it does, or cannot."""
        return None

    def with_model(self, raw: bytes, body: Json, model: str) -> bytes:
        return json_bytes({**body, "model": model})

    def usage(self, endpoint: str, answer: object) -> Usage | None:
        return None

    def output_size(self, endpoint: str, answer: object) -> OutputSize:
        """What the model wrote of a whole answer."""
        return OutputSize()

    def background_reference(self, method: str, path: str) -> str | None:
        """The reference that a call asks after, stops or deletes, of something that the vendor goes on with."""
        return None

    def background_status(self, answer: object) -> BackgroundStatus | None:
        """What a whole answer shows of such a thing; None: it is none."""
        return None

    def error_body(self, code: str, status: int, message: str, *, request_id: str) -> bytes:
        """OpenAI's shape, which says all there is to say, in a dialect that has none."""
        kind = {"cost_cap_exceeded": "insufficient_quota", "rate_limit_exceeded": "rate_limit_error"}.get(code)
        kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": None, "code": code}
        return json_bytes({"error": error})

    def is_permanent(self, status: int, answer: object) -> bool:
        """Whether this error is one that no retry mends, for all that its status says otherwise."""
        return False

    def stream_state(self, endpoint: str, *, strip_usage: bool) -> StreamState | None:
        return None

    def media_stream(self, endpoint: str) -> StreamObserver | None:
        """Of a stream whose events pass as they come."""
        return None

    def synthetic_response(
        self, endpoint: str, body: Json, text: str, *, id: str, created: int
    ) -> SyntheticResponse | None:
        return None


MAX_MODEL_NAME = 200  # characters; no model has a longer one
MAX_COUNT = 10**9  # of anything that one call could have taken; more is no count


def to_count(value: object) -> int:
    """A number of tokens; what is none counts as nothing. Some likenesses write 12.0."""
    if type(value) is int:  # and no bool
        return 0 if value < 0 else min(value, MAX_COUNT)
    return int(min(value, MAX_COUNT)) if isinstance(value, float) and value >= 0 else 0


def to_decimal(value: object) -> Decimal | None:
    """A JSON number as it was written; None for what is none, NaN and the infinite."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    found = Decimal(min(value, MAX_COUNT)) if isinstance(value, int) else Decimal(repr(value))
    return found if found.is_finite() else None


def model_name(value: object) -> str | None:
    """What a call or an answer says that the model is. A name longer than any is cut: callers make up what they like,
    and much is remembered by model. It stays too long to be one, so it never has another's price."""
    name = as_text(value)
    return name[: MAX_MODEL_NAME + 1] if name is not None else None


def as_mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
