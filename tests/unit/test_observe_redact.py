"""Secrets do not reach the log, and all else does, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.redact import MASK, Redactor
from proxy.policy.model import REDACT


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    return Redactor(REDACT)


@pytest.mark.parametrize(
    "name",
    [
        "token", "TOKEN", "access_token", "accessToken", "refresh-token", "tokens", "token2", "X-Auth-Token",
        "key", "api_key", "apikey", "apiKey", "APIKEY", "x-api-key", "X-Goog-Api-Key",
        "password", "user[password]", "newPassword", "password_hash", "passwordConfirm",
        "authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "set_cookie",
        "%74oken", "access%5Ftoken", "toKEN", "api+key",
    ],
)  # fmt: skip
def test_a_name_with_a_listed_word_at_a_words_end_is_secret(redactor: Redactor, name: str) -> None:
    assert redactor.secret(name)


@pytest.mark.parametrize("name", ["q", "keyword", "keyboard", "tokenizer", "passwordless", "host", "page", ""])
def test_a_name_that_only_begins_like_a_listed_one_is_not_secret(redactor: Redactor, name: str) -> None:
    assert not redactor.secret(name)


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/", "/"),
        ("/a%2Fb//c?", "/a%2Fb//c?"),
        ("/a?x=1&y=%20+z&&=", "/a?x=1&y=%20+z&&="),
        ("/a?token=abc", "/a?token=***"),
        ("/a?x=1&api_key=abc&y=2", "/a?x=1&api_key=***&y=2"),
        ("/a?%74oken=abc&b", "/a?%74oken=***&b"),
        ("/a?token=a=b;c&y=2", "/a?token=***&y=2"),
        ("/a?x=1;token=abc;def&y=2", "/a?x=1;token=***&y=2"),
        ("/a?token", "/a?token"),
        ("/a?token=", "/a?token=***"),
        ("/token=abc?x=1", "/token=abc?x=1"),
        ("http://user:pw@host/a?key=1", "http://host/a?key=***"),
        ("//user:pw@host/a", "//host/a"),
        ("/a@b?c=d@e", "/a@b?c=d@e"),
        ("/a?u=\udcff\udce9", "/a?u=%FF%E9"),
        ("/é?x=ü", "/é?x=ü"),
    ],
)
def test_a_target_keeps_every_byte_but_its_secrets(redactor: Redactor, target: str, shown: str) -> None:
    assert redactor.target(target) == shown


@given(
    before=st.text(alphabet="abx=%;25&", max_size=12),
    value=st.text(alphabet="SECRET;=", min_size=1, max_size=12),
    after=st.text(alphabet="abx=%;25&", max_size=12),
)
def test_no_neighbour_uncovers_a_secret(before: str, value: str, after: str) -> None:
    shown = Redactor(REDACT).target(f"/p?{before}&token={value}&{after}")
    assert not set("SECRET") & set(shown)


def test_headers_keep_their_names_and_lose_their_secrets(redactor: Redactor) -> None:
    pairs = [("Authorization", "Bearer x"), ("Accept", "*/*"), ("Cookie", "a=b")]
    assert redactor.headers(pairs) == [("Authorization", MASK), ("Accept", "*/*"), ("Cookie", MASK)]


def test_a_list_of_its_own_and_an_empty_one_are_taken_as_they_are() -> None:
    assert Redactor(["X-Session"]).secret("x_session")
    assert not Redactor(["X-Session"]).secret("token")
    assert Redactor([]).target("/?token=1") == "/?token=1"
