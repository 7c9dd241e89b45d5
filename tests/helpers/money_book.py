"""A store of money in memory, by a clock that the test sets: what both scripts of proxy/store/money_scripts.py decide, in
Python; and what may happen between it and an instance."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.store.money import (
    CONTENDED_SECONDS,
    HELD_SECONDS,
    RECOVERY_SECONDS,
    MoneyUnavailable,
    Sender,
    SyncAnswer,
    WindowState,
    WindowUpdate,
    decide_slice,
)


@dataclass
class Part:
    """What one instance has in a window."""

    spent: int
    open: int
    held: int
    seen: float
    number: int
    epoch: int


@dataclass
class Record:
    base: int | None = None
    forgiven: int = 0
    epoch: int = 0
    without: frozenset[str] = frozenset()
    again: bool = False
    contended_until: float = float("-inf")
    parts: dict[str, Part] = field(default_factory=dict)


@dataclass
class MoneyBook:
    """`MoneyStore`, at once and never away. `run` names the server process; a restored one has another."""

    now: Callable[[], float]
    run: int = 1
    epoch: int = 0
    recovers_until: float = float("-inf")
    seen_run: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    news: dict[str, float] = field(default_factory=dict)
    claims: set[str] = field(default_factory=set)

    def snapshot(self) -> MoneyBook:
        return copy.deepcopy(self, {id(self.now): self.now})

    async def sync(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        return self.decide(sender, updates)

    def decide(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        now = self.now()
        had = self.numbers.get(sender.instance, 0)
        lost = sender.acknowledged > had or (self.epoch == 0 and sender.epoch > 0)
        lost = lost or self.seen_run not in (0, self.run)
        self.seen_run = self.run
        lost = lost and now >= self.recovers_until
        if self.epoch == 0 or lost:
            self.epoch = max(self.epoch + 1, int(now * 1000))
            if lost:
                self.recovers_until = now + RECOVERY_SECONDS
        self.numbers[sender.instance] = max(had, sender.number)
        recovering = now < self.recovers_until
        self.news = {word: at for word, at in self.news.items() if at > now - 5.0}
        news = sorted(self.news)  # before this update's own
        return SyncAnswer(
            self.epoch, recovering, [self._update(sender, each, recovering=recovering) for each in updates], news
        )

    def _update(self, sender: Sender, update: WindowUpdate, *, recovering: bool) -> WindowState | None:
        now, me, shares = self.now(), sender.instance, sender.shares_ledger
        record = self.records.get(update.key) or Record()
        mine = record.parts.get(me)
        if mine is not None and mine.number >= sender.number:
            return None
        again = record.again
        if (
            (mine is None or mine.epoch != self.epoch)
            and update.spent + update.open > 0
            and shares
            and record.base is not None
            and record.epoch == self.epoch
            and me not in record.without
        ):
            again = True
        unseeded = sender.has_ledger and (record.base is None or (shares and (record.epoch != self.epoch or again)))
        before = mine.spent if update.is_first and mine is not None else 0
        parts = dict(record.parts)
        if not update.is_first:
            parts[me] = Part(update.spent, update.open, update.keep, now, sender.number, self.epoch)
        known = frozenset(id for id, part in parts.items() if part.epoch == self.epoch or not shares)
        # Neither may the base lack somebody whose sums are not here, nor have somebody's whose sums are.
        if unseeded and update.seed is not None and known <= update.seed.without <= known | {me}:
            if shares:
                parts = {id: part for id, part in parts.items() if part.epoch == self.epoch}
                if mine is not None and mine.epoch != self.epoch:
                    before = 0
            record.base, record.forgiven, record.epoch = update.seed.base, update.seed.forgiven, self.epoch
            record.without, again, unseeded = update.seed.without, False, False
        if not sender.has_ledger and record.base is None:
            record.base, record.epoch = 0, self.epoch
        others = [part for id, part in parts.items() if id != me]
        alive = [part for part in others if now - part.seen < HELD_SECONDS]
        elsewhere = (record.base or 0) + sum(part.spent for part in others)
        elsewhere += sum(part.open for part in others if part not in alive)
        open_elsewhere, held_elsewhere = sum(part.open for part in alive), sum(part.held for part in alive)
        contended = now < record.contended_until
        spent, held, room = update.spent + before, update.keep, 0
        if update.limit is not None:
            room = update.limit + record.forgiven - elsewhere - open_elsewhere - held_elsewhere - spent - update.open
            if not recovering and (not unseeded or update.goes_unseeded):
                if room < update.need <= room + held_elsewhere:
                    contended = True
                    record.contended_until = now + CONTENDED_SECONDS
                    self.news["w" + update.key] = now
                held = decide_slice(update, room, ratio=sender.ratio, contended=contended)
        if not update.is_first or not unseeded or update.goes_unseeded:
            kept = before if update.is_first else spent
            parts[me] = Part(kept, update.open, held, now, sender.number, self.epoch)
            record.parts, record.again = parts, again
            self.records[update.key] = record
        return WindowState(
            held, room, before, elsewhere, open_elsewhere, held_elsewhere, record.forgiven, contended,
            known if unseeded else None,
        )  # fmt: skip

    async def forgive(self, keys: Sequence[str], today: str) -> Sequence[int]:
        counted = {}
        for key in keys:
            record = self.records.get(key) or Record()
            spent = (record.base or 0) + sum(part.spent for part in record.parts.values())
            counted[key] = max(0, spent - record.forgiven)
        taken = [min(counted[key], counted[today]) for key in keys]
        for key, amount in zip(keys, taken, strict=True):
            if amount:
                self.records[key].forgiven += amount
                self.news["f" + key] = self.now()
        return taken

    async def claim(self, name: str, seconds: float) -> bool:
        new = name not in self.claims
        self.claims.add(name)
        return new

    def set_aside(self) -> int:
        """Everything that any instance holds or has open, as the store has it."""
        return sum(
            part.held + part.open
            for record in self.records.values()
            for part in record.parts.values()
            if self.now() - part.seen < HELD_SECONDS
        )


class Wire:
    """A book behind a network: updates take their time, get lost on either way, arrive late, or do not arrive."""

    def __init__(self, book: Callable[[], MoneyBook], rng: random.Random, *, loss: float = 0.0, delay: float = 0.002):
        self._book = book
        self._rng = rng
        self.loss = loss
        self.delay = delay
        self.cut = False
        self.frozen = False
        self.patience = 2.0

    async def sync(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        try:
            async with asyncio.timeout(self.patience):
                return await self._exchange(sender, updates)
        except TimeoutError:
            raise MoneyUnavailable("no answer in time") from None

    async def _exchange(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        rng = self._rng
        if self.cut:
            raise MoneyUnavailable("it is cut off")
        while self.frozen:
            await asyncio.sleep(0.05)
        await asyncio.sleep(self.delay * rng.uniform(0.3, 1.0))
        if rng.random() < self.loss:
            if rng.random() < 0.5:  # it arrives all the same, long after anybody waits
                asyncio.get_running_loop().call_later(rng.uniform(0.1, 4.0), self._deliver_late, sender, updates)
            await asyncio.sleep(self.patience)
        answer = self._book().decide(sender, updates)
        await asyncio.sleep(self.delay * rng.uniform(0.3, 1.0))
        if rng.random() < self.loss or self.cut:
            await asyncio.sleep(self.patience)
        return answer

    def _deliver_late(self, sender: Sender, updates: Sequence[WindowUpdate]) -> None:
        self._book().decide(sender, updates)

    async def forgive(self, keys: Sequence[str], today: str) -> Sequence[int]:
        return await self._book().forgive(keys, today)

    async def claim(self, name: str, seconds: float) -> bool:
        return await self._book().claim(name, seconds)
