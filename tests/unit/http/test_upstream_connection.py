"""A connection to the app, fed by hand."""

from __future__ import annotations

import asyncio

import pytest

from proxy.http.upstream_connection import MAX_BUFFERED_BODY, UpstreamConnection

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Transport:
    reading = True

    def write(self, _: bytes) -> None: ...
    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Behind:
    """A client that takes what comes and is behind each time."""

    def __init__(self) -> None:
        self.taken = b""

    def write_body(self, data: bytes) -> bool:
        self.taken += data
        return False


@pytest.mark.parametrize("held", [0, 1, MAX_BUFFERED_BODY + 1])
async def test_a_connection_whose_last_bytes_asked_for_a_pause_is_read_again(held: int) -> None:
    """`held` bytes came before anybody took them."""
    connection, transport, client = UpstreamConnection(asyncio.get_running_loop()), Transport(), Behind()
    connection.connection_made(transport)  # type: ignore[arg-type]
    for _ in range(2):
        client.taken = b""
        answered = connection.send_request(b"GET / HTTP/1.1\r\n\r\n", "GET", None, None)
        connection.data_received(HEAD % (held + 2) + b"x" * held)
        await answered
        assert transport.reading == (held <= MAX_BUFFERED_BODY)
        finished = connection.stream_body(client)
        assert finished is not None
        connection.data_received(b"y")
        assert not transport.reading
        connection.data_received(b"z")
        await finished
        assert client.taken == b"x" * held + b"yz"
        assert connection.reusable
        assert transport.reading
