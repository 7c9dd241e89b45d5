"""Where calls are to say whose they are, and whom they are then billed to."""

import pytest

from proxy.app import attribution
from proxy.observe.request_registry import KEEP_ENDED_SECONDS, RequestRegistry
from proxy.policy.loading import PolicySource, load_policy


@pytest.mark.parametrize(
    ("policy", "on"),
    [
        ("", False),
        ("identity: {user: [ip]}", False),
        ("identity: {user: [{header: X-User}]}", True),
        ("identity: {tiers: [{name: free}]}", True),
        ("routes: [{name: a, match: {path: /a}, when_abandoned: cancel}]", True),
        ("upstreams: {openai: {cap: {per_user: $1/d}}}", True),
        ("upstreams: {openai: {cap: {total: $1/d}}}", False),
        ("app: {attribution: on}", True),
        ("app: {attribution: off}\nidentity: {user: [{header: X-User}]}", False),
    ],
)
def test_it_is_on_where_somebody_needs_to_know_whose_a_call_is(policy, on):
    assert attribution.is_enabled(load_policy(PolicySource("test", None, policy), {})) == on


@pytest.mark.parametrize(
    ("program", "python"), [("uvicorn", True), ("/bin/sh", True), ("/usr/bin/node", False), ("npm", False)]
)
def test_an_app_that_is_surely_no_python_is_left_alone(program, python):
    assert attribution.is_python(program) == python


class Asked:
    user, tier, request_id, trace_id, route_name = "ada", "free", "r1", None, "ask"

    def time_left(self, now):
        return None


def test_a_loop_that_a_request_started_is_billed_to_its_user_for_ten_minutes_after_it():
    now = 0.0
    requests = RequestRegistry(lambda: now)
    requests.begin("t", Asked())
    now = 5000.0
    assert requests.find("t").user == "ada"  # the request goes on, and so does what it started
    requests.end("t")
    now += KEEP_ENDED_SECONDS - 1
    assert requests.find("t").user == "ada"
    now += 2
    assert requests.find("t") is None
