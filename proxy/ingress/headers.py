"""Which header fields pass the gateway, and which it adds (RFC 9110 section 7.6, RFC 9112)."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.http.hop_by_hop import connection_options
from proxy.http.messages import HeaderList
from proxy.http.request_errors import bad_request
from proxy.ingress.exchange import Exchange
from proxy.units import format_nanos

# What a request may carry to be run later; in lower case, as a browser asks for them.
TASK_REQUEST_FIELDS = ("prefer", "idempotency-key", "outrigger-delay", "outrigger-callback")
MAX_TRACESTATE_MEMBERS = 31  # of a client's tracestate, beside the gateway's
VIA = b"Via: 1.1 outrigger\r\n"
VIA_AND_END = VIA + b"\r\n"
# Framing, routing and credentials cannot be named away by a client's Connection field.
NOT_CONNECTION_OPTIONS = frozenset((b"content-length", b"host", b"cookie", b"authorization"))


def check_framing(x: Exchange, transfer_encoding: str | None) -> None:
    """Refuse what two readers could frame differently, beyond what the parser has already refused. Raises Refusal
    (400).
    """
    if transfer_encoding is None:
        return
    if x.http10:
        raise bad_request("Transfer-Encoding is not known to HTTP/1.0 (RFC 9112 section 6.1).")
    if transfer_encoding.strip().lower() != "chunked":
        raise bad_request("The only transfer coding taken here is `chunked`.")


def render_request_head(x: Exchange, forwarding: Iterable[tuple[bytes, bytes]], authority: str) -> bytes:
    """The head that the app gets: the client's, less what ends here (`x.client.dropped_fields`), with what the gateway
    vouches for.

    `forwarding` are the X-Forwarded-* and Forwarded fields to state. `authority` stands in for the Host that an
    HTTP/1.0 client need not send. One pass over the fields, whose branches few requests take: each function more on
    this path costs a request 0.1 to 0.3 µs.
    """
    facts = x.facts
    if facts is not None and facts.app_head is not None and x.lookup is None:
        return facts.app_head + _id_lines(x) + VIA_AND_END
    lines = [b"%s %s HTTP/1.1\r\n" % (x.method.encode(), x.target.encode("utf-8", "surrogateescape"))]
    dropped = x.client.dropped_fields
    connection = x.headers.get("Connection")
    if connection is not None:
        values = (value for name, value in x.raw_headers if name.lower() == b"connection")
        dropped = dropped | (connection_options(values) - NOT_CONNECTION_OPTIONS)
    if x.trace_id is not None:
        dropped = dropped | {b"tracestate"}
        lines.append(b"tracestate: %s\r\n" % render_tracestate(x))
    if x.filters is not None:
        names, fields = x.filters.edit_request(x)
        dropped = dropped | names
        lines += [b"%s: %s\r\n" % pair for pair in fields]
    if x.lookup is not None:
        names, fields = x.lookup.edit_request()
        dropped = dropped | names
        lines += [b"%s: %s\r\n" % pair for pair in fields]
    lines += [name + b": " + value + b"\r\n" for name, value in x.raw_headers if name.lower() not in dropped]
    # HTTP/1.1 requires a Host (RFC 9112 section 3.2), HTTP/1.0 does not, and the app is spoken to in HTTP/1.1.
    if "Host" not in x.headers:
        lines.append(b"Host: %s\r\n" % authority.encode())
    if x.chunked:
        lines.append(b"Transfer-Encoding: chunked\r\n")
    if x.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %s\r\n" % x.upgrade.encode())
    # TE is hop-by-hop, but the gateway passes trailers on, so it may ask for them itself (RFC 9110 section 10.1.4).
    elif connection is not None and "trailers" in (x.headers.get("TE") or "").lower():
        lines.append(b"Connection: TE\r\nTE: trailers\r\n")
    for name, value in forwarding:
        lines.append(b"%s: %s\r\n" % (name, value))
    # Nothing so far is this exchange's alone.
    if facts is not None and not authority and x.trace_id is None and x.filters is None and x.lookup is None:
        facts.app_head = b"".join(lines)
    lines.append(_id_lines(x))
    if x.task is not None:
        lines.append(b"X-Outrigger-Task: %s\r\nX-Outrigger-Attempt: %d\r\n" % (x.task[0].encode(), x.task[1]))
    lines.append(VIA_AND_END)
    return b"".join(lines)


def _id_lines(x: Exchange) -> bytes:
    return b"X-Request-Id: %s\r\nX-Outrigger-Request: %s\r\n" % (x.request_id.encode(), x.token.encode())


def render_tracestate(x: Exchange) -> bytes:
    """The client's tracestate with this request's token in front: whoever continues the trace carries it to calls out.

    At most 32 members are allowed (W3C Trace Context section 3.3.1.1), so the oldest gives way.
    """
    members = [b"outrigger=" + x.token.encode()]
    for name, value in x.raw_headers:
        if name.lower() == b"tracestate":
            members += [member.strip() for member in value.split(b",")]
    kept = [member for member in members[1:] if member and not member.startswith(b"outrigger=")]
    return b",".join([members[0], *kept[:MAX_TRACESTATE_MEMBERS]])


def response_header_lines(x: Exchange, headers: HeaderList) -> list[bytes]:
    """The app's header fields for the client: end-to-end fields as they came, then the gateway's own.

    Framing (Content-Length, Transfer-Encoding, Connection) is left to whoever writes the head.
    """
    names = [name.lower() for name, _ in headers]
    dropped = dropped_response_fields(x, names, headers)
    # Adding bytes takes two thirds of what filling in a pattern does.
    lines = [
        name + b": " + value + b"\r\n"
        for lower, (name, value) in zip(names, headers, strict=True)
        if lower not in dropped
    ]
    # An app that states its own id, for example one that it passes on, has the last word.
    return add_exchange_lines(x, lines, has_id=b"x-request-id" in names)


def add_exchange_lines(x: Exchange, lines: list[bytes], *, has_id: bool) -> list[bytes]:
    """The app's lines with the gateway's own of this one exchange behind them. `has_id`: they state an id already."""
    if not has_id:
        lines.append(b"X-Request-Id: %s\r\n" % x.request_id.encode())
    if x.rate_decision is not None or x.budgets is not None:
        lines += limit_header_lines(x)
    if x.lookup is not None:
        lines += cache_status_lines(x)
    if x.route.background.mode != "off":
        lines = background_header_lines(x, lines)
    lines.append(VIA)
    return lines


def dropped_response_fields(x: Exchange, names: list[bytes], headers: HeaderList) -> frozenset[bytes]:
    """Which fields of the app's response end here; `names` are those that it has, in lower case."""
    if b"connection" not in names:
        return x.dropped_from_response
    values = (value for name, value in headers if name.lower() == b"connection")
    return x.dropped_from_response | (connection_options(values) - NOT_CONNECTION_OPTIONS)


