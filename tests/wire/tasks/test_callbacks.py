"""Callbacks over both databases: due at the end, tried again, once from one instance, over restarts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gateway_process import eventually
from postgres_cluster import Cluster
from standardwebhooks.webhooks import Webhook
from test_callback_delivery import Receiver, receiver

from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.tasks import callbacks
from proxy.tasks.callbacks import DELAYS, LEASE_SECONDS, CallbackQueue, CallbackSender
from proxy.tasks.catalog import TaskCatalog
from proxy.tasks.database import Database
from proxy.tasks.postgres_database import PostgresDatabase
from proxy.tasks.queue import TaskQueue, TryEnd
from proxy.tasks.record import NewTask, TaskRequest, TaskResponse, new_id
from proxy.tasks.sqlite_database import SqliteDatabase

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
POLICY = schema.Tasks(callbacks=("127.0.0.1",), secret=SECRET)


@pytest.fixture(params=["sqlite", "postgres"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> AsyncIterator[TaskQueue]:
    if request.param == "sqlite":
        database: Database = SqliteDatabase(tmp_path / "tasks.db")
    else:
        database = PostgresDatabase(cluster.url(request.getfixturevalue("database")), where="postgres")
    yield TaskQueue(database, "one")
    await database.close()


async def end_task(queue: TaskQueue, url: str, state: str = "succeeded") -> str:
    """A task that was accepted, tried and has ended; its id."""
    id = new_id()
    request = TaskRequest("POST", b"/report", ((b"Host", b"a"),), b"", "127.0.0.1")
    await queue.add([NewTask(id, "report", "ada", "free", request, callback=url)], 60.0)
    if state == "cancelled":
        await queue.cancel(id)
        return id
    (claimed,) = await queue.claim("report", 100)
    response = TaskResponse(200, b"OK", (), b"result") if state == "succeeded" else None
    reason = "" if state == "succeeded" else "timeout"
    await queue.end_try(id, claimed.task.attempts, TryEnd(state, reason, response))  # type: ignore[arg-type]
    return id


class Sender:
    """A CallbackSender that runs, with what it logged."""

    def __init__(self, queue: TaskQueue, policy: schema.Tasks = POLICY) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []
        self.metrics = Metrics(schema.Metrics(), version="1")
        self.sender = CallbackSender(CallbackQueue(queue.database), policy, emit=self._emit, metrics=self.metrics)
        self._task: asyncio.Task[None] | None = None

    def _emit(self, event: str, message: str, *, level: str = "info", **facts: object) -> None:
        assert event == "callback"
        self.lines.append((level, message, facts))

    def counts(self) -> dict[str, float]:
        return {values[0]: count.value for values, count in self.metrics.callbacks_total.children() if count.value}

    async def __aenter__(self) -> Sender:
        self._task = asyncio.create_task(self.sender.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self.sender.close()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "DELAYS", (0.05,) * 4)
    monkeypatch.setattr(callbacks, "POLL_SECONDS", 0.2)


async def pending(queue: TaskQueue) -> list[tuple[str, float, int]]:
    async with queue.database.transaction(write=False) as tx:
        return [tuple(row) for row in await tx.fetch(
            "SELECT id, callback_at, callback_tries FROM outrigger_tasks WHERE callback_at IS NOT NULL"
        )]  # fmt: skip


def test_it_is_tried_after_a_second_then_more_rarely_and_hourly_for_a_day() -> None:
    assert DELAYS[:5] == (1.0, 5.0, 30.0, 120.0, 600.0)
    assert set(DELAYS[5:]) == {3600.0}
    assert sum(DELAYS[5:]) == 86400.0


@pytest.mark.parametrize(
    ("state", "kind", "status", "reason"),
    [
        ("succeeded", "task.succeeded", "succeeded", None),
        ("failed", "task.failed", "failed", "timeout"),
        ("cancelled", "task.failed", "cancelled", None),
    ],
)
async def test_each_end_goes_out_once_signed_with_what_get_says(queue, state, kind, status, reason) -> None:
    async with receiver() as there:
        id = await end_task(queue, f"http://127.0.0.1:{there.port}/done?key=secret", state)
        task = await TaskCatalog(queue.database).find(id)
        async with Sender(queue) as running:
            await eventually(lambda: running.counts() == {"ok": 1})
            await eventually(lambda: len(running.lines) == 1)
            while await pending(queue):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        ((path, fields, body),) = there.heard
    assert path == "/done?key=secret"
    said = Webhook(SECRET).verify(body, fields)
    assert said["type"] == kind
    assert said["data"]["id"] == id
    assert (said["data"]["status"], said["data"]["reason"]) == (status, reason)
    assert said["timestamp"] == said["data"]["ended"]
    assert task is not None
    ((level, message, facts),) = running.lines
    assert level == "info"
    assert id not in message + json.dumps(facts)
    assert "secret" not in message + json.dumps(facts)
    assert facts["host"] == f"http://127.0.0.1:{there.port}"


async def test_a_receiver_that_fails_gets_it_again_with_the_same_id(queue) -> None:
    async with receiver() as there:
        there.status = 500
        await end_task(queue, f"http://127.0.0.1:{there.port}/")
        async with Sender(queue) as running:
            await eventually(lambda: len(there.heard) == 2)
            there.status = 204
            await eventually(lambda: running.counts().get("ok") == 1)
        assert len({fields["webhook-id"] for _, fields, _ in there.heard}) == 1
        assert len({body for _, _, body in there.heard}) == 1
        for _, fields, body in there.heard:
            Webhook(SECRET).verify(body, fields)
    assert running.counts() == {"failed": 2, "ok": 1}


async def test_after_the_last_try_it_is_given_up(queue) -> None:
    async with receiver() as there:
        there.status = 500
        await end_task(queue, f"http://127.0.0.1:{there.port}/")
        async with Sender(queue) as running:
            await eventually(lambda: running.counts().get("given_up") == 1)
            while await pending(queue):
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
        assert len(there.heard) == 5
    assert running.counts() == {"failed": 4, "given_up": 1}
    assert running.lines[-1][0] == "error"
    assert "given up" in running.lines[-1][1]


async def test_410_gives_up_at_once(queue) -> None:
    async with receiver() as there:
        there.status = 410
        await end_task(queue, f"http://127.0.0.1:{there.port}/")
        async with Sender(queue) as running:
            await eventually(lambda: running.counts() == {"gone": 1})
            while await pending(queue):
                await asyncio.sleep(0.05)
        assert len(there.heard) == 1


async def test_a_host_that_the_policy_lists_no_more_is_not_called_until_it_does_again(queue) -> None:
    async with receiver() as there:
        await end_task(queue, f"http://127.0.0.1:{there.port}/")
        async with Sender(queue, schema.Tasks(secret=SECRET)) as running:
            await eventually(lambda: running.counts().get("refused", 0) >= 1)
            assert there.heard == []
            running.sender.apply(POLICY)
            await eventually(lambda: running.counts().get("ok") == 1)


async def test_many_at_once_go_out_each_once_from_two_senders(queue) -> None:
    async with receiver() as there:
        ids = {await end_task(queue, f"http://127.0.0.1:{there.port}/") for _ in range(40)}
        other = TaskQueue(queue.database, "two")
        async with Sender(queue) as one, Sender(other) as two:
            await eventually(lambda: one.counts().get("ok", 0) + two.counts().get("ok", 0) == len(ids))
            while await pending(queue):
                await asyncio.sleep(0.05)
        heard = [json.loads(body)["data"]["id"] for _, _, body in there.heard]
        assert sorted(heard) == sorted(ids)


async def test_one_whose_instance_died_while_it_sent_is_sent_by_another(queue, monkeypatch) -> None:
    monkeypatch.setattr(callbacks, "LEASE_SECONDS", 0.5)
    async with receiver() as there:
        id = await end_task(queue, f"http://127.0.0.1:{there.port}/")
        claimed, _ = await CallbackQueue(queue.database).claim(10)  # and nothing more is heard of it
        assert [one.task.id for one in claimed] == [id]
        async with Sender(queue) as running:
            await eventually(lambda: running.counts() == {"ok": 1})
        assert there.heard[0][1]["webhook-id"] == claimed[0].webhook_id


async def test_a_claim_holds_for_one_delivery_and_a_little_longer(queue) -> None:
    await end_task(queue, "http://127.0.0.1:9/")
    taken = CallbackQueue(queue.database)
    assert len((await taken.claim(10))[0]) == 1
    found, wait = await taken.claim(10)
    assert not found
    assert wait is not None
    assert LEASE_SECONDS - 10 < wait <= LEASE_SECONDS


async def test_a_task_that_is_tried_again_and_ends_again_is_told_again_under_another_id(queue) -> None:
    async with receiver() as there:
        id = await end_task(queue, f"http://127.0.0.1:{there.port}/", "failed")
        async with Sender(queue) as running:
            await eventually(lambda: running.counts() == {"ok": 1})
            assert await TaskCatalog(queue.database).retry(id)
            assert await pending(queue) == []
            while not await queue.routes_waiting():
                await queue.promote()
            (claimed,) = await queue.claim("report", 1)
            await queue.end_try(
                id, claimed.task.attempts, TryEnd("succeeded", response=TaskResponse(200, b"", (), b""))
            )
            running.sender.wake()
            await eventually(lambda: running.counts() == {"ok": 2})
        assert [json.loads(body)["type"] for _, _, body in there.heard] == ["task.failed", "task.succeeded"]
        assert len({fields["webhook-id"] for _, fields, _ in there.heard}) == 2


async def test_a_callback_outlives_the_rows_keep(queue) -> None:
    id = await end_task(queue, "http://127.0.0.1:9/")
    catalog = TaskCatalog(queue.database)
    await asyncio.sleep(0.1)
    await catalog.prune(0.01)
    assert [row[0] for row in await pending(queue)] == [id]


async def test_one_that_is_cut_off_by_a_stop_stays_due(queue) -> None:
    async with receiver() as there:
        there.hold = 30.0
        await end_task(queue, f"http://127.0.0.1:{there.port}/")
        running = Sender(queue)
        async with running:
            await eventually(lambda: len(there.heard) == 1)
            await running.sender.close(0.1)
        assert len(await pending(queue)) == 1
        assert running.counts() == {}
        there.hold = 0.0
        async with Sender(queue) as another:
            await eventually(lambda: another.counts() == {"ok": 1})  # at once, and not when the lease is over


assert Receiver  # what `receiver` yields
