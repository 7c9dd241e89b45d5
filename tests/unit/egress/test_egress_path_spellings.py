"""One plain path for all its spellings; what is plain already is not looked at twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.egress.dialects.path_normalization import normalize_path, path_below, path_suffixes


@pytest.mark.parametrize(
    ("spelled", "path"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/Chat/completions", "/v1/Chat/completions"),
        ("//v1///chat/completions//", "/v1/chat/completions"),
        ("/v1/%63hat/c%6Fmpletions", "/v1/chat/completions"),
        ("/v1/%252563hat", "/v1/chat"),
        ("/v1/a;b=c/d;e", "/v1/a/d"),
        ("/v1/./a/../b/.", "/v1/b"),
        ("/../../v1", "/v1"),
        ("/v1/%2e%2E/v2", "/v2"),
        ("/v1\\a%5Cb", "/v1/a/b"),
        ("/v1/a#/b", "/v1/a"),
        ("/v1/a%3Fb", "/v1/a"),
        ("/v1/a%20", "/v1/a"),
        ("/v1/%", "/v1/%"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_a_path_has_one_plain_form(spelled, path):
    assert normalize_path(spelled) == path


@given(st.text(st.sampled_from("/.%;#\\2fFeEaA "), max_size=40))
def test_a_plain_path_has_no_oddity_left_that_a_server_forgives(spelled):
    path = normalize_path("/" + spelled)
    assert "//" not in path
    assert "\\" not in path
    assert not {".", ".."} & set(path.split("/"))


def test_escapes_without_end_cost_no_time():
    assert normalize_path("/" + "%25" * 20_000)


def test_what_is_below_a_base_and_what_is_beside_it():
    assert path_below("/api/v1/x", "/api/V1/") == "/x"
    assert path_below("/x", "/") == "/x"
    assert path_below("/api/v10/x", "/api/v1") is None
    assert path_below("/v1/x", "/api/v1") is None
    assert path_suffixes("/a/b/c") == ["/a/b/c", "/b/c", "/c"]
