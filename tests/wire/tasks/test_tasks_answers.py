"""What a client of a task hears: 202, its polls, the app's own answer, a cancellation, a refusal."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from gateway_process import GatewayProcess, eventually, gateway
from task_client import ASYNC, TASK_APP, ask, find, result, submit, until, worked

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = """
identity: {user: [{header: X-User}]}
routes:
  - {name: work, match: {path: /work}, background: {mode: prefer, retry: {attempts: 3, backoff: {first: 100ms, max: 200ms}}}}
  - {name: always, match: {path: /stream}, background: {mode: always}}
  - {name: large, match: {path: /large}, max_body: 3000B, background: {mode: prefer}}
  - {name: limited, match: {path: /limited/*}, rate_limit: 2/h, background: {mode: prefer}}
  - {name: full, match: {path: /full/*}, background: {mode: prefer, concurrency: 1, max_queued: 2}}
tasks: {max_body: 2000B, max_result: 5000B}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def g(tmp_path_factory) -> AsyncIterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("tasks")
    async with gateway(folder, *TASK_APP, policy=POLICY, environ={"WORKED": str(folder / "worked")}) as running:
        await running.ready()
        yield running


def worked_here(g: GatewayProcess) -> Path:
    return g.out.parent / "worked"


async def test_a_request_that_prefers_it_is_202_with_where_to_ask_and_its_answer_comes_byte_for_byte(g) -> None:
    answer = await ask(g, "/work?ms=50&a=%20b", ASYNC, "X-User: ann", method="POST", body=b"hello")
    assert answer.status == 202
    id = answer.json["id"]
    assert re.fullmatch("[0-9a-f]{32}", id)
    assert answer.json == {"id": id, "status": "queued", "location": f"/_outrigger/tasks/{id}"}
    assert answer["Location"] == f"/_outrigger/tasks/{id}"
    assert int(answer["Retry-After"] or 0) >= 1
    assert answer["Preference-Applied"] == "respond-async"
    assert answer["Vary"] == "Prefer"
    assert answer["Cache-Control"] == "no-store"
    task = await until(g, id)
    assert task["status"] == "succeeded"
    assert task["route"] == "work"
    assert task["attempts"] == 1
    assert task["reason"] is None
    assert task["position"] is None
    assert task["response"] == {"status": 201}
    assert task["result"] == f"/_outrigger/tasks/{id}/result"
    for name in ("created", "started", "ended"):
        assert datetime.fromisoformat(task[name]) - datetime.now(UTC) < timedelta(minutes=1)
    kept = await result(g, id)
    assert (kept.status, kept["X-Made"], kept["Content-Type"]) == (201, "here", "application/json")
    got = kept.json
    assert (got["method"], got["path"], got["body"]) == ("POST", "/work?ms=50&a=%20b", "hello")
    assert got["fields"]["x-outrigger-task"] == id
    assert got["fields"]["x-outrigger-attempt"] == "1"
    assert got["fields"]["prefer"] == "respond-async"


async def test_fields_that_come_twice_and_letters_of_any_kind_stay_as_they_were(g) -> None:
    id = await submit(g, "/limited/pong", "X-User: fields")
    await until(g, id)
    kept = await result(g, id)
    assert kept.all("Set-Cookie") == ["a=1", "b=2"]
    assert kept["X-Name"] == "K\u00f6ln"
    assert kept.body == b"pong"
    assert kept["Cache-Control"] is None


async def test_without_the_preference_the_route_answers_as_before_and_says_that_it_varies(g) -> None:
    answer = await ask(g, "/work?ms=0", method="POST")
    assert answer.status == 201
    assert answer["Vary"] == "Prefer"
    assert "x-outrigger-task" not in answer.json["fields"]


async def test_a_clients_own_word_about_tasks_does_not_reach_the_app(g) -> None:
    answer = await ask(g, "/work", "X-Outrigger-Task: mine", "X-Outrigger-Attempt: 9", "X_Outrigger_Task: mine")
    assert not [name for name in answer.json["fields"] if "outrigger-task" in name.replace("_", "-")]
    assert answer.json["attempt"] == 0


async def test_where_it_is_always_so_every_request_is_run_later_and_a_stream_is_kept_whole(g) -> None:
    answer = await ask(g, "/stream?n=4")
    assert answer.status == 202
    assert answer["Vary"] is None
    await until(g, answer.json["id"])
    kept = await result(g, answer.json["id"])
    assert kept.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert kept["Content-Type"] == "text/event-stream"
    assert kept["Content-Length"] == str(len(kept.body))


async def test_who_waits_gets_the_apps_answer_if_it_is_there_in_time_and_202_otherwise(g) -> None:
    quick = await ask(g, "/work?ms=50", "Prefer: respond-async, wait=30", method="POST", body=b"x")
    assert quick.status == 201
    assert quick["X-Made"] == "here"
    assert quick["Vary"] == "Prefer"
    slow = await ask(g, "/work?ms=4000", 'Prefer: wait="1", respond-async', method="POST")
    assert slow.status == 202
    ended = await ask(g, slow["Location"], "Prefer: wait=50")
    assert ended.status == 200
    assert ended.json["status"] == "succeeded"


async def test_asking_for_one_that_runs_is_202_and_its_result_too(g) -> None:
    id = await submit(g, "/work?ms=3000")
    await until(g, id, "running")
    for target in (f"/_outrigger/tasks/{id}", f"/_outrigger/tasks/{id}/result"):
        answer = await ask(g, target)
        assert answer.status == 202
        assert answer.json["status"] == "running"
        assert int(answer["Retry-After"] or 0) >= 1
        assert answer["Cache-Control"] == "no-store"
    assert (await until(g, id))["status"] == "succeeded"


async def test_nobody_knows_a_task_by_another_id(g) -> None:
    for id in ("0" * 32, "nonsense", "0" * 32 + "/else"):
        answer = await ask(g, f"/_outrigger/tasks/{id}")
        assert (answer.status, answer.problem) == (404, "task-unknown")
    answer = await ask(g, f"/_outrigger/tasks/{'0' * 32}", method="DELETE")
    assert (answer.status, answer.problem) == (404, "task-unknown")
    answer = await ask(g, f"/_outrigger/tasks/{'0' * 32}", method="POST")
    assert answer.status == 405


async def test_one_that_waits_is_cancelled_at_once_and_one_that_runs_loses_its_connection(g) -> None:
    running, waiting = await submit(g, "/full/a?ms=20000"), await submit(g, "/full/b")
    await until(g, running, "running")
    assert (await find(g, waiting))["position"] == 1
    answer = await ask(g, f"/_outrigger/tasks/{waiting}", method="DELETE")
    assert (answer.status, answer.body) == (204, b"")
    assert (await find(g, waiting))["status"] == "cancelled"
    kept = await result(g, waiting)
    assert (kept.status, kept.problem) == (404, "no-result")
    assert (await ask(g, f"/_outrigger/tasks/{running}", method="DELETE")).status == 204
    assert (await find(g, running))["status"] == "cancelled"
    again = await ask(g, f"/_outrigger/tasks/{running}", method="DELETE")
    assert again.status == 409
    # Its place is free again, long before the app has done with it.
    later = await submit(g, "/full/c")
    assert (await until(g, later, timeout=15))["status"] == "succeeded"


async def test_a_full_queue_is_503_with_when_to_come_again(g) -> None:
    first = await submit(g, "/full/slow?ms=3000")
    await until(g, first, "running")
    waiting = [await submit(g, "/full/next") for _ in range(2)]
    answer = await ask(g, "/full/more", ASYNC, method="POST")
    assert (answer.status, answer.problem) == (503, "queue-full")
    assert int(answer["Retry-After"] or 0) >= 1
    for id in (first, *waiting):
        assert (await until(g, id))["status"] == "succeeded"


async def test_limits_count_when_it_is_accepted(g) -> None:
    for _ in range(2):
        answer = await ask(g, "/limited/x", ASYNC, "X-User: limited", method="POST")
        assert answer.status == 202
        assert answer["RateLimit"] is not None
    answer = await ask(g, "/limited/x", ASYNC, "X-User: limited", method="POST")
    assert (answer.status, answer.problem) == (429, "rate-limited")


async def test_the_same_key_is_the_same_task_and_counts_against_no_limit(g) -> None:
    head = ("X-User: keyed", "Idempotency-Key: once")
    first = await ask(g, "/limited/key", ASYNC, *head, method="POST", body=b"1")
    assert first.status == 202
    id = first.json["id"]
    await until(g, id)
    for _ in range(3):
        again = await ask(g, "/limited/key", ASYNC, *head, method="POST", body=b"1")
        assert (again.status, again.json["id"], again.json["status"]) == (200, id, "succeeded")
        assert again["Location"] == first["Location"]
    for method, target, body in (
        ("POST", "/limited/key", b"2"),
        ("PUT", "/limited/key", b"1"),
        ("POST", "/limited/key?x", b"1"),
    ):
        other = await ask(g, target, ASYNC, *head, method=method, body=body)
        assert (other.status, other.problem) == (422, "idempotency-mismatch")
    # Another user's key of the same name is another one.
    elsewhere = await ask(g, "/limited/key", ASYNC, "X-User: other", "Idempotency-Key: once", method="POST", body=b"2")
    assert elsewhere.status == 202
    assert elsewhere.json["id"] != id
    assert len([line for line in worked(worked_here(g)) if line["task"] == id]) == 1


async def test_a_hundred_requests_with_one_key_at_once_are_one_task(g) -> None:
    async def one() -> str:
        answer = await ask(g, "/work?ms=10", ASYNC, "X-User: many", "Idempotency-Key: k", method="POST", body=b"1")
        assert answer.status in (200, 202)
        return str(answer.json["id"])

    ids = set(await asyncio.gather(*(one() for _ in range(100))))
    assert len(ids) == 1
    await until(g, ids.pop())


async def test_a_delay_runs_it_later_and_a_date_does_too(g) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    ids = [await submit(g, "/work", f"Outrigger-Delay: {delay}") for delay in ("1s", soon)]
    for id in ids:
        task = await find(g, id)
        assert task["status"] == "queued"
        assert task["started"] is None
    for id in ids:
        task = await until(g, id)
        assert datetime.fromisoformat(task["started"]) > datetime.fromisoformat(task["created"])


@pytest.mark.parametrize("delay", ["31d", "soon", "", "-5s", "2099-01-01T00:00:00Z"])
async def test_a_delay_that_cannot_be_kept_is_400(g, delay) -> None:
    answer = await ask(g, "/work", ASYNC, f"Outrigger-Delay: {delay}", method="POST")
    assert (answer.status, answer.problem) == (400, "bad-request")


async def test_what_cannot_be_answered_later_is_400(g) -> None:
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
    )
    for head in (("Accept: text/event-stream",), upgrade):
        answer = await ask(g, "/work", ASYNC, *head)
        assert (answer.status, answer.problem) == (400, "bad-request")
    assert (await ask(g, "/stream", "Accept: text/event-stream")).status == 400


async def test_a_callback_without_a_secret_is_400(g) -> None:
    answer = await ask(g, "/work", ASYNC, "Outrigger-Callback: https://hooks.example.com/", method="POST")
    assert (answer.status, answer.problem) == (400, "bad-callback")


async def test_a_body_that_is_too_large_to_be_kept_is_413_and_a_result_is_a_failure(g) -> None:
    answer = await ask(g, "/work", ASYNC, method="POST", body=b"x" * 2001)
    assert (answer.status, answer.problem) == (413, "body-too-large")
    assert (await ask(g, "/work", method="POST", body=b"x" * 2001)).status == 201
    id = await submit(g, "/work", body=b"x" * 2000)
    assert (await until(g, id))["status"] == "succeeded"
    fits, too_large = await submit(g, "/large?n=5000"), await submit(g, "/large?n=5001")
    assert (await until(g, fits))["status"] == "succeeded"
    assert len((await result(g, fits)).body) == 5000
    task = await until(g, too_large)
    assert (task["status"], task["reason"], task["attempts"]) == ("failed", "max_result", 1)
    assert (await result(g, too_large)).problem == "no-result"


async def test_a_page_of_another_origin_may_ask_and_a_preflight_allows_what_it_needs(g) -> None:
    page = "Origin: https://page.example.com"
    answer = await ask(g, "/work", ASYNC, page, method="POST")
    assert answer["Access-Control-Allow-Origin"] == "https://page.example.com"
    exposed = answer["Access-Control-Expose-Headers"] or ""
    assert {"Location", "Retry-After"} <= {name.strip() for name in exposed.split(",")}
    asked = await ask(g, answer["Location"], page)
    assert asked["Access-Control-Allow-Origin"] == "https://page.example.com"
    preflight = await ask(
        g, answer["Location"], page, "Access-Control-Request-Method: DELETE",
        "Access-Control-Request-Headers: prefer,authorization", method="OPTIONS",
    )  # fmt: skip
    assert preflight.status == 204
    assert "DELETE" in (preflight["Access-Control-Allow-Methods"] or "")
    allowed = {name.strip().lower() for name in (preflight["Access-Control-Allow-Headers"] or "").split(",")}
    assert {"prefer", "idempotency-key", "outrigger-delay", "outrigger-callback", "authorization"} <= allowed
    refused = await ask(g, f"/_outrigger/tasks/{'0' * 32}", page)
    assert refused["Access-Control-Allow-Origin"] == "https://page.example.com"


async def test_head_is_a_get_without_its_body(g) -> None:
    id = await submit(g, "/work")
    await until(g, id)
    answer = await ask(g, f"/_outrigger/tasks/{id}", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer["Content-Length"] or 0) > 100


async def test_each_try_is_a_line_in_the_log_that_does_not_tell_the_whole_id(g) -> None:
    id = await submit(g, "/work?ms=1&token=secret", "X-User: logged")
    await until(g, id)
    (line,) = await eventually(lambda: [e for e in g.events("task") if e.get("user") == "logged"])
    assert line["task"].startswith(id[:8])
    assert (line["outcome"], line["status"], line["attempt"], line["route"]) == ("succeeded", 201, 1, "work")
    assert line["duration_ms"] >= 1
    assert "secret" not in json.dumps(line)
    assert id not in g.output()


async def test_a_head_that_waits_for_100_is_told_to_go_on(g) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", g.port)
    writer.write(
        b"POST /work HTTP/1.1\r\nHost: a\r\nPrefer: respond-async\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    async with asyncio.timeout(30):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"body")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202")
    writer.close()
