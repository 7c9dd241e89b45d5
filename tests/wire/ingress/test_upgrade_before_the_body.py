"""An app that switches protocols before it has the whole request: the new one begins once it has (RFC 9110 section 7.8)."""

from __future__ import annotations

import asyncio

import pytest
from ingress_gateway import Scripted, ingress_gateway, until

from proxy.ingress.listener import ClientTimeouts

ASK = b"POST / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 10\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
PROTOCOLS = pytest.mark.parametrize("protocol", [b"foo", b"websocket"])


def hasty() -> Scripted:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await app.head(reader)
        writer.write(SWITCHED)
        app.heads.append(await reader.readexactly(14))
        writer.write(b"pong")
        await reader.read()

    app = Scripted(script)
    return app


def pumps() -> int:
    return sum("_pump" in repr(task) for task in asyncio.all_tasks())


@PROTOCOLS
async def test_the_rest_of_the_body_reaches_the_app_before_the_new_protocol(protocol: bytes) -> None:
    async with ingress_gateway(hasty()) as gateway:
        reader, writer = await gateway.connect()
        writer.write(ASK % protocol + b"body")
        await until(lambda: bool(gateway.app.heads))
        await asyncio.sleep(0.05)
        writer.write(b"begins")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"pong"
        assert gateway.app.heads[1] == b"bodybeginsping"
        writer.close()


@PROTOCOLS
async def test_a_client_that_leaves_meanwhile_leaves_nothing_behind(protocol: bytes) -> None:
    async with ingress_gateway(hasty()) as gateway:
        reader, writer = await gateway.connect()
        writer.write(ASK % protocol + b"body")
        await until(lambda: bool(gateway.app.heads))
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: not gateway.service.listener.connections and not pumps() and not gateway.app.open)
        assert gateway.service.pool.descriptors == 0


@PROTOCOLS
async def test_one_that_never_sends_the_rest_is_told(protocol: bytes) -> None:
    async with ingress_gateway(hasty(), patience=ClientTimeouts(sweep=0.05, body=0.2)) as gateway:
        reader, writer = await gateway.connect()
        writer.write(ASK % protocol + b"body")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 4")
        writer.close()
        await until(lambda: not pumps() and not gateway.app.open)
