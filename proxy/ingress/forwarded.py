"""The Forwarded header field (RFC 7239), read for the addresses and the protocol in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PAIR = re.compile(
    r"""\s*(?P<name>[!\#$%&'*+.^_`|~0-9A-Za-z-]+)=
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;,"]*))
        \s*(?P<end>[;,]|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def elements(value: str) -> list[dict[str, str]]:
    """Each hop's pairs, names in lower case, the nearest hop last; nothing where any of it is malformed."""
    hops: list[dict[str, str]] = [{}]
    for name, content, ends in _pairs(value):
        if name is None:
            return []
        hops[-1].setdefault(name, content)
        if ends:
            hops.append({})
    return hops


def _pairs(value: str) -> Iterator[tuple[str | None, str, bool]]:
    position = 0
    while position < len(value):
        found = _PAIR.match(value, position)
        if found is None:
            yield None, "", False
            return
        quoted = found["quoted"]
        content = found["token"] if quoted is None else _ESCAPE.sub(r"\1", quoted)
        yield found["name"].lower(), content, found["end"] == ","
        position = found.end()
