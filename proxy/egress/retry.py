"""The attempts of one call: which failures are tried again, when, and when no more.

aiohttp-retry carries the loop; every decision is here, in its options. It decides on nothing by itself: its
`statuses` are empty and its own backoff is not used, since that knows no Retry-After, no deadline and no
budget, and would keep the connection of every answer it discards.

The wait before attempt n+1 is uniform in [0, min(backoff.max, backoff.first * 2**(n-1))] (full jitter; AWS
Architecture Blog, "Exponential Backoff and Jitter"), or what the upstream asked for, if that is longer.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp_retry import RetryClient, RetryOptionsBase
from yarl import URL

from proxy.egress.body import WRITE_SIZE
from proxy.egress.call import Call
from proxy.egress.circuit_breaker import Admission
from proxy.egress.deadline import Deadline
from proxy.egress.fault_injection import Injection
from proxy.egress.headers import Fields, first, replaced
from proxy.egress.provider_limits import concerns_every_model
from proxy.egress.upstream_response import UpstreamResponse, decoded_body, read_response
from proxy.errors import AttemptFailed, OutriggerError
from proxy.http.retry_after import wait_from_headers
from proxy.policy.schema import Retry

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from proxy.egress.billing.charge import Charge
    from proxy.egress.upstream import Upstream

NEVER_RETRIED = frozenset(("certificate",))
BILLED_UNANSWERED = frozenset(
    ("reset", "first_byte", "malformed")
)  # what the upstream made of it, and bills, nobody knows
MAX_PAUSE = 60.0  # seconds that one Retry-After holds back the next calls at most
IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


class Again(OutriggerError):
    """This attempt failed, and another is due."""


class Final(OutriggerError):
    """This attempt failed, and it was the last."""

    def __init__(self, failure: AttemptFailed) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Series(RetryOptionsBase):
    """What aiohttp-retry goes by for one call. `answer` is the last there was."""

    def __init__(
        self, call: Call, upstream: Upstream, deadline: Deadline, admission: Admission, bill: Charge | None
    ) -> None:
        super().__init__(
            attempts=upstream.policy.retry.attempts + 1,  # the library never asks about its last one
            statuses=(),
            exceptions=(Again,),
            methods=(call.method,),
            retry_all_server_errors=False,
            evaluate_response_callback=self._accept,
        )
        self._call = call
        self._upstream = upstream
        self._deadline = deadline
        self._admission = admission
        self._bill = bill
        self._wait = 0.0
        self.made = 0

    def get_timeout(self, attempt: int, response: ClientResponse | None = None) -> float:
        return self._wait

    def failed(self, failure: AttemptFailed) -> OutriggerError:
        """What to raise for a failed attempt. One that was sent and broke off is paid, and its successor is
        within the caps or is not made."""
        paid = self._bill if failure.sent and failure.reason in BILLED_UNANSWERED else None
        if paid is not None:
            paid.charge_lost_attempt()
        if failure.reason in NEVER_RETRIED or not self._due(failure.reason, sent=failure.sent, asked=None):
            return Final(failure)
        if paid is not None and not paid.reserve_again():
            return Final(failure)
        return Again(str(failure))

    async def _accept(self, response: ClientResponse) -> bool:
        """Whether this answer goes to the app. What is discarded gives its connection back."""
        answer = cast("UpstreamResponse", response)
        if answer.judged_status < 400:
            return True
        asked = wait_from_headers(answer.get_field, self._upstream.now())
        upstream = self._upstream
        permanent = answer.permanent or upstream.dialect.is_permanent(answer.judged_status, answer.parsed)
        if answer.judged_status == 429 and asked is not None and not permanent:
            self._hold(answer, min(asked, MAX_PAUSE))
        told = (answer.get_field("x-should-retry") or "").strip().lower()
        if permanent or told == "false":
            return True
        word = "any" if told == "true" else str(answer.judged_status)
        if not self._due(word, sent=True, asked=asked):
            return True
        answer.release()
        return False

    def _hold(self, answer: UpstreamResponse, seconds: float) -> None:
        """The next calls wait as well: of this model, or of all where the vendor says so."""
        limits = self._upstream.throttle.limits
        if concerns_every_model(decoded_body(answer) or b"".join(answer.held)):
            limits.pause_all(seconds)
        else:
            limits.pause_model(seconds, self._call.ask.model)

    def _due(self, word: str, *, sent: bool, asked: float | None) -> bool:
        """Whether another attempt is to be made; `asked` is how long the upstream wants us to wait."""
        call, upstream = self._call, self._upstream
        retry = upstream.policy.retry
        if self.made >= retry.attempts or not is_retried_by_policy(word, retry):
            return False
        if sent and not may_send_again(call, upstream):
            return False
        if call.is_sdk_retry:
            call.left_to_caller = True
            return False
        if not call.body.can_resend:
            return False
        wait = backoff_seconds(retry, self.made)
        if asked is not None:
            if asked > retry.retry_after.max:
                return False
            wait = max(wait, asked)
        if wait >= self._deadline.seconds_left() or not self._admission.breaker.still_admits(self._admission):
            return False
        if not upstream.retry_budget.try_acquire():
            call.left_to_caller = True  # it would have come again without us: then it may
            return False
        self._wait = wait
        return True


def is_retried_by_policy(word: str, retry: Retry) -> bool:
    """Whether the policy's `on` has it. A 5xx without a meaning of its own in RFC 9110 (Cloudflare's 520 to
    530, Anthropic's 529) is what 502 and 503 are."""
    if word == "any" or word in retry.on:
        return True
    if word == "malformed":
        return "502" in retry.on
    if word.isdigit() and 506 <= int(word) <= 599:
        return "503" in retry.on or "502" in retry.on
    return False


