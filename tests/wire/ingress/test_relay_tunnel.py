"""Upgrades: after the 101 the bytes are the app's and the client's own."""

import asyncio

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until

WS = (
    b"GET /ws HTTP/1.1\r\nHost: t\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %s\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %s\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n"


def echoing(protocol=b"websocket", greeting=b""):
    async def script(reader, writer):
        await app.head(reader)
        writer.write(SWITCH % protocol + greeting)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    app = Scripted(script)
    return app


@pytest.mark.parametrize("protocol", [b"websocket", b"WebSocket", b"my-protocol/2"])
async def test_bytes_pass_raw_both_ways_from_the_first(protocol):
    async with ingress_gateway(echoing(protocol, b"\x81\x05hello")) as gateway:
        reader, writer = await gateway.connect()
        writer.write(WS % protocol + (b"\x81\x80early" if protocol.lower() == b"websocket" else b""))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Upgrade: %s\r\n" % protocol in head
        assert b"Connection: Upgrade\r\n" in head
        assert b"Sec-WebSocket-Accept: x\r\n" in head
        assert b"Sec-WebSocket-Extensions: permessage-deflate\r\n" in gateway.app.heads[0]
        expected = b"\x81\x05hello" + (b"\x81\x80early" if protocol.lower() == b"websocket" else b"")
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 3) == expected
        for size in (1, 1000, 300_000):
            writer.write(bytes(range(256)) * (size // 256 + 1))
            got = await asyncio.wait_for(reader.readexactly((size // 256 + 1) * 256), 5)
            assert got == bytes(range(256)) * (size // 256 + 1)
        writer.close()
        await until(lambda: gateway.app.open == 0)
        await until(lambda: not gateway.service.listener.connections)


async def test_those_of_one_user_are_cut_and_no_others():
    async with ingress_gateway(echoing(), "identity: {user: [{header: X-User}, ip]}") as gateway:
        ends = []
        for user in (b"eve", b"ada", b"eve"):
            reader, writer = await gateway.connect()
            writer.write((WS % b"websocket").replace(b"Host: t\r\n", b"Host: t\r\nX-User: %s\r\n" % user))
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
            ends.append((reader, writer))
        assert gateway.service.abort_tunnels("eve") == 2
        await until(lambda: gateway.app.open == 1)
        for reader, _ in (ends[0], ends[2]):
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await asyncio.wait_for(reader.readexactly(1), 3)
        reader, writer = ends[1]
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), 3) == b"still here"
        assert gateway.service.abort_tunnels("eve") == 0
        for _, writer in ends:
            writer.close()


async def test_the_apps_close_reaches_the_client():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(SWITCH % b"websocket" + b"\x88\x02\x03\xe8")

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        answer = await gateway.raw(WS % b"websocket")
        assert answer.endswith(b"\x88\x02\x03\xe8")


async def test_a_half_close_is_passed_on():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(SWITCH % b"websocket")
        assert await reader.read(-1) == b"request"
        writer.write(b"answer")

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(WS % b"websocket")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"request")
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(-1), 3) == b"answer"
        writer.close()


async def test_an_upgrade_that_the_app_declines_is_an_ordinary_answer():
    async with ingress_gateway(answering(OK)) as gateway:
        reader, writer = await gateway.connect()
        writer.write(WS % b"websocket")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 3)).startswith(b"HTTP/1.1 200 OK")
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_http2_in_a_tunnel_is_not_offered_to_the_app():
    async with ingress_gateway(answering(OK)) as gateway:
        answer = await gateway.get(
            "/", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "Connection: Upgrade, HTTP2-Settings"
        )
        assert answer.endswith(b"ok")
        assert b"h2c" not in gateway.app.heads[0]


async def test_a_slow_reader_slows_the_sender():
    sent = 0

    async def script(reader, writer):
        nonlocal sent
        await app.head(reader)
        writer.write(SWITCH % b"websocket")
        while True:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(WS % b"websocket")
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.1)
        assert sent < 64 * 2**20
        writer.transport.abort()
        await until(lambda: app.open == 0)


async def test_a_drain_does_not_wait_for_tunnels_and_leaves_them_open():
    async with ingress_gateway(echoing()) as gateway:
        reader, writer = await gateway.connect()
        writer.write(WS % b"websocket")
        await reader.readuntil(b"\r\n\r\n")
        assert await asyncio.wait_for(gateway.service.drain(5), 1)
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), 3) == b"still here"
        writer.close()
