"""Validation of what no single value shows: combinations of a policy's sections that cannot work.

Each rule looks at sections that were read without a fault (`reader.is_sound`), so that one mistake is one fault, and
notes its fault at the line of a key that was written. What works but should be known is in `warnings.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from proxy.policy.alert_condition import (
    BreakerOpen,
    CallErrorRateAbove,
    ErrorRateAbove,
    FailedTasksAbove,
    LatencyAbove,
    RefusalRateAbove,
    TaskWaitAbove,
)
from proxy.policy.reader import PolicyReader
from proxy.policy.schema.identity import IpSource, JwtSource
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.price import Price
from proxy.policy.schema.route import DEFAULT_ROUTE, Match, Route
from proxy.policy.schema.upstream import Fallback, Upstream
from proxy.policy.signing_keys import find_key_misfit
from proxy.policy.values import ANY_TIER, Address

WILDCARDS = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def validate_policy(reader: PolicyReader, policy: Policy) -> None:
    """Note a fault for every combination that cannot work; sections with a fault of their own are left out."""
    for rule in (
        _check_app,
        _check_addresses,
        _check_signing_keys,
        _check_tiers,
        _check_tier_names,
        _check_routes,
        _check_overload,
        _check_upstreams,
        _check_postgres,
        _check_schedules,
        _check_faults,
        _check_alerts,
    ):
        rule(reader, policy)


# ── requests in ──────────────────────────────────────────────────────────────────────────────


def _check_app(reader: PolicyReader, policy: Policy) -> None:
    app = policy.app
    if reader.is_sound("app.url", "app.port") and app.url is not None and app.port != "auto":
        reader.add_fault("app.port", "app.url says already where the app is", "write one of the two")
    restart = app.restart
    if reader.is_sound("app.restart") and restart.backoff > restart.max_backoff:
        key = "app.restart.backoff" if "app.restart.backoff" in reader.lines else "app.restart.max_backoff"
        reader.add_fault(key, "backoff is longer than max_backoff", "write a max_backoff of at least backoff")
    if app.url is not None and policy.listen.public is not None and reader.is_sound("app.url", "listen.public"):
        parts = urlsplit(app.url)
        if parts.hostname in LOOPBACK and (parts.port or 80) == policy.listen.public.port:
            reader.add_fault("app.url", "it is listen.public, our own address", "write the app's own")


def _check_addresses(reader: PolicyReader, policy: Policy) -> None:
    """Two listeners on one address, before either is bound."""
    listen = policy.listen
    places: list[tuple[str, Address]] = [
        ("listen.public", listen.public or Address("", 0)),
        ("listen.admin", listen.admin),
        ("listen.egress", listen.egress),
    ]
    if policy.postgres.url:
        places.append(("postgres.listen", policy.postgres.listen))
    if isinstance(policy.app.port, int):
        places.append(("app.port", Address("127.0.0.1", policy.app.port)))
    for index, (key, address) in enumerate(places):
        for earlier, other in places[:index]:
            if address.port and _is_same_place(address, other) and reader.is_sound(key, earlier):
                # If only one of the two is written, the fault is at its line.
                at, rest = (key, earlier) if key in reader.lines else (earlier, key)
                reader.add_fault(at, f"it takes the same port as {rest}, {address.port}", "write another port")


def _is_same_place(one: Address, other: Address) -> bool:
    if one.port != other.port:
        return False
    # localhost may be ::1 as well, but a collision on IPv4 is already one too many.
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one.host, other.host)}
    return len(hosts) == 1 or any(host in WILDCARDS for host in hosts)


def _check_signing_keys(reader: PolicyReader, policy: Policy) -> None:
    for index, source in enumerate(_written_sources(policy)):
        key = f"identity.user[{index}].jwt.algorithms"
        if not isinstance(source, JwtSource) or not reader.is_sound("identity.user"):
            continue
        # A public key that HS256 accepts as a secret lets everybody who has it sign (RFC 8725 section 2.1).
        shared = [name for name in source.algorithms if name.startswith("HS")]
        others = [name for name in source.algorithms if not name.startswith("HS")]
        if not source.algorithms:
            reader.add_fault(key, "the list is empty", "write [HS256], or what signs your tokens")
        elif shared and others:
            problem = f"{shared[0]} and {others[0]} with one key: whoever has the public key could sign"
            reader.add_fault(key, problem, "write the algorithms of one kind of key")
        elif others and find_spec("cryptography") is None:
            fix = "install cryptography in the gateway's environment, or write one of HS256, HS384, HS512"
            reader.add_fault(key, f"{others[0]} needs the package cryptography", fix)
        elif (unfit := find_key_misfit(source.key, source.algorithms)) is not None:
            fix = "HS takes a shared secret, RS, PS, ES and EdDSA the public key of their kind, in PEM"
            reader.add_fault(f"identity.user[{index}].jwt.key", unfit, fix)


def _written_sources(policy: Policy) -> tuple[object, ...]:
    return tuple(source for source in policy.identity.user if not isinstance(source, IpSource))


def _check_tiers(reader: PolicyReader, policy: Policy) -> None:
    tiers = policy.identity.tiers
    if not reader.is_sound("identity.tiers"):
        return
    seen: set[str] = set()
    for index, tier in enumerate(tiers):
        key = f"identity.tiers[{index}]"
        if tier.name in seen:
            reader.add_fault(f"{key}.name", f"a tier before it is named {tier.name} too", "name it otherwise")
        seen.add(tier.name)
        if tier.users is None and index < len(tiers) - 1:
            reader.add_fault(
                key, "it fits everybody, so no tier after it is ever taken", "give it users, or put it last"
            )


def _check_tier_names(reader: PolicyReader, policy: Policy) -> None:
    names = [tier.name for tier in policy.identity.tiers]
    known = set(names)
    if not reader.is_sound("identity.tiers") or "routes" in reader.incomplete_lists:
        return
    # Only names that are written: a default for all tiers stands under ANY_TIER.
    for key, tier in _named_tiers(policy):
        if tier in known or not reader.is_sound(key) or f"{key}.{tier}" not in reader.lines:
            continue
        fix = reader.suggest(tier, names) if names else f"declare it: identity: {{tiers: [{{name: {tier}}}]}}"
        reader.add_fault(f"{key}.{tier}", f"identity.tiers has no tier {tier}", fix)


def _named_tiers(policy: Policy) -> Iterator[tuple[str, str]]:
    spoken: list[tuple[str, Iterable[str]]] = [("overload.priority", policy.overload.priority)]
    spoken += [(f"routes[{index}].rate_limit", route.rate_limit) for index, route in enumerate(policy.routes)]
    spoken += [(f"upstreams.{name}.cap.per_user", one.cap.per_user) for name, one in policy.upstreams.items()]
    for key, tiers in spoken:
        for tier in tiers:
            if tier != ANY_TIER:
                yield key, tier


def _check_routes(reader: PolicyReader, policy: Policy) -> None:
    # Without the faulty route the indexes are wrong, and so would be the lines of further faults.
    if "routes" in reader.incomplete_lists:
        return
    seen: set[str] = set()
    written = [route for index, route in enumerate(policy.routes) if f"routes[{index}]" in reader.lines]
    for index, route in enumerate(written):
        key = f"routes[{index}]"
        if route.name in seen:
            problem = f"a route before it is named {route.name} too"
            reader.add_fault(f"{key}.name", problem, "name it otherwise: limits and metrics go by the name")
        seen.add(route.name)
        if route.name == DEFAULT_ROUTE.name:
            if route.match != Match() and reader.is_sound(f"{key}.match"):
                fix = "write match: {path: /*} or leave it out, or name the route otherwise"
                reader.add_fault(f"{key}.match", "the route named default fits every request", fix)
            if index < len(written) - 1:
                reader.add_fault(f"{key}.name", "no route after default is ever taken", "put default last")
        _check_background(reader, key, route)
        if f"{key}.queue" in reader.lines and route.concurrency is None and reader.is_sound(f"{key}.concurrency"):
            problem = "nothing ever waits in it without concurrency"
            reader.add_fault(f"{key}.queue", problem, "write concurrency: 5 beside it, or leave the queue out")


def _check_background(reader: PolicyReader, key: str, route: Route) -> None:
    backoff = route.background.retry.backoff
    if reader.is_sound(f"{key}.background") and backoff.first > backoff.max:
        at = f"{key}.background.retry.backoff"
        reader.add_fault(at, "first is longer than max", "write a max of at least first")


def _check_overload(reader: PolicyReader, policy: Policy) -> None:
    adaptive = policy.overload.adaptive
    if reader.is_sound("overload.adaptive") and adaptive.min > adaptive.max:
        key = "overload.adaptive.min" if "overload.adaptive.min" in reader.lines else "overload.adaptive.max"
        reader.add_fault(key, f"min {adaptive.min} is above max {adaptive.max}", "write a min of at most max")


# ── calls out, the database, alerts ──────────────────────────────────────────────────────────


def _check_upstreams(reader: PolicyReader, policy: Policy) -> None:
    # Which upstream has a variable, in the order of the policy.
    owners: dict[str, str] = {}
    for name, upstream in policy.upstreams.items():
        key = f"upstreams.{name}"
        _check_upstream(reader, key, upstream)
        for model, price in upstream.prices.items():
            _check_price(reader, f"{key}.prices.{model}", price)
        for variable in upstream.env:
            # One variable can hold one address only.
            owner = owners.setdefault(variable, name)
            if owner != name and reader.is_sound(f"{key}.env"):
                problem = f"{variable} is set for the upstream {owner} already"
                reader.add_fault(f"{key}.env", problem, "write another variable, or []")
        for index, fallback in enumerate(upstream.fallback):
            _check_fallback(reader, policy, name, f"{key}.fallback[{index}]", fallback)


def _check_upstream(reader: PolicyReader, key: str, upstream: Upstream) -> None:
    backoff = upstream.retry.backoff
    if reader.is_sound(f"{key}.retry.backoff") and backoff.first > backoff.max:
        reader.add_fault(f"{key}.retry.backoff", "first is longer than max", "write a max of at least first")
    timeout = upstream.timeout
    if reader.is_sound(f"{key}.timeout") and timeout.total is not None and timeout.connect > timeout.total:
        reader.add_fault(f"{key}.timeout", "connect is longer than total", "write a total of at least connect")


def _check_price(reader: PolicyReader, key: str, price: Price) -> None:
    """Input and output tokens have both a price or none, so that a forgotten one makes no call free of charge; if none,
    something else must have one."""
    if not reader.is_sound(key):
        return
    tokens = {"input": price.input, "output": price.output}
    missing = [name for name, value in tokens.items() if value is None]
    bought = (price.characters, price.per_minute, price.per_second, price.per_image, price.per_request)
    if len(missing) == 1:
        reader.add_fault(key, f"{missing[0]} is missing", f"write {missing[0]}: …")
    elif missing and all(value is None for value in bought):
        fix = "write input: … and output: …, or characters, per_minute, per_second, per_image or per_request"
        reader.add_fault(key, "input is missing", fix)


def _check_fallback(reader: PolicyReader, policy: Policy, name: str, key: str, fallback: Fallback) -> None:
    if not reader.is_sound(f"upstreams.{name}.fallback"):
        return
    elsewhere = fallback.upstream is not None or fallback.model is not None
    # `upstream` and `model` together are one step; each of the others is one by itself.
    if [elsewhere, fallback.stale, fallback.text is not None].count(True) != 1:
        fix = "write one of model: …, upstream: …, stale: true or text: …"
        reader.add_fault(key, "a fallback is one thing to try", fix)
        return
    if fallback.upstream is None:
        return
    other = policy.upstreams.get(fallback.upstream)
    if other is None:
        # One that is written but faulty exists, too: its own fault is enough.
        if f"upstreams.{fallback.upstream}" not in reader.lines:
            fix = reader.suggest(fallback.upstream, tuple(policy.upstreams))
            reader.add_fault(f"{key}.upstream", f"there is no upstream {fallback.upstream}", fix)
    elif fallback.upstream == name and fallback.model is None:
        reader.add_fault(f"{key}.upstream", "it is the upstream that has just failed", "name another, or a model")
    # Requests are not translated between the vendors' dialects.
    elif other.kind != policy.upstreams[name].kind and reader.is_sound(f"upstreams.{fallback.upstream}.kind"):
        problem = f"{fallback.upstream} is of kind {other.kind}, {name} of kind {policy.upstreams[name].kind}"
        reader.add_fault(f"{key}.upstream", problem, "name an upstream of the same kind")


def _check_postgres(reader: PolicyReader, policy: Policy) -> None:
    pool, pin = policy.postgres.pool, policy.postgres.pin
    if not reader.is_sound("postgres.pool"):
        return
    # resolve_defaults put the two in order unless both are written.
    if pool.min > pool.max:
        reader.add_fault("postgres.pool", f"min {pool.min} is above max {pool.max}", "write a min of at most max")
    if pool.total is not None and pool.min > pool.total:
        problem = f"min {pool.min} is above total {pool.total}, which all instances have together"
        reader.add_fault("postgres.pool", problem, "write a min of at most total, shared out among the instances")
    if "postgres.pin.max" in reader.lines and reader.is_sound("postgres.pin") and pin.max > pool.max:
        problem = f"the pool has {pool.max} connections alone"
        reader.add_fault("postgres.pin.max", problem, f"write at most {pool.max}, or a greater postgres.pool.max")


def _check_schedules(reader: PolicyReader, policy: Policy) -> None:
    """Two schedules of one name would take each other's turns."""
    if not reader.is_sound("schedules"):
        return
    names: set[str] = set()
    for index, schedule in enumerate(policy.schedules):
        if schedule.name in names:
            key = f"schedules[{index}].name"
            reader.add_fault(key, f"there is a schedule {schedule.name} already", "write another name")
        names.add(schedule.name)


