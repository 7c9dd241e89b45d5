"""Schedules over both databases, with a clock that the test sets: once over all instances, skipped, missed, caught up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from gateway_process import eventually
from postgres_cluster import Cluster

from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Schedule
from proxy.tasks.catalog import TaskCatalog
from proxy.tasks.database import Database, TasksUnavailable
from proxy.tasks.postgres_database import PostgresDatabase
from proxy.tasks.queue import TaskQueue, TryEnd
from proxy.tasks.record import NewTask, TaskResponse, new_id
from proxy.tasks.scheduler import ScheduleBook, Scheduler, make_scheduled_request, schedule_user
from proxy.tasks.sqlite_database import SqliteDatabase

MINUTELY = "{name: m, cron: '* * * * *', request: {method: POST, path: '/jobs/m?a=b'}}"
HOURLY = "{name: h, cron: '0 * * * *', request: {method: GET, path: /jobs/h}"


def schedules(*written: str) -> tuple[Schedule, ...]:
    return load_policy(PolicySource("p.yaml", None, f"schedules: [{', '.join(written)}]"), {}).schedules


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.fixture(params=["sqlite", "postgres"])
async def queue(request: pytest.FixtureRequest, tmp_path: Path, cluster: Cluster) -> AsyncIterator[TaskQueue]:
    if request.param == "sqlite":
        database: Database = SqliteDatabase(tmp_path / "tasks.db")
    else:
        database = PostgresDatabase(cluster.url(request.getfixturevalue("database")), where="postgres")
    yield TaskQueue(database, "one")
    await database.close()


class Instance:
    """A Scheduler as one instance has it; `now` is its clock."""

    def __init__(self, queue: TaskQueue, *written: str, now: float) -> None:
        self.now = now
        self.lines: list[dict[str, object]] = []
        self.queue = queue
        self.woken = 0
        self.scheduler = Scheduler(
            ScheduleBook(queue),
            schedules(*written),
            make_task=lambda one: NewTask(
                new_id(), "jobs", schedule_user(one.name), "free", make_scheduled_request(one, "")
            ),
            queued=self._wake,
            keep=lambda: 60.0,
            emit=self._emit,
            now=lambda: self.now,
        )

    def _wake(self) -> None:
        self.woken += 1

    def _emit(self, event: str, message: str, *, level: str = "info", **facts: object) -> None:
        assert event == "schedule"
        self.lines.append({"level": level, "message": message, **facts})

    async def look(self, now: float | None = None) -> list[object]:
        """What was done at this time, as the log has it."""
        self.now = self.now if now is None else now
        before = len(self.lines)
        await self.scheduler.look()
        return [line["outcome"] for line in self.lines[before:]]


async def run_all(queue: TaskQueue) -> int:
    claimed = await queue.claim("jobs", 1000)
    for one in claimed:
        await queue.end_try(
            one.task.id, one.task.attempts, TryEnd("succeeded", response=TaskResponse(200, b"", (), b""))
        )
    return len(claimed)


async def test_what_is_due_is_queued_with_its_request_and_its_own_user(queue) -> None:
    one = Instance(queue, MINUTELY, now=at("2026-06-01 12:00:30"))
    assert await one.look() == []
    assert await one.look(at("2026-06-01 12:00:59")) == []
    assert await one.look(at("2026-06-01 12:01:00")) == ["queued"]
    assert await one.look(at("2026-06-01 12:01:30")) == []
    assert one.woken == 1
    (claimed,) = await queue.claim("jobs", 10)
    assert (claimed.task.user, claimed.task.route) == ("schedule:m", "jobs")
    assert (claimed.request.method, claimed.request.target) == ("POST", b"/jobs/m?a=b")
    assert dict(claimed.request.fields)[b"Content-Length"] == b"0"
    (line,) = one.lines
    assert (line["schedule"], line["due"], line["level"]) == ("m", "2026-06-01T12:01:00Z", "info")
    assert claimed.task.id not in str(line)


async def test_it_is_queued_once_over_all_instances(queue) -> None:
    instances = [Instance(TaskQueue(queue.database, str(n)), MINUTELY, now=at("2026-06-01 12:00:30")) for n in range(4)]
    for one in instances:
        await one.look()
    for minute in range(1, 6):
        found = await asyncio.gather(
            *(one.look(at(f"2026-06-01 12:0{minute}:00") + n) for n, one in enumerate(instances))
        )
        assert [outcome for outcomes in found for outcome in outcomes] == ["queued"], minute
        assert await run_all(queue) == 1


async def test_one_that_still_waits_or_runs_is_skipped_and_the_next_is_not(queue) -> None:
    one = Instance(queue, MINUTELY, now=at("2026-06-01 12:00:30"))
    await one.look()
    assert await one.look(at("2026-06-01 12:01:00")) == ["queued"]
    assert await one.look(at("2026-06-01 12:02:00")) == ["skipped"]  # waits
    (claimed,) = await queue.claim("jobs", 10)
    assert await one.look(at("2026-06-01 12:03:00")) == ["skipped"]  # runs
    await queue.end_try(claimed.task.id, 1, TryEnd("failed", "timeout"))
    assert await one.look(at("2026-06-01 12:04:00")) == ["queued"]
    assert [line["level"] for line in one.lines] == ["info", "warning", "warning", "info"]


async def test_one_that_is_a_few_seconds_late_runs_and_one_that_is_later_was_missed(queue) -> None:
    one = Instance(queue, MINUTELY, now=at("2026-06-01 12:00:30"))
    await one.look()
    assert await one.look(at("2026-06-01 12:01:09")) == ["queued"]
    await run_all(queue)
    assert await one.look(at("2026-06-01 12:05:20")) == ["missed"]
    assert await one.look(at("2026-06-01 12:06:00")) == ["queued"]


async def test_after_a_pause_missed_ones_are_not_made_up_for(queue) -> None:
    await Instance(queue, f"{HOURLY}}}", now=at("2026-06-01 12:30:00")).look()
    later = Instance(queue, f"{HOURLY}}}", now=at("2026-06-02 08:30:00"))
    assert await later.look() == ["missed"]
    assert await later.look(at("2026-06-02 08:59:59")) == []
    assert await later.look(at("2026-06-02 09:00:01")) == ["queued"]
    assert await run_all(queue) == 1


async def test_with_catch_up_all_that_were_missed_run_once(queue) -> None:
    await Instance(queue, f"{HOURLY}, catch_up: true}}", now=at("2026-06-01 12:30:00")).look()
    later = [
        Instance(TaskQueue(queue.database, name), f"{HOURLY}, catch_up: true}}", now=at("2026-06-02 08:30:00"))
        for name in ("a", "b")
    ]
    found = await asyncio.gather(*(one.look() for one in later))
    assert [outcome for outcomes in found for outcome in outcomes] == ["queued"]
    (line,) = [line for one in later for line in one.lines]
    assert "30m late" in str(line["message"])
    assert await run_all(queue) == 1
    assert await later[0].look(at("2026-06-02 09:00:00")) == ["queued"]


async def test_a_schedule_that_is_new_or_says_another_time_begins_now(queue) -> None:
    one = Instance(queue, f"{HOURLY}, catch_up: true}}", now=at("2026-06-01 12:30:00"))
    assert await one.look() == []
    one.now = at("2026-06-01 12:31:00")
    one.scheduler.apply(schedules("{name: h, cron: '0 3 * * *', catch_up: true, request: {method: GET, path: /}}"))
    assert await one.look() == []
    assert await one.look(at("2026-06-01 13:00:00")) == []
    assert await one.look(at("2026-06-02 03:00:00")) == ["queued"]
    one.scheduler.apply(())
    assert await one.look(at("2026-06-03 03:00:00")) == []


async def test_in_its_time_zone_the_skipped_hour_runs_after_it_and_the_doubled_one_once(queue) -> None:
    nightly = "{name: n, cron: '30 2 * * *', timezone: Europe/Berlin, request: {method: GET, path: /}}"
    one = Instance(queue, nightly, now=at("2026-03-28 12:00"))
    ran = []
    await one.look()
    for start in ("2026-03-29 00:00", "2026-10-24 23:00"):
        await one.look(at(start))  # what lies between was missed
        for minute in range(0, 180, 5):
            if await one.look(at(start) + 60 * minute) == ["queued"]:
                ran.append(datetime.fromtimestamp(one.now, ZoneInfo("Europe/Berlin")).strftime("%d.%m. %H:%M"))
                await run_all(queue)
    assert ran == ["29.03. 03:00", "25.10. 02:30"]


async def test_the_loop_wakes_at_the_time_and_at_a_reload(queue) -> None:
    """In real time: a minute that is about to turn, on a clock that runs as ours does."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    one = Instance(queue, now=at("2026-06-01 12:00:59"))
    one.scheduler._now = lambda: at("2026-06-01 12:00:59") + loop.time() - began  # type: ignore[method-assign]
    running = asyncio.create_task(one.scheduler.run())
    one.scheduler.apply(schedules(MINUTELY))
    await eventually(lambda: [line["outcome"] for line in one.lines] == ["queued"])
    assert loop.time() - began < 60
    running.cancel()
    await asyncio.wait((running,))


async def test_while_the_database_is_away_it_is_looked_again_and_queued_when_it_is_back(queue, monkeypatch) -> None:
    one = Instance(queue, MINUTELY, now=at("2026-06-01 12:00:30"))
    await one.look()

    async def away(*_: object) -> None:
        raise TasksUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ScheduleBook, "queue_task", away)
        assert await one.look(at("2026-06-01 12:01:00")) == []
        assert await one.look(at("2026-06-01 12:01:04")) == []
    assert await one.look(at("2026-06-01 12:01:05")) == ["queued"]
    assert len(await TaskCatalog(queue.database).list()) == 1
