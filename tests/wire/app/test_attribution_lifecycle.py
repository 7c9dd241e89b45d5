"""What attribution leaves alone, what it tells, and where it is off."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from egress_gateway import Vendor, says
from free_ports import free_port
from gateway_process import APPS, ROOT, eventually, gateway

from proxy.app.attribution import FOLDER

PY = shlex.quote(sys.executable)
IDENTITY = "identity: {user: [{header: X-User}]}\n"
ON_PATH = {"PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
UPSTREAM = 'upstreams: {{openai: {{base_url: "http://127.0.0.1:{port}/v1"}}}}\n'


@pytest.fixture
async def vendor():
    vendor = Vendor(says())
    await vendor.start()
    yield vendor
    await vendor.stop()


def pythons() -> list[str]:
    """Every Python that is here, for the app may run under another one than the gateway."""
    found = {os.path.realpath(sys.executable)}
    for version in ("2.7", "3.6", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14"):
        found |= {str(path) for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}")}
    return sorted(found)


def run(program: str, text: str, cwd: Path, **environ: str) -> str:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1", **environ}
    done = subprocess.run([program, "-c", text], env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.mark.parametrize("program", pythons())
def test_any_python_starts_as_before_and_its_own_sitecustomize_runs(program, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("print('own')\n")
    text = "import sys, json, sitecustomize; print(json.dumps([sys.path[1:], sitecustomize.__file__]))"
    without = run(program, text, tmp_path, PYTHONPATH=str(own), OUTRIGGER_EGRESS="http://127.0.0.1:9")
    path = f"{FOLDER}{os.pathsep}{own}"
    assert run(program, text, tmp_path, PYTHONPATH=path, OUTRIGGER_EGRESS="http://127.0.0.1:9") == without


@pytest.mark.parametrize("fault", ["1 / 0", "import nothing_of_the_kind"])
def test_a_sitecustomize_of_the_app_that_fails_is_told_of_as_before(fault, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(fault + "\n")
    said = []
    for path in (str(tmp_path), f"{FOLDER}{os.pathsep}{tmp_path}"):
        env = {"PYTHONPATH": path, "OUTRIGGER_EGRESS": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, "-c", "print(1)"], env=env, capture_output=True, text=True, timeout=60)
        said.append((done.stdout, done.stderr.partition("\n")[0]))
    assert said[0] == said[1]
    assert said[0][1].startswith("Error in sitecustomize")


def test_nothing_is_imported_before_the_app_does(tmp_path):
    text = "import sys; print(' '.join(sys.modules))"
    with_it, without = (
        set(run(sys.executable, text, tmp_path, **more).split())
        for more in ({"OUTRIGGER_EGRESS": "http://127.0.0.1:9"}, {"PYTHONPATH": ""})
    )
    new = {name.partition(".")[0] for name in with_it - without}
    assert new <= {"_outrigger", "sitecustomize", "contextvars", "_contextvars", "__future__"}


def test_the_token_goes_to_the_gateway_alone_and_follows_no_redirect(tmp_path):
    port = str(free_port())
    text = (APPS / "redirected.py").read_text()
    seen = json.loads(run(sys.executable, text, tmp_path, PORT=port, OUTRIGGER_EGRESS=f"http://127.0.0.1:{port}"))
    one = [["own", "a1"], ["own", "a1"], ["foreign", None], ["foreign", None]]
    assert len(seen) == 2 * 6 * len(one)
    assert seen[: len(seen) // 2] == one * 6
    assert {token for _, token in seen[len(seen) // 2 :]} == {None}  # the request is over


def test_a_websocket_to_the_gateway_carries_the_token_and_no_other_does(tmp_path):
    pytest.importorskip("websockets")
    text = """
import sys, io
from wsgiref.handlers import SimpleHandler
from websockets.client import ClientProtocol
from websockets.uri import parse_uri
def app(environ, start_response):
    for uri in ("ws://127.0.0.1:9/openai/v1/realtime", "wss://127.0.0.1:9/", "ws://127.0.0.1:10/", "ws://localhost:9/"):
        request = ClientProtocol(parse_uri(uri)).connect()
        print(request.headers.get("X-Outrigger-Request"))
    start_response("200 OK", [])
    return []
