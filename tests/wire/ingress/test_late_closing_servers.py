"""Servers that close a connection just after an answer that did not say so: no request of anybody else gets a 502.

uvicorn does after an exception, gunicorn when a worker has had its `max_requests`, others in ways of their own.
OUTRIGGER_REQUESTS says how many good requests each is asked (10,000 as docs/requests.md says).
"""

import asyncio
import os
import shutil
import sys
from collections import Counter

import pytest
from free_ports import free_port
from gateway_process import APPS
from ingress_gateway import Scripted, ingress_gateway

REQUESTS = int(os.environ.get("OUTRIGGER_REQUESTS", "1500"))
GOOD, RAISING = 10, 2  # clients
PY = sys.executable
SERVERS = {
    "uvicorn, h11": (PY, "-m", "uvicorn", "raising:asgi", "--http", "h11", "--log-level", "critical", "--port"),
    "uvicorn, httptools": (PY, "-m", "uvicorn", "raising:asgi", "--http", "httptools", "--log-level", "critical", "--port"),
    "gunicorn, sync": (PY, "-m", "gunicorn", "raising:wsgi", "-w", "4", "--log-level", "critical", "--bind"),
    "gunicorn, threads and max_requests": (
        PY, "-m", "gunicorn", "raising:wsgi", "-w", "2", "--threads", "8", "--max-requests", "300",
        "--max-requests-jitter", "100", "--log-level", "critical", "--bind",
    ),
    "gunicorn, gevent and max_requests": (
        PY, "-m", "gunicorn", "raising:wsgi", "-w", "2", "-k", "gevent", "--max-requests", "300",
        "--max-requests-jitter", "100", "--log-level", "critical", "--bind",
    ),
    "hypercorn": (PY, "raising.py", "hypercorn"),
    "waitress": (PY, "raising.py", "waitress"),
    "cheroot": (PY, "raising.py", "cheroot"),
    "aiohttp": (PY, "raising.py", "aiohttp"),
    "Node": ("node", "raising.js"),
}  # fmt: skip


class Elsewhere(Scripted):
    """An app in a process of its own."""

    def __init__(self, port: int) -> None:
        super().__init__(None)
        self.address = ("127.0.0.1", port)

    async def start(self) -> None:
        pass


async def ask(port: int, path: str, left: list[int], statuses: Counter[bytes]) -> None:
    """Requests, one after the other over a connection that is opened anew when it ends, while there are any left."""
    request = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody".encode()
    writer = None
    try:
        while left[0] > 0:
            left[0] -= 1
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = head.split(b" ", 2)[1]
            statuses[status] += 1
            if b"transfer-encoding: chunked" in head:
                while (await reader.readuntil(b"\r\n")) != b"0\r\n":
                    await reader.readuntil(b"\r\n")
                await reader.readuntil(b"\r\n")
            else:
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                body = await reader.readexactly(int(length.split(b":")[1]))
                if status == b"502":
                    statuses[body] += 1  # says why
            if b"connection: close" in head:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()


@pytest.mark.parametrize("name", SERVERS)
async def test_one_users_exception_gives_nobody_else_a_502(name):
    words = SERVERS[name]
    if words[0] == "node" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    port = free_port()
    last = {"node": [], "--bind": [f"127.0.0.1:{port}"]}.get(
        words[-1] if words[-1] == "--bind" else words[0], [str(port)]
    )
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *words, *last, cwd=APPS, env={**os.environ, "PORT": str(port)}, stdout=quiet, stderr=quiet
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        good, raising = Counter(), Counter()
        left, raised = [REQUESTS], [REQUESTS // 4]
        async with ingress_gateway(Elsewhere(port)) as f:
            clients = [ask(f.port, "/", left, good) for _ in range(GOOD)]
            clients += [ask(f.port, "/boom", raised, raising) for _ in range(RAISING)]
            await asyncio.gather(*clients)
    finally:
        process.terminate()
        await process.wait()
    assert good == {b"200": REQUESTS}
    assert set(raising) <= {b"500"}
