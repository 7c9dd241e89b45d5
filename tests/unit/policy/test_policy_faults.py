"""Everything wrong in a policy is named at once: its line, its key, what is wrong, what to write."""

from __future__ import annotations

import pytest

from proxy.errors import PolicyError, PolicyFault
from proxy.policy.loading import PolicySource, load_policy

ENVIRON = {"KEY": "k" * 40, "EMPTY": "", "SECRET_URL": "hunter2://pw@x"}


def faults_of(text: str) -> tuple[PolicyFault, ...]:
    with pytest.raises(PolicyError) as caught:
        load_policy(PolicySource("p.yaml", None, text), ENVIRON)
    return caught.value.faults


CASES = [
    # unknown keys, and the nearest that is known
    ("ap: {port: auto}", "ap", "no such key", "app"),
    ("app: {stop_timout: 3s}", "app.stop_timout", "no such key", "stop_timeout"),
    ("routes: [{name: a, match: {paths: /x}}]", "routes[0].match.paths", "no such key", "path"),
    ("qqqqqq: 1", "qqqqqq", "no such key", "one of version, app"),
    ("log: {level: info, level: debug}", "log.level", "written twice", "keep one"),
    # wrong types
    ("app: {hold: 15}", "app.hold", "no unit", "duration"),
    ("app: {hold: [15s]}", "app.hold", "not several", "duration"),
    ("app: {hold: }", "app.hold", "empty", "duration"),
    ("app: 5", "app", "not a mapping", "below it"),
    ("app: {restart: {give_up_after: -1}}", "app.restart.give_up_after", "below 0", "whole number"),
    ("app: {restart: {give_up_after: 1.5}}", "app.restart.give_up_after", "whole number", "whole number"),
    ("app: {ready: {interval: 0s}}", "app.ready.interval", "zero", "above zero"),
    ("app: {port: 70000}", "app.port", "above 65535", "auto"),
    ("app: {port: 0}", "app.port", "below 1", "auto"),
    ("app: {memory: {warn: 0.8}}", "app.memory.warn", "percent", "85%"),
    ("app: {attribution: yes}", "app.attribution", "none of its words", "auto | on | off"),
    ("routes: [{name: a, enforce: off}]", "routes[0].enforce", "a word in YAML 1.2", "write false"),
    ("routes: [{name: a, enforce: maybe}]", "routes[0].enforce", "neither true nor false", "true"),
    ("routes: {name: a}", "routes", "a list", "["),
    ("listen: {claim: /healthz}", "listen.claim", "a list", "[/healthz]"),
    ("overload: {mode: adaptiv}", "overload.mode", "none of its words", "did you mean adaptive?"),
    ("version: 2", "version", "version 1", "write 1"),
    # schedules
    ("schedules: [{name: n, cron: '0 3 * * *'}]", "schedules[0]", "request is missing", "write request"),
    ("schedules: [{name: n, request: {method: GET, path: /}}]", "schedules[0]", "cron is missing", "write cron"),
    (
        "schedules: [{name: n, cron: '@daily', request: {method: GET, path: /}}]",
        "schedules[0].cron",
        "1 field and not five",
        '"0 3 * * *"',
    ),
    (
        "schedules: [{name: n, cron: '0 25 * * *', request: {method: GET, path: /}}]",
        "schedules[0].cron",
        "its hour cannot be read",
        "five fields",
    ),
    (
        "schedules: [{name: n, cron: '0 3 * * *', timezone: Mars, request: {method: GET, path: /}}]",
        "schedules[0].timezone",
        "no time zone",
        "Europe/Berlin",
    ),
    (
        "schedules: [{name: n, cron: '0 3 * * *', request: {method: GET, path: jobs}}]",
        "schedules[0].request.path",
        "begin with /",
        "/jobs/nightly",
    ),
    (
        "schedules: [{name: n, cron: '0 3 * * *', request: {method: GET, path: '/jobs?a=b#c'}}]",
        "schedules[0].request.path",
        "fragment",
        "/jobs?name=nightly",
    ),
    (
        "schedules: [{name: n, cron: '0 3 * * *', request: {method: GET, path: /}, timeout: 0s}]",
        "schedules[0].timeout",
        "zero",
        "above zero",
    ),
    (
        "schedules: [{name: n, cron: '0 3 * * *', request: {method: GET, path: /}},"
        " {name: n, cron: '0 4 * * *', request: {method: GET, path: /}}]",
        "schedules[1].name",
        "a schedule n already",
        "another name",
    ),
    # what each value may be
    ("listen: {public: 8080}", "listen.public", "HOST:PORT", "HOST:PORT"),
    ("listen: {public: '*:8080'}", "listen.public", "no address", "HOST:PORT"),
    ("listen: {public: '::1:80'}", "listen.public", "brackets", "HOST:PORT"),
    ("listen: {public: null}", "listen.public", "empty", "off"),
    ("listen: {admin: off}", "listen.admin", "HOST:PORT", "127.0.0.1:9901"),
    ("listen: {admin: 'a:70000'}", "listen.admin", "above 65535", "HOST:PORT"),
    ("listen: {claim: [/mine]}", "listen.claim[0]", "no path of ours", "/healthz"),
    ("listen: {max_header: 2MiB}", "listen.max_header", "1MiB", "32KiB"),
    ("listen: {trusted_proxies: somebody}", "listen.trusted_proxies", "neither a preset", "private"),
    ("listen: {trusted_proxies: 0}", "listen.trusted_proxies", "below 1", "none"),
    ("listen: {trusted_proxies: [10.0.0.0/33]}", "listen.trusted_proxies[0]", "no network", "10.0.0.0/8"),
    ("listen: {trusted_proxies: []}", "listen.trusted_proxies", "empty", "none"),
    ("app: {ready: {path: health}}", "app.ready.path", "begin with /", "/health"),
    ("app: {ready: {path: '/a b'}}", "app.ready.path", "space", "/health"),
    ("app: {url: 'https://x'}", "app.url", "http://", "127.0.0.1:8002"),
    ("app: {url: 'http://x/path'}", "app.url", "more than a host", "127.0.0.1:8002"),
    ("app: {url: 'http://x:0'}", "app.url", "port is 0", "127.0.0.1:8002"),
    ("identity: {user: [{path: /u}]}", "identity.user[0].path", "{user} once", "{user}"),
    ("identity: {user: [{path: '/{user}/{id}'}]}", "identity.user[0].path", "braces", "{user}"),
    ("identity: {user: [{header: 'a b'}]}", "identity.user[0].header", "header name", "X-User-Id"),
    ("identity: {user: [{heder: X}]}", "identity.user[0].heder", "no such key", "header"),
    ("identity: {user: [{path: '/{user}', ip: null}]}", "identity.user[0]", "one key", "path"),
    ("identity: {user: [ip, {header: X}]}", "identity.user[0]", "always", "last"),
    ("identity: {user: ip}", "identity.user", "a list", "- path"),
    ("identity: {user: [{jwt: {key: ''}}]}", "identity.user[0].jwt.key", "empty", "JWT_KEY"),
    ("identity: {user: [{jwt: {key: '${EMPTY}'}}]}", "identity.user[0].jwt.key", "empty", "JWT_KEY"),
    ("identity: {user: [{jwt: {claim: sub}}]}", "identity.user[0].jwt", "key is missing", "key"),
    (
        "identity: {user: [{jwt: {key: x, algorithms: [none]}}]}",
        "identity.user[0].jwt.algorithms[0]",
        "none of its words",
        "HS256",
    ),
    (
        "identity: {user: [{jwt: {key: x, algorithms: []}}]}",
        "identity.user[0].jwt.algorithms",
        "empty",
        "HS256",
    ),
    (
        "identity: {user: [{jwt: {key: x, algorithms: [HS256, RS256]}}]}",
        "identity.user[0].jwt.algorithms",
        "public key could sign",
        "one kind",
    ),
    ("identity: {tiers: [{name: a b}]}", "identity.tiers[0].name", "metrics label", "letters"),
    ("identity: {tiers: [{name: a}, {name: b}]}", "identity.tiers[0]", "fits everybody", "last"),
    ("identity: {tiers: [{name: a, users: x}, {name: a}]}", "identity.tiers[1].name", "named a too", "otherwise"),
    ("routes: [{match: {path: /x}}]", "routes[0]", "name is missing", "name"),
    ("routes: [{name: 'a/b'}]", "routes[0].name", "metrics label", "letters"),
    ("routes: [{name: a, match: {methods: [get]}}]", "routes[0].match.methods[0]", "no HTTP method", "POST"),
    ("routes: [{name: a, retries: {on: [reset]}}]", "routes[0].retries.on[0]", "none of its words", "connect"),
    ("routes: [{name: a, retries: {attempts: 0}}]", "routes[0].retries.attempts", "below 1", "from 1"),
    ("routes: [{name: a, rate_limit: 10}]", "routes[0].rate_limit", "no period", "10/h"),
    ("routes: [{name: a, rate_limit: [1/h, x]}]", "routes[0].rate_limit[1]", "no period", "10/h"),
    ("routes: [{name: a, when_abandoned: stop}]", "routes[0].when_abandoned", "none of its words", "close | cancel"),
    ("log: {redact: ['a b']}", "log.redact[0]", "name", "x-api-key"),
    ("postgres: {env: {DB: hots}}", "postgres.env.DB", "none of its words", "host"),
    ("postgres: {env: [A B]}", "postgres.env[0]", "variable", "DATABASE_URL"),
    ("store: {url: 'http://x'}", "store.url", "Redis", "memory://"),
    ("ledger: {url: 'sqlite://x'}", "ledger.url", "SQLite", "sqlite:///"),
    ("alerts: {rules: {mine: {severity: warning}}}", "alerts.rules.mine", "when is missing", "when"),
    ("upstreams: {mine: {kind: http}}", "upstreams.mine", "base_url is missing", "base_url"),
    ("upstreams: {'a b': off}", "upstreams.a b", "metrics label", "letters"),
    ("upstreams: {openai: {cap: {total: 50/d}}}", "upstreams.openai.cap.total", "dollar sign", "$"),
    ("upstreams: {openai: {cap: {timezone: Mars}}}", "upstreams.openai.cap.timezone", "time zone", "Europe/"),
    ("upstreams: {openai: {retry: {on: [200]}}}", "upstreams.openai.retry.on[0]", "status", "400 to 599"),
    (
        "upstreams: {openai: {prices: {m: {input: $1, output: 1}}}}",
        "upstreams.openai.prices.m.input",
        "number of dollars",
        "0.50",
    ),
    # impossible combinations
    ("app: {port: 8002, url: 'http://127.0.0.1:8003'}", "app.port", "says already", "one of the two"),
    ("app: {url: 'http://127.0.0.1:10000'}", "app.url", "our own address", "the app's own"),
    ("app: {restart: {backoff: 1m, max_backoff: 30s}}", "app.restart.backoff", "longer than max_backoff", "at least"),
    (
        "listen: {egress: 127.0.0.1:9902, admin: 127.0.0.1:9902}",
        "listen.egress",
        "same port as listen.admin",
        "another",
    ),
    ("listen: {admin: 127.0.0.1:10000}", "listen.admin", "same port as listen.public", "another"),
    ("{app: {port: 9901}, listen: {admin: 127.0.0.1:9901}}", "app.port", "same port as listen.admin", "another"),
    ("routes: [{name: a, queue: {size: 1}}]", "routes[0].queue", "without concurrency", "concurrency: 5"),
    ("routes: [{name: a}, {name: a}]", "routes[1].name", "named a too", "otherwise"),
    ("routes: [{name: default, match: {path: /x}}]", "routes[0].match", "fits every request", "otherwise"),
    ("routes: [{name: default}, {name: a}]", "routes[0].name", "after default", "last"),
    ("routes: [{name: a, rate_limit: {fre: 1/h}}]", "routes[0].rate_limit.fre", "no tier fre", "declare it"),
    (
        "identity: {tiers: [{name: free}]}\noverload: {priority: {fre: 1}}",
        "overload.priority.fre",
        "no tier fre",
        "did you mean free?",
    ),
    (
        "identity: {tiers: [{name: free}]}\nupstreams: {openai: {cap: {per_user: {paid: $1/d}}}}",
        "upstreams.openai.cap.per_user.paid",
        "no tier paid",
        "one of free",
    ),
    ("overload: {adaptive: {min: 300, max: 200}}", "overload.adaptive.min", "above max 200", "at most"),
    (
        "upstreams: {openai: {retry: {backoff: {first: 20s, max: 9s}}}}",
        "upstreams.openai.retry.backoff",
        "longer",
        "at least",
    ),
    ("upstreams: {openai: {fallback: [{}]}}", "upstreams.openai.fallback[0]", "one thing", "stale: true"),
    (
        "upstreams: {openai: {fallback: [{upstream: opena}]}}",
        "upstreams.openai.fallback[0].upstream",
        "no upstream opena",
        "did you mean openai?",
    ),
    (
        "upstreams: {openai: {fallback: [{upstream: anthropic}]}, anthropic: {}}",
        "upstreams.openai.fallback[0].upstream",
        "of kind anthropic",
        "same kind",
    ),
    (
        "upstreams: {openai: {env: [OPENAI_BASE_URL]}, other: {kind: openai, env: [OPENAI_BASE_URL]}}",
        "upstreams.other.env",
        "set for the upstream openai already",
        "another variable",
    ),
    ("postgres: {pool: {min: 9, max: 5}}", "postgres.pool", "min 9 is above max 5", "at most"),
    ("postgres: {pin: {max: 9}, pool: {max: 5}}", "postgres.pin.max", "5 connections", "at most 5"),
    ("faults: [{status: 503}]", "faults[0]", "one upstream or one route", "route"),
    ("faults: [{route: x, status: 503}]", "faults[0].route", "no route x", "default"),
    ("faults: [{upstream: openai}]", "faults[0]", "does nothing", "delay"),
]


