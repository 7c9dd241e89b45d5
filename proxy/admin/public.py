"""Our endpoints as the public listener reaches them."""

from __future__ import annotations

from collections.abc import Callable

from proxy.admin.endpoints import AdminRequest, Endpoints
from proxy.errors import Refusal
from proxy.problem import CONTENT_TYPE, render_problem


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

        request = AdminRequest(method, path, header, peer, query, request_id, read, secure)
        answer = await self._endpoints.answer(request, public=True)
        if answer is not None:
            return answer.status, answer.headers, answer.body
        detail = "There is nothing here; /_outrigger/ lists what is."
        refusal = Refusal("not-found", 404, "Not found", detail)
        problem = render_problem(refusal, request_id)
        headers = [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(problem)))]
        return 404, headers, b"" if method == "HEAD" else problem
