"""The ledger's writer: records wait in memory for less than half a second, then go to the store in batches.

Nothing that adds a record waits for a disk. While the store is away the records wait, calls go on (or not, with
`ledger.on_error: deny`), and health says so. Once it is back they are written, each once (write_buffer.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from proxy.ledger.record import CallRecord
from proxy.ledger.store import (
    MAX_IDS_PER_QUERY,
    LedgerStore,
    LedgerUnavailable,
    RecordRejected,
    UserTotals,
    WindowTotals,
)
from proxy.ledger.write_buffer import MAX_BATCH_ROWS, MAX_ROWS, Batch, WriteBuffer
from proxy.observe.emit import EmitEvent
from proxy.observe.health import ComponentHealth
from proxy.observe.metric_family import time_awaitable
from proxy.observe.metrics import Metrics
from proxy.policy import schema
from proxy.policy.urls import mask_password, sqlite_path

FLUSH_SECONDS = 0.4  # with OPEN_AFTER and the writing itself, a call is on record within its first second
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.5, 5.0  # between tries while the store is away, doubled each time
WRITTEN_TIMEOUT = 2.0  # seconds that a call waits for its record to be written, if it must be
START_TIMEOUT = 5.0  # seconds that a start waits for the store
STOP_TIMEOUT = 3.0  # seconds that a stop tries to write what waits
PRUNE_FIRST, PRUNE_EVERY, PRUNE_PAUSE = 30.0, 600.0, 0.05  # seconds
PRUNE_ROWS = 1000  # at a time, some 20 ms


class Ledger:
    """The ledger as the rest of the gateway sees it. For the loop's thread alone.

    `now` is the wall clock, `clock` a monotonic one. Money is in whole nano-dollars (1e-9 $).
    """

    def __init__(
        self,
        policy: schema.Ledger,
        *,
        emit: EmitEvent,
        metrics: Metrics,
        clock: Callable[[], float],
        now: Callable[[], float] = time.time,
        database: LedgerStore | None = None,
        bound: int = MAX_ROWS,
        region: str = "",
    ) -> None:
        self._region = region  # in every row
        self._policy = policy
        self._emit = emit
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._store = database if database is not None else store_of(policy.url)
        self._buffer = WriteBuffer(bound)
        self._work_waits = asyncio.Event()  # there is something to write, or a database to look for
        self._batch_is_full = asyncio.Event()  # enough for a batch
        self._written = asyncio.Event()  # the batch under way has ended; then a new one takes its place
        self._away_because: str | None = None
        self._since = clock()
        self._pause = MIN_RETRY_SECONDS
        self._waiters: list[asyncio.Future[bool]] = []  # of wait_written: until firm records are written
        self._ending = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        metrics.on_scrape(lambda: metrics.ledger_backlog_rows.set(len(self._buffer)))
        metrics.follow_total(metrics.ledger_dropped_total, lambda: self._buffer.dropped)
        metrics.follow_total(metrics.ledger_folded_total, lambda: self._buffer.folded)

    # ── what the rest of the gateway sees ────────────────────────────────────────────────────

    async def start(self) -> None:
        """Open and migrate the store. One that is away is tried again.

        A file is made with the first row, or here if calls must not go on without it.
        """
        # A file is made at the start only if calls must not go on without it; otherwise the first row makes it, so that
        # a gateway that never calls an upstream leaves no file behind.
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._store.ensure_ready(create=self._policy.on_error == "deny")
        except TimeoutError:
            self._mark_away(f"{self._store.where} did not answer in {START_TIMEOUT:g} s")
        except LedgerUnavailable as away:
            self._mark_away(str(away))
        loop = asyncio.get_running_loop()
        self._tasks = (loop.create_task(self._write_forever()), loop.create_task(self._prune_forever()))

    async def stop(self) -> None:
        """Writes what waits, calls under way included, within a few seconds."""
        # All three events, since the writer may stand at any of its waits.
        self._ending.set()
        self._work_waits.set()
        self._batch_is_full.set()
        if self._tasks:
            writer, pruner = self._tasks
            pruner.cancel()
            # The writer ends by itself once nothing waits; pruning is not worth a second of the end.
            await asyncio.wait((writer,), timeout=STOP_TIMEOUT)
            writer.cancel()
            await asyncio.wait((writer, pruner), timeout=1.0)
        self._tasks = ()
        # A batch that was cancelled on its way still counts here: nobody knows whether it was written.
        left = len(self._buffer)
        if left:
            text = f"{left} rows could not be written before the end, and are lost: {self._away_because or 'no time'}."
            self._emit("ledger", text, level="error", rows=left)
        try:
            async with asyncio.timeout(1.0):
                await self._store.close()
        except (TimeoutError, LedgerUnavailable):
            pass

    def apply(self, policy: schema.Ledger) -> None:
        """Take a newer policy; its address stays."""
        self._policy = policy

    def record_open(self, entry: CallRecord) -> None:
        """A call began, reserved at `entry.cost`: on record as `open` if it is still under way in half a second."""
        entry.region = self._region
        self._buffer.add_open(entry, self._clock())
        self._work_waits.set()

    def record(self, entry: CallRecord, *, firm: bool = False) -> None:
        """Write down a call that was settled; with `firm`, as it is and next. Never blocks, never raises."""
        entry.region = self._region
        self._buffer.add_settled(entry, firm=firm)
        self._work_waits.set()
        if len(self._buffer) >= MAX_BATCH_ROWS:
            self._batch_is_full.set()

    async def wait_written(self, patience: float = WRITTEN_TIMEOUT) -> bool:
        """Wait until every firm record of before now is written; whether it was. At once while the store is away."""
        # While the store is away a wait would only add its time-out to every call.
        if self._away_because is not None or not self._tasks:
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._work_waits.set()
        self._batch_is_full.set()
        try:
            async with asyncio.timeout(patience):
                return await waiter
        except TimeoutError:
            return False

    def discard(self, id: str) -> None:
        """Forget a call that neither cost nor is worth a record; its open row is removed, if one was written."""
        self._buffer.drop(id)
        self._work_waits.set()

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None = None
    ) -> dict[str, WindowTotals]:
        """What was spent on an upstream in each window since its beginning (wall clock), up to `until`.

        Records that wait do not count; those that a crash left open do, at their reservation. Raises LedgerUnavailable.
        """
        return await self._store.window_totals(upstream, since, until)

    async def user_totals(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None = None
    ) -> dict[str, UserTotals]:
        """What these users come to in each window, rows that wait included: those are written first. For users without
        a call under way, whose open row would count twice. Raises LedgerUnavailable."""
        for _ in range(2):  # the batch under way, and the one after it: what waits now is in them, whatever comes then
            if self._away_because is not None or not self._buffer.holds_users(set(users)):
                break
            # The event of this batch: when it ends, a new event takes its place for the next one.
            written = self._written
            self._batch_is_full.set()
            self._work_waits.set()
            await written.wait()
        if self._away_because is not None:
            raise LedgerUnavailable(self._away_because)
        return await self._store.user_totals(upstream, users, since, until)

    async def spent_without(
        self, upstream: str, user: str | None, since: float, until: float, tags: Sequence[str]
    ) -> int:
        """What one user, or all (None), spent in calls of other instances than these. Raises LedgerUnavailable."""
        if self._away_because is not None:
            raise LedgerUnavailable(self._away_because)
        return await self._store.spent_without(upstream, user, since, until, tags)

    async def open_background_calls(self, upstream: str, most: int) -> list[CallRecord]:
        """Calls whose price is still to come. Raises LedgerUnavailable."""
        return await self._store.open_background_calls(upstream, most)

    async def find_by_reference(self, upstream: str, reference: str) -> CallRecord | None:
        """The call that the vendor knows by this reference, whatever became of it. Raises LedgerUnavailable."""
        return await self._store.find_by_reference(upstream, reference)

    async def settled_costs(self, ids: Sequence[str]) -> dict[str, int]:
        """Which of these calls somebody settled, and what they cost. Raises LedgerUnavailable."""
        found: dict[str, int] = {}
        for at in range(0, len(ids), MAX_IDS_PER_QUERY):
            found |= await self._store.settled_costs(ids[at : at + MAX_IDS_PER_QUERY])
        return found

    async def forgiven_by_user(
        self, upstream: str, since: Mapping[str, float], until: float
    ) -> dict[str, dict[str, int]]:
        """What operators forgave in each of these windows, by user. Raises LedgerUnavailable."""
        return await self._store.forgiven_by_user(upstream, since, until)

    @property
    def store(self) -> LedgerStore:
        return self._store

    def health(self) -> ComponentHealth:
        if self._away_because is None:
            return ComponentHealth("ok", f"calls are written to {self._store.where}", self._since)
        waiting = len(self._buffer)
        return ComponentHealth("degraded", f"{self._away_because}; rows that wait in memory: {waiting}", self._since)

    def refuses_calls(self) -> bool:
        """Whether calls must not go on: `on_error: deny`, and they could not be written down."""
        return self.strict and (self._away_because is not None or self._buffer.full)

    @property
    def strict(self) -> bool:
        """Whether no call goes on that the ledger knows nothing of (`on_error: deny`)."""
        return self._policy.on_error == "deny"

    @property
    def rows_waiting(self) -> int:
        """Settled rows that wait."""
        return len(self._buffer)

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    async def _write_forever(self) -> None:
        # `idle` counts open calls too: on the way out those are written at their reservation.
        while not (self._ending.is_set() and self._buffer.idle):
            await self._work_waits.wait()
            self._work_waits.clear()
            await self._wait_for_more()
            await self._write_waiting()
            if self._away_because is not None or not self._buffer.idle:
                self._work_waits.set()

    async def _wait_for_more(self) -> None:
        """Wait until records have come together, or while the store is away, until it is time for another try."""
        event, patience = self._batch_is_full, FLUSH_SECONDS
        if self._away_because is not None:
            event, patience = self._ending, self._pause
        if self._away_because is not None and self._ending.is_set():
            # `_ending` is set already and would end the wait at once: the tries would spin.
            await asyncio.sleep(MIN_RETRY_SECONDS / 2)
            return
        try:
            async with asyncio.timeout(patience):
                await event.wait()
        except TimeoutError:
            pass
        if not self._ending.is_set():
            self._batch_is_full.clear()

    async def _write_waiting(self) -> None:
        # Who begins to wait from here on waits for the next batch: their record may not be in this one.
        waiters, self._waiters = self._waiters, []
        try:
            written = 0
            if self._away_because is not None:
                await self._store.ensure_ready(create=True)
            while (batch := self._buffer.next_batch(self._clock(), everything=self._ending.is_set())) is not None:
                await self._write_batch(batch)
                written += len(batch)
                if len(batch) < MAX_BATCH_ROWS and not self._ending.is_set():
                    break  # what came in the meantime can wait for its own turn
            self._mark_back(written)
            _resolve(waiters, True)
        except LedgerUnavailable as away:
            self._metrics.ledger_writes_total.labels("error").inc()
            self._mark_away(str(away))
        except Exception as error:  # a fault of ours must not end the writer, and with it the ledger
            self._mark_away(f"{type(error).__name__}: {error}")
        finally:
            self._written.set()
            self._written = asyncio.Event()
            # Those that have their answer keep it; on every other way out the answer is no.
            _resolve(waiters, False)

    async def _write_batch(self, batch: Batch) -> None:
        """Write one batch. A row that no database takes is left out, so that it does not hold up the others."""
        pieces = deque([batch])
        while pieces:
            piece = pieces.popleft()
            try:
                writing = self._store.write_batch(piece.records, piece.removals)
                await time_awaitable(self._metrics.ledger_write_seconds, writing)
                self._metrics.ledger_writes_total.labels("ok").inc()
            except RecordRejected as error:
                # One record that the store rejects must not hold up the others: it is found by trying each by itself.
                if len(piece) > 1:
                    pieces.extendleft(reversed(piece.split()))
                    continue
                self._buffer.drop_batch(piece)
                self._emit("ledger", f"A row cannot be written and is left out: {error}.", level="error")
            except Exception as error:
                # If the commit may have happened, each record must be written again under its own id, never summed
                # up.
                doubtful = not isinstance(error, LedgerUnavailable) or error.doubtful
                self._buffer.requeue(piece, doubtful=doubtful)
                for rest in pieces:
                    self._buffer.requeue(rest, doubtful=False)
                raise
        self._buffer.batch_written()

    def _mark_away(self, why: str) -> None:
        # One event for each time away, not one for each try.
        if self._away_because is None:
            self._since = self._clock()
            self._pause = MIN_RETRY_SECONDS
            on = "calls go on and are remembered" if self._policy.on_error == "remember" else "calls are refused"
            self._emit("ledger", f"The ledger cannot be written: {why}; {on}.", level="error", reason=why)
        else:
            # Doubled up to a bound: a store that comes back is noticed within seconds, and one that stays away is not
            # pestered.
            self._pause = min(MAX_RETRY_SECONDS, self._pause * 2)
        self._away_because = why
        self._work_waits.set()

    def _mark_back(self, written: int) -> None:
        if self._away_because is None:
            return
        away = self._clock() - self._since
        self._away_because = None
        self._since = self._clock()
        self._emit(
            "ledger",
            f"The ledger is written again after {away:.0f} s; {written} rows had waited.",
            away_s=round(away, 1),
            rows=written,
            folded=self._buffer.folded,
            dropped=self._buffer.dropped,
        )

    async def _prune_forever(self) -> None:
        """Take out what is older than `keep`, a little at a time."""
        # Not at once: a start has enough to do, and what is older than `keep` can wait.
        await asyncio.sleep(PRUNE_FIRST)
        while True:
            try:
                # In small pieces: a write waits for the lock of one piece at most.
                while await self._store.prune(self._now() - self._policy.keep, PRUNE_ROWS) == PRUNE_ROWS:
                    await asyncio.sleep(PRUNE_PAUSE)
            except (LedgerUnavailable, RecordRejected):
                pass  # the writer reports it
            await asyncio.sleep(PRUNE_EVERY)


def _resolve(waiters: Sequence[asyncio.Future[bool]], written: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(written)


def store_of(url: str) -> LedgerStore:
    """The store that a URL names. Its driver is loaded only then."""
    path = sqlite_path(url)
    if path is not None:
        from proxy.ledger.sqlite import SqliteStore

        return SqliteStore(Path(path))
    from proxy.ledger.postgres import PostgresStore

    return PostgresStore(url, where=mask_password(url))
