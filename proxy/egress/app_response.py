"""Where an answer goes: to the app. aiohttp's server side is known here and in `listener.py` only."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from multidict import CIMultiDict

from proxy.egress.headers import Fields


class ResponseHead:
    """An answer's head without its framing; `length` is None if the body's end is not known yet."""

    __slots__ = ("fields", "length", "reason", "status")

    def __init__(self, status: int, reason: str, fields: Fields, length: int | None = None) -> None:
        self.status = status
        self.reason = reason
        self.fields = fields
        self.length = length


class ResponseWriter(Protocol):
    """Where an answer is written to: the app, or the readers of a shared call."""

    async def write_head(self, head: ResponseHead) -> None: ...
    async def write(self, data: bytes) -> None: ...


class AppResponse:
    """The app's side of one call. `response` is aiohttp's, once there is one."""

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        return self.response is not None

    async def write_head(self, head: ResponseHead) -> None:
        """Send the head of an answer whose body follows in parts. Raises ConnectionError if the app is gone."""
        response = self.response = web.StreamResponse(
            status=head.status, reason=_reason_phrase(head), headers=CIMultiDict(head.fields)
        )
        if head.length is not None:
            response.content_length = head.length
        await response.prepare(self._request)

    def set_whole(self, head: ResponseHead, body: bytes) -> web.Response:
        """Set an answer with its whole body; it is written when the handler returns it."""
        headers = CIMultiDict(head.fields)
        # The length of the body that a GET would have (RFC 9110 section 9.3.2), not of the empty one that is sent.
        if self._request.method == "HEAD" and head.length is not None:
            headers["Content-Length"] = str(head.length)
        response = self.response = web.Response(
            status=head.status, reason=_reason_phrase(head), headers=headers, body=body
        )
        return response

    async def write(self, data: bytes) -> None:
        """Waits while the app reads slowly. Raises ConnectionError when it is gone."""
        assert self.response is not None
        await self.response.write(data)

    async def finish(self) -> web.StreamResponse:
        """End a body that was written in parts. Returns what the handler has to return."""
        assert self.response is not None
        if not isinstance(self.response, web.Response):
            await self.response.write_eof()
        return self.response

    async def write_eof(self) -> None:
        assert self.response is not None
        await self.response.write_eof()

    def abort(self) -> None:
        """Break off: never a clean end over half a body."""
        if self._request.transport is not None:
            self._request.transport.abort()


def _reason_phrase(head: ResponseHead) -> str | None:
    return head.reason or None
