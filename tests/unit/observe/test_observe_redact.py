"""Secrets do not reach the log, and all else does, byte for byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.observe.redact import MASK, Redactor
from proxy.policy.schema import REDACT


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
    assert redactor.is_secret(name)


@pytest.mark.parametrize("name", ["q", "keyword", "keyboard", "tokenizer", "passwordless", "host", "page", ""])
def test_a_name_that_only_begins_like_a_listed_one_is_not_secret(redactor: Redactor, name: str) -> None:
    assert not redactor.is_secret(name)


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
    assert redactor.redact_target(target) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/bot123:ABC/getMe", "/bot123:***/getMe"),
        ("/telegram/bot123%3aABC/sendMessage?x=1", "/telegram/bot123%3a***/sendMessage?x=1"),
        ("/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX", "/services/T00000000/***"),
        ("/api/webhooks/123456789/aB3_aB3-aB3_aB3-aB3", "/api/webhooks/123456789/***"),
        ("/x/sk-proj-0123456789abcdefgh", "/x/sk-***"),
        ("/x/sk_live_0123456789abcdefgh?token=1", "/x/sk_live_***?token=***"),
        ("/auth/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "/auth/eyJ***"),
        ("/password/reset/MQ/c5k1a2-9f3b7d8e6a5c4d3e2f1a", "/password/reset/MQ/***"),
        ("/v1/api-keys/0123456789abcdef", "/v1/api-keys/***"),
        ("/verify_email/550e8400-e29b-41d4-a716-446655440000", "/verify_email/***"),
        # ids, words and files, which a log is searched for
        ("/users/550e8400-e29b-41d4-a716-446655440000", "/users/550e8400-e29b-41d4-a716-446655440000"),
        ("/v1/responses/resp_68a1b2c3d4e5f6a7b8c9d0e1f2", "/v1/responses/resp_68a1b2c3d4e5f6a7b8c9d0e1f2"),
        ("/static/main.4f3a2b1c9d8e7f6a5b4c.js", "/static/main.4f3a2b1c9d8e7f6a5b4c.js"),
        ("/services/list/things-we-do-for-you", "/services/list/things-we-do-for-you"),
        ("/sk-bratislava/hotels-and-restaurants", "/sk-bratislava/hotels-and-restaurants"),
        ("/webhooks/stripe", "/webhooks/stripe"),
        ("/robots.txt", "/robots.txt"),
        ("/bottles/1234567890123456", "/bottles/1234567890123456"),
    ],
)
def test_a_path_keeps_its_ids_and_loses_its_secrets(redactor: Redactor, path: str, shown: str) -> None:
    assert redactor.redact_target(path) == shown


@given(
    before=st.text(alphabet="abx=%;25&", max_size=12),
    value=st.text(alphabet="SECRET;=", min_size=1, max_size=12),
    after=st.text(alphabet="abx=%;25&", max_size=12),
)
def test_no_neighbour_uncovers_a_secret(before: str, value: str, after: str) -> None:
    shown = Redactor(REDACT).redact_target(f"/p?{before}&token={value}&{after}")
    assert not set("SECRET") & set(shown)


def test_headers_keep_their_names_and_lose_their_secrets(redactor: Redactor) -> None:
    pairs = [("Authorization", "Bearer x"), ("Accept", "*/*"), ("Cookie", "a=b")]
    assert redactor.redact_headers(pairs) == [("Authorization", MASK), ("Accept", "*/*"), ("Cookie", MASK)]


def test_a_list_of_its_own_and_an_empty_one_are_taken_as_they_are() -> None:
    assert Redactor(["X-Session"]).is_secret("x_session")
    assert not Redactor(["X-Session"]).is_secret("token")
    assert Redactor([]).redact_target("/?token=1") == "/?token=1"
