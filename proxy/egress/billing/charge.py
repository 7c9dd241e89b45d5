"""The charge of one call at one upstream: what is reserved before it, settled after it, and never given back.

    open_charge() ──► RESERVED ── settle() ──► SETTLED      an answer came, whole or in part
                      │    ▲  └── release() ─► RELEASED     nothing was billed: not sent, or a definite error
                      │    └───── charge_lost_attempt(), then reserve_again() for one more attempt
                      │
                      └─ defer() ─► DEFERRED                the vendor goes on by itself (background_calls.py)
                                    ├── resume(), then settle() or release()
                                    ├── settle_at()         another instance settled it
                                    └── expire()            no answer can show what it came to

| state    | `deferred` | `closed` | what stands against the caps                |
|----------|------------|----------|---------------------------------------------|
| RESERVED | no         | no       | `reserved`, and the `cost` of lost attempts |
| DEFERRED | yes        | no       | `reserved`                                  |
| SETTLED  | no         | yes      | `cost`                                      |
| RELEASED | no         | yes      | the `cost` of lost attempts, mostly 0       |

Before a charge is settled its estimate is made anew if the body was read as it passed (`_amend`): what such a request
asks for is known only behind it.

An attempt that was sent and ended without a definite error (it timed out, was cancelled, or broke off) is charged at an
estimate, since a vendor bills an answer that nobody waited for; a definite error is not billed, so it is released.
Whoever opens a charge releases it in a `finally`: a release after a settlement does nothing.

Money is in whole nano-dollars (1e-9 $), never a float.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy.egress import error_response
from proxy.egress.billing.forecast import SpendForecast
from proxy.egress.billing.pricing.pricer import Pricer
from proxy.egress.billing.pricing.rates import Cost
from proxy.egress.billing.shared_caps import reserve_with_slices
from proxy.egress.billing.spend_account import CapReached
from proxy.egress.billing.spend_limits import Reservation, SliceNeeded, SpendLimits, Warn
from proxy.egress.billing.token_estimator import TokenEstimator, count_text_bytes
from proxy.egress.billing.vendor_context import reads_beyond_body
from proxy.egress.body import Body
from proxy.egress.dialects import OutputSize, RequestInfo, Usage
from proxy.egress.dialects.base import Json, model_name
from proxy.egress.dialects.image_tokens import requested_image_tokens
from proxy.errors import CallRefused
from proxy.observe.metric_family import OTHER_LABEL
from proxy.observe.metrics import Metrics
from proxy.observe.request_ids import IdGenerator
from proxy.policy import schema
from proxy.store.escrow_sync import Escrow
from proxy.units import NANOS

if TYPE_CHECKING:
    from proxy.ledger.record import CallRecord

# Endpoints whose answers are written text.
TEXT_ENDPOINTS = frozenset(("chat", "responses", "compact", "decisions", "completions", "messages"))
DEFAULT_OUTPUT_TOKENS = 1_000  # of an answer, until the model's own are known
UNKNOWN_UPLOAD_BYTES = 4 * 1024 * 1024  # of an upload without a length
MAX_UPLOADED_IMAGES = 16  # in one call
UPLOADED_IMAGE_TOKENS, UPLOADED_IMAGE_BYTES = 6_500, 1024 * 1024  # of one image, in high fidelity
AUDIO_TOKENS_PER_TEXT_TOKEN = 4  # of a transcript: 17 tokens of sound a second, in which 3 to 4 words are said
MAX_UNREAD_INPUT_TOKENS = 200_000  # of a body too large to be parsed: most of it is images, not text
MAX_ALIASES = 500  # names of deployments that are remembered


@dataclass(slots=True)  # not frozen, see RequestInfo
class CallEstimate:
    """What a call asks for, as far as it is known.

    model: the name to price it by; None if none is known
    names_model: whether the call said which model; else `model` is that of the call before it
    body_bytes: bytes of text in the body; 0 if it was not read
    input_tokens, output_tokens: estimates, the output the most that is expected
    fixed_cost: what the call costs whatever the answer is, for endpoints whose answers have no usage
    reads_beyond_body: the model reads more than the body has, so the body's length says little (vendor_context.py)
    """

    model: str | None
    names_model: bool
    body_bytes: int
    input_tokens: int
    output_tokens: int
    fixed_cost: Cost | None
    reads_beyond_body: bool


class Charge:
    """One upstream's part of a call.

    cost: nano-dollars that were spent so far; final once `closed`
    estimated: the part of `cost` that rests on an estimate
    reserved: nano-dollars that one attempt reserves
    closed: the cost will not change any more
    deferred: the price comes later, whatever becomes of this call
    reference: the vendor's id of what it goes on with, if `deferred`; else ""
    id: the id of the call's record in the ledger
    """

    __slots__ = (
        "_billing",
        "_estimate",
        "_reservation",
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
        billing: UpstreamBilling,
        reservation: Reservation,
        *,
        endpoint: str,
        estimate: CallEstimate,
        reserve: int,
        request: RequestInfo | None = None,
        scanned_body: Body | None = None,
        id: str | None = None,
    ) -> None:
        """`scanned_body`: one that is read as it passes, so what it asks for (`request`) is known only behind it. `id`:
        of a call that began before a restart, for which `reservation` reserves already. Raises CapReached."""
        self._billing = billing
        self._reservation = reservation
        self._estimate = estimate
        self._scanned_body = scanned_body
        self.endpoint = endpoint
        self.request = request
        self.id = id or billing.new_call_id()
        self.upstream = billing.name
        self.model = estimate.model
        self.cost = 0
        self.estimated = 0
        self.closed = False
        self.reference = ""
        self.deferred = False
        self.reserved = reserve
        # A reopened charge has its money in the windows already: it was loaded from the ledger and restored.
        if id is None:
            reservation.reserve(reserve)

    @property
    def input_tokens(self) -> int:
        """The estimated tokens of the request."""
        return self._estimate.input_tokens

    # ── while the call is under way ──────────────────────────────────────────────────────────

    def charge_lost_attempt(self) -> None:
        """Charge an attempt that was sent and of which nobody knows what became.

        The charge stays open: `reserve_again` may follow.
        """
        # Background calls have nothing to lose here: the vendor goes on, whatever became of this connection.
        if self.deferred:
            return
        self._amend()
        output = self._estimate.output_tokens
        if self.endpoint in TEXT_ENDPOINTS:
            # What was reserved may be the worst case (`cap.reserve: worst`); a lost attempt most likely cost a usual
            # answer.
            output = min(output, self._billing.usual_output_tokens(self.model))
        guess = self._expected_cost(output)
        self._add_cost(Cost(guess.nanos, guess.nanos))
        self._reservation.release()

    async def reserve_again(self) -> bool:
        """Reserve one more attempt; whether it is within the caps."""
        try:
            try:
                self._reservation.reserve(self.reserved)
            except SliceNeeded as needed:
                await reserve_with_slices(needed, lambda: self._reservation.reserve(self.reserved))
        except (CapReached, CallRefused):
            return False
        return True

    def settle(self, usage: Usage | None, output_size: OutputSize, *, final: bool = True) -> None:
        """Charge an answer that came whole or in part: by the usage that it reports, else by what was written.

        `final`: the usage covers all of the answer; if not, it is charged no less than what was written costs.
        """
        if self.closed or self.deferred:
            return
        self.closed = True
        self._amend()
        estimate = self._estimate
        if usage is not None:
            model_is_known = estimate.names_model or usage.model is not None
            # The name is learnt from every answer, also from a partial one; tokens only from a whole one, below.
            self._billing.learn_alias(self.model, usage.model)
            self.model = usage.model or self.model
            cost = self._billing.cost(self.endpoint, usage, self.model)
            if not final:
                cost = self._at_least_written(cost, usage, output_size)
            elif model_is_known:
                self._billing.learn_usage(
                    {estimate.model, self.model},
                    estimate.body_bytes,
                    usage,
                    output_size.learnable_text_bytes(usage.reasoning),
                    reads_beyond_body=estimate.reads_beyond_body,
                )
            self._add_cost(cost if model_is_known else Cost(cost.nanos, cost.nanos))
        elif estimate.fixed_cost is not None or self.endpoint == "images":
            self._add_cost(self._expected_cost(estimate.output_tokens))
        else:
            self._add_cost(self._written_cost(output_size))
        self._reservation.release()

    def release(self) -> None:
        """End the charge: what is still reserved was not spent. After a settlement this does nothing."""
        if self.deferred:
            return
        self.closed = True
        self._reservation.release()

    # ── after the call, if the vendor goes on with it ────────────────────────────────────────

    def defer(self, reference: str) -> None:
        """Keep the reservation until an answer shows what the call came to."""
        self.reference = reference
        self.deferred = True

    def resume(self) -> None:
        """Its final answer has come: `settle` or `release` follows."""
        self.deferred = False

    def settle_at(self, cost: int) -> None:
        """Settle at a cost in nano-dollars that is on record already: another instance's settlement."""
        self.deferred, self.closed, self.cost = False, True, cost
        self._reservation.settle_elsewhere(cost)
        self._reservation.release()

    def expire(self, output_size: OutputSize) -> None:
        """No answer can show what the call came to: charge what was reserved, or what was written if that is more."""
        self.deferred, self.closed = False, True
        amount = max(self._written_cost(output_size).nanos, self.reserved)
        self._add_cost(Cost(amount, amount))
        self._reservation.release()

    def move_to(self, reservation: Reservation) -> None:
        """Take over a reservation that was restored from the ledger, in windows that were counted anew."""
        self._reservation = reservation

    # ── what it comes to ─────────────────────────────────────────────────────────────────────

    def _amend(self) -> None:
        """Estimate anew what is asked for, now that more of the body has passed."""
        if self._scanned_body is not None and self.request is not None:
            # A form or a large body may name its model only near its end.
            if self.request.model is None:
                self.request = replace(self.request, model=model_name(self._scanned_body.members().get("model")))
            self._estimate = self._billing.estimate_request(self.endpoint, self.request, self._scanned_body)
            self.model = self._estimate.model

    def _at_least_written(self, reported: Cost, usage: Usage, output_size: OutputSize) -> Cost:
        """The reported cost, and on top of it the output that was written beyond the reported tokens."""
        tokens, details = self._billing.written_tokens(self.endpoint, self.model, output_size), usage.details
        if self.endpoint == "images":  # all that was asked for: an image that is not shown yet may have been drawn
            tokens = self._estimate.output_tokens
            details = {key: value for key, value in details.items() if key != "output_tokens_details"}
        # The report already covers more than was seen, so it is taken as it is.
        if tokens <= usage.output:
            return reported
        own = replace(usage, parts=())
        whole = replace(own, output=tokens, details=details)
        reported_part = self._billing.cost(self.endpoint, own, self.model).nanos
        more = max(0, self._billing.cost(self.endpoint, whole, self.model).nanos - reported_part)
        return Cost(reported.nanos + more, reported.estimated + more)

    def _expected_cost(self, output_tokens: int) -> Cost:
        if self._estimate.fixed_cost is not None:
            return self._estimate.fixed_cost
        return self._billing.estimate_cost(self.endpoint, self.model, self._estimate.input_tokens, output_tokens)

    def _written_cost(self, output_size: OutputSize) -> Cost:
        return self._billing.estimate_written_cost(self.endpoint, self.model, self._estimate.input_tokens, output_size)

    def _add_cost(self, cost: Cost) -> None:
        if cost.nanos:
            self.cost += cost.nanos
            self.estimated += cost.estimated
            self._reservation.spend(cost.nanos)
            self._billing.count_cost(self.model, cost)


