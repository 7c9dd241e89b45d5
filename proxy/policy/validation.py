"""What no single value shows: combinations in the front door's sections that cannot work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from proxy.policy.alert_condition import BreakerOpen, CallErrors, Errors, Refusals, Slow
from proxy.policy.reader import Reader
from proxy.policy.schema.identity import IpSource, JwtSource
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.price import Price
from proxy.policy.schema.route import DEFAULT_ROUTE, Match
from proxy.policy.schema.upstream import Fallback, Upstream
from proxy.policy.signing_keys import misfit
from proxy.policy.values import ANY_TIER, Address


# [merged from policy/outrules] What no single value shows: combinations in the sections for calls out and the
# database.
def check_outgoing(reader: Reader, policy: Policy) -> None:
    owners: dict[str, str] = {}
    for name, upstream in policy.upstreams.items():
        key = f"upstreams.{name}"
        _upstream(reader, key, upstream)
        for model, price in upstream.prices.items():
            _price(reader, f"{key}.prices.{model}", price)
        for variable in upstream.env:
            owner = owners.setdefault(variable, name)
            if owner != name and reader.sound(f"{key}.env"):
                problem = f"{variable} is set for the upstream {owner} already"
                reader.fault(f"{key}.env", problem, "write another variable, or []")
        for index, fallback in enumerate(upstream.fallback):
            _fallback(reader, policy, name, f"{key}.fallback[{index}]", fallback)
    _postgres(reader, policy)
    _faults(reader, policy)
    _alerts(reader, policy)


def _upstream(reader: Reader, key: str, upstream: Upstream) -> None:
    backoff = upstream.retry.backoff
    if reader.sound(f"{key}.retry.backoff") and backoff.first > backoff.max:
        reader.fault(f"{key}.retry.backoff", "first is longer than max", "write a max of at least first")
    timeout = upstream.timeout
    if reader.sound(f"{key}.timeout") and timeout.total is not None and timeout.connect > timeout.total:
        reader.fault(f"{key}.timeout", "connect is longer than total", "write a total of at least connect")


def _price(reader: Reader, key: str, price: Price) -> None:
    """Tokens have both prices or none, so that one forgotten gives nothing away; then something else has one."""
    if not reader.sound(key):
        return
    tokens = {"input": price.input, "output": price.output}
    missing = [name for name, value in tokens.items() if value is None]
    bought = (price.characters, price.per_minute, price.per_second, price.per_image, price.per_request)
    if len(missing) == 1:
        reader.fault(key, f"{missing[0]} is missing", f"write {missing[0]}: …")
    elif missing and all(value is None for value in bought):
        mend = "write input: … and output: …, or characters, per_minute, per_second, per_image or per_request"
        reader.fault(key, "input is missing", mend)


def _fallback(reader: Reader, policy: Policy, name: str, key: str, fallback: Fallback) -> None:
    if not reader.sound(f"upstreams.{name}.fallback"):
        return
    elsewhere = fallback.upstream is not None or fallback.model is not None
    if [elsewhere, fallback.stale, fallback.text is not None].count(True) != 1:
        mend = "write one of model: …, upstream: …, stale: true or text: …"
        reader.fault(key, "a fallback is one thing to try", mend)
        return
    if fallback.upstream is None:
        return
    other = policy.upstreams.get(fallback.upstream)
    if other is None:
        # One that is written but faulty exists all the same.
        if f"upstreams.{fallback.upstream}" not in reader.named:
            mend = reader.nearest(fallback.upstream, tuple(policy.upstreams))
            reader.fault(f"{key}.upstream", f"there is no upstream {fallback.upstream}", mend)
    elif fallback.upstream == name and fallback.model is None:
        reader.fault(f"{key}.upstream", "it is the upstream that has just failed", "name another, or a model")
    elif other.kind != policy.upstreams[name].kind and reader.sound(f"upstreams.{fallback.upstream}.kind"):
        problem = f"{fallback.upstream} is of kind {other.kind}, {name} of kind {policy.upstreams[name].kind}"
        reader.fault(f"{key}.upstream", problem, "name an upstream of the same kind")


def _postgres(reader: Reader, policy: Policy) -> None:
    pool, pin = policy.postgres.pool, policy.postgres.pin
    if not reader.sound("postgres.pool"):
        return
    if pool.min > pool.max:
        reader.fault("postgres.pool", f"min {pool.min} is above max {pool.max}", "write a min of at most max")
    if "postgres.pin.max" in reader.named and reader.sound("postgres.pin") and pin.max > pool.max:
        problem = f"the pool has {pool.max} connections alone"
        reader.fault("postgres.pin.max", problem, f"write at most {pool.max}, or a greater postgres.pool.max")


def _faults(reader: Reader, policy: Policy) -> None:
    if not reader.sound("faults"):
        return
    routes = tuple(dict.fromkeys(route.name for route in policy.routes))
    names = set(routes)
    for index, fault in enumerate(policy.faults):
        key = f"faults[{index}]"
        if (fault.upstream is None) == (fault.route is None):
            reader.fault(key, "a fault hits one upstream or one route", "write upstream: … or route: …")
        elif fault.upstream is not None and fault.upstream not in policy.upstreams and reader.sound("upstreams"):
            mend = reader.nearest(fault.upstream, tuple(policy.upstreams))
            reader.fault(f"{key}.upstream", f"there is no upstream {fault.upstream}", mend)
        elif fault.route is not None and fault.route not in names and reader.sound("routes"):
            mend = reader.nearest(fault.route, routes)
            reader.fault(f"{key}.route", f"there is no route {fault.route}", mend)
        if fault.status is None and fault.delay is None and not fault.cut:
            reader.fault(key, "it does nothing", "write status: 503, delay: 2s, cut: true, or several")
        elif fault.cut and fault.route is not None:
            reader.fault(f"{key}.cut", "only a call out can be cut", "write upstream: … in place of route: …")


def _alerts(reader: Reader, policy: Policy) -> None:
    """Rules about a route or an upstream that there is not."""
    routes = {route.name: route for route in policy.routes}
    for name, rule in policy.alerts.rules.items():
        key, when = f"alerts.rules.{name}.when", rule.when
        if not reader.sound(key):
            continue
        if (
            isinstance(when, BreakerOpen | CallErrors)
            and when.upstream is not None
            and when.upstream not in policy.upstreams
        ):
            if reader.sound("upstreams"):
                mend = reader.nearest(when.upstream, tuple(policy.upstreams))
                reader.fault(key, f"there is no upstream {when.upstream}", mend)
        if isinstance(when, Errors | Refusals | Slow) and when.route is not None and reader.sound("routes"):
            route = routes.get(when.route)
            if route is None:
                reader.fault(key, f"there is no route {when.route}", reader.nearest(when.route, tuple(routes)))
            elif isinstance(when, Slow) and when.share is not None and route.timeout is None:
                reader.fault(key, f"the route {route.name} has no timeout", "write seconds, as in p95 > 5s")


WILDCARDS = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check(reader: Reader, policy: Policy) -> None:
    """Notes a fault for every combination that cannot work; parts with a fault of their own are left out."""
    for rule in (_app, _addresses, _tokens, _tiers, _tier_names, _routes, _overload, check_outgoing):
        rule(reader, policy)


def _app(reader: Reader, policy: Policy) -> None:
    app = policy.app
    if reader.sound("app.url", "app.port") and app.url is not None and app.port != "auto":
        reader.fault("app.port", "app.url says already where the app is", "write one of the two")
    restart = app.restart
    if reader.sound("app.restart") and restart.backoff > restart.max_backoff:
        key = "app.restart.backoff" if "app.restart.backoff" in reader.named else "app.restart.max_backoff"
        reader.fault(key, "backoff is longer than max_backoff", "write a max_backoff of at least backoff")
    if app.url is not None and policy.listen.public is not None and reader.sound("app.url", "listen.public"):
        parts = urlsplit(app.url)
        if parts.hostname in LOOPBACK and (parts.port or 80) == policy.listen.public.port:
            reader.fault("app.url", "it is listen.public, our own address", "write the app's own")


def _addresses(reader: Reader, policy: Policy) -> None:
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
            if address.port and _overlap(address, other) and reader.sound(key, earlier):
                # The line to mend is that of the one that was written, where only one was.
                at, rest = (key, earlier) if key in reader.named else (earlier, key)
                reader.fault(at, f"it takes the same port as {rest}, {address.port}", "write another port")


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port:
        return False
    hosts = {"127.0.0.1" if host == "localhost" else host for host in (one.host, other.host)}
    return len(hosts) == 1 or any(host in WILDCARDS for host in hosts)


def _tokens(reader: Reader, policy: Policy) -> None:
    for index, source in enumerate(_sources_as_written(policy)):
        key = f"identity.user[{index}].jwt.algorithms"
        if not isinstance(source, JwtSource) or not reader.sound("identity.user"):
            continue
        shared = [name for name in source.algorithms if name.startswith("HS")]
        others = [name for name in source.algorithms if not name.startswith("HS")]
        if not source.algorithms:
            reader.fault(key, "the list is empty", "write [HS256], or what signs your tokens")
        elif shared and others:
            problem = f"{shared[0]} and {others[0]} with one key: whoever has the public key could sign"
            reader.fault(key, problem, "write the algorithms of one kind of key")
        elif others and find_spec("cryptography") is None:
            mend = "install cryptography in the gateway's environment, or write one of HS256, HS384, HS512"
            reader.fault(key, f"{others[0]} needs the package cryptography", mend)
        elif (unfit := misfit(source.key, source.algorithms)) is not None:
            mend = "HS takes a shared secret, RS, PS, ES and EdDSA the public key of their kind, in PEM"
            reader.fault(f"identity.user[{index}].jwt.key", unfit, mend)


def _sources_as_written(policy: Policy) -> tuple[object, ...]:
    return tuple(source for source in policy.identity.user if not isinstance(source, IpSource))


def _tiers(reader: Reader, policy: Policy) -> None:
    tiers = policy.identity.tiers
    if not reader.sound("identity.tiers"):
        return
    seen: set[str] = set()
    for index, tier in enumerate(tiers):
        key = f"identity.tiers[{index}]"
        if tier.name in seen:
            reader.fault(f"{key}.name", f"a tier before it is named {tier.name} too", "name it otherwise")
        seen.add(tier.name)
        if tier.users is None and index < len(tiers) - 1:
            reader.fault(key, "it fits everybody, so no tier after it is ever taken", "give it users, or put it last")


def _tier_names(reader: Reader, policy: Policy) -> None:
    names = [tier.name for tier in policy.identity.tiers]
    known = set(names)
    if not reader.sound("identity.tiers") or "routes" in reader.lost:
        return
    for key, tier in _tiers_spoken_of(policy):
        if tier in known or not reader.sound(key) or f"{key}.{tier}" not in reader.named:
            continue
        mend = reader.nearest(tier, names) if names else f"declare it: identity: {{tiers: [{{name: {tier}}}]}}"
        reader.fault(f"{key}.{tier}", f"identity.tiers has no tier {tier}", mend)


def _tiers_spoken_of(policy: Policy) -> Iterator[tuple[str, str]]:
    spoken: list[tuple[str, Iterable[str]]] = [("overload.priority", policy.overload.priority)]
    spoken += [(f"routes[{index}].rate_limit", route.rate_limit) for index, route in enumerate(policy.routes)]
    spoken += [(f"upstreams.{name}.cap.per_user", one.cap.per_user) for name, one in policy.upstreams.items()]
    for key, tiers in spoken:
        for tier in tiers:
            if tier != ANY_TIER:
                yield key, tier


def _routes(reader: Reader, policy: Policy) -> None:
    if "routes" in reader.lost:
        return
    seen: set[str] = set()
    written = [route for index, route in enumerate(policy.routes) if f"routes[{index}]" in reader.named]
    for index, route in enumerate(written):
        key = f"routes[{index}]"
        if route.name in seen:
            problem = f"a route before it is named {route.name} too"
            reader.fault(f"{key}.name", problem, "name it otherwise: limits and metrics go by the name")
        seen.add(route.name)
        if route.name == DEFAULT_ROUTE.name:
            if route.match != Match() and reader.sound(f"{key}.match"):
                mend = "write match: {path: /*} or leave it out, or name the route otherwise"
                reader.fault(f"{key}.match", "the route named default fits every request", mend)
            if index < len(written) - 1:
                reader.fault(f"{key}.name", "no route after default is ever taken", "put default last")
        if f"{key}.queue" in reader.named and route.concurrency is None and reader.sound(f"{key}.concurrency"):
            problem = "nothing ever waits in it without concurrency"
            reader.fault(f"{key}.queue", problem, "write concurrency: 5 beside it, or leave the queue out")


def _overload(reader: Reader, policy: Policy) -> None:
    adaptive = policy.overload.adaptive
    if reader.sound("overload.adaptive") and adaptive.min > adaptive.max:
        key = "overload.adaptive.min" if "overload.adaptive.min" in reader.named else "overload.adaptive.max"
        reader.fault(key, f"min {adaptive.min} is above max {adaptive.max}", "write a min of at most max")
