"""What one call costs while it is under way: reserved before it, settled after it, and never given back.

An attempt that was sent and ended without a definite error (timed out, abandoned, cut) is paid at an estimate: a
vendor bills an answer that nobody waited for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.egress.dialects import Usage, Written
from proxy.egress.money.cost import Cost
from proxy.egress.money.purse import CapReached, Hold

if TYPE_CHECKING:
    from proxy.egress.money.meter import Meter


class Bill:
    """One upstream's part of a call. `cost` and `estimated`, which is the part of it that rests on an estimate, are
    whole nano-dollars, final once `over`."""

    __slots__ = (
        "_asked",
        "_body_bytes",
        "_elsewhere",
        "_fixed",
        "_hold",
        "_meter",
        "_output",
        "cost",
        "endpoint",
        "estimated",
        "id",
        "input_tokens",
        "model",
        "over",
        "reserved",
        "upstream",
    )

    def __init__(
        self,
        meter: Meter,
        hold: Hold,
        *,
        endpoint: str,
        model: str | None,
        body_bytes: int,
        input_tokens: int,
        output_tokens: int,
        reserve: int,
        fixed: Cost | None = None,
        elsewhere: bool = False,
    ) -> None:
        """`fixed`: what it costs whatever the answer is, where that has no usage. `elsewhere`: the model reads more
        than the body has. Raises CapReached."""
        self._meter = meter
        self._hold = hold
        self.endpoint = endpoint
        self._fixed = fixed
        self._asked = model
        self._body_bytes = body_bytes
        self._elsewhere = elsewhere
        self.input_tokens = input_tokens  # as they were estimated
        self._output = output_tokens
        self.id = meter.ids.token()
        self.upstream = meter.name
        self.model = model
        self.cost = 0
        self.estimated = 0
        self.over = False
        self.reserved = reserve
        hold.take(reserve)

    def lost(self) -> None:
        """An attempt was sent, and what became of it nobody knows."""
        output = min(self._output, self._meter.usual_output(self.model))
        guess = self._guess(output)
        self._spend(Cost(guess.nanos, guess.nanos))
        self._hold.release()

    def again(self) -> bool:
        """Whether one more attempt is within the caps; it is reserved if so."""
        try:
            self._hold.take(self.reserved)
        except CapReached:
            return False
        return True

    def settle(self, usage: Usage | None, written: Written, *, final: bool = True) -> None:
        """The answer came, whole or in part: paid as reported, else by what was written. `final`: the usage is that
        of all of it; else no less than what was written counts."""
        if self.over:
            return
        self.over = True
        if usage is not None:
            self._meter.answered(self.model, usage.model)
            self.model = usage.model or self.model
            cost = self._meter.cost(self.endpoint, usage, self.model)
            if final:
                names, lesson = {self._asked, self.model}, written.lesson(usage.reasoning)
                self._meter.learn(names, self._body_bytes, usage, lesson, elsewhere=self._elsewhere)
            else:
                cost = self._at_least(cost, usage, written)
            self._spend(cost)
        elif self._fixed is not None:
            self._spend(self._fixed)
        else:
            self._spend(self._meter.estimate_written(self.endpoint, self.model, self.input_tokens, written))
        self._hold.release()

    def close(self) -> None:
        """The call is over: what is still reserved was not spent."""
        self.over = True
        self._hold.release()

    def _at_least(self, told: Cost, usage: Usage, written: Written) -> Cost:
        tokens = self._meter.output_tokens(self.endpoint, self.model, written)
        if tokens <= usage.output:
            return told
        own = replace(usage, parts=())
        price = self._meter.cost(self.endpoint, own, self.model).nanos
        more = self._meter.cost(self.endpoint, replace(own, output=tokens), self.model).nanos - price
        return Cost(told.nanos + max(0, more), told.estimated + max(0, more))

    def _guess(self, output_tokens: int) -> Cost:
        if self._fixed is not None:
            return self._fixed
        return self._meter.estimate(self.endpoint, self.model, self.input_tokens, output_tokens)

    def _spend(self, cost: Cost) -> None:
        if cost.nanos:
            self.cost += cost.nanos
            self.estimated += cost.estimated
            self._hold.spend(cost.nanos)
            self._meter.count(self.model, cost)
