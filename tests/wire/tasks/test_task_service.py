"""The queue's service by itself: a fault of ours in it costs one request, and never the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_process import eventually

from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.loading import PolicySource, load_policy
from proxy.tasks import service as service_module
from proxy.tasks.database import TasksUnavailable
from proxy.tasks.record import ClaimedTask, NewTask, TaskRequest, TaskResponse, new_id
from proxy.tasks.retry_rules import TryResult
from proxy.tasks.service import TaskService


class Runner:
    """Answers each task after `seconds`; `is_ready` as a test wants it."""

    def __init__(self) -> None:
        self.is_ready = True
        self.seconds = 0.0
        self.ran: list[str] = []

    async def run_task(self, claimed: ClaimedTask, timeout: float, max_result: int) -> TryResult:
        self.ran.append(claimed.task.id)
        await asyncio.sleep(self.seconds)
        return TryResult(response=TaskResponse(200, b"OK", (), b"done"))

    def find_route(self, method: str, path: str) -> schema.Route:
        return schema.DEFAULT_ROUTE


class Running:
    def __init__(self, folder: Path) -> None:
        text = f"routes: [{{name: default, background: {{mode: prefer}}}}]\ntasks: {{url: 'sqlite:///{folder}/t.db'}}"
        self.runner = Runner()
        self.events: list[tuple[str, str]] = []
        self.service = TaskService(
            load_policy(PolicySource("p.yaml", None, text), {}),
            self.runner,
            emit=lambda event, message, **_: self.events.append((event, message)),
            redact=lambda text: text,
            metrics=Metrics(schema.Metrics(), version="1"),
            clock=time.monotonic,
        )

    async def put(self) -> str:
        request = TaskRequest("POST", b"/x", ((b"Host", b"h"),), b"", "127.0.0.1")
        added = await self.service.submit(NewTask(new_id(), "default", "ada", "", request))
        assert added.task is not None
        return added.task.id


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    await made.service.start()
    yield made
    await made.service.stop()


async def test_a_fault_while_accepting_is_an_answer_and_the_next_one_is_accepted(running, monkeypatch) -> None:
    monkeypatch.setattr(service_module, "RESTART_SECONDS", 0.01)
    add, faults = running.service.queue.add, [ValueError("ours")]

    async def faulty(new, keep):
        if faults:
            raise faults.pop()
        return await add(new, keep)

    monkeypatch.setattr(running.service.queue, "add", faulty)
    with pytest.raises(TasksUnavailable, match="ours"):
        await running.put()
    id = await running.put()
    task = await running.service.wait_for_end(id, 20)
    assert task is not None
    assert task.state == "succeeded"
    assert ("fault", "ValueError: ours") in running.events


async def test_a_fault_while_claiming_is_told_of_and_claiming_goes_on(running, monkeypatch) -> None:
    monkeypatch.setattr(service_module, "RESTART_SECONDS", 0.01)
    claim, faults = running.service.queue.claim, [KeyError("ours")]

    async def faulty(*arguments, **named):
        if faults:
            raise faults.pop()
        return await claim(*arguments, **named)

    monkeypatch.setattr(running.service.queue, "claim", faulty)
    task = await running.service.wait_for_end(await running.put(), 20)
    assert task is not None
    assert task.state == "succeeded"
    assert ("fault", "KeyError: 'ours'") in running.events


async def test_nothing_is_claimed_for_an_app_that_is_not_ready(running) -> None:
    running.runner.is_ready = False
    id = await running.put()
    await asyncio.sleep(0.5)
    assert running.runner.ran == []
    running.runner.is_ready = True
    await running.service.wait_for_end(id, 20)
    assert running.runner.ran == [id]


async def test_a_claim_whose_answer_was_lost_is_given_back_by_itself(running, monkeypatch) -> None:
    claim, lost = running.service.queue.claim, [True]

    async def losing(*arguments, **named):
        found = await claim(*arguments, **named)
        if found and lost:
            lost.clear()
            raise TasksUnavailable("the answer to COMMIT was lost", doubtful=True)
        return found

    monkeypatch.setattr(running.service.queue, "claim", losing)
    id = await running.put()
    await eventually(lambda: running.runner.ran == [id], timeout=30)
    task = await running.service.wait_for_end(id, 20)
    assert task is not None
    assert (task.state, task.attempts, task.failures) == ("succeeded", 2, 0)
