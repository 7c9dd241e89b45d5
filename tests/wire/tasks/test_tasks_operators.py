"""What an operator sees of tasks and does to them: `ctl task`, `ctl tasks`, `/status`; callbacks and schedules of a whole gateway."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_process import GatewayProcess, eventually, gateway
from postgres_process import postgres
from standardwebhooks.webhooks import Webhook
from task_client import ASYNC, TASK_APP, ask, submit, until, worked
from test_callback_delivery import receiver

from proxy.cli.ctl import run_ctl
from proxy.errors import UsageError

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
POLICY = f"""
identity: {{user: [{{header: X-User}}, ip]}}
routes:
  - {{name: status, match: {{path: /status}}, background: {{mode: prefer, retry: {{attempts: 1}}}}}}
  - {{name: hold, match: {{path: /hold}}, background: {{mode: prefer, concurrency: 1}}}}
  - {{name: work, match: {{path: /work}}, background: {{mode: prefer}}}}
tasks: {{callbacks: [127.0.0.1, localhost], secret: {SECRET}}}
schedules:
  - {{name: yearly, cron: "0 0 1 1 *", timezone: Europe/Berlin, request: {{method: POST, path: "/work?key=secret"}}}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def g(tmp_path_factory) -> AsyncIterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("operators")
    async with gateway(folder, *TASK_APP, policy=POLICY, environ={"WORKED": str(folder / "worked")}) as running:
        await running.ready()
        yield running


async def ctl(g: GatewayProcess, *words: str) -> tuple[int, str]:
    """The exit status, and what is printed."""
    out, err = io.StringIO(), io.StringIO()
    policy = str(next(g.out.parent.glob(f"policy-{g.port}.yaml")))
    found = await asyncio.to_thread(run_ctl, [*words, "--policy", policy], {}, out, err)
    return found, out.getvalue() + err.getvalue()


async def status(g: GatewayProcess, query: str = "") -> dict:
    head, _, body = (await g.request(f"/status{query}", port=g.admin)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), (head, body, g.output()[-2000:])
    return json.loads(body)


async def test_ctl_task_shows_one_by_its_id_or_what_a_log_line_shows_of_it(g) -> None:
    id = await submit(g, "/work?ms=1", "X-User: ann")
    await until(g, id)
    for named in (id, id[:8], f"{id[:8]}…"):
        code, said = await ctl(g, "task", named)
        assert code == 0, said
        for word in (id, "succeeded", "work", "ann"):
            assert re.search(rf"\b{word}\b", said), said
    assert (await ctl(g, "task", "f" * 32))[0] == 1
    assert (await ctl(g, "task", id[:3]))[0] == 1


async def test_ctl_tasks_lists_the_newest_by_route_and_status(g) -> None:
    good, bad = await submit(g, "/work?ms=1"), await submit(g, "/status?code=500")
    await until(g, good)
    assert (await until(g, bad))["status"] == "failed"
    code, said = await ctl(g, "tasks")
    assert code == 0
    assert good in said
    assert bad in said
    code, said = await ctl(g, "tasks", "--route", "status", "--status", "failed")
    assert bad in said
    assert good not in said
    assert "No such task" in (await ctl(g, "tasks", "--route", "nowhere"))[1]
    with pytest.raises(UsageError):
        await ctl(g, "tasks", "--status", "lost")


async def test_a_task_that_failed_is_tried_again_by_hand_and_one_that_did_not_is_not(g) -> None:
    id = await submit(g, "/status?code=503&good=2")
    assert (await until(g, id))["status"] == "failed"
    code, said = await ctl(g, "task", id, "retry")
    assert (code, "queued again" in said) == (0, True), said
    assert id not in said  # nor is it in the log
    assert (await until(g, id, "succeeded"))["attempts"] == 2
    code, said = await ctl(g, "task", id, "retry")
    assert (code, "it is succeeded" in said) == (1, True), said
    await eventually(lambda: any(line["action"] == "task retry" for line in g.events("ctl")))
    assert id not in g.out.read_text()


async def test_a_task_is_cancelled_by_hand_while_it_runs_or_waits(g, tmp_path) -> None:
    runs = await submit(g, f"/hold?file={tmp_path}/never")
    await until(g, runs, "running")
    waits = await submit(g, f"/hold?file={tmp_path}/never")
    found = (await status(g))["tasks"]
    assert [one["id"] for one in found["running"]] == [runs]
    assert [one["id"] for one in found["waiting"]] == [waits]
    assert found["waiting"][0]["waits_s"] >= 0
    for id, was in ((waits, "waited"), (runs, "ran")):
        code, said = await ctl(g, "task", id, "cancel")
        assert (code, was in said) == (0, True), said
        assert (await until(g, id))["status"] == "cancelled"
    code, said = await ctl(g, "task", runs, "cancel")
    assert (code, "ended already" in said) == (1, True), said


async def test_status_has_the_queue_by_route_what_failed_and_why_and_the_schedules(g) -> None:
    id = await submit(g, "/status?code=507", "X-User: fay")
    await until(g, id)
    found = (await status(g))["tasks"]
    assert set(found["routes"]) >= {"status", "hold", "work"}
    assert {"queued", "running", "succeeded", "failed", "cancelled", "longest_wait_s"} == set(found["routes"]["work"])
    last = found["failed"][0]
    assert (last["id"], last["route"], last["user"], last["response"]) == (id, "status", "fay", {"status": 507})
    (yearly,) = found["schedules"]
    assert (yearly["name"], yearly["cron"], yearly["request"]) == ("yearly", "0 0 1 1 *", "POST /work")
    assert datetime.fromisoformat(yearly["next"]).month in (12, 1)
    assert (await status(g, f"?task={id}"))["task"]["id"] == id
    assert all(one["status"] == "failed" for one in (await status(g, "?tasks=1&status=failed&limit=3"))["tasks"])
    health = json.loads((await g.request("/healthz", port=g.admin)).partition(b"\r\n\r\n")[2])
    assert health["tasks"]["state"] == "ok"


async def test_the_end_of_a_task_is_posted_to_its_callback_and_the_log_has_no_query_of_it(g) -> None:
    async with receiver() as there:
        id = await submit(g, "/work?ms=1", f"Outrigger-Callback: http://127.0.0.1:{there.port}/done?key=hush")
        await until(g, id)
        await eventually(lambda: len(there.heard) == 1)
        ((path, fields, body),) = there.heard
        said = Webhook(SECRET).verify(body, fields)
        assert path == "/done?key=hush"
        assert (said["type"], said["data"]["id"]) == ("task.succeeded", id)
        assert said["data"] == await until(g, id)
        await eventually(lambda: g.events("callback"))
    log = g.out.read_text()
    assert "hush" not in log
    assert id not in log
    scrape = (await g.request("/metrics", port=g.admin)).decode()
    assert 'outrigger_callbacks_total{result="ok"} 1.0' in scrape


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://hooks.example.com/", "tasks.callbacks"),
        ("http://u:p@127.0.0.1/", "user"),
        ("ftp://127.0.0.1/", "https://"),
        ("http://localhost.evil.example/", "tasks.callbacks"),
        ("http://169.254.169.254/", "tasks.callbacks"),
        ("http://[::ffff:127.0.0.1]/", "tasks.callbacks"),
        ("http://2130706433/", "tasks.callbacks"),
    ],
)
async def test_a_callback_that_may_not_be_called_is_400(g, url, why) -> None:
    answer = await ask(g, "/work", ASYNC, f"Outrigger-Callback: {url}", method="POST")
    assert (answer.status, answer.problem) == (400, "bad-callback")
    assert why in answer.json["detail"]


