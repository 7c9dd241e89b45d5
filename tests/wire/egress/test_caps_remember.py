"""Caps of more users than memory holds: whoever is not remembered is asked of the ledger, before a call and before a
request, and is not believed to have spent nothing."""

import asyncio
import json
import shlex
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from egress_gateway import CHAT, QUICK, Vendor, egress_gateway, says
from gateway_process import APPS, gateway
from postgres_process import postgres

from proxy.egress.billing import spend_accounts, spend_lookup
from proxy.ledger.ledger import Ledger
from proxy.ledger.record import CallRecord
from proxy.ledger.sqlite import SqliteStore
from proxy.ledger.store import ForgivenSpend, LedgerUnavailable
from proxy.observe.metrics import Metrics
from proxy.policy import schema

PRICES = "prices: {gpt-4o-mini: {input: 1, output: 2}}"
PAID = 17_000  # nano-dollars of one answer at these
CAP = f"{QUICK}\n{PRICES}\ncap: {{per_user: $0.001/month, unattributed: $1/d}}"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No test depends on a quick ledger."""
    monkeypatch.setattr(spend_lookup, "LOOKUP_TIMEOUT", 20.0)


def row(user: str, cost: int, at: float | None = None) -> CallRecord:
    at = time.time() if at is None else at
    id = f"{user}-{at}"
    return CallRecord(id, at, None, user, "", "", "openai", "gpt-4o-mini", cost=cost, basis="reported", outcome="ok")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    """An empty ledger's address."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    url = request.getfixturevalue("server").url
    connection = await asyncpg.connect(url, timeout=10)
    for table in ("calls", "schema", "blocked", "forgiven"):
        await connection.execute(f"DROP TABLE IF EXISTS public.outrigger_{table}")
    await connection.close()
    return url


