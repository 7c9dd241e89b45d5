"""How tasks run: in turn, so many at once, tried again, within their time, through a drain and over a restart."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from itertools import pairwise

import pytest
from egress_gateway import Vendor, hangs, says
from gateway_process import APPS, ROOT, eventually, gateway
from task_client import ASYNC, TASK_APP, Answer, ask, find, result, submit, until, worked

USERS = "identity: {user: [{header: X-User}]}\n"


def background(**keys: object) -> str:
    """A policy whose every request may run later."""
    return USERS + "routes:\n  - {name: default, background: " + json.dumps({"mode": "prefer", **keys}) + "}\n"


RETRIES = {"retry": {"attempts": 3, "backoff": {"first": "100ms", "max": "150ms"}}}


async def test_what_may_be_tried_again_is_and_what_may_not_is_the_result(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=background(**RETRIES)) as g:
        await g.ready()
        cases = {
            "/status?code=503&good=3": ("succeeded", None, 3, 200),
            "/status?code=429&good=2": ("succeeded", None, 2, 200),
            "/status?code=503": ("failed", "status-503", 3, 503),
            "/status?code=429": ("succeeded", None, 3, 429),
            "/status?code=500&good=2": ("failed", "status-500", 1, 500),
            "/status?code=404&good=2": ("succeeded", None, 1, 404),
            "/cut?good=2": ("succeeded", None, 2, 200),
            "/cut": ("failed", "reset", 3, None),
        }
        ids = {target: await submit(g, target) for target in cases}
        for target, expected in cases.items():
            task = await until(g, ids[target])
            status = (task["response"] or {}).get("status")
            assert (task["status"], task["reason"], task["attempts"], status) == expected, target
        assert (await result(g, ids["/status?code=503"])).body == b"bad"
        assert (await result(g, ids["/cut"])).problem == "no-result"
        metrics = await g.request("/metrics", port=g.admin)
        assert b'outrigger_task_attempts_total{result="reset",route="default"} 4.0' in metrics
        assert b'outrigger_tasks_total{outcome="failed",route="default"} 3.0' in metrics


async def test_the_app_says_when_to_come_again_and_is_obeyed(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=background(**RETRIES), environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        id = await submit(g, "/status?code=429&good=2&wait=2")
        await until(g, id)
        first, second = worked(tmp_path / "w")
        assert second["at"] - first["at"] >= 2


async def test_backoff_doubles_up_to_its_bound(tmp_path) -> None:
    keys = {"retry": {"attempts": 4, "backoff": {"first": "400ms", "max": "800ms"}}}
    async with gateway(tmp_path, *TASK_APP, policy=background(**keys), environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        await until(g, await submit(g, "/status?code=503"))
        at = [line["at"] for line in worked(tmp_path / "w")]
        gaps = [after - before for before, after in pairwise(at)]
        assert len(gaps) == 3
        assert all(gap >= least for gap, least in zip(gaps, (0.4, 0.8, 0.8), strict=True))
        assert gaps[2] < 1.6 + gaps[0]


async def test_its_time_is_the_backgrounds_and_not_the_routes(tmp_path) -> None:
    policy = USERS + (
        "routes:\n  - {name: default, timeout: 300ms, total: 400ms, concurrency: 1, queue: {size: 0},"
        " background: {mode: prefer, concurrency: 2, timeout: 2s, retry: {attempts: 1}}}\n"
    )
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        ids = [await submit(g, "/work?ms=1000") for _ in range(2)]
        late = await submit(g, "/work?ms=30000")
        for id in ids:
            assert (await until(g, id))["status"] == "succeeded"
        task = await until(g, late)
        assert (task["status"], task["reason"]) == ("failed", "timeout")
        assert max(line["at_once"] for line in worked(tmp_path / "w")) == 2
        waited = await ask(g, "/work?ms=30000", "Prefer: respond-async, wait=30", method="POST")
        assert (waited.status, waited.problem) == (504, "timeout")


async def test_users_are_served_in_turn_and_never_more_than_the_route_allows(tmp_path) -> None:
    policy = background(concurrency=3)
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        blockers = [await submit(g, f"/hold?file={tmp_path / 'go'}", "X-User: first") for _ in range(3)]
        # One user is there first, with many; the others come with a few each.
        many = [await submit(g, "/work?ms=20", "X-User: many") for _ in range(60)]
        few = [await submit(g, "/work?ms=20", f"X-User: few{at}") for at in range(4) for _ in range(3)]
        (tmp_path / "go").touch()
        for id in (*blockers, *many, *few):
            assert (await until(g, id))["status"] == "succeeded"
        began = worked(tmp_path / "w")
        assert max(line["at_once"] for line in began) <= 3
        users = [line["user"] for line in began]
        # Five users in turn, three times: nobody who came later waits for the sixty. Three begin together, and may
        # write that down in any order.
        last = max(at for at, user in enumerate(users) if user.startswith("few"))
        assert last < 3 + 5 * 3 + 3, users


async def test_a_thousand_tasks_of_twenty_users_are_fair_and_never_too_many_at_once(tmp_path) -> None:
    policy = background(concurrency=4, max_queued=2000)
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        blockers = [await submit(g, f"/hold?file={tmp_path / 'go'}", "X-User: first") for _ in range(4)]
        gate = asyncio.Semaphore(20)

        async def put(user: int) -> str:
            async with gate:
                return await submit(g, "/pong", f"X-User: u{user:02}")

        # Twenty users of fifty each, one user after the other.
        ids = await asyncio.gather(*(put(at // 50) for at in range(1000)))
        (tmp_path / "go").touch()
        for id in blockers:
            await until(g, id)
        counts: Counter[str] = Counter()

        async def all_done() -> bool:
            counts.clear()
            counts.update(line["user"] for line in worked(tmp_path / "w", "done"))
            return sum(counts.values()) == 1004

        deadline = time.monotonic() + 120
        while not await all_done():
            assert time.monotonic() < deadline, counts
            await asyncio.sleep(0.1)
        began = [line for line in worked(tmp_path / "w") if line["user"] != "first"]
        assert max(line["at_once"] for line in began) <= 4
        assert len({line["task"] for line in began}) == len(began) == 1000
        # At any time no user is more than a round ahead of another who still waits.
        seen: Counter[str] = Counter()
        worst = 0
        for line in began[: 20 * 45]:
            seen[line["user"]] += 1
            worst = max(worst, max(seen.values()) - min(seen[f"u{at:02}"] for at in range(20)))
        assert worst <= 3, worst
        for id in ids[::100]:
            assert (await find(g, id))["status"] == "succeeded"


async def test_a_drain_lets_tasks_finish_and_queues_again_what_does_not(tmp_path) -> None:
    policy = background(concurrency=2, retry={"attempts": 1})
    file = tmp_path / "var.db"
    tasks = f"tasks: {{url: 'sqlite:///{file}'}}\n"
    out = {"WORKED": str(tmp_path / "w")}
    async with gateway(tmp_path, *TASK_APP, policy=_with_drain(policy + tasks), environ=out) as g:
        await g.ready()
        quick, slow = await submit(g, "/work?ms=800"), await submit(g, "/work?ms=8000")
        for id in (quick, slow):
            await until(g, id, "running")
        waiting = asyncio.create_task(ask(g, f"/_outrigger/tasks/{slow}", "Prefer: wait=50"))
        await asyncio.sleep(0.2)
        g.signal(signal.SIGTERM)
        # Who waits is told at once, before the drain is over.
        answer = await waiting
        assert (answer.status, answer.json["status"]) == (202, "running")
        assert await g.ended() == 0
    async with gateway(tmp_path, *TASK_APP, policy=_with_drain(policy + tasks), environ=out) as g:
        await g.ready()
        assert (await find(g, quick))["status"] == "succeeded"
        task = await until(g, slow)
        # The try that the drain cut off is counted, and not against the one that it may have.
        assert (task["status"], task["attempts"]) == ("succeeded", 2)


def _with_drain(policy: str) -> str:
    """Behind the listeners' addresses, which the helper writes."""
    return "  drain: 2s\n" + policy


