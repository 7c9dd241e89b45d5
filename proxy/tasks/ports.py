"""What the queue needs of other rooms, as protocols. It imports none; `build.py` hands over who fulfils these."""

from __future__ import annotations

from typing import Protocol

from proxy.tasks.record import ClaimedTask, TaskRequest
from proxy.tasks.retry_rules import TryResult


class TaskRunner(Protocol):
    """The way of a request to the app, for one try of a task. Fulfilled by the ingress."""

    @property
    def is_ready(self) -> bool:
        """Whether the app would take a request now: a try while it restarts would only use up a try."""

    def find_route(self, request: TaskRequest, user: str) -> tuple[str, str]:
        """The names of the route that a request belongs to, and of the tier that a user has."""

    async def run_task(self, claimed: ClaimedTask, timeout: float, max_result: int) -> TryResult:
        """Send the task to the app and collect its answer, of at most `max_result` bytes, within `timeout` seconds
        from the moment in which it gets its place at the app. Raises nothing; cancelling it closes its connection."""
