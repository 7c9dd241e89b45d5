"""A rule that holds for something, with its figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject` is the route, upstream or part that it holds for; empty: the whole. `since` is the clock's, where
    it is known. `level` says how bad: higher is worse. `settled`: it lasts until something else changes (a cap
    that is spent stays so until midnight), so it is said again only once it is worse."""

    subject: str
    message: str
    value: str
    threshold: str
    since: float | None = None
    level: float = 0.0
    settled: bool = False
    cause: str = ""
