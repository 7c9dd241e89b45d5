"""One call's answer from an upstream, or in its place what the policy falls back to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from proxy.egress import error_response, fallback
from proxy.egress.app_response import AppResponse, ResponseHead, ResponseWriter
from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.billing.charge import Charge
from proxy.egress.cache import CachedResponse
from proxy.egress.call import Call
from proxy.egress.circuit_breaker import OPEN, Breaker
from proxy.egress.deadline import Deadline
from proxy.egress.dialects import UNBILLED_STATUSES, BackgroundStatus
from proxy.egress.headers import fields, returning, shared
from proxy.egress.http_client import discard_response
from proxy.egress.response_head import outrigger_fields, response_head
from proxy.egress.retry import Series
from proxy.egress.settlement import settle_relayed, settle_whole
from proxy.egress.stream import OnShown, RecordingWriter, relay_body
from proxy.egress.throttle import ThrottlePermit, ThrottleRefusal
from proxy.egress.upstream import Upstream
from proxy.egress.upstream_response import UpstreamResponse
from proxy.errors import AttemptFailed, CallRefused, OutriggerError
from proxy.policy.schema import Fallback

LAST_WORDS = 5.0  # seconds that an error event has to reach an app that reads slowly


class CallFailed(OutriggerError):
    """A call failed for good before the app saw any of it: with the upstream's answer, or a refusal."""

    def __init__(self, failure: UpstreamResponse | CallRefused) -> None:
        super().__init__(str(failure) if isinstance(failure, CallRefused) else f"status {failure.status}")
        self.failure = failure


class Broken(OutriggerError):
    """The answer broke off after its first byte, and the app was told in its own dialect."""


