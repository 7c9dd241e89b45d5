"""Whether the store that instances share can be reached and used: version, latency, rights, eviction policy."""

from __future__ import annotations

import asyncio
import time
from secrets import token_hex

from proxy.cli.output import Finding
from proxy.policy.schema import Policy
from proxy.policy.urls import mask_password
from proxy.store.interface import StoreAway, StoreConnection
from proxy.store.opening import MEMORY, open_backend

CONNECT_TIMEOUT = 5.0  # seconds
TRIES = 5  # of which the quickest counts: the first ones find cold caches
MIN_VALKEY, MIN_REDIS = (7, 2), (6, 2)
FIX = "mend store.url, or start the store"


async def check_shared_store(policy: Policy) -> list[Finding]:
    """The store, and the one for money if it is another."""
    store = policy.store
    if store.url == MEMORY:
        findings = [Finding("ok", "store", "memory://: one instance alone, nothing is shared")]
    else:
        findings = [await _check_store(store.url, store.prefix, store.timeout, "store")]
    if store.money is not None:
        # It is asked in the background alone, so it may be far.
        findings.append(await _check_store(store.money, store.prefix, None, "store.money"))
    return findings


async def _check_store(url: str, prefix: str, timeout: float | None, subject: str) -> Finding:
    where = mask_password(url)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await open_backend(url, prefix).connect(lambda reason: None)
            try:
                best = await _measure_writes(connection)
                described, trouble = await _describe(connection)
            finally:
                connection.abort("it was looked at")
    except TimeoutError:
        return Finding("error", subject, f"{where}: no answer in {CONNECT_TIMEOUT:g} s", FIX)
    except StoreAway as away:
        return Finding("error", subject, f"{where}: {away}", FIX)
    text = f"{where}: {described}, {best * 1000:.2g} ms away, can be written"
    if trouble:
        return Finding("warning", subject, f"{text}; {trouble[0]}", trouble[1])
    if timeout is not None and best > timeout / 2:
        fix = "move it into the app's region, or make store.timeout longer"
        return Finding("warning", subject, f"{text}; store.timeout is {timeout * 1000:g} ms", fix)
    return Finding("ok", subject, text)


async def _measure_writes(connection: StoreConnection) -> float:
    """Seconds of the quickest of a few writes, with what was written deleted again. Raises StoreAway."""
    key, best = f"doctor:{token_hex(8)}", float("inf")
    for _ in range(TRIES):
        began = time.perf_counter()
        await connection.set(key, b"doctor", 10.0, only_new=False)
        best = min(best, time.perf_counter() - began)
    await connection.delete((key,))
    return best


async def _describe(connection: StoreConnection) -> tuple[str, tuple[str, str] | None]:
    """What it is, and what is not well about it with what to do."""
    facts = await connection.describe()
    name, version = facts["server"], facts["version"]
    trouble = None
    if name != "PostgreSQL" and _parse_version(version) < (MIN_VALKEY if name == "Valkey" else MIN_REDIS):
        trouble = (f"{name} {version} is older than what was tried", "take Valkey 7.2 or Redis 6.2, or later")
    policy = facts.get("eviction policy")
    shown = f"{name} {version}" + (f", eviction policy {policy}" if policy else "")
    if policy is not None and policy != "noeviction":
        trouble = (
            "when its memory is full it drops counts, and what they limited is admitted anew",
            "set maxmemory-policy to noeviction (on Render: the Key Value's Maxmemory Policy)",
        )
    elif policy is None and name != "PostgreSQL":
        shown += ", eviction policy not shown to this user"
    return shown, trouble


def _parse_version(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