async def test_a_gateway_that_is_killed_leaves_its_tasks_to_the_next_within_half_a_minute(tmp_path) -> None:
    policy = background(concurrency=2) + f"tasks: {{url: 'sqlite:///{tmp_path / 'var.db'}'}}\n"
    out = {"WORKED": str(tmp_path / "w")}
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ=out) as g:
        await g.ready()
        running = [await submit(g, "/work?ms=3000") for _ in range(2)]
        waiting = await submit(g, "/pong")
        for id in running:
            await until(g, id, "running")
        g.signal(signal.SIGKILL)
        await g.ended()
    for name in ("var.db", "var.db-wal", "var.db-shm"):
        if (tmp_path / name).exists():
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ=out) as g:
        await g.ready()
        began = time.monotonic()
        for id in running:
            task = await until(g, id)
            assert (task["status"], task["attempts"]) == ("succeeded", 2)
        assert (await until(g, waiting))["status"] == "succeeded"
        assert time.monotonic() - began < 30 + 6
        events = await eventually(lambda: [e for e in g.events("task") if e.get("reason") == "instance-died"])
        assert {event["outcome"] for event in events} == {"queued"}


async def test_a_task_whose_user_was_blocked_meanwhile_does_not_run(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=background(concurrency=1)) as g:
        await g.ready()
        first = await submit(g, "/work?ms=2500", "X-User: other")
        await until(g, first, "running")
        id = await submit(g, "/pong", "X-User: bad")
        await g.request("/ctl/block/bad", method="POST", port=g.admin)
        task = await until(g, id)
        assert (task["status"], task["reason"]) == ("failed", "blocked")


