"""Socket activation: sockets that a service manager passes on (sd_listen_fds(3)), and which of our listeners each is.

The manager holds them while one process ends and another begins, or passes the same ones to both, so no connection is
refused meanwhile.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from proxy.errors import BindError
from proxy.policy.schema import Policy
from proxy.policy.values import Address

SD_LISTEN_FDS_START = 3  # the first descriptor that is passed
SOCKET_KEYS: Mapping[str, str] = {
    "public": "listen.public",
    "admin": "listen.admin",
    "egress": "listen.egress",
    "postgres": "postgres.listen",
}
WILDCARD_HOSTS = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class ActivatedSocket:
    """A socket that was passed on. `name` is FileDescriptorName= of its unit, by default the unit's own name."""

    name: str
    sock: socket.socket

    @property
    def address(self) -> Address:
        return Address(*self.sock.getsockname()[:2])


def receive_sockets(
    environ: Mapping[str, str], *, pid: int | None = None, first: int = SD_LISTEN_FDS_START
) -> list[ActivatedSocket]:
    """The sockets that are meant for this process; none if LISTEN_PID names another one. Raises BindError."""
    # A shell that was started in our place passes the variables on to us, but LISTEN_PID names the shell.
    if environ.get("LISTEN_PID") != str(os.getpid() if pid is None else pid):
        return []
    count = environ.get("LISTEN_FDS", "")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[ActivatedSocket] = []
    try:
        for at in range(int(count) if count.isascii() and count.isdigit() else 0):
            found.append(ActivatedSocket(names[at] if at < len(names) else "", _adopt_descriptor(first + at)))
    # They are ours by now: nobody else closes them.
    except BindError:
        close_sockets(found)
        raise
    return found


def assign_sockets(policy: Policy, activated: Iterable[ActivatedSocket]) -> dict[str, socket.socket]:
    """The sockets by the policy key that each serves: found by its name, else by the address that it is bound to; a
    single one that fits neither way is the public one. Raises BindError."""
    activated = list(activated)
    wanted = {
        "listen.public": policy.listen.public,
        "listen.admin": policy.listen.admin,
        "listen.egress": policy.listen.egress,
        "postgres.listen": policy.postgres.listen if policy.postgres.url else None,
    }
    found: dict[str, socket.socket] = {}
    for one in activated:
        # The name is the operator's own word, so it comes before the address.
        key = SOCKET_KEYS.get(one.name) or next(
            (key for key, at in wanted.items() if at and _is_same_address(at, one.address)), None
        )
        if key is None and len(activated) == 1:
            key = "listen.public"
        if key is None:
            raise BindError(
                f"The socket at {one.address} that was handed over (LISTEN_FDS) is none of ours; give it the name"
                f" {', '.join(SOCKET_KEYS)} (FileDescriptorName=), or one of their addresses."
            )
        at = wanted[key]
        if at is None:
            raise BindError(f"A socket for {key} was handed over (LISTEN_FDS), and the policy has that off.")
        if key in found:
            raise BindError(
                f"Two sockets for {key} were handed over (LISTEN_FDS); give it one: [::] takes IPv4 as well"
                " (BindIPv6Only=both)."
            )
        # The public address may differ from the policy's default; the others are what the app and operators are told.
        if key != "listen.public" and not _is_same_address(at, one.address):
            raise BindError(
                f"{key} is {at}, and the socket handed over for it at {one.address}; give both one address."
            )
        found[key] = one.sock
    return found


def close_sockets(activated: Iterable[ActivatedSocket]) -> None:
    for one in activated:
        one.sock.close()


def _adopt_descriptor(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        raise BindError(f"Descriptor {descriptor} of LISTEN_FDS is no socket: {error.strerror}.") from error
    # A FIFO, a datagram or a UNIX socket is not what a listener here can serve.
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        sock.close()
        raise BindError(f"Descriptor {descriptor} of LISTEN_FDS is no TCP socket; write ListenStream= with a port.")
    # The app that we start must not inherit it: it would keep the port open after us.
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _is_same_address(one: Address, other: Address) -> bool:
    return one.port == other.port and (
        one.host == other.host or (one.host in WILDCARD_HOSTS and other.host in WILDCARD_HOSTS)
    )
