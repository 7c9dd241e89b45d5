"""What a client's connection asks of the door behind it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from proxy.postgres.auth.login import Gate

if TYPE_CHECKING:
    from proxy.postgres.client import Client
    from proxy.postgres.server import Server


class Desk(Protocol):
    """Where clients go."""

    gate: Gate

    @property
    def always(self) -> bool:
        """Whether a server is reset at every change of clients."""

    def full(self) -> bool: ...
    def entered(self, client: Client) -> None: ...
    def left(self, client: Client) -> None: ...
    def cancel(self, key: tuple[int, int]) -> None: ...
    def encrypt(self, client: Client, transport: asyncio.Transport) -> None: ...
    def take(self, client: Client) -> Server | None: ...
