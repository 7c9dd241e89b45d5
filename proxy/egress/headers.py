"""Which header fields pass, out and back. Names are compared in lower case, spelling and order are kept."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.http.hop_by_hop import HOP_BY_HOP, connection_options

Fields = list[tuple[str, str]]

# What the HTTP/1.1 client states for itself is dropped with the fields of the connection; it sends no trailers.
_DROPPED = frozenset(name.decode() for name in HOP_BY_HOP) | {"content-length", "trailer"}
_DROPPED_FROM_REQUESTS = _DROPPED | {"host", "expect", "x-outrigger-request"}

# What another upstream gets of a call's header: what it asks for, and nothing that says whose it is. Vendors and
# gateways invent names for their keys, so what is not here does not go along.
_PORTABLE = frozenset(
    (
        "accept",
        "accept-encoding",
        "accept-language",
        "anthropic-beta",
        "anthropic-version",
        "cache-control",
        "content-encoding",
        "content-language",
        "content-type",
        "idempotency-key",
        "openai-beta",
        "prefer",
        "range",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-client-request-id",
        "x-request-id",
    )
)
# What another caller gets of an answer's header: what belongs to the answer, and no cookie, id or account.
_SHARED = frozenset(
    (
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-location",
        "content-type",
        "date",
        "etag",
        "expires",
        "last-modified",
        "link",
        "openai-model",
        "openai-version",
        "retry-after",
        "retry-after-ms",
        "vary",
        "x-should-retry",
    )
)


def fields(raw: Iterable[tuple[bytes, bytes]]) -> Fields:
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw]


def outgoing(came: Fields) -> Fields:
    """The fields of the app's header that go on: end to end ones alone (RFC 9110 section 7.6.1)."""
    named = named_by_connection(came)
    dropped = _DROPPED_FROM_REQUESTS | named if named else _DROPPED_FROM_REQUESTS
    kept = []
    for name, value in came:
        lower = name.lower()
        if lower in dropped:
            continue
        if lower == "tracestate":
            value = without_token(value)
            if not value:
                continue
        kept.append((name, value))
    return kept


def returning(came: Fields) -> Fields:
    """The fields of the upstream's header that go back; whoever writes the head states the framing anew."""
    named = named_by_connection(came)
    dropped = _DROPPED | named if named else _DROPPED
    return [(name, value) for name, value in came if name.lower() not in dropped]


def named_by_connection(came: Fields) -> set[str]:
    values = [value.encode("utf-8", "surrogateescape") for name, value in came if name.lower() == "connection"]
    if not values or values == [b"keep-alive"]:  # the usual
        return set()
    return {name.decode("latin-1") for name in connection_options(values)}


def portable(came: Fields) -> Fields:
    """The fields of a call's header that another upstream may see."""
    return [(n, v) for n, v in came if n.lower() in _PORTABLE or n.lower().startswith("x-stainless-")]


def shared(came: Fields) -> Fields:
    """The fields of an answer's header that another caller may see, with ours on how it was made."""
    return [(n, v) for n, v in came if n.lower() in _SHARED or n.lower().startswith("x-outrigger-")]


def first(came: Fields, wanted: str) -> str | None:
    """The value of the first field of this name, which is in lower case."""
    for name, value in came:
        if name.lower() == wanted:
            return value
    return None


def replaced(came: Fields, wanted: str, value: str) -> Fields:
    """The fields with a single one of that name, which comes last."""
    return [(name, old) for name, old in came if name.lower() != wanted] + [(wanted, value)]


def without_token(tracestate: str) -> str:
    """A tracestate (W3C Trace Context section 3.3) without our own member."""
    members = (member.strip() for member in tracestate.split(","))
    return ",".join(member for member in members if member and not member.startswith("outrigger="))


def token_of(tracestate: str | None) -> str | None:
    """The request's token in a tracestate (W3C Trace Context section 3.3), if it has one."""
    if tracestate is None:
        return None
    for member in tracestate.split(","):
        name, equals, value = member.strip().partition("=")
        if equals and name == "outrigger":
            return value
    return None
