"""`suggest [--policy FILE]`: what the running gateway saw, and the figures that would have refused nobody."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from proxy.cli.admin_client import describe_failure, reachable_address, request
from proxy.cli.arguments import parse_arguments
from proxy.cli.load_policy import EXIT_BAD_POLICY, load_policy
from proxy.cli.output import print_error, print_line, write_text
from proxy.cli.running_stats import GatewayStats, Histogram, RouteStats, parse_stats
from proxy.errors import UsageError
from proxy.policy.schema import Policy, Route
from proxy.policy.values import ANY_TIER, Rate
from proxy.units import format_duration, format_size

REQUEST_TIMEOUT = 10.0  # seconds
EXIT_FAILED = 1
MIN_REQUESTS = 100  # requests of a route, below which no figure stands
DAY_SECONDS = 86400.0
# Figures that people would write: what was seen is rounded up to the next one.
CONCURRENCY_STEPS = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 400)
TIMEOUT_STEPS = (30.0, 60.0, 120.0, 300.0, 600.0)
CAP_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(slots=True)
class Advice:
    """Sentences on one part of a policy, and the lines that they come to, without indentation."""

    name: str
    sentences: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def run_suggest(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, also if too little was seen; 1 if no gateway answers, 2 for a policy that cannot be taken.

    Raises UsageError.
    """
    arguments = parse_arguments("suggest", argv, with_value=("--policy",))
    if surplus := [*arguments.positionals, *(arguments.remainder or ())]:
        raise UsageError(f"suggest: `{surplus[0]}` is not known; there is --policy")
    policy = load_policy(arguments.last_value("--policy"), environ, stderr)
    if policy is None:
        return EXIT_BAD_POLICY
    address = reachable_address(policy.listen.admin)
    try:
        stats = _fetch_stats(policy)
    except PermissionError:
        print_error(
            stderr,
            f"suggest: the gateway on {address} shows nothing without its admin token; set OUTRIGGER_ADMIN_TOKEN to"
            " the gateway's own, or show its policy by --policy (admin.token)",
        )
        return EXIT_FAILED
    except (OSError, http.client.HTTPException, ValueError) as error:
        print_error(
            stderr,
            f"suggest: no gateway answers on {address} ({describe_failure(error)}); start it and let it run for a day,"
            " or show the policy it runs with by --policy (the address is listen.admin)",
        )
        return EXIT_FAILED
    for text in _introduce(stats):
        print_line(stdout, text, "bold")
    routes = [advise_route(route, stats.routes.get(route.name, RouteStats())) for route in policy.routes]
    money = [one for name in policy.upstreams if (one := advise_upstream(name, policy, stats)) is not None]
    for one in (*routes, *money):
        print_line(stdout, f"\n{one.name}:", "bold")
        for sentence in one.sentences:
            print_line(stdout, f"  {sentence}")
    write_text(stdout, "\n")
    if any(one.lines for one in (*routes, *money)):
        print_line(stdout, f"As lines of {policy.source}; put each into its entry there:", "bold")
        write_text(stdout, "\n")
        for text in format_policy_lines(routes, money):
            print_line(stdout, text, "cyan")
    else:
        print_line(stdout, "No figure can be proposed yet.", "yellow")
    return 0


def _introduce(stats: GatewayStats) -> Iterator[str]:
    requests = sum(route.requests for route in stats.routes.values())
    yield f"The gateway has run for {_format_uptime(stats.uptime)} and answered {requests:,} requests."
    if stats.uptime < DAY_SECONDS:
        yield "That is too little to go by: let it see a whole day, with its busy hours. What follows is a first look."


def advise_route(route: Route, seen: RouteStats) -> Advice:
    """What the requests of one route suggest: figures that would have refused nobody, and whether to enforce them."""
    advice = Advice(route.name)
    # A figure from a handful of requests would refuse the next busy hour.
    if seen.requests < MIN_REQUESTS:
        advice.sentences.append(
            f"{_format_count(seen.requests, 'request')} so far: too few for a figure, it takes {MIN_REQUESTS}."
        )
        return advice
    # In shadow mode nobody was refused, so what would have been is in the shadow counters.
    shadow = not route.enforce
    would = sum(seen.shadow.values())
    advice.sentences.append(f"{seen.requests:,} requests.")
    if route.name != "default" and (route.concurrency is not None or route.rate_limit):
        _advise_concurrency(advice, seen.concurrency)
    _advise_timeout(advice, seen.seconds)
    fits = True
    if route.rate_limit:
        fits = _advise_rate_limit(advice, route, seen)
    if route.max_body is not None and shadow and (big := seen.shadow.get("body-too-large", 0)):
        fits = False
        size = 2 * route.max_body
        advice.sentences.append(
            f"{_format_count(big, 'body', 'bodies')} of over {format_size(route.max_body)} came (max_body, in shadow):"
            f" try {format_size(size)}."
        )
        advice.lines.append(f"max_body: {format_size(size)}")
    if shadow and fits and (route.rate_limit or route.max_body is not None or route.concurrency is not None):
        # Other refusals are for want of a place: they count against it unless the figure above makes room.
        others = {name: count for name, count in seen.shadow.items() if name not in ("rate-limited", "body-too-large")}
        if not others or route.concurrency is not None:
            told = (
                "nobody would have been refused" if not would else "with these figures nobody would have been refused"
            )
            advice.sentences.append(f"It is in shadow (enforce: false), and {told}: it can be put in force.")
            advice.lines.append("enforce: true")
    return advice


