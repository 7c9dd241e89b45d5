"""RFC 9111 as tables: what is said, how long it is fresh, how old it is, whether it may be kept."""

from email.utils import formatdate

import pytest

from proxy.ingress.cache.cache_control import (
    MAX_DELTA,
    ResponseDirectives,
    parse_age,
    parse_directives,
    parse_http_date,
)
from proxy.ingress.cache.freshness import freshness_lifetime, initial_age, is_storable, may_serve_stale
from proxy.policy.loading import PolicySource, load_policy

NOW = 1_800_000_000.0


def date(offset=0.0):
    return formatdate(NOW + offset, usegmt=True).encode()


def directives(text):
    return ResponseDirectives.from_headers([(b"Cache-Control", text.encode())])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("max-age=5", {"max-age": "5"}),
        ("Max-AGE=5 ,  PUBLIC", {"max-age": "5", "public": None}),
        ('max-age="5"', {"max-age": "5"}),
        ("max-age='5'", {"max-age": "'5'"}),
        ('ext="max-age=5", max-age=1', {"ext": "max-age=5", "max-age": "1"}),
        ('max-age=1, ext="a, max-age=5"', {"max-age": "1", "ext": "a, max-age=5"}),
        ('private="a, b", no-cache', {"private": "a, b", "no-cache": None}),
        ("max-age=1, max-age=5", {"max-age": "1"}),
        ("max-age", {"max-age": None}),
        ("max-age=", {"max-age": None}),
        (",,=,max-age=3,,", {"max-age": "3"}),
        ("max-age =5", {"max-age": "5"}),
        ("", {}),
    ],
)
def test_directives_are_read_as_a_list_with_quotes(text, found):
    assert parse_directives([text.encode()]) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (date(60), NOW + 60),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 784111777.0),
        (b"sun, 06 nOv 1994 08:49:37 gmt", 784111777.0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 784111777.0),
        (b"Sun Nov  6 08:49:37 1994", 784111777.0),
        (b"Sun, 06 Nov 1994 08:49:37 UTC", None),
        (b"Sun, 06 Nov 1994 08:49:37 AEST", None),
        (b"Sun, 06 Nov 94 08:49:37 GMT", None),
        (b"Sun 06 Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06  Nov 1994 08:49:37 GMT", None),
        (b"Sun, 06-Nov-1994 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08.49.37 GMT", None),
        (b"Sun, 06 Nov 1994 8:49:37 GMT", None),
        (b"0", None),
        (b"", None),
        (None, None),
    ],
)
def test_dates_are_those_of_http_and_no_others(text, value):
    assert parse_http_date(text, NOW) == value


@pytest.mark.parametrize(
    ("lines", "age"),
    [
        ([], 0), ([b"7"], 7), ([b"7, 0"], 7), ([b"0, 7"], 0), ([b"7", b"0"], 7), ([b"abc"], 0), ([b"-7"], 0),
        ([b"7.0"], 0), ([b"99999999999"], MAX_DELTA), ([b"2147483648"], MAX_DELTA),
    ],
)  # fmt: skip
def test_age_is_a_whole_number_and_the_first_of_several_counts(lines, age):
    assert parse_age([(b"Age", line) for line in lines]) == age


@pytest.mark.parametrize(
    ("fields", "lifetime"),
    [
        ({}, None),
        ({b"Cache-Control": b"max-age=10"}, 10),
        ({b"Cache-Control": b"max-age=0"}, 0),
        ({b"Cache-Control": b"max-age=-5"}, 0),
        ({b"Cache-Control": b"max-age=5.5"}, 0),
        ({b"Cache-Control": b"max-age=nonsense"}, 0),
        ({b"Cache-Control": b"max-age=0010"}, 10),
        ({b"Cache-Control": b"max-age=99999999999"}, MAX_DELTA),
        ({b"Cache-Control": b"max-age=10, s-maxage=20"}, 20),
        ({b"Cache-Control": b"s-maxage=0, max-age=20"}, 0),
        ({b"Cache-Control": b"max-age=10", b"Expires": date(-5)}, 10),
        ({b"Cache-Control": b"max-age=0", b"Expires": date(60)}, 0),
        ({b"Expires": date(60)}, 60),
        ({b"Expires": date(-60)}, 0),
        ({b"Expires": date()}, 0),
        ({b"Expires": b"0"}, 0),
        ({b"Expires": b"nonsense"}, 0),
        ({b"Cache-Control": b"public"}, None),
    ],
)
def test_how_long_an_answer_says_that_it_is_fresh(fields, lifetime):
    headers = list(fields.items())
    assert freshness_lifetime(ResponseDirectives.from_headers(headers), headers, NOW, NOW) == lifetime