async def test_results_are_kept_for_so_long_and_gone_for_as_long_again(tmp_path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy=background() + "tasks: {keep: 2s}\n") as g:
        await g.ready()
        head = ("Idempotency-Key: again", "X-User: u")
        id = await submit(g, "/pong", *head)
        await until(g, id)

        async def asked(status: int, name: str) -> Answer:
            deadline = time.monotonic() + 30
            while True:
                answer = await ask(g, f"/_outrigger/tasks/{id}/result")
                if answer.status == status:
                    assert answer.problem == name
                    return answer
                assert time.monotonic() < deadline, answer
                await asyncio.sleep(0.05)

        await asked(410, "task-gone")
        # Its key is free again.
        assert await submit(g, "/pong", *head) != id
        await asked(404, "task-unknown")


async def test_a_reload_switches_it_on_and_off_and_changes_its_bounds(tmp_path) -> None:
    out = {"WORKED": str(tmp_path / "w")}
    off = USERS + "routes:\n  - {name: default}\n"
    async with gateway(tmp_path, *TASK_APP, policy=off, environ=out) as g:
        await g.ready()
        assert (await ask(g, "/pong", ASYNC)).status == 200
        assert b'"tasks": {\n    "state": "off"' in await g.request("/healthz", port=g.admin)
        file = next(tmp_path.glob("policy-*.yaml"))
        head = file.read_text().removesuffix(off)

        async def reload(policy: str) -> None:
            before = len(g.events("policy.reload"))
            file.write_text(head + policy)
            await eventually(lambda: len(g.events("policy.reload")) > before)

        await reload(background(concurrency=1))
        ids = [await submit(g, "/work?ms=400") for _ in range(6)]
        await reload(background(concurrency=4))
        for id in ids:
            await until(g, id)
        assert max(line["at_once"] for line in worked(tmp_path / "w")) in (2, 3, 4)
        late = await submit(g, "/work?ms=1500")
        await reload(off)
        assert (await ask(g, "/pong", ASYNC)).status == 200
        assert (await until(g, late))["status"] == "succeeded"


