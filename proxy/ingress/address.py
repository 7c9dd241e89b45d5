"""Network addresses as they come in header fields, and the networks that proxies stand in."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from proxy.policy.model import Network

Address = IPv4Address | IPv6Address

LONGEST = 64  # "[" 45 characters of IPv6 "%zone]:65535" fits; what is longer is no address

# Where the proxies of a platform stand: RFC 1918, loopback, link-local, RFC 4193, and RFC 6598, which
# several platforms (Railway, Tailscale) use inside. Narrower than ipaddress' is_private, which has the
# ranges for documentation and benchmarks in it.
PRIVATE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)

# https://www.cloudflare.com/ips-v4 and /ips-v6: the list of 8 April 2021, in November 2026 the last known.
CLOUDFLARE: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "173.245.48.0/20",
        "103.21.244.0/22",
        "103.22.200.0/22",
        "103.31.4.0/22",
        "141.101.64.0/18",
        "108.162.192.0/18",
        "190.93.240.0/20",
        "188.114.96.0/20",
        "197.234.240.0/22",
        "198.41.128.0/17",
        "162.158.0.0/15",
        "104.16.0.0/13",
        "104.24.0.0/14",
        "172.64.0.0/13",
        "131.0.72.0/22",
        "2400:cb00::/32",
        "2606:4700::/32",
        "2803:f800::/32",
        "2405:b500::/32",
        "2405:8100::/32",
        "2a06:98c0::/29",
        "2c0f:f248::/32",
    )
)


def parse(text: str) -> Address | None:
    """The address in `text`, or None where there is none (`unknown`, `_hidden`, junk).

    Takes a port (`1.2.3.4:80`, `[2001:db8::1]:80`), brackets, and a zone, which is dropped; an IPv4
    address mapped into IPv6 becomes the IPv4 address it is.
    """
    text = text.strip()
    if not text or len(text) > LONGEST:
        return None
    if text[0] == "[":
        inner, bracket, port = text[1:].partition("]")
        if not bracket or not (port == "" or _is_port(port)):
            return None
        text = inner
        if ":" not in text:
            return None
    elif text.count(":") == 1:
        text, _, digits = text.partition(":")
        if not _is_port(":" + digits):
            return None
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@lru_cache(maxsize=4096)
def network_of(text: str) -> str:
    """What counts as one client: an IPv4 address, of IPv6 its /64, `unknown` where there is no address."""
    found = parse(text)
    if isinstance(found, IPv6Address):
        return str(ip_network((found, 64), strict=False))
    return str(found) if found is not None else "unknown"


def within(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdigit()
