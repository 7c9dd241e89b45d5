"""What one call costs while it is under way: reserved before it, settled after it, and never given back.

An attempt that was sent and ended without a definite error (timed out, abandoned, cut) is paid at an estimate: a
vendor bills an answer that nobody waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.egress.dialects import Usage
from proxy.egress.money.purse import CapReached, Hold
from proxy.egress.money.tariff import Cost

if TYPE_CHECKING:
    from proxy.egress.money.meter import Meter


class Bill:
    """One upstream's part of a call. `cost` and `estimated`, which is the part of it that rests on an estimate, are
    whole nano-dollars, final once `over`."""

    __slots__ = (
        "_asked",
        "_body_bytes",
        "_elsewhere",
        "_endpoint",
        "_fixed",
        "_hold",
        "_meter",
        "_output",
        "cost",
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
        self._endpoint = endpoint
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

    def settle(self, usage: Usage | None, text_bytes: int) -> None:
        """The answer came, whole or in part: paid as reported, else by its bytes."""
        if self.over:
            return
        self.over = True
        if usage is not None:
            self._meter.answered(self.model, usage.model)
            self.model = usage.model or self.model
            self._spend(self._meter.cost(self._endpoint, usage, self.model))
            names = {self._asked, self.model}
            self._meter.learn(names, self._body_bytes, usage, text_bytes, elsewhere=self._elsewhere)
        else:
            self._spend(self._guess(self._meter.output_tokens(self._endpoint, self.model, text_bytes)))
        self._hold.release()

    def close(self) -> None:
        """The call is over: what is still reserved was not spent."""
        self.over = True
        self._hold.release()

    def _guess(self, output_tokens: int) -> Cost:
        if self._fixed is not None:
            return self._fixed
        return self._meter.estimate(self._endpoint, self.model, self.input_tokens, output_tokens)

    def _spend(self, cost: Cost) -> None:
        if cost.nanos:
            self.cost += cost.nanos
            self.estimated += cost.estimated
            self._hold.spend(cost.nanos)
            self._meter.count(self.model, cost)
