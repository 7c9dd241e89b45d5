"""What is left of HTTP when the drain is over is cut, and the app then has all of its orderly stop."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest
from gateway_process import APPS, eventually, gateway
from ingress_gateway import OK, answering, ingress_gateway, until

APP = (sys.executable, str(APPS / "endless.py"))


async def ask(port: int, path: str, version: str = "1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    upgrade = "Connection: Upgrade\r\nUpgrade: foo\r\n" if path == "/upgrade" else ""
    writer.write(f"GET {path} HTTP/{version}\r\nHost: t\r\n{upgrade}\r\n".encode())
    return reader, writer


async def test_a_stream_longer_than_the_drain_is_cut_and_the_app_stops_in_order(tmp_path) -> None:
    policy = "  drain: 200ms\napp: {stop_timeout: 60s}\n"
    async with gateway(tmp_path, *APP, policy=policy) as g:
        await g.ready()
        stream, closing = await ask(g.port, "/stream"), await ask(g.port, "/close", "1.0")
        never, upgrade = await ask(g.port, "/never"), await ask(g.port, "/upgrade")
        for reader, _ in (stream, closing, upgrade):
            assert await reader.readuntil(b"hi")
        g.signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            assert not (await stream[0].read(-1)).endswith(b"0\r\n\r\n")  # cut, and seen to be
            with pytest.raises(ConnectionResetError):  # an answer that its connection's end delimits
                await closing[0].read(-1)
            assert (await never[0].read(-1)).startswith(b"HTTP/1.1 502 ")
            assert (await upgrade[0].read(-1)).endswith(b"bye")  # a tunnel stays open until the app closes it
        assert await g.ended() == 0
        for _, writer in (stream, closing, never, upgrade):
            writer.close()
        assert "it ends with 0 answers and 1 upgrades open" in g.output()
        assert "stopped in order" in g.output()


async def test_a_replacement_cuts_what_did_not_finish_and_the_old_app_stops_in_order(tmp_path) -> None:
    policy = "  drain: 200ms\napp: {stop_timeout: 60s}\n"
    async with gateway(tmp_path, *APP, policy=policy) as g:
        await g.ready()
        reader, writer = await ask(g.port, "/stream")
        assert await reader.readuntil(b"hi")
        await g.request("/ctl/restart-app", method="POST", port=g.admin)
        await eventually(lambda: "stopped in order" in g.output())
        assert not (await reader.read(-1)).endswith(b"0\r\n\r\n")
        writer.close()
        assert "it ends with 0 answers" in g.output()
        await eventually(lambda: len(g.events("app.ready")) == 2)
        assert await g.stop() == 0


async def test_one_that_came_in_the_drains_first_moment_is_answered() -> None:
    """It was accepted, so nobody else will answer it."""
    async with ingress_gateway(answering(OK)) as f:
        f.service.listener.draining = True  # as `drain` has it, a moment before it closes the listener
        reader, writer = await f.connect()
        await until(lambda: bool(f.service.listener.connections))
        drained = asyncio.create_task(f.service.drain(5))
        await asyncio.sleep(0)
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read(-1)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert await drained
        writer.close()
