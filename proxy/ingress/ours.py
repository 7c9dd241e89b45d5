"""How the public listener reaches the gateway's own endpoints without knowing who answers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Answer = tuple[int, list[tuple[str, str]], bytes]


class Ours(Protocol):
    """Answers a request to an endpoint of ours: status, complete headers, body. `path` is as sent.

    `secure`: the client came by HTTPS, as a trusted proxy says.
    """

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
    ) -> Answer: ...
