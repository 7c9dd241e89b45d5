"""What goes wrong, scripted: each fault, how it is made, how it is mended, and what must have been said of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from aiohttp import web
from egress_gateway import completion, errs, says
from scene import Scene, scene

Step = Callable[[Scene], Awaitable[object]]


@dataclass(frozen=True)
class Incident:
    """`alert`: a pattern for the names of rules, one of which must fire. `visits`: what users do meanwhile, and how many seconds apart. `changes`: of the shipped policy, to make the fault
    small enough to be made. `with_store`: a Valkey that instances would share."""

    name: str
    title: str
    fault: Step
    mend: Step
    alert: str
    part: str = ""
    page: str = ""
    visits: tuple[tuple[str, float], ...] = (("ask", 0.5),)
    changes: tuple[tuple[str, str], ...] = ()
    with_store: bool = False


@dataclass
class Report:
    incident: Incident
    seen: dict[str, int] = field(default_factory=dict)
    slowest: float = 0.0
    alert_after: float | None = None
    alert: str = ""
    status: str = ""
    parts: dict[str, str] = field(default_factory=dict)
    healthy_after: float = 0.0
    clear_after: float | None = None
    clear: str = ""


async def play(
    incident: Incident, folder: Path, *, patience: float, quick: tuple[tuple[str, str], ...] = (), often: float = 10.0
) -> Report:
    """From a healthy start to the all-clear. AssertionError, with the log's end, where something was not said."""

    def edit(text: str) -> str:
        for old, new in (*incident.changes, *quick):
            assert old in text, f"the shipped policy does not have {old!r}"
            text = text.replace(old, new)
        return text

    report = Report(incident)
    stored = any("/api/notes" in path for path, _ in incident.visits)
    async with scene(folder, edit=edit, with_database=stored, with_store=incident.with_store) as here:
        for path, every in incident.visits:
            here.visit(path, every=min(every, often))
        await here.until(lambda: _well(here), patience, "a healthy start")
        await asyncio.sleep(1)
        here.seen.clear()
        here.slowest = 0.0
        began = time.monotonic()
        await incident.fault(here)
        title = rf"^\S+ ({incident.alert})\b"
        report.alert_after, report.alert = await here.wait_for_message(title, since=began, patience=patience)
        if incident.part:
            await here.until(lambda: _unwell(incident.part, here), patience, f"health of {incident.part}")
        report.status, report.parts = await here.health()
        report.seen, report.slowest = dict(here.seen.most_common()), here.slowest
        mended = time.monotonic()
        await incident.mend(here)
        title = f"all clear: ({incident.alert})"
        report.clear_after, report.clear = await here.wait_for_message(title, since=mended, patience=patience)
        await here.until(lambda: _well(here), patience, "health after it was mended")
        report.healthy_after = time.monotonic() - mended
    return report


async def _well(here: Scene) -> bool:
    return (await here.health())[0] == "ok"


async def _unwell(part: str, here: Scene) -> bool:
    return part in (await here.health())[1]


