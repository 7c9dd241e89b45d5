"""Python's own logging comes out as lines of our log."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.http_exceptions import BadHttpMessage

from proxy.observe.log import EventLog
from proxy.observe.logging_bridge import LogHandler, install_stdlib_logging, level_name, uninstall_stdlib_logging
from proxy.policy import schema


class Captured:
    def __init__(self, policy: schema.Log) -> None:
        self.out = io.BytesIO()
        self.log = EventLog(policy, out=self.out)

    def lines(self) -> list[dict[str, Any]]:
        self.log.close()
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


@pytest.fixture
def captured() -> Iterator[Captured]:
    captured = Captured(schema.Log())
    before = install_stdlib_logging(captured.log)
    yield captured
    uninstall_stdlib_logging(before)
    captured.log.close()


def test_a_record_has_our_field_names_and_its_extras(captured: Captured) -> None:
    logging.getLogger("aiohttp.server").error("Failed %s", "once", extra={"peer": "::1"})
    [line] = captured.lines()
    assert list(line) == ["time", "level", "event", "message", "request_id", "trace_id", "logger", "peer"]
    assert (line["level"], line["event"], line["message"]) == ("error", "log", "Failed once")
    assert (line["logger"], line["peer"]) == ("aiohttp.server", "::1")


def test_an_exception_stays_in_one_line(captured: Captured) -> None:
    try:
        raise ValueError("no\nno")
    except ValueError:
        logging.getLogger("asyncio").exception("Task failed")
    [line] = captured.lines()
    assert line["exc_info"].startswith("Traceback")
    assert "ValueError: no\nno" in line["exc_info"]


def test_debug_chatter_is_left_out(captured: Captured) -> None:
    logging.getLogger("asyncio").debug("Using selector")
    assert captured.lines() == []


def test_arguments_that_do_not_fit_are_told_of_and_do_no_harm(
    captured: Captured, capsys: pytest.CaptureFixture[str]
) -> None:
    # Handed over directly: the test runner's own handlers on the root logger would raise.
    LogHandler(captured.log).handle(logging.LogRecord("lib", 30, "f.py", 1, "%d apples", ("no",), None))
    [line] = captured.lines()
    assert line["message"] == "%d apples"
    assert "arguments do not fit" in line["problem"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("level", "levels"), [("info", []), ("debug", ["debug"])])
def test_a_request_that_does_not_parse_is_no_error_of_ours(level: Any, levels: list[str]) -> None:
    captured = Captured(schema.Log(level=level))
    fault = BadHttpMessage("no Host")
    record = logging.LogRecord("aiohttp.server", 40, "f.py", 1, "Error", (), (BadHttpMessage, fault, None))
    LogHandler(captured.log).handle(record)
    assert [line["level"] for line in captured.lines()] == levels


def test_an_extra_cannot_pose_as_a_field_of_ours(captured: Captured) -> None:
    logging.getLogger("lib").warning("x", extra={"level": "none", "event": "request", "time": 0})
    [line] = captured.lines()
    assert (line["level"], line["event"], line["event_"]) == ("warning", "log", "request")


def test_warnings_come_along(captured: Captured) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # catch_warnings put showwarning back to what captureWarnings had set.
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert any("old" in line["message"] for line in captured.lines())


def test_the_root_logger_is_given_back_as_it_was() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    captured = Captured(schema.Log(level="debug"))
    before = install_stdlib_logging(captured.log)
    assert root.handlers != handlers
    uninstall_stdlib_logging(before)
    assert (root.handlers, root.level) == (handlers, level)
    captured.log.close()


@pytest.mark.parametrize(
    ("number", "name"),
    [(50, "error"), (40, "error"), (30, "warning"), (25, "info"), (20, "info"), (5, "debug")],
)
def test_levels_map_to_ours(number: int, name: str) -> None:
    assert level_name(number) == name
