"""`postgres`, `store`, `tasks` and `ledger`: the app's database, shared counters, requests that run later, calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from proxy.policy import urls, value_types
from proxy.policy.values import Address, Bytes, Count, ListenAt, Period, Positive, Seconds

DatabasePart = Literal["url", "host", "port", "user", "password", "database"]


def _database_url() -> Mapping[str, DatabasePart]:
    return MappingProxyType({"DATABASE_URL": "url"})


@dataclass(frozen=True, slots=True)
class Pool:
    min: Count = 1
    max: Positive = 5
    total: Positive | None = None
    wait: Seconds = 5.0
    idle: Period = 300.0
    lifetime: Period = 3600.0
    connect: Period = 10.0


@dataclass(frozen=True, slots=True)
class QueryTimeout:
    query: Period | None = None
    idle_in_transaction: Period | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    max: Count = 2


@dataclass(frozen=True, slots=True)
class Postgres:
    """`env` maps each variable that is rewritten for the app to the part of the address that it gets."""

    url: Annotated[str, urls.DATABASE] | None = None
    listen: ListenAt = Address("127.0.0.1", 6432)
    env: Annotated[Mapping[str, DatabasePart], "database_env"] = field(default_factory=_database_url)
    mode: Literal["transaction", "session"] = "transaction"
    tls: Literal["on", "off"] = "off"
    reset: Literal["touched", "always"] = "touched"
    pool: Pool = Pool()
    clients: Positive = 200
    timeout: QueryTimeout = QueryTimeout()
    pin: Pin = Pin()
    check: Period = 30.0


@dataclass(frozen=True, slots=True)
class Store:
    """What several instances share. `timeout` bounds what one request waits for it in all; `money` is where caps are
    kept, if not in `url`; `slice` is the part of what is left of a cap that an instance sets aside at once.
    """

    url: Annotated[str, urls.STORE] = "memory://"
    prefix: Annotated[str, value_types.STORE_PREFIX] = "outrigger"
    timeout: Period = 0.25
    on_error: Literal["share", "local", "deny"] = "share"
    money: Annotated[str, urls.SHARED_STORE] | None = None
    slice: Annotated[float, value_types.PART] = 0.02
    region: Annotated[str, value_types.LOOSE_TEXT] = field(
        default="", metadata={"absent": "${RENDER_REGION:-}", "foreign": True}
    )


@dataclass(frozen=True, slots=True)
class Tasks:
    """The queue of requests that run later. `url` None is the ledger's database; `keep` is from a task's end."""

    url: Annotated[str, urls.LEDGER] | None = None
    keep: Period = 86400.0
    max_body: Bytes = 1024 * 1024
    max_result: Bytes = 8 * 1024 * 1024
    callbacks: tuple[Annotated[str, value_types.CALLBACK_HOST], ...] = ()
    secret: Annotated[str, value_types.WEBHOOK_SECRET] = field(
        default="", repr=False, metadata={"absent": "${OUTRIGGER_TASKS_SECRET:-}"}
    )


@dataclass(frozen=True, slots=True)
class Ledger:
    url: Annotated[str, urls.LEDGER] = "sqlite:///var/outrigger.db"
    keep: Period = 90 * 86400.0
    on_error: Literal["remember", "deny"] = "remember"
