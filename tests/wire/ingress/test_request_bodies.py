"""Bodies of requests: their size however framed, and that who sends slowly holds nobody up but himself."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway, until

from proxy.ingress.listener import ClientTimeouts


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def head(path: str, *fields: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: t", "Connection: close", *fields]).encode() + b"\r\n\r\n"


def reading() -> Scripted:
    """An app that reads bodies of either framing; `bodies` has those that it got whole."""

    async def script(reader, writer):
        while True:
            lines = (await app.head(reader)).lower().split(b"\r\n")
            body, sizes = b"", [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
            if sizes:
                body = await reader.readexactly(sizes[0])
            elif b"transfer-encoding: chunked" in lines:
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            app.bodies.append(body)
            writer.write(OK)
            await writer.drain()

    app = Scripted(script)
    app.bodies = []
    return app


LARGE = "routes: [{name: r, match: {path: /*}, max_body: 1KiB}]"
GATED = LARGE + "\noverload: {mode: fixed, fixed: {limit: 4, queue: 2, wait: 200ms}}"


@pytest.mark.parametrize("policy", [LARGE, "listen: {max_body: 1KiB}", GATED])
@pytest.mark.parametrize("pieces", [(b"x" * 1025,), (b"x" * 1024, b"y"), (b"x" * 20000, b"y" * 20000)])
async def test_a_chunked_body_that_arrives_whole_is_measured_too(policy, pieces):
    async with ingress_gateway(reading(), policy) as gateway:
        whole = head("/", "Transfer-Encoding: chunked") + chunked(*pieces)
        assert status_of(await gateway.raw(whole)) == 413
        assert not gateway.app.bodies
        at_most = head("/", "Transfer-Encoding: chunked") + chunked(b"x" * 1000, b"y" * 24)
        assert status_of(await gateway.raw(at_most)) == 200


@asynccontextmanager
async def trickling(gateway, count, *, announced=1000, sent=b"{", path="/"):
    """So many requests of which a part of the body came, and the rest does not."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            _, writer = await gateway.connect()
            stack.callback(writer.close)
            writer.write(head(path, f"Content-Length: {announced}") + sent)
        await until(lambda: len(gateway.service.listener.connections) >= count)
        await until(lambda: sum(c.body_incomplete for c in gateway.service.listener.connections) >= count)
        yield


PLACES = "overload: {mode: fixed, fixed: {limit: 4, queue: 2, wait: 200ms}}\nlisten: {body: {buffer: %s}}"


async def test_bodies_that_trickle_hold_no_place():
    async with ingress_gateway(reading(), PLACES % "64KiB") as gateway, trickling(gateway, 20):
        for _ in range(3):
            assert status_of(await gateway.get("/")) == 200
            assert status_of(await gateway.get("/", method="POST", body=b"x" * 300)) == 200
        assert gateway.service.admission.in_flight("default") == 0


async def test_under_the_shipped_policy_bodies_that_trickle_shut_nobody_out():
    shipped = (Path(__file__).parents[3] / "config" / "policy.yaml").read_text()
    async with ingress_gateway(reading(), shipped) as gateway:
        large = trickling(gateway, 40, announced=1_000_000, sent=b"x" * 200_000)  # past the buffer
        async with trickling(gateway, 40), trickling(gateway, 20, path="/api/user/ada/ask"), large:
            assert status_of(await gateway.get("/")) == 200
            assert status_of(await gateway.get("/api/user/ben/ask", method="POST", body=b"x" * 300)) == 200
            assert gateway.service.admission.in_flight("ask") == 0
            assert gateway.service.admission.in_flight("default") <= 10


async def test_a_body_past_the_buffer_takes_a_place_and_of_these_one_address_has_a_quarter():
    async with ingress_gateway(reading(), PLACES % "1KiB") as gateway:
        async with trickling(gateway, 1, announced=5000, sent=b"x" * 2000):
            await until(lambda: gateway.service.admission.in_flight("default") == 1)
            assert status_of(await gateway.get("/")) == 200, "three of four places are left to others"
            one_more = head("/", "Content-Length: 5000") + b"x" * 2000
            assert status_of(await gateway.raw(one_more)) == 503
            elsewhere = head("/", "Content-Length: 5000", "X-Forwarded-For: 198.51.100.7") + b"x" * 5000
            assert status_of(await gateway.raw(elsewhere)) == 200
        await until(lambda: gateway.service.admission.in_flight("default") == 0)
        assert not len(gateway.service.admission._shares)
        assert 'outrigger_shed_total{reason="share_wait"}' in await gateway.text()


