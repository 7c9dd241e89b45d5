"""What the app gets of the environment, so that its calls come through here without its knowing."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from proxy.egress.hosts import environment as other_hosts
from proxy.egress.keys import VARIABLES, Keys, variable
from proxy.egress.target import shown
from proxy.policy import urls
from proxy.policy.outgoing import Upstream
from proxy.policy.policy import Policy


def variables(policy: Policy, address: str, environ: Mapping[str, str], keys: Keys) -> dict[str, str]:
    """`address` is the egress listener's HOST:PORT."""
    env = {"OUTRIGGER_EGRESS": f"http://{address}"}
    for name, upstream in policy.upstreams.items():
        for its in upstream.env:
            adopted = _same(environ.get(its), upstream.base_url)
            env[its] = shown(upstream.base_url, address, name, upstream.kind, adopted=adopted)
    for kind, its in VARIABLES.items():
        if _keyed(kind, policy.upstreams):
            env[its] = keys.shown(kind)
    for name, upstream in policy.upstreams.items():
        if upstream.kind not in VARIABLES and upstream.api_key is not None:
            env[variable(upstream.kind, name)] = keys.shown(upstream.kind, name)
    if policy.egress.other_hosts != "allow":
        database = urlsplit(environ.get("DATABASE_URL", "")).hostname
        env.update(other_hosts.variables(policy.egress, address, environ, own_hosts=[database] if database else []))
    return env


def _keyed(kind: str, upstreams: Mapping[str, Upstream]) -> bool:
    """Whether the app's own key of this kind is replaced: where the upstream that it is for has an `api_key`.

    It is for the one that is named like its kind, else for one that a variable leads to. A second one, there
    as a fallback, must not take the first one's key away.
    """
    mine = {name: upstream for name, upstream in upstreams.items() if upstream.kind == kind}
    first = mine.get(kind) or next((one for one in mine.values() if one.env), None) or next(iter(mine.values()), None)
    return first is not None and first.api_key is not None


def _same(value: str | None, base_url: str) -> bool:
    if not value:
        return False
    try:
        parsed: str = urls.HTTP_URL.parse(value)
    except ValueError:
        return False
    return parsed == base_url
