"""How a part says that something happened: one call, whoever listens."""

from __future__ import annotations

from typing import Literal, Protocol

Level = Literal["debug", "info", "warning", "error"]


class Emit(Protocol):
    """Takes an event's name (`app.restart`), a sentence for people, and named facts for machines."""

    def __call__(self, event: str, message: str, *, level: Level = "info", **facts: object) -> None: ...
