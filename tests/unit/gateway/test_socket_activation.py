"""Which of our addresses a handed-over socket is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import pytest

from proxy.errors import BindError
from proxy.policy.loading import PolicySource, load_policy
from proxy.policy.schema import Policy
from proxy.process.socket_activation import ActivatedSocket, assign_sockets, receive_sockets

Make = Callable[..., ActivatedSocket]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[socket.socket] = []

    def bound(name: str, host: str = "127.0.0.1", port: int = 0) -> ActivatedSocket:
        sock = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        made.append(sock)
        return ActivatedSocket(name, sock)

    yield bound
    for sock in made:
        sock.close()


def policy(public: str = "0.0.0.0:1", admin: int = 2, egress: int = 3) -> Policy:
    text = f"listen: {{public: '{public}', admin: '127.0.0.1:{admin}', egress: '127.0.0.1:{egress}'}}"
    return load_policy(PolicySource("test", None, text), {})


def port(one: ActivatedSocket) -> int:
    found: int = one.sock.getsockname()[1]
    return found


@pytest.mark.parametrize("name", ["", "outrigger.socket", "public"])
def test_a_single_one_is_the_public_port_wherever_it_is(make: Make, name: str) -> None:
    one = make(name)
    assert assign_sockets(policy(), [one]) == {"listen.public": one.sock}


def test_names_and_addresses_decide(make: Make) -> None:
    public, admin, egress = make("public", "::"), make("admin"), make("x")
    found = assign_sockets(policy(admin=port(admin), egress=port(egress)), [egress, public, admin])
    assert found == {"listen.public": public.sock, "listen.admin": admin.sock, "listen.egress": egress.sock}


def test_every_address_is_as_good_as_any_other(make: Make) -> None:
    one, other = make("a", "::"), make("b")
    found = assign_sockets(policy(public=f"0.0.0.0:{port(one)}", admin=port(other)), [one, other])
    assert found == {"listen.public": one.sock, "listen.admin": other.sock}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["public", "public"], "Two sockets for listen.public"),
        (["public", "what"], "is none of ours"),
        (["admin"], "give both one address"),
        (["postgres"], "the policy has that off"),
    ],
)
def test_what_fits_nowhere_is_said_in_a_sentence(make: Make, names: list[str], says: str) -> None:
    with pytest.raises(BindError, match=says):
        assign_sockets(policy(), [make(name) for name in names])


def test_a_socket_for_a_policy_without_a_public_port_is_a_fault(make: Make) -> None:
    with pytest.raises(BindError, match="has that off"):
        assign_sockets(policy(public="off"), [make("")])


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 0),
        ({"LISTEN_FDS": "1"}, 0),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, 0),
        ({"LISTEN_FDS": "two", "LISTEN_PID": "7"}, 0),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "7"}, 1),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "7", "LISTEN_FDNAMES": "public:more"}, 1),
    ],
)
def test_only_what_is_meant_for_this_process_is_taken(environ: dict[str, str], count: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        first = os.dup(sock.fileno())
        found = receive_sockets(environ, pid=7, first=first)
        assert len(found) == count
        if not found:
            os.close(first)
        for one in found:
            assert one.address.port == sock.getsockname()[1]
            assert not one.sock.get_inheritable()
            one.sock.close()


@pytest.mark.parametrize("kind", ["pipe", "datagram", "unix"])
def test_no_tcp_socket_is_a_fault(kind: str) -> None:
    keep: object = None
    if kind == "pipe":
        first, keep = os.pipe()
    else:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        first = socket.socket(family, socket.SOCK_STREAM if kind == "unix" else socket.SOCK_DGRAM).detach()
    with pytest.raises(BindError, match=f"Descriptor {first} of LISTEN_FDS is no"):
        receive_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "7"}, pid=7, first=first)
    if isinstance(keep, int):
        os.close(first)
        os.close(keep)
