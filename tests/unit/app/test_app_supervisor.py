"""A replacement and whatever may come between, in simulated time, with a process that only has times to start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from admission_simulation import simulate

from proxy.app import probes, supervisor
from proxy.app.command import Command
from proxy.app.supervisor import Supervisor
from proxy.policy import schema


class Process:
    """Answers `START` seconds after it was started, ends `LINGER` after it was told to."""

    START = 4.0
    LINGER = 3.0
    made: list[Process]
    listens = True

    def __init__(self, *_: object, **__: object) -> None:
        self.began = asyncio.get_running_loop().time()
        self.pid = 10 + len(self.made)
        self.stdout = self.stderr = self.status = None
        self.ended = asyncio.Event()
        self.made.append(self)

    @property
    def is_running(self) -> bool:
        return self.status is None

    def end(self, status: int = 0) -> None:
        self.status = status
        self.ended.set()

    def kill_group(self) -> None:
        if self.is_running:
            self.end(137)

    async def stop(self, patience: float, *_: object) -> None:
        if not self.is_running:
            return
        try:
            async with asyncio.timeout(min(patience, self.LINGER)):
                await self.ended.wait()
        except TimeoutError:
            self.end(0 if patience > self.LINGER else 137)


class Traffic:
    in_use = 0
    dropped = 0
    refused_connections = 0

    def close_idle(self) -> None:
        self.dropped += 1

    def abort_requests(self, _: str) -> int:
        cut, self.in_use = self.in_use, 0
        return cut


class Warden:
    def watch_group(self, *_: object, **__: object) -> None: ...
    def dismiss(self) -> None: ...


class Life:
    """A supervisor under way, and how long things took."""

    def __init__(self, policy: schema.App) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time
        self.restarts: list[str] = []
        self.said: list[str] = []
        self.traffic = Traffic()
        self.drain = 20.0
        self.app = Supervisor(
            policy,
            Command(("app",), "app"),
            {},
            port=1,
            emit=lambda event, message, **_: self.said.append(f"{event}: {message}"),
            on_restart=self.restarts.append,
            clock=loop.time,
        )
        self.app.attach_traffic(self.traffic, lambda: self.drain)

    @property
    def process(self) -> Process:
        return Process.made[-1]

    async def answered(self, hold: float) -> float | None:
        """A request that comes now and waits `hold` for a start: how many seconds in all, None where it is refused."""
        began = self.now()
        return self.now() - began if await self.app.wait_ready(hold) else None


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a story with a supervisor whose app is ready."""
    Process.made = []

    async def probe(*_: object) -> str | None:
        newest = Process.made[-1]
        ready = newest.is_running and asyncio.get_running_loop().time() - newest.began >= newest.START
        return "127.0.0.1" if ready else None

    monkeypatch.setattr(supervisor, "AppProcess", Process)
    monkeypatch.setattr(probes, "probe_app", probe)

    async def refused(*_: object) -> bool:
        return not Process.made[-1].listens

    monkeypatch.setattr(probes.PortProbe, "is_refused", refused)
    monkeypatch.setattr(supervisor, "OrphanGuard", Warden)

    def run(story: Callable[[Life], Awaitable[None]], policy: schema.App = schema.App()) -> None:
        async def main() -> None:
            life = Life(policy)
            whole = asyncio.ensure_future(life.app.run())
            assert await life.app.wait_ready(60)
            await story(life)
            await life.app.stop()
            await whole
            assert life.app.state == "ended"
            assert not life.app._tasks

        simulate(main())

    return run


def test_a_request_waits_for_others_to_finish_and_the_old_one_to_go_and_then_for_hold(live) -> None:
    async def story(life: Life) -> None:
        life.traffic.in_use = 1
        assert life.app.start_replacement("memory")
        waits = asyncio.ensure_future(life.answered(hold=5.0))
        await asyncio.sleep(10.0)
        assert life.app.is_replacing
        assert life.process.is_running
        life.traffic.in_use = 0
        assert await waits == pytest.approx(10 + Process.LINGER + Process.START, abs=0.5)
        assert life.traffic.dropped == 1
        assert life.restarts == ["memory"]

    live(story)


def test_who_waits_is_refused_where_the_start_takes_longer_than_hold(live) -> None:
    async def story(life: Life) -> None:
        assert life.app.start_replacement("memory")
        assert await life.answered(hold=Process.START - 1) is None
        assert await life.app.wait_ready(5.0)

    live(story)


