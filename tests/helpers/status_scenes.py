"""What `status` says in situations that take a day or a bad night to come about, for the dashboard to draw."""

from __future__ import annotations

import math
import time
from typing import Any

from proxy.observe.health import COMPONENTS
from proxy.observe.recent_errors import format_rfc3339
from proxy.observe.timeseries.history import COLUMNS, DAY_SECONDS, DAY_STEP, FINE_HORIZON, FINE_SECONDS

LONG = "a-name-that-goes-on-" + 12 * "and-on-"
MIB = 1024 * 1024
MODELS = ("gpt-4o-mini", "gpt-4o", "text-embedding-3-small")

Status = dict[str, Any]


def ago(seconds: float) -> str:
    return format_rfc3339(time.time() - seconds)


def quiet() -> Status:
    """A minute after the start: one route, no upstream, no database, nothing in the policy."""
    parts = {name: {"state": "off", "reason": "not set", "since": ago(60)} for name in COMPONENTS}
    parts["app"] = {"state": "ok", "reason": "ready: it answers on 127.0.0.1:10001", "since": ago(60)}
    parts["memory"] = {"state": "ok", "reason": "no limit is known", "since": ago(60)}
    return {
        "health": {"status": "ok", "version": "1.0.0", "uptime_s": 60.0, **parts},
        "summary": {"state": "ok", "problems": [], "firing": 0},
        "time": ago(0),
        "app": {"state": "ready", "reason": "it answers on 127.0.0.1:10001", "pid": 4711, "since": ago(60)},
        "policy": {"source": "defaults", "since": ago(60), "refused": None, "pending": []},
        "lately_s": 60,
        "routes": {"default": route()},
        "upstreams": {},
        "hosts": {},
        "money": {"today_usd": 0, "projected_usd": 0, "upstreams": {}, "top_users": []},
        "postgres": None,
        "tasks": None,
        "store": None,
        "instances": [],
        "connections": {"clients": "", "app": ""},
        "memory": {"gateway": 52 * MIB, "app": None, "limit": None, "share": None, "warn": 0.85, "growth": {}},
        "cpu": {"busy": None, "limit": None, "cores": 2, "throttled_s": 0.0, "throttled_lately_s": 0.0},
        "alerts": [],
        "limited": [],
        "blocked": [],
        "errors": [],
        "failed_calls": [],
    }


def starting() -> Status:
    status = quiet()
    why = "starting: GET /health is not answered yet"
    status["health"] |= {"status": "degraded", "app": {"state": "down", "reason": why, "since": ago(4)}}
    problem = {"text": "the app does not answer", "why": why, "since": ago(4)}
    status["summary"] = {"state": "degraded", "problems": [problem], "firing": 0}
    status["app"] = {"state": "starting", "reason": "GET /health is not answered yet", "pid": None, "since": ago(4)}
    return status


