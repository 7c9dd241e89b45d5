"""What goes wrong around a task: its database is away, its disk is full, its gateway is killed at every step."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from free_ports import free_port
from gateway_process import GatewayProcess, eventually, gateway
from postgres_process import Relay, Server, postgres
from task_client import ASYNC, TASK_APP, ask, find, result, submit, until, worked

ROUTE = {"mode": "prefer", "retry": {"attempts": 1, "backoff": {"first": "100ms"}}}


def policy_for(url: str, **keys: object) -> str:
    return (
        "identity: {user: [{header: X-User}]}\nroutes:\n  - {name: default, background: "
        + json.dumps({**ROUTE, **keys})
        + f"}}\ntasks: {{url: '{url}'}}\n"
    )


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    with postgres(tmp_path / "postgres") as running:
        yield running


async def health(g: GatewayProcess) -> str:
    raw = await g.request("/healthz", port=g.admin)
    return str(json.loads(raw.partition(b"\r\n\r\n")[2])["tasks"]["state"])


async def until_health(g: GatewayProcess, state: str) -> None:
    deadline = time.monotonic() + 60
    while await health(g) != state:
        assert time.monotonic() < deadline, await health(g)
        await asyncio.sleep(0.1)


async def test_while_its_database_is_away_nothing_is_accepted_and_a_result_is_written_afterwards(
    tmp_path, server
) -> None:
    environ = {"WORKED": str(tmp_path / "w")}
    async with gateway(tmp_path, *TASK_APP, policy=policy_for(server.url), environ=environ) as g:
        await g.ready()
        id = await submit(g, f"/hold?file={tmp_path / 'go'}")
        await eventually(lambda: worked(tmp_path / "w"))
        await asyncio.to_thread(server.crash)
        answer = await ask(g, "/pong", ASYNC, method="POST")
        assert (answer.status, answer.problem) == (503, "tasks-unavailable")
        assert int(answer["Retry-After"] or 0) >= 1
        assert (await ask(g, f"/_outrigger/tasks/{id}")).problem == "tasks-unavailable"
        await until_health(g, "degraded")
        # A route without the queue goes on as before, and the app answers the task meanwhile.
        assert (await ask(g, "/pong")).status == 200
        (tmp_path / "go").touch()
        await eventually(lambda: worked(tmp_path / "w", "done"))
        await asyncio.to_thread(server.start)
        await until_health(g, "ok")
        task = await until(g, id)
        assert (task["status"], task["attempts"]) == ("succeeded", 1)
        assert (await result(g, id)).body == b"held"
        assert "demo@" not in answer.body.decode()


async def test_an_instance_starts_while_the_database_is_away(tmp_path, server) -> None:
    await asyncio.to_thread(server.crash)
    async with gateway(tmp_path, *TASK_APP, policy=policy_for(server.url)) as g:
        await g.ready()
        assert (await ask(g, "/pong")).status == 200
        assert (await ask(g, "/pong", ASYNC)).problem == "tasks-unavailable"
        await asyncio.to_thread(server.start)
        await until_health(g, "ok")
        assert (await until(g, await submit(g, "/pong")))["status"] == "succeeded"


async def test_a_commit_whose_answer_was_lost_is_no_202(tmp_path, server) -> None:
    relay = Relay(int(server.url.rpartition(":")[2].partition("/")[0]))
    port = await relay.start()
    url = f"postgresql://demo@127.0.0.1:{port}/postgres"
    try:
        async with gateway(tmp_path, *TASK_APP, policy=policy_for(url)) as g:
            await g.ready()
            await until(g, await submit(g, "/pong"))
            statuses = set()
            for at in range(6):
                relay.swallow = 1
                answer = await ask(g, "/pong", ASYNC, f"Idempotency-Key: {at}", "X-User: u", method="POST")
                statuses.add(answer.status)
                assert answer.status == 202 or answer.problem == "tasks-unavailable"
                await until_health(g, "ok")
                # With its key, asking again is the same task, whatever became of the first.
                again = await _accepted(g, f"Idempotency-Key: {at}", "X-User: u")
                assert (await until(g, again))["status"] == "succeeded"
            assert relay.swallowed
    finally:
        await relay.stop()


async def _accepted(g: GatewayProcess, *headers: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        answer = await ask(g, "/pong", ASYNC, *headers, method="POST")
        if answer.status in (200, 202):
            return str(answer.json["id"])
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.1)


async def test_a_disk_that_is_full_is_no_202_and_when_there_is_room_again_it_goes_on(tmp_path) -> None:
    file = tmp_path / "tasks.db"
    async with gateway(tmp_path, *TASK_APP, policy=policy_for(f"sqlite:///{file}")) as g:
        await g.ready()
        await until(g, await submit(g, "/pong", body=b"x" * 1000))
        _, most = resource.prlimit(g.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(g.pid, resource.RLIMIT_FSIZE, (1, most))
        answers = [await ask(g, "/pong", ASYNC, method="POST", body=b"x" * 100_000) for _ in range(3)]
        assert {(answer.status, answer.problem) for answer in answers} == {(503, "tasks-unavailable")}
        # That it can still be read does not make it well.
        for _ in range(30):
            assert await health(g) == "degraded"
            await asyncio.sleep(0.1)
        resource.prlimit(g.pid, resource.RLIMIT_FSIZE, (most, most))
        await until_health(g, "ok")
        assert (await until(g, await submit(g, "/pong")))["status"] == "succeeded"


async def test_a_file_that_somebody_removes_is_made_anew(tmp_path) -> None:
    folder = tmp_path / "data"
    async with gateway(tmp_path, *TASK_APP, policy=policy_for(f"sqlite:///{folder / 'tasks.db'}")) as g:
        await g.ready()
        await until(g, await submit(g, "/pong"))
        shutil.rmtree(folder)
        assert (await until(g, await _accepted(g)))["status"] == "succeeded"


async def test_killed_at_every_step_nothing_that_was_accepted_is_lost(tmp_path) -> None:
    """Accepted, claimed and sent, answered, written: after each the gateway is killed, and the next one finishes."""
    file = tmp_path / "tasks.db"
    policy, environ = policy_for(f"sqlite:///{file}"), {"WORKED": str(tmp_path / "w")}
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ=environ) as g:
        await g.ready()
        written = await submit(g, "/pong")
        await until(g, written)
        sent = await submit(g, f"/hold?file={tmp_path / 'never'}")
        await eventually(lambda: [line for line in worked(tmp_path / "w") if line["task"] == sent])
        # Answered, but the answer cannot be written: somebody else holds the file.
        answered = await submit(g, f"/hold?file={tmp_path / 'go'}")
        await eventually(lambda: [line for line in worked(tmp_path / "w") if line["task"] == answered])
        accepted = await submit(g, "/pong")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            (tmp_path / "go").touch()
            await eventually(lambda: [line for line in worked(tmp_path / "w", "done") if line["task"] == answered])
            g.signal(signal.SIGKILL)
            await g.ended()
    (tmp_path / "never").touch()
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ=environ) as g:
        await g.ready()
        attempts = {}
        for id in (written, sent, answered, accepted):
            task = await until(g, id)
            assert task["status"] == "succeeded", task
            attempts[id] = task["attempts"]
        assert [attempts[id] for id in (written, sent, answered, accepted)] == [1, 2, 2, 1]
        # At least once: what had been answered and not written was done again.
        done = [line["task"] for line in worked(tmp_path / "w", "done")]
        assert done.count(answered) == 2
        assert done.count(written) == 1


async def test_a_poison_task_stops_at_three_and_its_third_try_is_alone(tmp_path) -> None:
    policy = policy_for(f"sqlite:///{tmp_path / 'tasks.db'}", concurrency=3, timeout="20s")
    environ = {"WORKED": str(tmp_path / "w")}
    port, poison, others = free_port(), "", list[str]()
    for turn in range(4):
        async with gateway(tmp_path, *TASK_APP, policy=policy, environ=environ, port=port) as g:
            await g.ready()
            if not poison:
                poison = await submit(g, "/poison")
            else:
                others += [await submit(g, "/work?ms=20", f"X-User: o{turn}") for _ in range(3)]
            if turn == 3:
                task = await until(g, poison)
                assert (task["status"], task["reason"], task["attempts"]) == ("failed", "instance-died", 3)
                for id in others:
                    assert (await until(g, id))["status"] == "succeeded"
                break
            await g.ended(60)
    tries = [line for line in worked(tmp_path / "w") if line["task"] == poison]
    assert [line["attempt"] for line in tries] == [1, 2, 3]
    assert tries[2]["at_once"] == 1


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="pgbouncer is not installed")
async def test_it_works_through_a_transaction_pooler(tmp_path, server) -> None:
    port, database = free_port(), int(server.url.rpartition(":")[2].partition("/")[0])
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npostgres = host=127.0.0.1 port={database} user=demo\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 3\nignore_startup_parameters = extra_float_digits\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    os.chmod(tmp_path, 0o755)
    bouncer = await asyncio.create_subprocess_exec("pgbouncer", *user, str(config), stderr=asyncio.subprocess.DEVNULL)
    try:
        url = f"postgresql://demo@127.0.0.1:{port}/postgres"
        async with gateway(tmp_path, *TASK_APP, policy=policy_for(url, concurrency=4)) as g:
            await g.ready()
            await until_health(g, "ok")
            ids = await asyncio.gather(*(submit(g, "/work?ms=10") for _ in range(40)))
            for id in ids:
                assert (await until(g, id))["status"] == "succeeded"
            running = await submit(g, "/work?ms=20000")
            await until(g, running, "running")
            assert (await ask(g, f"/_outrigger/tasks/{running}", method="DELETE")).status == 204
            assert (await find(g, running))["status"] == "cancelled"
    finally:
        bouncer.terminate()
        await bouncer.wait()
