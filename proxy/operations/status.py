"""The body of /status, which the dashboard shows: what is wrong in words, and every part in figures."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from proxy.egress.circuit_breaker import CLOSED, OPEN
from proxy.egress.upstream import Upstream
from proxy.observe.alerts.manager import AlertManager
from proxy.observe.cgroup import CpuUsage
from proxy.observe.metric_family import Counter as Counted
from proxy.observe.metric_family import MetricFamily
from proxy.observe.process_sampler import ResourceSample
from proxy.observe.recent_errors import format_rfc3339
from proxy.observe.timeseries.window_stats import RouteStats, WindowStats
from proxy.operations.reloader import Reloader
from proxy.parts import Parts
from proxy.policy.renderer import render_policy
from proxy.units import NANOS, to_nanos

RECENT_SECONDS = 300.0  # the window of every `lately`
MAX_TOP_USERS = 10
MAX_BLOCKED_SHOWN = 50


class StatusReport:
    """Built a few times a minute while somebody looks at the dashboard; `sample_cpu` runs once a second."""

    def __init__(self, parts: Parts, reloader: Reloader, alerts: AlertManager) -> None:
        self._parts = parts
        self._reloader = reloader
        self._alerts = alerts
        self._usage = CpuUsage()
        self._cores = self._usage.quota_cores()
        self._cpu: tuple[float, float] | None = None  # when it was read, and the CPU seconds used until then
        self._busy_cores: float | None = None

    def sample_cpu(self, _: ResourceSample) -> None:
        now, used = time.monotonic(), self._usage.usage_seconds()
        if used is None:
            return
        # The counter may go back if the container is moved to another cgroup, hence the max.
        if self._cpu is not None and now > self._cpu[0]:
            self._busy_cores = max(0.0, (used - self._cpu[1]) / (now - self._cpu[0]))
        self._cpu = (now, used)

    def build_status(self) -> Mapping[str, object]:
        """The body of /status beside health."""
        parts = self._parts
        app, lately = parts.app, parts.history.window(RECENT_SECONDS)
        alerts = self._alerts.status()
        return {
            "summary": self._summarize(alerts),
            "time": format_rfc3339(time.time()),
            "app": {
                "state": app.state,
                "reason": app.reason,
                "pid": app.pid,
                "since": self._to_wall_clock(app.since),
                **app.exits.as_status(format_rfc3339),
            },
            "attribution": parts.egress.attribution.report.status(),
            "policy": {
                "source": parts.policy.source,
                "since": format_rfc3339(parts.state.policy_since),
                "refused": self._reloader.refused,
                "pending": [{"key": one.key, "until": one.until} for one in self._reloader.pending],
            },
            "lately_s": round(lately.seconds),
            "routes": self._show_routes(lately),
            "upstreams": self._show_upstreams(lately),
            "hosts": parts.egress.forward_proxy.status(),
            "money": self._show_spend(),
            "postgres": self._show_postgres(),
            "connections": {"clients": repr(parts.ingress.listener), "app": repr(parts.ingress.pool)},
            "memory": self._show_memory(),
            "cpu": self._show_cpu(lately),
            "alerts": alerts,
            "limited": parts.recent_errors.most_refused_users(),
            "blocked": self._show_blocked(),
            "errors": parts.recent_errors.request_errors(),
            "failed_calls": parts.recent_errors.call_errors(),
            "store": self._show_store(),
            "instances": [
                {
                    "id": member.id,
                    "host": member.host,
                    "region": member.region,
                    "version": member.version,
                    "started": format_rfc3339(member.started),
                    "seen": format_rfc3339(member.seen),
                }
                for member in parts.store.members
            ],
        }

    def _show_store(self) -> Mapping[str, object] | None:
        """The store that instances share, None if there is none. `this` is the id of this instance."""
        store = self._parts.store
        if not store.is_shared:
            return None
        money = self._parts.money_store
        fallbacks = {name: int(count.value) for (name,), count in self._parts.metrics.store_fallback_total.children()}
        return {
            "where": store.where,
            "kind": store.kind,
            "up": store.is_up,
            "reason": store.health().reason,
            "this": store.instance_id,
            "on_error": store.policy.on_error,
            "fallbacks": fallbacks,
            "money": None if money is store else {"where": money.where, "up": money.is_up},
        }

    def build_history(self) -> Mapping[str, object]:
        """The last day, and the last quarter of an hour: columns of numbers."""
        history = self._parts.history
        return {"day": history.day_series(), "recent": history.recent_series()}

    def build_policies(self) -> Mapping[str, object]:
        """The policy in force, and the one that the running app was started under, with every default and without a
        secret."""
        return {
            "in_force": render_policy(self._parts.policy),
            "of_the_app": render_policy(self._reloader.app_policy),
            "starts_app": self._reloader.starts_app,
        }

    # ── in words ─────────────────────────────────────────────────────────────────────────────

    def _summarize(self, alerts: Iterable[Mapping[str, object]]) -> Mapping[str, object]:
        """What is wrong, each in a few words with why and since when; nothing if all is well."""
        parts = self._parts
        found = []
        for name, part in parts.health.check_components().items():
            # Upstreams are told one by one below, by their breakers.
            if part.state in ("degraded", "down") and name != "upstreams":
                found.append(
                    _describe_problem(_PART_PROBLEMS.get(name, name), part.reason, self._to_wall_clock(part.since))
                )
        # An open breaker is no ill health of the gateway, but the first thing that an operator asks about.
        for name, upstream in parts.egress.upstreams.items():
            breaker = upstream.breakers
            if breaker.state == OPEN:
                text = f"{name} is held off" if breaker.forced == OPEN else f"{name} is not answering"
                found.append(_describe_problem(text, breaker.reason, self._to_wall_clock(breaker.since)))
            elif breaker.state != CLOSED:
                found.append(
                    _describe_problem(
                        f"{name} is being tried again", breaker.reason, self._to_wall_clock(breaker.since)
                    )
                )
        if self._reloader.refused:
            found.append(_describe_problem("the newest policy was refused", self._reloader.refused, None))
        state: str = parts.health.overall_status()
        firing = sum(alert.get("state") != "cleared" for alert in alerts)
        # Health knows components only: an alert or a refused policy has to show in the headline, too.
        if state == "ok" and (found or firing):
            state = "degraded"
        return {"state": state, "problems": found, "firing": firing}

    # ── in figures ───────────────────────────────────────────────────────────────────────────

    def _show_routes(self, lately: WindowStats) -> Mapping[str, object]:
        parts = self._parts
        ingress, metrics = parts.ingress, parts.metrics
        # Metrics count by status and reason; the page wants one number a route.
        requests, errors, refused = Counter[str](), Counter[str](), Counter[str]()
        for (name, _, code), count in metrics.http_requests_total.children():
            requests[name] += int(count.value)
            errors[name] += int(count.value) if code >= "500" else 0
        limited = parts.recent_errors.count_refused_users()
        for (name, _), count in metrics.http_refusals_total.children():
            refused[name] += int(count.value)
        return {
            route.name: {
                "in_flight": ingress.accounting.in_flight[route.name],
                "queued": ingress.admission.queued(route.name),
                "requests": requests[route.name],
                "errors": errors[route.name],
                "refused": refused[route.name],
                "limited_users": limited[route.name],
                "cache": self._show_cache(route.name),
                "lately": _show_recent(lately.routes.get(route.name)),
            }
            for route in parts.policy.routes
        }

    def _show_cache(self, route: str) -> Mapping[str, object] | None:
        """What a route keeps, and the share of its requests since the start that the app was not asked for; None if it
        keeps nothing."""
        cache = self._parts.ingress.cache
        size = cache.sizes.get(route) if cache is not None else None
        if size is None:
            return None
        return _show_cache_use(self._parts.metrics.http_cache_total, route, ("hit", "stale"), size)

    def _show_call_cache(self, upstream: Upstream) -> Mapping[str, object] | None:
        """The same of the calls of an upstream that may be answered so."""
        if not upstream.policy.cache.ttl:
            return None
        spared = ("hit", "stale", "coalesced")
        return _show_cache_use(self._parts.metrics.cache_total, upstream.name, spared, upstream.cache.usage)

    def _show_upstreams(self, lately: WindowStats) -> Mapping[str, object]:
        parts = self._parts
        metrics, shown = parts.metrics, parts.egress.status()
        models: dict[str, dict[str, Counter[str]]] = {}
        attempts: dict[str, Counter[str]] = {}
        for (name, model, outcome), count in metrics.upstream_calls_total.children():
            if count.value:
                models.setdefault(name, {}).setdefault(model, Counter())[outcome] += int(count.value)
        for (name, result), count in metrics.upstream_attempts_total.children():
            if count.value:
                attempts.setdefault(name, Counter())[result] += int(count.value)
        found = {}
        for name, upstream in parts.egress.upstreams.items():
            # What egress says of itself comes first; figures that only metrics and history have are added.
            before = shown[name]
            assert isinstance(before, Mapping)
            found[name] = {
                **before,
                "cache": self._show_call_cache(upstream),
                "since": self._to_wall_clock(upstream.breakers.since),
                "forced": upstream.breakers.forced,
                "retry_after_s": round(upstream.breakers.retry_after),
                "calls": models.get(name, {}),
                "attempts": attempts.get(name, {}),
                "lately": {
                    "calls": lately.calls.get(name, {}),
                    "attempts": lately.attempts.get(name, {}),
                    "usd": round(lately.cost.get(name, 0.0), 6),
                },
            }
        return found

    def _show_spend(self) -> Mapping[str, object]:
        """Dollars spent today, over all upstreams whose calls have prices."""
        metered = {
            name: upstream for name, upstream in self._parts.egress.upstreams.items() if upstream.billing.metered
        }
        users = Counter[str]()
        for upstream in metered.values():
            # More than are shown, since the largest sum over all upstreams may be among the first of none.
            users.update(dict(upstream.billing.limits.accounts.top_spenders("d", 5 * MAX_TOP_USERS)))
        return {
            "today_usd": _to_dollars(sum(upstream.billing.limits.spent("d") for upstream in metered.values())),
            "projected_usd": _to_dollars(sum(upstream.billing.projected_today() for upstream in metered.values())),
            "upstreams": {name: _show_upstream_spend(upstream) for name, upstream in metered.items()},
            "top_users": [
                {"user": user, "usd": _to_dollars(spent)} for user, spent in users.most_common(MAX_TOP_USERS)
            ],
        }

    def _show_postgres(self) -> Mapping[str, object] | None:
        database = self._parts.postgres
        return None if database is None else {**database.status(), "max": database.pool.limit}

    def _show_blocked(self) -> list[str]:
        return sorted(self._parts.user_marks.blocked_users)[:MAX_BLOCKED_SHOWN]

    def _show_memory(self) -> Mapping[str, object]:
        latest = self._parts.process_sampler.latest
        share = latest.memory_share
        return {
            "gateway": latest.gateway_bytes,
            "app": latest.app_bytes,
            "limit": latest.limit_bytes,
            "share": None if share is None else round(share, 4),
            "warn": self._parts.policy.app.memory.warn,
            "growth": {  # of the last hour
                name: {"bytes": grown.bytes_grown, "requests": grown.requests}
                for name, grown in self._parts.ingress.accounting.growth.growth_by_route().items()
            },
        }

    def _show_cpu(self, lately: WindowStats) -> Mapping[str, object]:
        """Cores kept busy in the last second by all that runs in this container, and how many it may."""
        return {
            "busy": None if self._busy_cores is None else round(self._busy_cores, 3),
            "limit": self._cores,
            "cores": os.cpu_count(),
            "throttled_s": round(self._parts.process_sampler.latest.throttled_s, 1),
            "throttled_lately_s": round(lately.throttled, 2),
        }

    def _to_wall_clock(self, since: float | None) -> str | None:
        """A moment of the loop's clock as one of the calendar."""
        return None if since is None else format_rfc3339(time.time() - (self._parts.clock() - since))


