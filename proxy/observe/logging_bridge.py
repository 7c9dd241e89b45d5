"""Python's own `logging` (aiohttp, asyncio, libraries) into the same stream, under the same field names.

python-json-logger's formatter gathers a record's fields (extras, exceptions, dicts as messages); our own
encoder writes the line, so that both formats, clipping and order of fields are those of every other line.
"""

from __future__ import annotations

import logging
from typing import Any

from aiohttp.http_exceptions import HttpProcessingError
from pythonjsonlogger.core import BaseJsonFormatter

from proxy.observe.log import LEVELS, EventLog

# Fields that asyncio and Python 3.12+ add to each record, and that tell nobody anything.
_IGNORED_FIELDS = ("taskName",)


class LineFormatter(BaseJsonFormatter):
    """A record as a line of our log, `event: log`, its logger's name under `logger`."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(["message", "levelno", "name"], rename_fields={"name": "logger"})
        self.reserved_attrs.update(_IGNORED_FIELDS)
        self._skip_fields.update(_IGNORED_FIELDS)
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
    """Puts records into our log. Its own faults are told of there too, never on the app's stderr."""

    def __init__(self, log: EventLog) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(LineFormatter(log))

    def emit(self, record: logging.LogRecord) -> None:
        level = "debug" if _is_bad_request(record) else level_name(record.levelno)
        if not self._log.is_enabled_for(level):
            return
        try:
            line = self.format(record)
        except Exception as error:  # the record's arguments are foreign, and may fail in any way
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
    """Our level for a number of `logging`: the highest that it reaches, CRITICAL being an error."""
    return next((name for name in ("error", "warning", "info") if number >= LEVELS[name]), "debug")


def _is_bad_request(record: logging.LogRecord) -> bool:
    """aiohttp logs a request that does not parse as an error of its own, with a traceback: strangers' bytes
    would fill the log. It is answered, and where it counts, counted."""
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)


class RootLoggerState:
    """What the root logger had before, to be put back."""

    def __init__(self, handlers: list[logging.Handler], level: int, ours: LogHandler) -> None:
        self.handlers = handlers
        self.level = level
        self.handler = ours


def install_stdlib_logging(log: EventLog) -> RootLoggerState:
    """Takes the root logger over, warnings of the `warnings` module included; undo with `uninstall`."""
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
