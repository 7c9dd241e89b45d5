"""An upstream's meter: what its calls cost by their tokens, and what they may cost before they are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from proxy.egress import refusal
from proxy.egress.dialects import Usage, Written
from proxy.egress.dialects.dialect import Json, model_name
from proxy.egress.dialects.drawing import drawn_tokens
from proxy.egress.money.bill import TEXT, Asked, Bill
from proxy.egress.money.context import is_elsewhere
from proxy.egress.money.cost import Cost
from proxy.egress.money.estimate import Estimator, text_bytes_of
from proxy.egress.money.projection import Projection
from proxy.egress.money.purse import CapReached, Hold, Purse, Warn
from proxy.egress.money.tariff import Tariffs
from proxy.observe.metrics import Metrics
from proxy.observe.series import OTHER
from proxy.observe.trace import Ids
from proxy.policy import outgoing
from proxy.units import NANOS

if TYPE_CHECKING:
    from proxy.egress.call import Call
    from proxy.ledger.entry import Entry

FIRST_GUESS = 1_000  # tokens of an answer, until the model's own are known
UNTOLD = 4 * 1024 * 1024  # bytes that an upload may have whose length is not told
MOST_PICTURES, PICTURE, PICTURE_BYTES = 16, 6_500, 1024 * 1024  # in one call; tokens of one, in high fidelity; its size
HEARD = 4  # tokens of sound for one of the text that is made of it: 17 a second, of 3 to 4 words
UNREAD = 200_000  # tokens of a body that was too large to be read: that is pictures, and their bytes are no text
ANSWERED = 500  # names of deployments that are remembered


class Meter:
    """`now` is the wall clock."""

    def __init__(
        self,
        name: str,
        policy: outgoing.Upstream,
        *,
        now: Callable[[], float],
        metrics: Metrics,
        on_warn: Warn | None = None,
    ) -> None:
        self.name = name
        self._policy = policy
        self._now = now
        self._metrics = metrics
        self._tariffs = _tariffs(policy)
        self._estimator = Estimator()
        self.ids = Ids()
        self._seen: dict[str, str] = {}  # endpoint → the model of the last call that named one
        self._answered: OrderedDict[str, str] = OrderedDict()  # names without a price → the model behind them
        self._projection = Projection(now)
        self.purse = Purse(policy.cap, now=now, on_warn=on_warn)

    @property
    def metered(self) -> bool:
        return self._policy.kind != "http"

    def reconfigure(self, policy: outgoing.Upstream) -> bool:
        """Take a policy; True where the counts must be loaded from the ledger again."""
        self._policy = policy
        self._tariffs = _tariffs(policy)
        return self.purse.reconfigure(policy.cap)

    def label(self, model: str | None) -> str:
        """The model as a metric's label, of which there is an end, whatever names come from outside."""
        return (self._tariffs.label(model) if model is not None else None) or OTHER

    def known(self, model: str | None) -> bool:
        return model is not None and self._tariffs.known(model)

    def open(self, call: Call) -> Bill | None:
        """A call's bill, with what it may cost reserved; None where a call has no price (files, lists of models).

        Raises CallRefused where a cap would be passed, or where a model has no price and must have one.
        """
        if call.endpoint is None or not self.metered:
            return None
        endpoint, asked = call.endpoint, self._ask_of(call)
        if asked.named and self._tariffs.refuses(asked.model):
            raise refusal.unknown_price(self.name, asked.model or "")
        reserve = asked.fixed
        if reserve is None:
            reserve = self.estimate(endpoint, asked.model, asked.input_tokens, asked.output_tokens)
        hold = self.purse.hold(call.user, call.tier, call.at)
        try:
            bill = Bill(
                self,
                hold,
                endpoint=endpoint,
                asked=asked,
                reserve=reserve.nanos,
                later=partial(self._ask_later, call) if call.body.passes else None,
            )
        except CapReached as reached:
            raise refusal.cost_cap(self.name, str(reached)) from reached
        call.bills.append(bill)
        return bill

    def _ask_of(self, call: Call) -> Asked:
        body, endpoint, named = call.body, call.endpoint or "", self._priced_as(call.ask.model)
        said = body.said()
        if named is not None:
            self._seen[endpoint] = named
            said = {**said, "model": named}  # where its path names it, the body need not
        model = named or self._seen.get(endpoint)
        size, elsewhere = 0, False  # nothing can be learnt from what was not read
        if body.parsed is not None:
            size, elsewhere = text_bytes_of(said), is_elsewhere(said)
            sent = self._estimator.input_tokens(model, size, elsewhere=elsewhere)
        else:
            length = max(body.passed, UNTOLD) if body.length is None else body.length
            sent = self._input_of_upload(endpoint, model, length)
        fixed = self._tariffs.of_request(endpoint, said, at=self._now()) if named or body.parsed is not None else None
        most = self._most_output(call, model, said, sent)
        return Asked(model, named is not None, size, sent, most, fixed, elsewhere)

    def _ask_later(self, call: Call) -> Asked:
        """What was asked, now that more of the body has passed."""
        model = model_name(call.body.said().get("model"))
        if call.ask.model is None and model is not None:
            call.ask = replace(call.ask, model=model)
        return self._ask_of(call)

    def _input_of_upload(self, endpoint: str, model: str | None, length: int) -> int:
        if endpoint == "images":
            return min(MOST_PICTURES, 1 + length // PICTURE_BYTES) * PICTURE
        return min(UNREAD, self._estimator.input_tokens(model, length, endpoint=endpoint))

    def reopen(self, row: Entry) -> Bill:
        """The bill of a call that began before a restart and whose price is still to come: what was loaded as spent is
        reserved again."""
        bill = Bill(
            self,
            self.kept(row),
            endpoint="responses",
            asked=Asked(row.model or None, bool(row.model), 0, 0, 0, None, elsewhere=True),
            reserve=row.cost,
            id=row.id,
        )
        bill.stand(row.reference)
        return bill

    def kept(self, row: Entry) -> Hold:
        hold = self.purse.hold(row.user, row.tier)
        hold.keep(row.cost, self.purse.windows(), row.at)
        return hold

    def check(self, call: Call) -> None:
        """Of a call whose price will never be seen (a WebSocket): whether any money is left for it at all.

        Raises CallRefused.
        """
        if not self.metered:
            return
        try:
            self.purse.check(self.purse.hold(call.user, call.tier), 1)
        except CapReached as reached:
            raise refusal.cost_cap(self.name, str(reached)) from reached

    def deployed(self, name: str, model: str | None) -> str:
        """What a deployment is priced by: its own name, where that tells anything, before the model that the body
        names, which Azure does not look at."""
        return name if model is None or self.known(self._priced_as(name)) or not self.known(model) else model

    def answered(self, asked: str | None, model: str | None) -> None:
        """A call for one model was answered under another name: the deployment's model."""
        if asked is None or model is None or asked == model or self.known(asked):
            return
        self._answered[asked] = model
        self._answered.move_to_end(asked)
        if len(self._answered) > ANSWERED:
            self._answered.popitem(last=False)

    def _priced_as(self, asked: str | None) -> str | None:
        """Its own name; where that has no price, the one that its last answer gave."""
        if asked is None or asked not in self._answered or self.known(asked):
            return asked
        return self._answered[asked]

    # ── prices ───────────────────────────────────────────────────────────────────────────────

    def cost(self, endpoint: str, usage: Usage, model: str | None) -> Cost:
        return self._tariffs.cost(endpoint, usage, model, at=self._now())

    def estimate(self, endpoint: str, model: str | None, input_tokens: int, output_tokens: int) -> Cost:
        return self._tariffs.estimate(
            endpoint, model, input_tokens=input_tokens, output_tokens=output_tokens, at=self._now()
        )

    def usual_output(self, model: str | None) -> int:
        typical = self._estimator.typical_output(model)
        return FIRST_GUESS if typical is None else typical

    def output_tokens(self, endpoint: str, model: str | None, written: Written) -> int:
        """Tokens of what was written, by all that can be known of it."""
        if endpoint not in TEXT and endpoint != "audio":
            return 0
        text = self._estimator.output_tokens(model, written.text)
        thought = self._estimator.output_tokens(model, written.thought)
        if written.text:  # what it says was thought over before, shown or not
            thought = max(thought, self._estimator.usual_thought(model))
        return text + thought + written.tokens + written.audio + written.images

    def estimate_written(self, endpoint: str, model: str | None, input_tokens: int, written: Written) -> Cost:
        """What an answer costs that reports nothing; all of it is an estimate."""
        output = self.output_tokens(endpoint, model, written)
        if not (output and (written.audio or written.images)):
            return self.estimate(endpoint, model, input_tokens, output)
        kinds = {"audio_tokens": written.audio, "image_tokens": written.images}
        usage = Usage(input_tokens, 0, output, 0, model, {"completion_tokens_details": kinds})
        if endpoint == "responses" and written.images:  # a tool's, which draws with a model of its own
            own = replace(usage, output=output - written.images, details={})
            drawn = {"output_tokens_details": {"image_tokens": written.images}, "guessed": True}
            usage = replace(own, parts=(own, Usage(0, 0, written.images, 0, written.painter, drawn, endpoint="images")))
        nanos = self.cost(endpoint, usage, model).nanos
        return Cost(nanos, nanos)

    def learn(
        self, models: Iterable[str | None], body_bytes: int, usage: Usage, text_bytes: int, *, elsewhere: bool
    ) -> None:
        """Under each of the names that the model has: the one that was asked for is often an alias."""
        for model in models:
            self._estimator.learn(
                model, body_bytes=body_bytes, usage=usage, text_bytes=text_bytes or None, elsewhere=elsewhere
            )

    def projected(self) -> int:
        """Nano-dollars that today will have cost at its end, at the pace of the last hour."""
        end = self.purse.calendar.window("d", self._now())[1]
        return self._projection.at_the_end(self.purse.spent("d"), end)

    def count(self, model: str | None, cost: Cost) -> None:
        self._projection.add(cost.nanos)
        label = self.label(model)
        for basis, amount in (("reported", cost.nanos - cost.estimated), ("estimated", cost.estimated)):
            if amount:
                self._metrics.cost_usd_total.child(self.name, label, basis).inc(amount / NANOS)

    def _most_output(self, call: Call, model: str | None, said: Json, sent: int) -> int:
        if call.endpoint == "images":
            return drawn_tokens(model, said) * call.ask.choices
        if call.endpoint == "audio" and call.body.parsed is None:
            return sent // HEARD
        if call.endpoint not in TEXT:
            return 0
        most = call.ask.max_tokens
        if most is None:
            worst = self._policy.cap.reserve == "worst"
            most = self._tariffs.most_output(model) if worst else self.usual_output(model)
        return max(0, most) * call.ask.choices


def _tariffs(policy: outgoing.Upstream) -> Tariffs:
    return Tariffs(policy.kind, policy.base_url, policy.prices, policy.unknown_price)
