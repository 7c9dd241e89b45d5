"""What takes descriptors is counted, and who had to stop accepting for want of them goes on."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until

from proxy.http.acceptor import Acceptor

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
ASK = b"GET /socket HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def switching() -> Scripted:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await app.head(reader)
        writer.write(SWITCHED if b"Upgrade" in head else OK)
        await reader.read()

    app = Scripted(script)
    return app


async def test_a_websocket_counts_as_the_two_descriptors_that_it_takes() -> None:
    async with ingress_gateway(switching()) as gateway:
        gateway.service.connection_limits.descriptor_room = 7
        writers = []
        for _ in range(3):
            reader, writer = await gateway.connect()
            writer.write(ASK)
            await reader.readuntil(b"\r\n\r\n")
            writers.append(writer)
        assert not gateway.service.listener._is_full(), "six of seven"
        reader, writer = await gateway.connect()
        await until(lambda: len(gateway.service.listener.connections) == 4)
        assert gateway.service.listener._is_full()
        for one in (*writers, writer):
            one.close()
        await until(lambda: not gateway.service.listener.connections)
        assert gateway.service.pool.in_use + gateway.service.pool.tunnels == 0


class Exhausted(socket.socket):
    """One that has no descriptor for a while, as after EMFILE by other doors' connections."""

    lacking = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.lacking:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def test_without_a_descriptor_to_spare_and_without_a_connection_that_could_end_it_accepts_again() -> None:
    loop = asyncio.get_running_loop()
    taken: list[socket.socket] = []
    with Exhausted() as sock, socket.socket() as client:
        sock.bind(("127.0.0.1", 0))
        acceptor = Acceptor(
            loop,
            sock,
            lambda found, _: taken.append(found),
            is_full=lambda: False,
            on_full=lambda: None,
            on_exhausted=lambda _: False,  # nobody is idle, since nobody is there
            overload_response=lambda: b"",
        )
        client.setblocking(False)
        await loop.sock_connect(client, sock.getsockname())
        await until(lambda: acceptor.paused)
        sock.lacking = False
        await until(lambda: bool(taken))
        acceptor.close()
        taken[0].close()


async def test_who_has_had_his_last_answer_and_stays_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad request is read from for five seconds more, so that its answer arrives: not while others wait."""
    monkeypatch.setattr("proxy.ingress.listener.EVICTABLE_AFTER", 0.1)
    async with ingress_gateway(answering(OK), "listen: {connections: {total: 3}}") as gateway:
        writers = []
        for _ in range(3):
            reader, writer = await gateway.connect()
            writer.write(b"GET /\x00 HTTP/1.1\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
            writers.append(writer)
        assert (await gateway.get()).startswith(b"HTTP/1.1 200")
        for writer in writers:
            writer.close()
