"""`ledger.keep`: how long a row is on record."""

from __future__ import annotations

import time

import pytest
from test_ledger_writer import Seen, Table, until

from proxy.ledger.ledger import Ledger
from proxy.policy import schema


async def test_rows_older_than_keep_go_and_a_reload_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.ledger.ledger.PRUNE_FIRST", 0.01)
    monkeypatch.setattr("proxy.ledger.ledger.PRUNE_EVERY", 0.01)
    seen, table = Seen(), Table()
    policy = schema.Ledger(keep=86400.0)
    ledger = Ledger(policy, emit=seen.emit, metrics=seen.metrics, clock=time.monotonic, database=table)
    await ledger.start()
    await until(lambda: table.kept)
    assert table.kept[-1] == pytest.approx(time.time() - 86400.0, abs=60)
    ledger.apply(schema.Ledger(keep=3600.0))
    asked = len(table.kept)
    await until(lambda: len(table.kept) > asked + 1)
    assert table.kept[-1] == pytest.approx(time.time() - 3600.0, abs=60)
    await ledger.stop()
