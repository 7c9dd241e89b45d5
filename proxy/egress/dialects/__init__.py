"""The languages that upstreams speak: endpoints, usage, errors, streams, and answers of our own in each."""

from proxy.egress.dialects.anthropic import Anthropic
from proxy.egress.dialects.base import (
    NO_REQUEST_INFO,
    UNBILLED_STATUSES,
    BackgroundStatus,
    Dialect,
    EventKind,
    RequestInfo,
    StreamObserver,
    StreamState,
    SyntheticResponse,
    Usage,
)
from proxy.egress.dialects.openai import OpenAI
from proxy.egress.dialects.output_size import OutputSize

__all__ = [
    "NO_REQUEST_INFO",
    "UNBILLED_STATUSES",
    "BackgroundStatus",
    "Dialect",
    "EventKind",
    "OutputSize",
    "RequestInfo",
    "StreamObserver",
    "StreamState",
    "SyntheticResponse",
    "Usage",
    "dialect",
]


def dialect_for(kind: str) -> Dialect:
    return {"openai": OpenAI, "anthropic": Anthropic}.get(kind, Dialect)()
