"""What is known of a server connection: what it has prepared, what it is set to, what it reported."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from proxy.postgres.auth.startup import (
    APPLICATION_NAME,
    CLIENT_ENCODING,
    PoolKey,
    Settings,
    other_database,
    share_settings,
)
from proxy.postgres.statement_registry import PreparedStatement

MAX_CUSTOM_PARAMETERS = 1000
MAX_PREPARED = 250  # statements a connection; PostgreSQL needs 10 to 100 KB for each


class ServerState:
    """`pool_key` is what it was opened with, `other_database` the database if that is not the policy's; `pid` and
    `user` are the server's own.

    `reset_values` are what RESET ALL returns it to, `applied` what it is set to now, as far as that differs from the
    database's own defaults, and `reported` is what it told of itself (ParameterStatus): mappings that are replaced,
    never changed, so that they may be compared by identity. `custom_parameters` are those of the app's own that
    somebody has set here.

    `prepared` are its statements, the one used last at the end; `unnamed_body` is that of the unnamed one it has
    (`client_statements`); `last_session` the number of the session it served last."""

    __slots__ = (
        "applied",
        "custom_parameters",
        "last_session",
        "other_database",
        "pid",
        "pool_key",
        "prepared",
        "reported",
        "reset_values",
        "unnamed_body",
        "user",
    )

    def __init__(self, key: PoolKey, name: str, reported: Mapping[bytes, bytes], pid: int = 0) -> None:
        self.pool_key = key
        self.other_database = other_database(key)
        self.pid = pid
        self.reset_values: Settings = share_settings({APPLICATION_NAME: name.encode(), CLIENT_ENCODING: b"UTF8"})
        self.applied: Settings = self.reset_values
        self.custom_parameters: set[bytes] = set()
        self.reported = share_settings(reported)
        self.user = reported.get(b"session_authorization", b"")
        self.prepared: OrderedDict[PreparedStatement, None] = OrderedDict()
        self.unnamed_body: bytes | None = None
        self.last_session = 0

    def __repr__(self) -> str:
        return f"<ServerState pid {self.pid}, {len(self.prepared)} statements>"

    def record_custom_parameters(self, names: Iterable[bytes]) -> None:
        """Parameters of the app's own have been set here."""
        if len(self.custom_parameters) > MAX_CUSTOM_PARAMETERS:
            self.custom_parameters.clear()  # at worst they are set once more
        self.custom_parameters.update(name for name in names if b"." in name)

    def record_reported(self, name: bytes, value: bytes) -> None:
        """It reports a parameter."""
        self.reported = share_settings({**self.reported, name: value})

    def on_discard_all(self) -> None:
        """DISCARD ALL was done."""
        self.applied = self.reset_values
        self.prepared.clear()
