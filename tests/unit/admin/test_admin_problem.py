"""A refusal as clients and their pages read it."""

from __future__ import annotations

import json

import pytest

from proxy.errors import Refusal
from proxy.http.problem import cors_headers, render_problem
from proxy.http.retry_after import round_retry_after


def test_a_problem_has_the_members_of_the_contract() -> None:
    refusal = Refusal("rate-limited", 429, "Too many requests", 'Wait "a bit" – please.', retry_after=12.01)
    assert json.loads(render_problem(refusal, "abc")) == {
        "type": "urn:outrigger:rate-limited",
        "title": "Too many requests",
        "status": 429,
        "detail": 'Wait "a bit" – please.',
        "request_id": "abc",
        "retry_after": 13,
    }


def test_retry_after_is_there_only_where_there_is_one() -> None:
    body = render_problem(Refusal("blocked", 403, "Blocked", "An operator blocked this user."), "abc")
    assert "retry_after" not in json.loads(body)


@pytest.mark.parametrize(("seconds", "whole"), [(0, 1), (0.001, 1), (1, 1), (1.5, 2), (-3, 1)])
def test_seconds_are_rounded_up(seconds: float, whole: int) -> None:
    assert round_retry_after(seconds) == whole


def test_a_page_may_read_the_refusal_and_its_headers() -> None:
    headers = dict(cors_headers("https://app.example"))
    assert headers[b"Access-Control-Allow-Origin"] == b"https://app.example"
    assert headers[b"Access-Control-Allow-Credentials"] == b"true"
    assert headers[b"Vary"] == b"Origin"
    exposed = headers[b"Access-Control-Expose-Headers"].split(b", ")
    assert {b"Retry-After", b"RateLimit", b"RateLimit-Policy", b"X-Request-Id"} <= set(exposed)
    assert b"X-RateLimit-Remaining" in exposed


@pytest.mark.parametrize("origin", [None, "", "https://x\r\nSet-Cookie: a=b", "https://é.example", "x\x00"])
def test_no_origin_or_none_worth_the_name_gets_no_headers(origin: str | None) -> None:
    assert cors_headers(origin) == ()


def test_a_page_without_an_origin_of_its_own_may_read_it_too() -> None:
    assert dict(cors_headers("null"))[b"Access-Control-Allow-Origin"] == b"null"
