"""Who sent a request, as far as the proxies in front of the gateway can be believed.

Three parts: addresses and the networks in which proxies stand, `TrustedPeers` (the policy's `listen.trusted_proxies`),
and the Forwarded header field (RFC 7239).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from types import MappingProxyType
from typing import NamedTuple

from proxy.ingress.dropped_headers import DROPPED_FROM_REQUESTS
from proxy.policy.schema import TrustedProxies
from proxy.policy.values import Network

Address = IPv4Address | IPv6Address

MAX_ADDRESS_LENGTH = 64  # "[" 45 characters of IPv6 "%zone]:65535" fits

# Where the proxies of a platform stand: RFC 1918, loopback, link-local, RFC 4193, and RFC 6598, which
# several platforms (Railway, Tailscale) use inside. Narrower than ipaddress' is_private, which has the
# ranges for documentation and benchmarks in it.
PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)

# https://www.cloudflare.com/ips-v4 and /ips-v6: the list of 8 April 2021, in November 2026 the last known.
CLOUDFLARE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "173.245.48.0/20",
        "103.21.244.0/22",
        "103.22.200.0/22",
        "103.31.4.0/22",
        "141.101.64.0/18",
        "108.162.192.0/18",
        "190.93.240.0/20",
        "188.114.96.0/20",
        "197.234.240.0/22",
        "198.41.128.0/17",
        "162.158.0.0/15",
        "104.16.0.0/13",
        "104.24.0.0/14",
        "172.64.0.0/13",
        "131.0.72.0/22",
        "2400:cb00::/32",
        "2606:4700::/32",
        "2803:f800::/32",
        "2405:b500::/32",
        "2405:8100::/32",
        "2a06:98c0::/29",
        "2c0f:f248::/32",
    )
)


def parse_address(text: str) -> Address | None:
    """The address in `text`, or None if there is none (`unknown`, `_hidden`, anything else).

    Takes a port (`1.2.3.4:80`, `[2001:db8::1]:80`), brackets, and a zone, which is dropped. An IPv4 address that is
    mapped into IPv6 becomes the IPv4 address that it is.
    """
    text = text.strip()
    if not text or len(text) > MAX_ADDRESS_LENGTH:
        return None
    if text[0] == "[":
        inner, bracket, port = text[1:].partition("]")
        if not bracket or not (port == "" or _is_port(port)):
            return None
        text = inner
        if ":" not in text:
            return None
    # One colon is IPv4 with a port; an IPv6 address has at least two.
    elif text.count(":") == 1:
        text, _, digits = text.partition(":")
        if not _is_port(":" + digits):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=4096)
def client_network(text: str) -> str:
    """What counts as one client: an IPv4 address, of IPv6 its /64; `unknown` if there is no address."""
    found = parse_address(text)
    # A subscriber has a /64 at least, and could use a new address for each request.
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found) if found is not None else "unknown"


def is_in_any(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()


HeaderGetter = Callable[[str], str | None]

MAX_CACHED_ADDRESSES = 4096  # about 1 MiB if it is full
FORWARDING_FIELDS = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded")
RENDER_FORWARDING_FIELDS = FORWARDING_FIELDS[:2]  # Render's edge writes these; the others pass through it as sent
UNIX_SOCKET_PEER = ""  # what the loop calls a peer on a Unix socket, which has no address


class Client(NamedTuple):
    """The client of a request.

    `proto` and `host` are what a trusted peer says of the client's own request, else None. `dropped_fields` are names
    of request fields that do not reach the app, in lower case. `forwarded_fields` is what a trusted peer says, by the
    names of fields in lower case.
    """

    ip: str  # empty for a peer on a Unix socket that says nothing about its client
    proto: str | None
    host: str | None
    trusted: bool  # the direct peer's X-Forwarded-* are believed
    dropped_fields: frozenset[bytes] = DROPPED_FROM_REQUESTS["nobody"]
    forwarded_fields: Mapping[str, str] = MappingProxyType({})


class _KnownAddress(NamedTuple):
    """An address that was looked at, with the networks that it is in."""

    address: Address
    text: str
    private: bool
    cloudflare: bool
    listed: bool  # in the networks that the policy names


class TrustedPeers:
    """`listen.trusted_proxies`: whose word about the client counts.

    - `none`: the peer is the client.
    - `private`: a private peer is believed. The client is the first address from the right that is not private, or the
      leftmost if all are. Whoever is on the private network itself can pose as anybody: name CIDRs if that matters.
    - `render`: a private peer, and behind it one edge of Cloudflare. Only one: a Cloudflare Worker calls from
      Cloudflare's addresses too, with an X-Forwarded-For of its author's choice. If a Cloudflare zone of one's own
      stands in front of Render's, use `hops`.
    - `hops: N`: the client is the N-th address from the right. If the chain is shorter, somebody came past a proxy, and
      the peer is the client.
    - CIDRs: as `private`, with these networks in place of the private ones.
    - `auto`: `render` on Render, else `private`.

    An entry that is no address ends the walk: what stands left of it could be anything, so the last address seen is the
    client. If there is no X-Forwarded-For, Forwarded (RFC 7239) is read in the same way. A peer on a Unix socket counts
    as private.
    """

    def __init__(self, policy: TrustedProxies, *, on_render: bool) -> None:
        kind = policy.kind
        if kind == "auto":
            kind = "render" if on_render else "private"
        self._kind = kind
        self._is_auto = policy.kind == "auto"
        self._field_names = RENDER_FORWARDING_FIELDS if kind == "render" else FORWARDING_FIELDS
        self._fields = tuple((name.lower(), name.encode()) for name in self._field_names)
        self._dropped_fields = DROPPED_FROM_REQUESTS[
            "render" if kind == "render" else "private" if kind == "private" else "named"
        ]
        self._hops = policy.hops
        self._networks: tuple[Network, ...] = policy.networks
        # ipaddress takes about 5 µs an address: those seen lately are kept, up to a bound.
        self._examine_cached = lru_cache(maxsize=MAX_CACHED_ADDRESSES)(self._examine)

    @property
    def description(self) -> str:
        """A sentence for operators: whom this believes."""
        fields = " and ".join(self._field_names) if self._kind == "render" else "X-Forwarded-* and the like"
        key = f"listen.trusted_proxies: auto, which is {self._kind} here" if self._is_auto else "listen.trusted_proxies"
        private = f"peers on a private network ({', '.join(str(one) for one in PRIVATE_NETWORKS)})"
        whom = {
            "none": "nobody",
            "render": f"{private}, behind one edge of Cloudflare",
            "private": f"all {private}; whoever is on one can pose as anybody: name your proxy's own if others are",
            "hops": f"everybody, {self._hops} hops deep",
            "networks": ", ".join(str(one) for one in self._networks),
        }[self._kind]
        return f"{fields} are believed of {whom} ({key})."

    def resolve_client(self, peer: str, header: HeaderGetter) -> Client:
        """The client behind `peer`.

        `header` gives a header's value by its name in lower case, with all its lines joined by commas. HAProxy adds a
        line of its own, so the first line alone would be the client's to write.
        """
        seen = self._lookup(peer)
        # What a stranger says about itself is not even read.
        if not self._trusts_address(seen):
            return Client(seen.text if seen is not None else peer, None, None, False)
        said = {}
        for name, _ in self._fields:
            value = header(name)
            if value is not None:
                said[name] = value
        if not said:
            return Client(seen.text if seen is not None else UNIX_SOCKET_PEER, None, None, True, self._dropped_fields)
        # The nearest entry was written by the peer, the one before it by whoever the peer got it from, and so on.
        found = self._walk_chain(_address_chain(said), seen)
        text = found.text if found is not None else UNIX_SOCKET_PEER
        return Client(text, _forwarded_proto(said), said.get("x-forwarded-host"), True, self._dropped_fields, said)

    def forwarding_headers(self, client: Client, peer: str) -> tuple[tuple[bytes, bytes], ...]:
        """The X-Forwarded-* and Forwarded fields for the app, once the client's own are dropped.

        From a trusted peer they pass as they came. What it did not say is not added, but for its own address if it
        named nobody. The peer is not appended to a chain: the app's own peer, now the gateway, stands in the peer's
        place, so that an app that counts hops from the right counts as before. For any other peer they state its
        address, and that it came by http. Host is not repeated in X-Forwarded-Host, since it reaches the app as it is.
        """
        seen = self._lookup(peer)
        # Stated anew, since the client's own words about itself were dropped.
        if not client.trusted:
            fields = [(b"X-Forwarded-For", seen.text.encode())] if seen is not None else []
            return (*fields, (b"X-Forwarded-Proto", b"http"))
        said = client.forwarded_fields
        fields = [(shown, _encode_value(said[name])) for name, shown in self._fields if name in said] if said else []
        if seen is not None and "x-forwarded-for" not in said and "forwarded" not in said:
            fields.append((b"X-Forwarded-For", seen.text.encode()))
        return tuple(fields)

    def trusts(self, peer: str) -> bool:
        """Whether what this peer says about its client counts."""
        return self._trusts_address(self._lookup(peer))

    def _trusts_address(self, peer: _KnownAddress | None) -> bool:
        if self._kind == "none":
            return False
        if self._kind == "hops":
            return self._hops > 0
        if self._kind == "networks":
            return peer is not None and peer.listed
        return peer is None or peer.private

    def _walk_chain(self, chain: Iterable[str], peer: _KnownAddress | None) -> _KnownAddress | None:
        """The client: the first address of the chain, the nearest first, whose word about the one before it does not
        count.
        """
        last = peer
        edges = 1 if self._kind == "render" else 0
        hops = self._hops
        for entry in chain:
            seen = self._lookup(entry)
            # Nothing left of what is no address can be believed.
            if seen is None:
                break
            if self._kind == "hops":
                hops -= 1
                if hops == 0:
                    return seen
                continue
            last = seen
            if self._kind == "networks":
                if not seen.listed:
                    break
            elif not seen.private:
                # Behind Render's proxy stands one edge of Cloudflare; whatever is before it is the client.
                if not (seen.cloudflare and edges):
                    break
                edges -= 1
        return last

    def _lookup(self, text: str) -> _KnownAddress | None:
        return self._examine_cached(text) if len(text) <= MAX_ADDRESS_LENGTH else None

    def _examine(self, text: str) -> _KnownAddress | None:
        found = parse_address(text)
        if found is None:
            return None
        return _KnownAddress(
            found,
            str(found),
            is_in_any(found, PRIVATE_NETWORKS),
            is_in_any(found, CLOUDFLARE_NETWORKS),
            is_in_any(found, self._networks),
        )


def _address_chain(said: Mapping[str, str]) -> Iterable[str]:
    """The addresses that are said to be in front of the peer, the nearest first."""
    value = said.get("x-forwarded-for")
    if value is not None:
        return reversed(value.split(","))
    value = said.get("forwarded")
    if value is not None:
        return [hop.get("for", "") for hop in reversed(parse_forwarded(value))]
    return ()


def _forwarded_proto(said: Mapping[str, str]) -> str | None:
    """The protocol of the client's own request, as the first proxy has stated it."""
    value = said.get("x-forwarded-proto")
    if value is None:
        chain = said.get("forwarded")
        hops = parse_forwarded(chain) if chain is not None else []
        value = hops[0].get("proto") if hops else None
    if value is None:
        return None
    # The leftmost was written by the proxy nearest to the client; later ones append theirs.
    first = value.partition(",")[0].strip().lower()
    return first if first in ("http", "https", "ws", "wss") else None


def _encode_value(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


_PAIR = re.compile(
    r"""\s*(?P<name>[!\#$%&'*+.^_`|~0-9A-Za-z-]+)=
        (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s;,"]*))
        \s*(?P<end>[;,]|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


def parse_forwarded(value: str) -> list[dict[str, str]]:
    """Each hop's pairs of a Forwarded field (RFC 7239), names in lower case, the nearest hop last. Empty if any is
    malformed.
    """
    hops: list[dict[str, str]] = [{}]
    for name, content, ends in _forwarded_pairs(value):
        if name is None:
            return []
        hops[-1].setdefault(name, content)
        if ends:
            hops.append({})
    return hops


def _forwarded_pairs(value: str) -> Iterator[tuple[str | None, str, bool]]:
    """Name, value, and whether the pair ends its hop; a name of None for what cannot be parsed."""
    position = 0
    while position < len(value):
        found = _PAIR.match(value, position)
        if found is None:
            yield None, "", False
            return
        quoted = found["quoted"]
        content = found["token"] if quoted is None else _ESCAPE.sub(r"\1", quoted)
        yield found["name"].lower(), content, found["end"] == ","
        position = found.end()
