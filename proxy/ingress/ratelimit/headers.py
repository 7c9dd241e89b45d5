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

    __slots__ = ("_limits", "_policy", "_quoted", "names", "rates")

    def __init__(self, route_name: str, rates: tuple[Rate, ...]) -> None:
        self.rates = rates
        self.names = tuple(f"{route_name}-{place}" if place else route_name for place in _limit_numbers(rates))
        self._quoted = [_quote_string(name) for name in self.names]
        pairs = zip(self._quoted, rates, strict=True)
        listed = ", ".join(f"{name};q={rate.count};w={ceil(rate.period)}" for name, rate in pairs)
        self._policy = (b"RateLimit-Policy", listed.encode())
        self._limits = [(b"X-RateLimit-Limit", b"%d" % rate.count) for rate in rates]

    def render(self, standings: Sequence[tuple[int, float]]) -> tuple[tuple[bytes, bytes], ...]:
        """The fields for limits that stand so: (remaining, seconds to reset) of each, in the policy's order.

        The older fields have room for one limit only: the one with the least remaining, and of several the one that
        takes longest to reset.
        """
        if len(standings) == 1:
            tightest = 0
            remaining, reset = standings[0]
            listed = f"{self._quoted[0]};r={remaining};t={ceil(reset)}"
        else:
            tightest = min(range(len(standings)), key=lambda index: (standings[index][0], -standings[index][1]))
            remaining, reset = standings[tightest]
            pairs = zip(self._quoted, standings, strict=True)
            listed = ", ".join(f"{name};r={left};t={ceil(seconds)}" for name, (left, seconds) in pairs)
        return (
            self._policy,
            (b"RateLimit", listed.encode()),
            self._limits[tightest],
            (b"X-RateLimit-Remaining", b"%d" % remaining),
            (b"X-RateLimit-Reset", b"%d" % ceil(reset)),
        )


def _limit_numbers(rates: tuple[Rate, ...]) -> list[int]:
    """0 for the first limit, which has the route's bare name; then 2, 3, and so on."""
    return [0, *range(2, len(rates) + 1)]


def _quote_string(text: str) -> str:
    """A Structured Fields string (RFC 9651 section 3.3.3), which is printable ASCII."""
    plain = "".join(char if " " <= char <= "~" else "?" for char in text)
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
