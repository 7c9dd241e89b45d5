"""An app that is not where it was told to be, or where others reach it too, is named with the place and the mend."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from egress_gateway import Vendor, completion, says
from free_ports import free_port
from gateway_process import eventually, gateway

LISTENS = """
import http.server, os, sys
host, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else int(os.environ["PORT"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((host, port), Handler).serve_forever()
"""
# Its health path is slow, or calls a model.
DEAR = """
import json, os, sys, time, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
probes = 0
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        global probes
        probes += self.path != "/"
        if self.path == "/slow":
            time.sleep(1.2)
        if self.path == "/dear":
            url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
            body = json.dumps({"model": "gpt-4o-mini", "messages": []}).encode()
            urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})).read()
        self.send_response(200)
        body = b"%05d" % probes
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked by /proc")
async def test_an_app_that_listens_elsewhere_is_named_with_its_port(tmp_path):
    (tmp_path / "app.py").write_text(LISTENS)
    elsewhere = free_port()
    async with gateway(tmp_path, sys.executable, "app.py", "127.0.0.1", str(elsewhere)) as g:
        (reported,) = await eventually(lambda: g.events("app.elsewhere"), 30)
        assert f"it listens on port {elsewhere}, not on " in reported["message"]
        assert f"write app.port: {elsewhere}" in reported["message"]
        reader, writer = await asyncio.open_connection("127.0.0.1", g.admin)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        body = (await reader.read(-1)).partition(b"\r\n\r\n")[2]
        writer.close()
        assert f"write app.port: {elsewhere}" in json.loads(body)["app"]["reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked by /proc")
@pytest.mark.parametrize(("host", "wide"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_an_app_that_others_reach_on_its_private_port_is_warned_of(host, wide, tmp_path):
    (tmp_path / "app.py").write_text(LISTENS)
    async with gateway(tmp_path, sys.executable, "app.py", host) as g:
        await g.ready()
        assert (await g.request("/")).endswith(b"ok")
        if not wide:
            await eventually(lambda: g.events("app.ready"))
            assert g.events("app.exposed") == []
        else:
            reported = await eventually(lambda: g.events("app.exposed"))
            assert len(reported) == 1
            assert reported[0]["level"] == "warning"
            assert reported[0]["address"].startswith("0.0.0.0:")
            assert "goes round the gateway" in reported[0]["message"]


@pytest.mark.parametrize(
    ("path", "said"), [("/slow", "took 1."), ("/dear", "calls a vendor each time"), ("/quick", "")]
)
async def test_a_health_path_that_costs_much_is_spoken_of_after_the_first_probes(path, said, tmp_path):
    (tmp_path / "app.py").write_text(DEAR)
    vendor = Vendor(says(completion()))
    await vendor.start()
    policy = (
        f"app: {{ready: {{path: {path}}}, liveness: {{path: {path}, interval: 100ms}}}}\n"
        f"upstreams: {{openai: {{base_url: http://127.0.0.1:{vendor.port}/v1}}}}\n"
    )
    try:
        async with gateway(tmp_path, sys.executable, "app.py", policy=policy, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            if said:
                (reported,) = await eventually(lambda: g.events("app.probe"))
                assert path in reported["message"]
                assert said in reported["message"]
            else:
                async with asyncio.timeout(20):
                    while int((await g.request("/"))[-5:]) < 5:
                        await asyncio.sleep(0.05)
                assert g.events("app.probe") == []
    finally:
        await vendor.stop()
