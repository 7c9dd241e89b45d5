"""Responses of the gateway in place of the app's: RFC 9457 problems that a page of another origin may read."""

from __future__ import annotations

import time

from proxy.errors import Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.problem import cors_headers, http_date, render_problem
from proxy.http.retry_after import round_retry_after
from proxy.ingress.exchange import Exchange
from proxy.ingress.headers import cache_status_lines, limit_header_lines
from proxy.ingress.response_writer import connection_line

REASON_PHRASES = {
    400: b"Bad Request",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    410: b"Gone",
    413: b"Content Too Large",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


def render_refusal(refusal: Refusal, request_id: str) -> bytes:
    """A whole response as bytes, for a client whose request is never read."""
    body = render_problem(refusal, request_id)
    retry_after = round_retry_after(refusal.retry_after or 0)
    return (
        b"HTTP/1.1 %d %s\r\n" % (refusal.status, REASON_PHRASES.get(refusal.status, b""))
        + b"Date: %s\r\n" % http_date(int(time.time()))
        + b"Content-Type: application/problem+json\r\nContent-Length: %d\r\n" % len(body)
        + b"Cache-Control: no-store\r\nRetry-After: %d\r\nConnection: close\r\n\r\n" % retry_after
        + body
    )


def write_refusal(connection: ClientConnection, x: Exchange, refusal: Refusal) -> bool:
    """Write a refusal. True if the connection may serve another request."""
    # After an unread body nobody knows where the next request begins, so the connection ends.
    keep_alive = not (refusal.close or x.should_close or connection.draining or connection.body_incomplete)
    body = render_problem(refusal, x.request_id)
    lines = [b"HTTP/1.1 %d %s\r\n" % (refusal.status, REASON_PHRASES.get(refusal.status, b""))]
    lines.append(b"Date: %s\r\n" % http_date(int(time.time())))
    lines.append(b"Content-Type: application/problem+json\r\nContent-Length: %d\r\n" % len(body))
    lines.append(b"Cache-Control: no-store\r\nX-Request-Id: %s\r\n" % x.request_id.encode())
    if refusal.retry_after is not None:
        lines.append(b"Retry-After: %d\r\n" % round_retry_after(refusal.retry_after))
    lines += limit_header_lines(x)
    if x.route.background.mode == "prefer":
        lines.append(b"Vary: Prefer\r\n")
    lines += cache_status_lines(x)
    lines += [b"%s: %s\r\n" % pair for pair in cors_headers(x.origin)]
    lines.append(b"Via: 1.1 outrigger\r\n")
    lines.append(connection_line(x, keep_alive=keep_alive))
    lines.append(b"\r\n")
    # The head states the length of a body that HEAD must not get (RFC 9110 section 9.3.2).
    if x.method != "HEAD":
        lines.append(body)
        x.bytes_out += len(body)
    connection.write(b"".join(lines))
    x.status = refusal.status
    x.refused = refusal
    x.response_started = connection.response_started = True
    return keep_alive
