"""How a part says that something happened: one call, whoever listens."""

from __future__ import annotations

from typing import Literal, Protocol

LogLevel = Literal["debug", "info", "warning", "error"]


class EmitEvent(Protocol):
    """Takes an event's name (`app.restart`), a sentence for people, and named facts for machines."""

    def __call__(self, event: str, message: str, *, level: LogLevel = "info", **facts: object) -> None: ...
