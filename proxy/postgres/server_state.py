"""What is known of a server connection: what it has prepared, what it is set to, what it told."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.postgres.auth.startup import ENCODING, NAME, Key, Settings, elsewhere

if TYPE_CHECKING:
    from proxy.postgres.statement_registry import Statement

MOST_DEFINED = 1000
MOST_PREPARED = 250  # statements a connection; PostgreSQL needs 10 to 100 KB for each


class Backend:
    """`base` is what RESET ALL returns it to, `applied` what it is set to now, as far as that differs from the
    database's own defaults. `params` is what it reported (ParameterStatus); replaced, never changed. `elsewhere`:
    the database, where it is another than the policy's."""

    __slots__ = (
        "applied",
        "base",
        "defined",
        "elsewhere",
        "key",
        "last",
        "params",
        "pid",
        "prepared",
        "unnamed",
        "user",
    )

    def __init__(self, key: Key, name: str, params: Mapping[bytes, bytes], pid: int = 0) -> None:
        self.key = key
        self.elsewhere = elsewhere(key)
        self.pid = pid
        self.base: Settings = {NAME: name.encode(), ENCODING: b"UTF8"}
        self.applied: Settings = self.base
        self.defined: set[bytes] = set()  # parameters of the app's own that somebody has set here
        self.params = params
        self.user = params.get(b"session_authorization", b"")
        self.prepared: OrderedDict[Statement, None] = OrderedDict()
        self.unnamed: bytes | None = None  # the body of the unnamed statement it has
        self.last = 0  # the number of the session it served last

    def __repr__(self) -> str:
        return f"<Backend pid {self.pid}, {len(self.prepared)} statements>"

    def define(self, names: Iterable[bytes]) -> None:
        """Parameters of the app's own have been set here."""
        if len(self.defined) > MOST_DEFINED:
            self.defined.clear()  # at worst they are set once more
        self.defined.update(name for name in names if b"." in name)

    def discarded(self) -> None:
        """DISCARD ALL was done."""
        self.applied = self.base
        self.prepared.clear()
