"""What the admin endpoints are asked and what they answer, whichever listener carries it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from proxy.errors import Refusal
from proxy.http.problem import CONTENT_TYPE, render_problem, whole_seconds
from proxy.observe.log_format import json_text

Header = tuple[str, str]

LONGEST = 4 * 1024 * 1024  # characters of an answer before long strings and lists are clipped


async def _no_body() -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """`path` is as sent, `/_outrigger` taken off; `headers` takes a name in lower case. `claimed` says that it was
    asked for at the root of the public listener (`listen.claim`).

    `peer` is the client's IP address, after `trusted_proxies` on the public listener. `secure` says that the
    client came by HTTPS to a proxy that is trusted.
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
class AdminAnswer:
    """`headers` are complete but for what the listener adds to every answer (Date, Server, request id).

    Content-Length is among them, for HEAD too, whose `body` is empty.
    """

    status: int
    headers: list[Header]
    body: bytes


def bare(request: AdminRequest, answer: AdminAnswer) -> AdminAnswer:
    """HEAD has the headers of GET, and no body (RFC 9110 section 9.3.2)."""
    return AdminAnswer(answer.status, answer.headers, b"") if request.method == "HEAD" else answer


def plain(status: int, content_type: str, body: bytes, *more: Header, cache: str = "no-store") -> AdminAnswer:
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("Cache-Control", cache),
        ("X-Content-Type-Options", "nosniff"),
        *more,
    ]
    return AdminAnswer(status, headers, body)


def problem(refusal: Refusal, request_id: str, *more: Header) -> AdminAnswer:
    if refusal.retry_after is not None:
        more = (*more, ("Retry-After", str(whole_seconds(refusal.retry_after))))
    return plain(refusal.status, CONTENT_TYPE, render_problem(refusal, request_id), *more)


def as_json(status: int, body: Mapping[str, object]) -> AdminAnswer:
    # Through our own encoder first: a status may hold anything.
    text = json.dumps(json.loads(json_text(body)), indent=2)
    return plain(status, "application/json", f"{text}\n".encode())


def as_data(body: Mapping[str, object]) -> AdminAnswer:
    """For programs, in one line: what Python indents it writes ten times slower, and holds the loop meanwhile."""
    return plain(200, "application/json", f"{json_text(body, LONGEST)}\n".encode())
