"""What the app gets of the environment, so that its calls come through here without its knowing."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from proxy.egress.hosts import environment as other_hosts
from proxy.egress.keys import VARIABLES, Keys
from proxy.egress.target import shown
from proxy.policy import urls
from proxy.policy.policy import Policy


def variables(policy: Policy, address: str, environ: Mapping[str, str], keys: Keys) -> dict[str, str]:
    """`address` is the egress listener's HOST:PORT."""
    env = {"OUTRIGGER_EGRESS": f"http://{address}"}
    for name, upstream in policy.upstreams.items():
        for variable in upstream.env:
            adopted = _same(environ.get(variable), upstream.base_url)
            env[variable] = shown(upstream.base_url, address, name, upstream.kind, adopted=adopted)
        own = VARIABLES.get(upstream.kind)
        if upstream.api_key is not None and own is not None:
            env[own] = keys.shown(name)
    if policy.egress.other_hosts != "allow":
        database = urlsplit(environ.get("DATABASE_URL", "")).hostname
        env.update(other_hosts.variables(policy.egress, address, environ, own_hosts=[database] if database else []))
    return env


def _same(value: str | None, base_url: str) -> bool:
    if not value:
        return False
    try:
        parsed: str = urls.HTTP_URL.parse(value)
    except ValueError:
        return False
    return parsed == base_url
