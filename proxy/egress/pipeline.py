"""The life of a call out, from its head to the line in the log.

whose call → what is asked → the cache, or a call in flight → pace → attempts within one deadline → relay;
where it failed for good, the fallbacks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from aiohttp import web

from proxy.egress import error_response, fallback, response_head
from proxy.egress.accounting import CallAccounting
from proxy.egress.api_keys import VirtualKeys, key_variable
from proxy.egress.app_response import AppResponse, ResponseHead
from proxy.egress.billing.call_ledger import CallLedger
from proxy.egress.body import make_scanner, read_body
from proxy.egress.cache import cache_key
from proxy.egress.call import Call
from proxy.egress.coalescing import SharedCall
from proxy.egress.deadline import PATIENCE_HEADER, Deadline, parse_patience
from proxy.egress.dialects import Dialect
from proxy.egress.headers import Fields, fields, first, outgoing, token_of
from proxy.egress.produce import Producer
from proxy.egress.response_head import refusal_response, shared_fields
from proxy.egress.upstream import Upstream
from proxy.egress.url_mapping import split_target
from proxy.egress.websocket import relay_websocket
from proxy.errors import CallRefused
from proxy.observe.emit import EmitEvent
from proxy.observe.request_registry import RequestRegistry
from proxy.observe.reserved_users import normalize_user_name
from proxy.policy.schema import TierMatcher


class Pipeline:
    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        *,
        requests: RequestRegistry,
        keys: VirtualKeys,
        account: CallAccounting,
        books: CallLedger,
        emit: EmitEvent,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.upstreams = upstreams
        self.tiers = TierMatcher(())
        self._books = books
        self._now = now
        self._requests = requests
        self._keys = keys
        self._account = account
        self._emit = emit
        self._clock = asyncio.get_running_loop().time
        self._producer = Producer(books, self._clock)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        name, rest = split_target(request.raw_path)
        upstream = self.upstreams.get(name)
        sink = AppResponse(request)
        if upstream is None:
            sink.set_whole(
                *response_head.refuse_unknown_upstream(
                    request.method, self._account.redact(f"/{name}")[1:], self.upstreams, self._emit
                )
            )
            assert sink.response is not None
            return sink.response
        came = fields(request.raw_headers)
        call = Call(name, request.method, rest, outgoing(came), self._clock(), self._now())
        call.ask = upstream.dialect.parse_request(None, None)
        self._whose(call, came)
        self._account.begin_call(call)
        upstream.begin_call()
        done = self._cancellable(call)
        try:
            return await self._serve(call, upstream, request, came, sink)
        except CallRefused as refused:
            if sink.started:  # of a shared call: what came before has gone to the app
                sink.abort()
                call.outcome, call.reason = "error", str(refused)
                return web.Response()
            return self._refuse(sink, refused, call, upstream)
        except ConnectionError:  # the app is gone
            sink.abort()
            return web.Response()
        except Exception as error:  # the outermost seam: a fault of ours is one call's, not the process's
            call.outcome, call.reason = "error", f"{type(error).__name__}: {error}"
            self._emit("fault", call.reason, level="error", upstream=name)
            if sink.started:
                sink.abort()
                return web.Response()
            return self._refuse(sink, error_response.gateway_fault(), call, upstream)
        finally:
            done()
            self._account.end_call(call, upstream)
            upstream.end_call()

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _whose(self, call: Call, came: Fields) -> None:
        token = first(came, "x-outrigger-request") or token_of(first(came, "tracestate"))
        call.owner = self._requests.find(token)
        if call.owner is not None:
            call.user, call.tier = call.owner.user, call.owner.tier
        count = first(came, "x-stainless-retry-count")
        call.is_sdk_retry = count is not None and count.strip() not in ("", "0")

    def _cancellable(self, call: Call) -> Callable[[], None]:
        task = asyncio.current_task()
        owner = call.owner
        if task is None or owner is None or owner.request is None or owner.request.time_left(0.0) is None:
            return _nothing
        return self._requests.register_work(owner.token, task.cancel)

    async def _serve(
        self, call: Call, upstream: Upstream, request: web.BaseRequest, came: Fields, sink: AppResponse
    ) -> web.StreamResponse:
        policy = upstream.policy
        if policy.api_key is not None:
            made = self._keys.key_for(policy.kind, upstream.name)
            changed = self._keys.inject(made, policy.api_key, call.rest, call.fields)
            if changed is None:
                raise error_response.invalid_api_key(upstream.name, key_variable(policy.kind, upstream.name))
            call.target, call.fields = changed
        deadline = self._deadline(call, upstream, came)
        try:
            async with deadline:
                if request.headers.get("Upgrade", "").lower() == "websocket":
                    await self._books.load_spend(call, upstream)
                    upstream.billing.check_caps(call.user, call.tier)
                    return await relay_websocket(call, upstream, request, sink, deadline, self._clock)
                await self._understand(call, upstream, request)
                await self._answer(call, upstream, sink, deadline)
        except TimeoutError:
            took = self._clock() - call.began
            await self._too_late(
                call, upstream, sink, error_response.upstream_timeout(upstream.name, deadline.reason, took)
            )
        assert sink.response is not None
        if not isinstance(sink.response, web.Response):
            await sink.write_eof()
        return sink.response

    def _deadline(self, call: Call, upstream: Upstream, came: Fields) -> Deadline:
        total = upstream.policy.timeout.total
        request = call.owner.request if call.owner is not None else None
        left = request.time_left(call.began) if request is not None else None
        shorter = left is not None and left != float("inf") and (total is None or left < total)
        patience = parse_patience(first(came, PATIENCE_HEADER))
        deadline = Deadline(call.began, total=left if shorter else total, patience=patience)
        if shorter and deadline.reason == "total":
            deadline.reason = "request"
        return deadline

    async def _understand(self, call: Call, upstream: Upstream, request: web.BaseRequest) -> None:
        """Read what is asked: the body, the endpoint, the model, the user that the body names."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        call.endpoint, deployment = upstream.find_endpoint(call.method, call.rest)
        if call.endpoint is None:
            call.followed = upstream.find_followed(call.method, call.rest)
        source = request.content if request.body_exists else None
        uploads = request.content_type.startswith("multipart/")
        scan = partial(make_scanner, request.headers) if call.endpoint is not None else None
        call.body = await read_body(source, request.content_length, pass_on=uploads, scan=scan)
        call.body.parse()
        asked = call.body.members() if call.body.content is None else call.body.parsed
        call.ask = upstream.dialect.parse_request(call.endpoint, asked)
        if deployment is not None:
            call.ask = replace(call.ask, model=upstream.billing.priced_model(deployment, call.ask.model))
        if call.owner is None and call.ask.user:
            call.user = normalize_user_name(call.ask.user)
            call.tier = self.tiers.match(call.user)

    async def _answer(self, call: Call, upstream: Upstream, sink: AppResponse, deadline: Deadline) -> None:
        key = self._cache_key(call, upstream)
        if key is None:
            await self._producer.produce(call, upstream, sink, deadline, None)
            return
        entry = upstream.cache.get(key) if upstream.policy.cache.ttl else None
        if entry is not None:
            call.cache, call.outcome = "hit", "cached"
            self._producer.replay(call, entry, sink)
            return
        call.cache = "miss"
        if not upstream.policy.coalesce:
            await self._producer.produce(call, upstream, sink, deadline, key)
            return
        flight = upstream.shared_calls.get(key)
        if flight is not None:
            call.cache = "coalesced"
        else:
            flight = self._start(call, upstream, key)
        try:
            await self._join(call, flight, sink, deadline)
        except CallRefused as refused:
            if refused.code != "cost_cap_exceeded" or call.cache != "coalesced" or sink.started:
                raise
            call.cache = "miss"  # it was another's cap that was reached
            await self._producer.produce(call, upstream, sink, deadline, key)

    def _cache_key(self, call: Call, upstream: Upstream) -> bytes | None:
        """None where the answer may not be shared: by the policy, or because it is no question."""
        policy = upstream.policy
        if not (policy.cache.ttl or policy.coalesce) or call.body.content is None:
            return None
        question = call.endpoint is not None and call.body.parsed is not None
        question = question and upstream.dialect.is_repeatable(call.endpoint or "", call.body.parsed)  # else an order
        question = question or (policy.kind == "http" and call.method == "GET")
        if not question or (policy.cache.when == "deterministic" and not call.ask.deterministic):
            return None
        scope = call.user if policy.cache.scope == "user" else ""
        return cache_key(
            upstream=upstream.name,
            url=f"{policy.kind} {policy.base_url} {call.target}",
            method=call.method,
            headers=call.fields,
            body=call.body.content,
            scope=scope,
        )

    # ── a call that several share ────────────────────────────────────────────────────────────

    def _start(self, call: Call, upstream: Upstream, key: bytes) -> SharedCall:
        async def work(flight: SharedCall) -> None:
            deadline = Deadline(call.began, total=upstream.policy.timeout.total, patience=None)
            try:
                async with deadline:
                    await self._producer.produce(call, upstream, flight, deadline, key)
            except TimeoutError:
                took = self._clock() - call.began
                raise error_response.upstream_timeout(upstream.name, deadline.reason, took) from None

        def over(_: asyncio.Task[None]) -> None:
            self._account.settle_shared_call(call, upstream)
            upstream.end_call()

        upstream.begin_call()
        call.is_shared = True
        flight = upstream.shared_calls.start(key, work)
        flight.task.add_done_callback(over)
        return flight

    async def _join(self, call: Call, flight: SharedCall, sink: AppResponse, deadline: Deadline) -> None:
        async with flight.join() as reader:
            head = await reader.read_head()
            assert isinstance(head, ResponseHead)
            call.first_byte_at = self._clock()
            call.status = head.status
            deadline.commit(None)
            if call.cache == "coalesced":
                head = ResponseHead(
                    head.status, head.reason, shared_fields(head.fields, pays=reader.is_first), head.length
                )
            await sink.write_head(head)
            async for data in reader:
                await sink.write(data)
        if call.cache == "coalesced":
            call.outcome = "cached"

    async def _too_late(self, call: Call, upstream: Upstream, sink: AppResponse, late: CallRefused) -> None:
        if sink.started:
            return  # it has been told in the stream
        call.outcome, call.reason = "error", str(late)
        key = self._cache_key(call, upstream) if hasattr(call, "body") else None
        for step in fallback.fallback_steps(upstream):
            if (step.stale or step.text is not None) and hasattr(call, "body"):
                deadline = Deadline(self._clock(), total=None, patience=None)
                if await self._producer.fall_back(call, upstream, step, sink, deadline, key):
                    return
        raise late

    def _refuse(
        self, sink: AppResponse, refused: CallRefused, call: Call | None, upstream: Upstream | None
    ) -> web.StreamResponse:
        if call is not None:
            call.refusal = refused
            call.reason = call.reason or str(refused)
            call.status = refused.status
            failed = refused.code in ("upstream_timeout", "upstream_unreachable", "gateway_fault")
            call.outcome = "error" if failed else "refused"
        sink.set_whole(*refusal_response(refused, upstream.dialect if upstream is not None else Dialect(), call))
        assert sink.response is not None
        return sink.response


def _nothing() -> None:
    pass
