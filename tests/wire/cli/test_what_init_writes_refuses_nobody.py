"""The policy that `init` writes, as it is written: the app behind it serves what it serves alone."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
import sys

from aiohttp import ClientSession
from egress_gateway import Vendor, completion, says
from gateway_process import eventually, gateway

from proxy.cli.init import run_init

APP = '''
"""An app as many are written: a slow call to a model, uploads, a long poll, pages of people."""
import asyncio, os
from aiohttp import ClientSession, web
from openai import AsyncOpenAI
from fastapi import FastAPI

app = FastAPI()


@app.post("/api/generate")
async def generate():
    return await AsyncOpenAI().chat.completions.create(model="gpt-4o-mini", messages=[])


@app.get("/user/{name}")
async def page(name):
    return name


@app.get("/stream")
async def stream():
    return StreamingResponse()
'''
# What is run in its place; what it does is the same, and it needs no framework.
SERVED = """
import asyncio, os
from aiohttp import ClientSession, web

waiting = 0
everybody = asyncio.Event()


async def generate(request):
    global waiting
    waiting += 1
    if waiting >= 60:
        everybody.set()
    await everybody.wait()
    async with ClientSession() as session:
        url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
        body = {"model": "gpt-4o-mini", "messages": []}
        async with session.post(url, json=body) as answer:
            return web.json_response(await answer.json(), status=answer.status)


async def take(request):
    return web.Response(text=str(len(await request.read())))


async def page(request):
    return web.Response(text=request.match_info["name"])


app = web.Application(client_max_size=1 << 26)
app.add_routes([web.post("/api/generate", generate), web.post("/take", take), web.get("/user/{name}", page)])
web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), print=None)
"""


async def test_neither_many_at_once_nor_many_a_minute_nor_large_ones_are_refused(tmp_path):
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "main.py").write_text(APP)
    (folder / "requirements.txt").write_text("fastapi\nuvicorn\nopenai\n")
    assert run_init([str(folder)], io.StringIO(), io.StringIO()) == 0
    written = (folder / "outrigger.yaml").read_text()
    (tmp_path / "served.py").write_text(SERVED)
    vendor = Vendor(says(completion()))
    await vendor.start()
    text = written.partition("version: 1\n")[2]
    text = re.sub(r"listen:\n", "", text).replace(
        "  openai:  ", f"  openai:\n    base_url: http://127.0.0.1:{vendor.port}/v1\n   "
    )
    drain = next(line for line in text.splitlines() if line.startswith("  drain:"))
    text = f"{drain}\n{text.replace(drain, '')}"
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'served.py'))}"
    try:
        async with gateway(tmp_path, command, policy=text, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            at = f"http://127.0.0.1:{g.port}"
            async with ClientSession() as session:

                async def status(method: str, path: str, **more: object) -> int:
                    async with session.request(method, at + path, **more) as answer:
                        await answer.read()
                        return answer.status

                # 60 at once, all of one address: more than any limit that the policy names
                assert await asyncio.gather(*(status("POST", "/api/generate") for _ in range(60))) == [200] * 60
                assert await status("POST", "/take", data=io.BytesIO(bytes(12 << 20))) == 200
                for _ in range(13):
                    assert set(await asyncio.gather(*(status("GET", "/user/ada") for _ in range(50)))) == {200}
                async with session.get(f"http://127.0.0.1:{g.admin}/metrics") as answer:
                    metrics = await answer.text()
            assert shadowed(metrics, "generate", "rate-limited") >= 50
            assert shadowed(metrics, "default", "rate-limited") >= 50
            assert shadowed(metrics, "default", "body-too-large") == 1
            calls = await eventually(lambda: g.events("call"))
            assert {call["user"] for call in calls} == {"ip:127.0.0.1"}, json.dumps(calls[:1])
            assert await g.stop() == 0
    finally:
        await vendor.stop()


def shadowed(metrics: str, route: str, name: str) -> int:
    found = re.search(rf'outrigger_shadow_total{{name="{name}",route="{route}"}} (\d+)', metrics) or re.search(
        rf'outrigger_shadow_total{{route="{route}",name="{name}"}} (\d+)', metrics
    )
    return int(found[1]) if found else 0
