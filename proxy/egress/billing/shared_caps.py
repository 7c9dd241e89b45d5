"""Caps that several instances hold together: what stands between a reservation and the slices of proxy/store.

With `store.url: memory://` nothing of this is made, and caps are held by spend_limits.py alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from proxy.egress import error_response
from proxy.egress.billing.spend_limits import SliceNeeded
from proxy.ledger.ledger import Ledger
from proxy.ledger.store import TAG_LENGTH, LedgerUnavailable, RecordRejected
from proxy.policy import schema
from proxy.policy.urls import sqlite_path
from proxy.store.escrow_sync import Escrow, SliceRefused
from proxy.store.interface import SharedStore
from proxy.store.money import MILLION, MoneyUnavailable, Seed, WindowName

T = TypeVar("T")

CLAIM_SECONDS = 31 * 86_400.0  # for which a call that the vendor goes on with is settled once


async def reserve_with_slices(needed: SliceNeeded, reserve: Callable[[], T], *, waited: float = 0.0) -> T:
    """Get the slices that a call lacks and call `reserve` again, until it has what it needs; what it returned.

    `waited`: seconds that it has waited for the store before. Raises CapReached; CallRefused if the store is away and
    `store.on_error` is `deny`.
    """
    escrow = needed.escrow
    deadline = escrow.deadline() - waited
    while True:
        try:
            deadline = await escrow.acquire(needed.windows, needed.amount, deadline)
        except SliceRefused as refused:
            raise needed.refusal(refused.window, away=refused.away) from refused
        except MoneyUnavailable as error:
            raise error_response.store_unavailable(needed.upstream) from error
        try:
            return reserve()
        except SliceNeeded as again:
            needed = again


class LedgerSeeds:
    """`SeedSource` of the store: what the ledger has of a window before any instance began to count in the store.

    A ledger in PostgreSQL has the calls of all instances, each call's id begins with its instance. One in a file has
    those of this machine, and only what is older than this process is nobody's sum yet (`started_at`, wall clock).
    """

    def __init__(self, ledger: Ledger, policy: schema.Ledger, started_at: float) -> None:
        self._ledger = ledger
        self._started_at = started_at
        self.shares = sqlite_path(policy.url) is None

    async def read_seed(self, name: WindowName, without: frozenset[str]) -> Seed:
        # In a file nothing says which process a call was of; those of this one are younger than it.
        until, tags = (name.end, sorted(without)) if self.shares else (min(name.end, self._started_at), [])
        try:
            base = await self._ledger.spent_without(name.upstream, name.user, name.start, until, tags)
            forgiven = 0
            if name.user is not None:
                since = {name.period: name.start}
                found = await self._ledger.forgiven_by_user(name.upstream, since, name.end)
                forgiven = found[name.period].get(name.user, 0)
        except (LedgerUnavailable, RecordRejected) as error:
            raise MoneyUnavailable(str(error)) from error
        return Seed(base, forgiven, without)


def open_escrow(
    policy: schema.Policy, store: SharedStore, ledger: Ledger, *, clock: Callable[[], float]
) -> Escrow | None:
    """This instance's part of the caps that are kept in `store`; None if no store is shared."""
    if not store.is_shared:
        return None
    from proxy.store.shared_money import SharedMoney  # with its scripts, which nothing else needs

    money = SharedMoney(store)
    escrow = Escrow(
        money,
        tag_of(store.instance_id),
        clock=clock,
        seeds=LedgerSeeds(ledger, policy.ledger, time.time()),
        on_fallback=lambda: store.count_fallback("cap"),
    )
    money.on_return = escrow.note_return
    configure_escrow(escrow, policy.store)
    return escrow


def configure_escrow(escrow: Escrow, policy: schema.Store) -> None:
    """Take what a reload may change."""
    escrow.timeout = policy.timeout
    escrow.ratio = round(policy.slice * MILLION)
    escrow.on_error = policy.on_error


def tag_of(instance: str) -> str:
    """What stands for an instance in the store's money and in the ids of its calls."""
    return instance[:TAG_LENGTH]
