"""Readiness and liveness probes of the app, in the sense of Kubernetes, each over a connection of its own.

An app was alive and is not any more if nothing listens on its port, or if its probes fail while nothing else is being
answered either. What the probes cost the app is judged once, after the first few.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from proxy.observe.emit import EmitEvent
from proxy.policy import schema

LOOPBACK = ("127.0.0.1", "::1")


async def probe_app(port: int, path: str | None, timeout: float, hosts: tuple[str, ...] = LOOPBACK) -> str | None:
    """The host that answered, or None. Without a path it is enough that the port accepts connections; with one, a
    response below 500 (to GET, HTTP/1.1, Host localhost) within `timeout` seconds is needed."""
    # An app may listen on one of the two loopback addresses only.
    for host in hosts:
        try:
            async with asyncio.timeout(timeout):
                if await _check_host(host, port, path):
                    return host
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
            continue
    return None


class PortProbe:
    """Checks whether anything listens on a port, by a connection that is half-closed at once.

    A busy app leaves connections in its accept queue, closed ones too, and queues of five are common (socketserver's
    `request_queue_size`). So there is only one at a time: the next is made when the app has accepted and closed the
    last. While that one is open, somebody listens.
    """

    def __init__(self) -> None:
        self._connection: asyncio.Task[None] | None = None

    @property
    def is_waiting(self) -> bool:
        return self._connection is not None and not self._connection.done()

    async def is_refused(self, port: int, timeout: float = 5.0) -> bool:
        """Whether every loopback address refuses connections; one that does not answer in time does not refuse."""
        for host in LOOPBACK:
            try:
                async with asyncio.timeout(timeout):
                    reader, writer = await asyncio.open_connection(host, port)
            except TimeoutError:
                return False
            except OSError:  # refused, or there is no such address
                continue
            self.close()
            self._connection = asyncio.get_running_loop().create_task(_until_closed(reader, writer))
            return False
        return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.cancel()


async def _until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write_eof()
        while await reader.read(4096):
            pass
    except OSError:
        pass
    finally:
        writer.close()


async def fetch_status(host: str, port: int, path: str, timeout: float) -> int | None:
    """The status that the app itself answers to a GET, or None."""
    try:
        async with asyncio.timeout(timeout):
            return await _get_status(host, port, path)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        return None


async def warn_of_claimed_paths(
    address: tuple[str, int], claims: Iterable[str], timeout: float, emit: EmitEvent
) -> None:
    """Warn of the claimed paths that the app answers as well: it no longer gets their requests."""
    for path in claims:
        found = await fetch_status(*address, path, timeout)
        if found is not None and found < 400:
            text = f"The app answers {path} as well ({found}); listen.claim takes it from the app."
            emit("policy.claim", text, level="warning", path=path)


async def _check_host(host: str, port: int, path: str | None) -> bool:
    if path is not None:
        return await _get_status(host, port, path) < 500
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return True


async def _get_status(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"GET %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: outrigger-probe\r\nAccept: */*\r\n"
            b"Connection: close\r\n\r\n" % path.encode()
        )
        line = await reader.readuntil(b"\n")
        return int(line.split()[1])
    finally:
        writer.close()


CHECK_SECONDS = 2.0  # between two checks of the port; a response in between saves one
RECHECK_SECONDS = 0.5  # after a connection was refused, ours or a request's
REFUSED_SECONDS = 3.0  # after which nothing listens any more; a child that a reloader restarts is back by then


class LivenessProbe:
    """Watches an app that was ready. `refused` counts the connections for requests that the app refused."""

    def __init__(
        self,
        policy: Callable[[], schema.Liveness | None],
        clock: Callable[[], float],
        refused: Callable[[], int],
        cost: ProbeCost,
    ) -> None:
        self._policy = policy
        self._refused_connections = refused
        self._clock = clock
        self._cost = cost
        self._last_answer = 0.0

    def record_answer(self) -> None:
        self._last_answer = self._clock()

    async def wait_until_lost(self, host: str, port: int, *, listened: bool) -> str:
        """Return a sentence as soon as the app is no longer alive; never if `app.liveness` is off.

        `listened`: something was seen to listen on the port.
        """
        ways = [asyncio.ensure_future(self._wait_until_hung(host, port))]
        if listened:
            ways.append(asyncio.ensure_future(self._wait_until_port_refuses(port)))
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for way in ways:
                way.cancel()

    async def _wait_until_port_refuses(self, port: int) -> str:
        """A first process that runs on (a wrapper, a reloader) proves nothing about the app behind it."""
        knock = PortProbe()
        try:
            return await self._poll_port(port, knock)
        finally:
            knock.close()

    async def _poll_port(self, port: int, knock: PortProbe) -> str:
        since: float | None = None
        while True:
            looked, seen = self._clock(), self._refused_connections()
            while self._clock() - looked < (
                RECHECK_SECONDS if since is not None or self._refused_connections() != seen else CHECK_SECONDS
            ):
                await asyncio.sleep(RECHECK_SECONDS)
            # Any response since the last look proves that somebody listens, and saves a connection.
            well = self._policy() is None or self._last_answer > looked
            well = well or (knock.is_waiting and self._refused_connections() == seen)
            if well or not await knock.is_refused(port):
                since = None
                continue
            since = looked if since is None else since
            refused = self._clock() - since
            if refused >= REFUSED_SECONDS:
                return (
                    f"Nothing listens on port {port} any more, for {refused:.0f} s, though the process that was started"
                    " lives on (app.liveness)."
                )

    async def _wait_until_hung(self, host: str, port: int) -> str:
        failures, streak = 0, self._clock()
        while True:
            policy = self._policy()
            await asyncio.sleep(policy.interval if policy is not None else CHECK_SECONDS)
            if policy is None or policy.path is None:
                continue
            asked = self._clock()
            if await self._cost.probe(port, policy.path, policy.timeout, (host,)) is not None:
                failures = 0
                continue
            # Probes of a busy app may time out; a response to anybody since the first failure means that it does not
            # hang.
            streak = asked if failures == 0 else streak
            failures = failures + 1 if self._last_answer < streak else 0
            if failures >= policy.failures:
                return f"The app hangs: {failures} probes of {policy.path} failed and nothing was answered."


PROBES_JUDGED = 3  # what two of these show is no coincidence
SLOW_SECONDS = 1.0  # seconds


class ProbeCost:
    """Judges the first probes of the app's health path, and warns once if it is slow or calls a vendor.

    `count_calls` counts the app's calls out that have ended, `is_quiet` says whether the app has no other request.
    """

    def __init__(self, emit: EmitEvent, clock: Callable[[], float]) -> None:
        self._emit = emit
        self._clock = clock
        self._costs: list[tuple[float, int]] = []
        self._judged = False
        self.count_calls: Callable[[], int] = lambda: 0
        self.is_quiet: Callable[[], bool] = lambda: True

    async def probe(self, port: int, path: str | None, timeout: float, hosts: tuple[str, ...] = LOOPBACK) -> str | None:
        """As `probe_app`, and measures what it cost."""
        if path is None or self._judged:
            return await probe_app(port, path, timeout, hosts)
        # Calls that end during a probe are the probe's own only if the app has no other request before and after it.
        quiet, calls, began = self.is_quiet(), self.count_calls(), self._clock()
        host = await probe_app(port, path, timeout, hosts)
        if host is not None:
            took = self._clock() - began
            self._judge_cost(path, took, self.count_calls() - calls if quiet and self.is_quiet() else 0)
        return host

    def _judge_cost(self, path: str, took: float, calls: int) -> None:
        self._costs.append((took, calls))
        slow = [took for took, _ in self._costs if took > SLOW_SECONDS]
        calling = [calls for _, calls in self._costs if calls]
        said = []
        if len(slow) > 1 or (slow and slow[0] > 2 * SLOW_SECONDS):
            said.append(f"took {slow[-1]:.1f} s")
        if len(calling) > 1:
            said.append("calls a vendor each time, which may cost money")
        if said:
            text = (
                f"The app's health path {path} {' and '.join(said)}: it should be quick and ask nobody else. Leave it"
                " out of app.liveness (and app.ready), and the port alone is asked."
            )
            self._emit("app.probe", text, level="warning", path=path, took_s=round(took, 3), calls=calls)
        self._judged = bool(said) or len(self._costs) >= PROBES_JUDGED
