"""What the ledger asks of a store, and the types of its answers. Money is in whole nano-dollars (1e-9 $)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from proxy.errors import OutriggerError
from proxy.ledger.record import COLUMNS, FROM_CACHE, CallRecord

GroupBy = Literal["user", "model", "route"]

# SQLite before 3.32 takes at most 999 parameters in a statement (sqlite.org/limits.html).
MAX_IDS_PER_QUERY = 500  # ids in one question
TAG_LENGTH = 8  # digits at the beginning of a call's id that tell which of several instances made it
MAX_USERS_PER_WINDOW = 50_000  # told apart in one window of `window_totals`


class LedgerUnavailable(OutriggerError):
    """The database cannot be reached or takes nothing now; the text says why.

    `doubtful` is whether what was being written may be in it all the same.
    """

    def __init__(self, reason: str, *, doubtful: bool = False) -> None:
        super().__init__(reason)
        self.doubtful = doubtful


class RecordRejected(OutriggerError):
    """These rows will never be taken, however often they are tried."""


@dataclass(frozen=True, slots=True)
class WindowTotals:
    """Nano-dollars of one window."""

    users: Mapping[str, int]  # the largest spenders first, at most 50,000
    rest: int  # of everybody else together

    @property
    def total(self) -> int:
        return sum(self.users.values()) + self.rest


@dataclass(frozen=True, slots=True)
class UserTotals:
    """Nano-dollars of one user by window: what was spent, and what of it an operator no longer counts."""

    spent: Mapping[str, int]
    forgiven: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ReportRow:
    """What one user, model or route comes to; money in nano-dollars."""

    name: str
    calls: int
    errors: int
    cached: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    cost: int
    estimated: int


@dataclass(frozen=True, slots=True)
class ForgivenSpend:
    """Money of one window that an operator no longer counts against a user's caps."""

    id: str
    at: float  # wall clock, seconds since the epoch
    upstream: str
    user: str
    period: str
    amount: int  # nano-dollars


# A month is the longest window of a cap; two of them, so that no clock or time zone matters.
FORGIVEN_KEPT_SECONDS = 63 * 86400.0  # seconds that forgiven money is remembered: past any month


class LedgerStore(Protocol):
    """The database of a ledger. Every method raises LedgerUnavailable. `where` is for people, without a password."""

    where: str

    async def ensure_ready(self, *, create: bool) -> None:
        """Open it and bring its schema up to date; a file that is not there is made only if `create`."""
        ...

    async def write_batch(self, entries: Sequence[CallRecord], removals: Sequence[str]) -> None:
        """All or nothing: rows by id, the newer replacing the older; then the removals. Raises RecordRejected."""
        ...

    async def prune(self, before: float, at_most: int) -> int:
        """Take out rows that began before then, at most so many; returns how many were."""
        ...

    async def window_totals(
        self, upstream: str, since: Mapping[str, float], until: float | None
    ) -> dict[str, WindowTotals]:
        """What was spent in each window since its beginning."""
        ...

    async def user_totals(
        self, upstream: str, users: Sequence[str], since: Mapping[str, float], until: float | None
    ) -> dict[str, UserTotals]:
        """What these users spent in each window from its beginning until then."""
        ...

    async def spent_without(
        self, upstream: str, user: str | None, since: float, until: float, tags: Sequence[str]
    ) -> int:
        """What one user, or all of them, spent between two moments in calls whose ids begin with none of these tags,
        each of TAG_LENGTH digits."""
        ...

    async def open_background_calls(self, upstream: str, most: int) -> list[CallRecord]:
        """Calls whose price is still to come, the newest first."""
        ...

    async def find_by_reference(self, upstream: str, reference: str) -> CallRecord | None:
        """The call that has this reference, whatever became of it."""
        ...

    async def settled_costs(self, ids: Sequence[str]) -> dict[str, int]:
        """Those of these calls that have been settled, and what they cost; at most MAX_IDS_PER_QUERY at once."""
        ...

    async def record_forgiven(self, rows: Sequence[ForgivenSpend]) -> None:
        """Remember them, each once, and drop those older than FORGIVEN_KEPT_SECONDS."""
        ...

    async def forgiven_by_user(
        self, upstream: str, since: Mapping[str, float], until: float
    ) -> dict[str, dict[str, int]]:
        """What was forgiven in each window from its beginning (wall clock) until then, by user."""
        ...

    async def blocked_users(self) -> list[str]: ...

    async def set_blocked(self, user: str, at: float | None) -> None:
        """Remember that a user is blocked since then, or (None) is not any more."""
        ...

    async def close(self) -> None: ...


COLUMN_NAMES: Sequence[str] = tuple(name for name, _ in COLUMNS)

# Not INSERT OR REPLACE: SQLite would skip the delete triggers that keep the sums (sqlite.org/lang_conflict.html).
# A settled row is never replaced by an open one: a connection that died may deliver its last words late. For the same
# reason, and since several instances may settle one call, a reference and what a vendor reported of it stay.
ON_CONFLICT = (
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in COLUMN_NAMES if name != "id")
    + " WHERE (outrigger_calls.outcome = 'open' OR excluded.outcome <> 'open')"
    + " AND (outrigger_calls.reference = '' OR excluded.reference <> '')"
    + " AND (outrigger_calls.reference = '' OR outrigger_calls.input_tokens + outrigger_calls.output_tokens = 0"
    + " OR excluded.input_tokens + excluded.output_tokens > 0)"
)
CACHED = "cache IN (" + ", ".join(f"'{word}'" for word in FROM_CACHE) + ")"
GROUP_COLUMNS: Mapping[str, str] = {"user": "user_id", "model": "model", "route": "route"}


# An older version must not write into a schema that it does not know: it could not keep what it does not see.
def newer_schema_error(found: int, known: int) -> LedgerUnavailable:
    return LedgerUnavailable(
        f"it was made by a newer Outrigger (schema {found}, this one knows {known}); "
        "start that one, or name another ledger.url"
    )