def test_two_who_ask_at_once_get_one_replacement(live) -> None:
    async def story(life: Life) -> None:
        assert [life.app.start_replacement(reason) for reason in ("reload", "memory")] == [True, False]
        assert await life.answered(5.0)
        assert await life.app.replace("memory")
        assert life.restarts == ["reload", "memory"]

    live(story)


@pytest.mark.parametrize("after", [0.0, 2.0, 5.0])
def test_a_crash_between_asking_and_ending_is_one_restart(live, after: float) -> None:
    """While requests finish it is a crash; once it was told to go, it is what it was told for."""

    async def story(life: Life) -> None:
        life.traffic.in_use = 1
        old = life.process
        assert life.app.start_replacement("memory")
        waits = asyncio.ensure_future(life.answered(5.0))
        if after == 5.0:
            life.traffic.in_use = 0
            await asyncio.sleep(1.0)
        else:
            await asyncio.sleep(after)
        old.end(139)
        assert await waits
        assert life.restarts == ["memory" if after == 5.0 else "crash"]
        assert not life.app.is_replacing
        life.traffic.in_use = 0
        await asyncio.sleep(60.0)
        assert len(Process.made) == 2
        assert life.app.is_ready

    live(story)


def test_what_does_not_finish_within_drain_does_not_hold_it_up(live) -> None:
    async def story(life: Life) -> None:
        life.traffic.in_use = 3
        assert life.app.start_replacement("reload")
        assert await life.answered(5.0) == pytest.approx(life.drain + Process.LINGER + Process.START, abs=0.5)
        assert "app.replace: 3 requests did not finish in 20 s (listen.drain)." in life.said

    live(story)


@pytest.mark.parametrize("after", [0.0, 1.0, 5.0, 8.0, 9.0])
def test_the_end_may_come_at_any_moment_of_a_replacement(live, after: float) -> None:
    async def story(life: Life) -> None:
        life.traffic.in_use = 1
        replaced = asyncio.ensure_future(life.app.replace("reload"))
        waits = asyncio.ensure_future(life.answered(15.0))
        await asyncio.sleep(min(after, 5.0))
        life.traffic.in_use = 0
        await asyncio.sleep(after - min(after, 5.0))
        began = life.now()
        await life.app.stop()
        assert await waits is None
        assert not await replaced
        assert life.now() - began <= Process.LINGER + 0.1
        assert not life.process.is_running

    live(story)


def test_a_hung_app_is_replaced_though_its_requests_never_finish(live) -> None:
    async def story(life: Life) -> None:
        life.traffic.in_use = 1
        assert life.app.start_replacement("memory")
        life.process.START = float("inf")  # it answers no probe any more
        assert await life.answered(6.0)
        assert life.restarts == ["hung"]

    live(story, schema.App(liveness=schema.Liveness(path="/", interval=1.0, timeout=1.0, failures=3)))


@pytest.mark.parametrize(
    ("policy", "away", "restarts"),
    [
        (schema.App(), 2.0, []),  # a reloader's moment
        (schema.App(), 60.0, ["hung"]),
        (schema.App(liveness=None), 60.0, []),
        (schema.App(liveness=schema.Liveness(path="/")), 60.0, ["hung"]),
    ],
)
def test_an_app_whose_port_refuses_for_seconds_is_replaced_unless_that_is_off(live, policy, away, restarts) -> None:
    async def story(life: Life) -> None:
        process = life.process
        process.listens = False
        await asyncio.sleep(away)
        process.listens = True
        await asyncio.sleep(30.0)
        assert life.restarts == restarts
        assert life.app.exits.crashes == len(restarts)
        assert life.app.is_ready

    live(story, policy)


def test_one_that_goes_on_answering_is_not_asked_whether_it_listens(live) -> None:
    async def story(life: Life) -> None:
        life.process.listens = False
        for _ in range(60):
            await asyncio.sleep(0.5)
            life.app.record_answer()
        assert life.restarts == []

    live(story)


def test_a_newer_policy_holds_for_the_replacement_under_way(live) -> None:
    async def story(life: Life) -> None:
        assert life.app.start_replacement("memory")
        life.app.apply(schema.App(stop_timeout=1.0))
        assert await life.answered(5.0) == pytest.approx(1.0 + Process.START, abs=0.5)

    live(story)
