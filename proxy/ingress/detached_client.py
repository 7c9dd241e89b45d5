"""A client that nobody is: it takes a response and forgets it, so that the app can be asked while nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class ResponseClient(Protocol):
    """What the relay needs of a client's connection to write a response to it. `ClientConnection` is one."""

    response_started: bool
    draining: bool
    on_writable: Callable[[], None] | None

    @property
    def body_incomplete(self) -> bool: ...
    @property
    def writing_paused(self) -> bool: ...
    def write(self, data: bytes) -> None: ...
    def writelines(self, data: list[bytes]) -> None: ...
    def write_continue(self, data: bytes) -> None: ...
    async def drain(self) -> None: ...
    def abort_response(self, *, framed: bool) -> None: ...
    def local_authority(self) -> str: ...


class DetachedClient:
    """A `ResponseClient` that drops what it gets, as fast as it comes."""

    def __init__(self) -> None:
        self.response_started = False
        self.draining = False
        self.on_writable: Callable[[], None] | None = None
        self.body_incomplete = False
        self.writing_paused = False

    def write(self, data: bytes) -> None:
        """Forget it."""

    def writelines(self, data: list[bytes]) -> None:
        """Forget them."""

    def write_continue(self, data: bytes) -> None:
        """Forget it."""

    async def drain(self) -> None:
        """It keeps up with everything."""

    def abort_response(self, *, framed: bool) -> None:
        """There is nobody to tell."""

    def local_authority(self) -> str:
        return "localhost"