def bad_night() -> Status:
    """30 routes, five upstreams, one of them down, every list at its longest, names at their longest too."""
    status = quiet()
    names = [f"api-v1-resource-{number}" for number in range(28)]
    status["routes"] = {name: route(at) for at, name in enumerate([*names, LONG, "default"])}
    status["upstreams"] = {
        name: upstream(at) for at, name in enumerate(("openai", "anthropic", "groq", "azure-eu", LONG))
    }
    why = "6 of the last 8 calls failed, the last one with 503"
    status["health"] |= {
        "status": "degraded",
        "upstreams": {"state": "degraded", "reason": f"openai: its breaker is open ({why})", "since": ago(700)},
        "postgres": {"state": "ok", "reason": "4 of 10 connections are in use", "since": ago(9000)},
        "store": {"state": "degraded", "reason": "redis://red-abc:6379: no answer in 250 ms", "since": ago(60)},
        "ledger": {"state": "ok", "reason": "sqlite:///var/ledger.db, 12 entries wait", "since": ago(9000)},
        "memory": {"state": "degraded", "reason": "91% of the limit is in use", "since": ago(100)},
    }
    status["summary"] = {
        "state": "degraded",
        "problems": [
            {"text": "memory is short", "why": "91% of the limit is in use", "since": ago(100)},
            {"text": "openai is not answering", "why": why, "since": ago(700)},
            {
                "text": "the newest policy was refused",
                "why": "config/policy.yaml:12: rotes: unknown key; did you mean routes?",
                "since": None,
            },
        ],
        "firing": 2,
    }
    status["policy"]["refused"] = "config/policy.yaml:12: rotes: unknown key; did you mean routes?"
    status["memory"] |= {"app": 412 * MIB, "limit": 512 * MIB, "share": 0.906}
    status["memory"]["growth"] = {names[0]: {"bytes": 31 * MIB, "requests": 1200}}
    status["cpu"] |= {"busy": 0.47, "limit": 0.5, "throttled_s": 812.0, "throttled_lately_s": 61.4}
    purses = {name: one["cost"] for name, one in status["upstreams"].items() if one["cost"]}
    status["money"] = {
        "today_usd": 18.41,
        "projected_usd": 31.2,
        "upstreams": {
            name: {
                "today_usd": 6.1 / (at + 1),
                "month_usd": 80.0,
                "reserved_usd": 0.04,
                "projected_usd": 9.0,
                "cap": "$20/d" if at < 3 else None,
                "cap_spent_usd": 19.2 / (at + 1),
                "cap_share": 0.96 / (at + 1),
            }
            for at, name in enumerate(purses)
        },
        "top_users": [{"user": user, "usd": 4.2 / (at + 1)} for at, user in enumerate(users(10))],
    }
    status["postgres"] = {
        "servers": {"active": 4, "idle": 6}, "clients": {"active": 4, "waiting": 17}, "max": 10, "waiting": 17,
        "longest_wait_s": 3.4, "transactions": {"committed": 120_331, "rolled_back": 12}, "statements": 40,
    }  # fmt: skip
    status["tasks"] = {
        "where": "var/outrigger.db",
        "away": "disk I/O error",
        "routes": {name: tasks_of(at) for at, name in enumerate((*names[:10], LONG))},
        "waiting": [task(at, "queued") for at in range(20)],
        "running": [task(at, "running") for at in range(20)],
        "failed": [task(at, "failed") for at in range(20)],
        "schedules": [
            {"name": name, "cron": "*/5 1-4 * * MON-FRI", "timezone": "America/Argentina/Buenos_Aires",
             "request": "POST /jobs/" + 12 * "long/", "next": ago(-3000)}
            for name in ("nightly", LONG)
        ],
    }  # fmt: skip
    status["store"] = {
        "where": "redis://red-abcdefghijklmnopqrstuvwxyz:6379/0",
        "kind": "valkey",
        "up": False,
        "reason": "redis://red-abcdefghijklmnopqrstuvwxyz:6379/0: no answer in 250 ms",
        "this": "0123456789ab",
        "on_error": "share",
        "fallbacks": {"limit": 1240, "cap": 3, "pace": 0, "cache": 17},
        "money": {"where": "postgresql://outrigger:***@dpg-far.frankfurt-postgres.render.com/money", "up": True},
    }
    status["instances"] = [
        {"id": f"{at}123456789ab", "host": f"{LONG}-{at}", "region": "frankfurt", "version": "0.1.0",
         "started": ago(9000), "seen": ago(at)}
        for at in range(5)
    ]  # fmt: skip
    status["alerts"] = [
        alert("breaker_open", "openai", "firing", "critical", "The breaker of openai is open: " + why, 650),
        alert("memory", "", "firing", "warning", "91 % of the memory limit is in use; app 412 MiB.", 90),
        alert("error_rate", LONG, "flapping", "critical", "7 % of the answers of this route were 5xx in 5 min.", 3000),
        alert("p95", "default", "cleared", "warning", "95 % of the answers took up to 0.4 s again.", 20_000),
    ]
    status["limited"] = [
        {"user": user, "reason": reason, "tier": "free", "where": "openai", "refused": 5000 - at, "last": ago(at)}
        for at, (user, reason) in enumerate(zip(users(10), 5 * ("rate-limited", "cost-cap"), strict=True))
    ]
    status["blocked"] = users(50)
    status["errors"] = [error(at) for at in range(50)]
    status["failed_calls"] = [failed(at) for at in range(50)]
    return status


def everywhere(text: str, status: Any) -> Any:
    """The same status with this text in front of every other one, and of the names of routes, upstreams and models."""
    if isinstance(status, str):
        return text + status
    if isinstance(status, list):
        return [everywhere(text, one) for one in status]
    if isinstance(status, dict):
        named = all(isinstance(one, dict) for one in status.values()) and "app" not in status
        return {text + key if named else key: everywhere(text, one) for key, one in status.items()}
    return status


