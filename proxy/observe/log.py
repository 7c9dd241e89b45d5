"""The event log: one line for each event, on one stream. Writing it never blocks the work that emits an event."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import BinaryIO

from proxy.observe.access_log import AccessRecord
from proxy.observe.emit import LogLevel
from proxy.observe.log_format import (
    MAX_LINE_LENGTH,
    TimestampFormatter,
    format_json_line,
    format_text_line,
    quote_json,
)
from proxy.observe.log_writer import MAX_PENDING_BYTES, LogWriter
from proxy.observe.redact import Redactor
from proxy.policy import schema

_ACCESS_RECORD_BYTES = 2048  # memory that an access record takes while it waits to be written, without its path
ApplyPolicy = Callable[[], None]
MAX_QUOTED_TARGETS = 512  # of those logged lately, kept as they stand in a line
MAX_QUOTED_LENGTH = 256  # characters; longer ones are made anew each time
UNCLIPPED = 2**31  # characters; the caller has limited the length already
LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class EventLog:
    """Formats events and gives them to a `LogWriter`; may be used from any thread. `emit` is an `EmitEvent`.

    `out` is a descriptor or a binary file, `now` gives seconds since the epoch. At most `bound` bytes wait for a slow
    reader; lines past that are dropped, counted in `dropped`, and reported by one `log.dropped` line when lines flow
    again. `on_error` is called for every event of level error, whatever the policy's level.
    """

    def __init__(
        self,
        policy: schema.Log,
        *,
        out: BinaryIO | int,
        now: Callable[[], float] = time.time,
        bound: int = MAX_PENDING_BYTES,
    ) -> None:
        self._now = now
        self._timestamp = TimestampFormatter()  # shared with the writer's thread
        self.on_error: Callable[[str, str, Mapping[str, object]], None] | None = None  # set by Sentry
        self.region = ""  # of this instance (store.region), in every line if there is one
        self.apply(policy)
        self._writer = LogWriter(out, notice=self._format_dropped_line, bound=bound)

    def apply(self, policy: schema.Log) -> None:
        """Put a new policy in force for the lines to come."""
        self.prepare(policy)()

    def prepare(self, policy: schema.Log) -> ApplyPolicy:
        """The second step of `apply`: a function that puts the policy in force and cannot fail."""
        return partial(self._apply_prepared, policy, Redactor(policy.redact))

    def _apply_prepared(self, policy: schema.Log, redactor: Redactor) -> None:
        self.policy = policy
        self._min_level = LEVELS[policy.level]
        self._json = policy.format == "json"
        # The least status that gets an access line.
        self._min_access_status = {"all": 0, "errors": 500, "off": 1000}[policy.access]
        self.redactor = redactor
        # Requests come for the same few targets again and again, and looking for secrets in one costs 1.1 µs.
        self._quoted_targets: dict[str, str] = {}  # for the writer's thread

    @property
    def dropped(self) -> int:
        """Lines that were lost since the start because nobody read them in time."""
        return self._writer.dropped

    def is_enabled_for(self, level: str) -> bool:
        return LEVELS.get(level, 40) >= self._min_level

    def emit(self, event: str, message: str, *, level: LogLevel = "info", **attributes: object) -> None:
        if level == "error" and self.on_error is not None:
            self.on_error(event, message, attributes)
        if self.is_enabled_for(level):
            self.write_line(self.format_event(event, message, level, attributes))

    def emit_unclipped(self, event: str, message: str, *, level: LogLevel = "info", **attributes: object) -> None:
        """An `EmitEvent` without a limit of level or length, for the lines that the app prints."""
        self.write_line(self.format_event(event, message, level, attributes, UNCLIPPED))

    def format_event(
        self, event: str, message: str, level: str, attributes: Mapping[str, object], longest: int = MAX_LINE_LENGTH
    ) -> str:
        """The line with its newline. An attribute that is named as one of the reserved fields gets an underscore."""
        if not attributes.keys().isdisjoint(_RESERVED_FIELDS):
            attributes = {f"{key}_" if key in _RESERVED_FIELDS else key: value for key, value in attributes.items()}
        if self.region:
            attributes = {**attributes, "region": self.region}
        shape = format_json_line if self._json else format_text_line
        try:
            return shape(self._timestamp(self._now()), level, event, message, attributes, longest)
        except Exception as error:  # the str() of an attribute is foreign code, and must not break the line
            explanation = {"problem": f"facts left out: {type(error).__name__}"}
            return shape(self._timestamp(self._now()), level, event, message, explanation)

    def redact_target(self, target: str) -> str:
        """A request target without its secrets, by the policy in force."""
        return self.redactor.redact_target(target)

    def write_line(self, line: str) -> None:
        """Write a formatted line, whatever its level."""
        data = line.encode("utf-8", "backslashreplace")
        self._writer.write_line(data, len(data))

    def log_request(self, request: AccessRecord) -> None:
        """Log a finished request: as a `warning` from status 500 on, else as `info`. The writer's thread formats it: a
        batch of lines costs half of what the lines cost one by one between requests."""
        level = "info" if request.status < 500 else "warning"
        if request.status >= self._min_access_status and LEVELS[level] >= self._min_level:
            # The time is taken now, since the line is formatted later.
            line = partial(self._format_access_line, request, level, self._now())
            self._writer.write_line(line, _ACCESS_RECORD_BYTES + len(request.path))

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, blocking for at most `timeout` seconds; whether everything was written."""
        return self._writer.close(timeout)

    def _format_access_line(self, request: AccessRecord, level: str, moment: float) -> bytes:
        try:
            stamp = self._timestamp(moment)
            if self._json:
                quoted = self._quoted_targets.get(request.path) or self._quote_target(request.path)
                line = request.format_json(stamp, level, quoted)
                if self.region:
                    line = f'{line.rstrip()[:-1]},"region":{quote_json(self.region)}}}\n'
            else:
                path = self.redactor.redact_target(request.path)
                message = f"{request.method} {path} {request.status}"
                fields = {**request.extra_fields(), **({"region": self.region} if self.region else {})}
                line = format_text_line(stamp, level, "request", message, fields)
        except Exception as error:  # as in `format_event`: one record must not lose the lines of its batch
            text = f"A request's line could not be written out: {type(error).__name__}"
            line = self.format_event("log.fault", text, "error", {"request_id": request.request_id})
        return line.encode("ascii" if self._json else "utf-8", "backslashreplace")

    def _quote_target(self, target: str) -> str:
        """A target without its secrets, as a JSON string."""
        known = self._quoted_targets  # a reload puts another one in its place, with another redactor
        quoted = quote_json(self.redactor.redact_target(target))
        if len(target) <= MAX_QUOTED_LENGTH:
            if len(known) >= MAX_QUOTED_TARGETS:
                known.clear()
            known[target] = quoted
        return quoted

    def _format_dropped_line(self, lines: int) -> bytes:
        message = f"{lines} log lines were dropped: they could not be written in time"
        return self.format_event("log.dropped", message, "warning", {"lines": lines}).encode("ascii")


_RESERVED_FIELDS = frozenset({"time", "level", "event", "message"})
