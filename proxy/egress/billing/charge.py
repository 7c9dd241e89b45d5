"""An upstream's meter: what its calls cost by their tokens, and what they may cost before they are made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy.egress import error_response
from proxy.egress.billing.forecast import SpendForecast
from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.pricing.rates import Cost
from proxy.egress.billing.spend_limits import CapReached, Reservation, SpendLimits, Warn
from proxy.egress.billing.token_estimator import TokenEstimator, count_text_bytes
from proxy.egress.billing.vendor_context import reads_beyond_body
from proxy.egress.body import Body
from proxy.egress.dialects import OutputSize, RequestInfo, Usage
from proxy.egress.dialects.base import Json, model_name
from proxy.egress.dialects.image_tokens import requested_image_tokens
from proxy.observe.metric_family import OTHER_LABEL
from proxy.observe.metrics import Metrics
from proxy.observe.request_ids import IdGenerator
from proxy.policy import schema
from proxy.units import NANOS

if TYPE_CHECKING:
    from proxy.ledger.record import CallRecord

# [merged from egress/billing/bill] What one call costs while it is under way: reserved before it, settled after it,
# and never given back.
#
# An attempt that was sent and ended without a definite error (timed out, abandoned, cut) is paid at an estimate: a
# vendor bills an answer that nobody waited for.
# Endpoints whose answers are written.
TEXT = frozenset(("chat", "responses", "compact", "decisions", "completions", "messages"))


@dataclass(frozen=True, slots=True)
class CallEstimate:
    """What a call asks for, as far as it is known. `named`: the call said which model; else it is a guess. `fixed`:
    what it costs whatever the answer is, where that has no usage. `elsewhere`: the model reads more than the body
    has."""

    model: str | None
    names_model: bool
    body_bytes: int
    input_tokens: int
    output_tokens: int
    fixed_cost: Cost | None
    reads_beyond_body: bool


class Charge:
    """One upstream's part of a call. `cost` and `estimated`, which is the part of it that rests on an estimate, are
    whole nano-dollars, final once `over`."""

    __slots__ = (
        "_asked",
        "_hold",
        "_meter",
        "_scanned_body",
        "closed",
        "cost",
        "deferred",
        "endpoint",
        "estimated",
        "id",
        "model",
        "reference",
        "request",
        "reserved",
        "upstream",
    )

    def __init__(
        self,
        meter: UpstreamBilling,
        hold: Reservation,
        *,
        endpoint: str,
        asked: CallEstimate,
        reserve: int,
        request: RequestInfo | None = None,
        scanned_body: Body | None = None,
        id: str | None = None,
    ) -> None:
        """`scanned_body`: one that is read as it passes, so what it asks for (`request`) is known only behind it. `id`:
        of a call that began before a restart, for which `hold` reserves already. Raises CapReached."""
        self._meter = meter
        self._hold = hold
        self.endpoint = endpoint
        self._asked = asked
        self.request = request
        self._scanned_body = scanned_body
        self.id = id or meter.ids.new_token()
        self.upstream = meter.name
        self.model = asked.model
        self.cost = 0
        self.estimated = 0
        self.closed = False
        self.reference = ""  # the vendor's, of what it goes on with
        self.deferred = False  # the price comes later, whatever becomes of this call
        self.reserved = reserve
        if id is None:
            hold.reserve(reserve)

    def defer(self, reference: str) -> None:
        """The vendor goes on with it: what is reserved stays so until it is shown what it came to."""
        self.reference = reference
        self.deferred = True

    def move_to(self, hold: Reservation) -> None:
        """Another hold has its reservation, in windows that were counted anew."""
        self._hold = hold

    def settle_at(self, cost: int) -> None:
        """Another instance settled it."""
        self.deferred, self.closed, self.cost = False, True, cost
        self._hold.spend(cost)
        self._hold.release()

    def expire(self, written: OutputSize) -> None:
        """Nobody will be shown what it came to: no less than what was reserved for it, or was written."""
        self.deferred, self.closed = False, True
        guess = self._meter.estimate_written_cost(self.endpoint, self.model, self._asked.input_tokens, written).nanos
        amount = max(guess, self.reserved)
        self._spend(Cost(amount, amount))
        self._hold.release()

    @property
    def input_tokens(self) -> int:
        """As they were estimated."""
        return self._asked.input_tokens

    def charge_lost_attempt(self) -> None:
        """An attempt was sent, and what became of it nobody knows."""
        if self.deferred:
            return
        self._read_again()
        output = self._asked.output_tokens
        if self.endpoint in TEXT:
            output = min(output, self._meter.usual_output_tokens(self.model))
        guess = self._guess(output)
        self._spend(Cost(guess.nanos, guess.nanos))
        self._hold.release()

    def reserve_again(self) -> bool:
        """Whether one more attempt is within the caps; it is reserved if so."""
        try:
            self._hold.reserve(self.reserved)
        except CapReached:
            return False
        return True

    def settle(self, usage: Usage | None, written: OutputSize, *, final: bool = True) -> None:
        """The answer came, whole or in part: paid as reported, else by what was written. `final`: the usage is that
        of all of it; else no less than what was written counts."""
        if self.closed or self.deferred:
            return
        self.closed = True
        self._read_again()
        if usage is not None:
            named = self._asked.names_model or usage.model is not None
            self._meter.learn_alias(self.model, usage.model)
            self.model = usage.model or self.model
            cost = self._meter.cost(self.endpoint, usage, self.model)
            if not final:
                cost = self._at_least(cost, usage, written)
            elif named:
                asked, lesson = self._asked, written.learnable_text_bytes(usage.reasoning)
                names = {asked.model, self.model}
                self._meter.learn_usage(names, asked.body_bytes, usage, lesson, elsewhere=asked.reads_beyond_body)
            self._spend(cost if named else Cost(cost.nanos, cost.nanos))
        elif self._asked.fixed_cost is not None or self.endpoint == "images":
            self._spend(self._guess(self._asked.output_tokens))
        else:
            self._spend(self._meter.estimate_written_cost(self.endpoint, self.model, self._asked.input_tokens, written))
        self._hold.release()

    def release(self) -> None:
        """The call is over: what is still reserved was not spent."""
        if self.deferred:
            return
        self.closed = True
        self._hold.release()

    def _read_again(self) -> None:
        """Estimate anew what is asked for, now that more of the body has passed."""
        if self._scanned_body is not None and self.request is not None:
            if self.request.model is None:
                self.request = replace(self.request, model=model_name(self._scanned_body.members().get("model")))
            self._asked = self._meter.estimate_request(self.endpoint, self.request, self._scanned_body)
            self.model = self._asked.model

    def _at_least(self, told: Cost, usage: Usage, written: OutputSize) -> Cost:
        tokens, details = self._meter.written_tokens(self.endpoint, self.model, written), usage.details
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
        if self._asked.fixed_cost is not None:
            return self._asked.fixed_cost
        return self._meter.estimate_cost(self.endpoint, self.model, self._asked.input_tokens, output_tokens)

    def _spend(self, cost: Cost) -> None:
        if cost.nanos:
            self.cost += cost.nanos
            self.estimated += cost.estimated
            self._hold.spend(cost.nanos)
            self._meter.count_cost(self.model, cost)


FIRST_GUESS = 1_000  # tokens of an answer, until the model's own are known
UNTOLD = 4 * 1024 * 1024  # bytes that an upload may have whose length is not told
MOST_PICTURES, PICTURE, PICTURE_BYTES = 16, 6_500, 1024 * 1024  # in one call; tokens of one, in high fidelity; its size
HEARD = 4  # tokens of sound for one of the text that is made of it: 17 a second, of 3 to 4 words
UNREAD = 200_000  # tokens of a body that was too large to be read: that is pictures, and their bytes are no text
ANSWERED = 500  # names of deployments that are remembered


class UpstreamBilling:
    """`now` is the wall clock."""

    def __init__(
        self,
        name: str,
        policy: schema.Upstream,
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
        self._estimator = TokenEstimator()
        self.ids = IdGenerator()
        self._seen: dict[str, str] = {}  # endpoint → the model of the last call that named one
        self._answered: OrderedDict[str, str] = OrderedDict()  # names without a price → the model behind them
        self._projection = SpendForecast(now)
        self.limits = SpendLimits(policy.cap, now=now, on_warn=on_warn)

    @property
    def metered(self) -> bool:
        return self._policy.kind != "http"

    def reconfigure(self, policy: schema.Upstream) -> bool:
        """Take a policy; True where the counts must be loaded from the ledger again."""
        self._policy = policy
        self._tariffs = _tariffs(policy)
        return self.limits.reconfigure(policy.cap)

    def label(self, model: str | None) -> str:
        """The model as a metric's label, of which there is an end, whatever names come from outside."""
        return (self._tariffs.model_label(model) if model is not None else None) or OTHER_LABEL

    def has_price(self, model: str | None) -> bool:
        return model is not None and self._tariffs.has_price(model)

    def open_charge(
        self, endpoint: str | None, request: RequestInfo, body: Body, *, user: str, tier: str, started_at: float
    ) -> Charge | None:
        """The charge of one call, with what it may cost reserved; None if the call has no price (files, models).

        `started_at` is the wall clock's. Raises CallRefused if a cap would be passed, or if a model has no price and
        must have one.
        """
        if endpoint is None or not self.metered:
            return None
        asked = self.estimate_request(endpoint, request, body)
        if asked.names_model and self._tariffs.refuses_model(asked.model):
            raise error_response.unknown_price(self.name, asked.model or "")
        reserve = asked.fixed_cost
        if reserve is None:
            reserve = self.estimate_cost(endpoint, asked.model, asked.input_tokens, asked.output_tokens)
        hold = self.limits.reservation(user, tier, started_at)
        try:
            return Charge(
                self,
                hold,
                endpoint=endpoint,
                asked=asked,
                reserve=reserve.nanos,
                request=request,
                scanned_body=body if body.is_scanned else None,
            )
        except CapReached as reached:
            raise error_response.cost_cap_exceeded(self.name, str(reached)) from reached

    def estimate_request(self, endpoint: str, request: RequestInfo, body: Body) -> CallEstimate:
        """What a request asks for, as far as its body has been read."""
        named = self._priced_as(request.model)
        said = body.members()
        if named is not None:
            self._seen[endpoint] = named
            said = {**said, "model": named}  # where its path names it, the body need not
        model = named or self._seen.get(endpoint)
        size, elsewhere = 0, False  # nothing can be learnt from what was not read
        if body.parsed is not None:
            size, elsewhere = count_text_bytes(said), reads_beyond_body(said)
            sent = self._estimator.input_tokens(model, size, elsewhere=elsewhere)
        else:
            length = max(body.scanned_bytes, UNTOLD) if body.length is None else body.length
            sent = self._input_of_upload(endpoint, model, length)
        fixed = (
            self._tariffs.cost_of_request(endpoint, said, at=self._now()) if named or body.parsed is not None else None
        )
        most = self._most_output(endpoint, request, body, model, said, sent)
        return CallEstimate(model, named is not None, size, sent, most, fixed, elsewhere)

    def _input_of_upload(self, endpoint: str, model: str | None, length: int) -> int:
        if endpoint == "images":
            return min(MOST_PICTURES, 1 + length // PICTURE_BYTES) * PICTURE
        return min(UNREAD, self._estimator.input_tokens(model, length, endpoint=endpoint))

    def reopen_charge(self, row: CallRecord) -> Charge:
        """The bill of a call that began before a restart and whose price is still to come: what was loaded as spent is
        reserved again."""
        bill = Charge(
            self,
            self.restore_reservation(row),
            endpoint="responses",
            asked=CallEstimate(row.model or None, bool(row.model), 0, 0, 0, None, reads_beyond_body=True),
            reserve=row.cost,
            id=row.id,
        )
        bill.defer(row.reference)
        return bill

    def restore_reservation(self, row: CallRecord) -> Reservation:
        hold = self.limits.reservation(row.user, row.tier)
        hold.restore(row.cost, self.limits.window_starts(), row.at)
        return hold

    def check_caps(self, user: str, tier: str) -> None:
        """Of a call whose price will never be seen (a WebSocket): whether any money is left for it at all.

        Raises CallRefused.
        """
        if not self.metered:
            return
        try:
            self.limits.check(self.limits.reservation(user, tier), 1)
        except CapReached as reached:
            raise error_response.cost_cap_exceeded(self.name, str(reached)) from reached

    def priced_model(self, name: str, model: str | None) -> str:
        """What a deployment is priced by: its own name, where that tells anything, before the model that the body
        names, which Azure does not look at."""
        return name if model is None or self.has_price(self._priced_as(name)) or not self.has_price(model) else model

    def learn_alias(self, asked: str | None, model: str | None) -> None:
        """A call for one model was answered under another name: the deployment's model."""
        if asked is None or model is None or asked == model or self.has_price(asked):
            return
        self._answered[asked] = model
        self._answered.move_to_end(asked)
        if len(self._answered) > ANSWERED:
            self._answered.popitem(last=False)

    def _priced_as(self, asked: str | None) -> str | None:
        """Its own name; where that has no price, the one that its last answer gave."""
        if asked is None or asked not in self._answered or self.has_price(asked):
            return asked
        return self._answered[asked]

    # ── prices ───────────────────────────────────────────────────────────────────────────────

    def cost(self, endpoint: str, usage: Usage, model: str | None) -> Cost:
        return self._tariffs.cost(endpoint, usage, model, at=self._now())

    def estimate_cost(self, endpoint: str, model: str | None, input_tokens: int, output_tokens: int) -> Cost:
        return self._tariffs.estimate_cost(
            endpoint, model, input_tokens=input_tokens, output_tokens=output_tokens, at=self._now()
        )

    def usual_output_tokens(self, model: str | None) -> int:
        typical = self._estimator.typical_output_tokens(model)
        return FIRST_GUESS if typical is None else typical

    def written_tokens(self, endpoint: str, model: str | None, written: OutputSize) -> int:
        """Tokens of what was written, by all that can be known of it."""
        if endpoint not in TEXT and endpoint != "audio":
            return 0
        text = self._estimator.output_tokens(model, written.text_bytes)
        thought = self._estimator.output_tokens(model, written.reasoning_bytes)
        if written.text_bytes:  # what it says was thought over before, shown or not
            thought = max(thought, self._estimator.usual_reasoning_tokens(model))
        return text + thought + written.other_tokens + written.audio_tokens + written.image_tokens

    def estimate_written_cost(self, endpoint: str, model: str | None, input_tokens: int, written: OutputSize) -> Cost:
        """What an answer costs that reports nothing; all of it is an estimate."""
        output = self.written_tokens(endpoint, model, written)
        if not (output and (written.audio_tokens or written.image_tokens)):
            return self.estimate_cost(endpoint, model, input_tokens, output)
        kinds = {"audio_tokens": written.audio_tokens, "image_tokens": written.image_tokens}
        usage = Usage(input_tokens, 0, output, 0, model, {"completion_tokens_details": kinds})
        if endpoint == "responses" and written.image_tokens:  # a tool's, which draws with a model of its own
            own = replace(usage, output=output - written.image_tokens, details={})
            drawn = {"output_tokens_details": {"image_tokens": written.image_tokens}, "guessed": True}
            usage = replace(
                own, parts=(own, Usage(0, 0, written.image_tokens, 0, written.image_model, drawn, endpoint="images"))
            )
        nanos = self.cost(endpoint, usage, model).nanos
        return Cost(nanos, nanos)

    def learn_usage(
        self, models: Iterable[str | None], body_bytes: int, usage: Usage, text_bytes: int, *, elsewhere: bool
    ) -> None:
        """Under each of the names that the model has: the one that was asked for is often an alias."""
        for model in models:
            self._estimator.learn(
                model, body_bytes=body_bytes, usage=usage, text_bytes=text_bytes or None, elsewhere=elsewhere
            )

    def projected_today(self) -> int:
        """Nano-dollars that today will have cost at its end, at the pace of the last hour."""
        end = self.limits.calendar.window("d", self._now())[1]
        return self._projection.total_at(self.limits.spent("d"), end)

    def count_cost(self, model: str | None, cost: Cost) -> None:
        self._projection.add(cost.nanos)
        label = self.label(model)
        for basis, amount in (("reported", cost.nanos - cost.estimated), ("estimated", cost.estimated)):
            if amount:
                self._metrics.cost_usd_total.labels(self.name, label, basis).inc(amount / NANOS)

    def _most_output(
        self, endpoint: str, request: RequestInfo, body: Body, model: str | None, said: Json, sent: int
    ) -> int:
        if endpoint == "images":
            return requested_image_tokens(model, said) * request.choices
        if endpoint == "audio" and body.parsed is None:
            return sent // HEARD
        if endpoint not in TEXT:
            return 0
        most = request.max_tokens
        if most is None:
            worst = self._policy.cap.reserve == "worst"
            most = self._tariffs.max_output_tokens(model) if worst else self.usual_output_tokens(model)
        return max(0, most) * request.choices


def _tariffs(policy: schema.Upstream) -> Pricer:
    return Pricer(policy.kind, policy.base_url, policy.prices, policy.unknown_price)
