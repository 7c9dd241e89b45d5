"""`suggest [--policy FILE]`: what the running gateway saw, and the figures that would have refused nobody."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from proxy.cli.arguments import parse
from proxy.cli.ctl import seen
from proxy.cli.load_policy import UNFIT, taken
from proxy.cli.output import complain, styled, write
from proxy.cli.running_stats import Evidence, Spread, Traffic, read_evidence
from proxy.errors import UsageError
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.route import Route
from proxy.policy.values import ANY_TIER, Rate
from proxy.units import format_duration, format_size

PATIENCE = 10.0  # seconds
FAILED = 1
ENOUGH = 100  # requests of a route, below which no figure stands
DAY = 86400.0
NICE = (4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 400)
TIMES = (30.0, 60.0, 120.0, 300.0, 600.0)
MONEY = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(slots=True)
class Advice:
    """Sentences on one part of a policy, and the lines that they come to, without indentation."""

    name: str
    said: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


def suggest(argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO) -> int:
    """Exit status 0, also where too little was seen; 1 where no gateway answers, 2 for a policy that cannot be taken.
    Raises UsageError."""
    line = parse("suggest", argv, valued=("--policy",))
    if surplus := [*line.words, *(line.rest or ())]:
        raise UsageError(f"suggest: `{surplus[0]}` is not known; there is --policy")
    policy = taken(line.last("--policy"), environ, stderr)
    if policy is None:
        return UNFIT
    place = seen(policy.listen.admin)
    try:
        evidence = _ask(policy)
    except PermissionError:
        complain(
            stderr,
            f"suggest: the gateway on {place} shows nothing without its admin token; set OUTRIGGER_ADMIN_TOKEN to"
            " the gateway's own, or show its policy by --policy (admin.token)",
        )
        return FAILED
    except (OSError, http.client.HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        complain(
            stderr,
            f"suggest: no gateway answers on {place} ({why}); start it and let it run for a day, or show the policy it"
            " runs with by --policy (the address is listen.admin)",
        )
        return FAILED
    for text in _foreword(evidence):
        styled(stdout, text, "bold")
    routes = [advise_route(route, evidence.routes.get(route.name, Traffic())) for route in policy.routes]
    money = [one for name in policy.upstreams if (one := advise_upstream(name, policy, evidence)) is not None]
    for one in (*routes, *money):
        styled(stdout, f"\n{one.name}:", "bold")
        for sentence in one.said:
            styled(stdout, f"  {sentence}")
    write(stdout, "\n")
    if any(one.lines for one in (*routes, *money)):
        styled(stdout, f"As lines of {policy.source}; put each into its entry there:", "bold")
        write(stdout, "\n")
        for text in as_yaml(routes, money):
            styled(stdout, text, "cyan")
    else:
        styled(stdout, "No figure can be proposed yet.", "yellow")
    return 0


def _foreword(evidence: Evidence) -> Iterator[str]:
    requests = sum(route.requests for route in evidence.routes.values())
    yield f"The gateway has run for {_long(evidence.uptime)} and answered {requests:,} requests."
    if evidence.uptime < DAY:
        yield "That is too little to go by: let it see a whole day, with its busy hours. What follows is a first look."


def advise_route(route: Route, seen: Traffic) -> Advice:
    advice = Advice(route.name)
    if seen.requests < ENOUGH:
        advice.said.append(f"{_count(seen.requests, 'request')} so far: too few for a figure, it takes {ENOUGH}.")
        return advice
    shadow = not route.enforce
    would = sum(seen.shadow.values())
    advice.said.append(f"{seen.requests:,} requests.")
    if route.name != "default" and (route.concurrency is not None or route.rate_limit):
        _at_once(advice, seen.at_once)
    _time(advice, seen.seconds)
    fits = True
    if route.rate_limit:
        fits = _rate(advice, route, seen)
    if route.max_body is not None and shadow and (big := seen.shadow.get("body-too-large", 0)):
        fits = False
        size = 2 * route.max_body
        advice.said.append(
            f"{_count(big, 'body', 'bodies')} of over {format_size(route.max_body)} came (max_body, in shadow):"
            f" try {format_size(size)}."
        )
        advice.lines.append(f"max_body: {format_size(size)}")
    if shadow and fits and (route.rate_limit or route.max_body is not None or route.concurrency is not None):
        others = {name: count for name, count in seen.shadow.items() if name not in ("rate-limited", "body-too-large")}
        if not others or route.concurrency is not None:
            told = (
                "nobody would have been refused" if not would else "with these figures nobody would have been refused"
            )
            advice.said.append(f"It is in shadow (enforce: false), and {told}: it can be put in force.")
            advice.lines.append("enforce: true")
    return advice


def _at_once(advice: Advice, at_once: Spread) -> None:
    if at_once.count < ENOUGH:
        return
    most, usual = at_once.highest, at_once.quantile(0.99)
    if most == math.inf:
        advice.said.append("At once: more than 256 at times; no limit is proposed.")
        return
    limit = next((nice for nice in NICE if nice >= 1.25 * most), NICE[-1])
    advice.said.append(f"p99 of concurrency was {usual:g}, the most {most:g}: {limit} would have refused nobody.")
    advice.lines.append(f"concurrency: {limit}")


def _time(advice: Advice, seconds: Spread) -> None:
    longest = seconds.highest
    if longest == math.inf:
        advice.said.append("Some took longer than 2 min (streams, long polls, uploads): no timeout is proposed.")
        return
    limit = next((one for one in TIMES if one >= 2 * longest), TIMES[-1])
    advice.said.append(
        f"All were over within {format_duration(longest)}: a timeout of {format_duration(limit)} would have ended none."
    )
    advice.lines.append(f"timeout: {format_duration(limit)}")


def _rate(advice: Advice, route: Route, seen: Traffic) -> bool:
    """Whether the limit, as it is, met nobody."""
    asked = sum(seen.limited.values())
    met = asked - seen.limited.get("allowed", 0)
    rates = {tier: [str(one) for one in limits] for tier, limits in route.rate_limit.items()}
    shown = " · ".join(", ".join(limits) for limits in rates.values())
    if not met:
        advice.said.append(
            f"Its rate limit ({shown}) would have refused nobody."
            if not route.enforce
            else f"Its rate limit ({shown}) refused nobody."
        )
        return True
    did = "would have refused" if not route.enforce else "refused"
    advice.said.append(f"Its rate limit ({shown}) {did} {met:,} of {asked:,}: the log says whom; try twice as much.")
    advice.lines.append(f"rate_limit: {_twice(route)}")
    return False


def _twice(route: Route) -> str:
    """Its limits with twice their counts, as YAML."""
    values = {}
    for tier, limits in route.rate_limit.items():
        rates = [str(Rate(2 * one.count, one.period)) for one in limits]
        values[tier] = rates[0] if len(rates) == 1 else f"[{', '.join(rates)}]"
    if list(values) == [ANY_TIER]:
        return values[ANY_TIER]
    return f"{{{', '.join(f'{tier}: {value}' for tier, value in values.items())}}}"


def advise_upstream(name: str, policy: Policy, evidence: Evidence) -> Advice | None:
    """None where nothing was called."""
    calls = evidence.calls.get(name)
    if calls is None or not calls.count:
        return None
    advice = Advice(f"calls to {name}")
    if calls.count < ENOUGH:
        advice.said.append(f"{_count(calls.count, 'call')} so far: too few for a figure, it takes {ENOUGH}.")
        return advice
    advice.said.append(f"{calls.count:,} calls; 99 % were over within {_bound(calls.quantile(0.99))}.")
    alone = sum(bool(one.count) for one in evidence.calls.values()) == 1
    if evidence.uptime < DAY / 2 or not alone:  # what was spent is known of all upstreams together
        return advice
    limit = next((one for one in MONEY if one >= 3 * evidence.spent), None)
    if limit is not None and evidence.spent:
        advice.said.append(
            f"All calls of the last day cost ${evidence.spent:.2f}: a total of ${limit}/d would have refused none."
        )
        advice.lines.append(f"cap: {{total: ${limit}/d}}")
    return advice


def as_yaml(routes: list[Advice], upstreams: list[Advice]) -> Iterator[str]:
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


def _ask(policy: Policy) -> Evidence:
    """Raises OSError, HTTPException, ValueError; PermissionError where it asks for another token."""
    place = seen(policy.listen.admin)
    connection = http.client.HTTPConnection(place.host, place.port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {policy.admin.token}"} if policy.admin.token else {}
    bodies = []
    try:
        for path in ("/metrics", "/status", "/status?history=1"):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status in (401, 403):
                raise PermissionError
            if answer.status != 200:
                raise ValueError(f"{path} answered {answer.status}")
            bodies.append(body.decode("utf-8", "replace"))
    finally:
        connection.close()
    return read_evidence(bodies[0], json.loads(bodies[1]), json.loads(bodies[2]))


def _bound(seconds: float) -> str:
    return "more than 2 min" if seconds == math.inf else format_duration(seconds)


def _long(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _count(number: int, noun: str, several: str = "") -> str:
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
