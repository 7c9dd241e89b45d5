"""Tasks that nobody awaits: kept alive, reported if they fail, ended by their owner."""

import asyncio
import gc

from proxy.util.background_tasks import BackgroundTasks


async def test_a_task_is_kept_until_it_has_ended_though_nobody_else_refers_to_it():
    tasks, gate, done = BackgroundTasks(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    tasks.start(work())
    gc.collect()
    assert repr(tasks) == "<BackgroundTasks 1 running>"
    gate.set()
    await asyncio.wait_for(done.wait(), 1)
    await tasks.wait()
    assert len(tasks) == 0


async def test_a_failure_is_reported_at_once_and_by_its_exception():
    loop, reported = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    tasks, error = BackgroundTasks(), RuntimeError("broken")

    async def fail() -> None:
        raise error

    task = tasks.start(fail())
    await tasks.wait()
    assert [context["exception"] for context in reported] == [error]
    del task
    gc.collect()
    assert len(reported) == 1, "not once more as an exception that was never retrieved"


async def test_close_cancels_all_and_waits_for_what_they_clean_up():
    loop, reported, cleaned = asyncio.get_running_loop(), [], []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    tasks = BackgroundTasks(loop)

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    for name in ("a", "b"):
        tasks.start(work(name))
    await asyncio.sleep(0)
    await tasks.close()
    assert sorted(cleaned) == ["a", "b"]
    assert not reported, "being cancelled is no failure"
    await tasks.close()  # with nothing left
