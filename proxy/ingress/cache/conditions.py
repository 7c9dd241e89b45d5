"""What a client's own conditions and ranges make of an answer that is kept (RFC 9110 sections 13 and 14)."""

from __future__ import annotations

import re

from proxy.http.messages import HeaderList
from proxy.ingress.cache.cache_control import parse_http_date
from proxy.ingress.entity_tags import matches_weakly
from proxy.ingress.message_head import RequestHead, field_value

_RANGE = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*\Z", re.ASCII | re.IGNORECASE)

CONDITIONS = frozenset((b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range"))
"""Request fields that ask about the client's own copy, in lower case."""


def is_not_modified(x: RequestHead, headers: HeaderList, now: float) -> bool:
    """Whether the client's copy is this answer (304): by its tag, or else by its date (RFC 9111 section 4.3.2)."""
    asked = x.joined_header("If-None-Match")
    if asked is not None:
        tag = field_value(headers, b"etag")
        value = asked.encode("latin-1", "replace")
        return value.strip() == b"*" or (tag is not None and matches_weakly(value, tag))
    since = x.headers.get("If-Modified-Since")
    if since is None:
        return False
    at = parse_http_date(since.encode("latin-1", "replace"), now)
    changed = parse_http_date(field_value(headers, b"last-modified") or field_value(headers, b"date"), now)
    return at is not None and changed is not None and changed <= at


def wanted_range(x: RequestHead, headers: HeaderList, length: int, now: float) -> range | None:
    """The bytes of a whole answer of this length that the client asks for; None for all of them.

    An empty range: none of them can be given (416). Several ranges are answered with the whole, as a server may.
    """
    asked = x.headers.get("Range")
    if asked is None or x.method != "GET" or not _holds_if_range(x, headers, now):
        return None
    found = _RANGE.match(asked)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        suffix = int(found[2])
        return range(max(0, length - suffix), length) if suffix else range(0)
    first = int(found[1])
    last = int(found[2]) if found[2] else length - 1
    if found[2] and last < first:
        return None
    return range(first, min(last, length - 1) + 1) if first < length else range(0)


def _holds_if_range(x: RequestHead, headers: HeaderList, now: float) -> bool:
    """Whether the range is of this very answer: by a strong tag or an exact date (RFC 9110 section 13.1.5)."""
    condition = x.headers.get("If-Range")
    if condition is None:
        return True
    value = condition.strip().encode("latin-1", "replace")
    if value.startswith(b'"'):
        return value == field_value(headers, b"etag")
    at = parse_http_date(value, now)
    return at is not None and at == parse_http_date(field_value(headers, b"last-modified"), now)
