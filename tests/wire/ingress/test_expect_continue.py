"""A body's patience is for a client who is slow, not for one who waits for the app's word (RFC 9110 section 10.1.1)."""

from __future__ import annotations

import asyncio

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway

from proxy.ingress.listener import ClientTimeouts

ASK = b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def late() -> Scripted:
    """An app that looks for a while whether it wants the body."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await app.head(reader)
        await asyncio.sleep(1)
        writer.write(CONTINUE)
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)

    app = Scripted(script)
    return app


@pytest.mark.parametrize("patience", [{"rate_window": 0.2}, {"body": 0.3}], ids=["least rate", "between two reads"])
async def test_a_client_that_was_not_told_to_go_on_yet_is_not_slow(patience: dict[str, float]) -> None:
    async with ingress_gateway(
        late(), "listen: {body: {min_rate: 500B/s}}", patience=ClientTimeouts(sweep=0.05, **patience)
    ) as gateway:
        reader, writer = await gateway.connect()
        writer.write(ASK)
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == CONTINUE
            writer.write(b"hello")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_one_that_was_told_and_sends_nothing_is() -> None:
    async with ingress_gateway(late(), patience=ClientTimeouts(sweep=0.05, body=0.3)) as gateway:
        reader, writer = await gateway.connect()
        writer.write(ASK)
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == CONTINUE
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 408")
        writer.close()
