"""Our endpoints as the public listener reaches them."""

from __future__ import annotations

from collections.abc import Callable

from proxy.admin.dashboard import PUBLIC
from proxy.admin.endpoints import AdminRequest, Endpoints


class PublicEndpoints:
    """The face that the front door knows: plain values in, status, headers and body out."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def __call__(
        self,
        method: str,
        path: str,
        query: str,
        header: Callable[[str], str | None],
        body: bytes,
        peer: str,
        request_id: str,
        secure: bool,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        async def read() -> bytes:
            return body

        below = path.removeprefix(PUBLIC)
        request = AdminRequest(
            method, below or "/", header, peer, query, request_id, read, secure, claimed=below == path
        )
        answer = await self._endpoints.answer(request, public=True)
        return answer.status, answer.headers, answer.body
