"""What the app gets when its call has failed for good: the policy's list, tried in order."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from proxy.egress.api_keys import with_own_key
from proxy.egress.call import Call
from proxy.egress.headers import Fields
from proxy.egress.upstream import Upstream
from proxy.egress.url_mapping import portable_target
from proxy.policy import schema

if TYPE_CHECKING:
    pass

STALE_STEP = schema.Fallback(stale=True)


def fallback_steps(upstream: Upstream) -> Iterator[schema.Fallback]:
    """The policy's list; an expired entry of the cache comes first if the list does not name it and one may be used
    (stale-if-error, RFC 5861 section 4): the very answer, if old, is better than another."""
    listed = upstream.policy.fallback
    cache = upstream.policy.cache
    if cache.ttl and cache.stale_if_error and not any(step.stale for step in listed):
        yield STALE_STEP
    yield from listed


def step_name(step: schema.Fallback) -> str:
    """The step's name, as header, log and README have it."""
    parts = [f"upstream={step.upstream}"] if step.upstream else []
    parts += [f"model={step.model}"] if step.model else []
    return ";".join(parts) or ("stale" if step.stale else "text")


def redirect_call(call: Call, step: schema.Fallback) -> Call | None:
    """The call as it goes to another model or upstream; None if it cannot go there.

    Another upstream never sees this one's key, nor anything else that says whose the call is: it gets what is asked,
    and its own key, or is not called at all.
    """
    other = call.upstream.siblings.get(step.upstream or call.upstream.name)
    if other is None or not call.body.can_resend:
        return None
    fields: Fields = call.fields
    target: str | None = call.target
    if other.name != call.upstream.name:
        if other.policy.api_key is None:
            return None
        if call.endpoint is not None and not other.dialect.is_repeatable(call.endpoint, call.body.parsed):
            return None  # an order is asked after where it was called, by an id that only its vendor knows
        fields = with_own_key(other.policy.kind, other.policy.api_key, fields)
        target = portable_target(call.rest, inference=call.endpoint is not None)
    if target is None:
        return None
    copy = Call(other, call.method, call.rest, fields, call.began, call.started_at)
    copy.target = target
    copy.writer, copy.deadline = call.writer, call.deadline
    copy.endpoint, copy.owner, copy.user, copy.tier = call.endpoint, call.owner, call.user, call.tier
    copy.ask, copy.body, copy.is_sdk_retry = call.ask, call.body, call.is_sdk_retry
    copy.attempts, copy.cache, copy.charges = call.attempts, call.cache, call.charges
    if step.model is not None:
        if call.body.content is None or call.body.parsed is None:
            return None
        changed = other.dialect.with_model(call.body.content, step.model)
        copy.body = call.body.with_content(changed)
        copy.body.parse()
        copy.ask = other.dialect.parse_request(call.endpoint, copy.body.parsed)
    return copy


def canned_answer(call: Call, text: str) -> tuple[str, bytes] | None:
    """A well-formed answer of our own in the shape that was asked for; None if there is no such shape."""
    if call.endpoint is None or call.body.parsed is None:
        return None
    upstream = call.upstream
    made = upstream.dialect.synthetic_response(
        call.endpoint, call.body.parsed, text, id=secrets.token_hex(12), created=int(upstream.now())
    )
    return None if made is None else (made.content_type, made.body)
