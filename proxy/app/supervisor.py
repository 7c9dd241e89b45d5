"""The app's life under the gateway: started, ready, replaced when it ends or hangs, stopped in order.

starting ─ready→ ready ─ends, hangs, is asked to→ restarting ─ready→ ready …
    └─ends→ ended (before it was ever ready, its status is ours)
any ─stop()→ stopping → ended
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence

from proxy.app import AppEnvironment, AppState, AppTraffic
from proxy.app.command import Command
from proxy.app.exit_history import ExitHistory
from proxy.app.log_capture import FindAttribution, capture_output
from proxy.app.orphan_guard import OrphanGuard
from proxy.app.port_check import PATIENCE, PortCheck
from proxy.app.probes import LOOPBACK, LivenessProbe, ProbeCost
from proxy.app.process import AppCannotStart, AppProcess
from proxy.app.reaper import OrphanReaper, reap_children
from proxy.observe.emit import EmitEvent, LogLevel
from proxy.policy import schema
from proxy.util.background_tasks import BackgroundTasks

SLOW_START = 20.0  # seconds until a start that takes long is spoken of
LOOK = 0.02  # seconds between two looks at what is still in flight
NEVER_READY = 1  # the status where the app was stopped for not getting ready in time, and ended with 0


class Supervisor:
    """Runs one command as long as it should live. `worker`: it serves no port, so it is ready once it runs,
    and its ending with status 0 is the end. `tell` gets the app's own lines where they are wrapped,
    `find` knows a request by the token that a wrapped line bears. `orphans`: what the app detaches comes to us."""

    def __init__(
        self,
        policy: schema.App,
        command: Command,
        environ: Mapping[str, str],
        *,
        port: int,
        emit: EmitEvent,
        tell: EmitEvent | None = None,
        on_restart: Callable[[str], None],
        wrap: bool = False,
        find: FindAttribution = lambda token: None,
        worker: bool = False,
        orphans: OrphanReaper | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._command = command
        self._outfit: Callable[[], AppEnvironment] = lambda: (environ, wrap)
        self._port = port
        self._emit = emit
        self._tell = tell or emit
        self._on_restart = on_restart
        self._find = find
        self._worker = worker
        self._orphans = orphans
        self._clock = clock
        self._host = LOOPBACK[0]
        self._process: AppProcess | None = None
        self._ready = asyncio.Event()
        self._asked: asyncio.Future[str] | None = None  # why the running process is to be replaced
        self._stopping = False
        self._ended = asyncio.Event()
        self._traffic: AppTraffic | None = None
        self._drain: Callable[[], float] = lambda: 0.0
        self._drained = asyncio.Event()  # clear from a replacement's beginning to the old process's end
        self._drained.set()
        self._back_by = 0.0  # until then a replacement is no outage
        self._tasks = BackgroundTasks()
        self._cost = ProbeCost(emit, clock)
        self._whereabouts = PortCheck(port, emit)
        self._liveness = LivenessProbe(
            lambda: self._policy.liveness,
            clock,
            lambda: 0 if self._traffic is None else self._traffic.refused_connections,
            self._cost,
        )
        self._ready_at = 0.0
        self.state: AppState = "starting"
        self.reason = "not started yet"
        self.since = clock()
        self.ready_once = False
        self.last_start_took: float | None = None
        self.exits = ExitHistory()

    def __repr__(self) -> str:
        return f"<Supervisor {self.state}: {self.reason}>"

    # ── AppFace ──────────────────────────────────────────────────────────────────────────────

    @property
    def is_ready(self) -> bool:
        return self.state == "ready"

    @property
    def address(self) -> tuple[str, int]:
        return self._host, self._port

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.running else None

    @property
    def is_replacing(self) -> bool:
        return not self.is_ready and self._clock() < self._back_by

    def attach_traffic(
        self, traffic: AppTraffic, drain: Callable[[], float], calls: Callable[[], int] = lambda: 0
    ) -> None:
        self._traffic, self._drain = traffic, drain
        self._cost.calls, self._cost.quiet = calls, lambda: not traffic.in_use

    def set_environment_source(self, outfit: Callable[[], AppEnvironment]) -> None:
        self._outfit = outfit

    def record_answer(self) -> None:
        self._liveness.note_answer()

    def apply(self, policy: schema.App) -> None:
        self._policy = policy

    async def wait_ready(self, timeout: float) -> bool:
        until = self._clock() + timeout
        while not self.is_ready and not self._ended.is_set() and (left := until - self._clock()) > 0:
            if not self._drained.is_set():
                began = self._clock()
                await self._drained.wait()  # bounded by `drain` and `stop_timeout`: `timeout` is for the start
                until += self._clock() - began
                continue
            try:
                async with asyncio.timeout(None if timeout == float("inf") else left):
                    await self._ready.wait()  # it may be gone again by the time that this comes back
            except TimeoutError:
                pass
        return self.is_ready

    async def run(self) -> int:
        warden = OrphanGuard()
        if self._orphans is not None:
            self._orphans.exclude(warden.pid)
            self._tasks.start(self._orphans.watch(lambda: self.pid, lambda left: self._entrust(warden, left)))
        try:
            return await self._life(warden)
        finally:
            self._kill()
            warden.dismiss()
            self._tasks.cancel()
            self._become("ended", self.reason)
            self._ended.set()
            self._drained.set()
            self._ready.set()

    async def stop(self) -> None:
        if self._ended.is_set():
            return
        self._stopping = True
        self._drained.set()
        self._become("stopping", "the gateway is stopping it")
        self._ask("stop")
        process = self._process
        if process is not None and process.running:
            self._emit("app.stop", f"Stopping the app; it has {self._policy.stop_timeout:g} s.", pid=process.pid)
            await self._end(process)

    def kill(self) -> None:
        self._stopping = True
        self._ask("stop")
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill_group()
        if self._orphans is not None:
            self._orphans.kill_orphans()

    def start_replacement(self, reason: str) -> bool:
        """`reason` is a word of the metric app_restarts_total: memory, reload."""
        process, asked = self._process, self._asked
        if not self.is_ready or self._stopping or process is None or asked is None:
            return False
        self._back_by = float("inf")
        self._drained.clear()
        self._become("restarting", f"it is being replaced ({reason}): requests in flight finish first")
        self._tasks.start(self._replace(reason, process, asked))
        return True

    async def replace(self, reason: str) -> bool:
        policy = self._policy
        return self.start_replacement(reason) and await self.wait_ready(policy.stop_timeout + policy.start_timeout)

    async def _replace(self, reason: str, process: AppProcess, asked: asyncio.Future[str]) -> None:
        try:
            await self._let_finish(process, reason)
        finally:  # whatever happens, nobody waits for ever
            if not asked.done():
                asked.set_result(reason)
            try:
                await process.ended.wait()
            finally:
                self._back_by = self._clock() + self._policy.hold
                self._drained.set()

    async def _let_finish(self, process: AppProcess, reason: str) -> None:
        """Requests in flight have the drain's time."""
        traffic, patience = self._traffic, self._drain()
        if traffic is not None:
            text = f"Replacing the app ({reason}); {traffic.in_use} requests have {patience:g} s to finish."
            self._emit("app.replace", text, pid=process.pid, reason=reason)
            until = self._clock() + patience
            while traffic.in_use and process.running and not self._stopping and self._clock() < until:
                await asyncio.sleep(LOOK)
            if traffic.in_use and process.running and not self._stopping:
                text = f"{traffic.in_use} requests did not finish in {patience:g} s (listen.drain)."
                self._emit("app.replace", text, level="warning", left=traffic.in_use, reason=reason)
                traffic.abort_requests("The app did not finish its answer within listen.drain, and is being replaced.")
            traffic.close_idle()

    # ── life ─────────────────────────────────────────────────────────────────────────────────

    async def _life(self, warden: OrphanGuard) -> int:
        failed = 0
        backoff = self._policy.restart.backoff
        while True:
            began = self._clock()
            self._asked = asyncio.get_running_loop().create_future()
            try:
                process = self._start(warden)
            except AppCannotStart as error:
                self._emit("app.exit", str(error), level="error", status=error.status)
                status, was_ready, why = error.status, False, "crash"
            else:
                was_ready = await self._until_ready(process, began)
                why = await self._until_over(process) if was_ready else "crash"
                status = await self._finish(process, why)
                warden.watch(0)
            if self._stopping:
                return status
            failed = 0 if was_ready else failed + 1
            if not self.ready_once or (self._worker and status == 0 and why == "crash"):
                return status
            limit = self._policy.restart.give_up_after
            if limit and failed >= limit:
                self._emit("app.give-up", f"The app failed to start {failed} times in a row.", level="error")
                return status
            if was_ready and self._clock() - self._ready_at > self._policy.restart.max_backoff:
                backoff = self._policy.restart.backoff
            wait = backoff if why == "crash" else 0.0
            self._on_restart(why)
            self._become("restarting", f"it {'ended' if why == 'crash' else 'is being replaced: ' + why}")
            self._emit("app.restart", f"Starting the app again in {wait:g} s ({why}).", level="warning", reason=why)
            if why == "crash":
                backoff = min(backoff * 2, self._policy.restart.max_backoff)
                if await self._stopped_within(wait):
                    return status

    def _start(self, warden: OrphanGuard) -> AppProcess:
        """Raises CannotStart."""
        environ, wrap = self._outfit()
        process = AppProcess(
            self._command.argv,
            environ,
            wrap=wrap,
            is_line=self._command.is_shell_line,
            reap=reap_children if self._orphans is not None else lambda _: None,
        )
        self._process = process
        self._entrust(warden, ())
        if process.stdout is not None and process.stderr is not None:
            self._tasks.start(capture_output(process.stdout, self._tell, "stdout", self._find))
            self._tasks.start(capture_output(process.stderr, self._tell, "stderr", self._find))
        shown = self._command.display
        self._emit("app.start", f"Started the app: {shown}", pid=process.pid, port=self._port)
        if self.state != "restarting":
            self._become("starting", "it was started")
        return process

    async def _until_ready(self, process: AppProcess, began: float) -> bool:
        """False where it ended, was told to stop, or took longer than `start_timeout`."""
        policy = self._policy
        told, elsewhere = False, ""
        while process.running and not self._stopping:
            if self._worker and policy.ready.path is None:
                host: str | None = LOOPBACK[0]
            else:
                host = await self._cost.probe(self._port, policy.ready.path, policy.ready.timeout)
            if host is not None and process.running and not self._stopping:
                self._host = host
                self.last_start_took = self._clock() - began
                self.ready_once = True
                self._ready_at = self._clock()
                self._become("ready", "it answers")
                self._emit("app.ready", f"The app is ready after {self.last_start_took:.1f} s.", pid=process.pid)
                if not self._worker:
                    self._whereabouts.warn_of_width(process.pid)
                return True
            if not self._worker and not elsewhere and self._clock() - began > PATIENCE:
                elsewhere = self._whereabouts.elsewhere(process.pid)
                if elsewhere:
                    self._become(self.state, elsewhere)
            if self._clock() - began > policy.start_timeout:
                text = f"The app was not ready within {policy.start_timeout:g} s (app.start_timeout)."
                self._emit("app.start-timeout", text, level="error", pid=process.pid)
                return False
            if not told and self._clock() - began > SLOW_START:
                told = True
                self._emit("app.slow-start", self._not_yet(), level="warning", pid=process.pid)
            await _first(process.ended.wait(), asyncio.sleep(policy.ready.interval))
        return False

    def _not_yet(self) -> str:
        path = self._policy.ready.path
        if path is not None:
            return f"The app does not answer {path} on port {self._port} below 500 yet (app.ready.path)."
        return (
            f"Nothing listens on port {self._port} yet, which the app was given as PORT; an app with a port of its"
            " own in its code is fronted by app.url instead."
        )

    async def _until_over(self, process: AppProcess) -> str:
        """Why a ready app is over: crash, or what it was replaced for."""
        asked = self._asked
        assert asked is not None
        listened = not (self._worker and self._policy.ready.path is None)
        hangs = asyncio.ensure_future(self._liveness.lost(*self.address, listened=listened))
        await _first(process.ended.wait(), asyncio.shield(asked), hangs)
        if not process.running:
            return "crash"
        if asked.done():
            return asked.result()
        self._emit("app.hung", hangs.result(), level="error")
        return "hung"

    async def _finish(self, process: AppProcess, why: str) -> int:
        """See a process and its group to their end; the status."""
        on_its_own = not process.running
        if not self._stopping:
            self._become("restarting" if self.ready_once else "starting", "it ended" if on_its_own else why)
        if on_its_own:
            self._note_exit(process, "stop" if self._stopping else why)
        await self._end(process)
        status = process.status or 0
        if not on_its_own:
            self._note_exit(process, "stop" if self._stopping else why)
            if not self.ready_once:
                status = status or NEVER_READY
        return status

    def _note_exit(self, process: AppProcess, why: str) -> None:
        """In the log as an error where it ended by itself."""
        exit = self.exits.record(process.status or 0, why, process.pid)
        crashes = self.exits.crashes
        if why == "crash":
            text = f"The app ended with {exit}."  # the same each time: whoever groups messages counts them together
        else:
            text = f"The app ended with {exit}, as it was told to ({why})."
        level: LogLevel = "error" if why == "crash" else "info"
        facts = {"status": exit.status, "signal": exit.signal, "why": why, "pid": process.pid, "crashes": crashes}
        self._emit("app.exit", text, level=level, **facts)

    async def _end(self, process: AppProcess) -> None:
        """`stop_timeout` for all of it, detached processes included."""
        began, patience = self._clock(), self._policy.stop_timeout
        await process.stop(patience, signal.Signals[self._policy.stop_signal])
        if self._orphans is not None:
            await self._orphans.end_orphans(patience - (self._clock() - began), self._tell_of_orphans)

    def _tell_of_orphans(self, count: int) -> None:
        self._emit("app.orphans", f"The app has ended; processes that it had detached are ended, too: {count}.")

    def _entrust(self, warden: OrphanGuard, orphans: Sequence[int]) -> None:
        """Who is to end, and how, should we be killed."""
        process = self._process
        if process is not None and process.running:
            stop = signal.Signals[self._policy.stop_signal]
            warden.watch(process.pid, whole=self._command.is_shell_line, stop=stop, orphans=orphans)

    async def _stopped_within(self, seconds: float) -> bool:
        deadline = self._clock() + seconds
        while not self._stopping and (left := deadline - self._clock()) > 0:
            await asyncio.sleep(min(left, 0.1))
        return self._stopping

    # ── small things ─────────────────────────────────────────────────────────────────────────

    def _become(self, state: AppState, reason: str) -> None:
        if state != self.state:
            self.since = self._clock()
        self.state, self.reason = state, reason
        if state == "ready":
            self._back_by = 0.0
            self._ready.set()
        elif not self._ended.is_set():
            self._ready.clear()

    def _ask(self, why: str) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(why)


async def _first(*waiting: object) -> None:
    """Wait for the first of several, and for none of the others."""
    tasks = [asyncio.ensure_future(one) for one in waiting]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
