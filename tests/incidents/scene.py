"""A whole deployment in small, healthy at first: the demo behind a gateway, a vendor, a database, Slack, some users."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
from aiohttp import web
from egress_gateway import Vendor, completion, says
from free_ports import free_port
from gateway_process import GatewayProcess
from postgres_process import Server
from valkey_process import Valkey

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TOKEN = "incident-token"
USERS = ("ada", "ben", "cyd")


class Slack:
    """An incoming webhook that remembers of each alert when it came, its title, and what it says."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, str, str]] = []
        self._vendor = Vendor(self._take)

    async def __aenter__(self) -> Slack:
        await self._vendor.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._vendor.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._vendor.port}/services/T0/B0/secret"

    async def _take(self, _: web.BaseRequest) -> web.StreamResponse:
        for one in self._vendor.bodies[-1]["attachments"]:
            title = one["blocks"][0]["text"]["text"]
            self.messages.append((time.monotonic(), title, html.unescape(one["fallback"])))
        return web.Response(text="ok")


class Scene:
    """What an incident's script holds in its hands. Times are seconds since the fault."""

    def __init__(self, running: GatewayProcess, vendor: Vendor, slack: Slack, database: Server, folder: Path) -> None:
        self.running, self.vendor, self.slack, self.database, self.folder = running, vendor, slack, database, folder
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=150))
        self.url = f"http://127.0.0.1:{running.port}"
        self.policy = folder / "outrigger.yaml"
        self.broken = folder / "broken"
        self.store: Valkey  # what instances would share, where the incident has one
        self.seen: Counter[str] = Counter()
        self.slowest = 0.0
        self.began = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    # ── users ──────────────────────────────────────────────────────────────────────────────

    async def ask(self, user: str = "ada", path: str = "ask", body: object = None) -> str:
        """One request as a user sends it; how it ended, in a word or two."""
        began = time.monotonic()
        target = path if path.startswith("/") else f"/api/user/{user}/{path}"
        try:
            if target == "/api/notes":
                answer = await self.session.get(self.url + target)
            else:
                answer = await self.session.post(
                    self.url + target, json=body or {"question": f"What is an outrigger? {user} asks."}
                )
            async with answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)
        if answer.content_type == "application/problem+json":
            return f"{answer.status} {json.loads(text)['type'].rpartition(':')[2]}"
        return "200 fallback" if "resting" in text else str(answer.status)

    def visit(self, path: str = "ask", *, every: float = 0.5, users: tuple[str, ...] = USERS) -> None:
        """Users who come again and again until the scene ends, each not waiting for the last answer."""

        async def one() -> None:
            pending: set[asyncio.Task[None]] = set()
            turn = 0
            try:
                while True:
                    pending.add(asyncio.create_task(self._counted(users[turn % len(users)], path)))
                    pending = {task for task in pending if not task.done()}
                    turn += 1
                    await asyncio.sleep(every)
            finally:
                for task in pending:
                    task.cancel()

        self._tasks.append(asyncio.create_task(one()))

    def begin(self, work: Awaitable[object]) -> None:
        async def quietly() -> None:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                await work

        self._tasks.append(asyncio.create_task(quietly()))

    async def _counted(self, user: str, path: str) -> None:
        self.seen[await self.ask(user, path)] += 1

    async def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    # ── the operator ───────────────────────────────────────────────────────────────────────

    async def get(self, path: str) -> dict:
        async with self.session.get(f"http://127.0.0.1:{self.running.admin}/{path}", headers=self._token) as answer:
            return await answer.json(content_type=None)

    async def ctl(self, *words: str) -> str:
        url = f"http://127.0.0.1:{self.running.admin}/ctl/{'/'.join(words)}"
        async with self.session.post(url, headers=self._token) as answer:
            body = await answer.json(content_type=None)
            return str(body.get("done") or body.get("detail"))

    _token: Mapping[str, str] = {"Authorization": f"Bearer {TOKEN}"}

    async def health(self) -> tuple[str, dict[str, str]]:
        """The whole, and the parts that are not well: their reasons."""
        body = await self.get("healthz")
        parts = {part: of for part, of in body.items() if isinstance(of, dict) and of["state"] in ("degraded", "down")}
        return body["status"], {part: of["reason"] for part, of in parts.items()}

    async def until(self, condition: Callable[[], Awaitable[object]], patience: float, what: str) -> object:
        deadline = time.monotonic() + patience
        while True:
            with suppress(aiohttp.ClientError, OSError):
                if found := await condition():
                    return found
            assert time.monotonic() < deadline, f"{what}: not within {patience:g} s\n{self.running.output()[-3000:]}"
            await asyncio.sleep(0.1)

    async def wait_for_message(self, title: str, *, since: float, patience: float) -> tuple[float, str]:
        """The first alert after `since` whose title is like this: how many seconds later, and what it says."""

        async def found() -> tuple[float, str] | None:
            alerts = [(at - since, text) for at, head, text in self.slack.messages if re.search(title, head)]
            return next((one for one in alerts if one[0] >= 0), None)

        return await self.until(found, patience, f"an alert like {title!r}")  # type: ignore[return-value]

    def limit_files(self, size: int | None) -> None:
        """The gateway's disk is full at files of this size; None: there is room again."""
        hard = resource.RLIM_INFINITY
        resource.prlimit(self.running.pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@asynccontextmanager
async def scene(
    folder: Path,
    *,
    edit: Callable[[str], str] = lambda text: text,
    with_database: bool = True,
    with_store: bool = False,
) -> AsyncIterator[Scene]:
    """Under the shipped policy, but for its addresses, and edited."""
    folder.mkdir(parents=True, exist_ok=True)
    vendor = Vendor(says(completion("An outrigger is a float beside a boat.")))
    await vendor.start()
    async with Slack() as slack:
        database = Server(folder)
        store = Valkey(folder, "maxmemory-policy noeviction")
        if with_store:
            await asyncio.to_thread(store.start)
            shared = f"\nstore: {{url: '{store.url}'}}\n"
            alone = edit
            edit = lambda text: alone(text) + shared  # noqa: E731
        if with_database:
            await asyncio.to_thread(database.start)
        try:
            running, pump = await _gateway(folder, vendor, slack, database.url if with_database else "", edit)
            here = Scene(running, vendor, slack, database, folder)
            here.store = store
            try:
                await running.ready(180)
                for user in USERS:
                    assert await here.ask(user) == "200"
                yield here
            finally:
                await here.leave()
                await here.session.close()
                if running.process.returncode is None:
                    running.process.kill()
                await running.process.wait()
                await pump
        finally:
            await asyncio.to_thread(store.kill)
            await asyncio.to_thread(database.remove)
            await vendor.stop()


async def _gateway(
    folder: Path, vendor: Vendor, slack: Slack, database: str, edit: Callable[[str], str]
) -> tuple[GatewayProcess, asyncio.Task[None]]:
    port, admin, egress, pool = (free_port() for _ in range(4))
    text = (ROOT / "config" / "policy.yaml").read_text()
    text = text.replace(
        "  public: 0.0.0.0:${PORT:-10000}\n",
        f"  public: 127.0.0.1:{port}\n  admin: 127.0.0.1:{admin}\n  egress: 127.0.0.1:{egress}\n",
    )
    text = text.replace("  url: ${DATABASE_URL:-} ", f"  listen: 127.0.0.1:{pool}\n  url: ${{DATABASE_URL:-}} ")
    text = text.replace("rate_limit: {free: [20/h, 5/min]", "rate_limit: {free: [2000/h, 500/min]")
    (folder / "outrigger.yaml").write_text(edit(text))
    out = folder / "app.log"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        "DATABASE_URL": database,
        "OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/v1",
        "OPENAI_API_KEY": "sk-incident",
        "OUTRIGGER_ADMIN_TOKEN": TOKEN,
        "SLACK_WEBHOOK_URL": slack.url,
        "BROKEN": str(folder / "broken"),
    }
    app = [
        sys.executable,
        "-m",
        "uvicorn",
        "breakable:app",
        "--app-dir",
        str(HERE),
        "--no-access-log",
        "--port",
        str(port),
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "run", "--policy", str(folder / "outrigger.yaml"), "--", *app,
        cwd=folder, env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out.touch()
    return GatewayProcess(process, port, admin, out, egress), asyncio.create_task(_kept(process, out))


async def _kept(process: asyncio.subprocess.Process, out: Path) -> None:
    """Its output goes through us: a full disk of the gateway's is none of the log's."""
    assert process.stdout is not None
    with open(out, "ab", buffering=0) as file:
        while data := await process.stdout.read(65536):
            file.write(data)
