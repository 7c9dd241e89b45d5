"""What a user may still spend: asked before the app works, and told with each answer."""

from __future__ import annotations

from typing import Protocol


class Allowances(Protocol):
    """Money is nano-dollars."""

    def capped(self, user: str, tier: str) -> bool:
        """Whether there is a cap on this user at all."""

    def knows(self, user: str, tier: str) -> bool:
        """Whether all that this user spent is at hand; else it is worth asking for it."""

    async def recall(self, user: str, tier: str) -> None:
        """Ask for it, a second or two at most; nothing is raised where it cannot be had."""

    def used_today(self, user: str) -> int: ...

    def used_up(self, user: str, tier: str) -> tuple[str, float] | None:
        """Which cap is spent, in words, and the seconds until its window turns; None where none is."""
