"""The sockets that the gateway listens on: all of them are bound before anything is started.

An address that is taken then costs nothing but a sentence. A bound socket refuses connections until it listens, so a
platform that probes the port sees that nobody is ready.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.errors import BindError
from proxy.policy.schema import Policy
from proxy.policy.values import Address

LISTEN_BACKLOG = 1024


def bind_socket(address: Address, key: str) -> socket.socket:
    """A bound TCP socket that does not listen yet. Raises BindError, which names the address and its policy key.

    SO_REUSEADDR is set only to get past a predecessor's connections in TIME_WAIT, and is off again until
    `start_listening`: two sockets that both have it may hold one address until one of them listens (ip(7)).
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return _bind_family(family, address, reuse=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise BindError(_describe_failure(address, key, error)) from error
    try:
        return _bind_family(family, address, reuse=True)
    except OSError as error:
        raise BindError(_describe_failure(address, key, error)) from error


def start_listening(sock: socket.socket, key: str) -> socket.socket:
    """Listen on a bound socket. Raises BindError.

    From here on the socket has SO_REUSEADDR, which accepted connections inherit: one that we close stays in TIME_WAIT
    for a minute, and without the option no successor could bind the address. Nobody can share the address: binding
    beside a socket that listens needs SO_REUSEPORT on both.
    """
    address = Address(*sock.getsockname()[:2])
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        raise BindError(_describe_failure(address, key, error)) from error
    return sock


def find_free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def _bind_family(family: socket.AddressFamily, address: Address, *, reuse: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            # [::] accepts IPv4 as well, as in most servers.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        sock.close()
        raise
    return sock


def _describe_failure(address: Address, key: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} ({key}) is taken by another process; stop that one or give {key} another address."
    if error.errno == errno.EACCES:
        return f"{address} ({key}) may not be bound by this user; give {key} a port above 1023."
    reason = error.strerror or str(error)
    return f"{address} ({key}) cannot be bound: {reason}; give {key} an address of this machine."


@dataclass(frozen=True, slots=True)
class ListenSockets:
    """The bound sockets by listener; `public` and `postgres` are None if the policy has them off."""

    public: socket.socket | None
    admin: socket.socket
    egress: socket.socket
    postgres: socket.socket | None = None

    @classmethod
    def bind_all(cls, policy: Policy, activated: Mapping[str, socket.socket] = MappingProxyType({})) -> ListenSockets:
        """Bind every address of the policy but those of `activated`, sockets that are bound already, by policy key.
        Raises BindError for the first address that cannot be bound, and closes those before it."""
        listen = policy.listen
        bound: list[socket.socket] = []
        try:
            for address, key in (
                (listen.public, "listen.public"),
                (listen.admin, "listen.admin"),
                (listen.egress, "listen.egress"),
                (policy.postgres.listen if policy.postgres.url else None, "postgres.listen"),
            ):
                if address is not None:
                    bound.append(activated[key] if key in activated else bind_socket(address, key))
        # All or nothing: a start that fails must leave no address taken.
        except BindError:
            for sock in bound:
                sock.close()
            raise
        # In the order of the loop above: public may be missing at the front, postgres at the end.
        postgres = bound.pop() if policy.postgres.url else None
        *public, admin, egress = bound
        return cls(public[0] if public else None, admin, egress, postgres)

    @property
    def egress_address(self) -> str:
        return str(Address(*self.egress.getsockname()[:2]))

    def close(self) -> None:
        for sock in (self.public, self.admin, self.egress, self.postgres):
            if sock is not None:
                sock.close()
