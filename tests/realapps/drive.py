"""What is asked of an app, the same both ways: pages, answers in pieces, sockets, uploads, fifty users, faults, kills."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import aiohttp
from seen import Seen, percentile
from started import BEHIND, DIRECT, Started

USERS, BURST, ROUNDS, THINKING = 50, 4.0, 3, 2.0  # THINKING: seconds between a user's requests, on the average
OURS = re.compile(
    r"^(date|via|x-request-id|ratelimit.*|x-ratelimit.*|x-cost.*|keep-alive|connection|transfer-encoding)$"
)
PATIENCE = aiohttp.ClientTimeout(60)
AGENT = {"User-Agent": "Mozilla/5.0 (a test)", "Accept-Encoding": "gzip"}
MOST = 14  # files of a page


@asynccontextmanager
async def visitor(number: int = 1, **options):
    """A session of one user, whose address a platform's edge names."""
    headers = {**AGENT, "X-Forwarded-For": f"203.0.113.{number}"}
    connector = aiohttp.TCPConnector(limit=200)
    async with aiohttp.ClientSession(
        headers=headers, timeout=PATIENCE, connector=connector, auto_decompress=False, **options
    ) as session:
        yield session


async def fetch(session: aiohttp.ClientSession, app: Started, path: str, method: str = "GET", **options) -> tuple:
    """Status, headers that an app chose, and body; 0 and the error's name where nothing came."""
    try:
        async with session.request(method, app.url + path, allow_redirects=False, **options) as answer:
            body = await answer.read()
            headers = {name.lower(): value for name, value in answer.headers.items() if not OURS.match(name.lower())}
            if answer.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
                headers.pop("content-length", None)
            return answer.status, headers, body
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return 0, {}, type(error).__name__.encode()


def plain(body: bytes, port: int) -> bytes:
    """Without what differs from one start to the next: ports, tokens, times."""
    body = re.sub(rb"home-(direct|behind)", b"HOME", body.replace(str(port).encode(), b"PORT"))
    body = re.sub(rb"\d+(\.\d+)", b"NUMBER", body)  # before tokens: a time may have sixteen digits
    return re.sub(rb"[A-Za-z0-9_-]*[0-9][A-Za-z0-9_-]{15,}", b"TOKEN", body)


class Body:
    """Bytes to compare with those of another start: as they are where they stay so, else without what differs."""

    def __init__(self, body: bytes, steady: bool, port: int) -> None:
        self.steady, self.exact = steady, body
        self.plain = sorted(re.findall(rb"\w+", plain(body, port)))  # sets come in another order with each start

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Body):
            return NotImplemented
        if self.steady and other.steady and self.exact == other.exact:
            return True
        return self.plain == other.plain

    def __str__(self) -> str:
        return f"{len(self.exact)} bytes, {hashlib.sha256(b' '.join(self.plain)).hexdigest()[:8]}"


async def pages(app: Started, paths: list[str]) -> Seen:
    """Each path and the files that its page names: status, headers and bytes; HEAD, a range, a conditional, a 404."""
    seen = Seen()
    async with visitor() as session:
        wanted = list(paths)
        for path in wanted:
            status, headers, body = await fetch(session, app, path)
            again = (await fetch(session, app, path))[2]
            seen.facts[f"GET {path}"] = status
            for name, value in headers.items():
                if name == "content-length":
                    value = "right" if int(value) == len(body) else value
                if name not in ("etag", "last-modified", "expires"):
                    value = value.partition("=")[0] if name == "set-cookie" else value
                    seen.facts[f"{name} of {path}"] = plain(value.encode(), app.port).decode()
            seen.facts[f"bytes of {path}"] = Body(body, body == again, app.port)
            seen.asked += 1
            seen.good += 0 < status < 400
            if path in paths and "html" in headers.get("content-type", ""):
                wanted += [one for one in _named(body, app.url + path) if one not in wanted][: MOST - len(wanted)]
        first = wanted[-1]
        head = await fetch(session, app, first, "HEAD")
        seen.facts[f"HEAD {first}"] = head[0], head[2]
        part = await fetch(session, app, first, headers={"Range": "bytes=2-9"})
        seen.facts[f"range of {first}"] = part[0], part[1].get("content-range"), len(part[2])
        missing = await fetch(session, app, "/there/is/no/such/page")
        seen.facts["a page that is not there"] = missing[0]
        odd = await fetch(session, app, f"{paths[0]}?a=%2F..%2f&b=%C3%A9+x;y")
        seen.facts["an odd query"] = odd[0]
        options = await fetch(session, app, paths[0], "OPTIONS")
        seen.facts["OPTIONS"] = options[0], sorted(options[1].get("allow", "").split(", "))
    return seen


