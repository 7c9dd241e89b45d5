"""Breaker, budget, cache, shared calls, keys and addresses, each by itself."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress import app_environment
from proxy.egress.api_keys import VirtualKeys, key_variable
from proxy.egress.app_environment import proxy_variables
from proxy.egress.cache import CachedResponse, ResponseCache, cache_key
from proxy.egress.circuit_breaker import Breaker
from proxy.egress.coalescing import SharedCall, SharedCalls
from proxy.egress.deadline import parse_patience
from proxy.egress.headers import outgoing
from proxy.egress.provider_limits import MAX_MODELS, ProviderLimits, parse_duration, parse_limit_headers
from proxy.egress.retry_budget import RetryBudget
from proxy.egress.url_mapping import app_base_url, join_url, split_target
from proxy.http.outgoing_client import find_parent_proxies
from proxy.policy import schema
from proxy.policy.loading import PolicySource, load_policy
from proxy.util.fair_queue import FairQueue
from proxy.util.sliding_window import SlidingWindow


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# ── breaker ──────────────────────────────────────────────────────────────────────────────────


def opened(clock: Clock, **rule) -> Breaker:
    breaker = Breaker("openai", schema.Breaker(min_calls=2, open=30.0, **rule), clock=clock)
    for _ in range(2):
        breaker.report(breaker.admit(), ok=False)
    assert breaker.state == "open"
    return breaker


def test_it_opens_at_the_ratio_and_not_before_the_least_calls():
    clock = Clock()
    breaker = Breaker("openai", schema.Breaker(min_calls=4, failure_ratio=0.5), clock=clock)
    for ok in (False, False, True):
        breaker.report(breaker.admit(), ok)
        assert breaker.state == "closed"
    breaker.report(breaker.admit(), ok=True)
    assert breaker.state == "open"
    assert repr(breaker) == "<Breaker openai: open, 30 s left, 2 of 4 failed>"


def test_exactly_one_of_fifty_is_the_probe():
    clock = Clock()
    breaker = opened(clock)
    assert breaker.admit() is None
    clock.now += 30
    assert len([one for one in (breaker.admit() for _ in range(50)) if one is not None]) == 1
    assert breaker.state == "half-open"


def test_a_good_probe_closes_and_clears_and_a_bad_one_opens_again():
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    breaker.report(breaker.admit(), ok=False)
    assert (breaker.state, breaker.retry_after) == ("open", 30.0)
    clock.now += 30
    breaker.report(breaker.admit(), ok=True)
    assert (breaker.state, breaker.counts()) == ("closed", (0, 0))


def test_a_probe_that_was_given_up_lets_another_through():
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    breaker.report(breaker.admit(), ok=None)
    assert breaker.admit() is not None


def test_results_of_an_older_era_have_no_say():
    clock = Clock()
    breaker = Breaker("openai", schema.Breaker(min_calls=2, open=30.0), clock=clock)
    late = [breaker.admit() for _ in range(3)]
    for _ in range(2):
        breaker.report(breaker.admit(), ok=False)
    breaker.report(late[0], ok=True)
    assert breaker.state == "open"
    clock.now += 30
    probe = breaker.admit()
    breaker.report(late[1], ok=False)
    breaker.report(late[2], ok=True)
    assert breaker.state == "half-open"
    breaker.report(probe, ok=True)
    breaker.report(probe, ok=False)  # only once
    assert breaker.state == "closed"


def test_slow_calls_count_as_failures_where_the_policy_says_what_is_slow():
    breaker = Breaker("openai", schema.Breaker(min_calls=2, slow_call=5.0), clock=Clock())
    for _ in range(2):
        breaker.report(breaker.admit(), ok=True, seconds=6)
    assert breaker.state == "open"


def test_old_failures_are_forgotten():
    clock = Clock()
    breaker = Breaker("openai", schema.Breaker(min_calls=2, window=60), clock=clock)
    breaker.report(breaker.admit(), ok=False)
    clock.now += 61
    breaker.report(breaker.admit(), ok=False)
    assert breaker.state == "closed"


def test_an_operators_word_stands_until_taken_back():
    clock = Clock()
    breaker = Breaker("openai", schema.Breaker(min_calls=1), clock=clock)
    breaker.force("open")
    clock.now += 1000
    assert breaker.admit() is None
    breaker.force("closed")
    breaker.report(breaker.admit(), ok=False)
    assert breaker.state == "closed"
    breaker.force(None)
    breaker.report(breaker.admit(), ok=False)
    assert breaker.state == "open"


def test_an_operators_word_outlives_a_reload_that_takes_the_breaker_away():
    breaker = Breaker("openai", schema.Breaker(open=7.0), clock=Clock())
    breaker.force("open")
    assert breaker.retry_after == 7.0
    breaker.reconfigure(None)
    assert breaker.admit() is None
    assert breaker.retry_after == 60.0
    assert repr(breaker) == "<Breaker openai: open, held by an operator, 0 of 0 failed>"
    breaker.force(None)
    assert breaker.admit() is not None


def test_changes_are_told_once():
    reported, clock = [], Clock()
    breaker = Breaker(
        "a", schema.Breaker(min_calls=1), clock=clock, on_change=lambda state, why: reported.append(state)
    )
    breaker.report(breaker.admit(), ok=False)
    clock.now += 30
    breaker.report(breaker.admit(), ok=True)
    assert reported == ["open", "half-open", "closed"]


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60))
def test_a_window_counts_what_is_in_it(events):
    clock = Clock()
    window, seen = SlidingWindow(60.0, clock), []
    for pause, marked in events:
        clock.now += pause
        window.add(marked=marked)
        seen.append((clock.now, marked))
    surely = [marked for at, marked in seen if at > clock.now - 59]
    perhaps = [marked for at, marked in seen if at >= clock.now - 61]
    every, some = window.counts()
    assert len(surely) <= every <= len(perhaps)
    assert sum(surely) <= some <= sum(perhaps)


def test_the_budget_is_a_share_of_the_calls_and_ten_a_minute_at_least():
    clock = Clock()
    budget = RetryBudget(0.2, clock)
    assert [budget.try_acquire() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(100):
        budget.record_call()
    assert sum(budget.try_acquire() for _ in range(50)) == 10
    clock.now += 61
    assert budget.try_acquire()


# ── pace ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("12ms", 0.012),
        ("1s", 1),
        ("6m0s", 360),
        ("1h2m3.5s", 3723.5),
        ("7", 7),
        ("", None),
        ("soon", None),
        ("-1s", None),
    ],
)
def test_durations_as_openai_writes_them(text, wanted):
    assert parse_duration(text) == wanted


def test_lessons_of_both_vendors():
    said = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}
    assert parse_limit_headers(said, 0.0) == [("requests", 0, 60.0)]
    said = {"anthropic-ratelimit-tokens-remaining": "9", "anthropic-ratelimit-tokens-reset": "1970-01-01T00:00:30Z"}
    assert parse_limit_headers(said, 10.0) == [("tokens", 9, 20.0)]
    assert parse_limit_headers({"x-ratelimit-remaining-requests": "no", "x-ratelimit-reset-requests": "1s"}, 0.0) == []


def test_users_go_in_turn():
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "a2", "a3", "b1", "c1", "c2"):
        queue.append(name[0], name)
    queue.remove("c", "c1")
    assert [queue.pop_next() for _ in range(6)] == ["a1", "b1", "c2", "a2", "a3", None]


def test_who_may_not_go_is_passed_over_and_keeps_the_place():
    queue: FairQueue[str] = FairQueue()
    for name in ("a1", "a2", "b1"):
        queue.append(name[0], name)
    assert queue.pop_next(lambda name: name != "a1") == "a2"
    assert queue.pop_next(lambda name: name != "a1") == "b1"
    assert queue.pop_next(lambda name: name != "a1") is None
    queue.append_left("b", "b1")
    assert list(queue) == ["b1", "a1"]
    assert [queue.pop_next() for _ in range(3)] == ["b1", "a1", None]


def test_limits_of_so_many_models_are_remembered_those_that_last_longest():
    limits = ProviderLimits(lambda: 100.0, lambda: 0.0)
    limits.pause_model(50.0, "long")
    for number in range(3 * MAX_MODELS):
        limits.pause_model(1.0 + number / 1000, f"model-{number}")
    limits.read_headers({"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "30s"}, "m")
    assert len(limits._models) == MAX_MODELS
    assert limits.paused_until("long") == 150.0
    assert limits.paused_until("model-0") <= 100.0
    assert (limits.exhausted_until("m", 10), limits.exhausted_until("m", 11)) == (0.0, 130.0)
    assert limits.paused_until(None) == 0.0
    limits.pause_all(5.0)
    assert limits.paused_until("anything") == limits.paused_until(None) == 105.0
    assert "long for 50.0 s" in repr(limits)
    assert "every model for 5.0 s" in repr(limits)


# ── cache and shared calls ───────────────────────────────────────────────────────────────────


def test_a_key_covers_what_changes_the_answer_and_nothing_else():
    base = {
        "upstream": "o",
        "method": "POST",
        "url": "/c",
        "headers": [("Authorization", "a")],
        "body": b"x",
        "scope": "u",
    }
    same = [
        {"headers": [("authorization", "a"), ("User-Agent", "z"), ("X-Stainless-Lang", "py"), ("traceparent", "t")]}
    ]
    other = [
        {"upstream": "p"},
        {"method": "GET"},
        {"url": "/d"},
        {"body": b"y"},
        {"scope": "v"},
        {"headers": [("Authorization", "b")]},
        {"headers": [("Authorization", "a"), ("OpenAI-Beta", "x")]},
        {"scope": "", "body": b"ux"},
    ]
    assert all(cache_key(**{**base, **change}) == cache_key(**base) for change in same)
    assert all(cache_key(**{**base, **change}) != cache_key(**base) for change in other)


def test_the_cache_is_bounded_by_bytes_and_forgets():
    clock = Clock()
    cache = ResponseCache(schema.Cache(ttl=60.0, max=10_000, stale_if_error=60.0), clock=clock)
    for number in range(20):
        cache.put(b"%d" % number, CachedResponse(200, (), b"x" * 1000, clock.now))
    assert cache._size <= 10_000
    assert cache.get(b"0") is None
    assert cache.get(b"19") is not None
    cache.put(b"big", CachedResponse(200, (), b"x" * 5000, clock.now))
    assert cache.get(b"big") is None
    clock.now += 61
    assert cache.get(b"19") is None
    assert cache.get_stale(b"19") is not None
    clock.now += 60
    assert cache.get_stale(b"19") is None
    cache.reconfigure(schema.Cache())
    assert (cache._size, len(cache._entries)) == (0, 0)


async def test_a_slow_reader_slows_the_work_and_a_quick_one_alone_does_not_wait():
    written = 0

    async def work(flight: SharedCall) -> None:
        nonlocal written
        await flight.write_head("head")
        for _ in range(100):
            await flight.write(b"x" * 10_000)
            written += 10_000

    flight = SharedCall(work)
    async with flight.join() as reader:
        assert await reader.read_head() == "head"
        await asyncio.sleep(0.01)
        assert written <= 70_000
        assert sum([len(data) async for data in reader]) == 1_000_000


async def test_past_its_limit_nobody_joins_and_what_all_have_read_is_let_go():
    async def work(flight: SharedCall) -> None:
        await flight.write_head("head")
        for _ in range(100):
            await flight.write(b"x" * 10_000)

    flight = SharedCall(work, limit=100_000)
    async with flight.join() as one, flight.join() as two:
        sizes = await asyncio.gather(*(_size(reader) for reader in (one, two)))
        assert sizes == [1_000_000, 1_000_000]
        assert not flight.joinable
        assert sum(map(len, flight._chunks)) < 400_000


async def _size(reader) -> int:
    return sum([len(data) async for data in reader])


async def test_the_last_reader_who_leaves_cancels_the_work_and_an_error_is_everybodys():
    async def forever(flight: SharedCall) -> None:
        await asyncio.sleep(60)

    async def fails(flight: SharedCall) -> None:
        await flight.write_head("head")
        await flight.write(b"half")
        raise ValueError("broken")

    flights = SharedCalls()
    flight = flights.start(b"a", forever)
    first, second = flight.join(), flight.join()
    await first.__aexit__(None, None, None)
    await asyncio.sleep(0)
    assert not flight.task.cancelling()
    await second.__aexit__(None, None, None)
    await asyncio.gather(flight.task, return_exceptions=True)
    await asyncio.sleep(0)
    assert len(flights) == 0
    flight = flights.start(b"b", fails)
    for _ in range(2):
        async with flight.join() as reader:
            assert await reader.read_head() == "head"
            with pytest.raises(ValueError, match="broken"):
                await _size(reader)
    await flights.close()


# ── addresses, keys, headers ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("base", "target", "url"),
    [
        ("https://api.openai.com/v1", "/openai/v1/models?x=1", "https://api.openai.com/v1/models?x=1"),
        ("https://api.openai.com/v1", "/openai/models", "https://api.openai.com/v1/models"),
        ("https://api.anthropic.com", "/a/v1/messages", "https://api.anthropic.com/v1/messages"),
        ("https://h/api/v1/", "/o/v1/v1x", "https://h/api/v1/v1x"),
        ("http://h:1/b", "/o/a%2Fb/../%7E", "http://h:1/b/a%2Fb/../%7E"),
        ("https://h/v1", "/o?x=1", "https://h/v1?x=1"),
    ],
)
def test_v1_is_not_doubled_and_nothing_else_is_changed(base, target, url):
    assert str(join_url(base, split_target(target)[1])) == url


def test_what_a_variable_is_set_to_leads_where_its_value_led():
    assert app_base_url("https://api.openai.com/v1", "h:1", "openai", "openai", adopted=False) == "http://h:1/openai/v1"
    assert app_base_url("http://local/api", "h:1", "openai", "openai", adopted=True) == "http://h:1/openai"
    assert (
        app_base_url("https://api.anthropic.com", "h:1", "anthropic", "anthropic", adopted=False)
        == "http://h:1/anthropic"
    )


def test_a_made_key_is_exchanged_for_the_real_one_where_it_stands():
    keys = VirtualKeys()
    made = keys.key_for("openai")
    for shows, gets in (
        (("/x", [("Authorization", f"Bearer {made}")]), ("/x", [("Authorization", "Bearer re/al")])),
        (("/x", [("api-key", made)]), ("/x", [("api-key", "re/al")])),
        ((f"/x?key={made}&a=%20", [("x", "y")]), ("/x?key=re/al&a=%20", [("x", "y")])),
        (("/x", [("Authorization", f"Bearer {made[:-1]}")]), None),
        (("/x", [("Authorization", f"Bearer {made[:-1]}é"), ("x", f"{made[:-1]}\udcff")]), None),
        (("/x", [("Authorization", "Basic ****")]), None),
        (("/x", []), None),
    ):
        assert keys.inject(made, "re/al", *shows) == gets


def test_each_upstream_of_kind_http_has_a_key_of_its_own():
    keys = VirtualKeys()
    assert key_variable("openai", "azure") == "OPENAI_API_KEY"
    assert key_variable("http", "mail-er.v2") == "MAIL_ER_V2_API_KEY"
    assert keys.key_for("http", "a") == keys.key_for("http", "a") != keys.key_for("http", "b")


def test_what_is_between_app_and_gateway_does_not_leave():
    came = [
        (b"Connection", b"X-A"),
        (b"X-A", b"1"),
        (b"X-Outrigger-Request", b"t"),
        (b"tracestate", b"outrigger=t"),
        (b"B", b"2"),
    ]
    assert outgoing(came) == [("B", "2")]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("600", 600), ("1.5", 1.5), ("None", None), ("nan", None), ("inf", None), ("-1", None), (None, None)],
)
def test_patience_is_a_number_of_seconds_or_none(text, wanted):
    assert parse_patience(text) == wanted


def test_a_proxy_on_the_way_is_honoured_but_not_to_loopback():
    from yarl import URL

    parent = find_parent_proxies({"HTTPS_PROXY": "proxy:3128", "NO_PROXY": "internal.example"})
    assert str(parent(URL("https://api.openai.com/v1"))) == "http://proxy:3128"
    assert parent(URL("https://a.internal.example")) is None
    assert parent(URL("https://localhost:1")) is None
    assert parent(URL("http://api.openai.com")) is None


def test_proxy_variables_are_there_only_where_other_hosts_are_looked_at():
    assert proxy_variables(schema.Egress(), "h:1", {}, []) == {}
    env = proxy_variables(schema.Egress(other_hosts="observe"), "h:1", {"NO_PROXY": "mine"}, ["db"])
    assert env["https_proxy"] == env["HTTP_PROXY"] == "http://h:1"
    assert env["no_proxy"].split(",") == ["localhost", "127.0.0.1", "::1", "db", "mine"]


KEYED = {
    "one": ("openai: {api_key: a}", "openai"),
    "none": ("openai: {}", None),
    "a fallback with a key beside one without": ("azure: {kind: openai, base_url: 'http://a', api_key: b}", None),
    "both": ("openai: {api_key: a}\n  azure: {kind: openai, base_url: 'http://a', api_key: b}", "openai"),
    "another alone": ("openai: off\n  azure: {kind: openai, base_url: 'http://a', api_key: b}", "openai"),
}


@pytest.mark.parametrize("name", KEYED)
def test_the_apps_key_is_replaced_only_where_the_upstream_it_is_for_has_one(name):
    text, kind = KEYED[name]
    keys = VirtualKeys()
    env = app_environment.app_variables(
        load_policy(PolicySource("t", None, f"upstreams:\n  {text}\n"), {}), "h:1", {}, keys
    )
    assert env.get("OPENAI_API_KEY") == (keys.key_for(kind) if kind else None)
    assert "ANTHROPIC_API_KEY" not in env
