"""The composition root: builds every part from a policy, starts and stops them in order.

Starting: bind every listener → open the ledger → start the app → it is ready: now the public listener accepts.
Stopping: unready → the public listener stops accepting → drain → SIGTERM to the app → when it has ended,
everything else closes.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from proxy import __version__
from proxy.admin.auth import TokenAuthenticator
from proxy.admin.endpoints import PublicEndpoints
from proxy.admin.listener import AdminListener
from proxy.app import AppController
from proxy.app.memory_recycler import MemoryRecycler
from proxy.app.memory_usage import MemoryMeter
from proxy.app.metrics_scrape import AppMetricsScraper
from proxy.app.probes import warn_of_claimed_paths
from proxy.egress.service import Egress
from proxy.ingress.service import IngressService
from proxy.ledger.ledger import Ledger
from proxy.ledger.user_marks import UserMarks
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.log import EventLog
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ProcessSampler
from proxy.observe.recent_errors import RecentErrors
from proxy.observe.request_ids import IdGenerator
from proxy.observe.request_registry import RequestRegistry
from proxy.observe.timeseries.history import MetricsHistory
from proxy.observers import make_alerts, make_endpoints
from proxy.operations.health import HealthReport, resolve_memory_limit
from proxy.operations.launch_environment import LaunchEnvironment
from proxy.operations.pending_changes import hold_back_changes
from proxy.operations.policy_trial import try_policy
from proxy.operations.reloader import Reloader
from proxy.policy.schema.policy import Policy
from proxy.process.listen_sockets import ListenSockets, start_listening
from proxy.process.service_manager import ServiceNotifier
from proxy.util.background_tasks import BackgroundTasks

if TYPE_CHECKING:
    from proxy.postgres.service import PostgresService

Prepare = Callable[[Policy], Callable[[], None]]  # makes all that may fail, and gives what puts it in force
STOPPED = 0
CLOSING = 10.0  # seconds that the rest of a stop may take


class Gateway:
    """One policy, one app, and everything in front of it. `run` is its whole life."""

    def __init__(
        self,
        policy: Policy,
        app: AppController,
        sockets: ListenSockets,
        *,
        log: EventLog,
        metrics: Metrics,
        reloader: Reloader,
        egress: Egress,
        ledger: Ledger,
        database: PostgresService | None,
        requests: RequestRegistry,
        recent: RecentErrors,
        environ: Mapping[str, str],
        outfit: LaunchEnvironment,
        notifier: ServiceNotifier,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.policy = policy  # in force
        self._wanted = policy  # the newest: what of it the running app cannot follow waits for its next start
        self._dressed = policy  # that the running app was started under
        self._environ = environ
        self._outfit = outfit
        self.app = app
        self._sockets = sockets
        self._notifier = notifier
        self._log = log
        self._emit = log.emit
        self.metrics = metrics
        self.reloader = reloader
        self.egress = egress
        self.ledger = ledger
        self.marks = UserMarks(ledger.database, emit=log.emit)
        self.database = database
        self.recent = recent
        self.policy_since = time.time()
        self._loop = loop
        self.clock = loop.time
        self.stopping = False
        self._open = False
        self._signals = 0
        self._signalled = asyncio.Event()
        self._tasks = BackgroundTasks()

        meter = MemoryMeter()
        self.runtime = ProcessSampler(
            metrics,
            clock=loop.time,
            app_bytes=lambda: meter.measure(app.pid) if app.pid is not None else None,
            limit_bytes=lambda: resolve_memory_limit(self.policy),
        )
        view = HealthReport(self)
        self.health = HealthCheckRegistry(loop.time, version=__version__)
        self.health.register("app", view.check_app)
        self.health.register("memory", view.check_memory)
        self.health.register("upstreams", egress.health)
        self.health.register("ledger", ledger.health)
        self.health.register("store", view.check_store)
        self.health.register("connections", view.check_connections)
        if database is not None:
            self.health.register("postgres", database.health)
        self.runtime.on_sample(view.record_sample)
        self.history = MetricsHistory(metrics, clock=loop.time, levels=view.read_levels)
        self.alerts = make_alerts(self, log, environ)
        self.runtime.on_sample(self.alerts.update_conditions)
        pressure = MemoryRecycler(
            app,
            lambda: self.policy.app,
            replace=app.start_replacement,
            emit=log.emit,
            clock=loop.time,
            stopping=lambda: self.stopping,
        )
        self.runtime.on_sample(pressure.check_sample)
        self.gate = TokenAuthenticator(policy.admin.token, clock=loop.time)
        endpoints = make_endpoints(self, view, log)
        self._admin = AdminListener(endpoints, ids=IdGenerator(), emit=log.emit)
        self.door = IngressService(
            loop,
            policy,
            app,
            ours=PublicEndpoints(endpoints),
            metrics=metrics,
            log=log,
            requests=requests,
            allowances=egress.spend,
            blocked=self.marks.users,
            recent=recent,
            on_render=bool(environ.get("RENDER")),
            app_bytes=lambda: self.runtime.latest.app_bytes or 0,
        )
        app.attach_traffic(self.door.pool, lambda: self.policy.listen.drain, metrics.count_upstream_calls)
        app.set_environment_source(self._dress)
        self.parts: dict[str, Prepare] = {
            "log": lambda new: log.prepare(new.log),
            "metrics": lambda new: partial(metrics.apply, new.metrics),
            "admin": lambda new: partial(self.gate.replace_token, new.admin.token),
            "app": lambda new: partial(app.apply, new.app),
            "door": self.door.prepare,
            "egress": egress.prepare,
            "ledger": lambda new: partial(ledger.apply, new.ledger),
            "alerts": lambda new: partial(self.alerts.apply, new.alerts),
        }
        if database is not None:
            self.parts["database"] = lambda new: partial(database.apply, new.postgres)
        metrics.fetch_app_exposition = AppMetricsScraper(app, lambda: self.policy.metrics.app, emit=log.emit).fetch
        metrics.on_scrape(view.fill_gauges)
        metrics.follow_total(metrics.rate_limit_evicted_total, lambda: self.door.limiter.evicted)
        metrics.follow_total(metrics.log_dropped_total, lambda: log.dropped)

    async def run(self) -> int:
        """Serve until the app ends for good or a signal says so; the status to exit with.

        Raises BindError when a listener cannot be opened.
        """
        self._catch_signals()
        try:
            await self._admin.start(start_listening(self._sockets.admin, "listen.admin"))
            await self.ledger.start()
            await self.marks.start()
            await self.egress.load()
            await self.egress.start(start_listening(self._sockets.egress, "listen.egress"))
            if self.database is not None and self._sockets.postgres is not None:
                await self.database.start(start_listening(self._sockets.postgres, "postgres.listen"))
            self._tasks.start(self.runtime.run())
            self._tasks.start(self.history.run())
            self._tasks.start(self.alerts.run())
            self._tasks.start(self.reloader.watch(self.reload))
            self._tasks.start(self._notifier.run_watchdog())
            life = self._loop.create_task(self.app.run())
            ended = await self._until_ready(life)
            if ended is None and not self.stopping:
                await self._open_public()
                ended = await self._until(life)
            if ended is None:
                return await self._stop(life)
            self._emit("gateway.end", f"The app ended for good with status {ended}.", level="error", status=ended)
            await self.door.drain(1.0)
            return ended
        finally:
            await self._close()

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    async def _until_ready(self, life: asyncio.Task[int]) -> int | None:
        """Wait for the first readiness; the app's status where it ended before, None otherwise."""
        ready = self._loop.create_task(self.app.wait_ready(float("inf")))
        try:
            return await self._until(life, ready)
        finally:
            ready.cancel()

    async def _until(self, life: asyncio.Task[int], *others: asyncio.Task[bool]) -> int | None:
        """Wait for the app's end, a signal, or one of `others`; the app's status where it ended."""
        signalled = self._loop.create_task(self._signalled.wait())
        try:
            await asyncio.wait((life, signalled, *others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
        return life.result() if life.done() and not self.stopping else None

    async def _open_public(self) -> None:
        public = self._sockets.public
        if public is None:
            text = "The app is ready; there is no public port (listen.public: off)."
            self._emit("gateway.ready", text)
            self._notifier.notify_ready(text)
            return
        await self.door.open(start_listening(public, "listen.public"))
        self._open = True
        name = public.getsockname()
        self._emit("gateway.ready", f"The app is ready: serving on {name[0]}:{name[1]}.", port=name[1])
        self._notifier.notify_ready(f"Serving on {name[0]}:{name[1]}.")
        claim, patience = self.policy.listen.claim, self.policy.app.ready.timeout
        self._tasks.start(warn_of_claimed_paths(self.app.address, claim, patience, self._emit))

    # ── stopping ─────────────────────────────────────────────────────────────────────────────

    async def _stop(self, life: asyncio.Task[int]) -> int:
        listen = self.policy.listen
        self._emit("gateway.drain", f"Stopping: requests in flight have {listen.drain:g} s to finish.")
        self._notifier.notify_stopping(listen.drain + self.policy.app.stop_timeout + CLOSING)
        steps = self._loop.create_task(self._stop_in_order(life, listen.drain))
        again = self._loop.create_task(self._second_signal())
        await asyncio.wait((steps, again), return_when=asyncio.FIRST_COMPLETED)
        if not steps.done():
            self._emit("gateway.end", "A second signal: ending at once.", level="warning")
            steps.cancel()
            self.app.kill()
            await asyncio.wait((life,), timeout=2.0)
            return 128 + self._signals
        again.cancel()
        steps.result()
        return STOPPED

    async def _stop_in_order(self, life: asyncio.Task[int], drain: float) -> None:
        if self._open and not await self.door.drain(drain):
            left = sum(self.door.accounting.in_flight.values())
            self._emit("gateway.drain", f"{left} requests did not finish in {drain:g} s.", level="warning", left=left)
        await self.door.abort_requests()
        await self.app.stop()
        await asyncio.wait((life,))
        self._emit("gateway.end", "Stopped.")

    async def _second_signal(self) -> None:
        self._signalled.clear()
        await self._signalled.wait()

    async def _close(self) -> None:
        await self.app.stop()
        self.door.close()
        await self.egress.stop()  # after the app: it may call out and query while it finishes
        if self.database is not None:
            await self.database.stop()
        await self._admin.stop()
        await self._tasks.close()
        await self.alerts.close()
        await self.marks.stop()
        await self.ledger.stop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.remove_signal_handler(number)

    # ── signals and reloads ──────────────────────────────────────────────────────────────────

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_signal(self, number: int) -> None:
        self._signals = number
        self.stopping = True
        self._signalled.set()

    def _on_hangup(self) -> None:
        if self._open:
            self._notifier.notify_reloading()
        self.reloader.reload(self.reload)
        if self._open:
            refused = self.reloader.refused
            self._notifier.notify_ready(f"The newest policy was refused: {refused}" if refused else "Serving.")

    def reload(self, policy: Policy) -> Sequence[str]:
        """Take a newer policy whole, or nothing of it: counts, queues and connections go on. The keys that wait for
        the app's next start. Raises PolicyError, and whatever a part meets that cannot be made of it."""
        try_policy(policy, self._environ)
        held, waiting = hold_back_changes(self._dressed, self.policy, policy, self._environ)
        self._take(held)
        self._wanted = policy
        return waiting

    def _take(self, policy: Policy) -> None:
        """Everything is made before anything is swapped."""
        takes = [prepare(policy) for prepare in self.parts.values()]
        before = [prepare(self.policy) for prepare in self.parts.values()]
        try:
            for take in takes:
                take()
        except BaseException:  # ours to mend, but nobody is served by half of a policy
            for take in before:
                take()
            raise
        self.policy, self.policy_since = policy, time.time()

    def _dress(self) -> tuple[Mapping[str, str], bool]:
        """The app is about to start: what waited for that comes into force with it."""
        if self._wanted is not self.policy:
            self._take(self._wanted)
            self.reloader.app_started()
        self._dressed = self.policy
        return self._outfit.build(self.policy)
