"""What a policy takes from the environment."""

from __future__ import annotations

import pytest

from proxy.errors import PolicyError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.parsing.env_vars import substitute_variables
from proxy.policy.schema import Policy
from proxy.policy.values import Address


def say(text: str, **environ: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), environ)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"),
        ("x${A}y${B}z", "x1y2z"),
        ("${NONE:-d}", "d"),
        ("${NONE:-}", ""),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("$0.50/d", "$0.50/d"),
        ("$A $$ $", "$A $$ $"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("${NONE:-a:-b}", "a:-b"),
    ],
)
def test_references_stand_for_variables_and_all_other_dollars_for_themselves(text: str, value: str) -> None:
    assert substitute_variables(text, {"A": "1", "B": "2", "EMPTY": ""}) == value


def test_a_value_is_never_read_for_references_again() -> None:
    assert substitute_variables("${A}", {"A": "${B}", "B": "x"}) == "${B}"


@pytest.mark.parametrize("text", ["${NONE}", "${", "${}", "${1A}", "${A", "${A-x}", "${BAD}"])
def test_a_reference_that_leads_nowhere_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="environment|brace|UTF-8"):
        substitute_variables(text, {"A": "1", "BAD": "\udcff"})


def test_a_missing_variable_is_named_with_its_line() -> None:
    with pytest.raises(PolicyError) as caught:
        say("app:\n  hold: ${HOLD}\n")
    assert str(caught.value) == ("p.yaml:2: app.hold: the environment has no HOLD; set it, or write ${NAME:-default}")


def test_variables_work_in_every_type_of_value() -> None:
    text = "app: {hold: '${N}s', restart: {give_up_after: '${N}'}}\nroutes: [{name: a, enforce: '${NO}'}]"
    policy = say(text, N="7", NO="false")
    assert (policy.app.hold, policy.app.restart.give_up_after, policy.routes[0].enforce) == (7.0, 7, False)


def test_some_defaults_come_out_of_the_environment() -> None:
    policy = say(
        "",
        PORT="8080",
        OUTRIGGER_ADMIN_TOKEN="t",
        SLACK_WEBHOOK_URL="https://hooks.example.com/x",
        SENTRY_DSN="https://k@sentry.example.com/1",
        RENDER_SERVICE_NAME="shop",
    )
    assert policy.listen.public == Address("0.0.0.0", 8080)
    assert policy.admin.token == "t"
    assert policy.alerts.slack == "https://hooks.example.com/x"
    assert (policy.sentry.dsn, policy.sentry.environment) == ("https://k@sentry.example.com/1", "shop")
    assert policy.warnings == ()


def test_a_bad_port_in_the_environment_is_a_fault_even_without_a_policy() -> None:
    with pytest.raises(PolicyError, match=r"listen\.public: 0\.0\.0\.0:\$\{PORT:-10000\}: it is not a whole number"):
        say("", PORT="eighty")


def test_the_databases_port_is_free_for_others_while_there_is_no_pool() -> None:
    assert say("", PORT="6432").listen.public == Address("0.0.0.0", 6432)
    assert say("postgres: {url: 'postgresql://h/d'}", PORT="6432").postgres.listen == Address("127.0.0.1", 6433)
    with pytest.raises(PolicyError, match=r"postgres\.listen: it takes the same port|same port as postgres\.listen"):
        say("postgres: {url: 'postgresql://h/d', listen: '127.0.0.1:6432'}", PORT="6432")


def test_a_variable_that_already_leads_elsewhere_is_the_upstreams_address() -> None:
    policy = say("", OPENAI_BASE_URL="https://openrouter.example/v1")
    assert policy.upstreams["openai"].base_url == "https://openrouter.example/v1"
    named = say("upstreams: {openai: {base_url: 'http://mine'}}", OPENAI_BASE_URL="https://openrouter.example/v1")
    assert named.upstreams["openai"].base_url == "http://mine"
    both = say("", OPENAI_BASE_URL="http://a", OPENAI_API_BASE="http://a")
    assert both.upstreams["openai"].base_url == "http://a"


def test_variables_that_disagree_are_left_alone_with_a_warning() -> None:
    policy = say("", OPENAI_BASE_URL="http://a", OPENAI_API_BASE="http://b")
    assert policy.upstreams["openai"].env == ()
    assert policy.upstreams["openai"].base_url == "https://api.openai.com/v1"
    assert len(policy.warnings) == 1
    assert "disagree" in policy.warnings[0]


def test_a_variable_that_is_no_url_is_left_alone_with_a_warning() -> None:
    policy = say("", OPENAI_BASE_URL="hunter2")
    assert policy.upstreams["openai"].env == ()
    assert "OPENAI_BASE_URL" in policy.warnings[0]
    assert "hunter2" not in policy.warnings[0]
