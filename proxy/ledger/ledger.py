"""The ledger's writer: rows wait in memory for less than half a second, then go to the database in batches.

Nothing that adds a row waits for a disk. While the database is away the rows wait, calls go on (or not, with
`ledger.on_error: deny`), and health says so. Once it is back they are written, each once.
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

FLUSH = 0.4  # seconds: with OPEN_AFTER and the writing itself, a call is on record within its first second
AGAIN = (0.5, 5.0)  # seconds between tries while the database is away: the first, the longest
PATIENCE = 2.0  # seconds that a call waits for its row to be on record, where it must be
STARTING = 5.0  # seconds that a start waits for the database
STOPPING = 3.0  # seconds that a stop tries to write what waits
PRUNE_FIRST, PRUNE_EVERY, PRUNE_PAUSE = 30.0, 600.0, 0.05  # seconds
PRUNE_ROWS = 1000  # at a time, some 20 ms


class Ledger:
    """For the loop's thread alone. `now` is the wall clock, `clock` a monotonic one."""

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
    ) -> None:
        self._policy = policy
        self._emit = emit
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._database = database if database is not None else store_of(policy.url)
        self._backlog = WriteBuffer(bound)
        self._wanted = asyncio.Event()  # there is something to write, or a database to look for
        self._full = asyncio.Event()  # enough for a batch
        self._written = asyncio.Event()  # the batch under way has ended; then a new one takes its place
        self._trouble: str | None = None
        self._since = clock()
        self._pause = AGAIN[0]
        self._waiters: list[asyncio.Future[bool]] = []  # who waits for what is firm to be written
        self._ending = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        metrics.on_scrape(lambda: metrics.ledger_backlog_rows.set(len(self._backlog)))
        metrics.follow_total(metrics.ledger_dropped_total, lambda: self._backlog.dropped)
        metrics.follow_total(metrics.ledger_folded_total, lambda: self._backlog.folded)

    # ── what the rest of the house sees ──────────────────────────────────────────────────────

    async def start(self) -> None:
        """Opens and migrates what is there. A database that is away is remembered and tried again.

        A file is made with the first row, or here where calls must not go on without it.
        """
        try:
            async with asyncio.timeout(STARTING):
                await self._database.ensure_ready(create=self._policy.on_error == "deny")
        except TimeoutError:
            self._lost(f"{self._database.where} did not answer in {STARTING:g} s")
        except LedgerUnavailable as away:
            self._lost(str(away))
        loop = asyncio.get_running_loop()
        self._tasks = (loop.create_task(self._write_on()), loop.create_task(self._prune_on()))

    async def stop(self) -> None:
        """Writes what waits, calls under way included, within a few seconds."""
        self._ending.set()
        self._wanted.set()
        self._full.set()
        if self._tasks:
            writer, pruner = self._tasks
            pruner.cancel()
            await asyncio.wait((writer,), timeout=STOPPING)
            writer.cancel()
            await asyncio.wait((writer, pruner), timeout=1.0)
        self._tasks = ()
        left = len(self._backlog)
        if left:
            text = f"{left} rows could not be written before the end, and are lost: {self._trouble or 'no time'}."
            self._emit("ledger", text, level="error", rows=left)
        try:
            async with asyncio.timeout(1.0):
                await self._database.close()
        except (TimeoutError, LedgerUnavailable):
            pass

    def apply(self, policy: schema.Ledger) -> None:
        """Take a newer policy; its address stays."""
        self._policy = policy

    def record_open(self, entry: CallRecord) -> None:
        """A call began, reserved at `entry.cost`: on record as `open` if it is still under way in half a second."""
        self._backlog.add_open(entry, self._clock())
        self._wanted.set()

    def record(self, entry: CallRecord, *, firm: bool = False) -> None:
        """A call was settled, or (`firm`) must be on record as it is. Never blocks, never raises."""
        self._backlog.add_settled(entry, firm=firm)
        self._wanted.set()
        if len(self._backlog) >= MAX_BATCH_ROWS:
            self._full.set()

    async def wait_written(self, patience: float = PATIENCE) -> bool:
        """Whether what was firm before now is on record: waits for it, but not while the database is away."""
        if self._trouble is not None or not self._tasks:
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wanted.set()
        self._full.set()
        try:
            async with asyncio.timeout(patience):
                return await waiter
        except TimeoutError:
            return False

    def discard(self, id: str) -> None:
        """A call ended without costing or being worth a row; its `open` row goes, if one was written."""
        self._backlog.drop(id)
        self._wanted.set()

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None = None
    ) -> dict[str, WindowTotals]:
        """What was spent on an upstream in each window since its beginning (wall clock), up to `until`.

        Rows that wait do not count, rows left open by a crash do, at their reservation. Raises LedgerUnavailable.
        """
        return await self._database.window_totals(upstream, since, until)

    async def user_totals(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None = None
    ) -> dict[str, UserTotals]:
        """What these users come to in each window, rows that wait included: those are written first. For users without
        a call under way, whose open row would count twice. Raises LedgerUnavailable."""
        for _ in range(2):  # the batch under way, and the one after it: what waits now is in them, whatever comes then
            if self._trouble is not None or not self._backlog.holds_users(set(users)):
                break
            written = self._written
            self._full.set()
            self._wanted.set()
            await written.wait()
        if self._trouble is not None:
            raise LedgerUnavailable(self._trouble)
        return await self._database.user_totals(upstream, users, since, until)

    async def open_background_calls(self, upstream: str, most: int) -> list[CallRecord]:
        """Calls whose price is still to come. Raises LedgerUnavailable."""
        return await self._database.open_background_calls(upstream, most)

    async def find_by_reference(self, upstream: str, reference: str) -> CallRecord | None:
        """The call that the vendor knows by this reference, whatever became of it. Raises LedgerUnavailable."""
        return await self._database.find_by_reference(upstream, reference)

    async def settled_costs(self, ids: Sequence[str]) -> dict[str, int]:
        """Which of these calls somebody settled, and what they cost. Raises LedgerUnavailable."""
        found: dict[str, int] = {}
        for at in range(0, len(ids), MAX_IDS_PER_QUERY):
            found |= await self._database.settled_costs(ids[at : at + MAX_IDS_PER_QUERY])
        return found

    async def forgiven_by_user(
        self, upstream: str, since: Mapping[str, float], until: float
    ) -> dict[str, dict[str, int]]:
        """What operators forgave in each of these windows, by user. Raises LedgerUnavailable."""
        return await self._database.forgiven_by_user(upstream, since, until)

    @property
    def store(self) -> LedgerStore:
        return self._database

    def health(self) -> ComponentHealth:
        if self._trouble is None:
            return ComponentHealth("ok", f"calls are written to {self._database.where}", self._since)
        waiting = len(self._backlog)
        return ComponentHealth("degraded", f"{self._trouble}; rows that wait in memory: {waiting}", self._since)

    def refuses_calls(self) -> bool:
        """Whether calls must not go on: `on_error: deny`, and they could not be written down."""
        return self.strict and (self._trouble is not None or self._backlog.full)

    @property
    def strict(self) -> bool:
        """Whether no call goes on that the ledger knows nothing of (`on_error: deny`)."""
        return self._policy.on_error == "deny"

    @property
    def rows_waiting(self) -> int:
        """Settled rows that wait."""
        return len(self._backlog)

    # ── writing ──────────────────────────────────────────────────────────────────────────────

    async def _write_on(self) -> None:
        while not (self._ending.is_set() and self._backlog.idle):
            await self._wanted.wait()
            self._wanted.clear()
            await self._gather()
            await self._flush()
            if self._trouble is not None or not self._backlog.idle:
                self._wanted.set()

    async def _gather(self) -> None:
        """Let rows come together; while the database is away, let it come back."""
        event, patience = (self._full, FLUSH) if self._trouble is None else (self._ending, self._pause)
        if self._trouble is not None and self._ending.is_set():
            await asyncio.sleep(AGAIN[0] / 2)
            return
        try:
            async with asyncio.timeout(patience):
                await event.wait()
        except TimeoutError:
            pass
        if not self._ending.is_set():
            self._full.clear()

    async def _flush(self) -> None:
        waiters, self._waiters = self._waiters, []
        try:
            written = 0
            if self._trouble is not None:
                await self._database.ensure_ready(create=True)
            while (batch := self._backlog.next_batch(self._clock(), everything=self._ending.is_set())) is not None:
                await self._write(batch)
                written += len(batch)
                if len(batch) < MAX_BATCH_ROWS and not self._ending.is_set():
                    break  # what came in the meantime can wait for its own turn
            self._found(written)
            _tell(waiters, True)
        except LedgerUnavailable as away:
            self._metrics.ledger_writes_total.labels("error").inc()
            self._lost(str(away))
        except Exception as error:  # a fault of ours must not end the writer, and with it the ledger
            self._lost(f"{type(error).__name__}: {error}")
        finally:
            self._written.set()
            self._written = asyncio.Event()
            _tell(waiters, False)

    async def _write(self, batch: Batch) -> None:
        """A row that no database takes is left out, so that it does not hold up the others."""
        pieces = deque([batch])
        while pieces:
            piece = pieces.popleft()
            try:
                writing = self._database.write_batch(piece.records, piece.removals)
                await time_awaitable(self._metrics.ledger_write_seconds, writing)
                self._metrics.ledger_writes_total.labels("ok").inc()
            except RecordRejected as error:
                if len(piece) > 1:
                    pieces.extendleft(reversed(piece.split()))
                    continue
                self._backlog.drop_batch(piece)
                self._emit("ledger", f"A row cannot be written and is left out: {error}.", level="error")
            except Exception as error:
                doubtful = not isinstance(error, LedgerUnavailable) or error.doubtful
                self._backlog.requeue(piece, doubtful=doubtful)
                for rest in pieces:
                    self._backlog.requeue(rest, doubtful=False)
                raise
        self._backlog.batch_written()

    def _lost(self, why: str) -> None:
        if self._trouble is None:
            self._since = self._clock()
            self._pause = AGAIN[0]
            on = "calls go on and are remembered" if self._policy.on_error == "remember" else "calls are refused"
            self._emit("ledger", f"The ledger cannot be written: {why}; {on}.", level="error", reason=why)
        else:
            self._pause = min(AGAIN[1], self._pause * 2)
        self._trouble = why
        self._wanted.set()

    def _found(self, written: int) -> None:
        if self._trouble is None:
            return
        away = self._clock() - self._since
        self._trouble = None
        self._since = self._clock()
        self._emit(
            "ledger",
            f"The ledger is written again after {away:.0f} s; {written} rows had waited.",
            away_s=round(away, 1),
            rows=written,
            folded=self._backlog.folded,
            dropped=self._backlog.dropped,
        )

    async def _prune_on(self) -> None:
        """Take out what is older than `keep`, a little at a time."""
        await asyncio.sleep(PRUNE_FIRST)
        while True:
            try:
                while await self._database.prune(self._now() - self._policy.keep, PRUNE_ROWS) == PRUNE_ROWS:
                    await asyncio.sleep(PRUNE_PAUSE)
            except (LedgerUnavailable, RecordRejected):
                pass  # the writer tells of it
            await asyncio.sleep(PRUNE_EVERY)


def _tell(waiters: Sequence[asyncio.Future[bool]], written: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(written)


def store_of(url: str) -> LedgerStore:
    """The driver is loaded for the database that is named alone."""
    path = sqlite_path(url)
    if path is not None:
        from proxy.ledger.sqlite import SqliteStore

        return SqliteStore(Path(path))
    from proxy.ledger.postgres import PostgresStore

    return PostgresStore(url, where=mask_password(url))