def route(at: int = 0) -> Status:
    lately = {"requests": 1200 * at, "errors": at % 7 // 5, "p50_ms": 12.4 * at or None, "p95_ms": 480.0 * at or None}
    return {
        "in_flight": at % 4, "queued": at % 3, "requests": 1_234_567 * at, "errors": at * 3, "refused": 17 * at,
        "limited_users": at % 5, "lately": lately,
        "cache": {"hit_ratio": 0.87, "answers": 812, "bytes": 13_400_000} if at % 3 == 1 else None,
    }  # fmt: skip


def tasks_of(at: int) -> Status:
    return {
        "queued": 40 * at, "running": at % 3, "succeeded": 12_345 * at, "failed": at % 5, "cancelled": at % 2,
        "longest_wait_s": 61.5 * at,
    }  # fmt: skip


def task(at: int, state: str) -> Status:
    """As an operator sees one."""
    return {
        "id": f"{at:02}" + 30 * "f", "route": f"api-v1-resource-{at % 28}", "status": state,
        "reason": (None, "timeout", "instance-died", "max_result")[at % 4] if state == "failed" else None,
        "attempts": at % 4, "created": ago(4000), "started": None, "ended": ago(60 * at) if state == "failed" else None,
        "position": None, "response": {"status": 500} if state == "failed" and at % 4 == 0 else None, "result": None,
        "user": users(10)[at % 10], "tier": "free", "cost_usd": 0.01 * at, "calls": at,
        "waits_s": 400.0 - at if state == "queued" else None, "runs_s": 60.0 - at if state == "running" else None,
        "can_retry": state == "failed", "can_cancel": state != "failed",
    }  # fmt: skip


def upstream(at: int) -> Status:
    state = ("open", "half-open", "closed", "closed", "closed")[at]
    why = "6 of the last 8 calls failed, the last one with 503" if at < 2 else "calls answer"
    return {
        "breaker": state, "why": why, "since": ago(700), "forced": "closed" if at == 3 else None, "retry_after_s": 12,
        "cost": {"today_usd": 6.1 / (at + 1)} if at != 4 else None,
        "calls": {model: {"ok": 1000 * at, "error": at, "refused": 3 * at, "cached": 2, "fallback": 0} for model in MODELS},
        "attempts": {"ok": 1000, "error": 12},
        "lately": {"calls": {"ok": 40 * at, "error": 5 - at}, "attempts": {"ok": 40 * at, "error": 9 - at}, "usd": 0.2},
    }  # fmt: skip


def alert(name: str, subject: str, state: str, severity: str, message: str, since: float) -> Status:
    return {
        "name": name, "subject": subject, "severity": severity, "since": ago(since), "message": message, "state": state,
    }  # fmt: skip


def users(count: int) -> list[str]:
    return [LONG, "ip:2001:db8:85a3::/64", "unattributed", *(f"user-{at}@example.com" for at in range(count))][:count]


def error(at: int) -> Status:
    path = "/api/v1/resource?page=2&token=[redacted]" if at else "/" + 50 * "long/"
    return {
        "time": ago(60 * at), "request_id": f"4bf92f3577b34da6a3ce929d0e0e{at:04}", "route": f"api-v1-resource-{at % 28}",
        "method": "POST", "path": path, "user": users(10)[at % 10], "status": 502 + at % 3,
        "reason": "the app closed the connection before it answered", "duration_ms": 1200.5 * at,
    }  # fmt: skip


def failed(at: int) -> Status:
    return {
        "time": ago(60 * at), "request_id": None if at % 5 == 4 else f"4bf92f3577b34da6a3ce929d0e0e{at:04}",
        "upstream": "openai", "model": None if at % 7 == 6 else MODELS[at % 3], "user": users(10)[at % 10],
        "status": None if at % 3 else 503, "reason": "upstream_unavailable: its breaker is open and there is no fallback",
        "duration_ms": 3.5,
    }  # fmt: skip


def history(share: float = 1.0) -> Status:
    """A whole day with its tides and an hour of trouble, of which so large a share is there yet."""
    return {"day": _points(DAY_STEP, DAY_SECONDS, share), "recent": _points(FINE_SECONDS, FINE_HORIZON, share)}


def points(step: float, count: int) -> Status:
    """The first so many of a gateway's samples."""
    return _points(step, step * count, 1.0)


def _points(step: float, length: float, share: float) -> Status:
    count = round(share * length / step)
    found: Status = {"step_s": step, "at": [round(time.time() - step * (count - 1 - at), 1) for at in range(count)]}
    columns = {name: [_value(name, at / (length / step), step) for at in range(count)] for name in COLUMNS}
    return found | columns


def _value(name: str, part: float, step: float) -> float | None:
    """At a part of the time shown, 0 to 1. Between a fifth and a quarter of it nobody came."""
    tide = 1 + math.sin(6.3 * part) + 0.3 * math.sin(90 * part)
    trouble = 1.0 if 0.7 < part < 0.76 else 0.0
    nobody = 0.2 < part < 0.25
    values: dict[str, float | None] = {
        "requests": 0 if nobody else step * (3 + 2 * tide),
        "errors": 0 if nobody else step * 4 * trouble,
        "p50_s": None if nobody else 0.03 + 0.01 * tide + 0.6 * trouble,
        "p95_s": None if nobody else 0.2 + 0.1 * tide + 8 * trouble,
        "calls": 0 if nobody else step * (1 + tide),
        "failed_calls": step * 1.5 * trouble,
        "cost_usd": 0 if nobody else step * 0.0002 * (1 + tide) * (1 - trouble),
        "throttled_s": 0.1 * trouble,
        "app_bytes": 230 * MIB + 160 * MIB * part,
        "gateway_bytes": 50 * MIB + 4 * MIB * tide,
        "pool_in_use": 4 + round(2 * tide),
        "pool_waiting": round(17 * trouble),
        "tasks_succeeded": 0 if nobody else step * 0.1 * (1 + tide),
        "tasks_failed": step * 0.05 * trouble,
        "tasks_waiting": round(3 * tide + 40 * trouble),
        "tasks_running": 2,
    }
    return values[name]
