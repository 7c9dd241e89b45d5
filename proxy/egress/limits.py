"""What an upstream said of its own limits, by model: until when it wants no calls, how much is left.

Vendors count by model: OpenAI says so of all its limits (platform.openai.com/docs/guides/rate-limits), Anthropic by
class of model (docs.anthropic.com/en/api/rate-limits), Azure by deployment. What holds for every model is said so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.egress.learnt import lessons

MOST_MODELS = 100  # told apart; the one whose limit ends soonest goes first


class _Limit:
    """Moments are the clock's. `left` are tokens, good until `left_until`."""

    __slots__ = ("held_until", "learnt_until", "left", "left_until")

    def __init__(self) -> None:
        self.held_until = 0.0  # by a 429 with Retry-After
        self.learnt_until = 0.0  # by the upstream's own count of what is left
        self.left = 0.0
        self.left_until = 0.0

    @property
    def ends(self) -> float:
        return max(self.held_until, self.learnt_until, self.left_until)


class Limits:
    """`clock` is monotonic, `now` the wall clock. Calls that name no model are one of their own."""

    def __init__(self, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        self._every = 0.0  # until when no model is to be called
        self._models: dict[str | None, _Limit] = {}

    def __repr__(self) -> str:
        now = self._clock()
        waits = {model: max(limit.held_until, limit.learnt_until) - now for model, limit in self._models.items()}
        held = [f"{model or 'calls of no model'} for {wait:.1f} s" for model, wait in waits.items() if wait > 0]
        held += [f"every model for {self._every - now:.1f} s"] if self._every > now else []
        return f"<Limits {', '.join(held) or 'none'}>"

    def hold(self, seconds: float, model: str | None) -> None:
        """The upstream wants a pause of this model's calls."""
        limit = self._of(model)
        limit.held_until = max(limit.held_until, self._clock() + seconds)

    def hold_every(self, seconds: float) -> None:
        """It wants a pause of all calls."""
        self._every = max(self._every, self._clock() + seconds)

    def learn(self, headers: Mapping[str, str], model: str | None) -> None:
        """From the header of an answer of this model's."""
        for kind, left, again in lessons(headers, self._now()):
            limit, until = self._of(model), self._clock() + again
            if kind == "tokens":
                limit.left, limit.left_until = left, until
            elif left < 1:
                limit.learnt_until = max(limit.learnt_until, until)

    def held_until(self, model: str | None) -> float:
        """The moment that was asked for (Retry-After); one that is past where none was."""
        limit = self._models.get(model)
        return self._every if limit is None else max(self._every, limit.held_until)

    def learnt_until(self, model: str | None, tokens: int) -> float:
        """The moment from which on there is enough left for such a call, by the upstream's own count."""
        limit = self._models.get(model)
        if limit is None:
            return 0.0
        lacks = tokens > limit.left and self._clock() < limit.left_until
        return max(limit.learnt_until, limit.left_until) if lacks else limit.learnt_until

    def _of(self, model: str | None) -> _Limit:
        found = self._models.get(model)
        if found is None:
            if len(self._models) >= MOST_MODELS:
                del self._models[min(self._models, key=lambda name: self._models[name].ends)]
            found = self._models[model] = _Limit()
        return found