def test_two_expires_contradict_each_other():
    headers = [(b"Expires", date(60)), (b"Expires", date(60))]
    assert freshness_lifetime(ResponseDirectives(), headers, NOW, NOW) == 0


@pytest.mark.parametrize(
    ("age", "dated", "took", "expected"),
    [(0, 0, 0, 0), (0, 0, 2, 2), (10, 0, 0, 10), (10, 0, 2, 12), (0, -30, 2, 30), (40, -30, 0, 40), (0, 30, 0, 0)],
)
def test_an_answer_is_as_old_as_the_older_of_its_date_and_its_age(age, dated, took, expected):
    assert initial_age([(b"Age", b"%d" % age)], NOW + dated, NOW - took, NOW) == expected


TEXT = [(b"Content-Type", b"text/plain")]
COOKIE = (b"Set-Cookie", b"a=b")


@pytest.mark.parametrize(
    ("scope", "status", "said", "headers", "credentials", "expected"),
    [
        ("public", 200, "max-age=5", TEXT, False, True),
        ("public", 200, "", TEXT, False, True),
        ("public", 200, "no-store", TEXT, False, False),
        ("public", 200, "no-store, max-age=5", TEXT, False, False),
        ("public", 200, "no-store, must-understand", TEXT, False, True),
        ("public", 599, "max-age=5, must-understand", TEXT, False, False),
        ("public", 599, "max-age=5", TEXT, False, True),
        ("public", 200, "private", TEXT, False, False),
        ("public", 200, 'private="x"', TEXT, False, False),
        ("user", 200, "private", TEXT, False, True),
        ("public", 200, "max-age=5", TEXT, True, False),
        ("public", 200, "max-age=5, public", TEXT, True, True),
        ("public", 200, "s-maxage=5", TEXT, True, False),
        ("public", 200, "must-revalidate, max-age=5", TEXT, True, False),
        ("user", 200, "max-age=5", TEXT, True, True),
        ("public", 200, "max-age=5, public", [*TEXT, COOKIE], False, False),
        ("user", 200, "max-age=5", [*TEXT, COOKIE], True, True),
        ("user", 200, "max-age=5", [*TEXT, COOKIE], False, False),
        ("user", 200, "", [*TEXT, COOKIE], True, False),
        ("public", 200, "max-age=5", [*TEXT, (b"Vary", b"*")], False, False),
        ("public", 200, "max-age=5", [*TEXT, (b"Vary", b"Accept, *")], False, False),
        ("public", 200, "max-age=5", [(b"Content-Type", b"text/event-stream; charset=utf-8")], False, False),
        ("public", 206, "max-age=5", TEXT, False, False),
        ("public", 304, "max-age=5", TEXT, False, False),
        ("public", 401, "max-age=5", TEXT, False, False),
        ("public", 103, "max-age=5", TEXT, False, False),
        ("public", 302, "max-age=5", TEXT, False, True),
    ],
)
def test_what_may_be_kept(scope, status, said, headers, credentials, expected):
    assert is_storable(scope, status, directives(said), headers, credentials=credentials) is expected


@pytest.mark.parametrize(
    ("said", "own", "expected"),
    [
        ("max-age=5", None, True),
        ("max-age=5, must-revalidate", None, False),
        ("max-age=5, must-revalidate, stale-if-error=60", 60, False),
        ("max-age=5, proxy-revalidate", None, False),
        ("no-cache", None, False),
        ("s-maxage=5", None, False),
        ("s-maxage=5, stale-while-revalidate=60", 60, True),
        ("", None, True),
    ],
)
def test_what_may_ever_be_given_stale(said, own, expected):
    assert may_serve_stale(directives(said), own) is expected


def test_the_keys_of_a_cache_are_read():
    text = "routes: [{name: a, cache: {ttl: 5s, scope: public, max: 1MiB, stale_while_revalidate: 7s, stale_if_error: 1h}}]"
    cache = load_policy(PolicySource("p", None, text), {}).routes[0].cache
    assert (cache.ttl, cache.scope, cache.max) == (5.0, "public", 2**20)
    assert (cache.stale_while_revalidate, cache.stale_if_error) == (7.0, 3600.0)
