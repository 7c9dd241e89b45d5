"""Whom a pipeline tells of what its server said beside the replies that it owes."""

from __future__ import annotations

from typing import Protocol

from proxy.postgres.statement_registry import Statement


class Owner(Protocol):
    """`parameter` gives what the client gets in the message's place, if anything; `resets`: a RESET did it."""

    def parameter(self, name: bytes, value: bytes, *, shown: bool, resets: bool) -> bytes: ...

    def notification(self, message: bytes) -> bytes:
        """The message as the client gets it."""
        ...

    def tagged(self, hint: int, tag: bytes) -> None: ...
    def outdated(self, statement: Statement) -> None: ...
    def translated(self, error: bytes) -> bytes: ...
