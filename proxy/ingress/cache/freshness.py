"""How long an answer is fresh, how old it is, and whether it may be kept at all (RFC 9111 sections 3 and 4.2).

    lifetime = s-maxage, else max-age, else Expires - Date, else the route's `ttl` (section 4.2.1)
    initial age = max(now - Date, Age + the time that the request took)          (section 4.2.3)
    age = initial age + time kept; fresh while age < lifetime

There is no guessing from Last-Modified: an answer that says nothing of its freshness is fresh for the route's `ttl`,
which is nothing by default.
"""

from __future__ import annotations

from typing import Literal

from proxy.http.messages import HeaderList
from proxy.ingress.cache.cache_control import ResponseDirectives, parse_age, parse_http_date
from proxy.ingress.message_head import STREAM_TYPES, field_value

# Statuses that the route's `ttl` holds for: cacheable by default (RFC 9110 section 15.1) and safe to guess about.
TTL_STATUSES = frozenset((200, 203, 204, 301, 308, 404, 410))
# What this cache knows the meaning of; asked for by must-understand (RFC 9111 section 5.2.2.3).
UNDERSTOOD_STATUSES = TTL_STATUSES | {300, 302, 303, 307, 400, 403, 405, 414, 421, 451, 500, 501, 502, 503, 504}
# Parts and confirmations of another answer; and answers to one client's credentials or framing.
NEVER_KEPT_STATUSES = frozenset((206, 304, 401, 407, 411, 413, 416, 417, 426, 431))

Scope = Literal["user", "public"]


def freshness_lifetime(directives: ResponseDirectives, headers: HeaderList, date: float, now: float) -> float | None:
    """Seconds for which an answer says that it is fresh, 0 if it says that it is not; None if it says nothing."""
    if directives.s_maxage is not None:
        return float(directives.s_maxage)
    if directives.max_age is not None:
        return float(directives.max_age)
    expires = [value for name, value in headers if name.lower() == b"expires"]
    if expires:
        # Two of them contradict each other; one that is no date says "already expired" (section 5.3).
        at = parse_http_date(expires[0], now) if len(expires) == 1 else None
        return 0.0 if at is None else max(0.0, at - date)
    return None


def initial_age(headers: HeaderList, date: float, requested_at: float, now: float) -> float:
    """How old an answer was when it came, in seconds. `date` is its Date, or `now` without one."""
    return max(0.0, now - date, parse_age(headers) + (now - requested_at))


def is_storable(
    scope: Scope, status: int, directives: ResponseDirectives, headers: HeaderList, *, credentials: bool
) -> bool:
    """Whether an answer to GET or HEAD may be kept, whatever it is worth.

    `credentials`: its request had Authorization or Cookie.
    """
    if status < 200 or status in NEVER_KEPT_STATUSES:
        return False
    if directives.must_understand:
        if status not in UNDERSTOOD_STATUSES:
            return False
    elif directives.no_store:
        return False
    if directives.private and scope == "public":
        return False
    if scope == "public" and credentials and not directives.public:
        return False
    vary = field_value(headers, b"vary")
    if vary is not None and b"*" in vary:
        return False
    kind = (field_value(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    # Events have no end that could be waited for.
    if kind in STREAM_TYPES:
        return False
    if any(name.lower() in (b"set-cookie", b"set-cookie2") for name, _ in headers):
        # In the scope of a user only if the app itself says that it may be given again, and only to somebody with
        # the same credentials: users known by their address alone may be several, and would share a session.
        return scope == "user" and credentials and directives.has_freshness
    return True


def may_serve_stale(directives: ResponseDirectives, own: int | None) -> bool:
    """Whether an answer may ever be given stale (section 4.2.4). `own` is what it says of this itself (RFC 5861)."""
    if directives.must_revalidate or directives.no_cache:
        return False
    # s-maxage means proxy-revalidate too (section 5.2.2.10), unless the same answer says otherwise.
    return directives.s_maxage is None or own is not None