def _named(body: bytes, base: str) -> list[str]:
    found = re.findall(rb"""(?:src|href)=["']([^"'#]+)""", body)
    urls = [urlsplit(urljoin(base, one.decode(errors="replace").replace("&amp;", "&"))) for one in found]
    host = urlsplit(base).netloc
    paths = [one.path + (f"?{one.query}" if one.query else "") for one in urls if one.netloc == host]
    return [one for one in dict.fromkeys(paths) if re.search(r"\.(js|css|png|svg|ico|woff2?|json|mjs)(\?|$)", one)]


async def echo(app: Started, path: str, body: dict) -> Seen:
    async with visitor() as session:
        status, _, said = await fetch(session, app, path, "POST", json=body)
    return Seen({"echo": (status, hashlib.sha256(plain(said, app.port)).hexdigest()[:12])}, int(status == 200), 1)


async def upload(app: Started, path: str, mebibytes: int, field: str = "file") -> Seen:
    """A file as a form sends it; the app says its digest."""
    data = random.Random(mebibytes).randbytes(mebibytes << 20)
    form = aiohttp.FormData()
    form.add_field(field, data, filename="sea.bin", content_type="application/octet-stream")
    begun = time.monotonic()
    async with visitor() as session:
        status, _, said = await fetch(session, app, path, "POST", data=form)
    right = status in (200, 201) and (hashlib.sha256(data).hexdigest().encode() in said or b"sha" not in said)
    seen = Seen({f"upload of {mebibytes} MiB": status}, int(right), 1)
    seen.times = [(time.monotonic() - begun) * 1000]
    return seen


async def events(
    app: Started, path: str, method: str = "GET", body: dict | None = None, headers: dict | None = None
) -> Seen:
    """An event stream: as many events, and none of them held back."""
    times, whole = [], b""
    try:
        async with visitor() as session:
            async with session.request(method, app.url + path, json=body, headers=headers) as answer:
                async for piece in answer.content.iter_any():
                    times.append(time.monotonic())
                    whole += piece
                status = answer.status
                if answer.headers.get("Content-Encoding") == "gzip":  # its pieces are as it was read
                    whole = gzip.decompress(whole)
    except (aiohttp.ClientError, TimeoutError, OSError, EOFError) as error:
        return Seen({f"events of {path}": type(error).__name__}, 0, 1)
    spread = times[-1] - times[0] if times else 0.0
    facts = {
        f"events of {path}": (status, whole.count(b"data:"), hashlib.sha256(plain(whole, app.port)).hexdigest()[:12])
    }
    return Seen(facts, int(status == 200 and spread > 0.1), 1)


async def socket(app: Started, path: str) -> Seen:
    """A WebSocket: small and large messages there and back, its close. Some servers race their own closing connection,
    alone too: three tries."""
    facts: dict = {}
    for _ in range(3):
        try:
            async with visitor() as session, session.ws_connect(app.url + path, max_msg_size=0) as ws:
                for size in (5, 200_000):
                    await ws.send_str("a" * size)
                    said = await ws.receive(timeout=10)
                    facts[f"socket of {size}"] = said.type.name, len(said.data or ""), str(said.data)[:5]
                await ws.close(code=1000)
                facts["close"] = int(ws.close_code or 0)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            facts["close"] = f"{type(error).__name__} {getattr(error, 'status', '')}"
        if facts["close"] == 1000:
            break
    return Seen(facts, int(facts["close"] == 1000), 1)


async def long_poll(app: Started, path: str) -> Seen:
    begun = time.monotonic()
    async with visitor() as session:
        status, _, body = await fetch(session, app, path, timeout=aiohttp.ClientTimeout(180))
    return Seen({"long poll": (status, body[:60])}, int(status == 200), 1, said=f"{time.monotonic() - begun:.0f} s")


async def many(ways: list[Started], paths: list[str]) -> list[Seen]:
    """Fifty users who think between requests, in turns of a few seconds each way, so that a busy machine is fair."""
    seen = [Seen() for _ in ways]
    for _ in range(ROUNDS):
        for app, one in zip(ways, seen):
            before = len(one.times)
            await asyncio.gather(*(_user(app, number, paths, one) for number in range(USERS)))
            one.rounds.append(percentile(one.times[before:] or [0.0], 95))
    for one in seen:
        one.facts = {"answers": {key: one.facts[key] for key in sorted(one.facts) if key[:1] not in "23"}}
    return seen


