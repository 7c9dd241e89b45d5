"""How a part of the gateway emits an event. It knows only this protocol, not who listens.

The terms are those of the OpenTelemetry logs data model: an event has a name, a severity (called level in the log and
in the policy), a body (the message) and attributes.
"""

from __future__ import annotations

from typing import Literal, Protocol

LogLevel = Literal["debug", "info", "warning", "error"]


class EmitEvent(Protocol):
    """Emits an event: its name (`app.restart`), a sentence for people, and attributes for machines."""

    def __call__(self, event: str, message: str, *, level: LogLevel = "info", **attributes: object) -> None: ...
