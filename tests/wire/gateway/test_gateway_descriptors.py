"""File descriptors: the gateway takes all it may have, the app gets what it had before, and none left is no silence."""

import asyncio
import contextlib
import json
import resource
import sys

import pytest
from gateway_process import ROOT, eventually, gateway

LIMITS = """
import http.server, os, resource
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = ("%d %d" % resource.getrlimit(resource.RLIMIT_NOFILE)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


@contextlib.contextmanager
def soft_limit(soft):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_the_gateway_raises_its_limit_to_the_hard_one_and_the_app_has_the_one_that_it_was_started_with(tmp_path):
    with soft_limit(512) as hard:
        async with gateway(tmp_path, sys.executable, "-c", LIMITS) as g:
            await g.ready()
            assert (await g.request()).endswith(f"512 {hard}".encode())
            metrics = (await g.request("/metrics", port=g.admin)).decode()
            assert f"outrigger_process_max_fds {float(hard)}" in metrics


async def crowd(port, count):
    """Connections that never say a thing, as many as can be had."""
    made = []
    for _ in range(count):
        with contextlib.suppress(OSError):
            made.append((await asyncio.open_connection("127.0.0.1", port))[1])
    return made


@pytest.fixture
def few(tmp_path):
    """An environment in which Python has 128 descriptors and cannot have more."""
    folder = tmp_path / "few"
    folder.mkdir()
    text = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))\n"
    (folder / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


async def test_three_hundred_idle_connections_shut_nobody_out(tmp_path, few):
    async with gateway(tmp_path, sys.executable, "-c", LIMITS, environ=few) as g:
        await g.ready()
        there = await crowd(g.port, 300)
        answers = [await g.request() for _ in range(3)]
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
        for writer in there:
            writer.close()


async def test_when_descriptors_are_gone_the_public_port_says_so_and_health_too(tmp_path, few):
    async with gateway(tmp_path, sys.executable, "-c", LIMITS, environ=few) as g:
        await g.ready()
        reader, kept = await asyncio.open_connection("127.0.0.1", g.admin)
        there = await crowd(g.admin, 200)  # another door takes them all, but for a few at most
        there += await crowd(g.port, 20)
        answers = [await g.request() for _ in range(3)]
        assert all(answer.startswith((b"HTTP/1.1 503", b"HTTP/1.1 200")) for answer in answers)
        reported = await eventually(lambda: g.events("connections.refused"))
        assert {line["reason"] for line in reported} == {"descriptors"}
        kept.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        report = json.loads((await reader.read(-1)).partition(b"\r\n\r\n")[2])
        assert (report["status"], report["connections"]["state"]) == ("degraded", "degraded")
        assert "descriptor" in report["connections"]["reason"]
        for writer in (*there, kept):
            writer.close()

        async def served():
            while not (await g.request()).startswith(b"HTTP/1.1 200"):
                await asyncio.sleep(0.1)

        await asyncio.wait_for(served(), 10)
        for port, path in ((g.admin, "/healthz"), (g.egress, "/")):
            assert (await g.request(path, port=port)).startswith(b"HTTP/1.1 "), "the other doors are open still"


async def test_connections_of_the_app_that_call_nobody_give_way_where_descriptors_are_short(tmp_path, few):
    async with gateway(tmp_path, sys.executable, "-c", LIMITS, environ=few) as g:
        await g.ready()
        there = await crowd(g.egress, 300)
        for _ in range(3):
            assert (await g.request()).startswith(b"HTTP/1.1 200")
            assert (await g.request("/nobody/v1", port=g.egress)).startswith(b"HTTP/1.1 404")
        for writer in there:
            writer.close()
