"""A process that got no CPU for a while judges nobody by its own silence (cgroup throttling on half a core).

The loop is one that runs due timers before it reads sockets, as libuv's does: the order in which the mistake was made.
"""

from contextlib import suppress
from types import SimpleNamespace

import pytest

from proxy.egress import deadline as deadlines
from proxy.egress.deadline import Deadline
from proxy.errors import Refusal
from proxy.ingress.route_timeouts import RouteTimeouts


class TimersFirst:
    """`run(seconds)` lets time pass in small steps; `stall(seconds)` in one, with what came meanwhile read last."""

    def __init__(self) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, object]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when, call, *arguments):
        timer = SimpleNamespace(when=when, call=lambda: call(*arguments), cancelled=False)
        timer.cancel = lambda: setattr(timer, "cancelled", True)
        self._timers.append((when, timer))
        return timer

    def stall(self, seconds: float, read=lambda: None) -> None:
        self.now += seconds
        due = sorted((when, id(timer), timer) for when, timer in self._timers if when <= self.now)
        self._timers = [(when, timer) for when, timer in self._timers if when > self.now]
        for _, _, timer in due:
            if not timer.cancelled:
                timer.call()
        read()

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.stall(0.01)


@pytest.fixture
def loop(monkeypatch):
    loop = TimersFirst()
    task = SimpleNamespace(cancel=lambda: None, cancelling=lambda: 0)
    fake = SimpleNamespace(get_running_loop=lambda: loop, current_task=lambda: task)
    monkeypatch.setattr(deadlines, "asyncio", fake)
    return loop


def committed_deadline(loop: TimersFirst) -> Deadline:
    deadline = Deadline(loop.now, total=None, patience=None)
    with suppress(StopIteration):  # which is how a coroutine returns
        deadline.__aenter__().send(None)
    deadline.commit(1.0)
    return deadline


def test_bytes_that_came_during_a_stall_are_read_before_a_stream_is_called_idle(loop):
    deadline = committed_deadline(loop)
    loop.run(0.5)
    loop.stall(3.0, read=deadline.record_progress)
    loop.run(0.9)
    assert not deadline.expired
    loop.run(0.3)
    assert deadline.expired
    assert deadline.reason == "idle"


def test_a_vendor_that_sent_nothing_during_a_stall_is_idle_all_the_same(loop):
    deadline = committed_deadline(loop)
    loop.stall(3.0)
    loop.run(0.1)
    assert deadline.expired


def test_a_loop_that_is_always_late_still_ends_a_silent_stream(loop):
    deadline = committed_deadline(loop)
    for _ in range(20):
        loop.stall(0.3)
    assert deadline.expired


class Connection(SimpleNamespace):
    __hash__ = object.__hash__


def watched_connection(loop: TimersFirst) -> Connection:
    """A connection to the app whose exchange has a time-out of a second; `failures` are what it was ended with."""
    failures: list[Refusal] = []
    connection = Connection(last_read=loop.now, reading_paused=False, failures=failures, fail=failures.append)
    x = SimpleNamespace(route=SimpleNamespace(name="r", timeout=1.0, total=None), received_at=loop.now)
    upload = SimpleNamespace(waits_for_client=False, progress_at=loop.now)
    RouteTimeouts(loop).add(connection, x, upload, loop.now)
    return connection


def test_bytes_that_came_during_a_stall_are_read_before_the_app_is_called_late(loop):
    connection = watched_connection(loop)
    loop.run(0.5)
    loop.stall(3.0, read=lambda: setattr(connection, "last_read", loop.now))
    loop.run(0.9)
    assert connection.failures == []
    loop.run(0.3)
    assert [one.name for one in connection.failures] == ["timeout"]


def test_an_app_that_sent_nothing_during_a_stall_is_late_all_the_same(loop):
    connection = watched_connection(loop)
    loop.stall(3.0)
    loop.run(0.1)
    assert len(connection.failures) == 1


def test_a_loop_that_is_always_late_still_ends_a_silent_app(loop):
    connection = watched_connection(loop)
    for _ in range(20):
        loop.stall(0.3)
    assert len(connection.failures) == 1