environ = {"HTTP_X_OUTRIGGER_REQUEST": "a1", "SERVER_PROTOCOL": "HTTP/1.1"}
SimpleHandler(io.BytesIO(), io.BytesIO(), sys.stderr, environ).run(app)
"""
    said = run(sys.executable, text, tmp_path, OUTRIGGER_EGRESS="http://127.0.0.1:9")
    assert said.split() == ["a1", "a1", "None", "None"]


async def test_a_version_that_is_not_known_is_left_alone_and_named(vendor, tmp_path):
    """httpcore as it was before 0.14, as far as a hook could tell."""
    package = tmp_path / "httpcore" / "_sync"
    package.mkdir(parents=True)
    (tmp_path / "httpcore" / "__init__.py").write_text("__version__ = '0.12.3'\n")
    (package / "__init__.py").write_text("")
    (package / "connection_pool.py").write_text("class SyncConnectionPool: pass\n")
    app = "import httpcore._sync.connection_pool, asking_flask\napp = asking_flask.app\n"
    (tmp_path / "main.py").write_text(app)
    command = f"{PY} -m gunicorn main:app --bind 127.0.0.1:$PORT"
    policy = IDENTITY + UPSTREAM.format(port=vendor.port)
    path = f"{tmp_path}{os.pathsep}{APPS}"
    async with gateway(tmp_path, command, policy=policy, environ={"PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}) as g:
        await g.ready(40)
        assert b" 200 " in await g.request("/urllib", headers=["X-User: ada"])
        said = (await eventually(lambda: g.events("app.attribution")))[-1]
        assert said["not_hooked"] == ["httpx 0.12.3"]
        assert said["level"] == "warning"
        assert (await eventually(lambda: g.events("call")))[0]["user"] == "ada"


async def test_a_call_that_goes_straight_to_an_upstream_is_counted_and_warned_of_once(vendor, tmp_path):
    policy = IDENTITY + UPSTREAM.format(port=vendor.port)
    app = "import asking, asking_flask\napp = asking_flask.app\n"
    app += f"asking.URL = 'http://127.0.0.1:{vendor.port}/v1/chat/completions'\n"
    (tmp_path / "main.py").write_text(app)
    command = f"{PY} -m gunicorn main:app --pythonpath {shlex.quote(str(APPS))} --bind 127.0.0.1:$PORT"
    async with gateway(tmp_path, command, policy=policy) as g:
        await g.ready(40)
        for way in ("urllib", "requests", "httpx"):
            assert b" 200 " in await g.request(f"/{way}", headers=["X-User: ada"])

        async def counted() -> bool:
            return b'outrigger_bypass_total{upstream="openai"} 3.0' in await g.request("/metrics", port=g.admin)

        async with asyncio.timeout(20):
            while not await counted():
                await asyncio.sleep(0.05)
        warned = await eventually(lambda: g.events("bypass"))
        assert [(event["upstream"], event["host"]) for event in warned] == [("openai", f"127.0.0.1:{vendor.port}")]
        assert "OPENAI_BASE_URL" in warned[0]["message"]
        assert all("X-Outrigger-Request" not in headers for _, _, headers, _ in vendor.requests)
        assert json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(("policy", "on"), [("", False), (IDENTITY, True)])
async def test_the_app_gets_a_folder_before_its_own_where_the_policy_has_a_use_for_it(policy, on, tmp_path):
    async with gateway(tmp_path, sys.executable, str(APPS / "plain.py"), policy=policy) as g:
        await g.ready()
        path = (await g.request("/env?PYTHONPATH")).partition(b"\r\n\r\n")[2].decode()
        assert path == (f"{FOLDER}{os.pathsep}{ROOT}" if on else str(ROOT))
        metered = (await g.request("/env?OUTRIGGER_METERED")).partition(b"\r\n\r\n")[2]
        assert metered == (b"api.openai.com:443" if on else b"(unset)")


async def test_a_taken_port_for_what_is_told_costs_a_warning_and_nothing_else(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        egress = free_port()
        taken.bind(("127.0.0.1", egress))
        async with gateway(tmp_path, sys.executable, str(APPS / "plain.py"), policy=IDENTITY, egress=egress) as g:
            await g.ready()
            said = await eventually(lambda: g.events("app.attribution"))
            assert [event["level"] for event in said] == ["warning"]
            assert (await g.request("/env?OUTRIGGER_METERED")).endswith(b"(unset)")


async def test_an_app_that_is_no_python_is_told_to_pass_the_header_on(tmp_path):
    node = tmp_path / "node"
    node.symlink_to(sys.executable)
    async with gateway(tmp_path, str(node), str(APPS / "plain.py"), policy=IDENTITY) as g:
        await g.ready()
        said = await eventually(lambda: g.events("app.attribution"))
        assert "passes on X-Outrigger-Request" in said[0]["message"]
        assert str(FOLDER).encode() not in await g.request("/env?PYTHONPATH")


async def test_a_wrapped_line_names_the_request_that_it_was_written_for(tmp_path):
    command = f"{PY} -m gunicorn talking:app --threads 8 --bind 127.0.0.1:$PORT"
    policy = IDENTITY + "log: {app_output: wrap}\n"
    async with gateway(tmp_path, command, policy=policy, environ=ON_PATH) as g:
        await g.ready(40)
        users = [f"user{number}" for number in range(10)]
        await asyncio.gather(*(g.request("/", headers=[f"X-User: {user}"]) for user in users))
        await eventually(lambda: g.output().count("ValueError: user") == len(users))
        await eventually(lambda: len(g.events("request")) == len(users))
        asked = {event["request_id"]: event["user"] for event in g.events("request")}
        said = g.events("app")
        assert "\\u001e" not in g.output()
        for event in said:
            who, colon, _ = event["message"].removeprefix("INFO ").removeprefix("ERROR ").partition(": ")
            if colon and who in ("nobody", *users):
                assert asked.get(event["request_id"], "nobody") == who, event
        known = [event for event in said if event["request_id"] in asked]
        assert sum(event["message"].count("\n") + 1 for event in known) >= 9 * len(users)
        tracebacks = [event for event in said if "Traceback" in event["message"]]
        assert len(tracebacks) == len(users)
        for event in tracebacks:
            who = asked[event["request_id"]]
            assert event["message"].startswith(f"ERROR {who}: failed\nTraceback")
            assert event["message"].endswith(f"ValueError: {who}: raised")
            assert event["level"] == "error"
        assert any("b'x\\n'" in event["message"] for event in said)


async def test_the_apps_output_passes_as_it_is_where_it_is_not_wrapped(tmp_path):
    command = f"{PY} -m gunicorn talking:app --bind 127.0.0.1:$PORT"
    async with gateway(tmp_path, command, policy=IDENTITY, environ=ON_PATH) as g:
        await g.ready(40)
        await g.request("/", headers=["X-User: ada"])
        wanted = {"ada: printed", "ada: in pieces", "INFO ada: logged", "ada: by a thread"}
        await eventually(lambda: wanted <= set(g.output().splitlines()))
