"""The log: one line an event on one stream, written without ever holding up the work that it tells of."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import BinaryIO

from proxy.observe.events import Level
from proxy.observe.lines import Stamp, json_line, json_text, quote, text_line
from proxy.observe.redact import Redactor
from proxy.observe.sink import HELD, Sink
from proxy.policy import model

LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """`emit` is an `Emit`. Takes events from any thread; `out` is a descriptor or a binary file.

    `now` gives seconds since the epoch. At most `bound` bytes wait for a slow reader; what comes past that is
    dropped, counted in `dropped`, and told of by one `log.dropped` line when lines flow again.
    """

    def __init__(
        self,
        policy: model.Log,
        *,
        out: BinaryIO | int,
        now: Callable[[], float] = time.time,
        bound: int = HELD,
    ) -> None:
        self._stamp = Stamp(now)
        self.on_error: Callable[[str, str, Mapping[str, object]], None] | None = None  # told of errors as well
        self.apply(policy)
        self._sink = Sink(out, notice=self._dropped_line, bound=bound)

    def apply(self, policy: model.Log) -> None:
        """Takes a new policy for the lines to come."""
        self.policy = policy
        self._least = LEVELS[policy.level]
        self._json = policy.format == "json"
        # The least status that gets an access line.
        self._access = {"all": 0, "errors": 500, "off": 1000}[policy.access]
        self.redactor = Redactor(policy.redact)

    @property
    def dropped(self) -> int:
        """Lines that were lost since the start, because nobody read them in time."""
        return self._sink.dropped

    def wants(self, level: str) -> bool:
        return LEVELS.get(level, 40) >= self._least

    def emit(self, event: str, message: str, *, level: Level = "info", **facts: object) -> None:
        if level == "error" and self.on_error is not None:
            self.on_error(event, message, facts)
        if self.wants(level):
            self.put(self.encode(event, message, level, facts))

    def tell(self, event: str, message: str, *, level: Level = "info", **facts: object) -> None:
        """An `Emit` for what others decided to say: told whatever its level."""
        self.put(self.encode(event, message, level, facts))

    def encode(self, event: str, message: str, level: str, facts: Mapping[str, object]) -> str:
        """The line with its newline; facts cannot take the place of `time`, `level`, `event`, `message`."""
        if not facts.keys().isdisjoint(_OURS):
            facts = {f"{key}_" if key in _OURS else key: value for key, value in facts.items()}
        shape = json_line if self._json else text_line
        try:
            return shape(self._stamp(), level, event, message, facts)
        except Exception as error:  # a fact's own str() may do anything, and must not break what is logged
            told = {"problem": f"facts left out: {type(error).__name__}"}
            return shape(self._stamp(), level, event, message, told)

    def put(self, line: str) -> None:
        """A finished line, whatever its level."""
        self._sink.put(line.encode("utf-8", "backslashreplace"))

    def access(
        self,
        *,
        request_id: str,
        trace_id: str | None,
        route: str,
        method: str,
        path: str,
        status: int,
        duration_ms: float,
        app_ms: float | None,
        user: str | None,
        tier: str | None,
        client_ip: str,
        bytes_in: int,
        bytes_out: int,
        cost_usd: Decimal | float | None = None,
        calls: int = 0,
        memory_delta_mb: float | None = None,
        refused: str | None = None,
    ) -> None:
        """A finished request. `path` is the target as it was sent, query included: secrets go here.

        From a status of 500 on its level is `warning`, else `info`.
        """
        level = "info" if status < 500 else "warning"
        if status < self._access or LEVELS[level] < self._least:
            return
        path = self.redactor.target(path)
        if not self._json:
            facts = {
                "request_id": request_id,
                "trace_id": trace_id,
                "route": route,
                "duration_ms": round(duration_ms, 1),
                "app_ms": None if app_ms is None else round(app_ms, 1),
                "user": user,
                "tier": tier,
                "client_ip": client_ip,
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "cost_usd": cost_usd,
                "calls": calls or None,
                "memory_delta_mb": memory_delta_mb,
                "refused": refused,
            }
            self.put(self.encode("request", f"{method} {path} {status}", level, facts))
            return
        quoted, verb = quote(path), quote(method)
        line = (
            f'{{"time":"{self._stamp()}","level":"{level}","event":"request",'
            f'"message":"{verb[1:-1]} {quoted[1:-1]} {status}",'
            f'"request_id":{quote(request_id)},"trace_id":{_text(trace_id)},"route":{quote(route)},'
            f'"method":{verb},"path":{quoted},"status":{status},'
            f'"duration_ms":{duration_ms:.3f},"app_ms":{_number(app_ms)},'
            f'"user":{_text(user)},"tier":{_text(tier)},"client_ip":{quote(client_ip)},'
            f'"bytes_in":{bytes_in},"bytes_out":{bytes_out},'
            f'"cost_usd":{"null" if cost_usd is None else cost_usd},"calls":{calls},'
            f'"memory_delta_mb":{_number(memory_delta_mb)},"refused":{_text(refused)}}}\n'
        )
        self.put(line)

    def close(self, timeout: float = 2.0) -> bool:
        """Writes what waits, blocking for at most `timeout` seconds; whether everything was written."""
        return self._sink.close(timeout)

    def _dropped_line(self, lines: int) -> bytes:
        message = f"{lines} log lines were dropped: the reader of the log did not take them in time"
        return self.encode("log.dropped", message, "warning", {"lines": lines}).encode("ascii")


_OURS = frozenset({"time", "level", "event", "message"})


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"


def _text(value: str | None) -> str:
    """A JSON string or null. Only these come from clients unchecked, and may hold lone surrogates."""
    if value is None:
        return "null"
    if value.isascii():
        return quote(value)
    return json_text({"": value})[4:-1]
