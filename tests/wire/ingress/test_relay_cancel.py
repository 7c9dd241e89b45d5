"""A client that leaves, at every stage: the app's connection ends, nothing is left behind."""

import asyncio
import ctypes
import gc
import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from ingress_gateway import OK, Scripted, ingress_gateway, until


def left_behind(gateway):
    return (
        len(gateway.service.listener.connections),
        gateway.service.pool.in_use,
        sum(gateway.service.accounting.in_flight.values()),
    )


async def test_a_client_that_leaves_before_the_answer_ends_the_apps_work():
    async def script(reader, writer):
        await app.head(reader)
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        _, writer = await gateway.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await until(lambda: len(app.heads) == 1)
        writer.close()
        await until(lambda: app.open == 0)
        await until(lambda: left_behind(gateway) == (0, 0, 0))
        assert 'code="499"' in await gateway.text()


async def test_a_client_that_leaves_while_it_waits_for_the_app_is_forgotten():
    async def script(reader, writer):
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        app.is_ready, app.state = False, "restarting"
        _, writer = await gateway.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await until(lambda: sum(gateway.service.accounting.in_flight.values()) == 1)
        writer.close()
        await until(lambda: left_behind(gateway) == (0, 0, 0))
        assert app.connections == 0


STAGES = {
    "before a byte": b"",
    "in the head": b"GET / HTTP/1.1\r\nHo",
    "after the head": b"GET /hang HTTP/1.1\r\nHost: t\r\n\r\n",
    "in the upload": b"POST /hang HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000,
    "in a chunk": b"POST /hang HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nxxx",
    "in the stream": b"GET /stream HTTP/1.1\r\nHost: t\r\n\r\n",
    "with more to come": b"GET /stream HTTP/1.1\r\nHost: t\r\n\r\nGET / HTTP/1.1\r\nHost: t\r\n\r\n",
}


def patient_app():
    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            if b"/hang" in head:
                while await reader.read(65536):
                    pass
                return
            if b"/stream" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"4\r\ntick\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.001)
            writer.write(OK)

    app = Scripted(script)
    return app


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_clients_that_leave_by_the_hundred_leave_nothing_behind(stage, how):
    async with ingress_gateway(patient_app()) as gateway:

        async def visit():
            _, writer = await gateway.connect()
            writer.write(STAGES[stage])
            await writer.drain()
            await asyncio.sleep(0.005)
            writer.transport.abort() if how == "reset" else writer.close()

        await visit()
        await until(lambda: left_behind(gateway) == (0, 0, 0) and gateway.app.open <= 1)
        gc.collect()
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            await asyncio.gather(*(visit() for _ in range(20)))
        await until(lambda: left_behind(gateway) == (0, 0, 0) and gateway.app.open <= 1)
        gateway.service.pool.close_idle()
        await until(lambda: gateway.app.open == 0)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files)


def resident_kib():
    """What is resident once the C library has given back what it keeps of freed memory: that varies by megabytes."""
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


async def test_ten_thousand_clients_that_leave_leak_no_task_connection_file_or_byte(monkeypatch):
    # Ended requests are remembered on purpose, for whom their work was.
    monkeypatch.setattr("proxy.observe.request_registry.MAX_UNUSED_ENDED", 1600)
    stages = [STAGES[name] for name in ("after the head", "in the upload", "in the stream")]
    async with ingress_gateway(patient_app()) as gateway:

        async def visit(stage):
            with socket.socket() as client:  # a stream of asyncio's would cost as much as all of the gateway
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", gateway.port))
                client.send(stage)
                await asyncio.sleep(0.002)

        async def visits(count):
            for n in range(0, count, 50):
                await asyncio.gather(*(visit(stages[(n + k) % 3]) for k in range(50)))
            await until(lambda: left_behind(gateway) == (0, 0, 0) and gateway.app.open == 0)
            gateway.app.heads.clear()
            gc.collect()

        await visits(5000)  # buffers and the allocator's arenas have their size after that
        tasks, files, memory = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), [resident_kib()]
        for _ in range(3):
            await visits(3500)
            memory.append(resident_kib())
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files)  # the last clients close theirs a turn later
        # What each client leaves behind is there after each thousand; what the allocator keeps, after some of them.
        assert min(later - earlier for earlier, later in pairwise(memory)) < 340  # 100 bytes a client would show
