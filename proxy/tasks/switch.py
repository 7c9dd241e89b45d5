"""The queue's switch: nothing of it is loaded before a policy names it, at the start or at a reload."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from proxy.observe.health import NOT_CONFIGURED, ComponentHealth
from proxy.policy.schema import Policy
from proxy.util.background_tasks import BackgroundTasks

if TYPE_CHECKING:
    from proxy.tasks.service import TaskService

MakeService = Callable[[Policy], "TaskService"]


def names_tasks(policy: Policy) -> bool:
    """Whether a policy lets anything run later."""
    return bool(policy.schedules) or any(route.background.mode != "off" for route in policy.routes)


class TaskSwitch:
    """`service` is the queue, None until a policy names it. Once on it stays: what was accepted is run to its end."""

    def __init__(self, policy: Policy, make: MakeService) -> None:
        self._make = make
        self._starts = BackgroundTasks()
        self._is_running = False
        self.service: TaskService | None = make(policy) if names_tasks(policy) else None

    def prepare(self, policy: Policy) -> Callable[[], None]:
        """A function that puts a policy in force and cannot fail. Raises OutriggerError if it cannot be."""
        service = self.service
        if service is None and names_tasks(policy):
            return partial(self._switch_on, self._make(policy))
        return partial(service.apply, policy) if service is not None else _do_nothing

    def _switch_on(self, service: TaskService) -> None:
        self.service = service
        if self._is_running:
            self._starts.start(service.start())

    async def start(self) -> None:
        self._is_running = True
        if self.service is not None:
            await self.service.start()

    async def drain(self, seconds: float) -> None:
        """See TaskService.drain."""
        if self.service is not None:
            await self.service.drain(seconds)

    async def stop(self) -> None:
        await self._starts.close()
        if self.service is not None:
            await self.service.stop()

    def health(self) -> ComponentHealth:
        return NOT_CONFIGURED if self.service is None else self.service.health()


def _do_nothing() -> None:
    pass
