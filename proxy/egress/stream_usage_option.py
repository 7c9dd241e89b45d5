"""For which models an upstream is asked for the usage of its streams (`stream_options.include_usage`).

Some hosts that speak OpenAI's dialect do not know the option and refuse a call for it. Which do is learnt by
model, since a host has engines of several kinds, and only for a while, since hosts learn too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

ASK_AGAIN_SECONDS = 600.0  # seconds after which a model is asked again
MAX_MODELS = 1000  # models


class StreamUsageOption:
    """Knows the models of one upstream that refused the option."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._refused: OrderedDict[str | None, float] = OrderedDict()  # model → when to ask again

    def may_ask(self, model: str | None) -> bool:
        """Whether calls of this model may be made with the option."""
        until = self._refused.get(model)
        if until is None:
            return True
        if self._clock() < until:
            return False
        del self._refused[model]
        return True

    def record_refusal(self, model: str | None) -> None:
        """A call was refused with the option, and the same one answered without it."""
        self._refused[model] = self._clock() + ASK_AGAIN_SECONDS
        self._refused.move_to_end(model)
        if len(self._refused) > MAX_MODELS:
            self._refused.popitem(last=False)
