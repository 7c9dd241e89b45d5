"""Warnings: what works but an operator should know, each one sentence with its file, line and key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from proxy.policy.reader import PolicyReader
from proxy.policy.schema.identity import CookieSource, HeaderSource, PathSource, Source
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.route import Match
from proxy.policy.urls import sqlite_path
from proxy.units import format_duration

RENDER_KILL_SECONDS = 30.0  # between Render's SIGTERM and SIGKILL; other platforms give as much or less


def find_warnings(reader: PolicyReader, policy: Policy) -> Iterator[str]:
    for key, text in _find_all(reader, policy):
        yield f"{reader.file}:{reader.line_of(key)}: {key}: {text}"


def _find_all(reader: PolicyReader, policy: Policy) -> Iterator[tuple[str, str]]:
    if policy.sentry.dsn is not None and find_spec("sentry_sdk") is None:
        yield (
            "sentry.dsn",
            "sentry-sdk is not installed, so nothing is told there; pip install 'sentry-sdk>=2.20' in the gateway's"
            " environment",
        )
    if policy.tasks.callbacks and not policy.tasks.secret:
        yield "tasks.callbacks", "tasks.secret is empty, so no callback is taken: they are never sent unsigned"
    if policy.faults:
        yield "faults", "they break requests and calls on purpose: for staging only"
    yield from _unusable_fallbacks(policy)
    yield from _unreachable_keys(policy)
    yield from _client_chosen_users(policy)
    yield from _forgetful_ledger(reader, policy)
    yield from _forgetful_queue(reader, policy)
    yield from _unreachable_routes(reader, policy)
    tiers = policy.identity.tiers
    if tiers and tiers[-1].users is not None:
        key = f"identity.tiers[{len(tiers) - 1}].users"
        yield (
            key,
            "the last tier is the default, so it is everybody's whom no other fits; add one without users",
        )
    # 0.0.0.0/0 or ::/0: then any client is a trusted proxy.
    networks = policy.listen.trusted_proxies.networks
    if any(network.prefixlen == 0 for network in networks):
        yield "listen.trusted_proxies", "this believes anybody's X-Forwarded-For, which moves limits at will"
    # The drain comes first and the app's own stop after it, so both have to fit.
    stop = policy.listen.drain + policy.app.stop_timeout
    if stop > RENDER_KILL_SECONDS:
        key = "listen.drain" if "listen.drain" in reader.lines else "app.stop_timeout"
        both = f"listen.drain and app.stop_timeout together are {format_duration(stop)}"
        yield key, f"{both}, and Render kills after {format_duration(RENDER_KILL_SECONDS)}"


def _unusable_fallbacks(policy: Policy) -> Iterator[tuple[str, str]]:
    """Fallback steps that can never be used."""
    for name, upstream in policy.upstreams.items():
        for index, step in enumerate(upstream.fallback):
            key = f"upstreams.{name}.fallback[{index}]"
            # A key must never be sent to another vendor, so a fallback elsewhere needs a key of its own.
            other = policy.upstreams.get(step.upstream or name)
            if other is not None and step.upstream not in (None, name) and other.api_key is None:
                yield key, f"{step.upstream} has no api_key, and never gets {name}'s, so it is passed over"
            if step.stale and not upstream.cache.ttl:
                yield key, f"nothing is ever stale while upstreams.{name}.cache.ttl is 0s"


def _unreachable_keys(policy: Policy) -> Iterator[tuple[str, str]]:
    """API keys of upstreams whose virtual key no app is given."""
    if policy.app.url is None:
        return
    for name, upstream in policy.upstreams.items():
        if upstream.api_key is not None:
            what = (
                "an app that something else starts (app.url) is not given the key made for it, so its calls are refused"
            )
            yield f"upstreams.{name}.api_key", f"{what}; leave it out, or let the app be started here"


def _client_chosen_users(policy: Policy) -> Iterator[tuple[str, str]]:
    """Limits by a user name that the client itself chooses: with a new name it has a new allowance."""
    # Only limits without a total beside them rest on the name alone.
    resting = tuple(_limits_by_user(policy))
    if not resting:
        return
    shown = ", ".join(resting[:3]) + (f" and {len(resting) - 3} more" if len(resting) > 3 else "")
    fix = "guard them with a total (overload.mode, concurrency, cap.total) or name users by jwt"
    for index, source in enumerate(policy.identity.user):
        if isinstance(source, PathSource | HeaderSource | CookieSource):
            what = f"any client can write this {_source_word(source)}, and {shown} rest on it; {fix}"
            yield f"identity.user[{index}]", what


def _limits_by_user(policy: Policy) -> Iterator[str]:
    if policy.overload.mode == "off":
        for route in policy.routes:
            if route.rate_limit and route.concurrency is None:
                yield f"the limits of route {route.name}"
        if policy.overload.priority:
            yield "overload.priority"
    for name, upstream in policy.upstreams.items():
        if upstream.cap.per_user and upstream.cap.total is None:
            yield f"the caps of {name}"


def _source_word(source: Source) -> str:
    return {PathSource: "path", HeaderSource: "header", CookieSource: "cookie"}[type(source)]


def _forgetful_ledger(reader: PolicyReader, policy: Policy) -> Iterator[tuple[str, str]]:
    """Caps whose ledger is lost at a deploy: Render keeps only what is on a disk (render.com/docs/disks)."""
    # Only on Render, and only if something would be forgotten.
    path = sqlite_path(policy.ledger.url)
    capped = [
        name
        for name, upstream in policy.upstreams.items()
        if upstream.cap.per_user or upstream.cap.unattributed or upstream.cap.total
    ]
    if path is None or not capped or not reader.environ.get("RENDER") or _is_on_disk(Path(os.path.abspath(path))):
        return
    what = f"Render throws this file away at each deploy, and the caps of {', '.join(capped)} begin anew with it"
    yield "ledger.url", f"{what}; write ${{DATABASE_URL}}, or put it on a disk, as in sqlite:////var/data/outrigger.db"


def _forgetful_queue(reader: PolicyReader, policy: Policy) -> Iterator[tuple[str, str]]:
    """Tasks that are lost at a deploy, although their clients were told 202."""
    path = sqlite_path(policy.tasks.url or policy.ledger.url)
    named = [route.name for route in policy.routes if route.background.mode != "off"]
    if path is None or not named or not reader.environ.get("RENDER") or _is_on_disk(Path(os.path.abspath(path))):
        return
    what = f"Render throws this file away at each deploy, and what waits on {', '.join(named)} is lost with it"
    key = "ledger.url" if policy.tasks.url is None else "tasks.url"
    yield key, f"{what}; write ${{DATABASE_URL}}, or put it on a disk, as in sqlite:////var/data/outrigger.db"


def _is_on_disk(path: Path) -> bool:
    """Whether a file is on a mounted disk; /var/data is the mount path that Render proposes."""
    folders = [folder for folder in path.parents if folder != Path("/")]
    return Path("/var/data") in folders or any(folder.is_mount() for folder in folders)


def _unreachable_routes(reader: PolicyReader, policy: Policy) -> Iterator[tuple[str, str]]:
    """A route that matches every request although routes are written after it (the implied last one does not count)."""
    for index, route in enumerate(policy.routes):
        if route.match == Match() and f"routes[{index + 1}]" in reader.lines:
            yield f"routes[{index}]", "it fits every request, so no route after it is ever taken"
            return
