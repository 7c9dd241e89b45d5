"""One window of money as one instance has it: its slice of the cap, and what it owes the store of news.

    unheard ──► held ──► on its way ──► held          the store has answered
                 │            └───────► held, less    no answer: only what was to be kept is sure
                 └─► used up ──► a call waits for the next answer

What an instance may spend without asking is a *right* (money.py): `rights` is the sum up to which what it spent and
what its calls under way reserve may grow. So a call costs two comparisons and no round trip. A slice is renewed when
half of it is used, and given back when nobody has used it for GIVE_BACK_SECONDS.

Money is in whole nano-dollars (1e-9 $); times are a monotonic clock's seconds.
"""

from __future__ import annotations

from asyncio import Future
from typing import Protocol

from proxy.store.money import CONTENDED_SECONDS, HELD_SECONDS, Seed, WindowName, WindowState, WindowUpdate

GIVE_BACK_SECONDS = 5.0  # that a slice nobody uses is kept
TIGHT_CALLS = 100  # that still fit into a cap: fewer, and what changes is told at once
# Below the store's own, whose count begins when the update arrives: nothing is spent that it may have lent to another.
LEASE_SECONDS = HELD_SECONDS - 10.0


class WindowCounts(Protocol):
    """What a window counts, whoever keeps it (WindowSpend of egress).

    spent: what was settled, on all instances as far as known
    elsewhere: the part of it that this instance did not spend
    reserved: what this instance's calls under way may still cost
    """

    spent: int
    elsewhere: int
    reserved: int

    def set_forgiven(self, amount: int) -> None: ...


