"""The app's life under the gateway, as a state machine over one process at a time.

state        event                                          next         what is done
───────────  ─────────────────────────────────────────────  ───────────  ─────────────────────────────────────────────
starting     a readiness probe succeeds                     ready
starting     the process ends, or start_timeout passes      ended        its status is the gateway's
ready        the process ends by itself (crash)             restarting   a new one starts after restart.backoff
ready        liveness is lost (hung)                        restarting   the process is stopped, a new one starts
ready        start_replacement() (memory, reload)           restarting   requests drain, it is stopped, a new one starts
ready        a worker ends with status 0                    ended
restarting   a readiness probe succeeds                     ready
restarting   the process ends, or start_timeout passes      restarting   the backoff doubles, up to restart.max_backoff
restarting   that was attempt restart.give_up_after         ended
any          stop()                                         stopping     stop_signal, stop_timeout, SIGKILL
any          kill()                                         ended        SIGKILL at once
stopping     the last process of the group has ended        ended

One task, `run`, owns the process: it alone starts processes and sees each to its end. Whoever wants it to end earlier
(stop, kill, a replacement) resolves the future `_replacement_reason`, of which there is one per process; a reason that
comes late, when the process has ended already, is without effect. So a crash in the middle of a replacement is one
restart, not two. The first start is special: an app that was never ready has most likely a wrong command or
configuration, and restarting it would only hide its message.

While a replacement is under way, `_drained` is clear from its beginning to the end of the old process, and
`wait_ready` does not count that time: a request waits for the drain, and then `app.hold` for the new process.
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
from proxy.app.port_check import WRONG_PORT_AFTER, PortCheck
from proxy.app.probes import LOOPBACK, LivenessProbe, ProbeCost
from proxy.app.process import AppCannotStart, AppProcess
from proxy.app.reaper import OrphanReaper, reap_children
from proxy.observe.emit import EmitEvent, LogLevel
from proxy.policy import schema
from proxy.util.background_tasks import BackgroundTasks

SLOW_START_SECONDS = 20.0  # seconds of a start after which a warning is logged
DRAIN_POLL_SECONDS = 0.02  # seconds between two looks at the requests in flight
NEVER_READY_STATUS = 1  # the exit status if the app was stopped for not being ready in time, and ended with 0


class Supervisor:
    """Runs one command, and runs it again when it ends; an `AppController`.

    `worker`: the app serves no port, so it is ready as soon as it runs, and ends the gateway if it ends with status 0.
    `emit_output` gets the lines that the app prints if they are wrapped; `find` finds a request by the token in such a
    line. `orphans` reaps the processes that the app detaches; without it they are left alone. `on_restart` is called
    with the reason of each restart: crash, hung, or what the app was replaced for.

    `ready_once` says whether it has ever been ready, `last_start_took` how many seconds the last start took.
    """

    def __init__(
        self,
        policy: schema.App,
        command: Command,
        environ: Mapping[str, str],
        *,
        port: int,
        emit: EmitEvent,
        emit_output: EmitEvent | None = None,
        on_restart: Callable[[str], None],
        wrap: bool = False,
        find: FindAttribution = lambda token: None,
        worker: bool = False,
        orphans: OrphanReaper | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._command = command
        self._environment_source: Callable[[], AppEnvironment] = lambda: (environ, wrap)
        self._port = port
        self._emit = emit
        self._emit_output = emit_output or emit
        self._on_restart = on_restart
        self._find_attribution = find
        self._worker = worker
        self._reaper = orphans
        self._clock = clock
        self._host = LOOPBACK[0]
        self._process: AppProcess | None = None
        self._ready = asyncio.Event()
        self._replacement_reason: asyncio.Future[str] | None = None  # why the process should end
        self._stopping = False
        self._ended = asyncio.Event()
        self._traffic: AppTraffic | None = None
        self._drain_seconds: Callable[[], float] = lambda: 0.0
        self._drained = asyncio.Event()  # clear from the beginning of a replacement to the end of the old process
        self._drained.set()
        self._replacement_deadline = 0.0  # until then the absence of the app is expected
        self._tasks = BackgroundTasks()
        self._probe_cost = ProbeCost(emit, clock)
        self._port_check = PortCheck(port, emit)
        self._liveness = LivenessProbe(
            lambda: self._policy.liveness,
            clock,
            lambda: 0 if self._traffic is None else self._traffic.refused_connections,
            self._probe_cost,
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
        return process.pid if process is not None and process.is_running else None

    @property
    def is_replacing(self) -> bool:
        return not self.is_ready and self._clock() < self._replacement_deadline

    def attach_traffic(
        self, traffic: AppTraffic, drain: Callable[[], float], calls: Callable[[], int] = lambda: 0
    ) -> None:
        self._traffic, self._drain_seconds = traffic, drain
        self._probe_cost.count_calls, self._probe_cost.is_quiet = calls, lambda: not traffic.in_use

    def set_environment_source(self, outfit: Callable[[], AppEnvironment]) -> None:
        self._environment_source = outfit

    def record_answer(self) -> None:
        self._liveness.record_answer()

    def apply(self, policy: schema.App) -> None:
        self._policy = policy

    async def wait_ready(self, timeout: float) -> bool:
        # A loop and not one wait: the app may become ready and end again before this task runs.
        until = self._clock() + timeout
        while not self.is_ready and not self._ended.is_set() and (left := until - self._clock()) > 0:
            if not self._drained.is_set():
                began = self._clock()
                await self._drained.wait()  # bounded by `drain` and `stop_timeout`; `timeout` is for the start
                until += self._clock() - began
                continue
            try:
                async with asyncio.timeout(None if timeout == float("inf") else left):
                    await self._ready.wait()  # it may have ended again by the time that this returns
            except TimeoutError:
                pass
        return self.is_ready

    async def run(self) -> int:
        guard = OrphanGuard()
        if self._reaper is not None:
            self._reaper.exclude_child(guard.pid)
            self._tasks.start(
                self._reaper.watch_orphans(lambda: self.pid, lambda left: self._update_guard(guard, left))
            )
        try:
            return await self._run_until_stopped(guard)
        finally:
            self._kill_processes()
            guard.dismiss()
            self._tasks.cancel()
            # Whoever waits for readiness, or for the end of a replacement, must not wait any longer.
            self._set_state("ended", self.reason)
            self._ended.set()
            self._drained.set()
            self._ready.set()

    async def stop(self) -> None:
        if self._ended.is_set():
            return
        # Set first: the other task looks at it after every step, and starts no process any more.
        self._stopping = True
        self._drained.set()
        self._set_state("stopping", "the gateway is stopping it")
        self._request_end("stop")
        process = self._process
        if process is not None and process.is_running:
            self._emit("app.stop", f"Stopping the app; it has {self._policy.stop_timeout:g} s.", pid=process.pid)
            await self._stop_process(process)

    def kill(self) -> None:
        self._stopping = True
        self._request_end("stop")
        self._kill_processes()

    def _kill_processes(self) -> None:
        if self._process is not None:
            self._process.kill_group()
        if self._reaper is not None:
            self._reaper.kill_orphans()

    def start_replacement(self, reason: str) -> bool:
        """Begin to replace the app. `reason` is a label of the metric app_restarts_total: memory or reload."""
        process, asked = self._process, self._replacement_reason
        if not self.is_ready or self._stopping or process is None or asked is None:
            return False
        # Until the old process has ended, the absence of the app is expected for as long as the drain takes.
        self._replacement_deadline = float("inf")
        self._drained.clear()
        self._set_state("restarting", f"it is being replaced ({reason}): requests in flight finish first")
        self._tasks.start(self._run_replacement(reason, process, asked))
        return True

    async def replace(self, reason: str) -> bool:
        policy = self._policy
        return self.start_replacement(reason) and await self.wait_ready(policy.stop_timeout + policy.start_timeout)

    async def _run_replacement(self, reason: str, process: AppProcess, asked: asyncio.Future[str]) -> None:
        try:
            await self._drain_requests(process, reason)
        finally:  # whatever happens, nobody may wait for ever
            if not asked.done():
                asked.set_result(reason)
            try:
                await process.ended.wait()
            finally:
                self._replacement_deadline = self._clock() + self._policy.hold
                self._drained.set()

    async def _drain_requests(self, process: AppProcess, reason: str) -> None:
        """Give the requests in flight the drain time to finish; cut those that did not."""
        traffic, patience = self._traffic, self._drain_seconds()
        if traffic is not None:
            text = f"Replacing the app ({reason}); {traffic.in_use} requests have {patience:g} s to finish."
            self._emit("app.replace", text, pid=process.pid, reason=reason)
            until = self._clock() + patience
            while traffic.in_use and process.is_running and not self._stopping and self._clock() < until:
                await asyncio.sleep(DRAIN_POLL_SECONDS)
            if traffic.in_use and process.is_running and not self._stopping:
                text = f"{traffic.in_use} requests did not finish in {patience:g} s (listen.drain)."
                self._emit("app.replace", text, level="warning", left=traffic.in_use, reason=reason)
                traffic.abort_requests("The app did not finish its answer within listen.drain, and is being replaced.")
            # Its idle connections would be found dead by the next request.
            traffic.close_idle()

    # ── the processes, one after the other ───────────────────────────────────────────────────

    async def _run_until_stopped(self, guard: OrphanGuard) -> int:
        failed = 0  # starts in a row that did not become ready
        backoff = self._policy.restart.backoff  # seconds before the next start; doubles with each crash
        while True:
            began = self._clock()
            self._replacement_reason = asyncio.get_running_loop().create_future()
            try:
                process = self._start_process(guard)
            except AppCannotStart as error:
                self._emit("app.exit", str(error), level="error", status=error.status)
                status, was_ready, why = error.status, False, "crash"
            else:
                was_ready = await self._wait_until_ready(process, began)
                why = await self._wait_until_over(process) if was_ready else "crash"
                status = await self._finish_process(process, why)
                guard.watch_group(0)  # the group is gone, and its id may be used again
            if self._stopping:
                return status
            failed = 0 if was_ready else failed + 1
            # An app that was never ready is not restarted: its command or its configuration is wrong.
            if not self.ready_once or (self._worker and status == 0 and why == "crash"):
                return status
            limit = self._policy.restart.give_up_after
            if limit and failed >= limit:
                self._emit("app.give-up", f"The app failed to start {failed} times in a row.", level="error")
                return status
            # It was ready for long enough: this crash has nothing to do with the one before.
            if was_ready and self._clock() - self._ready_at > self._policy.restart.max_backoff:
                backoff = self._policy.restart.backoff
            wait = backoff if why == "crash" else 0.0
            self._on_restart(why)
            self._set_state("restarting", f"it {'ended' if why == 'crash' else 'is being replaced: ' + why}")
            self._emit("app.restart", f"Starting the app again in {wait:g} s ({why}).", level="warning", reason=why)
            if why == "crash":
                backoff = min(backoff * 2, self._policy.restart.max_backoff)
                if await self._sleep_unless_stopped(wait):
                    return status

    def _start_process(self, guard: OrphanGuard) -> AppProcess:
        """Raises AppCannotStart."""
        # Asked at each start: a policy that was put in force since the last one may change the environment.
        environ, wrap = self._environment_source()
        process = AppProcess(
            self._command.argv,
            environ,
            wrap=wrap,
            is_line=self._command.is_shell_line,
            reap=reap_children if self._reaper is not None else lambda _: None,
        )
        self._process = process
        self._update_guard(guard, ())  # from here on a killed gateway takes the process along
        if process.stdout is not None and process.stderr is not None:
            self._tasks.start(capture_output(process.stdout, self._emit_output, "stdout", self._find_attribution))
            self._tasks.start(capture_output(process.stderr, self._emit_output, "stderr", self._find_attribution))
        shown = self._command.display
        self._emit("app.start", f"Started the app: {shown}", pid=process.pid, port=self._port)
        if self.state != "restarting":  # a restart stays one until the new process is ready
            self._set_state("starting", "it was started")
        return process

    async def _wait_until_ready(self, process: AppProcess, began: float) -> bool:
        """Probe until it is ready. False if it ended, was stopped, or took longer than `start_timeout`."""
        policy = self._policy
        warned, wrong_port = False, ""
        while process.is_running and not self._stopping:
            if self._worker and policy.ready.path is None:
                host: str | None = LOOPBACK[0]
            else:
                host = await self._probe_cost.probe(self._port, policy.ready.path, policy.ready.timeout)
            # It may have ended, or been stopped, while the probe was under way.
            if host is not None and process.is_running and not self._stopping:
                self._host = host
                self.last_start_took = self._clock() - began
                self.ready_once = True
                self._ready_at = self._clock()
                self._set_state("ready", "it answers")
                self._emit("app.ready", f"The app is ready after {self.last_start_took:.1f} s.", pid=process.pid)
                if not self._worker:
                    self._port_check.warn_if_exposed(process.pid)
                return True
            if not self._worker and not wrong_port and self._clock() - began > WRONG_PORT_AFTER:
                wrong_port = self._port_check.find_wrong_port(process.pid)
                if wrong_port:
                    self._set_state(self.state, wrong_port)
            if self._clock() - began > policy.start_timeout:
                text = f"The app was not ready within {policy.start_timeout:g} s (app.start_timeout)."
                self._emit("app.start-timeout", text, level="error", pid=process.pid)
                return False
            if not warned and self._clock() - began > SLOW_START_SECONDS:
                warned = True
                self._emit("app.slow-start", self._describe_slow_start(), level="warning", pid=process.pid)
            await _wait_first(process.ended.wait(), asyncio.sleep(policy.ready.interval))
        return False

    def _describe_slow_start(self) -> str:
        path = self._policy.ready.path
        if path is not None:
            return f"The app does not answer {path} on port {self._port} below 500 yet (app.ready.path)."
        return (
            f"Nothing listens on port {self._port} yet, which the app was given as PORT; an app with a port of its"
            " own in its code is fronted by app.url instead."
        )

    async def _wait_until_over(self, process: AppProcess) -> str:
        """Wait for the end of a ready app; why it is over: crash, hung, or what it is replaced for."""
        asked = self._replacement_reason
        assert asked is not None
        listened = not (self._worker and self._policy.ready.path is None)
        hangs = asyncio.ensure_future(self._liveness.wait_until_lost(*self.address, listened=listened))
        # Shielded: the future belongs to whoever resolves it, and must not be cancelled with this wait.
        await _wait_first(process.ended.wait(), asyncio.shield(asked), hangs)
        # In this order: a process that ended has crashed, though a replacement was asked for as well.
        if not process.is_running:
            return "crash"
        if asked.done():
            return asked.result()
        self._emit("app.hung", hangs.result(), level="error")
        return "hung"

    async def _finish_process(self, process: AppProcess, why: str) -> int:
        """Stop what is left of a process and its group, and record how it ended; its status."""
        on_its_own = not process.is_running
        if not self._stopping:
            self._set_state("restarting" if self.ready_once else "starting", "it ended" if on_its_own else why)
        # A crash is logged before the rest of the group is stopped, which may take the whole stop timeout.
        if on_its_own:
            self._record_exit(process, "stop" if self._stopping else why)
        await self._stop_process(process)
        status = process.status or 0
        if not on_its_own:
            self._record_exit(process, "stop" if self._stopping else why)
            if not self.ready_once:
                status = status or NEVER_READY_STATUS
        return status

    def _record_exit(self, process: AppProcess, why: str) -> None:
        """Keep and log an exit; it is an error if the app ended by itself."""
        exit = self.exits.record_exit(process.status or 0, why, process.pid)
        crashes = self.exits.crashes
        if why == "crash":
            text = f"The app ended with {exit}."  # the same text each time, so that log tools can group it
        else:
            text = f"The app ended with {exit}, as it was told to ({why})."
        level: LogLevel = "error" if why == "crash" else "info"
        facts = {"status": exit.status, "signal": exit.signal_name, "why": why, "pid": process.pid, "crashes": crashes}
        self._emit("app.exit", text, level=level, **facts)

    async def _stop_process(self, process: AppProcess) -> None:
        """Stop the process, its group and what it detached, all within `stop_timeout`."""
        began, patience = self._clock(), self._policy.stop_timeout
        await process.stop(patience, signal.Signals[self._policy.stop_signal])
        if self._reaper is not None:
            await self._reaper.end_orphans(patience - (self._clock() - began), self._report_orphans)

    def _report_orphans(self, count: int) -> None:
        self._emit("app.orphans", f"The app has ended; processes that it had detached are ended, too: {count}.")

    def _update_guard(self, guard: OrphanGuard, orphans: Sequence[int]) -> None:
        """Tell the guard whom to end, and how, if the gateway is killed."""
        process = self._process
        if process is not None and process.is_running:
            stop = signal.Signals[self._policy.stop_signal]
            guard.watch_group(process.pid, whole=self._command.is_shell_line, stop=stop, orphans=orphans)

    async def _sleep_unless_stopped(self, seconds: float) -> bool:
        deadline = self._clock() + seconds
        while not self._stopping and (left := deadline - self._clock()) > 0:
            await asyncio.sleep(min(left, 0.1))
        return self._stopping

    # ── helpers ──────────────────────────────────────────────────────────────────────────────

    def _set_state(self, state: AppState, reason: str) -> None:
        if state != self.state:
            self.since = self._clock()
        self.state, self.reason = state, reason
        if state == "ready":
            self._replacement_deadline = 0.0
            self._ready.set()
        elif not self._ended.is_set():
            self._ready.clear()

    def _request_end(self, why: str) -> None:
        if self._replacement_reason is not None and not self._replacement_reason.done():
            self._replacement_reason.set_result(why)


async def _wait_first(*waiting: object) -> None:
    """Wait for the first of several to finish, and cancel the others."""
    tasks = [asyncio.ensure_future(one) for one in waiting]  # type: ignore[call-overload]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
