"""Answers that stream and WebSockets are bounded by user where the policy says so."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway, until

POLICY = """
identity: {user: [{header: X-User}]}
routes:
  - {name: bounded, match: {path: "/*"}, streams: 2, enforce: %s}
"""
CHUNK = b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
HEADS = {
    "/events": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n" + CHUNK,
    "/lines": b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n" + CHUNK,
    "/text": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n" + CHUNK,
    "/until-close": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nx",
    "/socket": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx",
    "/page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + CHUNK,
    "/file": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nx",
    "/error": b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\n" + CHUNK,
}
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")
STREAMS = ("/events", "/lines", "/text", "/until-close", "/socket")


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def endless() -> Scripted:
    """An app whose answers begin and do not end; `left` counts those whose reader went away."""

    async def script(reader, writer):
        head = await app.head(reader)
        path = head.split(b" ")[1].decode()
        writer.write(HEADS.get(path, OK))
        if path in HEADS:
            await reader.read()
            app.left += 1

    app = Scripted(script)
    app.left = 0
    return app


async def begin(gateway, path, user="ada", *fields):
    """Ask, and read the head of the answer."""
    reader, writer = await gateway.connect()
    more = UPGRADE if path == "/socket" else ("Connection: close",)
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", "Host: t", f"X-User: {user}", *more, *fields]).encode())
    writer.write(b"\r\n\r\n")
    return status_of(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)), writer


@asynccontextmanager
async def open_streams(gateway, *paths, user="ada"):
    async with AsyncExitStack() as stack:
        for path in paths:
            status, writer = await begin(gateway, path, user)
            stack.callback(writer.close)
            assert status < 300
        yield


async def ask(gateway, path, user="ada", *fields):
    status, writer = await begin(gateway, path, user, *fields)
    writer.close()
    return status


@pytest.mark.parametrize("path", STREAMS)
async def test_a_user_has_so_many_streams_open_and_more_are_429(path):
    async with ingress_gateway(endless(), POLICY % "true") as gateway:
        async with open_streams(gateway, path, path):
            assert await ask(gateway, path) == 429
            assert await ask(gateway, path, "ben") < 300, "another user has his own"
            gateway.service.update_gauges()
            await until(lambda: gateway.service.pipeline.open_streams["bounded"] == 2)
        await until(lambda: not gateway.service.pipeline.open_streams)
        assert await ask(gateway, path) < 300
        await until(lambda: gateway.app.left == len(gateway.app.heads))


@pytest.mark.parametrize("path", ["/", "/page", "/file", "/error"])
async def test_an_answer_that_does_not_stream_takes_no_place_and_needs_none(path):
    async with ingress_gateway(endless(), POLICY % "true") as gateway, open_streams(gateway, "/events", "/socket"):
        for _ in range(3):
            assert await ask(gateway, path) in (200, 500)
        assert gateway.service.pipeline.open_streams == {"bounded": 2}


@pytest.mark.parametrize(("path", "fields"), [("/events", ("Accept: text/event-stream",)), ("/socket", ())])
async def test_who_asks_for_a_stream_is_refused_before_the_app_works(path, fields):
    async with ingress_gateway(endless(), POLICY % "true") as gateway, open_streams(gateway, "/events", "/text"):
        assert await ask(gateway, path, "ada", *fields) == 429
        assert len(gateway.app.heads) == 2


async def test_in_shadow_mode_more_are_only_told_of():
    async with (
        ingress_gateway(endless(), POLICY % "false") as gateway,
        open_streams(gateway, "/events", "/socket", "/text"),
    ):
        assert 'outrigger_shadow_total{name="rate-limited",route="bounded"} 1.0' in await gateway.text()


async def test_a_gauge_says_how_many_are_open_on_the_routes_that_bound_them():
    async with ingress_gateway(endless(), POLICY % "true") as gateway:
        for count in (1, 0):
            async with open_streams(gateway, *["/socket"] * count):
                gateway.service.update_gauges()
                assert f'outrigger_http_streams{{route="bounded"}} {count}.0' in await gateway.text()
            await until(lambda: not gateway.service.pipeline.open_streams)
