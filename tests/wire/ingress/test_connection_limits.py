"""Connections are bounded, in all and by address; who finds no place is told, and idle ones make room."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until

from proxy.ingress.listener import ClientTimeouts

PER = "listen: {connections: {per_address: %d}, trusted_proxies: %s}"
GET = b"GET / HTTP/1.1\r\nHost: t\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


@asynccontextmanager
async def idle(gateway, count):
    """So many connections that were served once and are open."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            reader, writer = await gateway.connect()
            stack.callback(writer.close)
            writer.write(GET + b"\r\n")
            await reader.readuntil(b"ok")
            made.append((reader, writer))
        yield made


@asynccontextmanager
async def busy(gateway, count, *fields):
    """So many requests that the app has and does not answer."""
    before = len(gateway.app.heads)
    async with AsyncExitStack() as stack:
        for _ in range(count):
            _, writer = await gateway.connect()
            stack.callback(writer.close)
            writer.write("\r\n".join(["GET /hold HTTP/1.1", "Host: t", *fields]).encode() + b"\r\n\r\n")
        await until(lambda: len(gateway.app.heads) == before + count)
        yield


def holding() -> Scripted:
    async def script(reader, writer):
        while True:
            if b"/hold" in await app.head(reader):
                await reader.read()
            writer.write(OK)

    app = Scripted(script)
    return app


