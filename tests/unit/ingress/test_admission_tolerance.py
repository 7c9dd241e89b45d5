"""`overload.adaptive.tolerance`: how much slower than alone a request may be before fewer are admitted."""

from __future__ import annotations

from admission_simulation import App, Scene, simulate

from proxy.policy.schema import AdaptiveLimit, Overload


def settled(tolerance: float) -> int:
    """The limit before two slow workers that are flooded."""
    limits: list[int] = []

    async def run() -> None:
        scene = Scene(Overload("adaptive", adaptive=AdaptiveLimit(tolerance=tolerance)), App(workers=2, service=0.5))
        await scene.load(0.5, 60.0)
        await scene.load(12.0, 120.0)
        assert scene.admission.limit is not None
        limits.append(scene.admission.limit)

    simulate(run())
    return limits[0]


def test_a_higher_tolerance_admits_more_to_an_app_that_is_flooded() -> None:
    assert settled(1.2) < settled(6.0)
