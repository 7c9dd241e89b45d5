"""Heads of answers to the app: the upstream's fields and ours, and refusals in its dialect."""

from __future__ import annotations

from proxy.egress.answer import Answer
from proxy.egress.call import Call
from proxy.egress.dialects import Dialect
from proxy.egress.headers import Fields, returning
from proxy.egress.sink import Head
from proxy.errors import CallRefused


def ours(call: Call) -> Fields:
    said = [("x-outrigger-attempts", str(call.attempts)), ("x-outrigger-cache", call.cache)]
    if call.fallback is not None:
        said.append(("x-outrigger-fallback", call.fallback))
    return said


def of_answer(call: Call, dialect: Dialect, answer: Answer) -> Head:
    """The upstream's fields, and ours: how it went, and whether it makes sense to come again."""
    said = returning(answer.fields)
    if answer.judged >= 400 and not any(name.lower() == "x-should-retry" for name, _ in said):
        permanent = dialect.permanent(answer.judged, answer.parsed)
        if permanent or answer.judged in (408, 409) or answer.judged >= 500:
            said.append(("x-should-retry", "false"))
    return Head(answer.status, answer.reason, said + ours(call), _length(answer))


def of_refusal(refused: CallRefused, dialect: Dialect, call: Call | None) -> tuple[Head, bytes]:
    """A refusal in the error shape of the dialect; the SDK's own retries end where they make no sense."""
    said: Fields = [("Content-Type", "application/json")]
    if not refused.again:
        said.append(("x-should-retry", "false"))
    if refused.retry_after is not None:
        said.append(("Retry-After", str(max(1, int(refused.retry_after + 0.999)))))
    request_id = ""
    if call is not None:
        request_id = call.owner.request_id if call.owner is not None else ""
        said += ours(call)
    body = dialect.error(refused.code, refused.status, str(refused), request_id=request_id)
    return Head(refused.status, "", said), body


def _length(answer: Answer) -> int | None:
    """The length that the upstream stated, where the body goes on as it is."""
    if answer.body is not None:
        return len(answer.body)
    value = answer.field("content-length")
    return int(value) if value is not None and value.isdigit() and answer.state is None else None
