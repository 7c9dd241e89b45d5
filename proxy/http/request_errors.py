"""Refusals for requests that cannot be read, are too long, or do not come in time."""

from __future__ import annotations

from aiohttp.http_exceptions import LineTooLong

from proxy.errors import Refusal


def bad_request(detail: str) -> Refusal:
    return Refusal("bad-request", 400, "Bad request", detail, close=True)


def unreadable_request(error: Exception, max_header: int) -> Refusal:
    """For what the parser raised: 431 if something was too long, else 400."""
    text = str(getattr(error, "message", error)).split("\n", 1)[0].rstrip(":") or "malformed"
    if isinstance(error, LineTooLong) or "Too many headers" in text:
        return head_too_long(max_header)
    return bad_request(f"The request cannot be read as HTTP/1.1: {text[:200]}.")


def head_too_long(max_header: int) -> Refusal:
    """RFC 6585 section 5."""
    detail = f"The request line and header fields together may have {max_header} bytes (listen.max_header)."
    return Refusal("header-too-large", 431, "Request header fields too large", detail, close=True)


def body_too_large(limit: int) -> Refusal:
    """RFC 9110 section 15.5.14."""
    detail = f"The request's body is larger than {limit} bytes (max_body)."
    return Refusal("body-too-large", 413, "Content too large", detail, close=True)


def request_too_slow(part: str) -> Refusal:
    return _request_timeout(f"The request's {part} did not come in time.")


def body_below_rate(min_rate: int) -> Refusal:
    return _request_timeout(f"The request's body came slower than {min_rate} bytes a second (listen.body.min_rate).")


def _request_timeout(detail: str) -> Refusal:
    """RFC 9110 section 15.5.9."""
    return Refusal("request-timeout", 408, "Request timeout", detail, close=True)
