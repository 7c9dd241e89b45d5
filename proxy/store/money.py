"""What instances tell the store of their money, and what it tells them: the two messages of the escrow method.

The store has a record for each *window*: the current hour, day or month of one user at one upstream, or of all users
together. In it stands

- `base`: what was spent in the window before any of the instances below began to count, out of a shared ledger;
- for each instance three numbers: what it has `spent`, what its calls under way may still cost (`open`), and what it
  has set aside for calls to come (`held`, its *slice*). They are sums since the instance began, not differences, so an
  update that is written twice counts once, and one that got lost is made good by the next.

What all of them come to never passes the cap through a slice: a slice is given only out of

    room  =  limit + forgiven - base - spent, open and held of every other instance - spent and open of this one

That is the escrow method (O'Neil, The Escrow Transactional Method, ACM TODS 11(4), 1986) in the form of a bounded
counter, whose rights are handed out ahead (Balegas et al., Extending Eventually Consistent Cloud Databases for
Enforcing Numeric Invariants, SRDS 2015). An instance spends out of its slice without asking; so a call waits for the
store only when the slice is used up.

**Updates that overtake each other.** Each has a number (`Sender.number`), and one that is not newer than what the store
has of that instance is dropped. While an update is on its way its sender uses no more than it said it would `keep`;
whether the store has the old record or the new one, its slice is then at least that large.

**An instance that dies.** Its slice counts for HELD_SECONDS after it was last heard of, and what it had spent and
open for good: a vendor bills an answer that nobody waited for.

**A store that comes back empty or older.** `epoch` counts its lives. It goes up if the store has no epoch, is another
server process than before (`run`), or knows less of the sender than it once acknowledged. Then no slice is given for
RECOVERY_SECONDS, in which all instances tell their sums again, and with a shared ledger every base is read anew.

Money is in whole nano-dollars (1e-9 $). Keys are hashes: no user's name is in the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proxy.errors import OutriggerError

HELD_SECONDS = 60.0  # that the slice of an instance counts after it was last heard of
RECOVERY_SECONDS = 2.0  # in which a store that may have forgotten something gives no slices
CONTENDED_SECONDS = 2.0  # in which instances keep no slice of a window, after one had to do without
KEPT_SECONDS = 86_400.0  # that the record of a window outlives it, for calls that end late
MILLION = 1_000_000  # `ratio` counts in parts of it


class MoneyUnavailable(OutriggerError):
    """The store does not answer. Whether an update reached it is not known."""


@dataclass(frozen=True, slots=True)
class WindowName:
    """Which window it is. `user`: None for all users together; `start` and `end` are Unix times."""

    upstream: str
    user: str | None
    period: str
    start: float
    end: float

    def key(self) -> str:
        """The name of its record in the store: a hash, since users have no place in keys."""
        whose = "" if self.user is None else f"u{self.user}"
        text = "\0".join((self.upstream, whose, self.period, str(int(self.start))))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Seed:
    """What a ledger has of a window.

    base, forgiven: nano-dollars
    without: the instances whose calls are not in `base`, since the store has their own sums
    """

    base: int
    forgiven: int
    without: frozenset[str]


@dataclass(slots=True)  # not frozen, which takes 2 µs to make
class WindowUpdate:
    """One window, as an instance tells of it.

    key, ends: its WindowName's
    limit: the cap; None to count without one
    spent, open: sums of this instance
    keep: what is left of its slice, of which it uses no more until it has an answer
    need: what a call that waits needs at least; 0 if none waits
    floor: what the slice should have at least: a usual call, and all that wait
    wants: whether the slice is to be made larger
    is_first: nothing was heard of this window yet, so `spent` may lack what this instance forgot
    seed: what the ledger has, if the store asked for it; counts if nobody was quicker
    goes_unseeded: the ledger does not answer, and calls are to go on
    """

    key: str
    ends: float
    limit: int | None
    spent: int
    open: int
    keep: int
    need: int = 0
    floor: int = 0
    wants: bool = False
    is_first: bool = False
    seed: Seed | None = None
    goes_unseeded: bool = False


@dataclass(slots=True)  # not frozen, which takes 2 µs to make
class WindowState:
    """One window, as the store has it after an update.

    held: the slice of this instance
    room: the largest slice that it could have had
    spent_before: what the store had of this instance's `spent`; asked for by `is_first`
    spent_elsewhere: base, and what the others spent; a dead one's open calls count as spent
    open_elsewhere, held_elsewhere: of the others
    forgiven: what operators no longer count, all instances together
    contended: another instance lacks what is set aside: keep nothing
    known: the instances that have sums in it, if the ledger is to be asked what came before them; else None
    """

    held: int
    room: int
    spent_before: int
    spent_elsewhere: int
    open_elsewhere: int
    held_elsewhere: int
    forgiven: int
    contended: bool
    known: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends an update.

    instance: its id
    number: goes up with each update
    acknowledged: the highest number that the store has answered; 0 if it does not matter what it has forgotten
    epoch: the last that it heard of; 0 if none
    ratio: the size of a slice, in millionths of the room
    has_ledger: there is a ledger to ask for what came before
    shares_ledger: and it has the calls of all instances
    """

    instance: str
    number: int
    acknowledged: int
    epoch: int
    ratio: int
    has_ledger: bool = False
    shares_ledger: bool = False


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """What the store answers to a batch of updates.

    epoch: the store's life; if it is another than before, every sum is to be told again
    recovering: no slice is given now
    windows: in the order of the updates; None for one that came too late
    news: keys of windows that were contended or forgiven lately, each with `w` or `f` before it
    """

    epoch: int
    recovering: bool
    windows: Sequence[WindowState | None]
    news: Sequence[str] = field(default=())


class MoneyStore(Protocol):
    """Where several instances keep their money. Every method raises MoneyUnavailable."""

    async def sync(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        """Write these updates, and read the same windows, in one step. The updates are in the order of their keys."""
        ...

    async def forgive(self, keys: Sequence[str], today: str) -> Sequence[int]:
        """Take what was spent today off these windows of one user; what that took off each, in nano-dollars.

        `today` is the key of the day among them: no window gives back more than was spent today.
        """
        ...

    async def claim(self, name: str, seconds: float) -> bool:
        """Whether nobody has claimed this name within so many seconds before."""
        ...


def decide_slice(update: WindowUpdate, room: int, *, ratio: int, contended: bool) -> int:
    """The slice that an instance gets: nano-dollars. The scripts in the stores decide in the same way.

    Never less than `keep`, which may be in use already; never more than the room, unless `keep` is.
    """
    if update.limit is None or update.need > room or not (update.need or update.wants):
        return update.keep
    if contended:
        return max(update.keep, update.need)
    usual = min(room, max(update.floor, room * ratio // MILLION))
    return max(update.keep, update.need, usual)
