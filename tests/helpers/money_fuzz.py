"""Random calls of every kind before vendors that keep their own books, and the reckoning afterwards.

A seed decides everything but the order in which things that are under way at once come about.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from collections import defaultdict, deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from bookkeeping_vendor import POLICY, Booked, BookkeepingVendor
from egress_gateway import ReceivedCall
from fuzzed_gateway import FuzzedGateway

from proxy.egress.billing import background_calls
from proxy.egress.billing.windows import PERIODS, Calendar
from proxy.store.escrow import GIVE_BACK_SECONDS
from proxy.units import SpendPeriod

AT_ONCE = 24
RESTART = 400  # calls from one to the next; the one in the middle is a kill
PATIENCE = 10.0  # seconds for any call, and for quiet

# What becomes of a call's attempts, and how often: those that end with usage, those that fail for good, those that
# the vendor bills though nobody is shown.
STEPS = [
    ("ok", 40), ("cached", 8), ("slow", 5), ("429,ok", 4), ("500,ok", 4), ("503,503,ok", 2), ("400", 3), ("404", 2),
    ("401", 1), ("409,ok", 1), ("500", 3), ("inner", 2), ("inner,ok", 2), ("reset,ok", 3), ("reset", 2), ("page,ok", 2),
    ("half,ok", 2), ("half", 1), ("short,ok", 2), ("silent", 4), ("cut", 4), ("early,ok", 3), ("early", 1), ("broken", 3),
    ("stall", 1),
]  # fmt: skip
KINDS = [
    ("chat", 30), ("chat stream", 22), ("completions", 4), ("completions stream", 3), ("responses", 8), ("compact", 2),
    ("responses stream", 8), ("background", 6), ("embeddings", 5), ("moderations", 2), ("heard", 4), ("heard stream", 2),
    ("spoken", 3), ("drawn", 3), ("drawn stream", 2), ("claude", 6), ("claude stream", 6), ("filmed", 2), ("models", 2),
]  # fmt: skip
PATHS = {
    "chat": "/chat/completions", "completions": "/completions", "responses": "/responses", "compact": "/responses/compact",
    "background": "/responses", "embeddings": "/embeddings", "moderations": "/moderations", "models": "/models",
    "heard": "/audio/transcriptions", "spoken": "/audio/speech", "drawn": "/images/generations", "claude": "/messages", "filmed": "/videos",
}  # fmt: skip
MODELS = {"heard": "heard", "spoken": "spoken", "drawn": "drawn", "claude": "claude", "embeddings": "embedding",
          "moderations": "small", "filmed": "filmed"}  # fmt: skip
DEFINITE = {"ok", "cached", "slow", "400", "401", "404", "409", "429", "500", "503", "inner"}
ORDERS = ("background", "filmed")  # never tried again, and of no use from a model that the fallbacks name
LEAVES = [("stays", 86), ("soon", 4), ("late", 5), ("cancelled", 5)]


@dataclass
class Group:
    """The calls with one body: what one pays, the others may share. `sure`: all that was billed was shown, as far as
    the callers know."""

    tag: str
    kind: str
    body: bytes
    headers: dict[str, str]
    steps: list[str]
    calls: int = 0
    sure: bool = True
    lost: bool = False  # one was under way when the gateway was killed
    requests: set[str] = field(default_factory=set)


@dataclass
class Reckoning:
    """Nano-dollars. `wrong`: sentences, one for each thing that does not agree."""

    calls: int = 0
    exact: int = 0
    guessed: int = 0
    vendors: int = 0
    ledger: int = 0
    vendors_unshown: int = 0
    ledger_unshown: int = 0
    wrong: list[str] = field(default_factory=list)


class Fuzz:
    def __init__(self, tmp: Path, seed: int, calls: int, gateways: int = 1, store: str = "") -> None:
        """`doors`: instances that share a ledger; `store`: and a store, the policy's section."""
        self._tmp = tmp
        self._store = store
        self.gateways = [FuzzedGateway(tmp, self._policy) for _ in range(gateways)]
        self._random = random.Random(seed)
        self._calls = calls
        self._one, self._other, self._third = BookkeepingVendor("a"), BookkeepingVendor("b"), BookkeepingVendor("c")
        self._groups: list[Group] = []
        self._later: list[tuple[str, Group]] = []  # responses in the background: id
        self._made = 0
        self._variant = 0
        self._windows = {period: Calendar("UTC").window(period, time.time()) for period in PERIODS}
        self._seen_tags: dict[str, Group] = {}
        self._under_way: dict[str, tuple[Group, FuzzedGateway]] = {}  # by request
        self._killed: set[str] = set()  # requests
        self._deleted: set[str] = set()  # requests that began what was deleted
        self._ended: deque[tuple[float, Group, FuzzedGateway]] = deque(maxlen=2000)
        self.reckoning = Reckoning()

    @property
    def vendors(self) -> tuple[BookkeepingVendor, ...]:
        return self._one, self._other, self._third

    async def run(self) -> Reckoning:
        for vendor in self.vendors:
            await vendor.start()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            for gateway in self.gateways:
                await gateway.begin()
            workers = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]
            await asyncio.gather(*workers)
            self._reload(3)
            await self._finish_what_goes_on()
            await self._quiet()
            await self._compare_store()
            for gateway in self.gateways:
                await gateway.end()
            self._reckon()
        finally:
            await self._session.close()
            for vendor in self.vendors:
                await vendor.stop()
            for gateway in self.gateways:
                gateway.close()
        return self.reckoning

    # ── the gateway ──────────────────────────────────────────────────────────────────────────

    def _policy(self) -> str:
        """Four of them, for reloads: other fallbacks, caches and limits, never other prices."""
        v = self._variant
        prices = POLICY.strip().replace("\n", ", ")
        falls = ["[]", "[{model: large}]", "[{upstream: other}, {text: tired}]", "[{model: large}, {upstream: other}]"][
            v
        ]
        common = f"prices: {{{prices}}}, retry: {{attempts: 3, backoff: {{first: 1ms, max: 4ms}}, budget: 100%}}"
        common += ", breaker: off, timeout: {total: 8s, idle: 700ms}"
        cache = ["{ttl: 60s, scope: all}", "{ttl: 0s}", "{ttl: 60s, scope: user}", "{ttl: 0s}"][v]
        more = "pace: {concurrency: 40}, " if v == 2 else ""
        return f"""
identity: {{tiers: [{{name: poor, users: "poor*"}}, {{name: user}}]}}
upstreams:
  openai: {{base_url: "http://127.0.0.1:{self._one.port}/v1", fallback: {falls}, cache: {cache}, {more}
    coalesce: {"true" if v != 1 else "false"}, cap: {{per_user: {{poor: $0.01/d, user: $1000/d}}, total: $9000/month}}, {common}}}
  {f"other: {{kind: openai, api_key: sk-other, base_url: 'http://127.0.0.1:{self._other.port}/v1', {common}}}" if v != 1 else ""}
  anthropic: {{base_url: "http://127.0.0.1:{self._third.port}", {common}}}
ledger: {{url: "sqlite:///{self._tmp}/ledger.db"}}
log: {{level: warning}}
{self._store}
"""

    async def _compare_store(self) -> None:
        """Each instance counts what the ledger has of all of them, and nothing is set aside any more."""
        if not self._store:
            return
        await asyncio.sleep(GIVE_BACK_SECONDS + 2.0)
        found = self._by_upstream("WHERE outcome <> 'open' OR reference = ''")
        # What was under way at a kill may be known to the ledger or to the store alone.
        lost = sum(each.cost for group in self._groups if group.lost for each in self._booked(group))
        for gateway in self.gateways:
            for name, upstream in gateway.egress.upstreams.items():
                limits, escrow = upstream.billing.limits, gateway.escrow
                await escrow.refresh(limits.shared_windows("nobody-else", "user"), PATIENCE)
                if abs(limits.spent("month") - found.get(name, 0)) > lost and not self._turned("month"):
                    self._wrong(f"{name} counts {limits.spent('month')}, the ledger {found.get(name, 0)}, lost {lost}")
            for window in gateway.escrow.windows.values():
                if window.told[2]:
                    self._wrong(f"something is set aside after quiet: {window!r}")

    def _booked(self, group: Group) -> list[Booked]:
        return [each for vendor in self.vendors for each in vendor.books.get(group.tag, [])]

    async def _restart(self, gateway: FuzzedGateway) -> None:
        """What was counted is what the ledger has."""
        await gateway.end()
        found = self._by_upstream("WHERE outcome <> 'open' OR reference = ''")
        for name in ("openai", "anthropic"):
            if len(self.gateways) == 1 and gateway.counted(name) != found.get(name, 0) and not self._turned("month"):
                self._wrong(f"at a restart {name} counted {gateway.counted(name)} and the ledger {found.get(name, 0)}")
        await gateway.begin()
        self._compare_start(gateway)

    async def _kill(self, gateway: FuzzedGateway) -> None:
        """Of calls under way, and of those that ended in the last second, nothing need be on record."""
        earliest = asyncio.get_running_loop().time() - GRACE
        lately = [group for ended, group, where in self._ended if ended > earliest and where is gateway]
        for group in (*lately, *(group for group, where in self._under_way.values() if where is gateway)):
            group.lost = True
            self._killed |= group.requests
        await gateway.end(killed=True)
        await gateway.begin()
        self._compare_start(gateway)

    def _by_upstream(self, where: str = "") -> dict[str, int]:
        return dict(self._sql(f"SELECT upstream, SUM(cost) FROM outrigger_calls {where} GROUP BY upstream"))

    def _compare_start(self, gateway: FuzzedGateway) -> None:
        """What a start counts, reserved or spent, is what the ledger has."""
        found = self._by_upstream()
        for name, upstream in gateway.egress.upstreams.items():
            limits = upstream.billing.limits
            counted = limits.spent("month") + limits.reserved
            if len(self.gateways) == 1 and counted != found.get(name, 0) and not self._turned("month"):
                self._wrong(f"{name} began with {limits!r}, and the ledger has {found.get(name, 0)}")

    def _sql(self, question: str) -> list[tuple]:
        with closing(sqlite3.connect(self._tmp / "ledger.db")) as file:
            return file.execute(question).fetchall()

    def _reload(self, variant: int) -> None:
        self._variant = variant
        for gateway in self.gateways:
            if gateway.open.is_set():
                gateway.reload()

    # ── calls ────────────────────────────────────────────────────────────────────────────────

    async def _work(self) -> None:
        while self._made < self._calls:
            self._made += 1
            number = self._made
            gateway = self._random.choice(self.gateways)
            await gateway.open.wait()
            if number % RESTART == 0:
                killed = number == self._calls // RESTART // 2 * RESTART
                await (self._kill(gateway) if killed else self._restart(gateway))
            elif number % 97 == 96:
                self._reload(self._random.randrange(4))
            if self._later and self._random.random() < 0.1:
                await self._ask_after(gateway)
            else:
                await self._call(number, gateway)

    def _pick(self, weighted: list[tuple[str, int]]) -> str:
        return self._random.choices([word for word, _ in weighted], [weight for _, weight in weighted])[0]

    def _group(self, number: int) -> Group:
        """A new body, or one of those before it, so that it may be shared or come out of the cache."""
        if self._groups and self._random.random() < 0.12:
            return self._random.choice(self._groups[-30:])
        kind, steps = self._pick(KINDS), self._pick(STEPS)
        name, _, stream = kind.partition(" ")
        if not stream and steps in ("cut", "early,ok", "early", "broken", "stall"):
            steps = "ok"
        if stream and steps in ("page,ok", "half,ok", "half", "short,ok", "inner", "inner,ok", "reset,ok", "reset"):
            steps = "ok"
        if name in ORDERS and steps not in ("ok", "400", "401", "404"):
            steps = "ok"
        tag = f"t{number}"
        mark = f"{tag}|{steps}|" + "lorem " * self._random.randrange(1, 60)
        model = MODELS.get(name) or ("large" if self._random.random() < 0.3 else "small")
        said: dict[str, object] = {"model": model}
        if stream:
            said["stream"] = True
        if name in ("chat", "completions", "claude"):
            said |= {"max_tokens": 64, "temperature": 0}
        if name in ("responses", "background", "compact"):
            said |= {"max_output_tokens": 64, "temperature": 0, "input": mark}
        if name == "background":
            said["background"] = True
        if name in ("chat", "claude"):
            said["messages"] = [{"role": "user", "content": mark}]
        elif name in ("completions", "drawn", "filmed"):
            said["prompt"] = mark
        elif name in ("embeddings", "moderations", "spoken"):
            said["input"] = mark
        if name == "filmed":
            said["seconds"] = "4"
        headers = {"Content-Type": "application/json"}
        body = json.dumps(said).encode()
        if name == "heard":
            body, headers = _upload(model, mark, stream), {"Content-Type": "multipart/form-data; boundary=edge"}
        if name == "models":
            body = b""
        group = Group(tag, kind, body, headers, steps.split(","))
        self._groups.append(group)
        self._seen_tags[tag] = group
        return group

    async def _call(self, number: int, gateway: FuzzedGateway) -> None:
        group = self._group(number)
        group.calls += 1
        rng = self._random
        leaves, user = self._pick(LEAVES), f"{'poor' if rng.random() < 0.1 else 'user'}{rng.randrange(8)}"
        request_id, token = f"r{number}", f"{number:032x}"
        group.requests.add(request_id)
        came = ReceivedCall(5.0 if leaves == "cancelled" else None, user)
        came.request_id, came.tier = request_id, user[:4]
        requests = gateway.requests
        requests.begin(token, came)
        self._under_way[request_id] = group, gateway
        name = group.kind.partition(" ")[0]
        upstream = "anthropic" if name == "claude" else "openai"
        method = "GET" if name == "models" else "POST"
        url, headers = f"{gateway.url}/{upstream}/v1{PATHS[name]}", {**group.headers, "X-Outrigger-Request": token}
        try:
            async with asyncio.timeout(PATIENCE if leaves in ("stays", "late") else None):
                if leaves == "soon":
                    await self._leave(method, url, headers, group, rng.uniform(0.0, 0.01))
                elif leaves == "cancelled":
                    task = asyncio.create_task(self._ask(method, url, headers, group))
                    await asyncio.sleep(rng.uniform(0.0, 0.01))
                    requests.end(token, abandoned=True)
                    group.sure = False
                    await task
                else:
                    await self._ask(method, url, headers, group, late=leaves == "late")
        except TimeoutError:
            self._wrong(f"a call of {group.kind} ({','.join(group.steps)}) did not end")
        finally:
            requests.end(token)
            del self._under_way[request_id]
            self._ended.append((asyncio.get_running_loop().time(), group, gateway))

    async def _leave(self, method: str, url: str, headers: dict[str, str], group: Group, after: float) -> None:
        group.sure = False
        try:
            async with asyncio.timeout(after):
                await self._ask(method, url, headers, group)
        except TimeoutError:
            pass

    async def _ask(self, method: str, url: str, headers: dict[str, str], group: Group, *, late: bool = False) -> None:
        """To its end; `late`: left in the middle of it."""
        try:
            async with self._session.request(method, url, headers=headers, data=group.body or None) as answer:
                if late:
                    group.sure = False
                    await answer.content.readany()
                    answer.close()
                    return
                body = await answer.read()
                if group.kind == "background" and answer.status == 200:
                    self._later.append((json.loads(body)["id"], group))
        except (aiohttp.ClientError, ConnectionError):
            group.sure = False

    async def _ask_after(self, gateway: FuzzedGateway) -> None:
        id, group = self._later[self._random.randrange(len(self._later))]
        how = self._pick([("poll", 70), ("stream", 15), ("cancel", 10), ("delete", 5)])
        if how == "delete":
            group.sure = False
            self._deleted |= group.requests
        base = f"{gateway.url}/openai/v1/responses/{id}"
        method, url = {
            "poll": ("GET", base), "stream": ("GET", f"{base}?stream=true&starting_after=3"),
            "cancel": ("POST", f"{base}/cancel"), "delete": ("DELETE", base),
        }[how]  # fmt: skip
        try:
            async with self._session.request(method, url) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, ConnectionError):
            return
        if how == "delete" or b"completed" in body or b'"cancelled"' in body:
            if (id, group) in self._later:
                self._later.remove((id, group))

    # ── afterwards ───────────────────────────────────────────────────────────────────────────

    async def _finish_what_goes_on(self) -> None:
        """Every response in the background is asked after until it is over. One that was deleted while nobody saw the
        answer to that can be had no more; it is paid at its reservation once it is as old as any is kept."""
        for vendor, upstream in ((self._one, "openai"), (self._other, "other")):
            for id in list(vendor.late):
                for gateway in (*self.gateways, *self.gateways, *self.gateways):
                    async with self._session.get(f"{gateway.url}/{upstream}/v1/responses/{id}") as answer:
                        await answer.read()
        for gateway in self.gateways:
            calls = gateway.egress._pending
            await calls.sweep()
            for one in calls._calls.values():
                if one.record.request_id not in self._deleted:
                    self._wrong(f"{one.record.reference} of {one.record.request_id} is not settled")
            lasts, background_calls.EXPIRES_AFTER = background_calls.EXPIRES_AFTER, 0.0
            await calls.sweep()
            background_calls.EXPIRES_AFTER = lasts

    async def _quiet(self) -> None:
        await self._session.close()
        try:
            async with asyncio.timeout(PATIENCE):
                while any(self._left()):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            open_, under_way, reserved = self._left()
            self._wrong(f"no quiet: {open_} open at vendors, {under_way} calls under way, {reserved} reserved")

    def _left(self) -> tuple[int, int, int]:
        open_ = sum(vendor.open for vendor in self.vendors)
        under_way = sum(gateway.egress.accounting.in_flight for gateway in self.gateways)
        return open_, under_way, sum(gateway.reserved for gateway in self.gateways)

    def _turned(self, period: SpendPeriod) -> bool:
        """Whether a window ended meanwhile, so that what is counted is of the new one alone."""
        return Calendar("UTC").window(period, time.time()) != self._windows[period]

    def _wrong(self, text: str) -> None:
        self.reckoning.wrong.append(text)

    def _reckon(self) -> None:
        found = self.reckoning
        found.calls = self._made
        by_request: dict[str, int] = defaultdict(int)
        by_user: dict[tuple[str, str], int] = defaultdict(int)
        for request_id, cost, outcome, upstream, user in self._sql(
            "SELECT request_id, cost, outcome, upstream, user_id FROM outrigger_calls"
        ):
            by_request[request_id] += cost
            by_user[upstream, user] += cost
            if outcome == "open" and request_id not in self._killed:
                kind = next(group.kind for group in self._seen_tags.values() if request_id in group.requests)
                self._wrong(f"{request_id} ({kind}) is still open at {upstream}, at {cost}")
        found.ledger = sum(by_request.values())
        for (name, user), amount in by_user.items() if len(self.gateways) == 1 else ():
            counted = self.gateways[0].counted(name, user)
            if counted != amount and not self._turned("month"):
                self._wrong(f"{name} counts {counted} for {user}, and the ledger has {amount}")
            if (
                name == "openai"
                and not self._turned("d")
                and user.startswith("poor")
                and amount > CAP + AT_ONCE * ERROR
            ):
                self._wrong(f"{user} spent {amount} under a cap of {CAP}")
        for group in self._seen_tags.values():
            self._compare(group, sum(by_request.get(one, 0) for one in group.requests))

    def _compare(self, group: Group, ledger: int) -> None:
        booked = [one for vendor in self.vendors for one in vendor.books.get(group.tag, [])]
        vendors = sum(one.cost for one in booked)
        self.reckoning.vendors += vendors
        what = f"{group.kind} {','.join(group.steps)} ({group.tag}, {group.calls} calls)"
        if group.sure and not group.lost and all(_exact(group, one) for one in booked):
            self.reckoning.exact += 1
            if ledger != vendors:
                self._wrong(f"{what}: the vendor billed {vendors}, all of it shown, and the ledger has {ledger}")
            return
        if group.lost:
            return
        self.reckoning.guessed += 1
        if not group.kind.startswith("drawn"):  # a picture that nobody saw is paid as the dearest of what was asked for
            self.reckoning.vendors_unshown += vendors
            self.reckoning.ledger_unshown += ledger
        if ledger < LEAST * vendors - SLACK:
            self._wrong(f"{what}: the vendor billed {vendors}, not all of it shown, and the ledger has {ledger}")


# What an estimate may err by: an answer that nobody saw counts as long as the model's usually are, the question by its
# bytes; of a stream that was left, what is on its way.
LEAST = 0.4
SLACK = 100_000  # nano-dollars
GRACE = 1.5  # seconds: the second that a kill may lose, and half a one for a machine that is busy
CAP, ERROR = 10_000_000, 500_000  # of a poor user, and of one call's estimate


def _exact(group: Group, one: Booked) -> bool:
    return one.shown or (group.kind in ("spoken", "filmed") and DEFINITE.issuperset(group.steps))


def _upload(model: str, prompt: str, stream: str) -> bytes:
    fields = {"model": model, "prompt": prompt, **({"stream": "true"} if stream else {})}
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n' for key, value in fields.items()
    ]
    head = '--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n\r\n'
    return "".join(parts).encode() + head.encode() + b"\0" * 8000 + b"\r\n--edge--\r\n"
