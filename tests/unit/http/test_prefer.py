"""The Prefer field, by RFC 7240 and its examples."""

from __future__ import annotations

import pytest

from proxy.http.prefer import Preferences, parse_prefer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Preferences()),
        ("", Preferences()),
        ("respond-async", Preferences(True)),
        ("Respond-Async", Preferences(True)),
        ("respond-async, wait=10", Preferences(True, 10.0)),
        ("wait=10,respond-async", Preferences(True, 10.0)),
        ('respond-async; foo="a, b", wait="5"', Preferences(True, 5.0)),
        ("wait = 7", Preferences(False, 7.0)),
        ("wait=3, wait=9", Preferences(False, 3.0)),
        ("wait=0, respond-async", Preferences(True, 0.0)),
        ("wait=600", Preferences(False, 60.0)),
        ("wait=soon, respond-async", Preferences(True)),
        ("wait=-5", Preferences()),
        ("wait=99999999999999999999", Preferences()),
        ("wait=\u0663", Preferences()),
        ("respond-async=", Preferences(True)),
        ('return="respond-async"', Preferences()),
        ('foo; bar=", respond-async"', Preferences()),
        ("respond-asynchronous", Preferences()),
        ("x-respond-async", Preferences()),
        (", ,;,=", Preferences()),
        ("return=minimal, respond-async;q=1, lenient", Preferences(True)),
        ('"' * 2000, Preferences()),
    ],
)
def test_what_a_client_prefers(text, expected) -> None:
    assert parse_prefer(text) == expected
