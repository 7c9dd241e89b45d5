"""What a client might try: paths spelled oddly, tokens shown again, chains of proxies made up."""

import re
import time

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import OutriggerError
from proxy.ingress import jwt as tokens
from proxy.ingress.client_address import TrustedPeers
from proxy.ingress.identity import Identifier
from proxy.ingress.routing import RouteTable, path_readings
from proxy.policy.schema import (
    CookieSource,
    HeaderSource,
    Identity,
    IpSource,
    JwtSource,
    Match,
    PathSource,
    Route,
    TrustedProxies,
)
from proxy.policy.values import Rate

KEY = "k" * 32
LIMITED = {"*": (Rate(1, 60.0),)}
IP = "ip:198.51.100.7"


class View:
    def __init__(self, path="/", **headers):
        self.path, self.method, self.client_ip = path, "GET", "198.51.100.7"
        self.header = {name.replace("_", "-"): value for name, value in headers.items()}.get


# ── paths ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path",
    [
        "/api/user/x/make",
        "/API/User/x/Make",  # Express and Koa ignore case
        "/api/user/x/make/",
        "//api///user/x/make//",
        "/api/user/x%2Fy/make",  # one segment to a router that splits first
        "/api/user/../make",  # one segment to a server that resolves nothing
        "/open/../api/user/x/make",
        "/open/..%2fapi/user/x/make",
        "/open/%2e%2e/api/user/x/make",
        "\\api\\user\\x\\make",  # the URL Standard's parser
        "/api/user/x/make#fragment",
        "/api/user/%F0%9F%98%80/make",
        "/api/user/x%0A/make",
    ],
)
def test_no_spelling_of_a_limited_path_leads_around_its_limit(path):
    routes = (
        Route("open", Match("/open/*")),
        Route("make", Match("/api/user/*/make"), rate_limit=LIMITED),
        Route("rest", Match("/*")),
    )
    assert RouteTable(routes).match("GET", path).name == "make"


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/*", "*", True),
        ("/*", "", True),
        ("/", "/", True),
        ("/", "/a", False),
        ("/a/*", "/a", True),
        ("/a/*", "/ab", False),
        ("/a/*/c", "/a//c", False),
        ("/a/*/c", "/a/b/b/c", False),
        ("/a*", "/ab/c", True),
        ("/v*/x*y/z", "/v1/x--y/z", True),
        ("/v*/x*y/z", "/v1/x--/z", False),
        ("/a.b", "/aXb", False),
        ("/{id}/x", "/7/x", True),
        ("/a b", "/a%20b", True),
        ("/a", "/%2561", False),  # decoded once
        ("/a/.well-known/x", "/a/.well-known/x", True),
    ],
)
def test_a_pattern_fits_what_its_docstring_says(pattern, path, fits):
    route = RouteTable((Route("it", Match(pattern)),)).match("GET", path)
    assert (route.name == "it") is fits


@pytest.mark.parametrize(
    ("template", "path", "user"),
    [
        ("/u/{user}-report", "/u/a-b-report", "a-b"),
        ("/u/{user}-*/x", "/u/a-b-c/x", "a-b"),
        ("/u/{user}*", "/u/ann", "ann"),
        ("/u/*-{user}", "/u/x-a-b", "a-b"),
        ("/u/{user}.json", "/u/a.b.json", "a.b"),
    ],
)
def test_a_user_is_named_by_the_longest_run_that_fits(template, path, user):
    identifier = Identifier(Identity((PathSource(template), IpSource())))
    assert identifier.identify(View(path)).user == user


PIECES = ("{a}", "{b}", "*", "**", "-", ".", "a", "/", "/x", "{year}-{month}-{day}")


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=12),
    st.sampled_from("-.a*/x"),
    st.sampled_from(["", "/", "!"]),
)
@settings(max_examples=150, deadline=None)
def test_matching_takes_time_linear_in_the_path_whatever_the_pattern(pieces, letter, end):
    """A path of 30,000 bytes takes a millisecond or so; with a power of its length it would take minutes."""
    table = RouteTable((Route("it", Match("/" + "".join(pieces))),))
    began = time.process_time()
    table.match("GET", "/" + letter * 30_000 + end)
    table.match("GET", "/" + f"{letter}-a" * 10_000 + end)
    assert time.process_time() - began < 2


@given(
    st.text("ab-", min_size=1, max_size=9),
    st.lists(st.sampled_from(["{a}", "*", "-", "a", "b"]), min_size=1, max_size=6),
)
@settings(max_examples=400, deadline=None)
def test_a_segment_fits_as_it_would_with_every_way_tried(text, pieces):
    """Gaps that are never tried twice lose no match: a plain expression with backtracking says the same."""
    plain = "".join({"{a}": "[^/]+", "*": "[^/]*"}.get(piece, re.escape(piece)) for piece in pieces)
    plain = "[^/]+" if pieces == ["*"] else plain
    route = RouteTable((Route("it", Match("/" + "".join(pieces) + "/z")),)).match("GET", f"/{text}/z")
    assert (route.name == "it") is (re.fullmatch(plain, text) is not None)


def test_a_path_has_few_readings_however_it_is_written():
    assert path_readings("/plain/path") == ("/plain/path",)
    assert len(path_readings("/a%2f..%2f\\..//b/./c#d%ff%2f..%0a")) <= 60


# ── users ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["", " ", "ip:1.2.3.4", "cookie:0123456789abcdef", "a\x00b", "a\u202eb", "\udc80"])
def test_a_value_that_is_no_name_or_poses_as_another_kind_of_user_names_nobody(name):
    identifier = Identifier(Identity((HeaderSource("X-User-Id"), IpSource())))
    assert tuple(identifier.identify(View(x_user_id=name))) == (IP, "default", "ip")