async def test_a_schedule_runs_in_its_minute_as_its_own_user_and_a_reload_brings_it(tmp_path: Path) -> None:
    """In real time: two turns of a minute at most."""
    environ = {"WORKED": str(tmp_path / "worked"), "RENDER_EXTERNAL_HOSTNAME": "app.example.com"}
    async with gateway(tmp_path, *TASK_APP, policy="", environ=environ) as g:
        await g.ready()
        assert (await status(g))["tasks"] is None
        file = next(tmp_path.glob(f"policy-{g.port}.yaml"))
        text = file.read_text()
        schedule = "{name: often, cron: '* * * * *', request: {method: POST, path: '/work?ms=1'}, timeout: 7s}"
        file.write_text(
            f"{text}\nroutes: [{{name: narrow, match: {{path: /work}}, rate_limit: 1/d}}]\nschedules: [{schedule}]\n"
        )
        await eventually(lambda: worked(tmp_path / "worked"), timeout=90)
        (began, *more) = worked(tmp_path / "worked")
        assert not more
        assert began["at"] % 60 < 30  # at most 5 s late on a machine that is as quick as it should be
        assert began["attempt"] == 1
        (line,) = await eventually(lambda: g.events("schedule"))
        assert (line["schedule"], line["outcome"]) == ("often", "queued")
        await eventually(lambda: g.events("task"))
        assert g.events("task")[0]["user"] == "schedule:often"
        assert (await status(g))["tasks"]["schedules"][0]["name"] == "often"


async def test_while_the_queues_database_is_away_status_says_so_and_orders_are_refused(tmp_path: Path) -> None:
    policy = "routes: [{name: default, background: {mode: prefer}}]\nledger: {url: '%s'}\n"
    with postgres(tmp_path / "postgres") as server:
        async with gateway(tmp_path, *TASK_APP, policy=policy % server.url) as g:
            await g.ready()
            id = await submit(g, "/work?ms=1")
            await until(g, id)
            await asyncio.to_thread(server.crash)
            for _ in range(300):
                found = (await status(g))["tasks"]
                if found["away"]:
                    break
                await asyncio.sleep(0.1)
            assert found["away"]
            assert (found["failed"], found["waiting"]) == ([], [])
            assert "default" in found["routes"]
            for words in (("tasks",), ("task", id), ("task", id, "cancel")):
                code, said = await ctl(g, *words)
                assert (code, "does not answer" in said) == (1, True), said


async def test_without_tasks_in_the_policy_ctl_says_why_there_are_none(tmp_path: Path) -> None:
    async with gateway(tmp_path, *TASK_APP, policy="") as g:
        await g.ready()
        for words in (("tasks",), ("task", "0" * 32), ("task", "0" * 32, "retry")):
            code, said = await ctl(g, *words)
            assert (code, "lets nothing run later" in said) == (1, True), said
