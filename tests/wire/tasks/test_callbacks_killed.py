"""Callbacks and schedules of two gateways on one PostgreSQL that are killed, and of one on SQLite that is started again."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from free_ports import free_port
from gateway_process import GatewayProcess, eventually, gateway
from postgres_process import Server, postgres
from standardwebhooks.webhooks import Webhook
from task_client import TASK_APP, ask, submit, worked
from test_callback_delivery import receiver

KILLS, TASKS = 6, 60
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
TURN = 15  # seconds; more than a time may be late
# A claim of a callback holds for 12 s and not 30, and a schedule's turn comes every 15 s and not every minute.
PRELUDE = f"""
from proxy.policy.cron import CronExpression
from proxy.tasks import callback_delivery, callbacks

def due_times(self, after, timezone):
    while True:
        after += {TURN} - after % {TURN}
        yield after

CronExpression.due_times = due_times
callback_delivery.DELIVERY_TIMEOUT = callbacks.DELIVERY_TIMEOUT = 6.0
callbacks.LEASE_SECONDS = 12.0
"""


def policy_for(ledger: str) -> str:
    return f"""
routes:
  - {{name: default, background: {{mode: prefer, concurrency: 8, retry: {{attempts: 3, backoff: {{first: 100ms}}}}}}}}
ledger: {{url: '{ledger}'}}
tasks: {{callbacks: [127.0.0.1], secret: {SECRET}}}
schedules:
  - {{name: minutely, cron: "* * * * *", request: {{method: POST, path: "/work?ms=1&scheduled=1"}}}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with postgres(tmp_path / "postgres") as running:
        yield running


async def test_a_callback_that_was_on_its_way_is_sent_after_a_restart(tmp_path: Path) -> None:
    policy, port = policy_for(f"sqlite:///{tmp_path}/outrigger.db"), free_port()
    async with receiver() as there:
        there.hold = 60.0
        async with gateway(tmp_path, *TASK_APP, policy=policy, port=port, prelude=PRELUDE) as g:
            await g.ready()
            id = await submit(g, "/work?ms=1", f"Outrigger-Callback: http://127.0.0.1:{there.port}/")
            await eventually(lambda: there.heard, timeout=60)
            g.signal(signal.SIGKILL)
            await g.ended()
        there.hold = 0.0
        async with gateway(tmp_path, *TASK_APP, policy=policy, port=port, prelude=PRELUDE) as g:
            await g.ready()
            await eventually(lambda: len(there.heard) == 2, timeout=90)
            await eventually(lambda: g.events("callback"), timeout=60)
        (_, first, body), (_, second, again) = there.heard
        assert first["webhook-id"] == second["webhook-id"]
        assert json.loads(body)["data"]["id"] == json.loads(again)["data"]["id"] == id


@pytest.mark.timeout(400)
async def test_two_gateways_that_are_killed_tell_every_end_and_run_each_schedule_once(tmp_path, server) -> None:
    rng = random.Random(7)
    policy = policy_for(server.url)
    environ = {"WORKED": str(tmp_path / "worked")}
    living: dict[int, GatewayProcess] = {}
    accepted: list[str] = []
    stopping = asyncio.Event()
    kills = 0

    async def live(port: int) -> None:
        """One instance after the other on one address, each until it is killed."""
        nonlocal kills
        while not stopping.is_set():
            async with gateway(tmp_path, *TASK_APP, policy=policy, environ=environ, port=port, prelude=PRELUDE) as g:
                await g.ready()
                living[port] = g
                if kills < KILLS:
                    await asyncio.sleep(rng.uniform(1.0, 3.0))
                    kills += 1
                    del living[port]
                    g.signal(signal.SIGKILL)
                    await g.ended()
                else:
                    await stopping.wait()
                    del living[port]

    async with receiver() as there:
        there.hold = 0.2  # so that some are on their way when their gateway dies
        lives = [asyncio.create_task(live(free_port())) for _ in range(2)]
        try:
            while len(accepted) < TASKS:
                await asyncio.sleep(0.1)
                if not living:
                    continue
                try:
                    g = rng.choice(list(living.values()))
                    head = ("Prefer: respond-async", f"Outrigger-Callback: http://127.0.0.1:{there.port}/")
                    answer = await ask(g, "/work?ms=50", *head, method="POST")
                except (OSError, IndexError, TimeoutError, ValueError):
                    continue  # killed before the 202 was there
                if answer.status == 202:
                    accepted.append(answer.json["id"])
            await eventually(lambda: kills >= KILLS and len(living) == 2, timeout=120)

            def count_callbacks() -> Counter[str]:
                return Counter(json.loads(body)["data"]["id"] for _, _, body in there.heard)

            # One more may have been accepted than we know: it was killed before its 202 was here.
            await eventually(lambda: set(count_callbacks()) >= set(accepted), timeout=150)
            # A turn with both alive, at least: each is one task.
            until = time.time() // TURN * TURN + TURN + 2
            while time.time() < until:
                await asyncio.sleep(0.5)
        finally:
            stopping.set()
            for one in lives:
                one.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
        ids: dict[str, set[str]] = {}
        for _, fields, body in there.heard:
            Webhook(SECRET).verify(body, fields)
            ids.setdefault(json.loads(body)["data"]["id"], set()).add(fields["webhook-id"])
        assert all(len(found) == 1 for found in ids.values())
    turns = scheduled_turns(server)
    assert turns
    assert max(turns.values()) == 1, turns
    assert any("scheduled" in line["path"] for line in worked(tmp_path / "worked"))


def scheduled_turns(server: Server) -> Counter[int]:
    """By turn, how many tasks of the schedule were put into the queue."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        rows = connection.execute("select created from outrigger_tasks where user_id = 'schedule:minutely'").fetchall()
    return Counter(int(row[0] // TURN) for row in rows)
