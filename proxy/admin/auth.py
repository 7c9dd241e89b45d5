"""Authentication by the admin token: `Authorization: Bearer TOKEN` (RFC 6750), compared in constant time; peers that
guess are slowed down."""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, ip_address

from proxy.errors import Refusal

FREE_ATTEMPTS = 3  # a typing error or two cost nothing
MAX_DELAY = 4.0  # seconds
MAX_DELAYED_ATTEMPTS = 4  # of one peer at once
FORGET_SECONDS = 300.0  # after a peer's last failure
MAX_PEERS = 1024


class _FailedPeer:
    __slots__ = ("failures", "last_failure", "waiting")

    def __init__(self) -> None:
        self.failures = 0
        self.last_failure = 0.0
        self.waiting = 0


class TokenAuthenticator:
    """Tells a right token from a wrong one, and slows down a peer that shows wrong ones.

    After three failures each further attempt of that peer waits (0.5 s, 1 s, 2 s, then 4 s) before it is compared,
    at most four at once; more are refused without a comparison. Other peers notice nothing. A peer is an IPv4
    address or an IPv6 network (/64), since one host commands a whole /64. The last 1,024 peers that failed are
    remembered for five minutes.

    `token` is the one in force; while it is empty, no token opens anything.
    """

    def __init__(
        self,
        token: str,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.token = token
        self._clock = clock
        self._sleep = sleep
        self._peers: OrderedDict[str, _FailedPeer] = OrderedDict()  # by the last failure, oldest first
        self.on_attempt: Callable[[str, bool], None] = lambda peer, right: None  # with the peer's key, as noted below

    def replace_token(self, token: str) -> None:
        """Accept another token from now on, and the old one no more."""
        self.token = token

    async def authenticate(self, authorization: str | None, peer: str) -> bool:
        """Whether an Authorization header has the token. Raises Refusal (429) if the peer guesses too fast."""
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        # Nothing was shown, so nothing was guessed: no delay and no failure.
        if scheme.lower() != "bearer" or not given or not self.token:
            return False
        key = _peer_key(peer)
        failed = self._peers.get(key)
        # A peer with waiting attempts is kept: they count on its record.
        if failed is not None and self._clock() - failed.last_failure > FORGET_SECONDS and not failed.waiting:
            del self._peers[key]
            failed = None
        if failed is not None and failed.failures >= FREE_ATTEMPTS:
            await self._delay_attempt(failed)
        # Constant time: how long a comparison takes must not say how much of a guess was right.
        if hmac.compare_digest(_encode_token(given), _encode_token(self.token)):
            if self._peers.pop(key, None) is not None:
                self.on_attempt(key, True)
            return True
        self._record_failure(key)
        self.on_attempt(key, False)
        return False

    def note_attempt(self, key: str, *, right: bool) -> None:
        """Count an attempt that was made at another instance, by the peer's key that `on_attempt` gave there."""
        if right:
            self._peers.pop(key, None)
        else:
            self._record_failure(key)

    async def _delay_attempt(self, peer: _FailedPeer) -> None:
        delay = min(MAX_DELAY, 0.5 * 2.0 ** min(10, peer.failures - FREE_ATTEMPTS))
        # Each waiting attempt holds a task and a socket, so a peer may have only a few of them.
        if peer.waiting >= MAX_DELAYED_ATTEMPTS:
            raise Refusal(
                "too-many-guesses",
                429,
                "Too many wrong tokens",
                "Wrong admin tokens came from this address; try again a little later.",
                retry_after=MAX_DELAY,
            )
        peer.waiting += 1
        try:
            await self._sleep(delay)
        finally:
            peer.waiting -= 1

    def _record_failure(self, key: str) -> None:
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = _FailedPeer()
            # Bounded, since an attacker has as many addresses as he likes; the one that failed longest ago goes first.
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        peer.failures += 1
        peer.last_failure = self._clock()
        self._peers.move_to_end(key)


def _encode_token(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _peer_key(peer: str) -> str:
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    if isinstance(address, IPv6Address):
        return address.packed[:8].hex()
    return str(address)
