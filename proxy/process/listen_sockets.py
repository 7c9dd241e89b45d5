"""Taking addresses: bound before anything is started, so that a taken one costs nothing but a sentence."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from proxy.errors import BindError
from proxy.policy.schema.policy import Policy
from proxy.policy.schema.server import Address

LISTEN_BACKLOG = 1024


def bind_socket(address: Address, key: str) -> socket.socket:
    """A bound TCP socket that does not listen yet. Raises BindError naming the address and its policy key.

    Until it listens, the address refuses connections: a platform that probes the port sees that nobody is
    ready. SO_REUSEADDR is asked for only to get past a predecessor's connections in TIME_WAIT, and is off again
    until `listen`: two sockets that both ask for it may hold one address until one of them listens (ip(7)).
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return _bind(family, address, reuse=False)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise BindError(_describe_failure(address, key, error)) from error
    try:
        return _bind(family, address, reuse=True)
    except OSError as error:
        raise BindError(_describe_failure(address, key, error)) from error


def start_listening(sock: socket.socket, key: str) -> socket.socket:
    """Listen on a bound socket. Raises BindError.

    From here on with SO_REUSEADDR, which accepted connections inherit: one that we close lies in TIME_WAIT for a
    minute, and without it no successor could bind the address. Nobody can share it: binding beside a socket that
    listens needs SO_REUSEPORT on both.
    """
    address = Address(*sock.getsockname()[:2])
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.listen(LISTEN_BACKLOG)
    except OSError as error:
        raise BindError(_describe_failure(address, key, error)) from error
    return sock


def find_free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody has now."""
    with socket.socket() as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def _bind(family: socket.AddressFamily, address: Address, *, reuse: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            # [::] takes IPv4 as well, as most servers do.
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
    """The addresses, bound before anything is started."""

    public: socket.socket | None
    admin: socket.socket
    egress: socket.socket
    postgres: socket.socket | None = None

    @classmethod
    def bind(cls, policy: Policy, handed: Mapping[str, socket.socket] = MappingProxyType({})) -> ListenSockets:
        """Raises BindError for the first address that cannot be had; those before it are let go. `handed`: sockets
        that are bound already, by the policy's key."""
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
                    bound.append(handed[key] if key in handed else bind_socket(address, key))
        except BindError:
            for sock in bound:
                sock.close()
            raise
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
