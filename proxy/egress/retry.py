"""The attempts of one call: each is sent and read as far as it takes to judge it; what failed may be tried again.

An attempt ends in an answer that is good enough for the app, or in a failure. Another attempt is made if all of this
holds: the policy lists the failure (`retry.on`), the request may be sent again, the SDK does not do it by itself, the
wait fits into the call's deadline, the breaker still admits the call, and the retry budget has room.

The wait before attempt n+1 is uniform in [0, min(backoff.max, backoff.first * 2**(n-1))] (full jitter; AWS
Architecture Blog, "Exponential Backoff and Jitter"), or what the upstream asked for, if that is longer.
"""

from __future__ import annotations

import asyncio
import random

from yarl import URL

from proxy.egress.body import WRITE_SIZE, Body
from proxy.egress.call import Call
from proxy.egress.fault_injection import Injection
from proxy.egress.headers import Fields, without
from proxy.egress.provider_limits import concerns_every_model
from proxy.egress.upstream_response import UpstreamResponse, decoded_body, read_response
from proxy.errors import AttemptFailed
from proxy.http.retry_after import wait_from_headers
from proxy.policy.schema import Retry

# An invalid certificate does not get valid by asking again.
NEVER_RETRIED = frozenset(("certificate",))
# The upstream may have answered, and bills what nobody received.
BILLED_UNANSWERED = frozenset(("reset", "first_byte", "malformed"))
MAX_PAUSE = 60.0  # seconds that one Retry-After holds back the next calls at most
# RFC 9110 section 9.2.2.
IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
CUT_BY_FAULT = "cut by a fault of the policy (faults)"


async def send_attempts(call: Call) -> UpstreamResponse:
    """Make attempts until one is the answer for the app, good or bad. Raises AttemptFailed if the last has none.

    An attempt that was sent and broke off is charged, and its successor is within the caps or is not made.
    """
    upstream, body = call.upstream, call.body
    url = upstream.url(call.target)
    # A whole answer has no such limit: its first byte comes when all of it is made.
    first_byte = upstream.policy.timeout.first_byte if call.ask.stream else None
    made = 0  # attempts at this upstream; `call.attempts` counts those at all of them
    while True:
        made += 1
        call.attempts += 1
        # If the call is cancelled, this says whether the attempt under way must be charged; earlier ones have been.
        body.sent = False
        result = "cancelled"  # by the call's deadline, or because the app gave it up
        try:
            injection = upstream.faults.draw_injection() if upstream.faults.faults else None
            if injection is not None and injection.delay:
                await asyncio.sleep(injection.delay)
            if first_byte is None:
                response = await make_attempt(call, url, injection)
            else:
                response = await make_bounded_attempt(call, url, injection, first_byte)
            body.sent = False  # it has been answered
            result = "ok" if response.judged_status < 400 else str(response.judged_status)
            upstream.throttle.limits.read_headers(response.headers, call.ask.model)
        except AttemptFailed as failure:
            result = failure.reason
            body.sent = False
            wait = await wait_after_failure(call, failure, made)
            if wait is None:
                raise
        else:
            wait = None if response.judged_status < 400 else wait_after_error(call, response, made)
            if wait is None:
                return response
            # Before the wait: an answer that nobody reads on would hold its connection.
            response.release()
        finally:
            # A cancelled attempt is counted as well.
            upstream.count_attempt(result)
        await asyncio.sleep(wait)


# ── one attempt ──────────────────────────────────────────────────────────────────────────────


async def make_bounded_attempt(
    call: Call, url: URL, injection: Injection | None, first_byte: float
) -> UpstreamResponse:
    """Make an attempt at a stream, whose first byte is due in `first_byte` seconds. Raises AttemptFailed."""
    try:
        async with asyncio.timeout(first_byte):
            return await make_attempt(call, url, injection)
    except TimeoutError:
        text = f"no first byte within {first_byte:g} s"
        raise AttemptFailed("first_byte", text, sent=call.body.sent) from None


async def make_attempt(call: Call, url: URL, injection: Injection | None) -> UpstreamResponse:
    """Send the call once and read the answer as far as it takes to judge it. Raises AttemptFailed."""
    upstream = call.upstream
    if injection is not None and injection.status is not None:
        return make_up_response(call, injection.status)
    body, fields, asks_usage = prepare_request(call)
    connect = upstream.policy.timeout.connect
    is_repeated = False
    while True:
        # A body of one write has its length stated by the client.
        length = body.length if body.content is None or len(body.content) > WRITE_SIZE else None
        received = await upstream.client.send(
            call.method, url, fields, body.payload(), connect=connect, length=length, progress=body.progress
        )
        try:
            response = await read_response(received, call, upstream.dialect, strip_usage=asks_usage)
        except BaseException:
            # Cancellation included: the rest of half an answer must not be read by the connection's next call.
            received.close()
            raise
        if not asks_usage or response.status not in (400, 422) or b"stream_options" not in decoded_body(response):
            break
        # The upstream may not know the option, or quote the input of a call that it refuses anyway: it gets the app's
        # request as it was, and what becomes of that tells.
        response.release()
        body, asks_usage, is_repeated = call.body, False, True
    if is_repeated and response.judged_status < 400:
        upstream.usage_option.record_refusal(call.ask.model)
    if injection is not None and injection.cut:
        if response.stream is None:
            response.release()
            raise AttemptFailed("reset", CUT_BY_FAULT, sent=True)
        response.broken = CUT_BY_FAULT
    return response