async def _user(app: Started, number: int, paths: list[str], seen: Seen) -> None:
    dice = random.Random(number)
    until = time.monotonic() + BURST
    async with visitor(number + 1) as session:
        await asyncio.sleep(dice.random() * THINKING)
        while time.monotonic() < until:
            begun = time.monotonic()
            status, _, body = await fetch(session, app, dice.choice(paths))
            seen.asked += 1
            if 200 <= status < 400:
                seen.good += 1
                seen.times.append((time.monotonic() - begun) * 1000)
            else:
                key = str(status or body.decode())
                seen.facts[key] = seen.facts.get(key, 0) + 1
            await asyncio.sleep(dice.random() * 2 * THINKING)


async def faults(
    app: Started, ask: Callable[[aiohttp.ClientSession, Started, int], Awaitable[bool]], calls: int = 24
) -> Seen:
    """Calls of a model by way of the app, while the vendor fails as often as it was told: how many went well."""
    gate, times = asyncio.Semaphore(4), []

    async def one(number: int) -> bool:
        async with gate, visitor(number % 10 + 1) as session:
            begun = time.monotonic()
            good = await ask(session, app, number)
            times.append((time.monotonic() - begun) * 1000)
            return good

    good = await asyncio.gather(*(one(number) for number in range(calls)))
    # which attempt meets which fault depends on the order in which they come
    return Seen({}, sum(good), calls, chance=2, said=f"slowest {max(times) / 1000:.1f} s")


async def killed(app: Started, path: str, pid: int, seconds: float = 8.0, back_by: float = 30.0) -> Seen:
    """kill -9 under a light load: how many of five users' requests went well from then on, and when it was back."""
    answers: Counter[str] = Counter()
    state = {"back": 0.0}
    begun = time.monotonic()

    async def user(number: int) -> None:
        async with visitor(number + 1) as session:
            while (now := time.monotonic() - begun) < seconds or (not state["back"] and now < back_by and number == 0):
                status, _, body = await fetch(session, app, path, timeout=aiohttp.ClientTimeout(20))
                answers[str(status or body.decode())] += 1
                if 200 <= status < 400 and time.monotonic() - begun > 0.3 and not state["back"]:
                    state["back"] = time.monotonic() - begun
                await asyncio.sleep(0.2)

    family = app.family()
    os.kill(pid, 9)
    if app.way == DIRECT and pid == app.process.pid:  # process 1 of its container, which ends with it
        for one in family[1:]:
            one.kill()
    await asyncio.gather(*(user(number) for number in range(5)))
    good, asked = sum(count for status, count in answers.items() if status[:1] in "23"), answers.total()
    wrong = ", ".join(f"{count} × {status}" for status, count in sorted(answers.items()) if status[:1] not in "23")
    back = f"back after {state['back']:.1f} s" if state["back"] else "never back"
    return Seen({}, good, asked, said=f"{back}{', ' if wrong else ''}{wrong}")


async def stopped(app: Started, busy: Callable[[aiohttp.ClientSession, Started], Awaitable[bool]] | None) -> Seen:
    """SIGTERM while six requests are being answered: how many are whole, the exit status, who is left."""

    async def one(number: int) -> bool:
        async with visitor(number + 1) as session:
            return await busy(session, app)

    waiting = [asyncio.ensure_future(one(number)) for number in range(6)] if busy else []
    await asyncio.sleep(0.8 if busy else 0)
    status, took, left = await app.stop()
    good = await asyncio.gather(*waiting)
    clean = "clean" if status in (0, -15, 143) else f"status {status}"
    seen = Seen({"end": clean, "processes left": left}, sum(good), len(good))
    seen.said = f"exit {status} after {took:.0f} s"
    return seen


def merge(*seen: Seen) -> Seen:
    whole = Seen()
    for one in seen:
        whole.facts |= one.facts
        whole.good += one.good
        whole.asked += one.asked
    return whole


def refused(app: Started) -> str:
    """Requests that the gateway refused, as its log has it; empty where it is not in between."""
    if app.way != BEHIND:
        return ""
    counts: Counter[str] = Counter()
    for line in app.log.read_text(errors="replace").splitlines():
        if line.startswith("{") and '"refused"' in line:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            name = said.get("refused")
            if name and said.get("event") == "request":  # no shadow, and no call that the vendor failed
                counts[name] += 1
    return ", ".join(f"{count} × {name}" for name, count in counts.items())
