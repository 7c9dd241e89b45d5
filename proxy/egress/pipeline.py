"""The life of a call out, from its head to the line in the log.

`handle_call` is that life as the app sees it: whose call → what is asked → the cache, or a call in flight → an answer →
its end. `_call_upstream` is the part of it at one upstream: reserve money → throttle → attempts within one deadline →
relay → settle. It returns what it failed with as long as the app has seen nothing, and then `_fall_back` tries what the
policy names instead.

Every exit of the two, cancellation included, passes through one `finally` each. Money that was reserved is released
there if nothing was sent or the upstream refused it; it was settled before, at the estimate, if bytes were sent and no
definite answer came, since a vendor bills an answer that nobody waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from proxy.egress import error_response
from proxy.egress.accounting import CallAccounting
from proxy.egress.api_keys import VirtualKeys, key_variable
from proxy.egress.app_response import AppResponse, ResponseHead, ResponseWriter
from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.billing.spend_limits import SliceNeeded
from proxy.egress.body import make_scanner, read_body
from proxy.egress.cache import CachedResponse, cache_key
from proxy.egress.call import Call
from proxy.egress.circuit_breaker import OPEN, Admission, Breaker
from proxy.egress.coalescing import SharedCall
from proxy.egress.deadline import PATIENCE_HEADER, Deadline, parse_patience
from proxy.egress.dialects import UNBILLED_STATUSES, BackgroundStatus, OutputSize, Usage
from proxy.egress.fallback import canned_answer, fallback_steps, redirect_call, step_name
from proxy.egress.headers import fields, outgoing, returning, shared, token_of
from proxy.egress.response_head import (
    outrigger_fields,
    refusal_response,
    refuse_unknown_upstream,
    response_head,
    shared_fields,
)
from proxy.egress.retry import send_attempts
from proxy.egress.shared_cache import SharedCallCache
from proxy.egress.stream import OnShown, RecordingWriter, relay_body, write_to_app
from proxy.egress.throttle import ThrottlePermit, ThrottleRefusal
from proxy.egress.upstream import Upstream
from proxy.egress.upstream_response import UpstreamResponse
from proxy.egress.url_mapping import split_target
from proxy.egress.websocket import relay_websocket
from proxy.errors import AttemptFailed, CallRefused, OutriggerError, Refusal
from proxy.http.client_connection import ClientConnection
from proxy.http.messages import IncomingRequest
from proxy.observe.emit import EmitEvent
from proxy.observe.request_registry import RequestRegistry
from proxy.policy.schema import Fallback, TierMatcher
from proxy.util.user_names import normalize_user_name

LAST_WORDS_TIMEOUT = 5.0  # seconds that an error event has to reach an app that reads slowly
FAILURE_CODES = ("upstream_timeout", "upstream_unreachable", "gateway_fault")  # refusals that count as errors
# Whole error answers that a fallback may mend, beside those of 500 and above.
MENDABLE_STATUSES = (408, 409, 429)

Failure = UpstreamResponse | CallRefused  # what a call failed with before the app saw any of it


class StreamBroken(OutriggerError):
    """The answer broke off after its first byte, and the app was told in its own dialect."""


class Pipeline:
    """Serves the calls of the app, each by `handle_call`.

    Attributes:
        upstreams: those of the policy in force, by name; it is read anew as each call begins.
        tiers: finds the tier of a user whom only the body of a call names; a reload replaces it.

    `now` is the wall clock, in seconds since 1970. Durations and deadlines go by the loop's clock.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        *,
        requests: RequestRegistry,
        keys: VirtualKeys,
        accounting: CallAccounting,
        ledger: CallLedger,
        emit: EmitEvent,
        now: Callable[[], float] = time.time,
        shared_cache: SharedCallCache | None = None,
    ) -> None:
        """`shared_cache`: if instances share a store."""
        self.upstreams = upstreams
        self.tiers = TierMatcher(())
        self._requests = requests
        self._keys = keys
        self._accounting = accounting
        self._ledger = ledger
        self._emit = emit
        self._now = now
        self._shared_cache = shared_cache
        self._clock = asyncio.get_running_loop().time

    async def handle_call(self, connection: ClientConnection, request: IncomingRequest, app: AppResponse) -> None:
        """Serve one call of the app's, to its end; the listener writes what is left of the answer then."""
        name, rest = split_target(request.target)
        upstream = self.upstreams.get(name)
        if upstream is None:
            shown = self._accounting.redact(f"/{name}")[1:]
            app.set_whole(*refuse_unknown_upstream(request.method, shown, self.upstreams, self._emit))
            return
        received = request.headers
        call = Call(upstream, request.method, rest, outgoing(request.raw_headers), self._clock(), self._now())
        call.ask = upstream.dialect.parse_request(None, None)
        self._identify_owner(call, received)
        # What these three begin, the `finally` below ends; nothing in between waits or fails.
        self._accounting.begin_call(call)
        upstream.begin_call()
        unregister = self._cancel_with_request(call)
        try:
            if upstream.policy.api_key is not None:
                self._put_in_real_key(call, upstream.policy.api_key)
            deadline = self._make_deadline(call, received)
            try:
                async with deadline:
                    if request.upgrade is not None and request.upgrade.lower() == "websocket":
                        # What passes a WebSocket is not read, so not charged: only a cap already reached stops it.
                        await self._ledger.load_spend(call)
                        await upstream.billing.check_caps(call.user, call.tier)
                        await relay_websocket(call, connection, request.upgrade, app, deadline)
                        return
                    await self._read_question(call, connection, request)
                    call.cache_key = self._cache_key(call)
                    if call.cache_key is not None:
                        call.cache = "miss"
                    call.writer, call.deadline = app, deadline
                    cached = self._find_cached(call)
                    if cached is not None:
                        await self._answer_from_cache(call, cached)
                    elif call.cache_key is not None and upstream.policy.coalesce:
                        await self._join_shared_call(call, call.cache_key, app, deadline)
                    else:
                        await self._answer_unless_kept(call)
            # It comes out of the deadline's context, which turns its own cancellation into it.
            except TimeoutError:
                await self._answer_too_late(call, app, deadline)
        except CallRefused as refusal:
            if not app.started:
                self._refuse(call, refusal, app)
                return
            app.abort()  # of a shared call: what came before has gone to the app
            call.outcome, call.reason = "error", str(refusal)
        except Refusal as unreadable:  # the rest of its body is no sound HTTP
            call.outcome, call.reason = "refused", str(unreadable)
            app.abort()
        except ConnectionError:  # the app is gone
            app.abort()
        except Exception as error:  # the outermost seam: a fault of ours is one call's, not the process's
            call.outcome, call.reason = "error", f"{type(error).__name__}: {error}"
            self._emit("fault", call.reason, level="error", upstream=name)
            if not app.started:
                self._refuse(call, error_response.gateway_fault(), app)
                return
            app.abort()
        finally:
            unregister()
            self._accounting.end_call(call)
            upstream.end_call()

    # ── whose call it is, and what it asks for ───────────────────────────────────────────────

    def _identify_owner(self, call: Call, received: Mapping[str, str]) -> None:
        """Find the request that the call came from, by the token that the app's Python carries along."""
        token = received.get("X-Outrigger-Request") or token_of(received.get("tracestate"))
        call.owner = self._requests.find(token)
        if call.owner is not None:
            call.user, call.tier = call.owner.user, call.owner.tier
        # The OpenAI and Anthropic SDKs, which Stainless generates, number their attempts from 0.
        count = received.get("x-stainless-retry-count")
        call.is_sdk_retry = count is not None and count.strip() not in ("", "0")

    def _cancel_with_request(self, call: Call) -> Callable[[], None]:
        """Have this call end with its request, if its route says so; the function returned takes that back."""
        owner = call.owner
        if owner is None or owner.request is None or owner.request.time_left(0.0) is None:
            return _do_nothing
        task = asyncio.current_task()
        assert task is not None
        return self._requests.register_work(owner.token, task.cancel)

    def _put_in_real_key(self, call: Call, api_key: str) -> None:
        """Raises CallRefused if the call does not show the key that the app was given in the real one's place."""
        name, kind = call.upstream.name, call.upstream.policy.kind
        changed = self._keys.inject(self._keys.key_for(kind, name), api_key, call.rest, call.fields)
        if changed is None:
            raise error_response.invalid_api_key(name, key_variable(kind, name))
        call.target, call.fields = changed

    def _make_deadline(self, call: Call, received: Mapping[str, str]) -> Deadline:
        total = call.upstream.policy.timeout.total
        request = call.owner.request if call.owner is not None else None
        left = request.time_left(call.began) if request is not None else None
        # A request without a limit of its own has infinite time left; then the upstream's limit holds.
        shorter = left is not None and left != float("inf") and (total is None or left < total)
        patience = parse_patience(received.get(PATIENCE_HEADER))
        deadline = Deadline(call.began, total=left if shorter else total, patience=patience)
        if shorter and deadline.reason == "total":
            deadline.reason = "request"
        return deadline

    async def _read_question(self, call: Call, connection: ClientConnection, request: IncomingRequest) -> None:
        """Read what is asked: the body, the endpoint, the model, the user that the body names."""
        upstream = call.upstream
        # Without it the app would wait before it sends its body (RFC 9110 section 10.1.1).
        if connection.awaits_continue:
            connection.write_continue(b"HTTP/1.1 100 Continue\r\n\r\n")
        call.endpoint, deployment = upstream.find_endpoint(call.method, call.rest)
        if call.endpoint is None:
            call.followed = upstream.find_followed(call.method, call.rest)
        source = None if request.body.at_eof() else request.body
        stated = request.headers.get("Content-Length")
        length = int(stated) if stated is not None and stated.isdigit() else None
        uploads = request.headers.get("Content-Type", "").lower().startswith("multipart/")
        scan = partial(make_scanner, request.headers) if call.endpoint is not None else None
        call.body = await read_body(source, length, pass_on=uploads, scan=scan)
        call.is_read = True
        call.body.parse()
        asked = call.body.members() if call.body.content is None else call.body.parsed
        call.ask = upstream.dialect.parse_request(call.endpoint, asked)
        if deployment is not None:
            call.ask = replace(call.ask, model=upstream.billing.priced_model(deployment, call.ask.model))
        # What the body says of the user is a claim of the app's; the request that the call came from is known.
        if call.owner is None and call.ask.user:
            call.user = normalize_user_name(call.ask.user)
            call.tier = self.tiers.match(call.user)

    # ── the cache, and calls in flight ───────────────────────────────────────────────────────

    def _cache_key(self, call: Call) -> bytes | None:
        """None if the answer may not be shared: by the policy, or because the call is no question but an order."""
        upstream, policy = call.upstream, call.upstream.policy
        if not (policy.cache.ttl or policy.coalesce) or call.body.content is None:
            return None
        question = call.endpoint is not None and call.body.parsed is not None
        question = question and upstream.dialect.is_repeatable(call.endpoint or "", call.body.parsed)
        question = question or (policy.kind == "http" and call.method == "GET")
        if not question or (policy.cache.when == "deterministic" and not call.ask.deterministic):
            return None
        return cache_key(
            upstream=upstream.name,
            url=f"{policy.kind} {policy.base_url} {call.target}",
            method=call.method,
            headers=call.fields,
            body=call.body.content,
            scope=call.user if policy.cache.scope == "user" else "",
        )

    def _find_cached(self, call: Call) -> CachedResponse | None:
        if call.cache_key is None or not call.upstream.policy.cache.ttl:
            return None
        return call.upstream.cache.get(call.cache_key)

    async def _answer_from_cache(self, call: Call, cached: CachedResponse) -> None:
        call.cache, call.outcome = "hit", "cached"
        head = ResponseHead(cached.status, "", fields(cached.headers) + outrigger_fields(call))
        await self._write_whole(call, head, cached.body, call.writer)

    async def _answer_unless_kept(self, call: Call, *, fills: bool = False) -> None:
        """Answer with what another instance has kept, else by a call. `fills`: the call is shared, so other instances
        wait for it. Raises CallRefused."""
        tier, key = self._shared_cache, call.cache_key
        if tier is None or key is None or not call.upstream.policy.cache.ttl:
            await self._answer_call(call)
            return
        cached, is_awaited = await tier.find(call, key, fills=fills)
        if cached is not None:
            await self._answer_from_cache(call, cached)
            return
        try:
            await self._answer_call(call)
        finally:
            if is_awaited:
                tier.end_fill(key, kept=call.upstream.cache.get(key) is not None)

    async def _join_shared_call(self, call: Call, key: bytes, app: AppResponse, deadline: Deadline) -> None:
        """Read the answer of a call in flight that asks the same, or begin one that others may join."""
        shared_call = call.upstream.shared_calls.get(key)
        if shared_call is not None:
            call.cache = "coalesced"
        else:
            shared_call = self._start_shared_call(call, key)
        try:
            await self._read_shared_call(call, shared_call, app, deadline)
        except CallRefused as refusal:
            if refusal.code != "cost_cap_exceeded" or call.cache != "coalesced" or app.started:
                raise
            # The call is charged to the one that began it: its user's cap was reached, not this one's.
            call.cache = "miss"
            await self._answer_call(call)

    def _start_shared_call(self, call: Call, key: bytes) -> SharedCall:
        """Begin a task that makes the call for all who join. It may outlive the call that began it, and has the
        upstream's time, not one caller's patience."""
        upstream = call.upstream

        async def work(shared_call: SharedCall) -> None:
            deadline = Deadline(call.began, total=upstream.policy.timeout.total, patience=None)
            call.writer, call.deadline = shared_call, deadline
            try:
                async with deadline:
                    await self._answer_unless_kept(call, fills=True)
            except TimeoutError:
                took = self._clock() - call.began
                raise error_response.upstream_timeout(upstream.name, deadline.reason, took) from None

        def settle(_: asyncio.Task[None]) -> None:
            self._accounting.settle_shared_call(call)
            upstream.end_call()

        # The task counts as a call of its own: a reload must not close the upstream while only the task still reads.
        # It settles in a callback, since a task that is cancelled before its first step runs no `finally`.
        upstream.begin_call()
        call.is_shared = True
        shared_call = upstream.shared_calls.start(key, work)
        shared_call.task.add_done_callback(settle)
        return shared_call

    async def _read_shared_call(
        self, call: Call, shared_call: SharedCall, app: AppResponse, deadline: Deadline
    ) -> None:
        async with shared_call.join() as reader:
            head = await reader.read_head()
            assert isinstance(head, ResponseHead)
            call.first_byte_at = self._clock()
            call.status = head.status
            deadline.commit(None)
            if call.cache == "coalesced":
                head = ResponseHead(
                    head.status, head.reason, shared_fields(head.fields, pays=reader.is_first), head.length
                )
            await app.write_head(head)
            async for data in reader:
                deadline.record_progress()
                await write_to_app(app, deadline, data)
        if call.cache == "coalesced":
            call.outcome = "cached"

    # ── the answer: of the upstream, or what the policy falls back to ────────────────────────

    async def _answer_call(self, call: Call) -> None:
        """Raises CallRefused if there is no answer, and nothing to fall back to."""
        failure = await self._call_upstream(call)
        if failure is not None:
            await self._fall_back(call, failure)

    async def _call_upstream(self, call: Call) -> Failure | None:
        """Make a call at the upstream that it names and relay the answer.

        Returns the failure of a call of which the app has seen nothing, so that something else may answer it; None if
        the app has its answer, be it one that broke off. Raises CallRefused if money or ledger forbid the call.
        """
        upstream = call.upstream
        breaker = upstream.breaker_of(call.endpoint, call.ask.model)
        # Refused before anything is reserved or waited for; `admit` below decides again, after the wait.
        if breaker.state == OPEN:
            return _breaker_refusal(upstream, breaker)
        permit: ThrottlePermit | None = None
        admission: Admission | None = None
        response: UpstreamResponse | None = None
        ok: bool | None = None  # what the breaker learns; None: nothing that says anything of the upstream
        try:
            # In this order: a call that a cap forbids takes no place in the queue, and the breaker has the last
            # word, just before the call is sent.
            await self._reserve_money(call)
            permit = await self._acquire_permit(call)
            admission = breaker.admit()
            if admission is None:
                return _breaker_refusal(upstream, breaker)
            call.admission = admission
            upstream.retry_budget.record_call()
            response = await send_attempts(call)
            # Its connection can serve another call while the app takes the answer.
            if response.body is not None:
                response.release()
            judged = response.judged_status
            if judged >= 400:
                ok = False if judged >= 500 else None
                # The app has seen nothing of it, so a fallback may answer instead.
                if judged >= 500 or judged in MENDABLE_STATUSES:
                    return response
            await self._relay_response(call, response)
            call.outcome = "ok"  # until here it is the app that may be gone
            # That an inference endpoint redirects says nothing of the engine behind it.
            if judged < 400:
                ok = None if response.is_redirect and call.endpoint is not None else True
        except ThrottleRefusal as refusal:
            return error_response.rate_limit_exceeded(upstream.name, refusal.reason, refusal.retry_after)
        except AttemptFailed as failure:
            ok = False
            call.outcome, call.reason = "error", str(failure)
            return error_response.upstream_unreachable(upstream.name, failure, call.attempts, again=call.left_to_caller)
        except StreamBroken as broken:
            ok = False
            call.outcome, call.reason = "error", str(broken)
        except asyncio.CancelledError:
            # The vendor may go on and bill an answer that nobody waits for any more.
            if admission is not None:
                ok = self._judge_cancelled(call, admission)
                if call.charge is not None and not call.charge.closed and call.body.sent:
                    call.charge.charge_lost_attempt()
            raise
        finally:
            if admission is not None:
                self._report_to_breaker(call, admission, ok, response)
            # Without a reported usage the estimate stays in the pace's count.
            if permit is not None:
                permit.release(call.usage.input + call.usage.output if call.usage is not None else None)
            # This does nothing to a charge that was settled above.
            if call.charge is not None:
                call.charge.release()
                call.ask = call.charge.request or call.ask  # a body that passed may have named its model late
                call.charge = None
        return None

    async def _reserve_money(self, call: Call) -> None:
        """Open the call's charge, with what it may cost reserved. Raises CallRefused."""
        if call.endpoint is not None and not call.upstream.billing.limits.accounts.is_loaded(call.user):
            await self._ledger.load_spend(call)
        try:
            call.charge = self._ledger.open_charge(call)
        except SliceNeeded as needed:
            call.charge = await self._ledger.open_charge_with_slices(call, needed)
        if call.charge is not None and call.ask.background:
            await self._ledger.record_open_call(call, call.charge)

    async def _acquire_permit(self, call: Call) -> ThrottlePermit:
        """`pace.tokens` goes by what was reserved for the question: a picture is not as long as its base64. Raises
        ThrottleRefusal."""
        tokens = call.charge.input_tokens if call.charge is not None else len(call.body.content or b"") // 4
        tokens += call.ask.max_tokens or 0
        throttle = call.upstream.throttle
        permit = throttle.try_acquire(call.user, tokens, call.ask.model)
        return permit if permit is not None else await throttle.acquire(call.user, tokens, call.ask.model)

    def _judge_cancelled(self, call: Call, admission: Admission) -> bool | None:
        """Returns what the breaker learns of a call that was cancelled: nothing if it mostly waited for its place, its
        app or request ended it, or its answer was whole."""
        # If the wait for a place took longer than the upstream had then, the time-out is not the upstream's fault.
        in_time = self._clock() - admission.admitted_at >= admission.admitted_at - call.began
        is_late = call.deadline.expired and call.deadline.reason != "request" and call.outcome != "ok"
        return False if is_late and in_time else None

    def _report_to_breaker(
        self, call: Call, admission: Admission, ok: bool | None, response: UpstreamResponse | None
    ) -> None:
        if response is not None and response.error_status:  # inside its stream, which the app may leave for it
            ok = False if response.error_status >= 500 else None
            call.outcome = "error"
            call.reason = f"its stream ended with an error event, of the kind of a {response.error_status}"
        # `slow_call` is compared with the first byte: a long answer is not a slow upstream.
        seconds = (call.first_byte_at or self._clock()) - admission.admitted_at
        admission.breaker.report(admission, ok, seconds=seconds)

    async def _fall_back(self, call: Call, failure: Failure) -> None:
        """Try the policy's list in order; if nothing of it answers, the app gets the failure. Raises CallRefused."""
        try:
            for step in fallback_steps(call.upstream):
                if await self._try_fallback(call, step, call.writer):
                    return
            # Nothing mended it: the app gets what was held back.
            if isinstance(failure, CallRefused):
                raise failure
            call.outcome = "error" if failure.judged_status >= 500 or failure.error_status else "ok"
            await self._relay_response(call, failure)
        except StreamBroken as broken:
            call.outcome, call.reason = "error", str(broken)
        finally:
            if isinstance(failure, UpstreamResponse):
                failure.release()

    async def _try_fallback(self, call: Call, step: Fallback, writer: ResponseWriter) -> bool:
        """Whether this step of the policy's list gave an answer; if it did, the call has its outcome."""
        if step.stale:
            cached = call.upstream.cache.get_stale(call.cache_key) if call.cache_key is not None else None
            if cached is None:
                return False
            call.cache, call.fallback, call.outcome = "stale", "stale", "fallback"
            head = ResponseHead(cached.status, "", fields(cached.headers) + outrigger_fields(call))
            await self._write_whole(call, head, cached.body, writer)
            return True
        if step.text is not None:
            made = canned_answer(call, step.text)
            if made is None:
                return False
            call.fallback, call.outcome = "text", "fallback"
            head = ResponseHead(200, "", [("Content-Type", made[0]), *outrigger_fields(call)])
            await self._write_whole(call, head, made[1], writer)
            return True
        copy = redirect_call(call, step)
        if copy is None:
            return False
        copy.fallback = step_name(step)
        try:
            failure = await self._call_upstream(copy)
        except CallRefused as refusal:  # by a cap of the other's
            call.reason = str(refusal)
            return False
        except asyncio.CancelledError:
            # What the other upstream had begun to answer belongs into the log line of this call.
            call.adopt_result(copy)
            call.outcome = copy.outcome
            raise
        finally:
            call.attempts = copy.attempts
            call.reason = copy.reason or call.reason
        if failure is not None:
            if isinstance(failure, UpstreamResponse):
                failure.release()
            return False
        call.adopt_result(copy)
        call.outcome = "error" if copy.outcome == "error" else "fallback"
        return True

    async def _answer_too_late(self, call: Call, app: AppResponse, deadline: Deadline) -> None:
        """Answer a call whose deadline passed with what the gateway has itself, or raise CallRefused."""
        late = error_response.upstream_timeout(call.upstream.name, deadline.reason, self._clock() - call.began)
        if app.started:
            if call.cache_key is not None and (call.is_shared or call.cache == "coalesced"):
                raise late  # only the reader's time is over: the shared call goes on, and its stream tells nobody
            return  # it has been told in the stream
        call.outcome, call.reason = "error", str(late)
        # Another upstream would take time, which is over. Without the body neither the cache's key nor the shape of a
        # canned answer is known.
        if call.is_read:
            for step in fallback_steps(call.upstream):
                if (step.stale or step.text is not None) and await self._try_fallback(call, step, app):
                    return
        raise late

    def _refuse(self, call: Call, refusal: CallRefused, app: AppResponse) -> None:
        call.refusal = refusal
        call.reason = call.reason or str(refusal)
        call.status = refusal.status
        call.outcome = "error" if refusal.code in FAILURE_CODES else "refused"
        app.set_whole(*refusal_response(refusal, call.upstream.dialect, call))

    # ── from the upstream to the app ─────────────────────────────────────────────────────────

    async def _relay_response(self, call: Call, response: UpstreamResponse) -> None:
        """Pass an answer on, with what we say of it, and settle its charge. Raises StreamBroken if it broke off on the
        way."""
        upstream, charge = call.upstream, call.charge
        call.first_byte_at = self._clock()
        call.status = response.status
        if response.judged_status >= 400:
            call.reason = call.reason or f"status {response.judged_status}"
            if charge is not None:
                charge.release()  # a definite error is not billed
        elif response.is_redirect and charge is not None:
            charge.release()  # it is no answer yet
        if response.body is not None:
            if response.judged_status < 400:
                await self._read_background_status(call, response)
            # Before the head is made, since the head states the cost.
            settle_whole(call, response, response.body)
            head = response_head(call, upstream.dialect, response)
            if response.status == 200:
                self._store_in_cache(call, response, response.body)
            await self._write_whole(call, head, response.body, call.writer)
            return
        head = response_head(call, upstream.dialect, response)
        # From here on the app sees the answer: no attempt and no fallback may follow.
        call.deadline.commit(upstream.policy.timeout.idle if response.stream is not None else None)
        # The cache refuses what is larger than a quarter of it, so no more is kept.
        is_cached = call.cache_key is not None and response.status == 200
        writer = RecordingWriter(call.writer, upstream.policy.cache.max // 4 if is_cached else 0)
        try:
            # Recorded before the app sees the reference, by which it may ask at once.
            on_shown = await self._watch_background_status(call, response)
            await call.writer.write_head(head)
            await relay_body(response, writer, call.deadline, on_shown)
            if call.followed is not None and response.ends is not None:
                await self._settle_followed(call, upstream.dialect.background_status(response.ends.members()))
        except AttemptFailed as failure:
            await self._end_broken(call, response, "upstream_unreachable", f"{upstream.name}: {failure}")
            raise StreamBroken(str(failure)) from failure
        except asyncio.CancelledError:
            # The app is told in its stream before the cancellation goes on and becomes the deadline's TimeoutError. If
            # the last event has passed, there is nothing to tell: the upstream merely left its connection open.
            if response.stream is not None and response.stream.is_over:
                call.outcome = "ok"
            elif call.deadline.expired:
                reason = call.deadline.reason
                call.outcome, call.reason = "error", f"time-out ({reason})"
                text = f"{upstream.name} went silent for too long (timeout.{reason})"
                await self._end_broken(call, response, "upstream_timeout", text)
            raise
        finally:
            # However it ended: what was relayed is paid, since the vendor bills it as well.
            response.release()
            settle_relayed(call, response, writer.bytes_written)
        if writer.kept is not None and not response.errored:
            self._store_in_cache(call, response, b"".join(writer.kept))

    async def _write_whole(self, call: Call, head: ResponseHead, body: bytes, writer: ResponseWriter) -> None:
        """Write a whole answer, the upstream's or one of ours."""
        call.first_byte_at = call.first_byte_at or self._clock()
        call.status = head.status
        head.length = len(body)
        if isinstance(writer, AppResponse):
            writer.set_whole(head, body)
            return
        await writer.write_head(head)
        if body:
            await writer.write(body)

    async def _end_broken(self, call: Call, response: UpstreamResponse, code: str, text: str) -> None:
        """End a broken stream with an error event; break off a body that has no such thing."""
        writer = call.writer
        if response.stream is None or response.errored:
            if not isinstance(writer, AppResponse):
                raise ConnectionResetError(text)  # it breaks off for everybody who reads it
            writer.abort()
            return
        response.errored = True
        try:
            async with asyncio.timeout(LAST_WORDS_TIMEOUT):
                await writer.write(response.stream.error_event(code, text))
        except (TimeoutError, ConnectionError):
            if isinstance(writer, AppResponse):
                writer.abort()

    def _store_in_cache(self, call: Call, response: UpstreamResponse, body: bytes) -> None:
        cache = call.upstream.cache
        if call.cache_key is None or not call.upstream.policy.cache.ttl:
            return
        # Only what another caller may see: no cookie, no id, no account.
        headers = tuple(
            (name.encode("latin-1"), value.encode("utf-8", "surrogateescape"))
            for name, value in shared(returning(response.fields))
        )
        entry = CachedResponse(response.status, headers, body, self._clock())
        if cache.put(call.cache_key, entry, asked_at=call.began) and self._shared_cache is not None:
            self._shared_cache.put(call.upstream, call.cache_key, entry, asked_at=call.began)

    # ── what the vendor goes on with by itself ───────────────────────────────────────────────

    async def _read_background_status(self, call: Call, response: UpstreamResponse) -> None:
        """Read what a whole answer shows of background work: that it has begun, or what it came to."""
        dialect, charge = call.upstream.dialect, call.charge
        if call.followed is not None:
            status = dialect.background_status(response.parsed) or BackgroundStatus(call.followed, None, None)
            status = replace(status, deleted=status.deleted or call.method == "DELETE")
            await self._settle_followed(call, status)
        elif call.endpoint == "responses" and charge is not None:
            shown = dialect.background_status(response.parsed)
            if shown is not None and shown.status in UNBILLED_STATUSES and shown.usage is None:
                charge.release()  # a definite failure is not billed
            elif shown is not None and not shown.finished:
                await self._ledger.defer_charge(call, charge, shown.reference)

    async def _watch_background_status(self, call: Call, response: UpstreamResponse) -> OnShown | None:
        """Returns whom to tell when a stream shows what background work came to; None if nobody waits for it."""
        if call.followed is not None and call.method == "DELETE" and response.judged_status < 300:
            await self._settle_followed(call, BackgroundStatus(call.followed, None, None, deleted=True))  # 204
        elif call.followed is not None and response.tap is not None:
            return partial(self._settle_followed, call)
        status = response.stream.background_status if response.stream is not None and call.ask.background else None
        if call.charge is None or status is None or status.finished:
            return None
        await self._ledger.defer_charge(call, call.charge, status.reference)
        return partial(self._settle_deferred, call.upstream)

    async def _settle_deferred(self, upstream: Upstream, status: BackgroundStatus) -> None:
        await self._ledger.background.settle_reported(upstream, status)

    async def _settle_followed(self, call: Call, status: BackgroundStatus | None) -> None:
        """Settle the charge of what another call began and this one asked after, if it is over."""
        if status is not None and status.finished and call.followed is not None:
            status = replace(status, reference=call.followed)
            if await self._ledger.background.settle_reported(call.upstream, status):
                call.usage = status.usage


# ── what an answer is paid by: the usage that it reports, wherever in it that stands, else what was written ──────────


def settle_whole(call: Call, response: UpstreamResponse, body: bytes) -> None:
    """Settle the charge of an answer that was read whole before the app sees it."""
    if call.endpoint is None:
        return
    dialect, charge = call.upstream.dialect, call.charge
    call.usage = dialect.usage(call.endpoint, response.parsed)
    if charge is None:
        return
    if response.parsed is not None:
        written = dialect.output_size(charge.endpoint, response.parsed)
    else:
        written = _written_bytes(response, len(body))
    charge.settle(call.usage, written)


def settle_relayed(call: Call, response: UpstreamResponse, relayed: int) -> None:
    """Settle the charge of an answer that was relayed, to its end or not, of which the app was sent `relayed` bytes."""
    if call.endpoint is None:
        return
    charge = call.charge
    is_final = response.complete
    if response.stream is not None:
        stream = response.stream
        call.usage, written, is_final = stream.usage, stream.output_size, stream.usage_is_final
    elif response.media is not None:
        response.media.close()
        call.usage, written = response.media.usage, response.media.output_size
        if charge is not None and call.usage is None and response.media.failed and not response.media.image_count:
            charge.release()  # a definite error
    else:
        call.usage, written = _usage_at_ends(call, response), _written_bytes(response, relayed)
    if charge is not None:
        charge.settle(call.usage, written, final=is_final)


def _usage_at_ends(call: Call, response: UpstreamResponse) -> Usage | None:
    if response.ends is None or call.endpoint is None:
        return None
    members = response.ends.members()
    if call.endpoint == "images":
        members.setdefault("data", [None] * call.ask.choices)  # they are not kept; as many as were asked for
    return call.upstream.dialect.usage(call.endpoint, members)


def _written_bytes(response: UpstreamResponse, size: int) -> OutputSize:
    """The size of an output that cannot be read: of text its length; sound and pictures go by what was asked for."""
    kind = (response.get_field("content-type") or "").strip().lower()
    is_media = kind.startswith(("audio/", "image/", "video/", "application/octet-stream"))
    return OutputSize() if is_media else OutputSize(size)


def _breaker_refusal(upstream: Upstream, breaker: Breaker) -> CallRefused:
    return error_response.upstream_unavailable(upstream.name, breaker.retry_after, held=breaker.forced is not None)


def _do_nothing() -> None:
    pass
