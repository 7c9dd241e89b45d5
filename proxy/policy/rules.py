"""What no single value shows: combinations in the front door's sections that cannot work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from urllib.parse import urlsplit

from proxy.policy.identity import IpSource, JwtSource
from proxy.policy.outrules import check_outgoing
from proxy.policy.policy import Policy
from proxy.policy.read import Reader
from proxy.policy.route import DEFAULT_ROUTE, Match
from proxy.policy.signing import misfit
from proxy.policy.values import ANY_TIER, Address

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
