"""Entity tags (RFC 9110 section 8.8.3): strong and weak, compared, made weak and strong again.

A strong tag names one sequence of bytes, a weak one a meaning. So an answer that the gateway compresses gets its tag
made weak. A client that comes back with it asks the app for a tag that the app never gave; if the app compares
as the RFC says (weakly), it finds them equal, and if it compares texts, it does not. So on a route on which tags were
made weak they are made strong again on the way in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TAG = re.compile(rb'(?:W/)?"[^"\x00-\x20\x7f]*"')


def parse_entity_tags(value: bytes) -> Iterator[bytes]:
    """The tags in a list, as they are written."""
    yield from _TAG.findall(value)


def opaque_tag(tag: bytes) -> bytes:
    """A tag without its mark of weakness."""
    return tag.removeprefix(b"W/")


def weaken_tag(value: bytes) -> bytes:
    """A tag as a weak one. What is no tag is left as it is: nobody can compare it."""
    return b"W/" + value if value.startswith(b'"') else value


def strengthen_tags(value: bytes) -> bytes:
    """A list of tags (If-None-Match, If-Match) with each of them strong."""
    return b", ".join(opaque_tag(tag) for tag in parse_entity_tags(value)) or value


def matches_weakly(value: bytes, tag: bytes) -> bool:
    """Whether an If-None-Match names this tag (RFC 9110 section 13.1.2): by weak comparison, or `*`."""
    if value.strip() == b"*":
        return True
    opaque = opaque_tag(tag)
    return any(opaque_tag(found) == opaque for found in parse_entity_tags(value))
