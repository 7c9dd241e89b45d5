"""`routes[].headers`: which fields a policy may name, and how its faults say so."""

import pytest

from proxy.errors import PolicyError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.renderer import render_policy

RESERVED = [
    "Host", "Content-Length", "transfer-encoding", "Connection", "Keep-Alive", "TE", "Trailer", "Upgrade", "Expect",
    "Proxy-Authorization", "Proxy-Connection", "X-Request-Id", "X-Outrigger-Request", "X-Forwarded-For", "Forwarded",
    "x_forwarded_for", "Via", "RateLimit", "X-RateLimit-Limit", "X-Cost-Used-Today", "Cache-Status", "tracestate",
]  # fmt: skip


def load(text, environ=None):
    return load_policy(PolicySource("p.yaml", None, text), environ or {})


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("side", ["request", "response"])
def test_fields_that_frame_end_at_a_hop_or_are_the_gateways_are_a_fault_with_file_and_line(name, side):
    text = f"routes:\n  - name: a\n    headers:\n      {side}:\n        {name}: x\n"
    with pytest.raises(PolicyError) as caught:
        load(text)
    (fault,) = caught.value.faults
    assert str(fault).startswith(f"p.yaml:5: routes[0].headers.{side}.{name}: ")


def test_one_field_in_two_spellings_is_a_fault():
    with pytest.raises(PolicyError, match="same field as x-a"):
        load("routes: [{name: a, headers: {request: {x-a: 1, X-A: 2}}}]")


@pytest.mark.parametrize("value", ['"a\\r\\nInjected: b"', '"\\u00e9"', '" x"', '""'])
def test_a_value_that_would_break_a_head_is_a_fault(value):
    with pytest.raises(PolicyError):
        load(f"routes: [{{name: a, headers: {{response: {{X-A: {value}}}}}}}]")


def test_a_value_out_of_the_environment_is_not_shown_again():
    policy = load(
        "routes: [{name: a, headers: {request: {X-Key: '${SECRET}', X-Env: prod, X-B: null}}}]", {"SECRET": "s3cr3t"}
    )
    shown = render_policy(policy)
    assert "s3cr3t" not in shown
    assert 'request: {X-Key: "***", X-Env: prod, X-B: null}' in shown
    again = load(render_policy(load("routes: [{name: a, headers: {request: {X-Env: prod, X-B: null}}}]")))
    assert again.routes[0].headers.request["X-B"] is None
