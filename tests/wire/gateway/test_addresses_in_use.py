"""Who holds an address: one gateway at a time, and the next one at once."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest
from free_ports import free_port
from gateway_process import APPS, eventually, gateway
from postgres_cluster import Cluster
from postgres_gateway import PostgresGateways

from proxy.errors import BindError
from proxy.policy.values import Address
from proxy.process.listen_sockets import bind_socket, start_listening

APP = (sys.executable, str(APPS / "plain.py"))


def lingering(port: int) -> bool:
    """Whether a connection that we closed lies in TIME_WAIT at a port of ours (state 06 of /proc/net/tcp)."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return any(row[3] == "06" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def closed_by_us(sock: socket.socket) -> None:
    """One connection that the listening side closes first."""
    with socket.create_connection(sock.getsockname()[:2]) as client:
        sock.setblocking(True)
        connection, _ = sock.accept()
        connection.close()
        assert client.recv(1) == b""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_an_address_is_free_again_at_once_after_connections_that_we_closed(host: str) -> None:
    address = Address(host, free_port())
    for _ in range(3):
        sock = bind_socket(address, "listen.public")
        start_listening(sock, "listen.public")
        closed_by_us(sock)
        sock.close()


@pytest.mark.parametrize("lingers", [False, True], ids=["fresh", "with a predecessor's connections"])
@pytest.mark.parametrize("listens", [False, True], ids=["bound", "listening"])
@pytest.mark.parametrize("second", ["127.0.0.1", "0.0.0.0", "::"])
@pytest.mark.parametrize("first", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_second_one_is_told_whatever_the_first_does(first: str, second: str, listens: bool, lingers: bool) -> None:
    port = free_port()
    if lingers:
        before = bind_socket(Address("127.0.0.1", port), "listen.public")
        start_listening(before, "listen.public")
        closed_by_us(before)
        before.close()
        assert lingering(port)
    held = bind_socket(Address(first, port), "listen.public")
    try:
        if listens:
            start_listening(held, "listen.public")
        with pytest.raises(BindError, match=r"listen\.public\) is taken by another process"):
            bind_socket(Address(second, port), "listen.public")
    finally:
        held.close()


@pytest.mark.parametrize("option", [socket.SO_REUSEPORT, socket.SO_REUSEADDR])
def test_one_that_would_share_its_port_does_not_get_ours(option: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BindError):
            bind_socket(Address(*other.getsockname()), "listen.public")


async def test_the_same_start_command_is_taken_at_once_on_all_four_addresses(tmp_path, cluster: Cluster) -> None:
    with PostgresGateways(cluster).database() as name:
        database = free_port()
        policy = f"postgres: {{url: '{cluster.url(name)}', listen: '127.0.0.1:{database}'}}\n"
        ports = {"port": free_port(), "admin": free_port(), "egress": free_port()}
        for turn in range(2):
            async with gateway(tmp_path, *APP, policy=policy, **ports) as g:
                await g.ready()
                for port in (*ports.values(), database):
                    # what is no request (and no start of a session) is answered, or not, and closed from this side
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"no such thing\r\n\r\n")
                    async with asyncio.timeout(20):
                        await reader.read(-1)
                    writer.close()
                    await eventually(lambda port=port: lingering(port))
                assert await g.stop() == 0, turn
