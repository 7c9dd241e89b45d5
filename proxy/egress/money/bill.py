"""What one call costs while it is under way: reserved before it, settled after it, and never given back.

An attempt that was sent and ended without a definite error (timed out, abandoned, cut) is paid at an estimate: a
vendor bills an answer that nobody waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy.egress.dialects import Usage, Written
from proxy.egress.money.cost import Cost
from proxy.egress.money.purse import CapReached, Hold

if TYPE_CHECKING:
    from proxy.egress.money.meter import Meter


# Endpoints whose answers are written.
TEXT = frozenset(("chat", "responses", "compact", "decisions", "completions", "messages"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for, as far as it is known. `named`: the call said which model; else it is a guess. `fixed`:
    what it costs whatever the answer is, where that has no usage. `elsewhere`: the model reads more than the body
    has."""

    model: str | None
    named: bool
    body_bytes: int
    input_tokens: int
    output_tokens: int
    fixed: Cost | None
    elsewhere: bool


class Bill:
    """One upstream's part of a call. `cost` and `estimated`, which is the part of it that rests on an estimate, are
    whole nano-dollars, final once `over`."""

    __slots__ = (
        "_asked",
        "_hold",
        "_later",
        "_meter",
        "cost",
        "endpoint",
        "estimated",
        "id",
        "model",
        "over",
        "reference",
        "reserved",
        "standing",
        "upstream",
    )

    def __init__(
        self,
        meter: Meter,
        hold: Hold,
        *,
        endpoint: str,
        asked: Asked,
        reserve: int,
        later: Callable[[], Asked] | None = None,
        id: str | None = None,
    ) -> None:
        """`later`: what was asked by a body that is read as it passes. `id`: of a call that began before a restart, for
        which `hold` reserves already. Raises CapReached."""
        self._meter = meter
        self._hold = hold
        self.endpoint = endpoint
        self._asked = asked
        self._later = later
        self.id = id or meter.ids.token()
        self.upstream = meter.name
        self.model = asked.model
        self.cost = 0
        self.estimated = 0
        self.over = False
        self.reference = ""  # the vendor's, of what it goes on with
        self.standing = False  # the price comes later, whatever becomes of this call
        self.reserved = reserve
        if id is None:
            hold.take(reserve)

    def stand(self, reference: str) -> None:
        """The vendor goes on with it: what is reserved stays so until it is shown what it came to."""
        self.reference = reference
        self.standing = True

    def held_by(self, hold: Hold) -> None:
        """Another hold has its reservation, in windows that were counted anew."""
        self._hold = hold

    def found(self, cost: int) -> None:
        """Another instance settled it."""
        self.standing, self.over, self.cost = False, True, cost
        self._hold.spend(cost)
        self._hold.release()

    def expire(self, written: Written) -> None:
        """Nobody will be shown what it came to: no less than what was reserved for it, or was written."""
        self.standing, self.over = False, True
        guess = self._meter.estimate_written(self.endpoint, self.model, self._asked.input_tokens, written).nanos
        amount = max(guess, self.reserved)
        self._spend(Cost(amount, amount))
        self._hold.release()

    @property
    def input_tokens(self) -> int:
        """As they were estimated."""
        return self._asked.input_tokens

    def lost(self) -> None:
        """An attempt was sent, and what became of it nobody knows."""
        if self.standing:
            return
        self._read_again()
        output = self._asked.output_tokens
        if self.endpoint in TEXT:
            output = min(output, self._meter.usual_output(self.model))
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
        if self.over or self.standing:
            return
        self.over = True
        self._read_again()
        if usage is not None:
            named = self._asked.named or usage.model is not None
            self._meter.answered(self.model, usage.model)
            self.model = usage.model or self.model
            cost = self._meter.cost(self.endpoint, usage, self.model)
            if not final:
                cost = self._at_least(cost, usage, written)
            elif named:
                asked, lesson = self._asked, written.lesson(usage.reasoning)
                names = {asked.model, self.model}
                self._meter.learn(names, asked.body_bytes, usage, lesson, elsewhere=asked.elsewhere)
            self._spend(cost if named else Cost(cost.nanos, cost.nanos))
        elif self._asked.fixed is not None or self.endpoint == "images":
            self._spend(self._guess(self._asked.output_tokens))
        else:
            self._spend(self._meter.estimate_written(self.endpoint, self.model, self._asked.input_tokens, written))
        self._hold.release()

    def close(self) -> None:
        """The call is over: what is still reserved was not spent."""
        if self.standing:
            return
        self.over = True
        self._hold.release()

    def _read_again(self) -> None:
        if self._later is not None:
            self._asked = self._later()
            self.model = self._asked.model

    def _at_least(self, told: Cost, usage: Usage, written: Written) -> Cost:
        tokens, details = self._meter.output_tokens(self.endpoint, self.model, written), usage.details
        if self.endpoint == "images":  # all that was asked for, since what is not shown may be drawn
            tokens = self._asked.output_tokens
            details = {key: value for key, value in details.items() if key != "output_tokens_details"}
        if tokens <= usage.output:
            return told
        own = replace(usage, parts=())
        price = self._meter.cost(self.endpoint, own, self.model).nanos
        whole = replace(own, output=tokens, details=details)
        more = self._meter.cost(self.endpoint, whole, self.model).nanos - price
        return Cost(told.nanos + max(0, more), told.estimated + max(0, more))

    def _guess(self, output_tokens: int) -> Cost:
        if self._asked.fixed is not None:
            return self._asked.fixed
        return self._meter.estimate(self.endpoint, self.model, self._asked.input_tokens, output_tokens)

    def _spend(self, cost: Cost) -> None:
        if cost.nanos:
            self.cost += cost.nanos
            self.estimated += cost.estimated
            self._hold.spend(cost.nanos)
            self._meter.count(self.model, cost)
