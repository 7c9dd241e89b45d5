"""Servers that leave Nagle's algorithm on and write an answer in two parts: the second waits for the first to be
acknowledged, and a kernel that has nothing to send puts that off for 40 ms (RFC 1122 section 4.2.3.2). A browser's
fresh connection is acknowledged at once; so are ours that have lived long."""

import asyncio
import socket
import time

import pytest
from ingress_gateway import Scripted, ingress_gateway

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"
PUT_OFF = 0.03  # seconds; what is put off takes 0.04 at least, and what is not is through in 0.001


def in_parts(parts: list[bytes]) -> Scripted:
    async def script(reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        while True:
            await app.head(reader)
            for part in parts:
                writer.write(part)

    app = Scripted(script)
    return app


@pytest.mark.parametrize(
    "parts", [[HEAD, b"x" * 9000], [HEAD, b"x" * 8000, b"x" * 500, b"x" * 500]], ids=["two", "four"]
)
async def test_the_rest_of_an_answer_does_not_wait_for_an_acknowledgement(parts):
    async with ingress_gateway(in_parts(parts)) as gateway:
        reader, writer = await gateway.connect()
        took = []
        for _ in range(60):
            begun = time.monotonic()
            writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert await reader.readexactly(9000) == b"x" * 9000
            took.append(time.monotonic() - begun)
        assert gateway.app.connections == 1
        assert sum(one < PUT_OFF for one in took[20:]) > 5, took[
            20:
        ]  # none of them where it waits; a busy machine has waits of its own
        writer.close()
