"""No spelling of a path that an app's handler serves leads around the route that the policy has for it.

Ten frameworks under ten servers are asked through the gateway. An answer tells who served the path (its body) and
which route the gateway took (RateLimit-Policy): a handler that served must have met a limit.
"""

import asyncio
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from free_ports import free_port
from gateway_process import APPS, ROOT
from ingress_gateway import Scripted, ingress_gateway

PAIRS = (
    "uvicorn-h11+starlette",
    "uvicorn-h11+quart",
    "uvicorn-httptools+fastapi",
    "uvicorn-httptools+django-asgi",
    "hypercorn+starlette",
    "hypercorn+falcon-asgi",
    "waitress+bottle",
    "waitress+django-wsgi",
    "cheroot+flask",
    "cheroot+falcon-wsgi",
    "aiohttp",
    "tornado",
)
POLICY = """
routes:
  - {name: make, match: {path: /item/*/make}, rate_limit: 1000000/s}
  - {name: limited, match: {path: /limited}, rate_limit: 1000000/s}
  - {name: item, match: {path: /item/*}, rate_limit: 1000000/s}
"""
MARKS = tuple(
    """%0A %0a %0D %0D%0A %00 %09 %20 + # #x #/ #%0A ; ;x=1 %3B / // /. /./ /.. /../ %2F %2f %2E %2e%2e/ %5C \\ /\\
    %23 %3F ? ?# #? %C0%AF %E2%80%A8 %C2%85 %1C %25 %252F %2500 é %C3%A9 | ^ ~ * : @ , = & '""".split()  # noqa: SIM905
)
ABSOLUTE = (
    "http://test/limited",
    "HTTP://test/limited",
    "http://test:80/limited%0A",
    "http://user@test/limited#x",
    "http://test/item/x",
    "http://test",
    "http://test?/limited",
    "http://test?x=/limited",
    "http://test#/limited",
    "http:///limited",
    "http://test//limited",
    "//test/limited",
    "///limited",
    "/http://test/limited",
    "*",
)
SERVED = re.compile(rb"\r\n\r\n(?:[0-9a-f]+\r\n)?(limited|item|make)(?:\r\n0\r\n\r\n)?\Z")
ROUTE = re.compile(rb'\r\nRateLimit-Policy: "([a-z]+)"', re.IGNORECASE)


def spellings() -> list[str]:
    found = list(ABSOLUTE)
    for path in ("/limited", "/item/x", "/item/x/make"):
        found += [path + mark for mark in MARKS] + ["/" + mark + path[1:] for mark in MARKS]
        found += [path.replace("i", "%69"), path.replace("i", "%2569"), path.upper(), path.title(), "/a/.." + path]
    found += [f"/item/{mark}" for mark in MARKS] + [f"/item/{mark}/make" for mark in MARKS]
    found += [f"/lim{mark}ited" for mark in MARKS]
    chosen = random.Random(14)
    for _ in range(150):
        path = chosen.choice(("/limited", "/item/x", "/item/x/make"))
        for _ in range(chosen.choice((2, 2, 3))):
            at = chosen.choice((0, len(path), chosen.randrange(len(path) + 1)))
            path = path[:at] + chosen.choice(MARKS) + path[at:]
        found.append(path if path.startswith("/") else f"/{path}")
    return list(dict.fromkeys(found))


class Elsewhere(Scripted):
    """An app in a process of its own."""

    def __init__(self, port: int) -> None:
        super().__init__(None)
        self.address = ("127.0.0.1", port)

    async def start(self) -> None:
        pass


async def find_dodges(port: int) -> tuple[set[bytes], list[str]]:
    """Which handlers served, and the spellings with which one did though no limit was met."""
    served, dodged = set(), []
    async with ingress_gateway(Elsewhere(port), POLICY) as f:
        for target in spellings():
            answer = await f.raw(
                f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode(), timeout=20
            )
            handler, route = SERVED.search(answer), ROUTE.search(answer)
            if handler is not None and answer.startswith(b"HTTP/1.1 200 "):
                served.add(handler[1])
                if route is None:
                    dodged.append(f"{target} reached {handler[1].decode()}")
    return served, dodged


@pytest.fixture(scope="module")
def ports():
    """Each pair's port; all serve from one process."""
    found = {pair: free_port() for pair in PAIRS}
    words = [sys.executable, str(APPS / "spelled.py"), *(f"{pair}={port}" for pair, port in found.items())]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"ready\n"
        yield found
        process.stdin.close()


@pytest.mark.parametrize("pair", PAIRS)
async def test_a_handler_that_is_reached_has_met_its_limit(pair, ports):
    served, dodged = await find_dodges(ports[pair])
    assert served == {b"limited", b"item", b"make"}
    assert dodged == []


async def serving(*words: str, port: int, **environ: str) -> asyncio.subprocess.Process:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*words, env={**os.environ, **environ}, stdout=quiet, stderr=quiet)
    async with asyncio.timeout(20):
        while True:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
                return process
            except OSError:
                await asyncio.sleep(0.02)


async def test_gunicorn_serves_no_handler_past_its_limit():
    port = free_port()
    words = (sys.executable, "-m", "gunicorn", "spelled:flask()", "--chdir", str(APPS), "-b", f"127.0.0.1:{port}")
    process = await serving(*words, port=port)
    try:
        served, dodged = await find_dodges(port)
        async with ingress_gateway(Elsewhere(port), POLICY) as f:
            answer = await f.get("/x/limited", "SCRIPT_NAME: /x")  # gunicorn takes it from a trusted peer: us
    finally:
        process.terminate()
        await process.wait()
    assert served == {b"limited", b"item", b"make"}
    assert dodged == []
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_express_serves_no_handler_past_its_limit():
    modules = ROOT / ".venv-callers-node" / "node_modules"
    if shutil.which("node") is None or not (modules / "express").exists():
        pytest.skip("Node or Express is not installed")
    port = free_port()
    process = await serving("node", str(APPS / "spelled.js"), port=port, PORT=str(port), NODE_PATH=str(modules))
    try:
        served, dodged = await find_dodges(port)
    finally:
        process.kill()
        await process.wait()
    assert served == {b"limited", b"item", b"make"}
    assert dodged == []
