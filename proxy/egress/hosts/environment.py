"""The proxy variables that the app gets. Clients differ in which spelling they read, so all are set."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from proxy.policy.outgoing import Egress

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def variables(egress: Egress, address: str, environ: Mapping[str, str], own_hosts: Collection[str]) -> dict[str, str]:
    """`own_hosts` are reached directly as well: the database. Empty where other hosts are left alone."""
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