class UpstreamBilling:
    """The money of one upstream: its prices, its caps, and what has been learnt to estimate its calls.

    name: the upstream's
    limits: its caps, and what was spent and is reserved
    `now` is the wall clock.
    """

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
        self._pricer = _make_pricer(policy)
        self._estimator = TokenEstimator()
        self._ids = IdGenerator()
        self._tag = ""
        self._last_models: dict[str, str] = {}  # endpoint → the model of the last call that named one
        self._aliases: OrderedDict[str, str] = OrderedDict()  # names without a price → the model that answered
        self._forecast = SpendForecast(now)
        self.limits = SpendLimits(policy.cap, now=now, on_warn=on_warn)

    @property
    def metered(self) -> bool:
        """Whether calls of this upstream have a price at all."""
        return self._policy.kind != "http"

    def reconfigure(self, policy: schema.Upstream) -> bool:
        """Take a policy. True if the counts must be loaded from the ledger again."""
        self._policy = policy
        self._pricer = _make_pricer(policy)
        return self.limits.reconfigure(policy.cap)

    # ── charges ──────────────────────────────────────────────────────────────────────────────

    def open_charge(
        self, endpoint: str | None, request: RequestInfo, body: Body, *, user: str, tier: str, started_at: float
    ) -> Charge | None:
        """The charge of one call, with what it may cost reserved; None if the call has no price (files, models).

        `started_at` is the wall clock's. Raises CallRefused if a cap would be passed, or if a model has no price and
        must have one; SliceNeeded if it fits into no slice of a cap that several instances hold.
        """
        if endpoint is None or not self.metered:
            return None
        estimate = self.estimate_request(endpoint, request, body)
        # A guessed model never refuses a call: only a name that the call itself gives can be without a price.
        if estimate.names_model and self._pricer.refuses_model(estimate.model):
            raise error_response.unknown_price(self.name, estimate.model or "")
        cost = estimate.fixed_cost
        if cost is None:
            cost = self.estimate_cost(endpoint, estimate.model, estimate.input_tokens, estimate.output_tokens)
        try:
            return Charge(
                self,
                self.limits.reservation(user, tier, started_at),
                endpoint=endpoint,
                estimate=estimate,
                reserve=cost.nanos,
                request=request,
                scanned_body=body if body.is_scanned else None,
            )
        except CapReached as reached:
            raise error_response.cost_cap_exceeded(self.name, str(reached)) from reached

    def reopen_charge(self, record: CallRecord) -> Charge:
        """The deferred charge of a call that began before a restart, reserved again at what its record says."""
        charge = Charge(
            self,
            self.restore_reservation(record),
            endpoint="responses",
            estimate=CallEstimate(record.model or None, bool(record.model), 0, 0, 0, None, reads_beyond_body=True),
            reserve=record.cost,
            id=record.id,
        )
        charge.defer(record.reference)
        return charge

    def restore_reservation(self, record: CallRecord) -> Reservation:
        """Reserve again what was loaded from the ledger as spent, though the call is still open."""
        reservation = self.limits.reservation(record.user, record.tier)
        reservation.restore(record.cost, self.limits.accounts.window_starts(), record.at)
        return reservation

    async def check_caps(self, user: str, tier: str) -> None:
        """For a call whose price nobody will see (a WebSocket): whether any money is left for it at all.

        Raises CallRefused.
        """
        if not self.metered:
            return
        reservation = self.limits.reservation(user, tier)
        try:
            try:
                self.limits.check(reservation, 1)
            except SliceNeeded as needed:
                await reserve_with_slices(needed, lambda: self.limits.check(reservation, 1))
        except CapReached as reached:
            raise error_response.cost_cap_exceeded(self.name, str(reached)) from reached

    def share(self, escrow: Escrow, tag: str) -> None:
        """Hold the caps together with other instances; `tag` begins the ids of this one's calls in the ledger."""
        self._tag = tag
        self.limits.share(self.name, escrow)

    def new_call_id(self) -> str:
        """32 hexadecimal digits, of which the first tell which instance made the call if there are several."""
        return self._tag + self._ids.new_token()[len(self._tag) :]

    def count_cost(self, model: str | None, cost: Cost) -> None:
        """Count what a charge added in the metrics and the forecast."""
        self._forecast.add(cost.nanos)
        label = self.label(model)
        for basis, amount in (("reported", cost.nanos - cost.estimated), ("estimated", cost.estimated)):
            if amount:
                self._metrics.cost_usd_total.labels(self.name, label, basis).inc(amount / NANOS)

    def projected_today(self) -> int:
        """Nano-dollars that today will have cost at its end, at the pace of the last hour."""
        end = self.limits.accounts.calendar.window("d", self._now())[1]
        return self._forecast.total_at(self.limits.spent("d"), end)

    # ── names of models ──────────────────────────────────────────────────────────────────────

    def label(self, model: str | None) -> str:
        """The model as a metric's label: of those there is a bounded number, whatever names come from outside."""
        return (self._pricer.model_label(model) if model is not None else None) or OTHER_LABEL

    def has_price(self, model: str | None) -> bool:
        return model is not None and self._pricer.has_price(model)

    def priced_model(self, deployment: str, model: str | None) -> str:
        """The name to price a deployment's call by.

        The deployment's own name goes before the model that the body names, which Azure does not look at, unless only
        the latter says anything.
        """
        if model is None or self.has_price(self._resolve_alias(deployment)) or not self.has_price(model):
            return deployment
        return model

    def learn_alias(self, asked: str | None, answered: str | None) -> None:
        """Remember the model that answered a call for a name without a price: the one behind a deployment."""
        if asked is None or answered is None or asked == answered or self.has_price(asked):
            return
        self._aliases[asked] = answered
        self._aliases.move_to_end(asked)
        if len(self._aliases) > MAX_ALIASES:
            self._aliases.popitem(last=False)

    def _resolve_alias(self, asked: str | None) -> str | None:
        if asked is None or asked not in self._aliases or self.has_price(asked):
            return asked
        return self._aliases[asked]

    # ── estimates before a call ──────────────────────────────────────────────────────────────

    def estimate_request(self, endpoint: str, request: RequestInfo, body: Body) -> CallEstimate:
        """What a request asks for, as far as its body has been read."""
        # Azure answers for a deployment's name with the model behind it: from the second call on that one's price is
        # known.
        named = self._resolve_alias(request.model)
        members = body.members()
        if named is not None:
            self._last_models[endpoint] = named
            if members.get("model") != named:
                members = {**members, "model": named}  # if the path names the model, the body need not
        model = named or self._last_models.get(endpoint)
        body_bytes, beyond_body = 0, False  # nothing can be learnt from a body that was not read
        if body.parsed is not None:
            body_bytes, beyond_body = count_text_bytes(members), reads_beyond_body(members)
            input_tokens = self._estimator.input_tokens(model, body_bytes, reads_beyond_body=beyond_body)
        else:
            # A body without a length (chunked) is reserved as a large one, and settled by what has passed.
            length = max(body.scanned_bytes, UNKNOWN_UPLOAD_BYTES) if body.length is None else body.length
            input_tokens = self._upload_tokens(endpoint, model, length)
        fixed_cost = None
        if endpoint not in TEXT_ENDPOINTS and (named or body.parsed is not None):
            fixed_cost = self._pricer.cost_of_request(endpoint, members, at=self._now())
        output_tokens = self._max_output_tokens(endpoint, request, body, model, members, input_tokens)
        return CallEstimate(model, named is not None, body_bytes, input_tokens, output_tokens, fixed_cost, beyond_body)

    def _upload_tokens(self, endpoint: str, model: str | None, length: int) -> int:
        if endpoint == "images":
            return min(MAX_UPLOADED_IMAGES, 1 + length // UPLOADED_IMAGE_BYTES) * UPLOADED_IMAGE_TOKENS
        return min(MAX_UNREAD_INPUT_TOKENS, self._estimator.input_tokens(model, length, endpoint=endpoint))

    def _max_output_tokens(
        self, endpoint: str, request: RequestInfo, body: Body, model: str | None, members: Json, input_tokens: int
    ) -> int:
        if endpoint == "images":
            return requested_image_tokens(model, members) * request.choices
        if endpoint == "audio" and body.parsed is None:
            return input_tokens // AUDIO_TOKENS_PER_TEXT_TOKEN
        if endpoint not in TEXT_ENDPOINTS:
            return 0
        tokens = request.max_tokens
        if tokens is None:
            worst = self._policy.cap.reserve == "worst"
            tokens = self._pricer.max_output_tokens(model) if worst else self.usual_output_tokens(model)
        return max(0, tokens) * request.choices

    def usual_output_tokens(self, model: str | None) -> int:
        typical = self._estimator.typical_output_tokens(model)
        return DEFAULT_OUTPUT_TOKENS if typical is None else typical

    def estimate_cost(self, endpoint: str, model: str | None, input_tokens: int, output_tokens: int) -> Cost:
        return self._pricer.estimate_cost(
            endpoint, model, input_tokens=input_tokens, output_tokens=output_tokens, at=self._now()
        )

    # ── costs after a call ───────────────────────────────────────────────────────────────────

    def cost(self, endpoint: str, usage: Usage, model: str | None) -> Cost:
        """What the reported usage costs."""
        return self._pricer.cost(endpoint, usage, model, at=self._now())

    def written_tokens(self, endpoint: str, model: str | None, output_size: OutputSize) -> int:
        """The tokens of what was written, by all that is known about the model."""
        if endpoint not in TEXT_ENDPOINTS and endpoint != "audio":
            return 0
        text = self._estimator.output_tokens(model, output_size.text_bytes)
        reasoning = self._estimator.output_tokens(model, output_size.reasoning_bytes)
        if output_size.text_bytes:  # before its text, a model has reasoned, whether that is shown or not
            reasoning = max(reasoning, self._estimator.usual_reasoning_tokens(model))
        other = output_size.other_tokens + output_size.audio_tokens + output_size.image_tokens
        return text + reasoning + other

    def estimate_written_cost(
        self, endpoint: str, model: str | None, input_tokens: int, output_size: OutputSize
    ) -> Cost:
        """What an answer costs that reports no usage; all of it is an estimate."""
        output = self.written_tokens(endpoint, model, output_size)
        audio, images = output_size.audio_tokens, output_size.image_tokens
        if not (output and (audio or images)):
            return self.estimate_cost(endpoint, model, input_tokens, output)
        details = {"completion_tokens_details": {"audio_tokens": audio, "image_tokens": images}}
        usage = Usage(input_tokens, 0, output, 0, model, details)
        if endpoint == "responses" and images:  # a tool's, which draws with a model of its own
            own = replace(usage, output=output - images, details={})
            drawn = {"output_tokens_details": {"image_tokens": images}, "guessed": True}
            tool = Usage(0, 0, images, 0, output_size.image_model, drawn, endpoint="images")
            usage = replace(own, parts=(own, tool))
        nanos = self.cost(endpoint, usage, model).nanos
        return Cost(nanos, nanos)

    def learn_usage(
        self, models: Iterable[str | None], body_bytes: int, usage: Usage, text_bytes: int, *, reads_beyond_body: bool
    ) -> None:
        """Learn from a reported usage, under each name of the model: the one that was asked for is often an alias."""
        for model in models:
            self._estimator.learn(
                model,
                body_bytes=body_bytes,
                usage=usage,
                text_bytes=text_bytes or None,
                reads_beyond_body=reads_beyond_body,
            )


def _make_pricer(policy: schema.Upstream) -> Pricer:
    return Pricer(policy.kind, policy.base_url, policy.prices, policy.unknown_price)
