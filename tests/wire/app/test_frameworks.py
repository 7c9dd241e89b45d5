"""Apps as people have them, each behind the gateway by its start command alone."""

import json
import shlex
import shutil
import signal
import sys

import httpx
import pytest
from free_ports import free_port
from gateway_process import APPS, eventually, gateway, processes_of

PY = shlex.quote(sys.executable)
HERE = shlex.quote(str(APPS))
# The command as it arrives: on Render a shell has put the public port in already.
COMMANDS = {
    "FastAPI, uvicorn": f"{PY} -m uvicorn fastapi_app:app --app-dir {{apps}} --port {{port}}",
    "FastAPI, a shell line": f"{PY} -m uvicorn fastapi_app:app --app-dir {{apps}} --port $PORT",
    "FastAPI, two uvicorn workers": f"{PY} -m uvicorn fastapi_app:app --app-dir {{apps}} --workers 2 --port={{port}}",
    "Flask, gunicorn": f"{PY} -m gunicorn flask_app:app --chdir {{apps}} --workers 2",
    "Flask, gunicorn threads": f"{PY} -m gunicorn flask_app:app --chdir {{apps}} --threads 4 -b 0.0.0.0:{{port}}",
    "Django, gunicorn": f"{PY} -m gunicorn django_app:application --chdir {{apps}}",
    "Django, runserver": f"{PY} {{apps}}/django_app.py runserver --noreload 0.0.0.0:{{port}}",
    "Node": "node {apps}/node_app.js",
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_an_app_serves_through_it_with_only_the_start_command_changed(name, tmp_path):
    if name == "Node" and shutil.which("node") is None:
        pytest.skip("node is not installed")
    port = free_port()
    line = COMMANDS[name].format(apps=HERE, port=port)
    words = [line] if "shell" in name else shlex.split(line)
    environ = {"GUNICORN_CMD_ARGS": f"--access-logfile - --bind=0.0.0.0:{port}"}
    async with gateway(tmp_path, *words, port=port, environ=environ) as g:
        await g.ready(40)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            answer = await client.get("/")
            assert answer.status_code == 200
            assert answer.text == f"hello from {name.split(',')[0]}"
            assert answer.headers["via"] == "1.1 outrigger"
            answer = await client.post("/json", json={"a": [1, "ü"]}, headers={"X-Forwarded-Proto": "https"})
            assert answer.json()["got"] == {"a": [1, "ü"]}
            assert answer.json()["host"] == f"127.0.0.1:{port}"
            assert answer.json()["scheme"] == "https"
            answer = await client.get("/big", params={"size": 8 * 2**20})
            assert answer.content == b"x" * 8 * 2**20
            answers = [await client.get("/") for _ in range(20)]
            assert {answer.status_code for answer in answers} == {200}
        group = g.app_pid()
        assert await g.stop() == 0
        await eventually(lambda: not processes_of(group))


async def test_an_app_that_redirects_to_https_does_not_loop_behind_a_private_proxy(tmp_path):
    words = shlex.split(f"{PY} -m gunicorn django_app:application --chdir {HERE}")
    async with gateway(tmp_path, *words, environ={"SSL_REDIRECT": "1"}) as g:
        await g.ready(40)
        answer = await g.request("/", headers=["X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7"])
        assert answer.startswith(b"HTTP/1.1 200 ")
        answer = await g.request("/")
        assert answer.startswith(b"HTTP/1.1 301 ")


async def test_a_websocket_keeps_its_subprotocol_compression_and_close_code(tmp_path):
    websockets = pytest.importorskip("websockets")
    line = f"exec {PY} -m uvicorn fastapi_app:app --app-dir {HERE} --port $PORT"
    async with gateway(tmp_path, "sh", "-c", line) as g:
        await g.ready(40)
        async with websockets.connect(f"ws://127.0.0.1:{g.port}/ws", subprotocols=["chat"]) as socket:
            assert socket.subprotocol == "chat"
            await socket.send("hello")
            assert await socket.recv() == "you said hello"
            with pytest.raises(websockets.ConnectionClosedError):
                await socket.recv()
            assert socket.close_code == 4001
            assert socket.close_reason == "done"


async def test_wrapped_output_is_json_lines(tmp_path):
    words = shlex.split(f"{PY} -m gunicorn flask_app:app --chdir {HERE}")
    policy = "log: {app_output: wrap}\n"
    port = free_port()
    environ = {"GUNICORN_CMD_ARGS": f"--bind 0.0.0.0:{port}"}
    async with gateway(tmp_path, *words, policy=policy, environ=environ, port=port) as g:
        await g.ready(40)
        g.signal(signal.SIGTERM)
        assert await g.ended() == 0
        lines = [json.loads(line) for line in g.output().splitlines()]
        assert any(line["event"] == "app" and "Listening at" in line["message"] for line in lines)
