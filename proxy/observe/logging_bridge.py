"""Puts the records of Python's own `logging` (aiohttp, asyncio, libraries) into the event log, with the same field
names.

python-json-logger's formatter gathers the fields of a record (extras, exceptions, dicts as messages); our own
formatter writes the line, so that both formats, clipping and the order of fields are those of every other line.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError
from pythonjsonlogger.core import RESERVED_ATTRS, BaseJsonFormatter

from proxy.observe.log import LEVELS, EventLog

# Fields that Python 3.12 and later add to each record, and that are of no use in a log.
_IGNORED_FIELDS = ("taskName",)


class LineFormatter(BaseJsonFormatter):
    """Formats a record as a line of our log: `event: log`, with the name of its logger as `logger`."""

    def __init__(self, log: EventLog) -> None:
        reserved = [*RESERVED_ATTRS, *_IGNORED_FIELDS]
        super().__init__(["message", "levelno", "name"], rename_fields={"name": "logger"}, reserved_attrs=reserved)
        self._log = log

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        message = str(log_data.pop("message", ""))
        level = level_name(log_data.pop("levelno"))
        return self._log.format_event("log", message, level, {str(key): value for key, value in log_data.items()})

    def format(self, record: logging.LogRecord) -> str:
        if _is_bad_request(record):
            record = logging.makeLogRecord(record.__dict__ | {"levelno": logging.DEBUG})
        return super().format(record)


class LogHandler(logging.Handler):
    """Writes records to our log. Its own faults are logged there too, never on the app's stderr."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(LineFormatter(log))

    def emit(self, record: logging.LogRecord) -> None:
        # Looked at before the record is formatted, which costs more than most records are worth.
        level = "debug" if _is_bad_request(record) else level_name(record.levelno)
        if not self._log.is_enabled_for(level):
            return
        try:
            line = self.format(record)
        except Exception as error:  # formatting the record's arguments is foreign code
            self._log.emit(
                "log",
                str(record.msg),
                level="warning",
                logger=record.name,
                problem=f"arguments do not fit: {type(error).__name__}: {error}",
            )
            return
        self._log.write_line(line)


def level_name(number: int) -> str:
    """Our level for a number of `logging`: the highest that it reaches; CRITICAL is an error."""
    return next((name for name in ("error", "warning", "info") if number >= LEVELS[name]), "debug")


def _is_bad_request(record: logging.LogRecord) -> bool:
    """aiohttp logs a request that does not parse as an error of its own, with a traceback. Anybody could fill the log
    with these; such a request is answered and counted elsewhere."""
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)


class RootLoggerState:
    """What the root logger was before: `handlers` and `level`, and the `handler` that took their place."""

    def __init__(self, handlers: list[logging.Handler], level: int, ours: LogHandler) -> None:
        self.handlers = handlers
        self.level = level
        self.handler = ours


def install_stdlib_logging(log: EventLog) -> RootLoggerState:
    """Take over the root logger and the `warnings` module; `uninstall_stdlib_logging` undoes it."""
    root = logging.getLogger()
    before = RootLoggerState(root.handlers[:], root.level, LogHandler(log))
    root.handlers[:] = [before.handler]
    root.setLevel(LEVELS[log.policy.level])
    logging.captureWarnings(True)
    return before


def uninstall_stdlib_logging(before: RootLoggerState) -> None:
    root = logging.getLogger()
    root.handlers[:] = before.handlers
    root.setLevel(before.level)
    logging.captureWarnings(False)
