"""The access log: one line for each finished request."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from proxy.observe.log_format import encode_json, quote_json


class AccessRecord(NamedTuple):
    """A finished request. Times are in milliseconds, sizes in bytes. `path` is the request target as it was sent, query
    included. The line is formatted later, by the log's own thread."""

    request_id: str
    trace_id: str | None
    route: str
    method: str
    path: str
    status: int
    duration_ms: float
    app_ms: float | None
    user: str | None
    tier: str | None
    client_ip: str
    bytes_in: int
    bytes_out: int
    cost_usd: Decimal | float | None = None
    calls: int = 0
    memory_delta_mb: float | None = None
    refused: str | None = None

    def format_json(self, stamp: str, level: str, quoted: str) -> str:
        """The line as JSON, with its newline; `quoted` is the target without its secrets, as a JSON string."""
        # Written by hand, since it is the line of every request: json.dumps would take twice as long.
        # fmt: off
        (
            request_id, trace_id, route, method, _, status, took, app, user, tier, ip, bytes_in, bytes_out,
            cost, calls, memory, refused,
        ) = self
        # fmt: on
        verb = quote_json(method)
        return (
            f'{{"time":"{stamp}","level":"{level}","event":"request","message":{verb[:-1]} {quoted[1:-1]} {status}",'
            f'"request_id":{quote_json(request_id)},"trace_id":{"null" if trace_id is None else _json_text(trace_id)},'
            f'"route":{quote_json(route)},"method":{verb},"path":{quoted},"status":{status},"duration_ms":{took:.3f},'
            f'"app_ms":{"null" if app is None else f"{app:.3f}"},"user":{"null" if user is None else _json_text(user)},'
            f'"tier":{"null" if tier is None else _json_text(tier)},"client_ip":{quote_json(ip)},'
            f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},'
            f'"cost_usd":{"null" if cost is None else cost},"calls":{calls},'
            f'"memory_delta_mb":{"null" if memory is None else f"{memory:.3f}"},'
            f'"refused":{"null" if refused is None else _json_text(refused)}}}\n'
        )

    def extra_fields(self) -> dict[str, object]:
        """The fields of the line in text form: those that its message does not show already."""
        facts = self._asdict()
        for shown in ("method", "path", "status"):
            del facts[shown]
        app_ms = self.app_ms
        return facts | {
            "duration_ms": round(self.duration_ms, 1),
            "app_ms": None if app_ms is None else round(app_ms, 1),
            "calls": self.calls or None,
        }


def _json_text(value: str) -> str:
    """A JSON string. Only values that come unchecked from clients, which may hold lone surrogates, need this."""
    return quote_json(value) if value.isascii() else encode_json({"": value})[4:-1]
