"""The admin token: shown as `Authorization: Bearer TOKEN`, compared in constant time, guesses slowed."""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

from proxy.errors import Refusal

FREE_GUESSES = 3  # a typing error or two cost nothing
LONGEST_WAIT = 4.0
WAITING = 4  # attempts of one peer that wait at once
FORGET = 300.0  # seconds after which a peer's failures are forgotten
PEERS = 1024


class _Peer:
    __slots__ = ("failures", "last", "waiting")

    def __init__(self) -> None:
        self.failures = 0
        self.last = 0.0
        self.waiting = 0


class TokenGate:
    """Tells a right token from a wrong one, the more slowly the more wrong ones a peer has shown.

    After three failures each further attempt of that peer waits (0.5 s, 1 s, 2 s, then 4 s) before it is
    looked at, at most four at once; any more are refused unlooked at. Other peers notice nothing. A peer is
    an address, an IPv6 one by its /64. The last 1,024 peers that failed are remembered, for five minutes.
    """

    def __init__(
        self,
        token: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.token = token  # empty: no token opens anything
        self._clock = clock
        self._sleep = sleep
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def take(self, token: str) -> None:
        """Another token: it opens from now on, the old one no more."""
        self.token = token

    async def shown(self, authorization: str | None, peer: str) -> bool:
        """Whether the header shows the token. Raises Refusal (429) where a peer guesses too fast."""
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given or not self.token:
            return False
        key = _network(peer)
        before = self._peers.get(key)
        if before is not None and self._clock() - before.last > FORGET and not before.waiting:
            del self._peers[key]
            before = None
        if before is not None and before.failures >= FREE_GUESSES:
            await self._hold_back(before)
        if hmac.compare_digest(_bytes(given), _bytes(self.token)):
            self._peers.pop(key, None)
            return True
        self._failed(key)
        return False

    async def _hold_back(self, peer: _Peer) -> None:
        wait = min(LONGEST_WAIT, 0.5 * 2.0 ** min(10, peer.failures - FREE_GUESSES))
        if peer.waiting >= WAITING:
            raise Refusal(
                "too-many-guesses",
                429,
                "Too many wrong tokens",
                "Wrong admin tokens came from this address; try again a little later.",
                retry_after=LONGEST_WAIT,
            )
        peer.waiting += 1
        try:
            await self._sleep(wait)
        finally:
            peer.waiting -= 1

    def _failed(self, key: str) -> None:
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = _Peer()
            if len(self._peers) > PEERS:
                self._peers.popitem(last=False)
        peer.failures += 1
        peer.last = self._clock()
        self._peers.move_to_end(key)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _network(peer: str) -> str:
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        return address.packed[:8].hex()
    return str(address)
