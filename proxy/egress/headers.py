"""Which header fields pass, out and back. Names are compared in lower case, spelling and order are kept."""

from __future__ import annotations

from collections.abc import Iterable

Fields = list[tuple[str, str]]

# RFC 9110 section 7.6.1, and what the HTTP/1.1 client states for itself.
HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authorization",
        "proxy-authenticate",
    )
)
_REQUEST = HOP_BY_HOP | {"host", "content-length", "expect", "x-outrigger-request"}
_ANSWER = HOP_BY_HOP | {"content-length"}
KEYS = ("authorization", "x-api-key", "api-key")


def fields(raw: Iterable[tuple[bytes, bytes]]) -> Fields:
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw]


def outgoing(came: Fields) -> Fields:
    """What of the app's header goes on: end to end fields, without what is between it and us."""
    dropped = _REQUEST | named_by_connection(came)
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
    """What of the upstream's header goes back; framing is stated anew by whoever writes the head."""
    dropped = _ANSWER | named_by_connection(came)
    return [(name, value) for name, value in came if name.lower() not in dropped]


def named_by_connection(came: Fields) -> set[str]:
    named: set[str] = set()
    for name, value in came:
        if name.lower() == "connection":
            named.update(token.strip().lower() for token in value.split(","))
    return named


def named_key(name: str) -> bool:
    """Whether a field is where the vendors of the dialects look for a key."""
    return name.lower() in KEYS


def first(came: Fields, wanted: str) -> str | None:
    for name, value in came:
        if name.lower() == wanted:
            return value
    return None


def replaced(came: Fields, wanted: str, value: str) -> Fields:
    """With one field of that name instead of any; where there was none, it comes last."""
    return [(name, old) for name, old in came if name.lower() != wanted] + [(wanted, value)]


def without_token(tracestate: str) -> str:
    """A tracestate (W3C Trace Context section 3.3) without our own member."""
    members = (member.strip() for member in tracestate.split(","))
    return ",".join(member for member in members if member and not member.startswith("outrigger="))


def token_of(tracestate: str | None) -> str | None:
    if tracestate is None:
        return None
    for member in tracestate.split(","):
        name, equals, value = member.strip().partition("=")
        if equals and name == "outrigger":
            return value
    return None