def may_send_again(call: Call, upstream: Upstream) -> bool:
    """Whether a request of which a byte was sent may be sent again."""
    if call.method in IDEMPOTENT_METHODS or any(name.lower() == "idempotency-key" for name, _ in call.fields):
        return True
    return call.endpoint is not None and upstream.dialect.is_repeatable(call.endpoint, call.body.parsed)


def backoff_seconds(retry: Retry, made: int) -> float:
    """Seconds before the next attempt, after `made` of them."""
    most = min(retry.backoff.max, retry.backoff.first * 2.0 ** (made - 1))
    return random.uniform(0.0, most) if retry.backoff.jitter == "full" else most  # noqa: S311 (no secret)


# [merged from egress/attempt] One attempt at a call: sent, and its answer read as far as it takes to judge it.
class Sender:
    """Stands where RetryClient expects a session: each `request` is one attempt, and gives an Answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._client = RetryClient(client_session=cast("aiohttp.ClientSession", self))

    async def answer(self, call: Call, series: Series) -> UpstreamResponse:
        """What the attempts came to: an answer for the app, good or bad. Raises AttemptFailed without one."""
        url = self._upstream.url(call.target)
        try:
            # It takes `request`'s result for a ClientResponse, of which it asks only status and method.
            found = await self._client.request(call.method, url, retry_options=series, series=series, call=call)
        except Final as error:
            raise error.failure from None
        return cast("UpstreamResponse", found)

    async def request(self, method: str, url: URL, *, series: Series, call: Call, **_: object) -> UpstreamResponse:
        upstream = self._upstream
        series.made += 1
        call.attempts += 1
        call.body.sent = False
        result = "cancelled"  # by the call's deadline, or because the app gave it up
        try:
            answer = await self._attempt(call, url)
            call.body.sent = False  # it has been answered
            result = "ok" if answer.judged_status < 400 else str(answer.judged_status)
            upstream.throttle.limits.read_headers(answer.headers(), call.ask.model)
            return answer
        except AttemptFailed as failure:
            result = failure.reason
            call.body.sent = False
            raise series.failed(failure) from failure
        finally:
            upstream.count_attempt(result)

    async def _attempt(self, call: Call, url: URL) -> UpstreamResponse:
        injected = self._upstream.faults.draw_injection() if self._upstream.faults else None
        first_byte = self._upstream.policy.timeout.first_byte
        if injected is not None and injected.delay:
            await asyncio.sleep(injected.delay)
        if first_byte is None or not call.ask.stream:
            return await self._ask(call, url, injected)
        try:
            async with asyncio.timeout(first_byte):
                return await self._ask(call, url, injected)
        except TimeoutError:
            text = f"no first byte within {first_byte:g} s"
            raise AttemptFailed("first_byte", text, sent=call.body.sent) from None

    async def _ask(self, call: Call, url: URL, injected: Injection | None) -> UpstreamResponse:
        if injected is not None and injected.status is not None:
            return self._made_up(call, injected.status)
        answer, asked_usage = await self._send(call, url)
        if asked_usage and answer.status in (400, 422) and b"stream_options" in decoded_body(answer):
            # It may not know the option, or quote the input of a call that it refuses anyway: theirs is the app's
            # request as it was, and what becomes of that tells.
            answer.release()
            answer, _ = await self._send(call, url, as_it_was=True)
            if answer.judged_status < 400:
                self._upstream.usage_option.record_refusal(call.ask.model)
        if injected is not None and injected.cut:
            if answer.stream is None:
                answer.release()
                raise AttemptFailed("reset", "cut by a fault of the policy (faults)", sent=True)
            answer.broken = "cut by a fault of the policy (faults)"
        return answer

    async def _send(self, call: Call, url: URL, *, as_it_was: bool = False) -> tuple[UpstreamResponse, bool]:
        """An answer, and whether its stream was asked for usage on our own account."""
        upstream = self._upstream
        body, fields, asked_usage = call.body, call.fields, False
        if call.endpoint is not None:
            fields = _with_readable_encoding(fields, call.ask.stream or call.body.parsed is None)
            if call.body.content and call.body.parsed is not None and not as_it_was:
                changed = upstream.dialect.with_usage_option(call.endpoint, call.body.content, call.body.parsed)
                if changed is not None and not upstream.usage_option.may_ask(call.ask.model):
                    changed = None
                if changed is not None:
                    body, asked_usage = call.body.with_content(changed), True
        elif call.followed is not None:
            fields = _with_readable_encoding(fields, "stream=" in call.rest.partition("?")[2])
        length = body.length if body.content is None or len(body.content) > WRITE_SIZE else None
        response = await upstream.client.send(
            call.method, url, fields, body.payload(), connect=upstream.policy.timeout.connect, length=length
        )
        try:
            return await read_response(response, call, upstream.dialect, strip_usage=asked_usage), asked_usage
        except BaseException:
            response.close()
            raise

    def _made_up(self, call: Call, status: int) -> UpstreamResponse:
        text = "This answer was made up by a fault of the policy (faults)."
        body = self._upstream.dialect.error_body("injected_fault", status, text, request_id="")
        return UpstreamResponse(call.method, status, "", [("Content-Type", "application/json")], status, body=body)


def _with_readable_encoding(fields: Fields, stream: bool) -> Fields:
    """Only encodings that we can read: the app accepts others as well, but usage could not be counted.
    `stream` is whether it asks for one, or may: events are read as they are."""
    accepted = first(fields, "accept-encoding")
    if accepted is None:
        return fields
    return replaced(fields, "accept-encoding", "gzip" if not stream and "gzip" in accepted.lower() else "identity")
