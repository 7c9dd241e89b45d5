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
        env.update(of_upstream(name, upstream, address, environ))
    env.update({its: keys.shown(kind, name) for its, (kind, name) in made_keys(policy.upstreams).items()})
    if policy.egress.other_hosts != "allow":
        database = urlsplit(environ.get("DATABASE_URL", "")).hostname
        env.update(other_hosts.variables(policy.egress, address, environ, own_hosts=[database] if database else []))
    return env


def of_upstream(name: str, upstream: Upstream, address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that lead to it."""
    return {
        its: shown(upstream.base_url, address, name, upstream.kind, adopted=_same(environ.get(its), upstream.base_url))
        for its in upstream.env
    }


def made_keys(upstreams: Mapping[str, Upstream]) -> dict[str, tuple[str, str]]:
    """The variables in which the app has a key made here, with kind and name of an upstream that it is for."""
    made = {its: (kind, "") for kind, its in VARIABLES.items() if _keyed(kind, upstreams)}
    for name, upstream in upstreams.items():
        if upstream.kind not in VARIABLES and upstream.api_key is not None:
            made[variable(upstream.kind, name)] = upstream.kind, name
    return made


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
