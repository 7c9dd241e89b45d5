"""Who sent it: as far as the proxies before us can be believed, and not a step further."""

import pytest

from proxy.ingress.client_address import TrustedPeers
from proxy.policy.loading import PolicySource, load_policy

CF = "172.70.1.1"  # one of Cloudflare's


def peers(kind, on_render=False):
    policy = load_policy(PolicySource("t", None, f"listen: {{trusted_proxies: {kind}}}"), {})
    return TrustedPeers(policy.listen.trusted_proxies, on_render=on_render)


def fields(**values):
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return named.get


@pytest.mark.parametrize(
    ("kind", "peer", "chain", "expected"),
    [
        ("none", "10.0.0.1", "198.51.100.7", "10.0.0.1"),
        ("private", "10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("private", "10.0.0.1", "6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("private", "10.0.0.1", "198.51.100.7, 10.1.1.1", "198.51.100.7"),
        ("private", "203.0.113.9", "198.51.100.7", "203.0.113.9"),
        ("private", "127.0.0.1", "junk, 198.51.100.7", "198.51.100.7"),
        ("private", "127.0.0.1", "198.51.100.7, junk", "127.0.0.1"),
        ("private", "127.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
        ("private", "127.0.0.1", "198.51.100.7:1234", "198.51.100.7"),
        ("private", "::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
        ("render", "10.0.0.1", f"198.51.100.7, {CF}", "198.51.100.7"),
        ("render", "10.0.0.1", f"6.6.6.6, 198.51.100.7, {CF}", "198.51.100.7"),
        ("render", "203.0.113.9", f"198.51.100.7, {CF}", "203.0.113.9"),
        ("1", "203.0.113.9", "6.6.6.6, 198.51.100.7", "198.51.100.7"),
        ("2", "203.0.113.9", "6.6.6.6, 198.51.100.7, 10.0.0.1", "198.51.100.7"),
        ("2", "203.0.113.9", "198.51.100.7", "203.0.113.9"),
        ("[203.0.113.0/24]", "203.0.113.9", "6.6.6.6, 198.51.100.7, 203.0.113.8", "198.51.100.7"),
        ("[203.0.113.0/24]", "10.0.0.1", "198.51.100.7", "10.0.0.1"),
    ],
)
def test_the_client_is_the_first_that_nobody_trusted_vouches_for(kind, peer, chain, expected):
    assert peers(kind).resolve_client(peer, fields(x_forwarded_for=chain)).ip == expected


def test_auto_is_render_there_and_private_elsewhere():
    chain = fields(x_forwarded_for=f"198.51.100.7, {CF}")
    assert peers("auto", on_render=True).resolve_client("10.0.0.1", chain).ip == "198.51.100.7"
    assert peers("auto").resolve_client("10.0.0.1", chain).ip == CF


def test_forwarded_is_read_where_there_is_no_x_forwarded_for():
    header = fields(forwarded='for=6.6.6.6, for="[2001:db8::7]:80";proto=https')
    assert peers("private").resolve_client("10.0.0.1", header).ip == "2001:db8::7"


def test_an_untrusted_peers_word_is_dropped_and_a_trusted_ones_passes_as_it_came():
    header = fields(x_forwarded_for="198.51.100.7", x_forwarded_proto="https", x_forwarded_host="a.example")
    known = peers("private")
    passed = dict(known.forwarding_headers(known.resolve_client("10.0.0.1", header), "10.0.0.1"))
    assert passed == {
        b"X-Forwarded-For": b"198.51.100.7",
        b"X-Forwarded-Proto": b"https",
        b"X-Forwarded-Host": b"a.example",
    }
    dropped = dict(known.forwarding_headers(known.resolve_client("203.0.113.9", header), "203.0.113.9"))
    assert dropped == {b"X-Forwarded-For": b"203.0.113.9", b"X-Forwarded-Proto": b"http"}


def test_a_trusted_peer_that_names_nobody_is_named_itself():
    known = peers("private")
    client = known.resolve_client("10.0.0.1", fields())
    assert dict(known.forwarding_headers(client, "10.0.0.1")) == {b"X-Forwarded-For": b"10.0.0.1"}