async def test_no_task_is_sent_to_an_app_that_is_away(tmp_path) -> None:
    policy = background(retry={"attempts": 1}) + "app: {hold: 1s}\n"
    async with gateway(tmp_path, *TASK_APP, policy=policy) as g:
        await g.ready()
        os.kill(g.app_pid(), signal.SIGKILL)
        await eventually(lambda: g.events("app.exit"))  # until then it is there, as far as anybody knows
        id = await submit(g, "/pong")
        task = await until(g, id)
        assert (task["status"], task["attempts"]) == ("succeeded", 1)


async def test_under_overload_a_task_makes_room_for_every_request(tmp_path) -> None:
    policy = background(concurrency=4) + "overload: {mode: fixed, fixed: {limit: 1, queue: 1, wait: 20s}}\n"
    async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"WORKED": str(tmp_path / "w")}) as g:
        await g.ready()
        first = asyncio.create_task(ask(g, "/work?ms=1500"))
        await eventually(lambda: worked(tmp_path / "w"))
        ids = [await submit(g, "/pong") for _ in range(2)]
        await asyncio.sleep(0.3)
        # The one place in the queue is a task's, and it is the request's as soon as one comes.
        second = await ask(g, "/work?ms=10")
        assert second.status == 201
        assert (await first).status == 201
        for id in ids:
            assert (await until(g, id))["status"] == "succeeded"
        order = [line["task"] for line in worked(tmp_path / "w")]
        assert order[:2] == [None, None]


@pytest.mark.parametrize("mode", ["prefer", "always"])
async def test_an_answer_says_what_the_app_said_whoever_asks(tmp_path, mode) -> None:
    policy = USERS + f"routes:\n  - {{name: default, background: {{mode: {mode}}}}}\n"
    async with gateway(tmp_path, *TASK_APP, policy=policy) as g:
        await g.ready()
        waited = await ask(g, "/work?ms=5", "Prefer: respond-async, wait=30", method="PUT", body=b"1")
        assert (waited.status, waited.json["method"], waited.json["body"]) == (201, "PUT", "1")


CALLS = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}).encode()


async def test_its_calls_belong_to_who_asked_and_what_they_cost_stands_in_its_line(tmp_path) -> None:
    vendor = Vendor(says())
    await vendor.start()
    policy = background() + _upstream(vendor)
    try:
        async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"OPENAI_API_KEY": "sk-test"}) as g:
            await g.ready()
            id = await submit(g, "/call", "X-User: ada", body=CALLS)
            assert (await until(g, id))["status"] == "succeeded"
            (call,) = await eventually(lambda: g.events("call"))
            assert (call["user"], call.get("route", "default")) == ("ada", "default")
            (line,) = await eventually(lambda: [e for e in g.events("task") if e.get("user") == "ada"])
            assert (line["calls"], line["cost_usd"]) == (1, 0.000017)
            assert line["request_id"] == call["request_id"]
    finally:
        await vendor.stop()


@pytest.mark.parametrize(("when", "gone"), [("cancel", True), ("close", False)])
async def test_a_cancelled_one_ends_its_calls_too_if_its_route_says_so(tmp_path, when, gone) -> None:
    vendor = Vendor(hangs(4.0), says())
    await vendor.start()
    policy = background().replace("background:", f"when_abandoned: {when}, background:") + _upstream(vendor)
    try:
        async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"OPENAI_API_KEY": "sk-test"}) as g:
            await g.ready()
            id = await submit(g, "/call", body=CALLS)
            await eventually(lambda: vendor.requests)
            assert (await ask(g, f"/_outrigger/tasks/{id}", method="DELETE")).status == 204
            (call,) = await eventually(lambda: g.events("call"), timeout=30)
            assert (call["duration_ms"] < 3900) == gone, call
    finally:
        await vendor.stop()


