"""One event is one line, whatever it holds and whoever reads it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.observe.access_log import AccessRecord
from proxy.observe.emit import EmitEvent
from proxy.observe.log import EventLog
from proxy.observe.log_format import format_json_line, format_text_line, printable
from proxy.policy import schema

NOW = 1_790_000_000.1239


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def written(policy: schema.Log, act: Callable[[EventLog], None]) -> list[str]:
    out = io.BytesIO()
    log = EventLog(policy, out=out, now=lambda: NOW)
    act(log)
    assert log.close()
    return out.getvalue().decode().splitlines()


def objects(policy: schema.Log, act: Callable[[EventLog], None]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(policy, act)]


ACCESS: dict[str, Any] = {
    "request_id": "abc",
    "trace_id": None,
    "route": "default",
    "method": "GET",
    "path": "/a?token=x&b=1",
    "status": 200,
    "duration_ms": 12.34567,
    "app_ms": 11.0,
    "user": "user-1",
    "tier": "free",
    "client_ip": "203.0.113.9",
    "bytes_in": 0,
    "bytes_out": 512,
}


# fmt: off
FIELDS = (
    "time", "level", "event", "message", "request_id", "trace_id", "route", "method", "path", "status",
    "duration_ms", "app_ms", "user", "tier", "client_ip", "bytes_in", "bytes_out", "cost_usd", "calls",
    "memory_delta_mb", "refused",
)
# fmt: on


def test_a_line_has_time_level_event_message_and_ids_first() -> None:
    [line] = written(schema.Log(), lambda log: log.emit("app.ready", "The app is ready", port=8000))
    assert line == (
        '{"time":"2026-09-21T14:13:20.123Z","level":"info","event":"app.ready","message":"The app is ready",'
        '"request_id":null,"trace_id":null,"port":8000}'
    )


def test_emit_is_what_the_parts_expect() -> None:
    log = EventLog(schema.Log(), out=io.BytesIO())
    emit: EmitEvent = log.emit
    emit(event="x", message="y", level="debug", fact=1)
    assert log.close()


def test_the_access_line_has_every_field_of_the_contract_and_no_secret() -> None:
    [line] = objects(
        schema.Log(), lambda log: log.log_request(AccessRecord(**ACCESS, cost_usd=Decimal("0.000012"), calls=2))
    )
    assert tuple(line) == FIELDS
    assert line["event"] == "request"
    assert line["path"] == "/a?token=***&b=1"
    assert line["message"] == "GET /a?token=***&b=1 200"
    assert (line["duration_ms"], line["cost_usd"], line["calls"]) == (12.346, 0.000012, 2)
    assert line["refused"] is None


@pytest.mark.parametrize("shape", ["json", "text"])
def test_what_a_client_writes_into_user_or_path_stays_within_its_line(shape: Any) -> None:
    evil = 'x"\n{"event":"forged"}\r\x1b[31m\u2028\udcff\x00'
    facts = ACCESS | {"user": evil, "path": "/" + evil, "route": "a\nb"}
    lines = written(schema.Log(format=shape), lambda log: log.log_request(AccessRecord(**facts)))
    assert len(lines) == 1
    assert lines[0].isprintable()
    if shape == "json":
        assert json.loads(lines[0])["event"] == "request"


@pytest.mark.parametrize(("access", "statuses"), [("all", [200, 429, 500]), ("errors", [500]), ("off", [])])
def test_the_policy_says_which_requests_are_logged(access: Any, statuses: list[int]) -> None:
    def act(log: EventLog) -> None:
        for status in (200, 429, 500):
            log.log_request(AccessRecord(**(ACCESS | {"status": status})))

    assert [line["status"] for line in objects(schema.Log(access=access), act)] == statuses


def test_lines_below_the_level_are_left_out_until_a_new_policy_wants_them() -> None:
    def act(log: EventLog) -> None:
        log.emit("a", "")
        log.emit("b", "", level="warning")
        log.log_request(AccessRecord(**ACCESS))
        log.apply(schema.Log(level="debug"))
        log.emit("c", "", level="debug")

    assert [line["event"] for line in objects(schema.Log(level="warning"), act)] == ["b", "c"]


class Broken:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("fact", "shown"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (Decimal("1.5"), 1.5),
        (b"\xff", "\ufffd"),
        ("\udcff", "\ufffd"),
        ("😀", "😀"),
        ({1: 2, None: 3}, {"1": 2, "null": 3}),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({"b", "a"}, ["a", "b"]),
        (ValueError("no"), "ValueError: no"),
        (Path("/x"), "/x"),
    ],
)
def test_any_fact_becomes_strict_json(fact: object, shown: object) -> None:
    [line] = objects(schema.Log(), lambda log: log.emit("x", "y", fact=fact))
    assert line["fact"] == shown


def test_cycles_depth_and_length_are_cut() -> None:
    ring: list[object] = []
    ring.append(ring)
    [line] = written(schema.Log(), lambda log: log.emit("x", "y" * 100_000, ring=ring, long="z" * 1_000_000))
    assert len(line) < 20_000
    assert json.loads(line)["long"].endswith("(1000000 characters)")


def test_a_fact_that_cannot_even_be_shown_does_not_take_the_line_along() -> None:
    [line] = objects(schema.Log(), lambda log: log.emit("x", "y", fact=Broken()))
    assert (line["event"], line["message"]) == ("x", "y")
    assert "RuntimeError" in line["problem"]


def test_a_fact_cannot_pose_as_the_time() -> None:
    [line] = objects(schema.Log(), lambda log: log.emit("x", "y", time="never"))
    assert (line["time"], line["time_"]) == ("2026-09-21T14:13:20.123Z", "never")


def test_text_is_for_people() -> None:
    [line] = written(
        schema.Log(format="text"), lambda log: log.emit("app.exit", "It\nended", code=1, why="a b", who=None)
    )
    assert line == '2026-09-21T14:13:20.123Z INFO    app.exit: It\\nended code=1 why="a b"'


@settings(max_examples=200)
@given(message=st.text(), key=st.text(), value=st.text() | st.floats() | st.lists(st.text()))
def test_no_text_makes_two_lines_or_bad_json(message: str, key: str, value: object) -> None:
    for shape in (format_json_line, format_text_line):
        line = shape("T", "info", "e", message, {key: value})
        assert line.endswith("\n")
        assert line[:-1].isprintable()
    decoded = json.loads(format_json_line("T", "info", "e", message, {key: value}).encode("ascii"))
    assert decoded["event"] == "e" or key == "event"


def test_printable_text_is_left_alone() -> None:
    assert printable("plain é 😀") == "plain é 😀"
    assert printable("a\u202eb\x85") == "a\\u202eb\\x85"


# ── The stream ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_holds_up_nobody_and_learns_what_it_missed(pipe: tuple[int, int], blocking: bool) -> None:
    read, write = pipe
    os.set_blocking(write, blocking)
    log = EventLog(schema.Log(), out=write, bound=100_000)
    started = time.perf_counter()
    for number in range(3000):
        log.emit("n", "x" * 100, number=number)
    assert time.perf_counter() - started < 2
    assert log.dropped > 0

    received = bytearray()

    def drain() -> None:
        while piece := os.read(read, 65536):
            received.extend(piece)

    reader = threading.Thread(target=drain)
    reader.start()
    until(lambda: b"log.dropped" in received and not log._writer._pending_bytes)
    log.emit("after", "")
    assert log.close()
    os.close(write)
    reader.join(5)
    lines = [json.loads(line) for line in received.splitlines()]
    reported = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert reported == log.dropped
    assert len([line for line in lines if line["event"] == "n"]) == 3000 - reported
    assert lines[-1]["event"] == "after"


def test_lines_in_a_shared_pipe_are_not_torn_by_another_writer(pipe: tuple[int, int]) -> None:
    read, write = pipe
    received = bytearray()

    def drain() -> None:
        while piece := os.read(read, 4096):
            received.extend(piece)

    def app() -> None:
        for _ in range(500):
            os.write(write, b"app " + b"a" * 200 + b"\n")

    reader, other = threading.Thread(target=drain), threading.Thread(target=app)
    log = EventLog(schema.Log(), out=write)
    reader.start()
    other.start()
    for _ in range(2000):
        log.emit("ours", "b" * 150)
    other.join(5)
    assert log.close(5)
    os.close(write)
    reader.join(5)
    lines = received.splitlines()
    assert len(lines) == 2500
    assert all(line == b"app " + b"a" * 200 or json.loads(line)["event"] == "ours" for line in lines)


def test_a_reader_that_went_away_is_counted_not_raised(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    log = EventLog(schema.Log(), out=write)
    log.emit("x", "y")
    until(lambda: log.dropped == 1)
    assert not log.close()


def test_a_line_that_cannot_be_written_out_takes_neither_others_nor_the_writer_along() -> None:
    def act(log: EventLog) -> None:
        log.emit("before", "")
        log.log_request(AccessRecord(**(ACCESS | {"duration_ms": "soon"})))
        until(lambda: not log._writer._pending_bytes)
        log.emit("after", "")

    for shape in ("json", "text"):
        lines = "\n".join(written(schema.Log(format=shape), act))  # type: ignore[arg-type]
        assert [lines.find(word) >= 0 for word in ("before", "log.fault", "abc", "after")] == [True] * 4
        assert lines.index("before") < lines.index("log.fault") < lines.index("after")


class Strange(io.BytesIO):
    """Raises what no file should, once."""

    raised = False

    def write(self, data: Any) -> int:
        if not self.raised:
            self.raised = True
            raise RuntimeError("no")
        return super().write(data)


def test_nothing_ends_the_writer_and_what_it_lost_is_counted_and_told() -> None:
    out = Strange()
    log = EventLog(schema.Log(), out=out)
    log.emit("lost", "")
    until(lambda: log.dropped == 1 and not log._writer._pending_bytes)
    log.emit("next", "")
    assert log.close()
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["next", "log.dropped"]


def test_what_was_taken_before_the_close_is_written_in_the_order_that_it_came() -> None:
    for _ in range(20):
        out = io.BytesIO()
        log = EventLog(schema.Log(), out=out)
        taken: list[int] = []

        def put(log: EventLog = log, taken: list[int] = taken) -> None:
            for number in range(500):
                request = AccessRecord(**(ACCESS | {"bytes_in": number}))
                log.log_request(request) if number % 2 else log.emit("n", "", bytes_in=number)
                if not log.dropped:
                    taken.append(number)

        putter = threading.Thread(target=put)
        putter.start()
        time.sleep(0.0005)
        log.close(5)
        putter.join(5)
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [line["bytes_in"] for line in lines if line["event"] != "log.dropped"] == taken
        assert log.dropped == 500 - len(taken)


def test_lines_after_the_close_are_counted_and_the_close_comes_twice() -> None:
    out = io.BytesIO()
    log = EventLog(schema.Log(), out=out)
    log.emit("first", "")
    assert log.close()
    log.emit("late", "")
    assert log.dropped == 1
    log.close()
    assert out.getvalue().count(b"\n") == 1


def test_closing_before_a_stuck_reader_ends_in_time(pipe: tuple[int, int]) -> None:
    _, write = pipe
    log = EventLog(schema.Log(), out=write)
    for _ in range(1000):
        log.emit("x", "y" * 200)
    started = time.monotonic()
    assert not log.close(0.1)
    assert time.monotonic() - started < 1
