"""Hosts that no upstream names: the app reaches them through HTTP_PROXY, where the policy says so."""

from proxy.egress.hosts.hosts import Hosts
from proxy.egress.hosts.parent import parent_proxies

__all__ = ["Hosts", "parent_proxies"]
