"""Several instances that share their caps, in simulated time: calls at random, and what may go wrong between them and the
store. The caps, the slices and the messages are the gateway's own; the network, the clock and the vendor are made up.

What a run leaves behind is compared with what the vendor billed: `World.billed`, by window.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from money_book import MoneyBook, Wire

from proxy.egress.billing.shared_caps import reserve_with_slices
from proxy.egress.billing.spend_account import CapReached
from proxy.egress.billing.spend_limits import Reservation, SliceNeeded, SpendLimits
from proxy.errors import CallRefused
from proxy.policy.schema import Cap
from proxy.store.escrow_sync import Escrow, OnError
from proxy.store.money import MoneyUnavailable, Seed, WindowName

MIDNIGHT = 1_800_000_000.0 - 1_800_000_000.0 % 86_400.0
SYNC_SECONDS = 1.0  # within which what was settled is in the store


@dataclass
class Row:
    """A call in the shared ledger."""

    tag: str
    user: str
    at: float
    cost: int
    written_at: float


@dataclass
class Ledger:
    """A ledger that all instances share; what is written is there after half a second."""

    world: World
    rows: dict[int, Row] = field(default_factory=dict)
    away: bool = False
    shares = True

    async def read_seed(self, name: WindowName, without: frozenset[str]) -> Seed:
        await asyncio.sleep(0.003)
        if self.away:
            raise MoneyUnavailable("the ledger is away")
        base = sum(
            row.cost
            for row in self.rows.values()
            if row.tag not in without
            and name.start <= row.at < name.end
            and (name.user is None or row.user == name.user)
            and row.written_at <= self.world.now()
        )
        return Seed(base, 0, without)


@dataclass
class Served:
    """A call that was let through: what it reserved and what the vendor bills."""

    nr: int
    user: str
    at: float
    estimate: int
    actual: int


class Instance:
    """One of them. `served` are its calls under way."""

    def __init__(self, world: World, tag: str, cap: Cap, *, on_error: OnError, ratio: int) -> None:
        self.world = world
        self.tag = tag
        self.wire = Wire(lambda: world.book, world.rng, loss=world.loss, delay=world.delay)
        self.escrow = Escrow(
            self.wire,
            tag,
            clock=world.loop.time,
            now=world.now,
            seeds=world.ledger,
            ratio=ratio,
            on_error=on_error,
        )
        self.limits = SpendLimits(cap, now=world.now)
        self.limits.share("openai", self.escrow)
        self.under_way: dict[int, tuple[Served, Reservation]] = {}
        self.tasks: set[asyncio.Task[bool]] = set()
        self.dead = False

    def start_call(self, user: str, **what: float) -> asyncio.Task[bool]:
        task = asyncio.get_running_loop().create_task(self.call(user, **what))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def call(self, user: str, *, estimate: int, actual: int, seconds: float) -> bool:
        """One call, from its reservation to its settlement; whether it was let through."""
        world, began = self.world, self.world.loop.time()

        def reserve() -> Reservation:
            reservation = self.limits.reservation(user, "")
            reservation.reserve(estimate)
            return reservation

        try:
            try:
                reservation = reserve()
            except SliceNeeded as needed:
                reservation = await reserve_with_slices(needed, reserve)
        except (CapReached, CallRefused) as refusal:
            world.note_refusal(self, user, estimate, refusal)
            return False
        finally:
            world.waits.append(world.loop.time() - began)
        served = Served(next(world.numbers), user, world.now(), estimate, actual)
        self.under_way[served.nr] = served, reservation
        world.write_row(self, served, estimate)
        world.note_served(served)
        await asyncio.sleep(seconds)
        del self.under_way[served.nr]
        reservation.spend(actual)
        reservation.release()
        world.write_row(self, served, actual)
        world.note_settled(served)
        return True

    async def end(self) -> None:
        """It drains, and ends."""
        await asyncio.gather(*self.tasks)
        self.dead = True
        await self.escrow.close()
        self._note_untold()  # if it is cut off at its end

    def _note_untold(self) -> None:
        """What the store does not know of it is lost."""
        world, lost = self.world, 0
        for window in self.escrow.windows.values():
            part = world.book.records[window.key].parts.get(self.tag) if window.key in world.book.records else None
            known = part.spent + part.open if part is not None else 0
            lost = max(lost, window.spent_here + window.counts.reserved - known)
        world.lost_by_deaths += lost

    def kill(self) -> None:
        """It is gone at once; what it had under way the vendor bills all the same."""
        self.dead = True
        self.wire.cut = True
        world = self.world
        self._note_untold()
        world.lost_by_deaths += sum(max(0, each.actual - each.estimate) for each, _ in self.under_way.values())
        for task in self.tasks:
            task.cancel()
        for each, _ in self.under_way.values():
            world.note_settled(each)
        self.escrow._closing = True
        if self.escrow._timer is not None:
            self.escrow._timer.cancel()


class World:
    """The vendor, the store and the clock of all instances.

    billed: what each user's calls came to; they are billed when they are served
    worst_errors: the most that the estimates of calls that the store did not know to be settled were too low by, at once
    lost_by_deaths: what instances that were killed had not told
    too_early: refusals of calls that one instance alone would have served
    """

    def __init__(self, seed: int, *, loss: float = 0.0, delay: float = 0.002, shares_ledger: bool = True) -> None:
        self.rng = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.offset = MIDNIGHT + 12 * 3600 - self.loop.time()
        self.loss, self.delay = loss, delay
        self.book = MoneyBook(self.now)
        self.ledger = Ledger(self) if shares_ledger else None
        self.instances: list[Instance] = []
        self.billed: dict[str, int] = {}
        self.numbers = iter(range(1_000_000))
        self.in_flight: dict[int, Served] = {}
        self.recent: list[tuple[float, int]] = []
        self.just_settled: list[tuple[float, Served]] = []
        self.worst_errors = 0
        self.lost_by_deaths = 0
        self.waits: list[float] = []
        self.served = 0
        self.refusals = 0
        self.too_early: list[str] = []

    def now(self) -> float:
        return self.loop.time() + self.offset

    def add(self, cap: Cap, *, on_error: OnError = "share", ratio: int = 20_000) -> Instance:
        instance = Instance(self, f"{len(self.instances):08x}", cap, on_error=on_error, ratio=ratio)
        self.instances.append(instance)
        return instance

    def write_row(self, instance: Instance, served: Served, cost: int) -> None:
        if self.ledger is not None:
            old = self.ledger.rows.get(served.nr)
            written = self.now() + 0.5 if old is None else old.written_at
            self.ledger.rows[served.nr] = Row(instance.tag, served.user, served.at, cost, written)

    def note_served(self, served: Served) -> None:
        self.served += 1
        self.billed[served.user] = self.billed.get(served.user, 0) + served.actual
        self.in_flight[served.nr] = served
        self._measure()

    def note_settled(self, served: Served) -> None:
        self.in_flight.pop(served.nr, None)
        self.just_settled = [(self.loop.time(), served), *self.just_settled[:20]]
        self.recent.append((self.loop.time(), max(0, served.actual - served.estimate)))
        self._measure()

    def note_refusal(self, instance: Instance, user: str, estimate: int, refusal: Exception) -> None:
        self.refusals += 1
        now = self.loop.time()
        cap = instance.limits.cap
        for limit, of in ((cap.total, None), *((spend, user) for spend in instance.limits.caps_of(user, ""))):
            if limit is None:
                continue
            settled = sum(amount for name, amount in self.billed.items() if of in (None, name))
            # What was settled this moment may not have been heard of yet.
            flying = [*self.in_flight.values(), *(each for at, each in self.just_settled if now - at < 0.05)]
            flying = [each for each in flying if of in (None, each.user)]
            settled -= sum(each.actual for each in flying)
            if settled + sum(each.estimate for each in flying) + estimate > int(limit.amount * 1_000_000_000):
                return
        self.too_early.append(f"{self.loop.time():.3f} {instance.tag} {user} {estimate}: {refusal}")

    def _measure(self) -> None:
        now = self.loop.time()
        self.recent = [(at, error) for at, error in self.recent if now - at <= SYNC_SECONDS]
        errors = sum(max(0, each.actual - each.estimate) for each in self.in_flight.values())
        self.worst_errors = max(self.worst_errors, errors + sum(error for _, error in self.recent))

    def check_signs(self) -> None:
        """Nothing that the store has is below zero."""
        for record in self.book.records.values():
            for part in record.parts.values():
                assert part.held >= 0, record
                assert part.open >= 0, record
                assert part.spent >= 0, record
            assert (record.base or 0) >= 0, record