def test_cookies_are_found_by_their_whole_name_and_told_apart_by_it():
    identifier = Identifier(Identity((CookieSource("sid"), IpSource())))
    assert identifier.identify(View(cookie="xsid=1; sid2=2")).user == IP
    found = identifier.identify(View(cookie='xsid=1;sid="v"')).user
    assert found.startswith("cookie:")
    assert len(found) == len("cookie:") + 16
    other = Identifier(Identity((CookieSource("xsid"), IpSource())))
    assert other.identify(View(cookie="xsid=v")).user != found


def test_the_path_names_its_user_in_any_spelling_of_the_path():
    identifier = Identifier(Identity((PathSource("/api/user/{user}/*"), IpSource())))
    for path in ("/api/user/Ada", "/API//user/%41da/x", "/x/../api/user/Ada/"):
        assert identifier.identify(View(path)).user == "Ada"


def test_a_token_is_verified_once_and_forgotten_when_it_expires(monkeypatch):
    now = 1_000_000_000.0
    decoded = []
    monkeypatch.setattr(jwt, "decode", lambda token, *_, **__: decoded.append(token) or {"sub": 42, "exp": now + 10})
    users = tokens.TokenVerifier(JwtSource(KEY), lambda: now)
    view = View(authorization="bearer a.b.c")
    assert [users(view) for _ in range(3)] == ["42"] * 3
    assert len(decoded) == 1
    now += 10
    assert users(view) is None


def test_tokens_remembered_are_bounded():
    users = tokens.TokenVerifier(JwtSource(KEY, header="X-Token", claim="uid"), lambda: 0.0)
    for number in range(tokens.MAX_REMEMBERED_TOKENS + 50):
        assert users(View(x_token=jwt.encode({"uid": f"u{number}"}, KEY))) == f"u{number}"
    assert len(users._verified) == tokens.MAX_REMEMBERED_TOKENS


@pytest.mark.parametrize("value", ["Basic dTpw", "Bearer", "", "Bearer é", "Bearer " + "[" * 5000, "a.b.c"])
def test_what_is_no_bearer_token_names_nobody(value):
    assert tokens.TokenVerifier(JwtSource(KEY), lambda: 0.0)(View(authorization=value)) is None


@pytest.mark.parametrize("key", ["", "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"])
def test_a_key_that_proves_nothing_is_refused_at_the_start(key):
    with pytest.raises(OutriggerError, match=r"identity\.user: jwt"):
        Identifier(Identity((JwtSource(key), IpSource())))


# ── clients ──────────────────────────────────────────────────────────────────────────────────

WORKER, EDGE = "2a06:98c0:3600::103", "172.70.1.1"


@pytest.mark.parametrize(
    ("kind", "chain", "client"),
    [
        ("render", f"6.6.6.6, {WORKER}, {EDGE}", WORKER),  # a Worker's author writes what stands left of it
        ("render", f"198.51.100.7, {EDGE}, 10.9.9.9", "198.51.100.7"),
        ("render", f"198.51.100.7, unknown, {EDGE}", EDGE),
        ("private", "192.168.1.5, 10.0.0.2", "192.168.1.5"),
        ("private", "6.6.6.6, 198.51.100.7,", "10.0.0.1"),
        ("private", "6.6.6.6, " + "1" * 100, "10.0.0.1"),
        ("private", "6.6.6.6, 198.51.100.7:99999x", "10.0.0.1"),
        ("private", "::ffff:198.51.100.7", "198.51.100.7"),
        ("private", "fe80::1%eth0", "fe80::1"),
        ("private", "010.0.0.1", "10.0.0.1"),
        ("none", "198.51.100.7", "10.0.0.1"),
    ],
)
def test_what_stands_left_of_the_last_word_to_be_trusted_is_not_read(kind, chain, client):
    peers = TrustedPeers(TrustedProxies(kind), on_render=False)
    assert peers.resolve_client("10.0.0.1", {"x-forwarded-for": chain}.get).ip == client


@pytest.mark.parametrize(
    "value", ['for="[2001:db8::1', "for=_hidden", "for=unknown", "junk", 'for=1.2.3.4;for="x', ";;;", 'for="a\\']
)
def test_a_forwarded_field_that_names_no_address_leaves_the_peer(value):
    peers = TrustedPeers(TrustedProxies("private"), on_render=False)
    assert peers.resolve_client("10.0.0.1", {"forwarded": value}.get).ip == "10.0.0.1"


def test_a_unix_sockets_peer_is_on_this_machine():
    peers = TrustedPeers(TrustedProxies("private"), on_render=False)
    header = {"x-forwarded-for": "198.51.100.7", "forwarded": "for=198.51.100.7"}.get
    client = peers.resolve_client("", header)
    assert (client.ip, client.trusted) == ("198.51.100.7", True)
    assert dict(peers.forwarding_headers(client, ""))[b"X-Forwarded-For"] == b"198.51.100.7"


def test_a_trusted_peer_that_says_nothing_of_the_protocol_is_not_spoken_for():
    peers = TrustedPeers(TrustedProxies("private"), on_render=False)
    header = {"forwarded": "for=198.51.100.7;proto=HTTPS"}.get
    client = peers.resolve_client("fd00::1", header)
    assert client.proto == "https"
    assert peers.forwarding_headers(client, "fd00::1") == ((b"Forwarded", b"for=198.51.100.7;proto=HTTPS"),)
