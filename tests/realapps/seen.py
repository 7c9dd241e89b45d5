"""What a drive saw one way, and how two of them compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SAME, BETTER, WORSE = "same", "better", "worse"
# What two runs of the same may differ by: milliseconds, and a part of direct's. Of p95 each turn has to be above each
# of direct's as well: the machine is others' too.
SLACK, SHARE = 15.0, 0.25


@dataclass
class Seen:
    """`facts` are to be equal; of `good` out of `asked` more is better; of `times` (milliseconds) less."""

    facts: dict[str, Any] = field(default_factory=dict)
    good: int = 0
    asked: int = 0
    chance: int = 0  # so many good ones more or less mean nothing
    times: list[float] = field(default_factory=list)
    rounds: list[float] = field(
        default_factory=list
    )  # the p95 of each turn, which says how much the machine itself varies
    said: str = ""

    def figures(self) -> str:
        parts = [f"{self.good}/{self.asked}"] if self.asked else []
        if self.times:
            parts.append(f"p50 {percentile(self.times, 50):.0f} p95 {percentile(self.times, 95):.0f} ms")
        return ", ".join([*parts, *([self.said] if self.said else [])])


@dataclass
class Verdict:
    word: str
    said: str


def percentile(times: list[float], which: int) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, len(ordered) * which // 100)]


def judge(direct: Seen, behind: Seen) -> Verdict:
    other = [key for key in {**direct.facts, **behind.facts} if direct.facts.get(key) != behind.facts.get(key)]
    words, why = [], []
    if other:
        words.append(WORSE)
        why += [f"{key}: {_short(direct.facts.get(key))} → {_short(behind.facts.get(key))}" for key in other[:4]]
        if len(other) > 4:
            why.append(f"and {len(other) - 4} more")
    before, after = direct.good / max(direct.asked, 1), behind.good / max(behind.asked, 1)
    if before != after and abs(direct.good - behind.good) > direct.chance:
        words.append(BETTER if after > before else WORSE)
    if direct.times and behind.times and before == after:
        for which in (50, 95):
            one, two = percentile(direct.times, which), percentile(behind.times, which)
            apart = which == 50 or min(behind.rounds, default=two) > max(direct.rounds, default=one)
            if apart and two > one + max(SLACK, one * SHARE):
                words.append(WORSE)
                why.append(f"p{which} is {two - one:.0f} ms more")
    word = WORSE if WORSE in words else BETTER if BETTER in words else SAME
    one, two = direct.figures(), behind.figures()
    figures = one if one == two else f"{one or '—'} → {two or '—'}"
    return Verdict(word, "; ".join([*([figures] if figures else []), *why]))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 70 else text[:69] + "…"
