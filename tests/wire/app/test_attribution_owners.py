"""Unmodified apps, many users at once: each call of theirs is the user's whose request it was for."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections import Counter

import aiohttp
import pytest
from aiohttp import web
from egress_gateway import Vendor, completion
from gateway_process import APPS, ROOT, eventually, gateway

PY = shlex.quote(sys.executable)
USERS = [f"user{number}" for number in range(20)]
POLICY = """
identity: {{user: [{{header: X-User}}]}}
upstreams: {{openai: {{base_url: "http://127.0.0.1:{vendor}/v1"}}}}
"""


def echoing() -> Vendor:
    """Answers as the model that was asked for, late enough for the requests to get mixed up."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        model = vendor.bodies[-1]["model"]
        await asyncio.sleep(0.03)
        return web.json_response(completion(model=model))

    vendor = Vendor(answer)
    return vendor


async def crowd(port: int, ways: list[str]) -> None:
    """Every user on every way, all at once and over shared connections."""
    connector, timeout = aiohttp.TCPConnector(limit=100), aiohttp.ClientTimeout(total=40)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=timeout) as session:

        async def one(user: str, way: str) -> None:
            async with session.get(f"/{way}", headers={"X-User": user}) as answer:
                assert (await answer.text(), answer.status)[1] == 200

        await asyncio.gather(*(one(user, way) for way in ways for user in USERS))


async def owners(tmp_path, command: str, ways: list[str], calls: int):
    """(who it was, whom the log says it was) of every call, and the gateway's log."""
    vendor = echoing()
    await vendor.start()
    try:
        policy = POLICY.format(vendor=vendor.port)
        line, path = command.format(py=PY, apps=shlex.quote(str(APPS))), f"{ROOT}{os.pathsep}{APPS}"
        async with gateway(tmp_path, line, policy=policy, environ={"PYTHONPATH": path}) as g:
            await g.ready(40)
            await crowd(g.port, ways)
            await eventually(lambda: g.output().count('"event":"call"') >= calls)
            logged = g.events("call")
            assert len(vendor.requests) == len(logged) == calls
            assert not any("x-outrigger-request" in map(str.lower, headers) for _, _, headers, _ in vendor.requests)
            return Counter((call["model"].partition("~")[0], call["user"]) for call in logged), g
    finally:
        await vendor.stop()


def misattributed(found: Counter) -> dict:
    return {pair: count for pair, count in found.items() if pair[0] != pair[1]}


async def test_fastapi_calls_in_seven_ways_and_each_has_its_user(tmp_path):
    ways = ["async", "sync", "gather", "to_thread", "executor", "thread", "background", "stream", "openai", "timer"]
    each = 1 + 1 + 2 + 1 + 2 + 1 + 2 + 2 + 2
    command = "{py} -m uvicorn asking_fastapi:app --port $PORT --log-level warning"
    found, g = await owners(tmp_path, command, ways, (each + 2) * len(USERS))
    assert misattributed(found) == {}
    assert {found[user, user] for user in USERS} == {each}
    assert found["unattributed", "unattributed"] == 2 * len(USERS)
    said = g.events("app.attribution")[-1]
    assert {"uvicorn", "httpx2", "httpx", "aiohttp", "http.client"} <= set(said["hooked"])
    assert said["not_hooked"] == []


# Each way is one call of each user's; `stream` and `async` two.
SYNC = ["requests", "urllib", "httpx", "thread", "executor", "pool", "stream", "timer", "loop"]
FEW = ["executor", "thread", "stream", "timer"]
SERVERS = {
    "Flask, gunicorn threads": (
        "{py} -m gunicorn asking_flask:app --threads 8 --bind 127.0.0.1:$PORT",
        [*SYNC, "process"],
    ),
    "Flask, gunicorn": ("{py} -m gunicorn asking_flask:app --workers 2 --bind 127.0.0.1:$PORT", ["urllib", "stream"]),
    "Flask, its own server": ("{py} -m flask --app asking_flask run --port $PORT", ["urllib", "thread", "stream"]),
    "Flask, waitress": ("{py} -m waitress --listen 127.0.0.1:$PORT asking_flask:app", ["urllib", "stream"]),
    "Django, gunicorn": ("{py} -m gunicorn asking_django --threads 4 --bind 127.0.0.1:$PORT", ["requests", *FEW]),
    "Django, runserver": ("{py} {apps}/asking_django.py runserver --noreload 127.0.0.1:$PORT", FEW),
    "Django, hypercorn": (
        "{py} -m hypercorn asking_django:application --bind 127.0.0.1:$PORT",
        ["async", "urllib", "thread"],
    ),
    "FastAPI, hypercorn": ("{py} -m hypercorn asking_fastapi:app --bind 127.0.0.1:$PORT", ["async", "sync", "thread"]),
    "FastAPI, gunicorn": (
        "{py} -m gunicorn asking_fastapi:app -k asgi --workers 2 --bind 127.0.0.1:$PORT",
        ["async", "sync", "stream"],
    ),
    "aiohttp": ("{py} {apps}/asking_aiohttp.py $PORT", ["aiohttp", "thread"]),
    "greenlets, gunicorn": (
        "{py} -m gunicorn asking_greenlets:app -k gevent --bind 127.0.0.1:$PORT",
        [*SYNC, "spawned"],
    ),
    "greenlets, gevent": ("{py} {apps}/asking_greenlets.py gevent $PORT", ["stream", "spawned"]),
    "greenlets, eventlet": ("{py} {apps}/asking_greenlets.py eventlet $PORT", [*FEW, "pool", "spawned"]),
}
TWICE = ("stream", "spawned")
NOBODYS = ("timer", "loop", "process")


@pytest.mark.parametrize("name", SERVERS)
async def test_every_call_has_its_user_under(name, tmp_path):
    command, ways = SERVERS[name]
    twice = (*TWICE, "async") if "Django" in name else TWICE
    each = sum(2 if way in twice else 1 for way in ways if way not in NOBODYS)
    nobodys = sum(way in NOBODYS for way in ways)
    found, _ = await owners(tmp_path, command, ways, (each + nobodys) * len(USERS))
    assert misattributed(found) == {}
    assert {found[user, user] for user in USERS} == {each}
    assert found["unattributed", "unattributed"] == nobodys * len(USERS)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_an_app_in_another_language_passes_one_header_on(tmp_path):
    found, g = await owners(tmp_path, "node {apps}/asking_node.js", ["ask", "none"], 2 * len(USERS))
    assert misattributed(found) == {}
    assert found["unattributed", "unattributed"] == len(USERS)
    assert "passes on X-Outrigger-Request" in g.events("app.attribution")[0]["message"]
