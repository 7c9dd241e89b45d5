"""Connections to the app: which are used again, which are not, and what is sent again."""

import asyncio

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until


async def ask(reader, writer, method="GET", body=b""):
    writer.write(f"{method} / HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


async def test_a_connection_serves_one_request_after_another():
    async with ingress_gateway(answering(OK)) as gateway:
        reader, writer = await gateway.connect()
        for _ in range(5):
            assert (await ask(reader, writer)).endswith(b"ok")
        writer.close()
        assert gateway.app.connections == 1
        assert repr(gateway.service.pool) == "<Pool 0 in use, 1 idle>"


async def test_nobody_waits_behind_anothers_answer():
    gate = asyncio.Event()

    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            if b"/slow" in head:
                await gate.wait()
            writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        slow = [asyncio.create_task(gateway.get("/slow")) for _ in range(20)]
        await until(lambda: len(app.heads) == 20)
        assert (await gateway.get("/")).endswith(b"ok")
        gate.set()
        assert all(answer.endswith(b"ok") for answer in await asyncio.gather(*slow))


async def test_an_idle_connection_is_dropped_before_the_app_drops_it():
    async with ingress_gateway(answering(OK)) as gateway:
        await gateway.get()
        assert gateway.app.open == 1
        started = asyncio.get_running_loop().time()
        await until(lambda: gateway.app.open == 0)
        assert 1.0 < asyncio.get_running_loop().time() - started < 3.0


async def test_a_post_takes_only_a_connection_that_was_used_just_now():
    async with ingress_gateway(answering(OK)) as gateway:
        reader, writer = await gateway.connect()
        await ask(reader, writer)
        await ask(reader, writer, "POST", b"x")
        assert gateway.app.connections == 1
        await asyncio.sleep(0.7)
        await ask(reader, writer, "POST", b"x")
        assert gateway.app.connections == 2
        await asyncio.sleep(0.7)
        await ask(reader, writer, "GET")
        assert gateway.app.connections == 2
        writer.close()


async def test_a_connection_that_the_app_closed_is_seen_before_it_is_used():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(OK)
        await writer.drain()

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        for n in range(1, 6):
            assert (await ask(reader, writer, "POST", b"x")).endswith(b"ok")
            assert app.connections == n
        writer.close()


def dying_when_asked_again():
    """Answers once, then reads a request and closes: the race of an idle connection's end."""

    async def script(reader, writer):
        first = app.connections == 1
        await app.head(reader)
        writer.write(OK)
        if first:
            await app.head(reader)
        else:
            while True:
                await app.head(reader)
                writer.write(OK)

    app = Scripted(script)
    return app


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_an_idempotent_request_that_met_a_dying_connection_is_sent_again(method):
    async with ingress_gateway(dying_when_asked_again()) as gateway:
        reader, writer = await gateway.connect()
        await ask(reader, writer)
        writer.write(f"{method} / HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 200 ")
        assert len(gateway.app.heads) == 3
        writer.close()


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_any_other_is_not(method):
    async with ingress_gateway(dying_when_asked_again()) as gateway:
        reader, writer = await gateway.connect()
        await ask(reader, writer)
        assert (await ask(reader, writer, method, b"x")).startswith(b"HTTP/1.1 502 ")
        assert len(gateway.app.heads) == 2
        writer.close()


@pytest.mark.parametrize("status", [500, 502, 503, 599])
async def test_a_connection_is_not_used_again_after_an_error_of_the_app(status):
    """uvicorn says keep-alive with its 500 after an exception, and closes at once."""
    async with ingress_gateway(answering(OK.replace(b"200", b"%d" % status))) as gateway:
        reader, writer = await gateway.connect()
        for count in (1, 2, 3):
            await ask(reader, writer, "POST", b"x")
            assert gateway.app.connections == count
        writer.close()
        assert gateway.service.pool.idle == 0


async def test_once_a_connection_ended_early_a_post_has_a_fresh_one():
    """A worker of gunicorn that has had its `max_requests` takes its idle connections with it."""

    async def script(reader, writer):
        await app.head(reader)
        writer.write(OK)
        if app.connections > 1:
            while True:
                await app.head(reader)
                writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        await ask(reader, writer)
        await until(lambda: app.open == 0)
        await ask(reader, writer)  # it is seen, and another is opened
        for count in (3, 4):
            assert (await ask(reader, writer, "POST", b"x")).endswith(b"ok")
            assert app.connections == count
        await ask(reader, writer)
        assert app.connections == 4  # what may be sent again goes over what there is
        writer.close()


async def test_an_app_without_keep_alive_gets_a_connection_a_request():
    async with ingress_gateway(
        answering(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    ) as gateway:
        reader, writer = await gateway.connect()
        for _ in range(3):
            assert (await ask(reader, writer)).endswith(b"ok")
        writer.close()
        assert gateway.app.connections == 3
        assert gateway.service.pool.idle == 0
