"""An operator's word on users: it holds at once, and outlives a restart where the ledger can be written."""

from __future__ import annotations

import asyncio

import pytest

from proxy.ledger import user_marks as module
from proxy.ledger.sqlite import SqliteStore
from proxy.ledger.store import FORGIVEN_KEPT_SECONDS, ForgivenSpend, LedgerUnavailable
from proxy.ledger.user_marks import TooManyBlocked, UserMarks


class Said(list):
    def __call__(self, event, message, *, level="info", **facts):
        self.append(message)


@pytest.fixture
async def open_marks(tmp_path):
    made = []

    async def start(database=None, said=None):
        database = database or SqliteStore(tmp_path / "ledger.db")
        marks = UserMarks(database, emit=said if said is not None else Said(), now=lambda: 1000.0)
        await marks.start()
        made.append((marks, database))
        return marks

    yield start
    for marks, database in made:
        await marks.stop()
        await database.close()


class Moody(SqliteStore):
    away = False

    async def ensure_ready(self, *, create):
        await super().ensure_ready(create=create)

    async def _run_in_thread(self, work):
        if self.away:
            raise LedgerUnavailable("it is down")
        return await super()._run_in_thread(work)


async def test_a_block_outlives_a_restart_and_an_unblock_does_too(open_marks):
    first = await open_marks()
    assert await first.block("ada") is None
    assert await first.block("o'brien / \u00fc") is None
    assert await first.block("ada") is None
    second = await open_marks()
    assert list(second.blocked_users) == ["ada", "o'brien / \u00fc"]
    assert await second.unblock("ada") is None
    third = await open_marks()
    assert list(third.blocked_users) == ["o'brien / \u00fc"]


async def test_nothing_is_made_where_nobody_was_ever_blocked(open_marks, tmp_path):
    marks = await open_marks()
    assert await marks.unblock("ada") is None
    assert list(tmp_path.iterdir()) == []


async def test_while_the_ledger_is_away_a_block_holds_and_is_written_when_it_is_back(open_marks, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    before = await open_marks()
    await before.block("eve")
    database, said = Moody(tmp_path / "ledger.db"), Said()
    database.away = True
    marks = await open_marks(database, said)
    assert said == ["Who is blocked is not known yet, the ledger does not answer (it is down); it is asked again."]
    assert await marks.block("ada") == "it is down"
    assert "ada" in marks.blocked_users
    database.away = False
    async with asyncio.timeout(10):
        while len(said) < 2:
            await asyncio.sleep(0.005)
    assert said[1] == "What operators said of users is on record again."
    assert set(marks.blocked_users) == {"ada", "eve"}
    assert set((await open_marks()).blocked_users) == {"ada", "eve"}


async def test_who_was_unblocked_while_the_ledger_was_away_does_not_come_back_with_it(
    open_marks, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    await (await open_marks()).block("eve")
    database = Moody(tmp_path / "ledger.db")
    database.away = True
    marks = await open_marks(database)
    await marks.unblock("eve")
    database.away = False
    async with asyncio.timeout(10):
        while not marks.loaded:
            await asyncio.sleep(0.005)
    assert list(marks.blocked_users) == []


async def test_so_many_are_blocked_and_no_more(open_marks, monkeypatch):
    monkeypatch.setattr(module, "MAX_BLOCKED_USERS", 2)
    marks = await open_marks()
    await marks.block("a")
    await marks.block("b")
    await marks.block("b")
    with pytest.raises(TooManyBlocked):
        await marks.block("c")


async def test_forgiven_money_is_kept_by_window_once_and_for_no_longer_than_a_month_needs(open_marks, tmp_path):
    marks = await open_marks()
    rows = [ForgivenSpend(f"{n}", 1000.0, "openai", "ada", period, 5) for n, period in enumerate(["h", "d", "month"])]
    assert await marks.forgive(rows) is None
    assert await marks.forgive(rows) is None
    database = SqliteStore(tmp_path / "ledger.db")
    since = {"h": 990.0, "d": 900.0, "month": 1001.0}
    assert await database.forgiven_by_user("openai", since, 2000.0) == {"h": {"ada": 5}, "d": {"ada": 5}, "month": {}}
    assert await database.forgiven_by_user("openai", since, 1000.0) == {"h": {}, "d": {}, "month": {}}
    assert await database.forgiven_by_user("other", since, 2000.0) == {"h": {}, "d": {}, "month": {}}
    await marks.forgive([ForgivenSpend("9", 1000.0 + FORGIVEN_KEPT_SECONDS + 1, "openai", "ada", "d", 1)])
    assert await database.forgiven_by_user("openai", {"d": 0.0}, 1e12) == {"d": {"ada": 1}}
    await database.close()
