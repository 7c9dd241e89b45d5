"""What no single value shows: combinations in the sections for calls out and the database."""

from __future__ import annotations

from proxy.policy.condition import BreakerOpen, CallErrors, Errors, Refusals, Slow
from proxy.policy.outgoing import Fallback, Upstream
from proxy.policy.policy import Policy
from proxy.policy.price import Price
from proxy.policy.read import Reader


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
