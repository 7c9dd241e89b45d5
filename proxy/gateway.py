"""The life of a gateway: its parts are started in order, stopped in order, and told of signals.

Starting: listen for admin requests → open the ledger → listen for calls and queries → start the app → once the app is
ready, the public listener accepts.
Stopping: unready → the public listener stops accepting → drain → SIGTERM to the app → when it has ended, everything
else closes. A second signal ends all of that at once.
"""

from __future__ import annotations

import asyncio
import signal

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.listener import AdminListener
from proxy.app.probes import warn_of_claimed_paths
from proxy.observe.alerts.manager import AlertManager
from proxy.operations.policy_rollout import PolicyRollout
from proxy.operations.reloader import Reloader
from proxy.operations.shared_state import SharedState
from proxy.parts import Parts
from proxy.process.listen_sockets import ListenSockets, start_listening
from proxy.process.service_manager import ServiceNotifier
from proxy.util.background_tasks import BackgroundTasks

EXIT_STOPPED = 0
EXIT_SIGNALLED = 128  # and the signal's number, as a shell has it
CLOSE_SECONDS = 10.0  # that the rest of a stop may take once the app has ended
KILL_SECONDS = 2.0  # for a killed app to be gone
FAREWELL_SECONDS = 1.0  # for requests in flight when the app has ended by itself


