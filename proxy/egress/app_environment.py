"""What the app gets of the environment, so that its calls come through here without its knowing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from proxy.egress.api_keys import KEY_VARIABLES, VirtualKeys, key_variable
from proxy.egress.url_mapping import app_base_url
from proxy.policy import urls
from proxy.policy.schema import Egress, Policy, Upstream

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def proxy_variables(
    egress: Egress, address: str, environ: Mapping[str, str], own_hosts: Collection[str]
) -> dict[str, str]:
    """The proxy variables that the app gets, in every spelling, since clients differ in which one they read.

    `own_hosts` are reached directly as well: the database. Empty if other hosts are left alone.
    """
    if egress.other_hosts == "allow":
        return {}
    before = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(",")
    around = dict.fromkeys(host.strip() for host in (*LOOPBACK, *egress.no_proxy, *own_hosts, *before) if host.strip())
    url, none = f"http://{address}", ",".join(around)
    return {
        "HTTP_PROXY": url,
        "http_proxy": url,
        "HTTPS_PROXY": url,
        "https_proxy": url,
        "NO_PROXY": none,
        "no_proxy": none,
    }


def app_variables(policy: Policy, address: str, environ: Mapping[str, str], keys: VirtualKeys) -> dict[str, str]:
    """All variables that the app gets. `address` is the egress listener's HOST:PORT."""
    env = {"OUTRIGGER_EGRESS": f"http://{address}"}
    for name, upstream in policy.upstreams.items():
        env.update(upstream_variables(name, upstream, address, environ))
    env.update({its: keys.key_for(kind, name) for its, (kind, name) in virtual_key_variables(policy.upstreams).items()})
    if policy.egress.other_hosts != "allow":
        database = urlsplit(environ.get("DATABASE_URL", "")).hostname
        env.update(proxy_variables(policy.egress, address, environ, own_hosts=[database] if database else []))
    return env


def upstream_variables(name: str, upstream: Upstream, address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that lead the app's calls to this upstream."""
    return {
        its: app_base_url(
            upstream.base_url, address, name, upstream.kind, adopted=_is_same_url(environ.get(its), upstream.base_url)
        )
        for its in upstream.env
    }


def virtual_key_variables(upstreams: Mapping[str, Upstream]) -> dict[str, tuple[str, str]]:
    """The variables in which the app has a key made here, with kind and name of an upstream that it is for."""
    made = {its: (kind, "") for kind, its in KEY_VARIABLES.items() if _is_key_replaced(kind, upstreams)}
    for name, upstream in upstreams.items():
        if upstream.kind not in KEY_VARIABLES and upstream.api_key is not None:
            made[key_variable(upstream.kind, name)] = upstream.kind, name
    return made


def _is_key_replaced(kind: str, upstreams: Mapping[str, Upstream]) -> bool:
    """Whether the app's own key of this kind is replaced: if the upstream that it is for has an `api_key`.

    It is for the one that is named like its kind, else for one that a variable leads to. A second one, there
    as a fallback, must not take the first one's key away.
    """
    mine = {name: upstream for name, upstream in upstreams.items() if upstream.kind == kind}
    first = mine.get(kind) or next((one for one in mine.values() if one.env), None) or next(iter(mine.values()), None)
    return first is not None and first.api_key is not None


def _is_same_url(value: str | None, base_url: str) -> bool:
    if not value:
        return False
    try:
        parsed: str = urls.HTTP_URL.parse(value)
    except ValueError:
        return False
    return parsed == base_url