_PART_PROBLEMS = {
    "app": "the app does not answer",
    "postgres": "the database is unwell",
    "store": "the shared store is unwell",
    "ledger": "the ledger cannot be written",
    "memory": "memory is short",
    "connections": "connections are refused",
}


def _describe_problem(text: str, why: str, since: str | None) -> Mapping[str, object]:
    return {"text": text, "why": why, "since": since}


def _show_cache_use(
    results: MetricFamily[Counted], name: str, spared: Collection[str], usage: tuple[int, int]
) -> Mapping[str, object]:
    """`results` counts by name and result; `spared` are those for which nobody was asked; `usage`: answers, bytes."""
    found = {result: count.value for (owner, result), count in results.children() if owner == name and result != "off"}
    asked = sum(found.values())
    ratio = sum(found.get(result, 0.0) for result in spared) / asked if asked else None
    return {"hit_ratio": None if ratio is None else round(ratio, 4), "answers": usage[0], "bytes": usage[1]}


def _show_recent(span: RouteStats | None) -> Mapping[str, object]:
    span = span or RouteStats()
    return {
        "requests": int(span.requests),
        "errors": int(span.errors),
        "p50_ms": _to_milliseconds(span.quantile(0.5)),
        "p95_ms": _to_milliseconds(span.quantile(0.95)),
    }


def _to_milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _show_upstream_spend(upstream: Upstream) -> Mapping[str, object]:
    billing = upstream.billing
    cap, limits = billing.limits.cap.total, billing.limits
    return {
        "today_usd": _to_dollars(limits.spent("d")),
        "month_usd": _to_dollars(limits.spent("month")),
        "reserved_usd": _to_dollars(limits.reserved),
        "projected_usd": _to_dollars(billing.projected_today()),
        "cap": None if cap is None else str(cap),
        "cap_spent_usd": None if cap is None else _to_dollars(limits.spent(cap.period)),
        "cap_share": None if cap is None else round(limits.spent(cap.period) / (to_nanos(cap.amount) or 1), 4),
    }


def _to_dollars(nanos: int) -> float:
    return round(nanos / NANOS, 6)
