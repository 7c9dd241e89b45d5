"""The apps that PyPI and npm carry, and how each is driven beyond what is asked of all."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import drive
import visits
from seen import Seen
from started import Started
from vendor import ANSWER

HERE = Path(__file__).parent / "apps"
Check = Callable[[Started], Awaitable[Seen]]
Ask = Callable[[aiohttp.ClientSession, Started, int], Awaitable[bool]]
Busy = Callable[[aiohttp.ClientSession, Started], Awaitable[bool]]


@dataclass
class RealApp:
    name: str
    folder: Path
    paths: list[str] = field(default_factory=lambda: ["/"])
    health: str = "/"  # answered below 500 once it is up
    load: list[str] = field(default_factory=lambda: ["/"])
    start: str = "/"  # where a browser begins
    act: visits.Act = visits.plain_page
    checks: list[Check] = field(default_factory=list)  # streams, sockets, uploads, long polls
    poll: str = ""  # a path that takes longer than a minute to answer
    ask: Ask | None = None  # a call of a model by way of the app; true: the answer was whole
    busy: Busy | None = None  # a request that is under way for two seconds


def ours(socket: bool = True) -> list[Check]:
    """The checks of our own small apps, which have the same paths."""
    checks: list[Check] = [
        lambda app: drive.echo(app, "/api/echo", {"said": "é"}),
        lambda app: drive.upload(app, "/api/upload", 1),
        lambda app: drive.upload(app, "/api/upload", 12),
        lambda app: drive.events(app, "/api/events"),
        lambda app: drive.events(app, "/api/tell", "POST", {"text": "a story"}),
    ]
    if socket:
        checks.append(lambda app: drive.socket(app, "/ws"))
    return checks


async def ask_ours(session: aiohttp.ClientSession, app: Started, number: int) -> bool:
    """Plain and streamed in turn."""
    path = "/api/tell" if number % 3 == 2 else "/api/ask"
    status, _, body = await drive.fetch(session, app, path, "POST", json={"text": f"number {number}"})
    return status == 200 and ANSWER.encode() in body


async def busy_ours(session: aiohttp.ClientSession, app: Started) -> bool:
    status, _, body = await drive.fetch(session, app, "/api/wait?seconds=2")
    return status == 200 and b"waited" in body


async def get_slow(session: aiohttp.ClientSession, app: Started, path: str) -> bool:
    status, _, body = await drive.fetch(session, app, path)
    return status == 200 and bool(body)


def getting(path: str) -> Busy:
    return functools.partial(get_slow, path=path)


async def gradio_call(session: aiohttp.ClientSession, app: Started, name: str, *data: object) -> str:
    """A call by Gradio's own HTTP interface: POST, then the events of its queue."""
    url = f"{app.url}/gradio_api/call/{name}"
    try:
        async with session.post(url, json={"data": list(data)}) as begun:
            event = json.loads(await begun.read())["event_id"]
        async with session.get(f"{url}/{event}") as answer:
            return (await answer.read()).decode()
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, OSError) as error:
        return type(error).__name__


async def gradio_ask(session: aiohttp.ClientSession, app: Started, number: int) -> bool:
    return ANSWER in await gradio_call(session, app, "ask", f"number {number}")


async def gradio_busy(session: aiohttp.ClientSession, app: Started) -> bool:
    return "waited" in await gradio_call(session, app, "wait", "2")


async def gradio_events(app: Started) -> Seen:
    async with drive.visitor() as session:
        said = await gradio_call(session, app, "greet", "Ada")
    return Seen({"greet": said}, int("Hello, Ada" in said), 1)


LONG = "/api/wait?seconds=65"
LITELLM = {"Authorization": "Bearer sk-master"}


def question(text: str, stream: bool = False) -> dict:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "stream": stream}


async def litellm_ask(session: aiohttp.ClientSession, app: Started, number: int) -> bool:
    status, _, body = await drive.fetch(
        session,
        app,
        "/v1/chat/completions",
        "POST",
        json=question(f"number {number}", number % 3 == 2),
        headers=LITELLM,
    )
    if number % 3 == 2:
        return status == 200 and b"[DONE]" in body and b"error" not in body
    return status == 200 and ANSWER.encode() in body


async def litellm_busy(session: aiohttp.ClientSession, app: Started) -> bool:
    status, _, body = await drive.fetch(
        session, app, "/v1/chat/completions", "POST", json=question("slowly"), headers=LITELLM
    )
    return status == 200 and ANSWER.encode() in body