def _advise_concurrency(advice: Advice, at_once: Histogram) -> None:
    if at_once.count < MIN_REQUESTS:
        return
    most, usual = at_once.highest, at_once.quantile(0.99)
    # The histogram tells nothing apart above its last finite bound.
    if most == math.inf:
        advice.sentences.append("At once: more than 256 at times; no limit is proposed.")
        return
    # A quarter above the most that was seen, since the next day may be busier.
    limit = next((nice for nice in CONCURRENCY_STEPS if nice >= 1.25 * most), CONCURRENCY_STEPS[-1])
    advice.sentences.append(f"p99 of concurrency was {usual:g}, the most {most:g}: {limit} would have refused nobody.")
    advice.lines.append(f"concurrency: {limit}")


def _advise_timeout(advice: Advice, seconds: Histogram) -> None:
    longest = seconds.highest
    if longest == math.inf:
        advice.sentences.append("Some took longer than 2 min (streams, long polls, uploads): no timeout is proposed.")
        return
    # Twice the longest: a slow answer is better than one that is cut off.
    limit = next((one for one in TIMEOUT_STEPS if one >= 2 * longest), TIMEOUT_STEPS[-1])
    advice.sentences.append(
        f"All were over within {format_duration(longest)}: a timeout of {format_duration(limit)} would have ended none."
    )
    advice.lines.append(f"timeout: {format_duration(limit)}")


def _advise_rate_limit(advice: Advice, route: Route, seen: RouteStats) -> bool:
    """Whether the limit, as it is, would have refused nobody."""
    asked = sum(seen.rate_decisions.values())
    met = asked - seen.rate_decisions.get("allowed", 0)
    rates = {tier: [str(one) for one in limits] for tier, limits in route.rate_limit.items()}
    shown = " · ".join(", ".join(limits) for limits in rates.values())
    if not met:
        advice.sentences.append(
            f"Its rate limit ({shown}) would have refused nobody."
            if not route.enforce
            else f"Its rate limit ({shown}) refused nobody."
        )
        return True
    # The counters say how many were refused and not what they would have needed: twice as much is a first guess.
    did = "would have refused" if not route.enforce else "refused"
    advice.sentences.append(
        f"Its rate limit ({shown}) {did} {met:,} of {asked:,}: the log says whom; try twice as much."
    )
    advice.lines.append(f"rate_limit: {_doubled_rate_limit(route)}")
    return False


def _doubled_rate_limit(route: Route) -> str:
    """Its limits with twice their counts, as YAML."""
    values = {}
    for tier, limits in route.rate_limit.items():
        rates = [str(Rate(2 * one.count, one.period)) for one in limits]
        values[tier] = rates[0] if len(rates) == 1 else f"[{', '.join(rates)}]"
    if list(values) == [ANY_TIER]:
        return values[ANY_TIER]
    return f"{{{', '.join(f'{tier}: {value}' for tier, value in values.items())}}}"


def advise_upstream(name: str, policy: Policy, stats: GatewayStats) -> Advice | None:
    """What one upstream's calls suggest; None if nothing was called."""
    calls = stats.calls.get(name)
    if calls is None or not calls.count:
        return None
    advice = Advice(f"calls to {name}")
    if calls.count < MIN_REQUESTS:
        advice.sentences.append(
            f"{_format_count(calls.count, 'call')} so far: too few for a figure, it takes {MIN_REQUESTS}."
        )
        return advice
    advice.sentences.append(f"{calls.count:,} calls; 99 % were over within {_format_bound(calls.quantile(0.99))}.")
    alone = sum(bool(one.count) for one in stats.calls.values()) == 1
    if stats.uptime < DAY_SECONDS / 2 or not alone:  # the history has the spend of all upstreams together
        return advice
    # Three times the last day, since one day says little of the busiest.
    limit = next((one for one in CAP_STEPS if one >= 3 * stats.last_day_spend), None)
    if limit is not None and stats.last_day_spend:
        advice.sentences.append(
            f"All calls of the last day cost ${stats.last_day_spend:.2f}: a total of ${limit}/d"
            " would have refused none."
        )
        advice.lines.append(f"cap: {{total: ${limit}/d}}")
    return advice


def format_policy_lines(routes: list[Advice], upstreams: list[Advice]) -> Iterator[str]:
    """The lines proposed, as entries of a policy."""
    if any(one.lines for one in routes):
        yield "routes:"
        for one in routes:
            if one.lines:
                yield f"  - name: {one.name}"
                yield from (f"    {line}" for line in one.lines)
    if any(one.lines for one in upstreams):
        yield "upstreams:"
        for one in upstreams:
            if one.lines:
                yield f"  {one.name.removeprefix('calls to ')}:"
                yield from (f"    {line}" for line in one.lines)


def _fetch_stats(policy: Policy) -> GatewayStats:
    """Raises OSError, HTTPException, ValueError; PermissionError if the gateway asks for another token."""
    address = reachable_address(policy.listen.admin)
    bodies = []
    for path in ("/metrics", "/status", "/status?history=1"):
        status, body = request(address, "GET", path, token=policy.admin.token, timeout=REQUEST_TIMEOUT)
        # Of its own, since the fix is another one: a token and not an address.
        if status in (401, 403):
            raise PermissionError
        if status != 200:
            raise ValueError(f"{path} answered {status}")
        bodies.append(body.decode("utf-8", "replace"))
    return parse_stats(bodies[0], json.loads(bodies[1]), json.loads(bodies[2]))


def _format_bound(seconds: float) -> str:
    return "more than 2 min" if seconds == math.inf else format_duration(seconds)


def _format_uptime(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _format_count(number: int, noun: str, several: str = "") -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
