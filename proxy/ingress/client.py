"""Who sent a request, as far as the proxies before us can be believed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from proxy.ingress import address, forwarded
from proxy.ingress.address import CLOUDFLARE, PRIVATE, Address
from proxy.ingress.dropped_fields import DROPPED
from proxy.policy.model import Network, TrustedProxies

Fields = Callable[[str], str | None]

REMEMBERED = 4096  # addresses parsed lately; about 1 MiB when full
STATED = ("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded")
RENDER_STATES = STATED[:2]  # what Render's edge writes itself; the others pass through it as its client sent them
LOCAL = ""  # the peer's name where it has no address: a Unix socket


class Client(NamedTuple):
    """`proto` and `host` are what a trusted peer said of the client's own request, else None."""

    ip: str  # empty for a Unix socket's peer without a word about its client
    proto: str | None
    host: str | None
    trusted: bool  # whether the direct peer's X-Forwarded-* are believed
    dropped: frozenset[bytes] = DROPPED["nobody"]  # fields of the request that do not reach the app, in lower case
    said: Mapping[str, str] = MappingProxyType({})  # what a trusted peer says, by fields' names in lower case


class _Seen(NamedTuple):
    address: Address
    text: str
    private: bool
    cloudflare: bool
    listed: bool  # in the networks that the policy names


class TrustedPeers:
    """`listen.trusted_proxies`.

    - `none`: the peer is the client.
    - `private`: a private peer is believed. The client is the first address from the right that is not
      private, or the leftmost where all are. Whoever is on the private network itself can pose as anybody:
      name CIDRs where that matters.
    - `render`: a private peer, and behind it one edge of Cloudflare. One only: a Cloudflare Worker calls
      from Cloudflare's addresses too, with an X-Forwarded-For of its author's choice. Where a Cloudflare
      zone of one's own stands before Render's, use `hops`.
    - `hops: N`: the client is the N-th address from the right; where the chain is shorter, somebody came
      past a proxy, and the peer is the client.
    - CIDRs: as `private`, with these networks in place of the private ones.
    - `auto`: `render` on Render, else `private`.

    An entry that is no address ends the walk: what stands left of it could be anything, so the last address
    seen is the client. Where there is no X-Forwarded-For, Forwarded (RFC 7239) is read the same way. A peer
    on a Unix socket counts as private.
    """

    def __init__(self, policy: TrustedProxies, *, on_render: bool) -> None:
        kind = policy.kind
        if kind == "auto":
            kind = "render" if on_render else "private"
        self._kind = kind
        self._automatic = policy.kind == "auto"
        self._stated = RENDER_STATES if kind == "render" else STATED
        self._asked = tuple((name.lower(), name.encode()) for name in self._stated)
        self._dropped = DROPPED["render" if kind == "render" else "private" if kind == "private" else "named"]
        self._hops = policy.hops
        self._networks: tuple[Network, ...] = policy.networks
        # ipaddress takes about 5 µs an address: those seen lately are kept, up to a bound.
        self._look = lru_cache(maxsize=REMEMBERED)(self._examine)

    @property
    def sentence(self) -> str:
        """Whom this believes, for whoever runs it."""
        fields = " and ".join(self._stated) if self._kind == "render" else "X-Forwarded-* and the like"
        key = (
            f"listen.trusted_proxies: auto, which is {self._kind} here" if self._automatic else "listen.trusted_proxies"
        )
        private = f"peers on a private network ({', '.join(str(one) for one in PRIVATE)})"
        whom = {
            "none": "nobody",
            "render": f"{private}, behind one edge of Cloudflare",
            "private": f"all {private}; whoever is on one can pose as anybody: name your proxy's own if others are",
            "hops": f"everybody, {self._hops} hops deep",
            "networks": ", ".join(str(one) for one in self._networks),
        }[self._kind]
        return f"{fields} are believed of {whom} ({key})."

    def client(self, peer: str, header: Fields) -> Client:
        """The client behind `peer`.

        `header` gives a header's value by its lower-case name: where it came in several lines, all of them
        joined with commas. (HAProxy adds a line of its own: the first alone would be the client's to write.)
        """
        seen = self._seen(peer)
        if not self._believes(seen):
            return Client(seen.text if seen is not None else peer, None, None, False)
        said = {}
        for name, _ in self._asked:
            value = header(name)
            if value is not None:
                said[name] = value
        if not said:
            return Client(seen.text if seen is not None else LOCAL, None, None, True, self._dropped)
        found = self._walk(_chain(said), seen)
        text = found.text if found is not None else LOCAL
        return Client(text, _proto(said), said.get("x-forwarded-host"), True, self._dropped, said)

    def forwarding(self, client: Client, peer: str) -> tuple[tuple[bytes, bytes], ...]:
        """The X-Forwarded-* and Forwarded fields for the app, once the client's own are dropped.

        From a trusted peer they pass as they came; what it did not say is not said, but for its own address
        where it named nobody. The peer is not added to a chain: the app's own peer, now the gateway, stands
        where it stood, so that an app that counts hops from the right counts on as before. For any other
        peer: its address, and that it came by http. Host is not repeated in X-Forwarded-Host, it reaches
        the app as it is.
        """
        seen = self._seen(peer)
        if not client.trusted:
            fields = [(b"X-Forwarded-For", seen.text.encode())] if seen is not None else []
            return (*fields, (b"X-Forwarded-Proto", b"http"))
        said = client.said
        fields = [(shown, _bytes(said[name])) for name, shown in self._asked if name in said] if said else []
        if seen is not None and "x-forwarded-for" not in said and "forwarded" not in said:
            fields.append((b"X-Forwarded-For", seen.text.encode()))
        return tuple(fields)

    def believes(self, peer: str) -> bool:
        """Whether what this peer says of its client counts."""
        return self._believes(self._seen(peer))

    def _believes(self, peer: _Seen | None) -> bool:
        if self._kind == "none":
            return False
        if self._kind == "hops":
            return self._hops > 0
        if self._kind == "networks":
            return peer is not None and peer.listed
        return peer is None or peer.private

    def _walk(self, chain: Iterable[str], peer: _Seen | None) -> _Seen | None:
        last = peer
        edges = 1 if self._kind == "render" else 0
        hops = self._hops
        for entry in chain:
            seen = self._seen(entry)
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
                if not (seen.cloudflare and edges):
                    break
                edges -= 1
        return last

    def _seen(self, text: str) -> _Seen | None:
        return self._look(text) if len(text) <= address.LONGEST else None

    def _examine(self, text: str) -> _Seen | None:
        found = address.parse(text)
        if found is None:
            return None
        return _Seen(
            found,
            str(found),
            address.within(found, PRIVATE),
            address.within(found, CLOUDFLARE),
            address.within(found, self._networks),
        )


def _chain(said: Mapping[str, str]) -> Iterable[str]:
    """The addresses said to be before the peer, the nearest first."""
    value = said.get("x-forwarded-for")
    if value is not None:
        return reversed(value.split(","))
    value = said.get("forwarded")
    if value is not None:
        return [hop.get("for", "") for hop in reversed(forwarded.elements(value))]
    return ()


def _proto(said: Mapping[str, str]) -> str | None:
    value = said.get("x-forwarded-proto")
    if value is None:
        chain = said.get("forwarded")
        hops = forwarded.elements(chain) if chain is not None else []
        value = hops[0].get("proto") if hops else None
    if value is None:
        return None
    first = value.partition(",")[0].strip().lower()
    return first if first in ("http", "https", "ws", "wss") else None


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")
