"""Whether an address is one of the public Internet, so that a stranger may have us connect to it.

A client that chooses a URL for us to post to could name what only we can reach: the app's own port, a database, the
metadata service of the cloud, which hands out credentials (server-side request forgery, CWE-918). The ranges below are
those of IANA's special-purpose address registries (RFC 6890) that are not globally reachable, and those that carry an
IPv4 address inside an IPv6 one, which would lead round them. They are written out here: what `ipaddress.is_global`
knows differs between Python's versions.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches the machine itself
        "10.0.0.0/8",  # private (RFC 1918), as are 172.16 and 192.168
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598), inside of clouds too
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a public address by number, behind which Azure has its machines' own service
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; one of them is a cloud's metadata
        "192.0.2.0/24",  # documentation, as are 198.51.100 and 203.0.113
        "192.31.196.0/24",  # AS112, as is 192.175.48
        "192.52.193.0/24",  # automatic multicast tunnelling
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and the broadcast address
    )
)
GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")  # nothing else is given to anybody: loopback, ULA, link-local, mapped …
NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them, which has an IPv4 address inside
        "2001:db8::/32",  # documentation, as is 3fff
        "2002::/16",  # 6to4, which has an IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether everybody on the Internet can reach this address, without being inside of something."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_V4)
    # An address with a zone (`fe80::1%eth0`) is one of a link.
    if address.scope_id is not None or address not in GLOBAL_UNICAST_V6:
        return False
    return not any(address in network for network in NOT_PUBLIC_V6)


def parse_address(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is, with or without brackets; None for a name."""
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
