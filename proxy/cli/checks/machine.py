"""What the machine gives: memory, and time to stop."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.app.memory_usage import memory_limit as container_limit
from proxy.cli.output import Finding
from proxy.operations.health import resolve_memory_limit
from proxy.policy.schema import Policy
from proxy.units import format_duration, format_size

GATEWAY_MEMORY = 64 * 1024 * 1024  # what the gateway itself may take
# With less than this the gateway's own share leaves an app too little.
MIN_MEMORY = 256 * 1024 * 1024
PLATFORM_STOP_SECONDS = 30.0  # the default of Render's maxShutdownDelaySeconds, and Kubernetes' own


async def check_machine(policy: Policy, environ: Mapping[str, str]) -> list[Finding]:
    return [_check_memory(policy), _check_stop_time(policy, environ)]


def _check_memory(policy: Policy) -> Finding:
    limit = resolve_memory_limit(policy)
    if limit is None:
        text = "no limit is to be seen here, so alerts on memory and app.memory.recycle have nothing to go by"
        return Finding("warning", "memory", text, "name one by app.memory.limit")
    # Without a container's limit this is the machine's memory, which other programs use too.
    whole = policy.app.memory.limit == "auto" and container_limit() is None
    shown = f"gateway and app have {format_size(limit)} together{', all that this machine has' if whole else ''}"
    if limit < MIN_MEMORY:
        return Finding(
            "warning", "memory", shown, f"the gateway takes up to {format_size(GATEWAY_MEMORY)} of it; take more"
        )
    return Finding("ok", "memory", shown)


def _check_stop_time(policy: Policy, environ: Mapping[str, str]) -> Finding:
    both = policy.listen.drain + policy.app.stop_timeout
    shown = f"a stop takes up to {format_duration(both)} (listen.drain and app.stop_timeout)"
    if both > PLATFORM_STOP_SECONDS:
        where = "maxShutdownDelaySeconds" if environ.get("RENDER") else "the platform's patience"
        fix = f"set {where} to {format_duration(both + 5)} or more, or make the two smaller"
        return Finding("warning", "stopping", shown, fix)
    return Finding("ok", "stopping", f"{shown}; platforms wait {format_duration(PLATFORM_STOP_SECONDS)}")