async def test_when_all_places_are_taken_the_longest_idle_make_room(monkeypatch):
    monkeypatch.setattr("proxy.ingress.listener.EVICTABLE_AFTER", 0.0)
    async with (
        ingress_gateway(answering(OK), "listen: {connections: {total: 5}}") as gateway,
        idle(gateway, 5) as there,
    ):
        assert status_of(await gateway.get()) == 200
        assert await asyncio.wait_for(there[0][0].read(-1), 5) == b"", "the first was idle the longest"
        there[4][1].write(GET + b"\r\n")
        assert (await there[4][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        assert "outrigger_connections_evicted_total 1.0" in await gateway.text()


async def test_when_nobody_is_idle_one_more_waits_for_a_place_and_is_told_that_there_is_none(tmp_path):
    slow = ClientTimeouts(sweep=0.05, backlog=0.3)
    async with ingress_gateway(holding(), "listen: {connections: {total: 3}}", patience=slow, tmp=tmp_path) as gateway:
        async with busy(gateway, 3):
            answer = await gateway.get()
            assert status_of(answer) == 503
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:outrigger:overloaded"
            assert b"\r\nRetry-After: " in answer
            assert gateway.service.connection_limits.current_trouble() is not None
            waiting = asyncio.create_task(gateway.get())
            await asyncio.sleep(0)
        assert status_of(await waiting) == 200, "places came free before it was told"
        gateway.service.update_gauges()
        metrics = await gateway.text()
    assert 'outrigger_connections_refused_total{reason="total"} 1.0' in metrics
    assert "outrigger_connections_limit 3.0" in metrics
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["reason"] for line in lines if line["event"] == "connections.refused"] == ["total"]


async def test_a_crowd_that_comes_at_once_is_answered_one_after_the_other():
    async with ingress_gateway(answering(OK), "listen: {connections: {total: 8}}") as gateway:
        answers = await asyncio.gather(*(gateway.get() for _ in range(200)))
        assert {status_of(answer) for answer in answers} == {200}


async def test_silent_connections_shut_nobody_out(monkeypatch):
    monkeypatch.setattr("proxy.ingress.listener.SILENT_EVICTABLE_AFTER", 0.05)
    async with (
        ingress_gateway(answering(OK), "listen: {connections: {total: 20}}") as gateway,
        AsyncExitStack() as stack,
    ):
        for _ in range(60):
            _, writer = await gateway.connect()
            stack.callback(writer.close)
        for _ in range(5):
            answer = b""
            while not answer.startswith(b"HTTP/1.1 200"):
                answer = await gateway.get()
                assert not answer or status_of(answer) in (200, 503)


@pytest.mark.parametrize("trusted", ["none", "private", "[203.0.113.0/24]"])
async def test_an_address_has_so_many_connections_and_no_more_idle_or_not(trusted):
    async with ingress_gateway(answering(OK), PER % (3, trusted)) as gateway:
        async with idle(gateway, 3) as there:
            for _ in range(4):
                answer = await gateway.get()
                assert status_of(answer) == 503
                assert b"listen.connections.per_address" in answer
            there[0][1].write(GET + b"\r\n")
            assert (await there[0][0].readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await until(lambda: not gateway.service.connection_limits._by_address)
        assert status_of(await gateway.get()) == 200
        assert 'outrigger_connections_refused_total{reason="per_address"} 4.0' in await gateway.text()


async def test_behind_a_proxy_each_client_has_its_own_places_and_the_proxy_as_many_connections_as_it_likes():
    async with (
        ingress_gateway(holding(), PER % (2, "private")) as gateway,
        busy(gateway, 2, "X-Forwarded-For: 198.51.100.1"),
    ):
        assert status_of(await gateway.get("/", "X-Forwarded-For: 198.51.100.1")) == 503
        assert status_of(await gateway.get("/", "X-Forwarded-For: 9.9.9.9, 198.51.100.1")) == 503
        async with busy(gateway, 2, "X-Forwarded-For: 198.51.100.2"), AsyncExitStack() as stack:
            for n in range(10):  # kept alive by the proxy: they are nobody's while they are idle
                reader, writer = await gateway.connect()
                stack.callback(writer.close)
                writer.write(GET + b"X-Forwarded-For: 198.51.100.3\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"), n
        await until(lambda: gateway.service.connection_limits._by_address.keys() == {"198.51.100.1"})
    await until(lambda: not gateway.service.connection_limits._by_address)


async def test_a_flood_from_one_address_is_told_in_part_and_leaves_the_others_their_places():
    async with ingress_gateway(answering(OK), PER % (2, "none")) as gateway, AsyncExitStack() as stack:
        for _ in range(400):
            _, writer = await gateway.connect()
            stack.callback(writer.close)
        await until(lambda: gateway.service.listener.rejecting <= 256)
        assert len(gateway.service.listener.connections) <= 258
    await until(lambda: not gateway.service.listener.connections)
    assert gateway.service.listener.rejecting == 0


async def test_health_paths_and_our_own_are_answered_to_an_address_that_has_its_fill():
    policy = PER % (1, "private") + "\napp: {ready: {path: /health}}"
    async with ingress_gateway(holding(), policy) as gateway, busy(gateway, 1):
        assert status_of(await gateway.get("/")) == 503
        assert status_of(await gateway.get("/health")) == 200
        assert (await gateway.get("/_outrigger/healthz")).endswith(b"ours")


async def test_a_reload_bounds_who_comes_from_then_on():
    from proxy.policy.loading import PolicySource, load_policy

    async with ingress_gateway(answering(OK), "listen: {trusted_proxies: none}") as gateway, idle(gateway, 3):
        gateway.service.apply(load_policy(PolicySource("new", None, PER % (1, "none")), {}))
        assert status_of(await gateway.get()) == 200
        async with idle(gateway, 1):
            assert status_of(await gateway.get()) == 503


async def test_without_a_descriptor_for_the_app_it_is_a_503_and_told(monkeypatch):
    def none_left(*_):
        raise OSError(24, "Too many open files")

    async with ingress_gateway(answering(OK), "routes: [{name: r, match: {path: /*}, rate_limit: 1/h}]") as gateway:
        reader, writer = await gateway.connect()
        with monkeypatch.context() as patch:
            patch.setattr("proxy.ingress.app_pool.socket.socket", none_left)
            patch.setattr("proxy.ingress.relay.MAX_REFUSING_SECONDS", 0.1)
            writer.write(GET + b"\r\n")
            assert status_of(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)) == 503
        assert "descriptor" in gateway.service.connection_limits.current_trouble()
        assert status_of(await gateway.get()) == 200
        writer.close()


async def test_without_a_descriptor_for_a_client_it_is_told_before_it_is_let_go(monkeypatch):
    failing = True

    class Listening(socket.socket):
        def accept(self):
            nonlocal failing
            if failing:
                failing = False
                raise OSError(24, "Too many open files")
            return super().accept()

    monkeypatch.setattr("ingress_gateway.socket.socket", Listening)
    async with ingress_gateway(answering(OK)) as gateway:
        monkeypatch.undo()
        answer = await gateway.get()
        assert status_of(answer) == 503
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:outrigger:overloaded"
        assert status_of(await gateway.get()) == 200
        assert 'outrigger_connections_refused_total{reason="descriptors"} 1.0' in await gateway.text()
