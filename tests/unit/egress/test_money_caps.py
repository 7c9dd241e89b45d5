"""Caps: what is reserved, settled and released, by user and window."""

from datetime import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from proxy.egress.billing.forecast import SpendForecast
from proxy.egress.billing.spend_account import CapReached
from proxy.egress.billing.spend_accounts import MAX_USERS
from proxy.egress.billing.spend_limits import SpendLimits
from proxy.egress.billing.windows import Calendar
from proxy.ledger.store import UserTotals, WindowTotals
from proxy.policy.schema import Cap
from proxy.policy.values import ANY_TIER, Spend
from proxy.units import NANOS, format_nanos
from proxy.util.user_names import UNATTRIBUTED

NOON = datetime(2026, 11, 26, 12, 0, tzinfo=ZoneInfo("UTC")).timestamp()


class Clock:
    def __init__(self, at: float = NOON) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def cap(**keys: object) -> Cap:
    spends = {}
    for name, value in keys.items():
        if name == "per_user":
            value = {ANY_TIER: tuple(Spend.parse(one) for one in value)} if not isinstance(value, dict) else value
        elif name in ("total", "unattributed"):
            value = Spend.parse(value)
        elif name == "per_call":
            value = Decimal(value)
        spends[name] = value
    return Cap(**spends)


def limits(clock: Clock | None = None, **keys: object) -> SpendLimits:
    return SpendLimits(cap(**keys), now=clock or Clock())


def pay(limits: SpendLimits, dollars: float, user: str = "ada", tier: str = "free") -> None:
    hold = limits.reservation(user, tier)
    hold.reserve(int(dollars * NANOS))
    hold.spend(int(dollars * NANOS))
    hold.release()


