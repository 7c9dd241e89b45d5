"""Which tier a user has, by name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from proxy.policy.identity import Tier

NO_TIER = "default"  # where the policy has none


class Tiers:
    """The first whose shell pattern fits the user, case and all; the last is everybody else's."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = [(re.compile(fnmatch.translate(tier.users or "*")).match, tier) for tier in tiers]
        self.last = tiers[-1].name if tiers else NO_TIER

    def of(self, user: str) -> str:
        for fits, tier in self._tiers:
            if fits(user):
                return tier.name
        return self.last

    def named(self, name: str) -> Tier | None:
        """None where the policy has no such tier."""
        return next((tier for _, tier in self._tiers if tier.name == name), None)