def _upstream(vendor: Vendor) -> str:
    prices = "{gpt-4o-mini: {input: 1, output: 2}}"
    return (
        "app: {attribution: 'off'}\n"
        f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1', prices: {prices}}}}}\n"
    )


async def test_a_cap_holds_when_its_calls_are_made_and_not_before(tmp_path) -> None:
    vendor = Vendor(says())
    await vendor.start()
    cap = "cap: {per_user: $0.0001/d}, prices:"
    policy = background(retry={"attempts": 1}) + _upstream(vendor).replace("prices:", cap)
    body = json.dumps({**json.loads(CALLS), "max_tokens": 5}).encode()
    try:
        async with gateway(tmp_path, *TASK_APP, policy=policy, environ={"OPENAI_API_KEY": "sk-test"}) as g:
            await g.ready()
            statuses = []
            while len(statuses) < 12 and 429 not in statuses:
                id = await submit(g, "/call", "X-User: ada", body=body)
                statuses.append((await until(g, id))["response"]["status"])
            # Each was accepted; the call of the last one would have passed the cap.
            assert statuses[0] == 200
            assert statuses[-1] == 429
    finally:
        await vendor.stop()


async def test_a_page_that_the_app_lets_in_may_send_what_a_task_is_asked_with(tmp_path) -> None:
    policy = background()
    async with gateway(tmp_path, *TASK_APP, policy=policy) as g:
        await g.ready()
        head = ("Origin: https://page.example.com", "Access-Control-Request-Method: POST")
        asked = "Access-Control-Request-Headers: content-type, prefer, idempotency-key"
        allowed = await ask(g, "/cors", *head, asked, method="OPTIONS")
        names = ", ".join(allowed.all("Access-Control-Allow-Headers")).lower()
        assert {"content-type", "prefer", "idempotency-key"} == {name.strip() for name in names.split(",")}
        # One that the app does not let in gets nothing of ours either.
        assert not (await ask(g, "/pong", *head, asked, method="OPTIONS")).all("Access-Control-Allow-Headers")


PY, APPS_FOLDER = shlex.quote(sys.executable), shlex.quote(str(APPS))
FRAMEWORKS = {
    "FastAPI": f"{PY} -m uvicorn fastapi_app:app --app-dir {APPS_FOLDER} --port $PORT",
    "Flask": f"{PY} -m gunicorn flask_app:app --chdir {APPS_FOLDER} --workers 2",
    "Django": f"{PY} -m gunicorn django_app:application --chdir {APPS_FOLDER}",
    "Node": f"exec node {APPS_FOLDER}/node_app.js",
    "Express": f"exec node {APPS_FOLDER}/express_app.js",
}
NODE_MODULES = ROOT / ".venv-callers-node" / "node_modules"


@pytest.mark.parametrize("name", FRAMEWORKS)
async def test_an_unmodified_app_of_any_framework_works_later_too(tmp_path, name) -> None:
    if name == "Node" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    if name == "Express" and not (NODE_MODULES / "express").exists():
        pytest.skip("express could not be set up (tests/callers)")
    environ = {"NODE_PATH": str(NODE_MODULES)}
    async with gateway(tmp_path, "sh", "-c", FRAMEWORKS[name], policy=background(), environ=environ) as g:
        await g.ready(60)
        body = json.dumps({"a": [1, "ü"]}).encode()
        id = await submit(g, "/json", "Content-Type: application/json", body=body)
        assert (await until(g, id))["status"] == "succeeded"
        kept = await result(g, id)
        assert (kept.status, kept.json["got"]) == (200, {"a": [1, "ü"]})
        assert (await ask(g, "/", "Prefer: respond-async, wait=30")).body.decode() == f"hello from {name}"
