"""What an answer is paid by: the usage that it reports, wherever in it that stands, else what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.egress.dialects import Dialect, OutputSize, Usage
from proxy.egress.upstream_response import UpstreamResponse

if TYPE_CHECKING:
    from proxy.egress.billing.charge import Charge
    from proxy.egress.call import Call


def settle_whole(call: Call, dialect: Dialect, answer: UpstreamResponse, body: bytes, bill: Charge | None) -> None:
    """An answer that was read before the app sees it."""
    if call.endpoint is None:
        return
    call.usage = dialect.usage(call.endpoint, answer.parsed)
    if bill is None:
        return
    written = (
        dialect.output_size(bill.endpoint, answer.parsed)
        if answer.parsed is not None
        else _written_bytes(answer, len(body))
    )
    bill.settle(call.usage, written)


def settle_relayed(call: Call, dialect: Dialect, answer: UpstreamResponse, passed: int, bill: Charge | None) -> None:
    """An answer that passed, to its end or not; `passed`: bytes of it."""
    if call.endpoint is None:
        return
    final = answer.complete
    if answer.stream is not None:
        call.usage, written, final = answer.stream.usage, answer.stream.output_size, answer.stream.usage_is_final
    elif answer.media is not None:
        answer.media.close()
        call.usage, written = answer.media.usage, answer.media.output_size
        if bill is not None and call.usage is None and answer.media.failed and not answer.media.image_count:
            bill.release()  # a definite error
    else:
        call.usage, written = _usage_at_ends(call, dialect, answer), _written_bytes(answer, passed)
    if bill is not None:
        bill.settle(call.usage, written, final=final)


def _usage_at_ends(call: Call, dialect: Dialect, answer: UpstreamResponse) -> Usage | None:
    if answer.ends is None or call.endpoint is None:
        return None
    told = answer.ends.members()
    if call.endpoint == "images":
        told.setdefault("data", [None] * call.ask.choices)  # they are not kept; as many as were asked for
    return dialect.usage(call.endpoint, told)


def _written_bytes(answer: UpstreamResponse, size: int) -> OutputSize:
    """Of what cannot be read: text by its length; sound and pictures by what was asked for."""
    kind = (answer.get_field("content-type") or "").strip().lower()
    binary = kind.startswith(("audio/", "image/", "video/", "application/octet-stream"))
    return OutputSize() if binary else OutputSize(size)
