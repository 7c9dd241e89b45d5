"""`explain METHOD PATH [-H 'K: V']… [--policy FILE]`: what the policy makes of such a request, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TextIO

from multidict import CIMultiDict, CIMultiDictProxy

from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_pairs
from proxy.errors import UsageError
from proxy.http.prefer import parse_prefer
from proxy.ingress.exchange import path_from_target
from proxy.ingress.identity import Identified
from proxy.ingress.pipeline import RequestRules
from proxy.policy.schema import Policy, Route
from proxy.policy.urls import mask_password
from proxy.policy.values import ANY_TIER
from proxy.units import format_duration, format_rate, format_share, format_size

DEFAULT_CLIENT_IP = "127.0.0.1"  # who asks, unless a trusted X-Forwarded-For says otherwise


class HypotheticalRequest:
    """A request that nobody sent: as much of one as identity and routing look at."""

    def __init__(self, method: str, target: str, headers: CIMultiDictProxy[str]) -> None:
        self.method = method
        self.path = path_from_target(target)
        self.client_ip = DEFAULT_CLIENT_IP
        self._headers = headers

    def header(self, name: str) -> str | None:
        return self._headers.get(name)

    def joined(self, name: str) -> str | None:
        return ", ".join(self._headers.getall(name)) if name in self._headers else None


def run_explain(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, or 2 for a policy that cannot be taken. Raises UsageError."""
    option, method, target, headers = _parse_request(argv)
    policy = load_policy(option, environ, stderr)
    if policy is None:
        return EXIT_BAD_POLICY
    # The rules that the gateway itself would go by, so that nothing said here can differ from what happens.
    rules = RequestRules.from_policy(policy, on_render=bool(environ.get("RENDER")))
    request = HypotheticalRequest(method, target, headers)
    request.client_ip = rules.trusted_peers.resolve_client(DEFAULT_CLIENT_IP, request.joined).ip
    identified = rules.identifier.identify(request)
    route, reading = rules.routes.match_reading(method, request.path)
    said = [
        ("request", f"{method} {target}"),
        ("route", _explain_route(route, request.path, reading)),
        ("user", f"{identified.user}, by {identified.source}"),
        ("tier", _explain_tier(policy, identified)),
        ("connections", _explain_connections(policy)),
        *_explain_limits(policy, route, identified.tier),
        ("later", _explain_background(policy, route, request.joined("Prefer"))),
        ("caps", _explain_caps(policy, identified.tier)),
        ("budget", _explain_budget(policy, route, identified.tier)),
    ]
    print_pairs(said, stdout)
    return 0


def _parse_request(argv: Sequence[str]) -> tuple[str | None, str, str, CIMultiDictProxy[str]]:
    arguments = parse_arguments("explain", argv, with_value=("-H", "--header", "--policy"))
    headers: CIMultiDict[str] = CIMultiDict()
    for given in (*arguments.options.get("-H", ()), *arguments.options.get("--header", ())):
        name, colon, text = given.partition(":")
        if not colon:
            raise UsageError(f"explain: `{given}` is no header; write 'Name: value'")
        headers.add(name.strip(), text.strip())
    words = [*arguments.positionals, *(arguments.remainder or ())]
    if len(words) != 2 or not words[1].startswith("/"):
        raise UsageError("explain: give a method and a path, as in `explain GET /api/notes`")
    if re.fullmatch(r"[A-Za-z-]+", words[0]) is None:
        raise UsageError(f"explain: `{words[0]}` is no method; write GET, POST or the like")
    return arguments.last_value("--policy"), words[0].upper(), words[1], CIMultiDictProxy(headers)


def _explain_route(route: Route, path: str, reading: str) -> str:
    methods = f" for {', '.join(route.match.methods)}" if route.match.methods else ""
    read = f", the path read as {reading}" if reading != path else ""
    return f"{route.name}: {route.match.path}{methods} fits{read}"


def _explain_tier(policy: Policy, identified: Identified) -> str:
    # The last tier without `users` takes everybody whom none before it fits.
    for tier in policy.identity.tiers:
        if tier.name == identified.tier:
            return f"{tier.name}: {tier.users} fits" if tier.users else f"{tier.name}: the default, no other fits"
    return "none: the policy names no tiers"


def _explain_limits(policy: Policy, route: Route, tier: str) -> list[tuple[str, str]]:
    rates = ", ".join(format_rate(rate.count, rate.period) for rate in route.limits_for(tier)) or "none"
    # Limits for other tiers alone: worth a word, since it looks like an oversight.
    if route.rate_limit and rates == "none":
        rates = f"none: rate_limit has nothing for tier {tier}"
    shadow = "" if route.enforce else " (shadow mode: counted, not refused)"
    at_once = "any number"
    if route.concurrency is not None:
        queue = route.queue
        at_once = f"{route.concurrency}, then {queue.size} wait up to {format_duration(queue.wait)}"
    return [
        ("rate limit", rates + shadow),
        ("counted in", _explain_store(policy, counts=bool(route.limits_for(tier)))),
        ("timeout", "none" if route.timeout is None else f"{format_duration(route.timeout)} to and between bytes"),
        ("total", "none" if route.total is None else format_duration(route.total)),
        ("body", _explain_body(policy, route)),
        ("at once", at_once),
        ("streams", "any number" if route.streams is None else f"{route.streams} open at once by this user"),
        ("overload", policy.overload.mode),
        ("abandoned", _explain_abandoned(route)),
        ("retries", _explain_retries(route)),
        ("cache", _explain_cache(route)),
        ("compress", _explain_compression(route)),
        ("fields", _explain_fields(route)),
    ]


