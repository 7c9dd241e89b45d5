"""Ids are taken over when they are fit, made when they are not; tokens are nobody's to guess."""

from __future__ import annotations

import re

import pytest

from proxy.observe.request_ids import IdGenerator, parse_traceparent

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize("given", ["a", "A-Z_0.9", "x" * 128, "..", "0f8fad5b-d9cb-469f-a165-70867728950e"])
def test_a_fit_id_is_taken_over(given: str) -> None:
    ids = IdGenerator()
    assert ids.choose_request_id(given) == given
    assert ids.choose_request_id(None, given) == given
    assert ids.choose_request_id("not fit", given) == given
    assert ids.choose_request_id(given, "other") == given


@pytest.mark.parametrize("given", [None, "", "x" * 129, "a b", "a\n", "é", "a;b", "٣"])
def test_an_unfit_id_is_replaced_by_a_new_one(given: str | None) -> None:
    made = IdGenerator().choose_request_id(given)
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_ids_and_tokens_never_repeat_and_share_no_bits() -> None:
    ids = IdGenerator()
    made = [make for _ in range(2000) for make in (ids.choose_request_id(None), ids.new_token())]
    assert len(set(made)) == len(made)
    assert all(len(make) == 32 for make in made)


def test_random_bytes_are_fetched_in_batches() -> None:
    calls: list[int] = []

    def random(count: int) -> bytes:
        calls.append(count)
        return bytes(count)

    ids = IdGenerator(random)
    for _ in range(256):
        ids.new_token()
    assert len(calls) == 1
    ids.new_token()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (f"00-{TRACE}-{PARENT}-01", TRACE),
        (f"00-{TRACE}-{PARENT}-00", TRACE),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-next", TRACE),
        (None, None),
        ("", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f" 00-{TRACE}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}-01\n", None),
    ],
)
def test_a_trace_id_comes_only_from_a_valid_traceparent(header: str | None, found: str | None) -> None:
    assert parse_traceparent(header) == found
