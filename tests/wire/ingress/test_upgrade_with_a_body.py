"""An upgrade that is asked for with a body, and what is pipelined behind it (RFC 9110 section 7.8)."""

from __future__ import annotations

import asyncio

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway

ASKS = b"POST /first HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: %s\r\n"
NEXT = b"GET /second HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
BIG = b"y" * 150_000  # more than is held of a body
BODIES = {
    "none": b"\r\n",
    "empty": b"Content-Length: 0\r\n\r\n",
    "length": b"Content-Length: 4\r\n\r\nbody",
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n4\r\nb\r\n\r\r\n0\r\n\r\n",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "big": b"Content-Length: %d\r\n\r\n%s" % (len(BIG), BIG),
    "big in chunks": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BIG), BIG),
}


def reading(answer: bytes) -> Scripted:
    """An app that reads each request to its end, then answers."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await app.head(reader)).lower()
            if b"transfer-encoding: chunked" in head:
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                await reader.readline()
            elif b"content-length: " in head:
                await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
            writer.write(answer)

    app = Scripted(script)
    return app


def cut(whole: bytes, how: str) -> list[bytes]:
    head = whole.index(b"\r\n\r\n") + 4
    return {
        "at once": [whole],
        "byte by byte": [whole[n : n + 1] for n in range(len(whole))]
        if len(whole) < 1000
        else [whole[:-1], whole[-1:]],
        "body apart": [whole[:head], whole[head:]],
        "in the head": [whole[:30], whole[30:]],
        "in the body": [whole[: head + 2], whole[head + 2 :]],
        "before the last": [whole[: -len(NEXT) - 1], whole[-len(NEXT) - 1 :]],
    }[how]


@pytest.mark.parametrize("upgrade", [b"foo", b"h2c", b"websocket"])
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "how", ["at once", "byte by byte", "body apart", "in the head", "in the body", "before the last"]
)
async def test_what_is_pipelined_behind_it_is_answered(body: str, how: str, upgrade: bytes) -> None:
    async with ingress_gateway(reading(OK)) as f:
        reader, writer = await f.connect()
        for piece in cut(ASKS % upgrade + BODIES[body] + NEXT, how):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            got = await reader.read(-1)
        writer.close()
        assert got.count(b"HTTP/1.1 200") == 2, got
        assert [head.split()[1] for head in f.app.heads] == [b"/first", b"/second"]


async def test_what_lies_behind_a_granted_one_is_the_new_protocols_even_in_the_same_packet() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await app.head(reader)
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")
        writer.write(await reader.readexactly(5))

    app = Scripted(script)
    async with ingress_gateway(app) as f:
        got = await f.raw(b"GET / HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\nearly")
        assert got.endswith(b"\r\n\r\nearly")


async def test_one_whose_end_is_not_known_is_answered_and_closed() -> None:
    """Its head came with the end of another body: no reader was at a beginning there."""
    async with ingress_gateway(reading(OK)) as f:
        reader, writer = await f.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 4\r\n\r\nbo")
        async with asyncio.timeout(5):
            while not f.app.heads:
                await asyncio.sleep(0.01)
        writer.write(b"dy" + ASKS % b"foo" + b"\r\n" + NEXT)
        async with asyncio.timeout(5):
            got = await reader.read(-1)
        writer.close()
        assert got.count(b"HTTP/1.1 200") == 2
        assert b"\r\nConnection: close\r\n" in got.rpartition(b"HTTP/1.1 200")[2]
        assert len(f.app.heads) == 2
