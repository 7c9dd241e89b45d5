"""What is remembered of errors and refusals."""

from __future__ import annotations

from proxy.observe.recent_errors import MAX_ERRORS, MAX_USERS_PER_SLOT, RecentErrors


class Clock:
    now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def remembering() -> tuple[RecentErrors, Clock]:
    clock = Clock()
    return RecentErrors(lambda target: target.replace("s3cret", "***"), now=clock), clock


def test_the_newest_errors_come_first_and_only_so_many_stay() -> None:
    recent, _ = remembering()
    for number in range(MAX_ERRORS + 5):
        recent.add_request_error(f"r{number}", "ask", "GET", "/x?token=s3cret", "ada", 502, "broke", 0.25)
        recent.add_call_error(None, "openai", None, "ada", 0, "reset", 0.5)
    assert len(recent.request_errors()) == len(recent.call_errors()) == MAX_ERRORS
    newest = recent.request_errors()[0]
    assert (newest["request_id"], newest["path"], newest["duration_ms"]) == (
        f"r{MAX_ERRORS + 4}",
        "/x?token=***",
        250.0,
    )
    assert newest["time"] == "2026-09-21T14:13:20Z"
    assert recent.call_errors()[0]["status"] is None


def test_who_was_refused_most_in_the_last_hour() -> None:
    recent, clock = remembering()
    for _ in range(3):
        recent.add_refusal("eve", "free", "ask", "rate-limited")
    clock.now += 1800
    recent.add_refusal("eve", "free", "ask", "rate-limited")
    recent.add_refusal("bob", "", "openai", "cost-cap")
    found = recent.most_refused_users()
    assert [(one["user"], one["refused"], one["reason"]) for one in found] == [
        ("eve", 4, "rate-limited"),
        ("bob", 1, "cost-cap"),
    ]
    assert recent.count_refused_users() == {"ask": 1, "openai": 1}
    clock.now += 4200
    assert recent.most_refused_users() == []


def test_a_flood_of_names_pushes_out_those_that_were_seen_once() -> None:
    recent, _ = remembering()
    for number in range(3 * MAX_USERS_PER_SLOT):
        recent.add_refusal(f"u{number}", "", "ask", "rate-limited")
        recent.add_refusal("eve", "", "ask", "rate-limited")
    assert recent.count_refused_users()["ask"] == MAX_USERS_PER_SLOT
    assert recent.most_refused_users()[0]["user"] == "eve"
    assert recent.most_refused_users()[0]["refused"] == 3 * MAX_USERS_PER_SLOT