class Gateway:
    """One policy, one app, and everything in front of it. `run` is its whole life.

    `parts` is what it is made of. The others are the parts that only a gateway starts, stops or tells something:
    `alerts`, `reloader`, `rollout` and `authenticator` are attributes for the tests, which look behind the scenes.
    """

    def __init__(
        self,
        parts: Parts,
        sockets: ListenSockets,
        *,
        admin_listener: AdminListener,
        alerts: AlertManager,
        reloader: Reloader,
        rollout: PolicyRollout,
        authenticator: TokenAuthenticator,
        notifier: ServiceNotifier,
        shared_state: SharedState | None = None,
    ) -> None:
        self.parts = parts
        self._shared_state = shared_state
        self.alerts = alerts
        self.reloader = reloader
        self.rollout = rollout
        self.authenticator = authenticator
        self._sockets = sockets
        self._admin_listener = admin_listener
        self._notifier = notifier
        self._emit = parts.log.emit
        self._loop = asyncio.get_running_loop()
        self._is_open = False  # the public listener accepts
        self._signal_number = 0  # of the last signal that asked for an end
        self._signalled = asyncio.Event()
        self._tasks = BackgroundTasks()

    async def run(self) -> int:
        """Serve until the app ends for good or a signal asks for an end; the status to exit with.

        Raises BindError if a listener cannot be opened.
        """
        self._catch_signals()
        try:
            await self._start()
            # A task of its own: the app lives on while this function waits for a signal or for readiness.
            app_life = self._loop.create_task(self.parts.app.run())
            status = await self._wait_until_ready(app_life)
            if status is None and not self.parts.state.stopping:
                await self._open_public_listener()
                status = await self._wait_for_end(app_life)
            if status is None:
                return await self._stop(app_life)
            self._emit("gateway.end", f"The app ended for good with status {status}.", level="error", status=status)
            await self.parts.ingress.drain(FAREWELL_SECONDS)
            return status
        finally:
            await self._close()

    # ── starting ─────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> None:
        """Everything but the app and the public listener. The admin listener is first, so that an operator sees a slow
        start; egress and the database listener are there before the app, which may use them while it starts."""
        parts, sockets = self.parts, self._sockets
        await self._admin_listener.start(start_listening(sockets.admin, "listen.admin"))
        await parts.ledger.start()
        # Before whatever shares something by it; one that is away does not hold up the start.
        await parts.store.start()
        if parts.money_store is not parts.store:
            await parts.money_store.start()
        await parts.user_marks.start()
        if self._shared_state is not None:
            await self._shared_state.start()
        await parts.tasks.start()
        await parts.egress.load()
        await parts.egress.start(start_listening(sockets.egress, "listen.egress"))
        if parts.postgres is not None and sockets.postgres is not None:
            await parts.postgres.start(start_listening(sockets.postgres, "postgres.listen"))
        self._tasks.start(parts.process_sampler.run())
        self._tasks.start(parts.history.run())
        self._tasks.start(self.alerts.run())
        self._tasks.start(self.reloader.watch())
        self._tasks.start(self._notifier.run_watchdog())

    async def _wait_until_ready(self, app_life: asyncio.Task[int]) -> int | None:
        """Wait for the app's first readiness; its exit status if it ended before, None otherwise."""
        ready = self._loop.create_task(self.parts.app.wait_ready(float("inf")))
        try:
            return await self._wait_for_end(app_life, ready)
        finally:
            ready.cancel()

    async def _wait_for_end(self, app_life: asyncio.Task[int], *others: asyncio.Task[bool]) -> int | None:
        """Wait for the app's end, a signal, or one of `others`; the app's exit status if it ended by itself."""
        signalled = self._loop.create_task(self._signalled.wait())
        try:
            await asyncio.wait((app_life, signalled, *others), return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
        return app_life.result() if app_life.done() and not self.parts.state.stopping else None

    async def _open_public_listener(self) -> None:
        public = self._sockets.public
        if public is None:
            text = "The app is ready; there is no public port (listen.public: off)."
            self._emit("gateway.ready", text)
            self._notifier.notify_ready(text)
            return
        await self.parts.ingress.open(start_listening(public, "listen.public"))
        self._is_open = True
        host, port = public.getsockname()[:2]
        self._emit("gateway.ready", f"The app is ready: serving on {host}:{port}.", port=port)
        self._notifier.notify_ready(f"Serving on {host}:{port}.")
        policy, app = self.parts.policy, self.parts.app
        self._tasks.start(warn_of_claimed_paths(app.address, policy.listen.claim, policy.app.ready.timeout, self._emit))

    # ── stopping ─────────────────────────────────────────────────────────────────────────────

    async def _stop(self, app_life: asyncio.Task[int]) -> int:
        policy = self.parts.policy
        drain = policy.listen.drain
        self._emit("gateway.drain", f"Stopping: requests in flight have {drain:g} s to finish.")
        self._notifier.notify_stopping(drain + policy.app.stop_timeout + CLOSE_SECONDS)
        steps = self._loop.create_task(self._stop_in_order(app_life, drain))
        second_signal = self._loop.create_task(self._wait_for_second_signal())
        await asyncio.wait((steps, second_signal), return_when=asyncio.FIRST_COMPLETED)
        if not steps.done():
            self._emit("gateway.end", "A second signal: ending at once.", level="warning")
            steps.cancel()
            self.parts.app.kill()
            await asyncio.wait((app_life,), timeout=KILL_SECONDS)
            return EXIT_SIGNALLED + self._signal_number
        second_signal.cancel()
        steps.result()
        return EXIT_STOPPED

    async def _stop_in_order(self, app_life: asyncio.Task[int], drain: float) -> None:
        ingress = self.parts.ingress
        # Tasks drain with the requests: what does not finish is queued again, for the next instance.
        tasks = self._loop.create_task(self.parts.tasks.drain(drain))
        if self._is_open and not await ingress.drain(drain):
            left = sum(ingress.accounting.in_flight.values())
            self._emit("gateway.drain", f"{left} requests did not finish in {drain:g} s.", level="warning", left=left)
        await tasks
        # What did not finish in time is ended by us, with an answer that says why, and not by the dying app.
        await ingress.abort_requests()
        await self.parts.app.stop()
        await asyncio.wait((app_life,))
        self._emit("gateway.end", "Stopped.")

    async def _wait_for_second_signal(self) -> None:
        # The first signal set it; only another one wakes this up.
        self._signalled.clear()
        await self._signalled.wait()

    async def _close(self) -> None:
        parts = self.parts
        # Also after an error at the start: whatever was started by then is stopped, and each stop may be called twice.
        await parts.app.stop()
        parts.ingress.close()
        # After the app, which may call out and query while it finishes; the ledger last, since a call that ends now is
        # still to be recorded.
        await parts.egress.stop()
        if parts.postgres is not None:
            await parts.postgres.stop()
        await self._admin_listener.stop()
        await self._tasks.close()
        await self.alerts.close()
        await parts.tasks.stop()
        if self._shared_state is not None:
            await self._shared_state.close()
        await parts.user_marks.stop()
        if parts.money_store is not parts.store:
            await parts.money_store.stop()
        await parts.store.stop()
        await parts.ledger.stop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._loop.remove_signal_handler(number)

    # ── signals ──────────────────────────────────────────────────────────────────────────────

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._handle_stop_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._handle_hangup)

    def _handle_stop_signal(self, number: int) -> None:
        self._signal_number = number
        self.parts.state.stopping = True
        self._signalled.set()

    def _handle_hangup(self) -> None:
        # A service manager is told of a reload only once it was told that the start is over.
        if self._is_open:
            self._notifier.notify_reloading()
        self.reloader.reload()
        if self._is_open:
            refused = self.reloader.refused
            self._notifier.notify_ready(f"The newest policy was refused: {refused}" if refused else "Serving.")