@pytest.mark.parametrize(("text", "key", "problem", "mend"), CASES, ids=[case[0][:50] for case in CASES])
def test_a_fault_names_its_key_what_is_wrong_and_what_to_write(text: str, key: str, problem: str, mend: str) -> None:
    faults = faults_of(text)
    assert [fault.key for fault in faults] == [key]
    assert problem in faults[0].problem
    assert mend in faults[0].fix


def test_every_fault_comes_at_once_in_the_order_of_its_lines() -> None:
    text = "version: 1\naap: {}\napp:\n  hold: 5\n\nroutes:\n  - name: a\n    queue: {size: 1}\n    x: 1\n"
    assert [(fault.line, fault.key) for fault in faults_of(text)] == [
        (2, "aap"),
        (4, "app.hold"),
        (8, "routes[0].queue"),
        (9, "routes[0].x"),
    ]


def test_a_fault_is_shown_as_file_line_key_problem_and_mend() -> None:
    (fault,) = faults_of("app:\n  hold: 15\n")
    assert str(fault) == "p.yaml:2: app.hold: 15: it has no unit; write a duration such as 30s"


def test_one_mistake_makes_one_fault() -> None:
    """Tiers that could not be read are not also missing wherever they are spoken of."""
    text = "identity: {tiers: [{name: a b}]}\nroutes: [{name: r, rate_limit: {a: 1/h}}]"
    assert [fault.key for fault in faults_of(text)] == ["identity.tiers[0].name"]


@pytest.mark.parametrize(
    "text",
    [
        "identity: {user: [{jwt: {key: [hunter2]}}]}",
        "postgres: {url: 'mysql://u:hunter2@h/d'}",
        "postgres: {url: '${SECRET_URL}'}",
        "app: {hold: '${SECRET_URL}'}",
        "alerts: {slack: hunter2}",
        "sentry: {dsn: hunter2}",
    ],
)
def test_a_fault_never_shows_a_secret_or_a_value_of_the_environment(text: str) -> None:
    assert "hunter2" not in str(faults_of(text)[0])


def test_a_huge_wrong_policy_is_refused_quickly_with_short_faults() -> None:
    """Thousands of unknown names are not each compared with thousands of known ones."""
    tiers = "".join(f"    - {{name: t{n}, users: x}}\n" for n in range(2000))
    routes = "".join(f"  - {{name: r{n}, rate_limit: {{z{n}: 1/h}}}}\n" for n in range(2000))
    faults = faults_of(f"identity:\n  tiers:\n{tiers}routes:\n{routes}")
    assert len(faults) == 2000
    assert max(len(str(fault)) for fault in faults) < 500
