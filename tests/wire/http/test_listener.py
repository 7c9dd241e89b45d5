"""The listener of calls out and of operators, as it stops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from proxy.http import listener
from proxy.http.listener import Listener


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stop_waits_for_what_a_request_has_to_write_down_but_not_for_ever(monkeypatch, ends) -> None:
    monkeypatch.setattr(listener, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(listener, "SETTLE_SECONDS", 0.3)
    settled, under_way = asyncio.Event(), asyncio.Event()

    async def handle(connection, request) -> bool:
        under_way.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1 if ends else 30.0)
            settled.set()
        return False

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    made = Listener("listen.egress", handle, lambda *_: None, max_header=8192, evicts_idle=True)
    made.start(sock)
    reader, writer = await asyncio.open_connection(*sock.getsockname())
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await under_way.wait()
    serving = [connection.serving_task for connection in made.connections]
    async with asyncio.timeout(5):
        await made.stop()
    assert settled.is_set() is ends
    assert await reader.read() == b""
    writer.close()
    for task in serving:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in serving if task is not None), return_exceptions=True)