def _check_faults(reader: PolicyReader, policy: Policy) -> None:
    if not reader.is_sound("faults"):
        return
    routes = tuple(dict.fromkeys(route.name for route in policy.routes))
    names = set(routes)
    for index, fault in enumerate(policy.faults):
        key = f"faults[{index}]"
        # Exactly one of the two.
        if (fault.upstream is None) == (fault.route is None):
            reader.add_fault(key, "a fault hits one upstream or one route", "write upstream: … or route: …")
        elif fault.upstream is not None and fault.upstream not in policy.upstreams and reader.is_sound("upstreams"):
            fix = reader.suggest(fault.upstream, tuple(policy.upstreams))
            reader.add_fault(f"{key}.upstream", f"there is no upstream {fault.upstream}", fix)
        elif fault.route is not None and fault.route not in names and reader.is_sound("routes"):
            fix = reader.suggest(fault.route, routes)
            reader.add_fault(f"{key}.route", f"there is no route {fault.route}", fix)
        # An effect is needed, and cutting is possible only while we copy the response ourselves.
        if fault.status is None and fault.delay is None and not fault.cut:
            reader.add_fault(key, "it does nothing", "write status: 503, delay: 2s, cut: true, or several")
        elif fault.cut and fault.route is not None:
            reader.add_fault(f"{key}.cut", "only a call out can be cut", "write upstream: … in place of route: …")


def _check_alerts(reader: PolicyReader, policy: Policy) -> None:
    """Alert rules must not name a route or an upstream that does not exist."""
    routes = {route.name: route for route in policy.routes}
    for name, rule in policy.alerts.rules.items():
        key, when = f"alerts.rules.{name}.when", rule.when
        if not reader.is_sound(key):
            continue
        if (
            isinstance(when, BreakerOpen | CallErrorRateAbove)
            and when.upstream is not None
            and when.upstream not in policy.upstreams
        ):
            if reader.is_sound("upstreams"):
                fix = reader.suggest(when.upstream, tuple(policy.upstreams))
                reader.add_fault(key, f"there is no upstream {when.upstream}", fix)
        if (
            isinstance(when, ErrorRateAbove | RefusalRateAbove | LatencyAbove | TaskWaitAbove | FailedTasksAbove)
            and when.route is not None
            and reader.is_sound("routes")
        ):
            route = routes.get(when.route)
            if route is None:
                reader.add_fault(key, f"there is no route {when.route}", reader.suggest(when.route, tuple(routes)))
            elif isinstance(when, LatencyAbove) and when.share is not None and route.timeout is None:
                reader.add_fault(key, f"the route {route.name} has no timeout", "write seconds, as in p95 > 5s")