async def test_an_address_gets_its_share_back_when_the_body_is_here_though_the_answer_is_not():
    answer = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        await reader.readexactly(5000)
        await answer.wait()
        writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app, PLACES % "1KiB") as gateway:
        asking = []
        for turn in range(3):
            reader, writer = await gateway.connect()
            writer.write(head("/", "Content-Length: 5000") + b"x" * 2000)
            await until(lambda turn=turn: gateway.service.admission.in_flight("default") == turn + 1)
            writer.write(b"x" * 3000)
            await until(lambda: not len(gateway.service.admission._shares))
            asking.append((reader, writer))
        answer.set()
        for reader, writer in asking:
            assert status_of(await reader.read(-1)) == 200
            writer.close()


async def test_a_client_that_waits_for_100_gets_it_from_us_and_only_once():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(300)
        writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app, PLACES % "64KiB") as gateway:
        reader, writer = await gateway.connect()
        writer.write(head("/", "Content-Length: 300", "Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert not app.heads
        writer.write(b"x" * 300)
        assert status_of(await reader.read(-1)) == 200
        writer.close()


@pytest.mark.parametrize("policy", ["", PLACES % "0B"])
async def test_without_places_or_buffer_a_body_streams_from_its_first_byte(policy):
    async def script(reader, writer):
        await app.head(reader)
        assert await reader.readexactly(6) == b"1\r\na\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n")
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"0\r\n\r\n")

    app = Scripted(script)
    async with ingress_gateway(app, policy) as gateway:
        reader, writer = await gateway.connect()
        writer.write(head("/", "Transfer-Encoding: chunked") + b"1\r\na\r\n")
        assert (await reader.readuntil(b"A\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"0\r\n\r\n")
        assert await reader.read(-1) == b"0\r\n\r\n"
        writer.close()


async def test_a_body_below_the_least_rate_is_408_and_a_quicker_one_is_not():
    slow_clock = ClientTimeouts(rate_window=0.4, sweep=0.05)
    async with ingress_gateway(reading(), "listen: {body: {min_rate: 500B/s}}", patience=slow_clock) as gateway:
        reader, writer = await gateway.connect()
        writer.write(head("/", "Content-Length: 100000"))
        quick, quicker = await gateway.connect()
        quicker.write(head("/", "Content-Length: 20000"))

        async def trickle():
            for turn in range(20):
                writer.write(b"x")
                quicker.write(b"y" * 1000)
                await asyncio.sleep(0.05 if turn < 19 else 0)

        work = asyncio.create_task(trickle())
        answer = await asyncio.wait_for(reader.read(-1), 5)
        assert status_of(answer) == 408
        assert b"min_rate" in answer
        await work
        assert status_of(await quick.read(-1)) == 200
        writer.close()
        quicker.close()


async def test_a_connection_that_never_says_a_thing_ends_after_first_byte_and_an_idle_one_does_not():
    async with ingress_gateway(reading(), "listen: {first_byte: 200ms}") as gateway:
        said, saying = await gateway.connect()
        saying.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await said.readuntil(b"ok")
        silent, writer = await gateway.connect()
        assert await asyncio.wait_for(silent.read(-1), 5) == b""
        saying.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await said.readuntil(b"ok")
        saying.close()
        writer.close()


async def test_health_paths_have_a_few_places_of_their_own_and_no_more():
    gate = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        await gate.wait()
        writer.write(OK)

    app = Scripted(script)
    policy = "app: {ready: {path: /health}}\noverload: {mode: fixed, fixed: {limit: 2, queue: 0, wait: 1s}}"
    async with ingress_gateway(app, policy) as gateway:
        others = [asyncio.create_task(gateway.get("/")) for _ in range(2)]
        await until(lambda: len(app.heads) == 2)
        probes = [asyncio.create_task(gateway.get("/health")) for _ in range(20)]
        await until(lambda: sum(task.done() for task in probes) == 16)
        assert {status_of(task.result()) for task in probes if task.done()} == {503}
        await until(lambda: len(app.heads) == 6)
        await until(lambda: len(app.heads) == 6)
        gate.set()
        answers = await asyncio.gather(*others, *probes)
        assert sorted(map(status_of, answers)) == [200] * 6 + [503] * 16
