"""One attempt at a call: sent, and its answer read as far as it takes to judge it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp_retry import RetryClient
from yarl import URL

from proxy.egress.answer import Answer, plain, read
from proxy.egress.attempts import Final, Series
from proxy.egress.body import SLICE
from proxy.egress.call import Call
from proxy.egress.faults import Injected
from proxy.egress.headers import Fields, first, replaced
from proxy.errors import AttemptFailed

if TYPE_CHECKING:
    from proxy.egress.upstream import Upstream


class Sender:
    """Stands where RetryClient expects a session: each `request` is one attempt, and gives an Answer."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._client = RetryClient(client_session=cast("aiohttp.ClientSession", self))

    async def answer(self, call: Call, series: Series) -> Answer:
        """What the attempts came to: an answer for the app, good or bad. Raises AttemptFailed without one."""
        url = self._upstream.url(call.target)
        try:
            # It takes `request`'s result for a ClientResponse, of which it asks only status and method.
            found = await self._client.request(call.method, url, retry_options=series, series=series, call=call)
        except Final as error:
            raise error.failure from None
        return cast("Answer", found)

    async def request(self, method: str, url: URL, *, series: Series, call: Call, **_: object) -> Answer:
        upstream = self._upstream
        series.made += 1
        call.attempts += 1
        call.body.sent = False
        result = "cancelled"  # by the call's deadline, or because the app gave it up
        try:
            answer = await self._attempt(call, url)
            call.body.sent = False  # it has been answered
            result = "ok" if answer.judged < 400 else str(answer.judged)
            upstream.pace.limits.learn(answer.learnt(), call.ask.model)
            return answer
        except AttemptFailed as failure:
            result = failure.word
            call.body.sent = False
            raise series.failed(failure) from failure
        finally:
            upstream.count_attempt(result)

    async def _attempt(self, call: Call, url: URL) -> Answer:
        injected = self._upstream.faults.draw() if self._upstream.faults else None
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

    async def _ask(self, call: Call, url: URL, injected: Injected | None) -> Answer:
        if injected is not None and injected.status is not None:
            return self._made_up(call, injected.status)
        answer, asked_usage = await self._send(call, url)
        if asked_usage and answer.status in (400, 422) and b"stream_options" in plain(answer):
            # It may not know the option, or quote the input of a call that it refuses anyway: theirs is the app's
            # request as it was, and what becomes of that tells.
            answer.release()
            answer, _ = await self._send(call, url, as_it_was=True)
            if answer.judged < 400:
                self._upstream.usage_option.refused(call.ask.model)
        if injected is not None and injected.cut:
            if answer.state is None:
                answer.release()
                raise AttemptFailed("reset", "cut by a fault of the policy (faults)", sent=True)
            answer.broken = "cut by a fault of the policy (faults)"
        return answer

    async def _send(self, call: Call, url: URL, *, as_it_was: bool = False) -> tuple[Answer, bool]:
        """An answer, and whether its stream was asked for usage on our own account."""
        upstream = self._upstream
        body, fields, asked_usage = call.body, call.fields, False
        if call.endpoint is not None:
            fields = _readable(fields, call.ask.stream or call.body.parsed is None)
            if call.body.whole and call.body.parsed is not None and not as_it_was:
                changed = upstream.dialect.add_usage(call.endpoint, call.body.whole, call.body.parsed)
                if changed is not None and not upstream.usage_option.known(call.ask.model):
                    changed = None
                if changed is not None:
                    body, asked_usage = call.body.replaced(changed), True
        elif call.follows is not None:
            fields = _readable(fields, "stream=" in call.rest.partition("?")[2])
        length = body.length if body.whole is None or len(body.whole) > SLICE else None
        response = await upstream.caller.send(
            call.method, url, fields, body.payload(), connect=upstream.policy.timeout.connect, length=length
        )
        try:
            return await read(response, call, upstream.dialect, strip_usage=asked_usage), asked_usage
        except BaseException:
            response.close()
            raise

    def _made_up(self, call: Call, status: int) -> Answer:
        text = "This answer was made up by a fault of the policy (faults)."
        body = self._upstream.dialect.error("injected_fault", status, text, request_id="")
        return Answer(call.method, status, "", [("Content-Type", "application/json")], status, body=body)


def _readable(fields: Fields, stream: bool) -> Fields:
    """Only encodings that we can read: the app accepts others as well, but usage could not be counted.
    `stream` is whether it asks for one, or may: events are read as they are."""
    accepted = first(fields, "accept-encoding")
    if accepted is None:
        return fields
    return replaced(fields, "accept-encoding", "gzip" if not stream and "gzip" in accepted.lower() else "identity")