def test_a_call_of_before_this_hour_that_a_restart_found_open_is_settled_against_the_caps_of_longer_windows():
    clock, warned = Clock(NOON + 1800), []
    caps = cap(per_user=["$1/h", "$1/d"], total="$1/h")
    mine = SpendLimits(caps, now=clock, on_warn=lambda whom, which, share: warned.append((whom, str(which), share)))
    hold = mine.reservation("ada", "free")
    hold.restore(NANOS // 2, mine.accounts.window_starts(), NOON - 600)
    hold.spend(NANOS // 2)
    hold.release()
    assert [period for period in ("h", "d") if mine.spent(period, "ada")] == []
    assert warned == []
    hold = mine.reservation("ada", "free")
    hold.restore(0, mine.accounts.window_starts(), NOON - 600)
    hold.spend(NANOS // 2)
    assert (mine.spent("h", "ada"), mine.spent("d", "ada")) == (0, NANOS // 2)
    assert warned == [("ada (cap.per_user)", "$1/d", 0.5)]


@pytest.mark.parametrize(
    ("keys", "user", "said"),
    [
        ({"per_call": "0.05"}, "ada", "a call may cost $0.05"),
        ({"per_user": ["$0.05/d"]}, "ada", "for ada (cap.per_user)"),
        ({"per_user": ["$1/d", "$0.05/month"]}, "ada", "$0.05/month"),
        ({"per_user": ["$0.05/h"]}, "ada", "$0.05/h"),
        ({"unattributed": "$0.05/d"}, UNATTRIBUTED, "calls of nobody (cap.unattributed)"),
        ({"total": "$0.05/d"}, "ada", "all calls together (cap.total)"),
    ],
)
def test_a_call_that_would_pass_a_cap_is_refused_with_the_cap_named(keys, user, said):
    mine = limits(**keys)
    pay(mine, 0.04, user)
    hold = mine.reservation(user, "free")
    with pytest.raises(CapReached) as refused:
        hold.reserve(60_000_000)
    assert said in str(refused.value)
    assert mine.reserved == 0


def test_what_is_reserved_counts_as_spent():
    mine = limits(per_user=["$0.10/d"])
    holds = [mine.reservation("ada", "free") for _ in range(3)]
    holds[0].reserve(50_000_000)
    holds[1].reserve(50_000_000)
    with pytest.raises(CapReached):
        holds[2].reserve(1)
    holds[0].release()
    holds[2].reserve(50_000_000)


def test_caps_go_by_tier():
    tiers = {"free": (Spend.parse("$0.01/d"),), "premium": (Spend.parse("$1/d"),)}
    mine = limits(per_user=tiers)
    pay(mine, 0.5, "bob", "premium")
    with pytest.raises(CapReached):
        pay(mine, 0.5, "ada", "free")
    pay(mine, 100, "eve", "admin")  # no cap names it


def test_a_user_without_a_cap_is_still_counted_for_one_that_comes_later():
    mine = limits()
    pay(mine, 0.3)
    mine.reconfigure(cap(per_user=["$0.25/d"]))
    assert mine.exhausted_cap("ada", "free") is not None
    with pytest.raises(CapReached):
        pay(mine, 0.01)


@pytest.mark.parametrize(
    ("zone", "now", "turns"),
    [
        ("UTC", "2026-11-26T23:59:59+00:00", "2026-11-27T00:00:00+00:00"),
        ("Europe/Berlin", "2026-03-29T00:30:00+01:00", "2026-03-30T00:00:00+02:00"),  # 23 hours
        ("Europe/Berlin", "2026-10-25T00:30:00+02:00", "2026-10-26T00:00:00+01:00"),  # 25 hours
        ("Africa/Cairo", "2026-04-23T23:30:00+02:00", "2026-04-24T01:00:00+03:00"),  # midnight is skipped
        ("Asia/Kolkata", "2026-11-26T23:00:00+05:30", "2026-11-27T00:00:00+05:30"),
    ],
)
def test_a_day_turns_at_midnight_of_the_zone(zone, now, turns):
    clock = Clock(datetime.fromisoformat(now).timestamp())
    mine = limits(clock, per_user=["$0.10/d"], timezone=zone)
    pay(mine, 0.10)
    end = datetime.fromisoformat(turns).timestamp()
    clock.at = end - 1
    with pytest.raises(CapReached):
        pay(mine, 0.01)
    clock.at = end
    assert mine.exhausted_cap("ada", "free") is None
    pay(mine, 0.10)


def test_hours_and_months_turn_as_they_should():
    calendar = Calendar("Asia/Kolkata")
    at = datetime.fromisoformat("2026-12-31T23:45:10.5+05:30").timestamp()
    new_year = datetime.fromisoformat("2027-01-01T00:00:00+05:30").timestamp()
    assert calendar.window("h", at) == (new_year - 3600, new_year)
    assert calendar.window("month", at) == (datetime.fromisoformat("2026-12-01T00:00:00+05:30").timestamp(), new_year)


def test_a_call_over_midnight_is_paid_in_the_window_in_which_it_began():
    clock = Clock(datetime.fromisoformat("2026-11-26T23:59:59+00:00").timestamp())
    mine = limits(clock, per_user=["$0.10/d"])
    hold = mine.reservation("ada", "free")
    hold.reserve(100_000_000)
    clock.at += 2
    hold.spend(100_000_000)
    hold.release()
    assert mine.spent("d", "ada") == 0
    assert mine.spent("month", "ada") == 100_000_000
    pay(mine, 0.10)
    assert mine.reserved == 0


def test_a_cap_is_spent_when_a_call_of_the_usual_size_no_longer_fits():
    mine = limits(per_user=["$0.10/d"])
    for _ in range(8):
        pay(mine, 0.0105)
    assert mine.exhausted_cap("ada", "free") is None
    pay(mine, 0.0105)
    text, turns = mine.exhausted_cap("ada", "free")
    assert text == "$0.094500 of $0.10/d is spent; it turns at 2026-11-27 00:00+00:00"
    assert turns == 12 * 3600
    for _ in range(20):
        pay(mine, 0.0001)  # smaller ones are usual now, and fit
    assert mine.exhausted_cap("ada", "free") is None


def test_a_cap_with_more_than_a_fifth_left_is_never_spent():
    mine = limits(per_user=["$0.10/d"])
    pay(mine, 0.079)
    with pytest.raises(CapReached):
        pay(mine, 0.079)
    assert mine.exhausted_cap("ada", "free") is None
    pay(mine, 0.002)
    assert mine.exhausted_cap("ada", "free") is not None


def test_what_is_reserved_makes_no_cap_spent_and_a_higher_one_is_open_at_once():
    mine = limits(per_user=["$0.10/d"], total="$0.10/d")
    holds = [mine.reservation("ada", "free") for _ in range(5)]
    for hold in holds[:4]:
        hold.reserve(25_000_000)
    with pytest.raises(CapReached):
        holds[4].reserve(25_000_000)
    assert mine.exhausted_cap("ada", "free") is None
    assert (mine.total_share(), mine.count_users_above(0.8, lambda _: "free")) == (0, 0)
    for hold in holds:
        hold.spend(1_000)
        hold.release()
    assert mine.exhausted_cap("ada", "free") is None
    pay(mine, 0.099)
    assert mine.exhausted_cap("ada", "free") is not None
    assert (mine.total_share(), mine.count_users_above(0.8, lambda _: "free")) == (1.0, 1)
    mine.reconfigure(cap(per_user=["$1/d"], total="$1/d"))
    assert mine.exhausted_cap("ada", "free") is None
    assert mine.total_share() == pytest.approx(0.099, rel=0.01)


def test_one_giant_call_that_is_refused_does_not_close_the_door_for_others():
    mine = limits(per_user=["$0.10/d"])
    for _ in range(3):
        pay(mine, 0.01)
    with pytest.raises(CapReached):
        pay(mine, 5)
    assert mine.exhausted_cap("ada", "free") is None


def test_each_mark_is_warned_of_once():
    reported = []
    mine = SpendLimits(cap(total="$1/d"), now=Clock(), on_warn=lambda *said: reported.append((said[0], said[2])))
    for _ in range(10):
        pay(mine, 0.1)
    whom = "all calls together (cap.total)"
    assert reported == [(whom, 0.5), (whom, 0.8), (whom, 1.0)]


def test_what_the_ledger_has_counts_after_a_restart():
    mine = limits(per_user=["$0.10/d", "$1/month"], total="$5/d")
    mine.accounts.mark_unloaded()
    spent = {
        "d": WindowTotals({"ada": 90_000_000}, 0),
        "month": WindowTotals({"ada": 95_000_000, "bob": 1_000_000_000}, 0),
    }
    mine.accounts.load(mine.accounts.window_starts(), spent | {"h": WindowTotals({}, 0)}, {})
    assert mine.spent("month") == 1_095_000_000
    assert mine.spent("d") == 90_000_000
    assert mine.spent("month", "ada") == 95_000_000
    with pytest.raises(CapReached):
        pay(mine, 0.02)


def test_another_time_zone_asks_for_a_new_count():
    mine = limits(total="$5/d")
    pay(mine, 1)
    assert mine.reconfigure(cap(total="$1/d")) is False
    assert mine.spent("d") == NANOS
    assert mine.reconfigure(cap(total="$1/d", timezone="Asia/Tokyo")) is True
    assert mine.spent("d") == 0


def test_memory_is_bounded_and_who_owes_most_is_remembered():
    mine = limits(per_user=["$1/d"])
    pay(mine, 0.9, "whale")
    holding = mine.reservation("holder", "free")
    holding.reserve(1)
    for number in range(MAX_USERS + 100):
        pay(mine, 0.000001, f"user-{number}")
    assert mine.accounts.evicted == 102
    assert mine.spent("d", "whale") == 900_000_000
    holding.release()
    assert mine.reserved == 0


def test_who_was_forgotten_is_in_doubt_until_the_ledger_was_asked_or_the_month_is_over():
    clock = Clock()
    mine = limits(clock, per_user=["$1/d"])
    for number in range(MAX_USERS + 1):
        pay(mine, 0.00005 * (number + 1), f"user-{number}")
    assert mine.accounts.evicted == 1
    assert not mine.accounts.is_loaded("user-0")
    assert mine.accounts.is_loaded("user-1")
    mine.accounts.load_user(
        "user-0", UserTotals({"d": 1_000_000, "month": 5_000_000}, {"month": 2_000_000}), mine.accounts.window_starts()
    )
    assert mine.accounts.is_loaded("user-0")
    assert (mine.spent("d", "user-0"), mine.counted("month", "user-0")) == (1_000_000, 3_000_000)
    mine.accounts.load_user("user-0", UserTotals({"d": 9}, {}), mine.accounts.window_starts())
    assert mine.spent("d", "user-0") == 1_000_000, "once"
    assert not mine.accounts.is_loaded("user-1"), "who made room for it"
    clock.at = Calendar("UTC").window("month", clock.at)[1]
    assert mine.accounts.is_loaded("user-1"), "in a new month nobody spent anything"


def test_windows_that_turned_while_the_ledger_was_asked_are_left_out():
    clock = Clock()
    mine = limits(clock, per_user=["$1/d"])
    mine.accounts.mark_unloaded()
    windows = mine.accounts.window_starts()
    clock.at += 86400
    mine.accounts.load_user("ada", UserTotals(dict.fromkeys(windows, 7), {}), windows)
    assert {period: mine.spent(period, "ada") for period in windows} == {"h": 0, "d": 0, "month": 7}


def test_a_call_that_goes_on_without_the_ledgers_word_is_not_asked_for_again():
    clock = Clock()
    mine = limits(clock, per_user=["$1/d"])
    mine.accounts.mark_unloaded()
    mine.reservation("ada", "free", clock.at - 3)
    mine.reservation("ada", "free", clock.at - 7)
    assert mine.accounts.counted_since("ada") == clock.at - 7


def test_a_projection_adds_the_pace_of_the_last_hour():
    clock = Clock()
    projection = SpendForecast(clock)
    projection.add(1_000)
    assert projection.total_at(1_000, clock.at + 7200) == 3_000
    clock.at += 3660
    assert projection.total_at(1_000, clock.at + 7200) == 1_000


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.000000"), (1, "0.000000001"), (1_500, "0.0000015"), (NANOS, "1.000000"), (12_345_678_901, "12.345678901")],
)
def test_money_is_shown_with_six_decimals_at_least(amount, text):
    assert format_nanos(amount) == text


class Money(RuleBasedStateMachine):
    """Calls of three users in any order, with estimates that err, crashes and midnights: caps hold."""

    LIMIT = 1_000  # of each user; the total is 2,000

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        each = {ANY_TIER: (Spend(Decimal(self.LIMIT) / NANOS, "d"),)}
        self.policy = Cap(per_user=each, total=Spend(Decimal(2 * self.LIMIT) / NANOS, "d"))
        self.ledger: list[tuple[str, float, int]] = []  # rows: whom, when, how much
        self.errors: dict[str, int] = {}  # by how much estimates of this window were passed
        self.restart()

    def restart(self) -> None:
        self.limits = SpendLimits(self.policy, now=self.clock)
        start, _ = Calendar("UTC").window("d", self.clock.at)
        found: dict[str, int] = {}
        for user, at, amount in self.ledger:
            if at >= start:
                found[user] = found.get(user, 0) + amount
        self.limits.accounts.mark_unloaded()
        self.limits.accounts.load(self.limits.accounts.window_starts(), {"d": WindowTotals(found, 0)}, {})
        self.live: list[dict] = []
        self.day = start

    @rule(target=calls, user=st.sampled_from("abc"), estimate=st.integers(0, 400))
    def begin(self, user: str, estimate: int) -> dict:
        before = self.limits.spent("d", user)
        call = {
            "user": user,
            "estimate": estimate,
            "at": self.clock.at,
            "hold": self.limits.reservation(user, "t"),
            "row": None,
        }
        try:
            call["hold"].reserve(estimate)
        except CapReached:
            assert self.limits.spent("d", user) == before
            call["hold"] = None
            return call
        self.ledger.append((user, self.clock.at, estimate))
        call["row"] = len(self.ledger) - 1
        self.live.append(call)
        return call

    def _end(self, call: dict, amount: int) -> None:
        if call not in self.live:
            return
        self.live.remove(call)
        call["hold"].spend(amount)
        call["hold"].release()
        self.ledger[call["row"]] = (call["user"], call["at"], amount)
        over = max(0, amount - call["estimate"])
        self.errors[call["user"]] = self.errors.get(call["user"], 0) + over

    @rule(call=calls, actual=st.integers(0, 600))
    def settle(self, call: dict, actual: int) -> None:
        self._end(call, actual)

    @rule(call=calls)
    def release(self, call: dict) -> None:
        self._end(call, 0)

    @rule(call=calls)
    def lost_and_tried_again(self, call: dict) -> None:
        """An attempt that was sent and broke off is paid; another is made only within the caps."""
        if call not in self.live:
            return
        hold = call["hold"]
        hold.spend(call["estimate"])
        hold.release()
        try:
            hold.reserve(call["estimate"])
        except CapReached:
            self.live.remove(call)
            return
        self.ledger.append((call["user"], call["at"], call["estimate"]))

    @rule()
    def crash(self) -> None:
        """What was under way is on record at its reservation."""
        self.restart()

    @precondition(lambda self: not self.live)
    @rule()
    def midnight(self) -> None:
        self.clock.at = Calendar("UTC").window("d", self.clock.at)[1]
        self.day = self.clock.at
        self.errors = {}
        for user in "abc":
            assert self.limits.spent("d", user) == 0

    @invariant()
    def caps_hold_but_for_the_errors_of_the_estimates(self) -> None:
        everybody = 0
        for user in "abc":
            spent = self.limits.spent("d", user)
            assert spent >= 0
            everybody += spent
        assert self.limits.spent("d") == everybody
        assert self.limits.reserved == sum(call["hold"].amount for call in self.live)
        assert self.limits.reserved >= 0

    @invariant()
    def nobody_passes_a_cap_by_more_than_the_estimates_erred(self) -> None:
        for user in "abc":
            reserved = sum(call["hold"].amount for call in self.live if call["user"] == user)
            assert self.limits.spent("d", user) + reserved <= self.LIMIT + self.errors.get(user, 0)
        assert self.limits.spent("d") + self.limits.reserved <= 2 * self.LIMIT + sum(self.errors.values())

    def teardown(self) -> None:
        for call in list(self.live):
            self._end(call, 0)
        assert self.limits.reserved == 0


Money.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestMoney = Money.TestCase


def test_a_forgiven_day_stands_against_no_cap_of_that_user_and_is_spent_all_the_same():
    clock = Clock()
    mine = limits(clock, per_user=["$1/d", "$3/month"], total="$2.5/d")
    pay(mine, 1.0)
    clock.at += 86400
    pay(mine, 1.0)
    with pytest.raises(CapReached):
        pay(mine, 0.1)
    assert mine.exhausted_cap("ada", "free") is not None
    assert mine.forgive("ada") == {"h": NANOS, "d": NANOS, "month": NANOS}
    assert mine.exhausted_cap("ada", "free") is None
    assert (mine.counted("d", "ada"), mine.counted("month", "ada")) == (0, NANOS)  # yesterday's is not forgiven
    assert mine.spent("d", "ada") == NANOS
    assert mine.forgive("ada") == {}
    assert mine.forgive("bob") == {}
    pay(mine, 1.0)
    assert mine.forgive("ada")["month"] == NANOS
    with pytest.raises(CapReached, match=r"cap\.total"):
        pay(mine, 1.0)


def test_a_call_under_way_when_its_user_is_forgiven_counts_once_it_is_paid():
    mine = limits(per_user=["$1/d"])
    pay(mine, 0.4)
    hold = mine.reservation("ada", "free")
    hold.reserve(NANOS // 2)
    mine.forgive("ada")
    hold.spend(NANOS // 2)
    hold.release()
    assert mine.counted("d", "ada") == NANOS // 2


def test_how_many_are_near_their_caps_is_told_without_a_name() -> None:
    clock = Clock()
    near = limits(clock, per_user={"free": (Spend.parse("$1/d"),), "premium": (Spend.parse("$10/d"),)}, total="$20/d")
    for user, dollars in (("ada", 0.9), ("bob", 0.2), ("premium_eve", 5.0)):
        pay(near, dollars, user, "premium" if user.startswith("premium") else "free")

    def tier_of(user: str) -> str:
        return "premium" if user.startswith("premium") else "free"

    assert near.count_users_above(0.8, tier_of) == 1
    assert near.count_users_above(0.1, tier_of) == 3
    assert near.total_share() == pytest.approx(6.1 / 20)
    with pytest.raises(CapReached):
        pay(near, 0.85, "bob")  # finds no room, and has four fifths of its cap left
    assert near.count_users_above(0.8, tier_of) == 1
    clock.at += 86400
    assert near.count_users_above(0.0, tier_of) == 0
    assert near.total_share() == 0
    assert limits().total_share() is None
    assert limits().count_users_above(0.8, tier_of) == 0