def _explain_store(policy: Policy, *, counts: bool) -> str:
    """Where the counts of this request live, and what happens without that place."""
    store, money = policy.store, policy.store.money
    capped = any(one.cap.per_user or one.cap.total or one.cap.unattributed for one in policy.upstreams.values())
    if store.url == "memory://" and money is None:
        return "this instance's memory" if counts or capped else "nothing to count"
    alone = {
        "share": "with this instance's part",
        "local": "with the whole limit",
        "deny": "not at all: it is refused with 503",
    }[store.on_error]
    said = []
    if counts:
        shared = store.url != "memory://"
        said.append(
            f"limits in {mask_password(store.url)}, by its clock; without it {alone}"
            if shared
            else "limits in this instance's memory"
        )
    if capped:
        where = store.url if money is None else money
        said.append(f"caps in {mask_password(where)}, in slices of {format_share(store.slice)} of what is left")
    return "; ".join(said) or "nothing to count"


def _explain_background(policy: Policy, route: Route, prefer: str | None) -> str:
    """Whether this very request would run later, and within which bounds."""
    background = route.background
    if background.mode == "off":
        return "no: it is answered when the app has answered (background: off)"
    later = background.mode == "always" or parse_prefer(prefer).respond_async
    why = "every request of this route" if background.mode == "always" else "the client asks by Prefer: respond-async"
    said = f"yes, with 202: {why}" if later else "no, since the client does not send Prefer: respond-async"
    tries = background.retry.attempts
    return (
        f"{said}; {background.concurrency} at once over all instances, {background.max_queued} may wait,"
        f" {format_duration(background.timeout)} a try, {tries} {'try' if tries == 1 else 'tries'},"
        f" bodies up to {format_size(policy.tasks.max_body)}"
    )


def _explain_connections(policy: Policy) -> str:
    bound = policy.listen.connections
    total = "as many as there are descriptors for" if bound.total == "auto" else f"{bound.total} in all"
    return total if bound.per_address is None else f"{total}, {bound.per_address} from one address"


def _explain_body(policy: Policy, route: Route) -> str:
    size = route.max_body if route.max_body is not None and route.enforce else policy.listen.max_body
    said = ["any size" if size is None else f"up to {format_size(size)}"]
    body = policy.listen.body
    # A body is read ahead only if its request may have to wait for a place.
    if body.buffer and (policy.overload.mode != "off" or (route.concurrency is not None and route.enforce)):
        said.append(f"{format_size(body.buffer)} of it is here before the request takes a place")
    if body.min_rate is not None:
        said.append(f"{body.min_rate} B/s at least")
    return ", ".join(said)


def _explain_caps(policy: Policy, tier: str) -> str:
    found = []
    for name, upstream in policy.upstreams.items():
        cap = upstream.cap
        # A cap of the tier itself goes before one for every tier; they are not added.
        key = tier if tier in cap.per_user else ANY_TIER
        found += [f"{name} {spend} a user{_tier_suffix(key)}" for spend in cap.per_user.get(key, ())]
        found += [f"{name} ${cap.per_call:f} a call"] if cap.per_call is not None else []
        found += [f"{name} {cap.total} in all"] if cap.total is not None else []
    return ", ".join(found) or "none"


def _tier_suffix(key: str) -> str:
    return "" if key == ANY_TIER else f" of tier {key}"


def _explain_budget(policy: Policy, route: Route, tier: str) -> str:
    if not route.requires_budget:
        return "the request is served whatever is spent; only calls out are refused"
    capped = any(tier in up.cap.per_user or ANY_TIER in up.cap.per_user for up in policy.upstreams.values())
    if not capped:
        return "requires_budget, but no per_user cap fits this tier: never refused for it"
    return "402 before the app works, once a cap of this user is spent (requires_budget)"


def _explain_abandoned(route: Route) -> str:
    if route.when_abandoned == "cancel":
        return "a client that leaves ends the request, its calls out and its queries"
    return "a client that leaves ends the request; its calls out go on"


def _explain_cache(route: Route) -> str:
    cache = route.cache
    if cache is None:
        return "no answer is kept"
    whose = "by user, Authorization and Cookie" if cache.scope == "user" else "for everybody (public)"
    said = [f"answers to GET and HEAD are kept {whose}, as their Cache-Control allows"]
    if cache.ttl:
        said.append(f"{format_duration(cache.ttl)} if they name no freshness")
    if cache.stale_while_revalidate:
        said.append(f"stale for {format_duration(cache.stale_while_revalidate)} while the app is asked")
    if cache.stale_if_error:
        said.append(f"stale for {format_duration(cache.stale_if_error)} in place of an error")
    return ", ".join((*said, f"up to {format_size(cache.max)} in memory"))


def _explain_compression(route: Route) -> str:
    if route.compress == "off":
        return "answers go out as the app made them"
    return "text that the app left plain, as the client's Accept-Encoding likes it (zstd, br, gzip)"


def _explain_fields(route: Route) -> str:
    found = []
    for side, changes in (("request", route.headers.request), ("answer", route.headers.response)):
        found += [f"{side} {'without' if value is None else 'with'} {name}" for name, value in changes.items()]
    return ", ".join(found) or "none are changed"


def _explain_retries(route: Route) -> str:
    attempts = route.retries.attempts
    if attempts <= 1 or not route.retries.on:
        return "none"
    return f"up to {attempts} attempts where no byte was sent yet (GET, HEAD, OPTIONS, PUT, DELETE)"
