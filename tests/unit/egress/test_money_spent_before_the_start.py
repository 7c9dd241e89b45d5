"""What was spent before a start, out of a ledger that may be away."""

import time
from types import SimpleNamespace

from proxy.egress.billing import user_spend
from proxy.egress.billing.charge import UpstreamBilling
from proxy.ledger.store import LedgerUnavailable, WindowTotals
from proxy.observe.metrics import Metrics
from proxy.policy import schema


class Ledger:
    def __init__(self, away: int) -> None:
        self.away = away
        self.asked = []

    async def window_totals(self, upstream, since, until):
        self.asked.append((upstream, since, until))
        if len(self.asked) <= self.away:
            raise LedgerUnavailable("it is down")
        return {window: WindowTotals({"ada": 5}, 7) for window in since}

    async def forgiven_by_user(self, upstream, since, until):
        return {window: {"ada": 2} for window in since}


def upstream(kind="openai"):
    policy = schema.Upstream(kind, "https://api.openai.com/v1")
    billing = UpstreamBilling("mine", policy, now=time.time, metrics=Metrics(schema.Metrics(), version="t"))
    return SimpleNamespace(name="mine", billing=billing)


async def test_a_ledger_that_is_away_is_asked_until_it_answers_for_what_came_before_the_start(monkeypatch):
    monkeypatch.setattr(user_spend, "RETRY_SECONDS", 0.001)
    ledger, mine = Ledger(away=3), upstream()
    mine.billing.limits.accounts.mark_unloaded()
    mine.billing.limits.reservation("bob", "free").spend(100)  # a call of the meantime
    await user_spend.load_spend_when_back(mine, ledger, 1234.5)
    assert len(ledger.asked) == 4
    assert {until for _, _, until in ledger.asked} == {1234.5}
    assert mine.billing.limits.spent("d", "ada") == 5
    assert mine.billing.limits.counted("d", "ada") == 3  # two were forgiven
    assert mine.billing.limits.spent("month") == 112
    assert mine.billing.limits.accounts.is_loaded("ada")
    assert not mine.billing.limits.accounts.is_loaded("bob"), "what he spent before is asked for with his next call"


async def test_an_upstream_without_prices_asks_nobody():
    ledger = Ledger(away=0)
    await user_spend.load_spend_when_back(upstream("http"), ledger, 1.0)
    assert ledger.asked == []
