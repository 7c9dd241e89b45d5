"""Who is it, and where does it go: users, tiers, routes."""

import time

import jwt
import pytest

from proxy.ingress.identity import Identifier
from proxy.ingress.routing import RouteTable
from proxy.policy.loading import PolicySource, load_policy

KEY = "k" * 32
POLICY = f"""
identity:
  user:
    - path: /api/user/{{user}}/*
    - header: X-User-Id
    - jwt: {{key: {KEY}}}
    - cookie: session
    - ip
  tiers: [{{name: admin, users: "admin_*"}}, {{name: premium, users: "premium_*"}}, {{name: free}}]
routes:
  - {{name: make, match: {{path: /api/user/*/make, methods: [POST]}}, rate_limit: 1/h}}
  - {{name: read, match: {{path: /api/*, methods: [GET]}}}}
"""


class View:
    def __init__(self, path="/", method="GET", ip="198.51.100.7", **headers):
        self.path, self.method, self.client_ip = path, method, ip
        self.header = {name.replace("_", "-"): value for name, value in headers.items()}.get


def policy():
    return load_policy(PolicySource("t", None, POLICY), {})


def token(**claims):
    return f"Bearer {jwt.encode({'sub': 'eve', **claims}, KEY, algorithm='HS256')}"


@pytest.mark.parametrize(
    ("view", "user", "tier", "source"),
    [
        (View("/api/user/ada/make", x_user_id="bob"), "ada", "free", "path"),
        (View("/api/user/premium_%61da/x"), "premium_ada", "premium", "path"),
        (View(x_user_id="admin_1"), "admin_1", "admin", "header"),
        (View(authorization=token()), "eve", "free", "jwt"),
        (View(authorization=token(exp=time.time() - 60)), "ip:198.51.100.7", "free", "ip"),
        (View(authorization=token() + "x"), "ip:198.51.100.7", "free", "ip"),
        (View(authorization=f"Bearer {jwt.encode({'sub': 'eve'}, 'z' * 32)}"), "ip:198.51.100.7", "free", "ip"),
        (View(authorization="Bearer junk"), "ip:198.51.100.7", "free", "ip"),
        (
            View(authorization=f"Bearer {jwt.encode({'sub': 'eve'}, None, algorithm='none')}"),
            "ip:198.51.100.7",
            "free",
            "ip",
        ),
        (View(), "ip:198.51.100.7", "free", "ip"),
        (View(ip="2001:db8:1:2:3:4:5:6"), "ip:2001:db8:1:2::/64", "free", "ip"),
        (View(x_user_id="a" * 300), "ip:198.51.100.7", "free", "ip"),
    ],
)
def test_the_first_source_that_yields_a_value_names_the_user(view, user, tier, source):
    assert tuple(Identifier(policy().identity).identify(view)) == (user, tier, source)


def test_a_cookies_value_is_never_the_name_itself():
    found = Identifier(policy().identity).identify(View(cookie="a=b; session=very-secret; c=d"))
    assert found.source == "cookie"
    assert "very-secret" not in found.user
    again = Identifier(policy().identity).identify(View(cookie="session=very-secret"))
    assert again.user == found.user, "it is the same after a restart"


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/api/user/ada/make", "make"),
        ("post", "/api/user/ada/make", "make"),
        ("POST", "/api//user/ada/make", "make"),
        ("POST", "/api/user/ada/./make", "make"),
        ("POST", "/api/x/../user/ada/make", "make"),
        ("POST", "/%61pi/user/ada/make", "make"),
        ("GET", "/api/user/ada/make", "read"),
        ("HEAD", "/api/anything", "read"),
        ("POST", "/api/user/ada/b/make", "default"),
        ("GET", "/apis", "default"),
    ],
)
def test_the_first_route_that_matches_has_the_request_however_it_is_spelled(method, path, name):
    assert RouteTable(policy().routes).match(method, path).name == name