class EscrowWindow:
    """A window that several instances count together.

    name, key: which it is
    limit: the cap; None if it is only counted
    counts: what is spent and reserved
    usual: what a call usually reserves
    rights: what this instance may come to without asking
    room, held_elsewhere, open_elsewhere: by the last answer, see WindowState
    is_heard: whether there was an answer
    heard_at: when the last answered update was sent
    used_at: when a call last reserved something
    acquiring: what calls want that gather slices of this window and of others: meanwhile it keeps what suffices them
    unseeded: the store asks what the ledger has of it; `known` are the instances not to be asked for
    """

    __slots__ = (
        "_contended_until",
        "_sent_rights",
        "_slice",
        "_waiting",
        "acquiring",
        "counts",
        "goes_unseeded",
        "heard_at",
        "held_elsewhere",
        "is_heard",
        "is_on_its_way",
        "is_recovering",
        "key",
        "known",
        "limit",
        "name",
        "open_elsewhere",
        "rights",
        "room",
        "seed",
        "told",
        "used_at",
        "usual",
    )

    def __init__(self, name: WindowName, counts: WindowCounts, limit: int | None, now: float) -> None:
        self.name = name
        self.key = name.key()
        self.counts = counts
        self.limit = limit
        self.usual = 0
        self.rights = counts.spent - counts.elsewhere + counts.reserved
        self.room = 0
        self.held_elsewhere = 0
        self.open_elsewhere = 0
        self.is_heard = False
        self.is_on_its_way = False
        self.is_recovering = False
        self.heard_at = float("-inf")
        self.used_at = now
        self.acquiring: list[int] = []
        self.told = (0, 0, 0)  # spent, open and kept, as the store has acknowledged them
        self.known: frozenset[str] | None = None
        self.seed: Seed | None = None
        self.goes_unseeded = False
        self._slice = 0
        self._sent_rights = 0
        self._contended_until = float("-inf")
        self._waiting: list[tuple[int, Future[bool]]] = []

    def __repr__(self) -> str:
        name = self.name
        return f"<EscrowWindow {name.upstream} {name.user or 'all'} {name.period}: {self.free} free of {self._slice}>"

    @property
    def spent_here(self) -> int:
        return self.counts.spent - self.counts.elsewhere

    @property
    def free(self) -> int:
        """What is left of the slice; below zero if calls cost more than was estimated."""
        counts = self.counts
        return self.rights - counts.spent + counts.elsewhere - counts.reserved

    def covers(self, amount: int, now: float) -> bool:
        """Whether this much can be reserved without asking."""
        return amount <= self.free and now < self.heard_at + LEASE_SECONDS

    @property
    def is_low(self) -> bool:
        """Whether half of the slice is used, so that it is time for the next one."""
        return self.limit is not None and 2 * self.free < self._slice

    def is_settled(self, now: float) -> bool:
        """Whether the store knows all of it, nothing is set aside and nobody waits."""
        return (
            not self._waiting
            and not self.is_on_its_way
            and not self.counts.reserved
            and self.told == (self.spent_here, 0, 0)
            and (self.free <= 0 or now >= self.heard_at + LEASE_SECONDS)
        )

    def note_use(self, amount: int, now: float) -> bool:
        """A call reserved something. Whether the store is to be asked soon: half of the slice is used, or the cap is
        nearly spent."""
        self.used_at = now
        self.usual = amount if not self.usual else self.usual + (amount - self.usual) // 8
        return self.limit is not None and (self.is_low or self.is_tight)

    def recall(self, now: float) -> None:
        """Another instance lacks what is set aside here: keep nothing for a while."""
        self._contended_until = now + CONTENDED_SECONDS

    def wait(self, amount: int, future: Future[bool]) -> None:
        """Ask for this much with the next update; the future has whether that was answered."""
        self._waiting.append((amount, future))

    @property
    def is_waited_for(self) -> bool:
        return bool(self._waiting)

    @property
    def is_tight(self) -> bool:
        """Whether so little is left of the cap that others may lack what a single call leaves over."""
        return self.limit is not None and self.is_heard and self.room < TIGHT_CALLS * self.usual

    def needs_update(self, now: float) -> bool:
        """Whether the store is to be told or asked something."""
        if self._waiting or not self.is_heard or self.seed is not None:
            return True
        return self.told != (self.spent_here, self.counts.reserved, self._kept(now)) or self._wants(now)

    def _kept(self, now: float) -> int:
        """What of the slice is worth keeping."""
        if now >= self.heard_at + LEASE_SECONDS:
            return 0  # the store may have lent it to somebody else
        # An idle slice, or one that another instance lacks, goes back; what a call waits to add to stays.
        idle = now - self.used_at >= GIVE_BACK_SECONDS or now < self._contended_until
        if idle and not any(amount <= self.free for amount in self.acquiring):
            return 0
        # Calls that cost less than was estimated leave more than a slice; a policy with a lower cap leaves less room.
        return max(0, min(self.free, self._slice, self.room))

    def _wants(self, now: float) -> bool:
        """Whether the slice is to be renewed: half of it is used, and calls come."""
        return self.is_low and now - self.used_at < GIVE_BACK_SECONDS and now >= self._contended_until

    def make_update(self, now: float, *, closing: bool = False) -> tuple[WindowUpdate, list[Future[bool]]]:
        """What to tell the store, and whom to tell that it has answered.

        From here to the answer no more is spent than `keep`: the store may have the old record or the new one.
        """
        waiting, self._waiting = self._waiting, []
        # Those who gave up ask for nothing any more.
        amounts = [amount for amount, future in waiting if not future.done()]
        spent, reserved = self.spent_here, self.counts.reserved
        keep = 0 if closing else self._kept(now)
        update = WindowUpdate(
            key=self.key,
            ends=self.name.end,
            limit=self.limit,
            spent=spent,
            open=reserved,
            keep=keep,
            need=min(amounts, default=0),
            floor=max(self.usual, sum(amounts)),
            wants=not closing and self._wants(now),
            is_first=not self.is_heard,
            seed=self.seed,
            goes_unseeded=self.goes_unseeded,
        )
        self._sent_rights = spent + reserved
        # Never more than before: calls that cost more than was estimated have used up the slice, and a bit of the cap.
        self.rights = self._sent_rights + keep
        self.is_on_its_way = True
        return update, [future for _, future in waiting]

    def apply(self, update: WindowUpdate, state: WindowState, sent_at: float, *, recovering: bool) -> None:
        """Take the store's answer to an update that was sent at `sent_at`."""
        self.is_on_its_way = False
        self.seed = None
        self.known = state.known
        self.is_recovering = recovering
        counts = self.counts
        is_counted = state.known is None or update.goes_unseeded
        if not is_counted and update.is_first:
            return  # it has no record yet, so there is nothing to spend
        if update.is_first:
            # What this instance spent before it forgot the user; from now on its memory is complete.
            counts.spent += state.spent_before
            self._sent_rights += state.spent_before
            self.is_heard = True
        # Others' money, as it is now, in place of what was known of it; until the ledger was asked, at least that.
        elsewhere = state.spent_elsewhere if state.known is None else max(counts.elsewhere, state.spent_elsewhere)
        counts.spent += elsewhere - counts.elsewhere
        counts.elsewhere = elsewhere
        if state.known is None:
            counts.set_forgiven(state.forgiven)
        self.open_elsewhere = state.open_elsewhere
        self.held_elsewhere = state.held_elsewhere
        self.room = state.room
        self.rights = self._sent_rights + state.held
        self.told = (update.spent + (state.spent_before if update.is_first else 0), update.open, state.held)
        self.heard_at = sent_at
        # Half of this is when to renew. A slice that was only kept is no larger than it was.
        if update.wants or update.need:
            self._slice = state.held
        if state.contended:
            self.recall(sent_at)

    def fail(self) -> None:
        """No answer came: only what was to be kept is sure."""
        self.is_on_its_way = False

    def forget_told(self) -> None:
        """The store may have forgotten what it acknowledged: everything is told again."""
        self.told = (-1, -1, -1)
