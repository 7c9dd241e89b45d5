"""Heads of answers to the app: the upstream's fields and ours, and refusals in its dialect."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.egress import error_response
from proxy.egress.app_response import ResponseHead
from proxy.egress.call import Call
from proxy.egress.dialects import Dialect
from proxy.egress.headers import Fields, first, replaced, returning, shared
from proxy.egress.upstream_response import UpstreamResponse
from proxy.errors import CallRefused
from proxy.http.retry_after import round_retry_after
from proxy.observe.emit import EmitEvent
from proxy.units import format_nanos


def outrigger_fields(call: Call | None) -> Fields:
    """The fields by which every answer says how its call went; without a call, that it came to none."""
    if call is None:
        return [("x-outrigger-attempts", "0"), ("x-outrigger-cache", "off")]
    said = [("x-outrigger-attempts", str(call.attempts)), ("x-outrigger-cache", call.cache)]
    cost = call.cost
    if cost is not None:
        said.append(("x-outrigger-cost", format_nanos(cost)))
    if call.fallback is not None:
        said.append(("x-outrigger-fallback", call.fallback))
    return said


def shared_fields(said: Fields, *, pays: bool) -> Fields:
    """The fields of a shared call's answer for a caller that joined it; only one that `pays` is told what it cost."""
    said = replaced(shared(said), "x-outrigger-cache", "coalesced")
    if pays or first(said, "x-outrigger-cost") is None:
        return said
    return replaced(said, "x-outrigger-cost", format_nanos(0))


def response_head(call: Call, dialect: Dialect, answer: UpstreamResponse) -> ResponseHead:
    """The head that the app gets: the upstream's fields, and ours on how it went and whether to come again."""
    said = returning(answer.fields)
    if answer.judged_status >= 400:
        permanent = dialect.is_permanent(answer.judged_status, answer.parsed)
        told = (answer.get_field("x-should-retry") or "").strip().lower()
        passing = (
            answer.judged_status in (408, 409)
            or answer.judged_status >= 500
            or (told == "true" and answer.judged_status != 429)
        )
        if permanent or (passing and not call.left_to_caller):
            said = replaced(said, "x-should-retry", "false")  # the attempts that make sense have been made
    return ResponseHead(answer.status, answer.reason, said + outrigger_fields(call), _stated_length(answer))


def refusal_response(refused: CallRefused, dialect: Dialect, call: Call | None) -> tuple[ResponseHead, bytes]:
    """A refusal in the error shape of the dialect; the SDK's own retries end where they make no sense."""
    said: Fields = [("Content-Type", "application/json")]
    if not refused.retryable:
        said.append(("x-should-retry", "false"))
    if refused.retry_after is not None:
        said.append(("Retry-After", str(round_retry_after(refused.retry_after))))
    request_id = call.owner.request_id if call is not None and call.owner is not None else ""
    said += outrigger_fields(call)
    body = dialect.error_body(refused.code, refused.status, str(refused), request_id=request_id)
    return ResponseHead(refused.status, "", said), body


def _stated_length(answer: UpstreamResponse) -> int | None:
    """The length that the upstream stated, if the body goes on as it is; None if it may change or is not known."""
    if answer.body is not None:
        return len(answer.body)
    value = answer.get_field("content-length")
    return int(value) if value is not None and value.isdigit() and answer.stream is None else None


# ── calls that came to none: they name no upstream, or are no HTTP; they are refused and logged like any other ────────

MAX_NAME_SHOWN = 100  # characters of a name that nobody gave


def refuse_unknown_upstream(
    method: str, name: str, known: Iterable[str], emit: EmitEvent
) -> tuple[ResponseHead, bytes]:
    name = name[:MAX_NAME_SHOWN]
    return refuse_stray(f"{method} {name}", error_response.unknown_upstream(name, known), emit)


def refuse_stray(what: str, why: CallRefused, emit: EmitEvent) -> tuple[ResponseHead, bytes]:
    """Log a call that came to none, and word its refusal in no dialect's shape."""
    emit(
        "call",
        f"{what} {why.status}",
        level="error" if why.status == 500 else "warning",
        status=why.status,
        attempts=0,
        cache="off",
        outcome="refused",
        refused=why.code,
        reason=str(why),
    )
    return refusal_response(why, Dialect(), None)