def _answering(*answers: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> Step:
    async def change(here: Scene) -> None:
        here.vendor.answers[:] = answers

    return change


def _after(seconds: float) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.json_response(completion())

    return answer


WELL = says(completion("An outrigger is a float beside a boat."))
DEAR = says({**completion(), "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 5, "total_tokens": 1_000_005}})


async def _nothing(_: Scene) -> None:
    """It mends itself."""


async def _database_down(here: Scene) -> None:
    await asyncio.to_thread(here.database.crash)


async def _database_up(here: Scene) -> None:
    await asyncio.to_thread(here.database.start)


async def _forgotten(here: Scene) -> None:
    for _ in range(6):
        here.begin(here.ask(path="/forget?seconds=600"))


async def _ended(here: Scene) -> None:
    connection = await asyncpg.connect(here.database.url)
    try:
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction'"
        )
    finally:
        await connection.close()


async def _crashes(here: Scene) -> None:
    here.broken.touch()
    here.begin(here.ask(path="/crash"))


async def _repaired(here: Scene) -> None:
    here.broken.unlink()


async def _hangs(here: Scene) -> None:
    here.begin(here.ask(path="/hang"))


async def _leaks(here: Scene) -> None:
    for _ in range(40):
        if "memory" in (await here.health())[1]:
            break
        await here.ask(path="/leak?mib=16")
        await asyncio.sleep(1.1)  # memory is measured every second
    for _ in range(2):  # from the 80 % of health past the 85 % of the alert
        await here.ask(path="/leak?mib=16")


async def _restarted(here: Scene) -> None:
    assert "replaced" in await here.ctl("restart-app")


async def _spends(here: Scene) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        hers = b"mallory asks" in here.vendor.requests[-1][3]
        return await (DEAR if hers else WELL)(request)

    await _answering(answer)(here)
    here.visit("ask", every=0.2, users=("mallory",))


async def _forgiven(here: Scene) -> None:
    await here.ctl("block", "mallory")
    await _answering(WELL)(here)
    assert "none of their caps" in await here.ctl("forgive", "mallory")


async def _floods(here: Scene) -> None:
    here.visit("ask", every=0.05, users=("mallory",))


async def _blocked(here: Scene) -> None:
    assert "is blocked" in await here.ctl("block", "mallory")


async def _pushes(here: Scene) -> None:
    text = here.policy.read_text()
    here.policy.with_name("good").write_text(text)
    here.policy.write_text(text.replace("rate_limit: 600/min", "rate_limit: 600/minit"))


async def _pulls(here: Scene) -> None:
    here.policy.write_text(here.policy.with_name("good").read_text())


async def _fills(here: Scene) -> None:
    here.limit_files((here.folder / "var" / "outrigger.db").stat().st_size)


async def _makes_room(here: Scene) -> None:
    here.limit_files(None)


async def _store_down(here: Scene) -> None:
    await asyncio.to_thread(here.store.kill)


async def _store_up(here: Scene) -> None:
    await asyncio.to_thread(here.store.start)


async def _store_frozen(here: Scene) -> None:
    here.store.freeze()


async def _store_thawed(here: Scene) -> None:
    here.store.thaw()


INCIDENTS = (
    Incident(
        "openai_down", "OpenAI is down (503)", _answering(errs(503)), _answering(WELL),
        alert="breaker_open", part="upstreams", page="breaker_open",
    ),
    Incident(
        "openai_slow", "OpenAI takes 80 s an answer", _answering(_after(80)), _answering(WELL),
        alert="error_rate|slow|breaker_open", page="slow", visits=(("ask", 2.0),),
    ),
    Incident(
        "openai_limited", "OpenAI limits us (429, Retry-After 2 s)", _answering(errs(429, "rate_limit_exceeded", Retry_After="2")),
        _answering(WELL), alert="calls_failing", page="calls_failing",
    ),
    Incident(
        "database_down", "the database crashes", _database_down, _database_up,
        alert="postgres_down|error_rate|pool_exhausted", part="postgres", page="postgres_down",
        visits=(("/api/notes", 0.5),),
    ),
    Incident(
        "database_idle", "six transactions left open", _forgotten, _ended,
        alert="pool_exhausted", page="pool_exhausted", visits=(("/api/notes", 0.5),),
    ),
    Incident(
        "crash_loop", "the app crashes, and at each start again", _crashes, _repaired,
        alert="app_down", part="app", page="app_down",
    ),
    Incident("hung", "the app hangs", _hangs, _nothing, alert="app_hung|app_down|error_rate", page="app_down"),
    Incident(
        "memory_leak", "16 MiB more with each request", _leaks, _restarted,
        alert="memory", part="memory", page="memory",
        changes=(("app:\n", "app:\n  memory: {limit: 300MiB}\n"),),
    ),
    Incident(
        "money", "one user spends without measure", _spends, _forgiven, alert="cost_cap", page="cost_cap",
    ),
    Incident(
        "flood", "one user asks 20 times a second", _floods, _blocked, alert="flooded", page="flooded",
        visits=(("/api/notes", 0.5),),
    ),
    Incident(
        "bad_policy", "a policy with a fault is saved", _pushes, _pulls, alert="policy_refused", page="policy_refused",
    ),
    Incident(
        "disk_full", "the ledger's disk is full", _fills, _makes_room,
        alert="disk_full", part="ledger", page="disk_full", visits=(("ask", 0.5),),
    ),
    Incident(
        "store_down", "the store that instances share is gone", _store_down, _store_up,
        alert="store_lost", part="store", page="store_lost", with_store=True,
    ),
    Incident(
        "store_frozen", "the store takes connections and answers nothing", _store_frozen, _store_thawed,
        alert="store_lost", part="store", page="store_lost", with_store=True,
    ),
)  # fmt: skip
