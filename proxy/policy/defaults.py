"""Defaults give way to what is written beside them: a value that nobody wrote never causes a fault.

`timeout: {total: 2s}` means a connect timeout of 2 s at most; a public port of 9901 means another port for
`listen.admin`. If both sides are written, `validation.py` finds the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from proxy.policy.reader import PolicyReader
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.route import Route
from proxy.policy.schema.upstream import Upstream
from proxy.policy.values import Address

LOOPBACK = ("127.0.0.1", "localhost", "::1")

T = TypeVar("T")


def resolve_defaults(reader: PolicyReader, policy: Policy) -> tuple[Policy, tuple[str, ...]]:
    """The policy with its unwritten values adjusted to the written ones, and warnings about it."""
    app, overload, postgres = policy.app, policy.overload, policy.postgres
    routes = tuple(_resolve_route(reader, f"routes[{at}]", route) for at, route in enumerate(policy.routes))
    policy = replace(
        policy,
        routes=routes,
        app=replace(app, restart=_order_pair(reader, "app.restart", app.restart, "backoff", "max_backoff")),
        overload=replace(overload, adaptive=_order_pair(reader, "overload.adaptive", overload.adaptive, "min", "max")),
        postgres=replace(postgres, pool=_resolve_pool(reader, policy)),
        upstreams=MappingProxyType(
            {name: _resolve_upstream(reader, policy, name, upstream) for name, upstream in policy.upstreams.items()}
        ),
    )
    return _move_addresses(reader, policy)


def _resolve_route(reader: PolicyReader, key: str, route: Route) -> Route:
    retry = route.background.retry
    backoff = _order_pair(reader, f"{key}.background.retry.backoff", retry.backoff, "first", "max")
    # The same object if nothing changed: most routes have no background.
    if backoff is retry.backoff:
        return route
    return replace(route, background=replace(route.background, retry=replace(retry, backoff=backoff)))


def _order_pair(reader: PolicyReader, key: str, section: T, least: str, most: str) -> T:
    """The section with the field `least` not above `most`, if one of the two is unwritten."""
    low, high = getattr(section, least), getattr(section, most)
    if low is None or high is None or low <= high:
        return section
    # Both written: validation reports it. Neither: the schema's own defaults are in order.
    changed: dict[str, Any] = {}
    if f"{key}.{least}" not in reader.lines:
        changed = {least: high}
    elif f"{key}.{most}" not in reader.lines:
        changed = {most: low}
    return section if not changed else replace(section, **changed)  # type: ignore[type-var]  # every section is a dataclass


def _resolve_pool(reader: PolicyReader, policy: Policy) -> Any:
    pool, pin = policy.postgres.pool, policy.postgres.pin.max
    pool = _order_pair(reader, "postgres.pool", pool, "min", "max")
    # More pinned connections than the default pool has are a wish for a larger pool.
    if "postgres.pin.max" in reader.lines and "postgres.pool.max" not in reader.lines and pin > pool.max:
        return replace(pool, max=pin)
    return pool


def _resolve_upstream(reader: PolicyReader, policy: Policy, name: str, upstream: Upstream) -> Upstream:
    key = f"upstreams.{name}"
    env = upstream.env
    # A variable that another upstream writes into its `env` is that one's, even if a default has it, too.
    if f"{key}.env" not in reader.lines:
        elsewhere = {
            variable
            for other, one in policy.upstreams.items()
            if f"upstreams.{other}.env" in reader.lines
            for variable in one.env
        }
        env = tuple(variable for variable in env if variable not in elsewhere)
    retry = upstream.retry
    return replace(
        upstream,
        env=env,
        timeout=_order_pair(reader, f"{key}.timeout", upstream.timeout, "connect", "total"),
        retry=replace(retry, backoff=_order_pair(reader, f"{key}.retry.backoff", retry.backoff, "first", "max")),
    )


# ── ports ────────────────────────────────────────────────────────────────────────────────────


def _move_addresses(reader: PolicyReader, policy: Policy) -> tuple[Policy, tuple[str, ...]]:
    """Move every unwritten listen address whose port is taken to the next port that no written address takes."""
    listen, postgres = policy.listen, policy.postgres
    ours = {"listen.admin": listen.admin, "listen.egress": listen.egress}
    if postgres.url:
        ours["postgres.listen"] = postgres.listen
    taken = set(_taken_ports(policy))
    taken |= {address.port for key, address in ours.items() if key in reader.lines}
    # The ports of the other unwritten addresses are free unless taken, but are not given away either.
    free = {address.port for key, address in ours.items() if key not in reader.lines} - taken
    warnings = []
    # In a fixed order, so that the same policy always has the same ports.
    for key, address in ours.items():
        if key in reader.lines or address.port not in taken:
            continue
        port = next(port for port in range(address.port, 1 << 17) if port not in taken | free)
        warnings.append(f"{key}: its port {address.port} is taken by another address of the policy, so it is {port}")
        ours[key] = Address(address.host, port)
        taken.add(port)
    listen = replace(listen, admin=ours["listen.admin"], egress=ours["listen.egress"])
    postgres = replace(postgres, listen=ours.get("postgres.listen", postgres.listen))
    return replace(policy, listen=listen, postgres=postgres), tuple(warnings)


def _taken_ports(policy: Policy) -> Iterator[int]:
    if policy.listen.public is not None:
        yield policy.listen.public.port
    if isinstance(policy.app.port, int):
        yield policy.app.port
    if policy.app.url is not None:
        parts = urlsplit(policy.app.url)
        if parts.hostname in LOOPBACK:
            yield parts.port or 80
