"""The database of the queue, as two protocols: SQL is written once, with `$1` for its values, and runs on both.

What differs between SQLite and PostgreSQL and cannot be said in one way is in `Database.row_lock` and in the types of
`schema.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from proxy.errors import OutriggerError


class TasksUnavailable(OutriggerError):
    """The database of the queue cannot be reached or takes nothing now; the text says why.

    `doubtful` is whether what was being written may be in it all the same.
    """

    def __init__(self, reason: str, *, doubtful: bool = False) -> None:
        super().__init__(reason)
        self.doubtful = doubtful


class Transaction(Protocol):
    """One transaction. Every method raises TasksUnavailable. `now` is the database's clock at its begin, Unix time."""

    now: float

    async def fetch(self, sql: str, *values: object) -> Sequence[Sequence[Any]]:
        """The rows of a query."""

    async def execute(self, sql: str, *values: object) -> int:
        """Run a statement; how many rows it changed."""

    async def execute_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        """Run a statement once for each row of values."""

    async def notify(self, text: str) -> None:
        """Tell the other instances, once this is committed. At most 200 bytes; it may get lost."""


class Database(Protocol):
    """Opens and migrates itself at the first transaction after it was away.

    - `where`: for people, without a password.
    - `shared`: whether several instances may use it.
    - `row_lock`: what is appended to a SELECT so that its rows are held until the end of the transaction, less those
      that another one holds.
    - `wait_lock`: the same, but waits for rows that another one holds.
    - `lease`: seconds after which an instance that was not heard of is dead.
    """

    where: str
    shared: bool
    row_lock: str
    wait_lock: str
    lease: float

    def transaction(self, *, write: bool = True) -> AbstractAsyncContextManager[Transaction]:
        """All of it is committed at the end, safe from a loss of power, or none of it. Raises TasksUnavailable.

        Without `write` nothing may be changed, and two questions may see different moments.
        """

    async def listen(self) -> None:
        """Hear what other instances `notify`, if that works here; else polling has to do. Raises nothing."""

    async def close(self) -> None: ...


def placeholders(count: int, first: int = 1) -> str:
    """`$1, $2, …` for a list of values, which SQLite cannot take as one."""
    return ", ".join(f"${at}" for at in range(first, first + count))
