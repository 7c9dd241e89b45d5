"""What a log line costs: python tests/bench/logs.py

Microseconds of CPU time a line (median of five): encoders alone, then our log as a whole with its thread.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from proxy.observe.access_log import AccessRecord
from proxy.observe.log import EventLog
from proxy.observe.log_format import format_json_line
from proxy.policy import schema

LINES = 20_000

ACCESS: dict[str, Any] = {
    "request_id": "k3j5n7a2c4e6g8q2w4r6t2y4u6",
    "trace_id": None,
    "route": "routine",
    "method": "POST",
    "path": "/api/user/4711/routine/generate?lang=en",
    "status": 200,
    "duration_ms": 12.345678,
    "app_ms": 11.923,
    "user": "4711",
    "tier": "free",
    "client_ip": "203.0.113.9",
    "bytes_in": 1234,
    "bytes_out": 5678,
    "cost_usd": None,
    "calls": 0,
    "memory_delta_mb": None,
    "refused": None,
}


def cost(act: Callable[[], object]) -> float:
    """Microseconds of this process's CPU time (all threads) a turn."""
    runs = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(LINES):
            act()
        runs.append((time.process_time() - started) / LINES * 1e6)
    return statistics.median(runs)


def show(name: str, microseconds: float) -> None:
    print(f"{name:<52} {microseconds:6.2f} µs a line")


def main() -> None:
    line = {
        "time": "2026-11-24T10:00:00.123Z",
        "level": "info",
        "event": "request",
        "message": "POST",
        **ACCESS,
    }
    formatter = JsonFormatter("%(message)s")
    record = logging.LogRecord("bench", 20, "f.py", 1, "POST", (), None)
    record.__dict__.update({key: value for key, value in line.items() if key != "message"})
    show("python-json-logger, its formatter alone", cost(lambda: formatter.format(record)))
    show("json.dumps", cost(lambda: json.dumps(line)))
    try:
        import orjson
    except ImportError:
        print("orjson is not installed: left out")
    else:
        show("orjson.dumps (not a dependency)", cost(lambda: orjson.dumps(line)))
    stamp = "2026-11-24T10:00:00.123Z"
    show("our encoder, any event", cost(lambda: format_json_line(stamp, "info", "request", "POST", ACCESS)))

    null = os.open(os.devnull, os.O_WRONLY)
    log = EventLog(schema.Log(), out=null)
    show("EventLog.log_request, thread and write included", cost(lambda: log.log_request(AccessRecord(**ACCESS))))
    secret = ACCESS | {"path": "/api?token=abc&lang=en"}
    show("EventLog.log_request with a secret in the query", cost(lambda: log.log_request(AccessRecord(**secret))))
    show("Log.emit, thread and write included", cost(lambda: log.emit("request", "POST", **ACCESS)))
    log.apply(schema.Log(access="off"))
    show("EventLog.log_request, switched off", cost(lambda: log.log_request(AccessRecord(**ACCESS))))
    log.close()
    print(f"{log.dropped} lines dropped")


if __name__ == "__main__":
    main()
