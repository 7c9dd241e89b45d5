"""The languages that upstreams speak: endpoints, usage, errors, streams, and answers of our own in each."""

from proxy.egress.dialects.anthropic import Anthropic
from proxy.egress.dialects.base import (
    NOTHING,
    UNPAID,
    Ask,
    Canned,
    Dialect,
    Passing,
    Shown,
    StreamState,
    Usage,
    Verdict,
)
from proxy.egress.dialects.openai import OpenAI
from proxy.egress.dialects.output_text import Written

__all__ = [
    "NOTHING",
    "UNPAID",
    "Ask",
    "Canned",
    "Dialect",
    "Passing",
    "Shown",
    "StreamState",
    "Usage",
    "Verdict",
    "Written",
    "dialect",
]


def dialect(kind: str) -> Dialect:
    return {"openai": OpenAI, "anthropic": Anthropic}.get(kind, Dialect)()
