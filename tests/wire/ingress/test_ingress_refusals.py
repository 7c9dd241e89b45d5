"""What refuses says so rightly, waits no longer than it may, and in shadow mode refuses nothing."""

import asyncio
import json
from email.utils import parsedate_to_datetime

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def fields_of(answer: bytes) -> dict[str, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


@pytest.mark.parametrize("path", ["/limited", "/_outrigger/healthz"])
async def test_an_answer_of_ours_has_a_date(path):
    async with ingress_gateway(
        answering(OK), "routes: [{name: r, match: {path: /limited}, rate_limit: 1/h}]"
    ) as gateway:
        await gateway.get(path)
        date = fields_of(await gateway.get(path))["date"]
        assert date.endswith(" GMT")
        assert parsedate_to_datetime(date)


@pytest.mark.parametrize("size", [1, 20, 10_000])
async def test_a_length_that_the_app_states_twice_is_one_length(size):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\ncontent-length: 2 \r\n\r\nok"

    async def script(reader, writer):
        while True:
            await app.head(reader)
            for at in range(0, len(answer), size):
                writer.write(answer[at : at + size])
                await writer.drain()
                if size < 20:
                    await asyncio.sleep(0)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert status_of(head) == 200
            assert head.lower().count(b"content-length") == 1
            assert b"\r\nX-A: b\r\n" in head
            assert await reader.readexactly(2) == b"ok"
        writer.close()


@pytest.mark.parametrize("second", ["3", "+2", "0x2"])
async def test_two_lengths_that_differ_are_no_answer(second):
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: {second}\r\n\r\nok".encode()
    async with ingress_gateway(answering(answer)) as gateway:
        assert status_of(await gateway.get()) == 502


async def test_total_bounds_the_wait_for_an_app_that_restarts():
    app = answering(OK)
    policy = "app: {hold: 30s}\nroutes: [{name: r, match: {path: /*}, total: 300ms, rate_limit: 1/h}]"
    async with ingress_gateway(app, policy) as gateway:
        app.is_ready, app.state = False, "restarting"
        answer = await asyncio.wait_for(gateway.get(), 5)
        assert status_of(answer) == 504
        assert b"(routes: r: total)" in answer
        app.is_ready = True
        assert status_of(await gateway.get()) == 200, "what the app never saw does not count"


@pytest.mark.parametrize("bound", ["concurrency: 1, queue: {size: 5, wait: 30s}", ""])
async def test_total_bounds_the_wait_in_a_queue(bound):
    async def script(reader, writer):
        await app.head(reader)
        await reader.read()

    app = Scripted(script)
    route = f"{{name: r, match: {{path: /*}}, total: 300ms{', ' + bound if bound else ''}}}"
    overload = "" if bound else "overload: {mode: fixed, fixed: {limit: 1, queue: 5, wait: 30s}}"
    holder = "{name: other, match: {path: /hold}}, " if not bound else ""
    async with ingress_gateway(app, f"routes: [{holder}{route}]\n{overload}") as gateway:
        holding = asyncio.create_task(gateway.get("/hold"))
        await until(lambda: len(app.heads) == 1)
        answers = await asyncio.wait_for(asyncio.gather(gateway.get(), gateway.get()), 5)
        assert [status_of(answer) for answer in answers] == [504, 504]
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


SHADOW = """
routes:
  - {name: shadow, match: {path: /*}, enforce: false, max_body: 10B, rate_limit: 1/h, concurrency: 1, queue: {size: 0}}
"""


async def test_a_route_in_shadow_mode_refuses_nothing_of_its_own_and_tells_what_it_would_have(tmp_path):
    gate = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        await gate.wait()
        await asyncio.sleep(0)
        writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app, SHADOW, tmp=tmp_path) as gateway:
        asking = [asyncio.create_task(gateway.get("/", method="POST", body=b"x" * 20)) for _ in range(3)]
        chunked = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        asking.append(asyncio.create_task(gateway.raw(chunked + b"14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n")))
        await until(lambda: len(app.heads) == 4)
        gate.set()
        assert [status_of(answer) for answer in await asyncio.gather(*asking)] == [200] * 4
        text = await gateway.text()
    for name, count in (("rate-limited", 3), ("overloaded", 3), ("body-too-large", 4)):
        assert f'outrigger_shadow_total{{name="{name}",route="shadow"}} {count}.0' in text
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    reported = [line["refused"] for line in lines if line["event"] == "shadow"]
    assert sorted(reported) == ["body-too-large"] * 4 + ["overloaded"] * 3 + ["rate-limited"] * 3


async def test_shadow_mode_leaves_what_protects_the_whole_in_force():
    policy = SHADOW.replace("max_body: 10B", "max_body: 5B") + "listen: {max_body: 15B}\n"
    async with ingress_gateway(answering(OK), policy) as gateway:
        assert status_of(await gateway.get("/", method="POST", body=b"x" * 15)) == 200
        assert status_of(await gateway.get("/", method="POST", body=b"x" * 16)) == 413
