"""The RateLimit header fields (draft-ietf-httpapi-ratelimit-headers-10), and the older X-RateLimit ones.

`w` and `t` are whole seconds, rounded up. `t`, and X-RateLimit-Reset with it, is the time until quota that is used now
comes free: in a sliding window that is when its oldest request leaves it, and for a limit that refuses it is the
Retry-After. 0 if no quota is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from proxy.policy.values import Rate


class RateLimitHeaders:
    """The fields for the limits of a tier on a route, with what does not change rendered beforehand.

    `names` and `rates` are its limits, in the policy's order.
    """

    __slots__ = ("_blocks", "names", "rates")

    def __init__(self, route_name: str, rates: tuple[Rate, ...]) -> None:
        self.rates = rates
        self.names = tuple(f"{route_name}-{place}" if place else route_name for place in _limit_numbers(rates))
        quoted = [_quote_string(name) for name in self.names]
        pairs = zip(quoted, rates, strict=True)
        policy = ", ".join(f"{name};q={rate.count};w={ceil(rate.period)}" for name, rate in pairs)
        # One operation fills in all that changes: 0.3 µs, and field by field 1.1.
        listed = ", ".join(f"{_escape(name)};r=%d;t=%d" for name in quoted).encode()
        self._blocks = [
            f"RateLimit-Policy: {_escape(policy)}\r\nRateLimit: ".encode()
            + listed
            + b"\r\nX-RateLimit-Limit: %d\r\nX-RateLimit-Remaining: %%d\r\nX-RateLimit-Reset: %%d\r\n" % rate.count
            for rate in rates
        ]

    def render(self, standings: Sequence[tuple[int, float]]) -> bytes:
        """The lines of the fields for limits that stand so: (remaining, seconds to reset) of each, in the policy's
        order.

        The older fields have room for one limit only: the one with the least remaining, and of several the one that
        takes longest to reset.
        """
        if len(standings) == 1:
            remaining, seconds = standings[0]
            reset = ceil(seconds)
            return self._blocks[0] % (remaining, reset, remaining, reset)
        tightest = min(range(len(standings)), key=lambda index: (standings[index][0], -standings[index][1]))
        remaining, seconds = standings[tightest]
        listed = [number for left, reset in standings for number in (left, ceil(reset))]
        return self._blocks[tightest] % (*listed, remaining, ceil(seconds))


def _limit_numbers(rates: tuple[Rate, ...]) -> list[int]:
    """0 for the first limit, which has the route's bare name; then 2, 3, and so on."""
    return [0, *range(2, len(rates) + 1)]


def _quote_string(text: str) -> str:
    """A Structured Fields string (RFC 9651 section 3.3.3), which is printable ASCII."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")
