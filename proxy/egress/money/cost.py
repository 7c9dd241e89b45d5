"""What something cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """Whole nano-dollars (1e-9 $), never a float. `estimated` is the part that rests on an estimate."""

    nanos: int
    estimated: int = 0


NOTHING = Cost(0)
