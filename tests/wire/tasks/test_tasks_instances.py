"""Two gateways on one PostgreSQL: one queue, whoever accepts, runs, asks, cancels, or is killed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from egress_gateway import Vendor, says
from free_ports import free_port
from gateway_process import GatewayProcess, eventually, gateway
from postgres_process import Server, postgres
from task_client import TASK_APP, ask, find, parse_answer, result, submit, until, worked

KILLS, TASKS = 20, 200
ASK = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).encode()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    with postgres(tmp_path / "postgres") as running:
        yield running


def policy_for(server: Server, more: str = "", **keys: object) -> str:
    background = json.dumps({"mode": "prefer", "retry": {"attempts": 3, "backoff": {"first": "100ms"}}, **keys})
    return (
        f"identity: {{user: [{{header: X-User}}]}}\nroutes:\n  - {{name: default, background: {background}}}\n"
        f"ledger: {{url: '{server.url}'}}\n{more}"
    )


async def pair(stack: AsyncExitStack, tmp_path, policy: str) -> list[GatewayProcess]:
    environ = {"WORKED": str(tmp_path / "w")}
    found = [
        await stack.enter_async_context(gateway(tmp_path, *TASK_APP, policy=policy, environ=environ)) for _ in range(2)
    ]
    for g in found:
        await g.ready()
    return found


async def test_any_instance_answers_for_a_task_and_cancels_it_wherever_it_runs(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        one, other = await pair(stack, tmp_path, policy_for(server, concurrency=2))
        id = await submit(one, "/work?ms=30000")
        await until(other, id, "running")
        began = time.monotonic()
        waiting = asyncio.create_task(ask(other, f"/_outrigger/tasks/{id}", "Prefer: wait=50"))
        await asyncio.sleep(0.3)
        assert (await ask(other, f"/_outrigger/tasks/{id}", method="DELETE")).status == 204
        assert (await waiting).json["status"] == "cancelled"
        assert time.monotonic() - began < 25  # and not after the thirty of the app
        # Its place is free: the gateway that ran it has closed its connection.
        ids = [await submit(one, "/work?ms=10") for _ in range(4)]
        for at in ids:
            assert (await until(other, at))["status"] == "succeeded"
            assert (await result(other, at)).status == 201


async def test_a_result_is_known_everywhere_when_it_is_there(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        one, other = await pair(stack, tmp_path, policy_for(server))
        id = await submit(one, "/work?ms=1500")
        answer = await ask(other, f"/_outrigger/tasks/{id}/result", "Prefer: wait=50")
        assert (answer.status, answer["X-Made"]) == (201, "here")


async def test_concurrency_holds_over_both_and_gauges_are_the_same_on_each(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        one, other = await pair(stack, tmp_path, policy_for(server, concurrency=3))
        ids = [await submit((one, other)[at % 2], "/work?ms=100", f"X-User: u{at % 5}") for at in range(60)]
        for id in ids:
            await until(one, id)
        spans = []
        for line in worked(tmp_path / "w"):
            done = next(d for d in worked(tmp_path / "w", "done") if d["task"] == line["task"])
            spans += [(line["at"], 1), (done["at"], -1)]
        running = most = 0
        for _, change in sorted(spans):
            running += change
            most = max(most, running)
        assert most <= 3

        async def gauges(g: GatewayProcess) -> list[bytes]:
            lines = (await g.request("/metrics", port=g.admin)).splitlines()
            return sorted(line for line in lines if line.startswith(b"outrigger_tasks{") and not line.endswith(b" 0.0"))

        deadline = time.monotonic() + 30
        while not (
            await gauges(one) == await gauges(other) == [b'outrigger_tasks{route="default",state="succeeded"} 60.0']
        ):
            assert time.monotonic() < deadline, (await gauges(one), await gauges(other))
            await asyncio.sleep(0.2)


async def test_two_gateways_that_are_killed_again_and_again_lose_no_task(tmp_path, server) -> None:
    """TASKS tasks, each with a call to a vendor, and KILLS kills: each 202 ends in a result or in a failure with a
    reason, and what the vendor billed is in the ledger."""
    rng = random.Random(5)
    vendor = Vendor(says())
    await vendor.start()
    policy = policy_for(
        server,
        f"app: {{attribution: 'off'}}\nupstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1',"
        " prices: {gpt-4o-mini: {input: 1, output: 2}}}}\n",
        concurrency=8,
    )
    environ = {"WORKED": str(tmp_path / "w"), "OPENAI_API_KEY": "sk-test"}
    ports = [free_port() for _ in range(2)]
    living: dict[int, GatewayProcess] = {}
    accepted: list[str] = []
    stopping = asyncio.Event()
    kills = 0

    async def live(port: int) -> None:
        """One instance after the other on one address, each until it is killed."""
        nonlocal kills
        while not stopping.is_set():
            async with gateway(tmp_path, *TASK_APP, policy=policy, environ=environ, port=port) as g:
                await g.ready()
                living[port] = g
                if kills < KILLS:
                    await asyncio.sleep(rng.uniform(0.3, 1.5))
                    kills += 1
                    del living[port]
                    g.signal(signal.SIGKILL)
                    await g.ended()
                else:
                    await stopping.wait()
                    del living[port]

    async def put() -> None:
        while len(accepted) < TASKS:
            # Not all at once, so that there is work at every kill.
            await asyncio.sleep(0.02 if kills >= KILLS else 0.15)
            if not living:
                continue
            try:
                g = rng.choice(list(living.values()))
                head = ("Prefer: respond-async", f"X-User: u{len(accepted) % 7}")
                answer = await ask(g, "/call", *head, method="POST", body=ASK)
            except (OSError, IndexError, TimeoutError, ValueError):
                continue  # killed before the 202 was there
            if answer.status == 202:
                accepted.append(answer.json["id"])

    lives = [asyncio.create_task(live(port)) for port in ports]
    try:
        await put()
        deadline = time.monotonic() + 100
        left = dict.fromkeys(accepted)
        outcomes = {}
        while left:
            assert time.monotonic() < deadline, f"{len(left)} of {len(accepted)} never ended"
            await eventually(lambda: kills >= KILLS and living, timeout=60)
            g = rng.choice(list(living.values()))
            for id in list(left)[:20]:
                task = await find(g, id)
                if task["status"] in ("succeeded", "failed"):
                    outcomes[id] = task
                    del left[id]
            await asyncio.sleep(0.1)
        assert kills >= KILLS
        assert len(outcomes) == len(accepted) >= TASKS
        for task in outcomes.values():
            assert task["status"] == "succeeded" or task["reason"] in ("instance-died", "reset", "connect"), task
        succeeded = [id for id, task in outcomes.items() if task["status"] == "succeeded"]
        assert len(succeeded) >= TASKS * 0.9
        kept = await result(g, succeeded[-1])
        assert kept.json["choices"]
        await _reckon(server, vendor)
    finally:
        stopping.set()
        await asyncio.gather(*lives)
        await vendor.stop()


async def _reckon(server: Server, vendor: Vendor) -> None:
    """What the vendor was asked for is on record: a row each, but for what was younger than half a second at a kill."""
    import asyncpg

    connection = await asyncpg.connect(server.url)
    try:
        rows = await connection.fetch("SELECT outcome, cost, user_id FROM outrigger_calls")
    finally:
        await connection.close()
    asked = len(vendor.requests)
    assert asked >= TASKS
    assert asked - 8 * KILLS <= len(rows) <= asked + 8 * KILLS
    settled = [row for row in rows if row["outcome"] == "ok"]
    assert {row["cost"] for row in settled} == {17_000}
    assert {row["user_id"] for row in rows} <= {f"u{at}" for at in range(7)}
    assert len(settled) >= asked - 8 * KILLS


async def test_what_a_drain_cuts_off_is_run_by_the_other_instance_at_once(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        policy = "  drain: 1s\n" + policy_for(server, concurrency=2, retry={"attempts": 1})
        one, other = await pair(stack, tmp_path, policy)
        ids = [await submit(one, f"/hold?file={tmp_path / 'go'}") for _ in range(2)]
        for id in ids:
            await until(one, id, "running")
        accepting = asyncio.create_task(ask(one, "/pong", "Prefer: respond-async, wait=50", method="POST"))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        one.signal(signal.SIGTERM)
        # Who waits for the answer to a request of theirs gets 202 when the drain begins.
        assert (await accepting).status == 202
        assert await one.ended() == 0
        (tmp_path / "go").touch()
        for id in ids:
            task = await until(other, id)
            assert task["status"] == "succeeded"
        assert time.monotonic() - began < 15
        tries = [line["task"] for line in worked(tmp_path / "w") if line["task"] in ids]
        assert len(tries) >= 2


async def test_an_instance_that_stood_still_gives_up_what_another_has_taken_over(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        both = await pair(stack, tmp_path, policy_for(server, concurrency=1))
        id = await submit(both[0], f"/hold?file={tmp_path / 'go'}")
        (first,) = await eventually(lambda: worked(tmp_path / "w"))
        still = next(g for g in both if g.app_pid() == first["pid"])
        other = next(g for g in both if g is not still)
        still.signal(signal.SIGSTOP)
        # The bound of the contract is half a minute.
        await eventually(lambda: len(worked(tmp_path / "w")) == 2, timeout=30)
        still.signal(signal.SIGCONT)
        await asyncio.sleep(3)
        (tmp_path / "go").touch()
        task = await until(other, id)
        assert (task["status"], task["attempts"]) == ("succeeded", 2)
        assert (await find(still, id)) == task
        # It goes on as before.
        later = await submit(still, "/pong")
        assert (await until(still, later))["status"] == "succeeded"


async def test_names_of_users_that_no_database_takes_are_kept_in_letters_that_it_takes(tmp_path, server) -> None:
    async with AsyncExitStack() as stack:
        one, _ = await pair(stack, tmp_path, policy_for(server))
        for name in (b"caf\xc3\xa9", b"\xff\xfe", "名".encode(), b"a'b\"c\\"):
            head = (
                b"POST /pong HTTP/1.1\r\nHost: a\r\nConnection: close\r\nPrefer: respond-async\r\nX-User: %s\r\n\r\n"
                % name
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
            writer.write(head)
            async with asyncio.timeout(30):
                answer = parse_answer(await reader.read(-1))
            writer.close()
            assert answer.status == 202, (name, answer)
            assert (await until(one, answer.json["id"]))["status"] == "succeeded"