@asynccontextmanager
async def ledger(url: str, database=None, **more):
    made = Ledger(
        schema.Ledger(url=url, **more),
        emit=lambda *_, **__: None,
        metrics=Metrics(schema.Metrics(), version="t"),
        clock=time.monotonic,
        database=database,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def mine(user: str) -> dict:
    return {**CHAT, "user": user, "max_tokens": 5}


async def code(out, user: str) -> str:
    status, _, text = await out.chat(mine(user))
    return "ok" if status == 200 else json.loads(text)["error"]["code"]


async def test_a_restart_with_more_users_than_are_kept_forgets_nobody(tmp_path, url, monkeypatch):
    monkeypatch.setattr(spend_accounts, "MAX_USERS", 100)
    async with ledger(url) as before:
        # From 990,000 nano-dollars down: all have spent so much of their million that no call fits.
        await before.store.write_batch([row(f"user-{at}", 1_000_000 - 10_000 - at) for at in range(300)], [])
    vendor = Vendor(says())
    async with ledger(url) as after, egress_gateway(tmp_path, vendor, openai=CAP, ledger=after) as out:
        mem = out.openai.billing.limits
        assert [mem.accounts.is_loaded(user) for user in ("user-0", "user-99", "user-100", "user-299")] == [
            True,
            True,
            False,
            False,
        ]
        assert mem.accounts.top_spenders("month", 1) == [("user-0", 990_000)]
        assert mem.spent("month") == sum(990_000 - at for at in range(300))
        for user in ("user-0", "user-99", "user-100", "user-299"):
            assert await code(out, user) == "cost_cap_exceeded", user
        assert not vendor.requests
        assert await code(out, "newcomer") == "ok"


async def test_who_is_forgotten_while_it_runs_is_asked_of_the_ledger_too(tmp_path, url, monkeypatch):
    monkeypatch.setattr(spend_accounts, "MAX_USERS", 40)
    cap = CAP.replace("$0.001/month", "$0.00005/month")  # room for two
    async with ledger(url) as books, egress_gateway(tmp_path, Vendor(says()), openai=cap, ledger=books) as out:
        mem = out.openai.billing.limits
        assert [await code(out, "ada") for _ in range(3)] == ["ok", "ok", "cost_cap_exceeded"]
        for at in range(120):  # each spends more than ada
            await books.store.write_batch([row(f"other-{at}", 40_000)], [])
            assert await code(out, f"other-{at}") == ("ok" if at < 40 else "cost_cap_exceeded"), at
        assert mem.accounts.evicted
        assert not mem.accounts.is_loaded("ada")
        assert await code(out, "ada") == "cost_cap_exceeded"
        assert mem.spent("month", "ada") == 2 * PAID
        assert mem.reserved == 0


async def test_what_waits_to_be_written_counts_and_what_was_forgiven_does_not(tmp_path, url, monkeypatch):
    monkeypatch.setattr(spend_accounts, "MAX_USERS", 1)
    async with ledger(url) as books, egress_gateway(tmp_path, Vendor(says()), openai=CAP, ledger=books) as out:
        mem, now = out.openai.billing.limits, time.time()
        await books.store.write_batch([row("ada", 990_000), row("bob", 500_000)], [])
        await books.store.record_forgiven([ForgivenSpend("f", now, "openai", "ada", "month", 900_000)])
        mem.accounts.mark_unloaded()
        books.record(row("bob", 450_000, now - 0.001))
        await books.store.write_batch([row("ada", 123, now - 70 * 86400)], [])
        assert await code(out, "ada") == "ok"
        assert (mem.spent("month", "ada"), mem.counted("month", "ada")) == (990_000 + PAID, 90_000 + PAID)
        assert await code(out, "bob") == "ok"
        assert mem.spent("month", "bob") == 950_000 + PAID


class Moody(SqliteStore):
    """A ledger that notes whom it was asked for, and may be away or hang."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.mood = ""
        self.slow = 0.0  # seconds of each write
        self.asked: list[list[str]] = []

    async def write_batch(self, entries, removals):
        await asyncio.sleep(self.slow)
        await super().write_batch(entries, removals)

    async def user_totals(self, upstream, users, since, until):
        self.asked.append(list(users))
        if self.mood == "away":
            raise LedgerUnavailable("it is down")
        if self.mood == "hangs":
            await asyncio.sleep(60)
        await asyncio.sleep(0.05)
        return await super().user_totals(upstream, users, since, until)


@pytest.fixture
def moody(tmp_path):
    return Moody(tmp_path / "ledger.db")


@pytest.mark.parametrize("mood", ["away", "hangs"])
async def test_while_the_ledger_is_away_calls_go_on_and_are_counted_once_it_is_back(tmp_path, moody, mood, monkeypatch):
    monkeypatch.setattr(spend_lookup, "LOOKUP_TIMEOUT", 0.1)
    monkeypatch.setattr(spend_lookup, "RETRY_SECONDS", 60.0)
    async with ledger(f"sqlite:///{tmp_path}/ledger.db", moody) as books:
        async with egress_gateway(tmp_path, Vendor(says()), openai=CAP, ledger=books) as out:
            mem = out.openai.billing.limits
            await moody.write_batch([row("ada", 990_000)], [])
            mem.accounts.mark_unloaded()
            moody.mood = mood
            assert await code(out, "ada") == "ok"
            assert await code(out, "ada") == "ok"
            assert len(moody.asked) == 1, "it is left in peace for a while"
            assert mem.spent("month", "ada") == 2 * PAID
            await out.logged(2)
            moody.mood = ""
            monkeypatch.setattr(spend_lookup, "LOOKUP_TIMEOUT", 20.0)
            out.egress._recall._pause_until = 0.0
            assert await code(out, "ada") == "cost_cap_exceeded"
            assert mem.spent("month", "ada") == 990_000 + 2 * PAID, "each call once"


async def test_with_on_error_deny_no_call_is_made_whose_user_is_not_known(tmp_path, moody, monkeypatch):
    monkeypatch.setattr(spend_lookup, "LOOKUP_TIMEOUT", 0.1)
    vendor = Vendor(says())
    async with ledger(f"sqlite:///{tmp_path}/ledger.db", moody, on_error="deny") as books:
        async with egress_gateway(tmp_path, vendor, openai=CAP, ledger=books) as out:
            out.openai.billing.limits.accounts.mark_unloaded()
            moody.mood = "hangs"
            assert await code(out, "ada") == "ledger_unavailable"
            url = f"{out.url}/openai/v1/realtime?model=gpt-realtime"
            async with out.session.get(url, headers={"Connection": "Upgrade", "Upgrade": "websocket"}) as answer:
                assert answer.status == 503
            assert not vendor.requests


async def test_many_at_once_are_asked_for_together(tmp_path, moody):
    async with ledger(f"sqlite:///{tmp_path}/ledger.db", moody) as books:
        async with egress_gateway(tmp_path, Vendor(says()), openai=CAP, ledger=books) as out:
            out.openai.billing.limits.accounts.mark_unloaded()
            users = [f"user-{at % 50}" for at in range(100)]
            assert set(await asyncio.gather(*(code(out, user) for user in users))) == {"ok"}
            assert sorted(user for asked in moody.asked for user in asked) == sorted(set(users))
            assert len(moody.asked) < 20


async def test_who_calls_all_the_time_is_asked_for_as_well(tmp_path, moody, monkeypatch):
    monkeypatch.setattr(spend_lookup, "LOOKUP_TIMEOUT", 5.0)
    async with ledger(f"sqlite:///{tmp_path}/ledger.db", moody) as books:
        async with egress_gateway(tmp_path, Vendor(says()), openai=CAP, ledger=books) as out:
            mem = out.openai.billing.limits
            await moody.write_batch([row("unattributed", 990_000)], [])
            mem.accounts.mark_unloaded()
            moody.mood, moody.slow = "away", 0.1
            assert (await out.chat())[0] == 200
            moody.mood = ""
            over = asyncio.Event()

            async def call_on():
                while not over.is_set():
                    books.record(row("unattributed", 1))
                    await asyncio.sleep(0.01)

            calling = asyncio.create_task(call_on())
            out.egress._recall._pause_until = 0.0
            status, _, _ = await out.chat()
            over.set()
            await calling
            assert status == 200
            assert mem.accounts.is_loaded("unattributed")
            assert mem.spent("month", "unattributed") == 990_000 + 2 * PAID


APP = f"{shlex.quote(sys.executable)} {shlex.quote(str(APPS / 'calling_app.py'))} $PORT"


async def test_a_request_of_a_user_who_is_not_remembered_gets_402_before_the_app_works(tmp_path):
    vendor = Vendor(says())
    await vendor.start()
    database = SqliteStore(tmp_path / "ledger.db")
    rows = [row(f"user-{at}", 10_000_000 if at == 10_049 else 10_500_000) for at in range(10_050)]
    await database.write_batch(rows, [])
    await database.close()
    policy = f"""
app: {{ready: {{path: /environ}}}}
identity: {{user: [{{path: "/api/user/{{user}}/*"}}]}}
routes: [{{name: ask, match: {{path: "/api/user/*"}}, requires_budget: true}}]
upstreams:
  openai: {{base_url: "http://127.0.0.1:{vendor.port}/v1", {PRICES}, cap: {{per_user: $0.01/d}}}}
ledger: {{url: "sqlite:///{tmp_path}/ledger.db"}}
"""
    try:
        async with gateway(tmp_path, APP, policy=policy, environ={"OPENAI_API_KEY": "k"}) as g:
            await g.ready()
            answer = await g.request("/api/user/user-10049/x")  # who spent least
            assert answer.startswith(b"HTTP/1.1 402"), answer
            assert b"X-Cost-Used-Today: 0.010000" in answer
            assert (await g.request("/api/user/somebody/x")).startswith(b"HTTP/1.1 200")
            said = await g.request("/ctl/forgive/user-10048", method="POST", port=g.admin)
            assert b"$0.010500" in said, said
            assert (await g.request("/api/user/user-10048/x")).startswith(b"HTTP/1.1 200")
            assert len(vendor.requests) == 2
    finally:
        await vendor.stop()
