"""The attempts of one call: which failures are tried again, when, and when no more.

aiohttp-retry carries the loop; every decision is here, in its options. It decides on nothing by itself: its
`statuses` are empty and its own backoff is not used, since that knows no Retry-After, no deadline and no
budget, and would keep the connection of every answer it discards.

The wait before attempt n+1 is uniform in [0, min(backoff.max, backoff.first * 2**(n-1))] (full jitter; AWS
Architecture Blog, "Exponential Backoff and Jitter"), or what the upstream asked for, if that is longer.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, cast

from aiohttp_retry import RetryOptionsBase

from proxy.egress.answer import Answer, plain
from proxy.egress.breaker import Admission
from proxy.egress.call import Call
from proxy.egress.deadline import Deadline
from proxy.egress.learnt import is_of_every_model
from proxy.errors import AttemptFailed, OutriggerError
from proxy.policy.outgoing import Retry
from proxy.retryafter import asked_wait

if TYPE_CHECKING:
    from aiohttp import ClientResponse

    from proxy.egress.money.bill import Bill
    from proxy.egress.upstream import Upstream

HOPELESS = frozenset(("certificate",))
INDEFINITE = frozenset(("reset", "first_byte", "malformed"))  # what the upstream made of it, and bills, nobody knows
LONGEST_HOLD = 60.0  # seconds that one Retry-After holds back the next calls at most
SAFE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))


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
        self, call: Call, upstream: Upstream, deadline: Deadline, admission: Admission, bill: Bill | None
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
        paid = self._bill if failure.sent and failure.word in INDEFINITE else None
        if paid is not None:
            paid.lost()
        if failure.word in HOPELESS or not self._due(failure.word, sent=failure.sent, asked=None):
            return Final(failure)
        if paid is not None and not paid.again():
            return Final(failure)
        return Again(str(failure))

    async def _accept(self, response: ClientResponse) -> bool:
        """Whether this answer goes to the app. What is discarded gives its connection back."""
        answer = cast("Answer", response)
        if answer.judged < 400:
            return True
        asked = asked_wait(answer.field, self._upstream.now())
        upstream = self._upstream
        permanent = answer.permanent or upstream.dialect.permanent(answer.judged, answer.parsed)
        if answer.judged == 429 and asked is not None and not permanent:
            self._hold(answer, min(asked, LONGEST_HOLD))
        told = (answer.field("x-should-retry") or "").strip().lower()
        if permanent or told == "false":
            return True
        word = "any" if told == "true" else str(answer.judged)
        if not self._due(word, sent=True, asked=asked):
            return True
        answer.release()
        return False

    def _hold(self, answer: Answer, seconds: float) -> None:
        """The next calls wait as well: of this model, or of all where the vendor says so."""
        limits = self._upstream.pace.limits
        if is_of_every_model(plain(answer) or b"".join(answer.held)):
            limits.hold_every(seconds)
        else:
            limits.hold(seconds, self._call.ask.model)

    def _due(self, word: str, *, sent: bool, asked: float | None) -> bool:
        """Whether another attempt is to be made; `asked` is how long the upstream wants us to wait."""
        call, upstream = self._call, self._upstream
        retry = upstream.policy.retry
        if self.made >= retry.attempts or not listed(word, retry):
            return False
        if sent and not may_repeat(call, upstream):
            return False
        if call.sdk_retry:
            call.left_to_caller = True
            return False
        if not call.body.repeatable:
            return False
        wait = backoff(retry, self.made)
        if asked is not None:
            if asked > retry.retry_after.max:
                return False
            wait = max(wait, asked)
        if wait >= self._deadline.left() or not self._admission.breaker.holds(self._admission):
            return False
        if not upstream.budget.take():
            call.left_to_caller = True  # it would have come again without us: then it may
            return False
        self._wait = wait
        return True


def listed(word: str, retry: Retry) -> bool:
    """Whether the policy's `on` has it. A 5xx without a meaning of its own in RFC 9110 (Cloudflare's 520 to
    530, Anthropic's 529) is what 502 and 503 are."""
    if word == "any" or word in retry.on:
        return True
    if word == "malformed":
        return "502" in retry.on
    if word.isdigit() and 506 <= int(word) <= 599:
        return "503" in retry.on or "502" in retry.on
    return False


def may_repeat(call: Call, upstream: Upstream) -> bool:
    """Whether a request of which a byte was sent may be sent again."""
    if call.method in SAFE or any(name.lower() == "idempotency-key" for name, _ in call.fields):
        return True
    return call.endpoint is not None and upstream.dialect.repeatable(call.endpoint, call.body.parsed)


def backoff(retry: Retry, made: int) -> float:
    """Seconds before the next attempt, after `made` of them."""
    most = min(retry.backoff.max, retry.backoff.first * 2.0 ** (made - 1))
    return random.uniform(0.0, most) if retry.backoff.jitter == "full" else most  # noqa: S311 (no secret)