class Producer:
    def __init__(self, books: CallLedger, clock: Callable[[], float]) -> None:
        self._books = books
        self._clock = clock

    async def produce(
        self, call: Call, upstream: Upstream, sink: ResponseWriter, deadline: Deadline, key: bytes | None
    ) -> None:
        try:
            await self._call(call, upstream, sink, deadline, key)
            return
        except CallFailed as failed:
            failure = failed.failure
        try:
            for step in fallback.fallback_steps(upstream):
                if await self.fall_back(call, upstream, step, sink, deadline, key):
                    return
            if isinstance(failure, CallRefused):
                raise failure
            call.outcome = "error" if failure.judged_status >= 500 or failure.error_status else "ok"
            await self._send(call, upstream, failure, sink, deadline, None)
        except Broken as broken:
            call.outcome, call.reason = "error", str(broken)
        finally:
            if isinstance(failure, UpstreamResponse):
                failure.release()

    async def fall_back(
        self,
        call: Call,
        upstream: Upstream,
        step: Fallback,
        sink: ResponseWriter,
        deadline: Deadline,
        key: bytes | None,
    ) -> bool:
        """Whether this step of the policy's gave an answer; then the call has its outcome."""
        if step.stale:
            entry = upstream.cache.get_stale(key) if key is not None else None
            if entry is None:
                return False
            call.cache, call.fallback, call.outcome = "stale", "stale", "fallback"
            await self._give(call, ResponseHead(entry.status, "", fields(entry.headers)), entry.body, sink)
            return True
        if step.text is not None:
            made = fallback.canned_answer(call, upstream, step.text)
            if made is None:
                return False
            call.fallback, call.outcome = "text", "fallback"
            await self._give(call, ResponseHead(200, "", [("Content-Type", made[0])]), made[1], sink)
            return True
        moved = fallback.redirect_call(call, step, upstream.siblings)
        if moved is None:
            return False
        copy, other = moved
        copy.fallback = fallback.step_name(step)
        try:
            await self._call(copy, other, sink, deadline, None)
        except CallRefused as refused:  # by a cap of the other's
            call.reason = str(refused)
            return False
        except CallFailed as failed:
            if isinstance(failed.failure, UpstreamResponse):
                failed.failure.release()
            return False
        except asyncio.CancelledError:
            call.adopt_result(copy)
            call.outcome = copy.outcome
            raise
        finally:
            call.attempts = copy.attempts
            call.reason = copy.reason or call.reason
        call.adopt_result(copy)
        call.outcome = "error" if copy.outcome == "error" else "fallback"
        return True

    async def _call(
        self, call: Call, upstream: Upstream, sink: ResponseWriter, deadline: Deadline, key: bytes | None
    ) -> None:
        """Raises CallFailed where nothing went to the app yet, so that something else may."""
        breaker = upstream.breaker_of(call)
        if breaker.state == OPEN:
            raise CallFailed(
                error_response.upstream_unavailable(upstream.name, breaker.retry_after, held=breaker.forced is not None)
            )
        if call.endpoint is not None and not upstream.billing.limits.is_loaded(call.user):
            await self._books.load_spend(call, upstream)
        bill = self._books.open_charge(call, upstream)
        try:
            if bill is not None and call.ask.background:
                await self._books.record_open_call(call, bill)
            await self._paid(call, upstream, sink, deadline, key, bill, breaker)
        finally:
            if bill is not None:
                bill.release()
                call.ask = bill.request or call.ask  # a body that passed may have named its model late

    async def _paid(
        self,
        call: Call,
        upstream: Upstream,
        sink: ResponseWriter,
        deadline: Deadline,
        key: bytes | None,
        bill: Charge | None,
        breaker: Breaker,
    ) -> None:
        place = await self._place(call, upstream, bill)
        try:
            admission = breaker.admit()
            if admission is None:
                raise CallFailed(
                    error_response.upstream_unavailable(
                        upstream.name, breaker.retry_after, held=breaker.forced is not None
                    )
                )
            ok: bool | None = None
            upstream.retry_budget.record_call()
            answer: UpstreamResponse | None = None
            try:
                answer = await self._attempts(call, upstream, Series(call, upstream, deadline, admission, bill))
                if answer.judged_status >= 400:
                    ok = False if answer.judged_status >= 500 else None
                    if answer.judged_status in (408, 409, 429) or answer.judged_status >= 500:
                        raise CallFailed(answer)
                await self._send(call, upstream, answer, sink, deadline, key, bill)
                call.outcome = "ok"  # until here it is the app that may be gone
                if answer.judged_status < 400:
                    ok = None if answer.is_redirect and call.endpoint is not None else True
            except AttemptFailed as failure:
                ok = False
                call.outcome, call.reason = "error", str(failure)
                again = call.left_to_caller
                raise CallFailed(
                    error_response.upstream_unreachable(upstream.name, failure, call.attempts, again=again)
                ) from failure
            except Broken as broken:
                ok = False
                call.outcome, call.reason = "error", str(broken)
            except asyncio.CancelledError:
                # A time-out of a call that mostly waited for its place here says nothing of the upstream.
                in_time = self._clock() - admission.admitted_at >= admission.admitted_at - call.began
                ok = False if deadline.expired and deadline.reason != "request" and in_time else None
                if bill is not None and not bill.closed and call.body.sent:
                    bill.charge_lost_attempt()
                raise
            finally:
                if answer is not None and answer.error_status:  # inside its stream, which the app may leave for it
                    ok = False if answer.error_status >= 500 else None
                    call.outcome = "error"
                    call.reason = f"its stream ended with an error event, of the kind of a {answer.error_status}"
                breaker.report(admission, ok, seconds=(call.first_byte_at or self._clock()) - admission.admitted_at)
        finally:
            used = call.usage
            place.release(used.input + used.output if used is not None else None)

    async def _place(self, call: Call, upstream: Upstream, bill: Charge | None) -> ThrottlePermit:
        """`pace.tokens` goes by what was reserved for the question: a picture is not as long as its base64."""
        asked = bill.input_tokens if bill is not None else len(call.body.content or b"") // 4
        tokens = asked + (call.ask.max_tokens or 0)
        place = upstream.throttle.try_acquire(call.user, tokens, call.ask.model)
        if place is not None:
            return place
        try:
            return await upstream.throttle.acquire(call.user, tokens, call.ask.model)
        except ThrottleRefusal as error:
            raise CallFailed(
                error_response.rate_limit_exceeded(upstream.name, error.reason, error.retry_after)
            ) from error

    async def _attempts(self, call: Call, upstream: Upstream, series: Series) -> UpstreamResponse:
        answer = await upstream.sender.answer(call, series)
        if answer.body is not None:
            answer.release()
        return answer

    async def _send(
        self,
        call: Call,
        upstream: Upstream,
        answer: UpstreamResponse,
        sink: ResponseWriter,
        deadline: Deadline,
        key: bytes | None,
        bill: Charge | None = None,
    ) -> None:
        """Pass an answer on, with what we say of it. Raises Broken where it broke off on the way."""
        call.first_byte_at = self._clock()
        call.status = answer.status
        if answer.judged_status >= 400:
            call.reason = call.reason or f"status {answer.judged_status}"
            if bill is not None:
                bill.release()  # a definite error is not billed
        elif answer.is_redirect and bill is not None:
            bill.release()  # it is no answer yet
        if answer.body is not None:
            if answer.judged_status < 400:
                await self._see(call, upstream, answer, bill)
            settle_whole(call, upstream.dialect, answer, answer.body, bill)
            head = response_head(call, upstream.dialect, answer)
            if key is not None and answer.status == 200 and upstream.policy.cache.ttl:
                self._keep(call, upstream, key, answer, answer.body)
            await self._give(call, head, answer.body, sink, fields_done=True)
            return
        head = response_head(call, upstream.dialect, answer)
        deadline.commit(upstream.policy.timeout.idle if answer.stream is not None else None)
        recorder = RecordingWriter(
            sink, upstream.policy.cache.max // 4 if key is not None and answer.status == 200 else 0
        )
        try:
            shows = await self._shows(call, upstream, answer, bill)
            await sink.write_head(head)
            await relay_body(answer, recorder, deadline, shows)
            if call.followed is not None and answer.ends is not None:
                await self._show(call, upstream, upstream.dialect.background_status(answer.ends.members()))
        except AttemptFailed as failure:
            await self._last_words(answer, sink, "upstream_unreachable", f"{upstream.name}: {failure}")
            raise Broken(str(failure)) from failure
        except asyncio.CancelledError:
            if deadline.expired:
                call.outcome, call.reason = "error", f"time-out ({deadline.reason})"
                text = f"{upstream.name} went silent for too long (timeout.{deadline.reason})"
                await self._last_words(answer, sink, "upstream_timeout", text)
            raise
        finally:
            discard_response(answer.response)
            settle_relayed(call, upstream.dialect, answer, recorder.bytes_written, bill)
        if key is not None and recorder.kept is not None and not answer.errored and upstream.policy.cache.ttl:
            self._keep(call, upstream, key, answer, b"".join(recorder.kept))

    # ── what the vendor goes on with by itself ───────────────────────────────────────────────

    async def _see(self, call: Call, upstream: Upstream, answer: UpstreamResponse, bill: Charge | None) -> None:
        """What a whole answer shows of it: that it has begun, or what it came to."""
        if call.followed is not None:
            said = upstream.dialect.background_status(answer.parsed) or BackgroundStatus(call.followed, None, None)
            await self._show(call, upstream, replace(said, deleted=said.deleted or call.method == "DELETE"))
        elif call.endpoint == "responses" and bill is not None:
            shown = upstream.dialect.background_status(answer.parsed)
            if shown is not None and shown.status in UNBILLED_STATUSES and shown.usage is None:
                bill.release()  # a definite failure is not billed
            elif shown is not None and not shown.finished:
                await self._books.defer_charge(call, bill, shown.reference)

    async def _shows(
        self, call: Call, upstream: Upstream, answer: UpstreamResponse, bill: Charge | None
    ) -> OnShown | None:
        """Who is to be told when a stream shows what it came to; None where that is the call's own affair."""
        if call.followed is not None and call.method == "DELETE" and answer.judged_status < 300:
            await self._show(call, upstream, BackgroundStatus(call.followed, None, None, deleted=True))  # 204
        elif call.followed is not None and answer.tap is not None:
            return lambda shown: self._show(call, upstream, shown)
        shown = answer.stream.background_status if answer.stream is not None and call.ask.background else None
        if bill is None or shown is None or shown.finished:
            return None
        await self._books.defer_charge(call, bill, shown.reference)

        async def show(shown: BackgroundStatus) -> None:
            await self._books.background.settle_reported(upstream, shown)

        return show

    async def _show(self, call: Call, upstream: Upstream, shown: BackgroundStatus | None) -> None:
        if shown is not None and shown.finished and call.followed is not None:
            shown = replace(shown, reference=call.followed)
            if await self._books.background.settle_reported(upstream, shown):
                call.usage = shown.usage

    async def _last_words(self, answer: UpstreamResponse, sink: ResponseWriter, code: str, text: str) -> None:
        """End a broken stream with an error event; break off a body that has no such thing."""
        if answer.stream is None or answer.errored:
            if not isinstance(sink, AppResponse):
                raise ConnectionResetError(text)  # it breaks off for everybody who reads it
            sink.abort()
            return
        answer.errored = True
        try:
            async with asyncio.timeout(LAST_WORDS):
                await sink.write(answer.stream.error_event(code, text))
        except (TimeoutError, ConnectionError):
            if isinstance(sink, AppResponse):
                sink.abort()

    async def _give(
        self, call: Call, head: ResponseHead, body: bytes, sink: ResponseWriter, *, fields_done: bool = False
    ) -> None:
        """A whole answer, of the upstream's or of ours."""
        call.first_byte_at = call.first_byte_at or self._clock()
        call.status = head.status
        if not fields_done:
            head = ResponseHead(head.status, head.reason, head.fields + outrigger_fields(call))
        if isinstance(sink, AppResponse):
            head.length = len(body)
            sink.set_whole(head, body)
            return
        head.length = len(body)
        await sink.write_head(head)
        if body:
            await sink.write(body)

    def replay(self, call: Call, entry: CachedResponse, sink: AppResponse) -> None:
        call.first_byte_at = self._clock()
        call.status = entry.status
        sink.set_whole(ResponseHead(entry.status, "", fields(entry.headers) + outrigger_fields(call)), entry.body)

    def _keep(self, call: Call, upstream: Upstream, key: bytes, answer: UpstreamResponse, body: bytes) -> None:
        headers = tuple(
            (n.encode("latin-1"), v.encode("utf-8", "surrogateescape")) for n, v in shared(returning(answer.fields))
        )
        upstream.cache.put(key, CachedResponse(answer.status, headers, body, self._clock(), call.model, call.usage))
