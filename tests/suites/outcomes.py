"""A pytest plugin for suites that are not ours: writes each test and how it ended, a line each, to the file that
SUITE_OUTCOMES names."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

_worst: dict[str, tuple[str, str]] = {}


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        ended = "xfailed" if hasattr(report, "wasxfail") and report.outcome == "skipped" else report.outcome
        if _worst.get(report.nodeid, ("",))[0] != "failed":
            _worst[report.nodeid] = ended, str(report.longrepr) if ended == "failed" else ""


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    if nodeid in _worst:
        ended, said = _worst.pop(nodeid)
        with open(os.environ["SUITE_OUTCOMES"], "a", encoding="utf-8") as out:
            out.write(json.dumps({"test": nodeid, "ended": ended, "said": said[-4000:]}) + "\n")
