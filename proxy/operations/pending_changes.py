"""Which changes of a newer policy have to wait, and for what.

The running app knows only the environment that it was started with, and a listener is bound once. Until then these
keys keep their old values; logs, status and the reload's answer name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from proxy.app import attribution
from proxy.egress.api_keys import key_variable
from proxy.egress.app_environment import proxy_variables, upstream_variables, virtual_key_variables
from proxy.policy.schema import Policy, Upstream

WaitsFor = Literal["app restart", "gateway restart"]


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A key whose new value is not in force before `until`; its text is the sentence for the log."""

    key: str
    until: WaitsFor

    def __str__(self) -> str:
        if self.until == "app restart":
            return f"{self.key} waits for the app's next start (ctl restart-app); until then it is as it was."
        return f"{self.key} cannot change while running; the old value stays until a restart."


def hold_back_changes(
    running: Policy, in_force: Policy, new: Policy, environ: Mapping[str, str]
) -> tuple[Policy, tuple[str, ...]]:
    """The new policy as far as the running app can be served under it, and the keys that wait for its next start.

    `running` is the policy that the app was started under, `in_force` the one that it is served by now. An upstream's
    address, variables and key stay together: a key must never be sent to another vendor's address.
    """
    upstreams, keys = _hold_back_upstreams(running, in_force, new, environ)
    keys += [key for key, before, after in _environment_changes(running, new, environ) if before != after]
    return (replace(new, upstreams=MappingProxyType(upstreams)) if keys else new), tuple(keys)


ADDRESS_KEYS = ("kind", "base_url", "env", "api_key")


def _hold_back_upstreams(
    running: Policy, in_force: Policy, new: Policy, environ: Mapping[str, str]
) -> tuple[dict[str, Upstream], list[str]]:
    # The variables through which the running app got a virtual key; it shows that key at every call until it ends.
    made = virtual_key_variables(running.upstreams)
    held, keys = dict(new.upstreams), list[str]()
    for name, old in in_force.upstreams.items():
        # An upstream that came by an earlier reload is in no environment yet, so nothing of it can be out of step.
        if name not in running.upstreams:
            continue  # the app never got its address
        now = new.upstreams.get(name)
        if now is None:
            # Dropping it would refuse calls that the policy allowed when the app was started.
            if old.env or (old.api_key is not None and key_variable(old.kind, name) in made):
                held[name] = old  # the app still calls its address
                keys.append(f"upstreams.{name}")
            continue
        # The app calls the old address as long as it runs, so the old address has to keep its own key.
        readdressed = upstream_variables(name, old, "", environ) != upstream_variables(name, now, "", environ)
        # A key that appears or goes changes what the app has to show: its virtual key, or its own.
        rekeyed = (old.api_key is None) != (now.api_key is None) or old.kind != now.kind
        shows_ours = key_variable(now.kind, name) in made
        if readdressed or (rekeyed and shows_ours != (now.api_key is not None)):
            held[name] = replace(now, **{key: getattr(old, key) for key in ADDRESS_KEYS})
            keys += [f"upstreams.{name}.{key}" for key in ADDRESS_KEYS if getattr(old, key) != getattr(now, key)]
    # A new upstream works at once for who calls it by its URL; its variables reach the app at the next start.
    for name, now in new.upstreams.items():
        if name not in running.upstreams:
            keys += [f"upstreams.{name}.env"] if now.env else []
            if now.api_key is not None and key_variable(now.kind, name) not in made:
                keys.append(f"upstreams.{name}.api_key")
    return held, keys


def _environment_changes(
    running: Policy, new: Policy, environ: Mapping[str, str]
) -> Iterator[tuple[str, object, object]]:
    """Of each key that the app's environment depends on: the key, its value now, and its value under the new policy."""
    yield "log.app_output", running.log.app_output, new.log.app_output
    yield "app.attribution", attribution.is_enabled(running), attribution.is_enabled(new)
    if running.postgres.url:
        yield "postgres.env", running.postgres.env, new.postgres.env
    # Without an address: only what the policy decides counts here, not which port was free.
    had, has = (proxy_variables(one.egress, "", environ, ()) for one in (running, new))
    if had != has:
        yield "egress.other_hosts", running.egress.other_hosts, new.egress.other_hosts
        yield "egress.no_proxy", running.egress.no_proxy, new.egress.no_proxy
