"""Heads that came before: which are kept, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

from proxy.http.known_heads import MAX_HEAD_BYTES, MAX_KNOWN_HEADS, KnownHeads

MESSAGE = SimpleNamespace(method="GET", path="/", headers=None, raw_headers=())


def note(heads: KnownHeads, data: bytes, times: int = 1) -> None:
    for _ in range(times):
        heads.note(data, MESSAGE)


def test_a_head_is_kept_from_the_second_time_on() -> None:
    heads = KnownHeads()
    note(heads, b"a")
    assert heads.find(b"a") is None
    note(heads, b"a")
    assert heads.find(b"a") is not None
    assert heads.find(b"b") is None
    assert heads.find(b"") is None


def test_heads_that_never_come_again_take_no_room() -> None:
    heads = KnownHeads()
    for number in range(50_000):
        note(heads, b"%d" % number)
    assert len(heads) == 0


def test_there_is_a_bound_and_the_oldest_makes_room() -> None:
    heads = KnownHeads()
    for number in range(MAX_KNOWN_HEADS + 3):
        note(heads, b"%d" % number, 2)
    assert len(heads) == MAX_KNOWN_HEADS
    assert heads.find(b"2") is None
    assert heads.find(b"3") is not None


def test_a_long_head_is_not_kept() -> None:
    heads = KnownHeads()
    note(heads, b"x" * (MAX_HEAD_BYTES + 1), 3)
    assert len(heads) == 0
