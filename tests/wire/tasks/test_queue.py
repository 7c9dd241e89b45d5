"""The queue on both databases: who is next, how many, what a key is worth, what becomes of what died."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from postgres_cluster import Cluster

from proxy.tasks.catalog import TaskCatalog
from proxy.tasks.database import Database, TasksUnavailable
from proxy.tasks.postgres_database import PostgresDatabase
from proxy.tasks.queue import TaskQueue, TryEnd
from proxy.tasks.record import NewTask, Task, TaskRequest, TaskResponse, new_id
from proxy.tasks.sqlite_database import SqliteDatabase

KEEP = 3600.0
DONE = TryEnd("succeeded", response=TaskResponse(200, b"OK", ((b"A", b"1"), (b"A", b"2")), b"\0\xff"))


@pytest.fixture(params=["sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        made: Database = SqliteDatabase(tmp_path / "tasks.db")
    else:
        cluster: Cluster = request.getfixturevalue("cluster")
        made = PostgresDatabase(cluster.url(request.getfixturevalue("database")), where="postgres")
    yield made
    await made.close()


@pytest.fixture
def queue(store: Database) -> TaskQueue:
    return TaskQueue(store, "one")


def task_of(user: str = "ann", route: str = "r", **keys: object) -> NewTask:
    request = TaskRequest(
        "POST", b"/x?a=%20b", ((b"Host", b"h"), (b"X", b"")), b"\0body\xff", "127.0.0.1", request_id="q"
    )
    return NewTask(new_id(), route, user, "free", request, **keys)  # type: ignore[arg-type]


async def accept(queue: TaskQueue, *new: NewTask) -> list[Task]:
    found = []
    for added in await queue.add(new, KEEP):
        assert added.task is not None
        found.append(added.task)
    return found


async def finish_all(queue: TaskQueue, route: str = "r", concurrency: int = 1) -> list[str]:
    """Run what waits to its end, so many at once; the users in the order in which they were served."""
    served = []
    while claimed := await queue.claim(route, concurrency):
        for one in claimed:
            served.append(one.task.user)
            assert await queue.end_try(one.task.id, one.task.attempts, DONE)
    return served


async def test_a_request_comes_back_as_it_was_and_so_does_its_answer(queue: TaskQueue) -> None:
    new = task_of()
    await accept(queue, new)
    (claimed,) = await queue.claim("r", 5)
    assert claimed.request == new.request
    assert claimed.task.attempts == 1
    assert claimed.waited >= 0
    await queue.end_try(new.id, 1, DONE)
    assert await TaskCatalog(queue.database).result(new.id) == DONE.response
    task = await TaskCatalog(queue.database).find(new.id)
    assert task is not None
    assert (task.state, task.status, task.user, task.tier) == ("succeeded", 200, "ann", "free")


async def test_users_are_served_in_turn_whoever_came_with_how_many(queue: TaskQueue) -> None:
    await accept(queue, *(task_of("many") for _ in range(6)))
    await accept(queue, *(task_of(user) for user in ("few", "few", "one")))
    assert await finish_all(queue) == ["many", "few", "one", "many", "few", "many", "many", "many", "many"]


async def test_who_comes_later_is_not_behind_what_others_were_promised(queue: TaskQueue) -> None:
    await accept(queue, *(task_of("many") for _ in range(20)))
    for _ in range(5):
        (claimed,) = await queue.claim("r", 1)
        await queue.end_try(claimed.task.id, 1, DONE)
    await accept(queue, task_of("late"), task_of("late"))
    assert (await finish_all(queue))[:4] == ["many", "late", "many", "late"]


async def test_in_any_order_of_arrivals_nobody_who_waits_is_more_than_a_turn_behind(queue: TaskQueue) -> None:
    rng = random.Random(3)
    waiting: Counter[str] = Counter()
    served: Counter[str] = Counter()
    since: dict[str, Counter[str]] = {}  # what others got since a user began to wait
    for _ in range(150):
        if rng.random() < 0.55:
            user = rng.choice("aaaaabbcd")
            await accept(queue, task_of(user))
            if not waiting[user]:
                since[user] = Counter()
            waiting[user] += 1
        else:
            for claimed in await queue.claim("r", 1):
                user = claimed.task.user
                await queue.end_try(claimed.task.id, 1, DONE)
                waiting[user] -= 1
                served[user] += 1
                since[user] = Counter()
                for other in since:
                    if other != user and waiting[other]:
                        since[other][user] += 1
                        assert since[other][user] <= 2, (other, user)
    assert sum(served.values()) > 20


async def test_never_more_run_than_the_route_allows_however_many_claim(store: Database) -> None:
    queues = [TaskQueue(store, f"instance-{at}") for at in range(6)]
    await accept(queues[0], *(task_of(f"u{at % 3}") for at in range(30)))
    most = 0
    for _ in range(6):
        claims = await asyncio.gather(*(queue.claim("r", 4) for queue in queues))
        claimed = [one for some in claims for one in some]
        assert len(claimed) == 4
        assert len({one.task.id for one in claimed}) == 4
        most += len(claimed)
        for one in claimed:
            await queues[0].end_try(one.task.id, 1, DONE)
    assert most == 24


async def test_never_more_wait_than_the_route_allows_however_many_arrive(store: Database) -> None:
    queues = [TaskQueue(store, f"instance-{at}") for at in range(5)]
    added = await asyncio.gather(
        *(queue.add([task_of(max_queued=7, delay=float(at % 2)) for at in range(4)], KEEP) for queue in queues)
    )
    accepted = [one.task for some in added for one in some if one.task is not None]
    assert len(accepted) == 7
    assert sorted(task.position for task in accepted) == list(range(1, 8))
    # Another route has places of its own.
    await accept(queues[0], task_of(route="other", max_queued=1))


async def test_a_key_is_one_task_until_it_is_gone(queue: TaskQueue) -> None:
    first, second = task_of(key="k"), task_of(key="k")
    added = await queue.add([first, second], KEEP)
    assert [one.existed for one in added] == [False, True]
    assert added[1].task is not None
    assert added[1].task.id == first.id
    assert [one.existed for one in await queue.add([task_of(key="k")], KEEP)] == [True]
    assert [one.existed for one in await queue.add([task_of("bob", key="k")], KEEP)] == [False]
    assert [one.existed for one in await queue.add([task_of(route="other", key="k")], KEEP)] == [False]
    await finish_all(queue)
    assert (await queue.find_by_key("r", "ann", "k", KEEP)) is not None
    assert (await queue.find_by_key("r", "ann", "k", 0.0)) is None
    assert [one.existed for one in await queue.add([task_of(key="k")], 0.0)] == [False]


async def test_many_keys_at_once_are_each_one_task(store: Database) -> None:
    queues = [TaskQueue(store, f"instance-{at}") for at in range(8)]
    added = await asyncio.gather(*(queue.add([task_of(key="same")], KEEP) for queue in queues))
    assert len({one.task.id for some in added for one in some if one.task is not None}) == 1


async def test_a_delayed_one_waits_for_its_time_and_gets_its_turn_then(queue: TaskQueue) -> None:
    await accept(queue, *(task_of("late", delay=0.3) for _ in range(3)), *(task_of("now") for _ in range(3)))
    assert await queue.promote() is not None
    (claimed,) = await queue.claim("r", 1)
    assert claimed.task.user == "now"
    await asyncio.sleep(0.35)
    while await queue.promote() == 0.0:
        pass
    await queue.end_try(claimed.task.id, 1, DONE)
    assert await finish_all(queue) == ["late", "now", "late", "now", "late"]


async def test_a_further_try_comes_after_its_backoff_and_before_what_came_later(queue: TaskQueue) -> None:
    first, *_ = await accept(queue, *(task_of() for _ in range(3)))
    (claimed,) = await queue.claim("r", 1)
    task = await queue.end_try(first.id, 1, TryEnd("delayed", "timeout", delay=0.2, cost=5, calls=1))
    assert task is not None
    assert (task.state, task.shown_state, task.reason, task.failures) == ("delayed", "queued", "timeout", 1)
    await asyncio.sleep(0.25)
    await queue.promote()
    (claimed,) = await queue.claim("r", 1)
    assert (claimed.task.id, claimed.task.attempts, claimed.task.failures) == (first.id, 2, 1)
    task = await queue.end_try(first.id, 2, TryEnd("failed", "timeout", cost=7, calls=2))
    assert task is not None
    assert (task.state, task.cost, task.calls, task.failures) == ("failed", 12, 3, 2)


async def test_the_end_of_an_old_try_does_not_count_any_more(queue: TaskQueue) -> None:
    (task,) = await accept(queue, task_of())
    await queue.claim("r", 1)
    assert await queue.end_try(task.id, 1, TryEnd("queued", "drain", counted=False))
    await queue.claim("r", 1)
    assert await queue.end_try(task.id, 1, DONE) is None
    assert await queue.end_try(task.id, 2, DONE)
    assert await queue.end_try(task.id, 2, DONE) is None


async def test_what_a_dead_instance_ran_is_queued_again_and_failed_at_the_third_death(store: Database) -> None:
    queue, survivor = TaskQueue(store, "dead"), TaskQueue(store, "alive")
    (task,) = await accept(queue, task_of())
    (other,) = await accept(queue, task_of(route="other"))
    await survivor.heartbeat()
    await queue.heartbeat()
    for kills in (1, 2, 3):
        claimed = await queue.claim("r", 1, suspects=kills == 3)
        assert [one.task.attempts for one in claimed] == [kills]
        assert await survivor.take_over() == []  # it was heard of a moment ago
        await queue.leave()
        (taken,) = await survivor.take_over()
        assert (taken.kills, taken.failures, taken.reason) == (kills, 0, "instance-died")
        assert taken.state == ("failed" if kills == 3 else "queued")
        # One that has killed two is not claimed beside others.
        if kills == 2:
            assert await queue.claim("r", 1) == []
            assert await queue.suspect_routes() == ["r"]
        await queue.heartbeat()
    assert [one.task.id for one in await queue.claim("other", 1)] == [other.id]
    assert task.id


async def test_a_result_of_an_instance_that_was_taken_for_dead_counts_if_nobody_began_anew(store: Database) -> None:
    queue, survivor = TaskQueue(store, "slow"), TaskQueue(store, "alive")
    (task,) = await accept(queue, task_of())
    await queue.claim("r", 1)
    await survivor.take_over()
    ended = await queue.end_try(task.id, 1, DONE)
    assert ended is not None
    assert ended.state == "succeeded"
    assert await survivor.claim("r", 1) == []


async def test_a_cancelled_one_that_runs_is_free_only_when_its_try_has_ended(queue: TaskQueue) -> None:
    running, waiting = await accept(queue, task_of(), task_of("bob"))
    await queue.claim("r", 1)
    assert await queue.cancel(running.id)
    assert await queue.heartbeat() == {running.id: (1, True)}
    assert await queue.claim("r", 1) == []
    ended = await queue.end_try(running.id, 1, DONE)
    assert ended is not None
    assert (ended.state, ended.status) == ("cancelled", None)
    assert [one.task.id for one in await queue.claim("r", 1)] == [waiting.id]
    assert await queue.cancel("unknown") is None


async def test_a_request_is_deleted_at_its_end_but_for_one_that_may_be_tried_again(queue: TaskQueue) -> None:
    ids = [task.id for task in await accept(queue, task_of(), task_of(), task_of())]
    await queue.claim("r", 3)
    await queue.end_try(ids[0], 1, DONE)
    await queue.end_try(ids[1], 1, TryEnd("failed", "timeout"))
    await queue.cancel(ids[2])
    await queue.end_try(ids[2], 1, DONE)
    async with queue.database.transaction(write=False) as tx:
        rows = await tx.fetch("SELECT id, target, fields, body FROM outrigger_tasks")
    kept = {row[0]: [value is not None for value in row[1:]] for row in rows}
    assert kept == {ids[0]: [False] * 3, ids[1]: [True] * 3, ids[2]: [False] * 3}
    catalog = TaskCatalog(queue.database)
    again = await catalog.retry(ids[1])
    assert again is not None
    assert (again.shown_state, again.failures) == ("queued", 0)
    assert await catalog.retry(ids[0]) is None
    await queue.promote()
    (claimed,) = await queue.claim("r", 1)
    assert (claimed.task.id, claimed.task.attempts) == (ids[1], 2)


async def test_results_go_after_keep_and_rows_after_as_long_again(queue: TaskQueue) -> None:
    (task,) = await accept(queue, task_of())
    await finish_all(queue)
    catalog = TaskCatalog(queue.database)
    assert await catalog.prune(KEEP) == 0
    await asyncio.sleep(0.3)
    assert await catalog.prune(0.2) == 1
    assert await catalog.result(task.id) is None
    assert await catalog.find(task.id) is not None
    await asyncio.sleep(0.2)
    assert await catalog.prune(0.2) == 1
    assert await catalog.find(task.id) is None


async def test_counts_waits_and_lists_are_of_all_routes(queue: TaskQueue) -> None:
    await accept(queue, *(task_of() for _ in range(3)), task_of(route="other", delay=60.0))
    await queue.claim("r", 1)
    catalog = TaskCatalog(queue.database)
    assert await catalog.counts() == {("r", "queued"): 2, ("r", "running"): 1, ("other", "queued"): 1}
    assert set(await catalog.longest_waits()) == {"r"}
    assert len(await catalog.list(state="queued")) == 3
    assert [task.route for task in await catalog.list(route="other")] == ["other"]
    assert await catalog.list(state="failed") == []


async def test_a_cancelled_caller_leaves_no_transaction_behind(queue: TaskQueue) -> None:
    for at in range(40):
        work = asyncio.create_task(queue.add([task_of()], KEEP))
        await asyncio.sleep(0.0003 * at)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await accept(queue, task_of("last"))
    assert "last" in await finish_all(queue, concurrency=100)


async def test_a_queue_of_a_newer_version_is_left_alone(store: Database) -> None:
    queue = TaskQueue(store, "one")
    await accept(queue, task_of())
    async with store.transaction() as tx:
        await tx.execute("UPDATE outrigger_schema SET version = 99 WHERE part = 'tasks'")
    await store.close()
    with pytest.raises(TasksUnavailable, match="newer Outrigger"):
        await queue.claim("r", 1)