def prepare_request(call: Call) -> tuple[Body, Fields, bool]:
    """Body and header of an attempt, and whether its stream is asked for usage on our own account."""
    body, fields = call.body, call.fields
    if call.endpoint is None:
        if call.followed is not None:
            fields = with_readable_encoding(fields, "stream=" in call.rest.partition("?")[2])
        return body, fields, False
    fields = with_readable_encoding(fields, call.ask.stream or body.parsed is None)
    if not body.content or body.parsed is None:
        return body, fields, False
    changed = call.upstream.dialect.with_usage_option(call.endpoint, body.content, body.parsed)
    if changed is None or not call.upstream.usage_option.may_ask(call.ask.model):
        return body, fields, False
    return body.with_content(changed), fields, True


def with_readable_encoding(fields: Fields, stream: bool) -> Fields:
    """Ask only for encodings that we can read: the app accepts others as well, but usage could not be counted.
    `stream` is whether it asks for one, or may: events are read as they are."""
    for at, (name, accepted) in enumerate(fields):
        if len(name) == 15 and name.lower() == "accept-encoding":
            readable = "gzip" if not stream and "gzip" in accepted.lower() else "identity"
            return [*fields[:at], (name, readable), *without(fields[at + 1 :], "accept-encoding")]
    return fields


def make_up_response(call: Call, status: int) -> UpstreamResponse:
    text = "This answer was made up by a fault of the policy (faults)."
    body = call.upstream.dialect.error_body("injected_fault", status, text, request_id="")
    return UpstreamResponse(call.method, status, "", [("Content-Type", "application/json")], status, body=body)


# ── whether there is another one ─────────────────────────────────────────────────────────────


async def wait_after_failure(call: Call, failure: AttemptFailed, made: int) -> float | None:
    """Seconds before the next attempt, after one without an answer; None if it was the last.

    What it may have cost is charged first, so that the caps decide on its successor with that counted.
    """
    charge = call.charge if failure.sent and failure.reason in BILLED_UNANSWERED else None
    if charge is not None:
        charge.charge_lost_attempt()
    if failure.reason in NEVER_RETRIED:
        return None
    wait = wait_for_retry(call, failure.reason, made, sent=failure.sent, asked=None)
    if wait is not None and charge is not None and not await charge.reserve_again():
        return None
    return wait


def wait_after_error(call: Call, response: UpstreamResponse, made: int) -> float | None:
    """Seconds before the next attempt, after an answer of 400 and above; None if that goes to the app."""
    upstream = call.upstream
    asked = wait_from_headers(response.get_field, upstream.now())
    permanent = response.permanent or upstream.dialect.is_permanent(response.judged_status, response.parsed)
    # The next calls would meet the same limit, so they wait even if this one is not made again.
    if response.judged_status == 429 and asked is not None and not permanent:
        pause_next_calls(call, response, min(asked, MAX_PAUSE))
    # OpenAI and Anthropic tell their SDKs by this field whether to try again.
    advice = (response.get_field("x-should-retry") or "").strip().lower()
    if permanent or advice == "false":
        return None
    word = "any" if advice == "true" else str(response.judged_status)
    return wait_for_retry(call, word, made, sent=True, asked=asked)


def wait_for_retry(call: Call, word: str, made: int, *, sent: bool, asked: float | None) -> float | None:
    """Seconds before another attempt, which is then in the retry budget; None if none is to be made. `asked` is how
    long the upstream wants us to wait."""
    upstream = call.upstream
    retry = upstream.policy.retry
    if made >= retry.attempts or not is_retried_by_policy(word, retry):
        return None
    if sent and not may_send_again(call):
        return None
    # The SDK retries by itself: its attempts and ours would multiply.
    if call.is_sdk_retry:
        call.left_to_caller = True
        return None
    if not call.body.can_resend:
        return None
    wait = backoff_seconds(retry, made)
    if asked is not None:
        if asked > retry.retry_after.max:
            return None
        wait = max(wait, asked)
    if wait >= call.deadline.seconds_left() or not call.admission.breaker.still_admits(call.admission):
        return None
    # Asked last, since what is taken from the budget is not given back.
    if not upstream.retry_budget.try_acquire():
        call.left_to_caller = True  # it would have come again without us: then it may
        return None
    return wait


def pause_next_calls(call: Call, response: UpstreamResponse, seconds: float) -> None:
    """Have the next calls wait as well: those of this model, or all of them if the vendor says so."""
    every_model = concerns_every_model(decoded_body(response) or b"".join(response.held))
    call.upstream.throttle.tell_pause(seconds, call.ask.model, every_model=every_model)


def is_retried_by_policy(word: str, retry: Retry) -> bool:
    """Whether the policy's `retry.on` lists it. A 5xx without a meaning of its own in RFC 9110 (Cloudflare's 520 to
    530, Anthropic's 529) is what 502 and 503 are."""
    if word == "any" or word in retry.on:
        return True
    if word == "malformed":
        return "502" in retry.on
    if word.isdigit() and 506 <= int(word) <= 599:
        return "503" in retry.on or "502" in retry.on
    return False


def may_send_again(call: Call) -> bool:
    """Whether a request of which a byte was sent may be sent again."""
    if call.method in IDEMPOTENT_METHODS or any(name.lower() == "idempotency-key" for name, _ in call.fields):
        return True
    return call.endpoint is not None and call.upstream.dialect.is_repeatable(call.endpoint, call.body.parsed)


def backoff_seconds(retry: Retry, made: int) -> float:
    """Seconds before the next attempt, after `made` of them."""
    most = min(retry.backoff.max, retry.backoff.first * 2.0 ** (made - 1))
    return random.uniform(0.0, most) if retry.backoff.jitter == "full" else most  # noqa: S311 (no secret)