def background_header_lines(x: Exchange, lines: list[bytes]) -> list[bytes]:
    """The fields of an answer of a route with `background`, with what follows from that.

    On a route where the client chooses, an answer depends on Prefer (RFC 7240 section 2). And a page of another origin
    that the app lets in may send the fields that a task is asked for with, which the app has never heard of.
    """
    if x.route.background.mode == "prefer":
        lines = [*lines, b"Vary: Prefer\r\n"]
    if is_preflight(x):
        asked = (x.joined_header("Access-Control-Request-Headers") or "").lower().split(",")
        ours = [name.strip() for name in asked if name.strip() in TASK_REQUEST_FIELDS]
        is_allowed = any(line.lower().startswith(b"access-control-allow-origin:") for line in lines)
        if ours and is_allowed:
            lines = [*lines, b"Access-Control-Allow-Headers: %s\r\n" % ", ".join(ours).encode()]
    return lines


def is_preflight(x: Exchange) -> bool:
    """Whether this is a CORS preflight (Fetch standard, section 4.8), which asks whether a request may be made, and is
    none itself: it carries no credentials, so no limit of a user applies."""
    return x.method == "OPTIONS" and x.origin is not None and "Access-Control-Request-Method" in x.headers


def cache_status_lines(x: Exchange) -> list[bytes]:
    """Cache-Status (RFC 9211) of an answer on a route that keeps answers; behind those of caches nearer to the app."""
    return [] if x.lookup is None else [b"Cache-Status: outrigger; %s\r\n" % x.lookup.status]


def limit_header_lines(x: Exchange) -> list[bytes]:
    """RateLimit fields of a limited route (draft-ietf-httpapi-ratelimit-headers), and the dollars spent today by a user
    who has a cap.
    """
    lines = [] if x.rate_decision is None else [x.rate_decision.render_fields()]
    if x.budgets is not None:
        used = format_nanos(x.budgets.spent_today(x.user))
        lines.append(b"X-Cost-Used-Today: %s\r\n" % used.encode())
    return lines
