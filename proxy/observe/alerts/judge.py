"""Which rules hold now, of what, and how bad it is in figures.

A rule on errors or percentiles says nothing of a handful of requests: errors need 5 that failed in their window
(or 3, where nothing else was answered at all), a percentile 20 requests of the route (or 5, where half of them
were that slow), waits for the database 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from proxy.observe.alerts.facts import CapFact, Facts
from proxy.observe.alerts.finding import Finding
from proxy.observe.alerts.lasting import Lasting
from proxy.observe.span import RouteSpan
from proxy.policy import condition as when
from proxy.policy.condition import Condition
from proxy.units import format_duration, format_money, format_share

FEWEST_ERRORS, FEWEST_IF_ALL = 5, 3
FEWEST_REQUESTS, FEWEST_IF_HALF = 20, 5
FEWEST_WAITS, WAITING_SHARE = 2, 0.05
BYPASS_SEEN = 300.0  # seconds for which a call past the gateway is news
NEVER_DOWN = ("upstreams", "ledger", "memory")  # parts whose worst word is degraded
MIB = 1024 * 1024


class Judge:
    """Keeps since when what must last has been so; one for all rules."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._lasting: dict[tuple[Condition, str], Lasting] = {}

    def tick(self, now: float, conditions: set[Condition]) -> None:
        """Once a second: look at what must last."""
        for key in [key for key in self._lasting if key[0] not in conditions]:
            del self._lasting[key]
        for condition in conditions:
            match condition:
                case when.PartIs():
                    self._look_at_part(now, condition)
                case when.BreakerOpen():
                    found = self._facts.breakers()
                    for key in [k for k in self._lasting if k[0] == condition and k[1] not in found]:
                        del self._lasting[key]
                    for name, breaker in found.items():
                        if condition.upstream in (None, name):
                            self._of(condition, name, condition.lasting).note(now, breaker.open)
                case when.MemoryAbove():
                    share = self._facts.sample().memory_share
                    bad = share is not None and share > condition.share
                    self._of(condition, "", condition.lasting).note(now, bad)
                case _:
                    pass

    def judge(self, now: float, condition: Condition) -> Iterator[Finding]:
        match condition:
            case when.PartIs():
                yield from self._part(now, condition)
            case when.BreakerOpen():
                yield from self._breaker(now, condition)
            case when.Errors():
                yield from self._errors(condition)
            case when.Slow():
                yield from self._slow(condition)
            case when.MemoryAbove():
                yield from self._memory(now, condition)
            case when.CapSpent():
                yield from self._cap(condition)
            case when.SpentToday():
                yield from self._today(condition)
            case when.PoolWait():
                yield from self._pool(condition)
            case when.ThrottledAbove():
                yield from self._throttled(condition)
            case when.Bypassed():
                yield from self._bypass()

    # ── what must last ───────────────────────────────────────────────────────────────────────

    def _of(self, condition: Condition, subject: str, seconds: float) -> Lasting:
        key = (condition, subject)
        found = self._lasting.get(key)
        if found is None:
            found = self._lasting[key] = Lasting(seconds)
        return found

    def _look_at_part(self, now: float, condition: when.PartIs) -> None:
        state = self._facts.parts()[condition.part]
        bad = state.state == "down" or (
            state.state == "degraded" and (condition.state == "degraded" or condition.part in NEVER_DOWN)
        )
        lasting = self._of(condition, condition.part, condition.lasting)
        if condition.part == "app" and bad and self._facts.app_excused():
            return
        lasting.note(now, bad, state.since)

    def _part(self, now: float, condition: when.PartIs) -> Iterator[Finding]:
        lasting = self._of(condition, condition.part, condition.lasting)
        if not lasting.holds(now) or lasting.since is None:
            return
        part, state = condition.part, self._facts.parts()[condition.part]
        name = "the app" if part == "app" else part
        length = level = now - lasting.since
        if part == "app" and state.state == "ok":
            text, level = f"the app is up for the moment, but went down {length:.0f} s ago and may again", 0.0
        else:
            text = f"{name} is {state.state} for {length:.0f} s: {state.reason}"
        yield Finding(part, text, f"{length:.0f} s", str(condition), since=lasting.since, level=level)

    def _breaker(self, now: float, condition: when.BreakerOpen) -> Iterator[Finding]:
        for name, breaker in self._facts.breakers().items():
            lasting = self._lasting.get((condition, name))
            if lasting is None or not lasting.holds(now) or lasting.since is None:
                continue
            length = now - lasting.since
            text = f"the breaker of {name} is open for {length:.0f} s, its calls are refused: {breaker.why}"
            attempts = self._facts.since(60.0).attempts.get(name, {})
            worst = sorted(((n, result) for result, n in attempts.items() if n and result != "ok"), reverse=True)
            shown = ", ".join(f"{n:.0f} × {result}" for n, result in worst[:3])
            text += f"; attempts of the last minute: {shown}" if shown else ""
            yield Finding(
                name,
                text,
                f"open for {length:.0f} s",
                str(condition),
                since=lasting.since,
                level=0.0 if breaker.forced else length,
                settled=breaker.forced,
            )

    def _memory(self, now: float, condition: when.MemoryAbove) -> Iterator[Finding]:
        lasting, sample = self._of(condition, "", condition.lasting), self._facts.sample()
        share = sample.memory_share
        if not lasting.holds(now) or share is None:
            return
        text = (
            f"{share:.0%} of the memory limit of {(sample.limit_bytes or 0) / MIB:.0f} MiB is in use"
            f" (app {(sample.app_bytes or 0) / MIB:.0f} MiB, gateway {sample.gateway_bytes / MIB:.0f} MiB)"
        )
        yield Finding("", text, f"{share:.0%}", str(condition), since=lasting.since, level=share)

    # ── what is counted over a time ──────────────────────────────────────────────────────────

    def _errors(self, condition: when.Errors) -> Iterator[Finding]:
        span = self._facts.since(condition.over)
        named = condition.route
        route = span.total() if named is None else span.routes.get(named, RouteSpan())
        ok = route.requests - route.errors
        enough = route.errors >= FEWEST_ERRORS or (route.errors >= FEWEST_IF_ALL and ok == 0)
        if not enough or route.error_share <= condition.share:
            return
        of = f" of {condition.route}" if condition.route is not None else ""
        text = (
            f"{route.errors:.0f} of {route.requests:.0f} requests{of} failed in {format_duration(condition.over)}"
            f" ({route.error_share:.0%})"
        )
        if condition.route is None:
            worst = sorted(((r.errors, name) for name, r in span.routes.items() if r.errors), reverse=True)
            text += f"; most of them of {', '.join(f'{name} ({n:.0f})' for n, name in worst[:3])}"
        yield Finding(condition.route or "", text, f"{route.error_share:.1%}", str(condition), level=route.error_share)

    def _slow(self, condition: when.Slow) -> Iterator[Finding]:
        span, timeouts = self._facts.since(condition.over), self._facts.timeouts()
        for name, route in span.routes.items():
            if condition.route not in (None, name) or route.requests < FEWEST_IF_HALF:
                continue
            most = condition.seconds
            if most is None:
                timeout = timeouts.get(name)
                if timeout is None:
                    continue
                most = timeout * (condition.share or 0.0)
            found = route.quantile(condition.percent / 100)
            if found is None or found <= most:
                continue
            if route.requests < FEWEST_REQUESTS and (route.quantile(0.5) or 0.0) <= most:
                continue
            text = (
                f"{100 - condition.percent}% of {route.requests:.0f} requests of {name} took longer than {found:.1f} s"
                f" in {format_duration(condition.over)} (p{condition.percent}; the rule allows {most:g} s)"
            )
            yield Finding(name, text, f"{found:.2f} s", str(condition), level=found / most)

    def _pool(self, condition: when.PoolWait) -> Iterator[Finding]:
        span = self._facts.since(condition.over)
        now_over = [wait for wait in self._facts.pool_waits() if wait > condition.seconds]
        over = span.waited_over(condition.seconds) + len(now_over)
        asked = (span.waits[-1] if span.waits else 0.0) + len(now_over)
        if over < FEWEST_WAITS or over <= WAITING_SHARE * asked:
            return
        text = (
            f"{over:.0f} of {asked:.0f} clients waited for a database connection longer than"
            f" {format_duration(condition.seconds)} in {format_duration(condition.over)}"
        )
        holders = self._facts.pool_holders()
        text += f"; {holders}" if holders else ""
        yield Finding("postgres", text, f"{over:.0f} of {asked:.0f}", str(condition), level=over, cause=holders)

    def _throttled(self, condition: when.ThrottledAbove) -> Iterator[Finding]:
        share = self._facts.since(condition.over).throttled / condition.over
        if share <= condition.share:
            return
        text = f"the CPU quota held app and gateway back for {share:.0%} of {format_duration(condition.over)}"
        yield Finding("", text, f"{share:.0%}", str(condition), level=share)

    # ── money, and ways around ───────────────────────────────────────────────────────────────

    def _cap(self, condition: when.CapSpent) -> Iterator[Finding]:
        for name, cap in self._facts.caps(condition.share).items():
            users = cap.users
            total = cap.total_share if cap.total_share is not None and cap.total_share > condition.share else None
            if not users and total is None:
                continue
            said = []
            if total is not None:
                said.append(f"{total:.0%} of the total cap of {cap.total} is spent")
            if users:
                who = "1 user has" if users == 1 else f"{users} users have"
                said.append(f"{who} spent more than {format_share(condition.share)} of a cap of their own")
            text = f"at {name}, {' and '.join(said)}; {_today(cap)}"
            value = f"{total:.0%} of the total" if total is not None else f"{users} users"
            level = users + 10 * (total or 0.0)
            yield Finding(name, text, value, str(condition), level=level, settled=True)

    def _today(self, condition: when.SpentToday) -> Iterator[Finding]:
        caps = self._facts.caps(1.0)
        spent = sum(cap.spent_today for cap in caps.values())
        if spent <= float(condition.amount):
            return
        dearest = max(caps, key=lambda name: caps[name].spent_today)
        whole = CapFact(spent, sum(cap.projected_today for cap in caps.values()))
        text = f"more than {format_money(condition.amount)} is spent today, most of it at {dearest}; {_today(whole)}"
        yield Finding("", text, f"${spent:.2f}", str(condition), level=spent, settled=True)

    def _bypass(self) -> Iterator[Finding]:
        found: Mapping[str, int] = self._facts.bypassed(BYPASS_SEEN)
        for name, count in found.items():
            text = f"{count} calls went straight to the host of {name}: without retries, caps or an owner"
            yield Finding(name, text, f"{count} calls", "calls bypass an upstream", level=count, settled=True)


def _today(cap: CapFact) -> str:
    return f"${cap.spent_today:.2f} so far today, ${cap.projected_today:.2f} at its end as the last hour went"
