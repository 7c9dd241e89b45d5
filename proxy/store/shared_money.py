"""The money of several instances in the shared store: the messages of money.py, as the scripts of money_scripts.py have
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from proxy.store.interface import SharedStore, StoreAway, WaitBudget
from proxy.store.money import MoneyUnavailable, Sender, SyncAnswer, WindowState, WindowUpdate
from proxy.store.money_scripts import FORGIVE, LATE, META, NEWS, NOBODY, NOTHING, NUMBER, SYNC, UNASKED

CALL_SECONDS = 2.0  # that an update may take; nobody waits for all of it


class SharedMoney:
    """`MoneyStore` in a store that several instances reach."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._looks_at_server = True
        self.on_return: Callable[[], None] = lambda: None  # told whenever the store is there again
        store.on_return(self._note_return)

    async def _note_return(self) -> None:
        # It may be another server process than before, which came up from an older snapshot.
        self._looks_at_server = True
        self.on_return()

    async def sync(self, sender: Sender, updates: Sequence[WindowUpdate]) -> SyncAnswer:
        looks, self._looks_at_server = self._looks_at_server, False
        args = [
            sender.instance,
            str(sender.number),
            str(sender.acknowledged),
            str(sender.epoch),
            str(sender.ratio),
            _flag(sender.has_ledger),
            _flag(sender.shares_ledger),
            _flag(looks),
        ]
        args += [_encode_update(update) for update in updates]
        keys = [META, NUMBER + sender.instance, NEWS, *(update.key for update in updates)]
        try:
            reply = await self._store.execute(SYNC, keys, args, WaitBudget(CALL_SECONDS))
        except StoreAway as away:
            self._looks_at_server = self._looks_at_server or looks
            raise MoneyUnavailable(str(away)) from away
        return _decode_answer(reply, len(updates))

    async def forgive(self, keys: Sequence[str], today: str) -> Sequence[int]:
        try:
            taken = await self._store.execute(
                FORGIVE, [NEWS, *keys], [str(keys.index(today) + 1), *keys], WaitBudget(CALL_SECONDS)
            )
        except StoreAway as away:
            raise MoneyUnavailable(str(away)) from away
        return [int(amount) for amount in taken]

    async def claim(self, name: str, seconds: float) -> bool:
        try:
            return await self._store.add(f"caps:claim:{name}", b"1", seconds, WaitBudget(CALL_SECONDS))
        except StoreAway as away:
            raise MoneyUnavailable(str(away)) from away


def _flag(value: bool) -> str:
    return "1" if value else "0"


def _encode_update(update: WindowUpdate) -> str:
    """The FIELDS of one window."""
    seed = update.seed
    loaded = f"{NOTHING} {NOTHING} {NOTHING}"
    if seed is not None:
        loaded = f"{seed.base} {seed.forgiven} {','.join(sorted(seed.without)) or NOBODY}"
    limit = -1 if update.limit is None else update.limit
    return (
        f"{int(update.ends)} {limit} {update.spent} {update.open} {update.keep} {update.need} {update.floor}"
        f" {update.wants:d} {update.is_first:d} {update.goes_unseeded:d} {loaded} {update.key}"
    )


def _decode_answer(reply: Sequence[Any], count: int) -> SyncAnswer:
    news_end = 3 + int(reply[2])
    windows = [None if text == LATE else _decode_state(text) for text in reply[news_end : news_end + count]]
    return SyncAnswer(int(reply[0]), bool(reply[1]), windows, [str(word) for word in reply[3:news_end]])


def _decode_state(text: str) -> WindowState:
    """The COLUMNS of one window."""
    held, room, before, spent, open_, set_aside, forgiven, contended, known = text.split(" ")
    ids = None if known == UNASKED else frozenset(filter(None, known.split(",")))
    return WindowState(
        int(held),
        int(room),
        int(before),
        int(spent),
        int(open_),
        int(set_aside),
        int(forgiven),
        contended == "1",
        ids,
    )