async def kernels(app: Started) -> Seen:
    """A notebook's kernel by Jupyter's REST interface, and what it says over its WebSocket."""
    facts: dict = {}
    async with drive.visitor(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        await drive.fetch(session, app, "/lab")
        token = {one.key: one.value for one in session.cookie_jar}.get("_xsrf", "")
        session.headers["X-XSRFToken"] = token
        status, _, body = await drive.fetch(session, app, "/api/kernels", "POST", json={})
        facts["kernel"] = status
        if status != 201:
            return Seen(facts, 0, 1)
        kernel = json.loads(body)["id"]
        async with session.ws_connect(f"{app.url}/api/kernels/{kernel}/channels") as ws:
            header = {"msg_id": "1", "username": "", "session": "1", "msg_type": "execute_request", "version": "5.3"}
            content = {"code": "print('x' * 100000)", "silent": False, "store_history": False}
            await ws.send_json(
                {
                    "header": header,
                    "parent_header": {},
                    "metadata": {},
                    "content": content,
                    "channel": "shell",
                    "buffers": [],
                }
            )
            async with asyncio.timeout(40):
                async for message in ws:
                    said = json.loads(message.data)
                    if said["msg_type"] == "stream":
                        facts["said"] = facts.get("said", 0) + said["content"]["text"].count("x")
                    if said["msg_type"] == "execute_reply":
                        facts["status"] = said["content"]["status"]
                    if facts.get("said") == 100_000 and "status" in facts:
                        break
        facts["ended"] = (await drive.fetch(session, app, f"/api/kernels/{kernel}", "DELETE"))[0]
    return Seen(facts, 1, 1)


SLOW_SQL = "/data.json?sql=with+recursive+c(x)+as+(select+1+union+all+select+x%2B1+from+c+limit+6000000)+select+count(*)+from+c"

APPS = [
    RealApp(
        "fastapi", HERE / "fastapi", ["/", "/api/items", "/docs", "/openapi.json"], load=["/", "/api/items", "/page.js"],
        act=visits.our_page, checks=ours(), poll=LONG, ask=ask_ours, busy=busy_ours,
    ),
    RealApp(
        "flask", HERE / "flask", ["/", "/api/items"], load=["/", "/api/items", "/static/page.js"],
        act=visits.our_page, checks=ours(), poll=LONG, ask=ask_ours, busy=busy_ours,
    ),
    RealApp(
        "datasette", HERE / "datasette",
        ["/", "/data", "/data/items", "/data/items.json?_shape=array", "/data/items.csv?_size=100", "/data/items/7", "/-/versions.json"],
        load=["/", "/data/items", "/data/items.json", "/-/static/app.css"], act=visits.datasette,
        checks=[lambda app: drive.events(app, "/data/items.csv?_stream=on")], busy=getting(SLOW_SQL),
    ),
    RealApp(
        "streamlit", HERE / "streamlit", ["/", "/_stcore/health", "/_stcore/host-config"], health="/_stcore/health",
        load=["/", "/_stcore/health"], act=visits.streamlit,
    ),
    RealApp(
        "gradio", HERE / "gradio", ["/", "/config", "/gradio_api/info"], load=["/", "/config"], act=visits.gradio,
        checks=[gradio_events, lambda app: drive.upload(app, "/gradio_api/upload", 12, "files")],
        ask=gradio_ask, busy=gradio_busy,
    ),
    RealApp(
        "django_gunicorn", HERE / "django_gunicorn", ["/", "/admin/login/", "/api/items"], load=["/", "/admin/login/", "/api/items"],
        start="/admin/", act=visits.django, checks=ours(socket=False), poll=LONG, busy=busy_ours,
    ),
    RealApp(
        "django_uwsgi", HERE / "django_uwsgi", ["/", "/admin/login/", "/api/items"], load=["/", "/admin/login/", "/api/items"],
        start="/admin/", act=visits.django, checks=ours(socket=False), poll=LONG, busy=busy_ours,
    ),
    RealApp(
        "express", HERE / "express", ["/", "/api/items"], load=["/", "/api/items", "/page.js"],
        act=visits.our_page, checks=ours(), poll=LONG, ask=ask_ours, busy=busy_ours,
    ),
    RealApp(
        "next", HERE / "next", ["/", "/items", "/api/items"], load=["/", "/items", "/api/items", "/page.js"],
        act=visits.next_pages, checks=ours(socket=False), poll=LONG, ask=ask_ours, busy=busy_ours,
    ),
    RealApp(
        "chainlit", HERE / "chainlit", ["/", "/project/translations?language=en-US"], load=["/"], act=visits.chainlit,
    ),
    RealApp(
        "jupyterlab", HERE / "jupyterlab", ["/lab", "/api", "/api/contents", "/tree"], health="/api",
        load=["/api", "/api/contents", "/lab"], start="/lab", act=visits.jupyterlab, checks=[kernels],
    ),
    RealApp("marimo", HERE / "marimo", ["/", "/health"], health="/health", load=["/", "/health"], act=visits.marimo),
    RealApp(
        "litellm", HERE / "litellm", ["/", "/health/liveliness"], health="/health/liveliness",
        load=["/health/liveliness"], checks=[
            lambda app: drive.events(app, "/v1/chat/completions", "POST", question("a story", stream=True), LITELLM)
        ], ask=litellm_ask, busy=litellm_busy,
    ),
]  # fmt: skip
