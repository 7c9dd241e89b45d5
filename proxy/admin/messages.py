"""Requests and responses of the admin endpoints, whichever listener carries them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from proxy.errors import Refusal
from proxy.http.problem import CONTENT_TYPE, render_problem
from proxy.http.retry_after import round_retry_after
from proxy.observe.log_format import encode_json

Header = tuple[str, str]

MAX_RESPONSE_CHARS = 4 * 1024 * 1024  # beyond it long strings and lists are clipped


async def _no_body() -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """One request to an admin endpoint.

    `path` is as sent, without `/_outrigger`. `headers` looks up a header by its name in lower case. `peer` is the
    client's IP address, on the public listener after `trusted_proxies`. `body` reads the whole body. `secure` says
    that the client came by HTTPS to a trusted proxy. `claimed` says that the path was claimed from the app at the
    root of the public listener (`listen.claim`).
    """

    method: str
    path: str
    headers: Callable[[str], str | None]
    peer: str
    query: str = ""
    request_id: str = ""
    body: Callable[[], Awaitable[bytes]] = field(default=_no_body)
    secure: bool = False
    claimed: bool = False


@dataclass(frozen=True, slots=True)
class AdminResponse:
    """A whole response. `headers` lack only what the listener adds to every response (Date, Server, request id).

    Content-Length is among them, for HEAD too, whose `body` is empty.
    """

    status: int
    headers: list[Header]
    body: bytes


def drop_head_body(request: AdminRequest, response: AdminResponse) -> AdminResponse:
    """HEAD gets the headers of GET and no body (RFC 9110 section 9.3.2)."""
    return AdminResponse(response.status, response.headers, b"") if request.method == "HEAD" else response


def build_response(
    status: int, content_type: str, body: bytes, *more: Header, cache: str = "no-store"
) -> AdminResponse:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", cache),
        ("X-Content-Type-Options", "nosniff"),
        *more,
    ]
    return AdminResponse(status, headers, body)


def problem_response(refusal: Refusal, request_id: str, *more: Header) -> AdminResponse:
    # Whole seconds, rounded up: a client that came early would be refused again (RFC 9110 section 10.2.3).
    if refusal.retry_after is not None:
        more = (*more, ("Retry-After", str(round_retry_after(refusal.retry_after))))
    return build_response(refusal.status, CONTENT_TYPE, render_problem(refusal, request_id), *more)


def json_response(status: int, body: Mapping[str, object]) -> AdminResponse:
    # Our own encoder first: it writes any object, clips long ones and never fails.
    text = json.dumps(json.loads(encode_json(body)), indent=2)
    return build_response(status, "application/json", f"{text}\n".encode())


def compact_json_response(body: Mapping[str, object]) -> AdminResponse:
    """JSON in one line, for programs: indenting takes ten times as long and blocks the event loop meanwhile."""
    return build_response(200, "application/json", f"{encode_json(body, MAX_RESPONSE_CHARS)}\n".encode())
