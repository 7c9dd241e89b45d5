"""The client towards vendors, over real sockets: framing, reuse, uploads, and every way in which an exchange can end."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from gateway_process import eventually
from yarl import URL

from proxy.errors import AttemptFailed
from proxy.http.outgoing_client import MAX_HEAD, OutgoingClient, SendProgress

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of `answers`, bytes or a coroutine function (reader, writer)."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader, writer) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if callable(answer):
                    await answer(reader, writer)
                else:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def served(*answers):
    server = Server(*answers)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    client = OutgoingClient()
    url = URL(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1/x%2Fy?a=%20b", encoded=True)
    try:
        yield server, client, url
    finally:
        await client.close()
        listener.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # the transports' ends


async def ask(client, url, body=None, method="GET", **how):
    response = await client.send(method, url, [("X-A", "1")], body, connect=5.0, **how)
    try:
        return response.status, await response.read_whole(1 << 20)
    finally:
        response.release()


async def test_the_head_is_what_was_asked_for_byte_for_byte():
    async with served(OK) as (server, client, url):
        assert await ask(client, url) == (200, (b"ok", True))
        host = f"127.0.0.1:{url.port}"
        assert server.heads == [f"GET /v1/x%2Fy?a=%20b HTTP/1.1\r\nHost: {host}\r\nX-A: 1\r\n\r\n".encode()]


async def test_one_connection_serves_request_after_request_and_each_at_once_has_its_own():
    async with served(OK) as (server, client, url):
        for _ in range(5):
            await ask(client, url)
        assert (server.connections, client.idle, client.in_use) == (1, 1, 0)
        await asyncio.gather(*(ask(client, url) for _ in range(4)))
        assert server.connections == 4
        assert client.idle == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
    ],
    ids=["it says close", "HTTP/1.0", "bytes that nobody asked for"],
)
async def test_a_connection_that_cannot_serve_another_request_is_closed(answer):
    async with served(answer) as (server, client, url):
        for _ in range(2):
            assert await ask(client, url) == (200, (b"ok", True))
        assert (server.connections, client.idle, client.in_use) == (2, 0, 0)


async def test_a_connection_that_its_server_closed_is_not_used_again():
    async with served(OK) as (server, client, url):
        await ask(client, url)
        server.writers[0].close()
        await eventually(lambda: all(one.is_closed for one in client._connections))
        assert await ask(client, url) == (200, (b"ok", True))
        assert server.connections == 2


BODIES = {
    "a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"hello"),
    "chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: 1\r\n\r\n",
    ),
    "chunks with spaces": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5  \r\nhello\r\n0\r\n\r\n"),
    "lines without CR": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\n", b"hello"),
    "the end": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"hello"),
    "informational ones before it": (
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"hello",
    ),
}


@pytest.mark.parametrize("pieces", [1, 3, 1000], ids=["whole", "by threes", "at once"])
@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_is_read_to_its_end_however_it_is_framed_and_cut(kind, pieces):
    head, body = BODIES[kind]

    async def answer(reader, writer):
        data = head + body
        step = {1: 1, 3: 3, 1000: len(data)}[pieces]
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await asyncio.sleep(0)
        if kind == "the end":
            writer.close()

    async with served(answer) as (_, client, url):
        assert await ask(client, url) == (200, (b"hello", True))


ENDINGS = {
    "nothing": (b"", "closed the connection without an answer"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "closed the connection without an answer"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "broke off"),
    "half a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", "broke off"),
    "no last chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", "broke off"),
    "no HTTP": (b"220 mail.example ESMTP\r\n", "no sound HTTP"),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "no sound HTTP"),
    "an unknown coding": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx", "no sound HTTP"),
    "a long head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n", "longer than 64 KiB"),
}


@pytest.mark.parametrize("kind", ENDINGS)
async def test_what_ends_too_early_or_is_no_http_is_a_reset_that_says_why(kind):
    said, words = ENDINGS[kind]

    async def answer(reader, writer):
        writer.write(said)
        writer.close()

    async with served(answer) as (_, client, url):
        with pytest.raises(AttemptFailed, match=words) as caught:
            await ask(client, url)
        assert (caught.value.reason, caught.value.sent) == ("reset", True)
        assert (client.idle, client.in_use) == (0, 0)


async def test_nobody_there_and_no_such_name_are_failures_to_connect_with_nothing_sent():
    client, progress = OutgoingClient(), SendProgress()
    try:
        for url in (URL("http://127.0.0.1:1/"), URL("http://no.such.name.invalid/")):
            with pytest.raises(AttemptFailed) as caught:
                await client.send("POST", url, [], b"x", connect=5.0, progress=progress)
            assert (caught.value.reason, caught.value.sent, progress.begun) == ("connect", False, False)
    finally:
        await client.close()


async def test_a_field_cannot_begin_another_one():
    async with served(OK) as (server, client, url):
        with pytest.raises(AttemptFailed, match="line break"):
            await client.send("GET", url, [("X-A", "1\r\nX-B: 2")], None, connect=5.0)
        assert server.connections == 0


# ── bodies that are sent ─────────────────────────────────────────────────────────────────────


async def pieces(*parts):
    for part in parts:
        yield part
        await asyncio.sleep(0)


async def test_bodies_have_a_length_or_come_in_chunks():
    got = []

    async def answer(reader, writer):
        wanted = [b"whole", b"3\r\nin \r\n3\r\ntwo\r\n0\r\n\r\n", b"in two", b""][len(got)]
        got.append(await reader.readexactly(len(wanted)))
        assert got[-1] == wanted
        writer.write(OK)

    async with served(answer) as (server, client, url):
        await ask(client, url, b"whole", "POST")
        await ask(client, url, pieces(b"in ", b"", b"two"), "POST")
        await ask(client, url, pieces(b"in ", b"two"), "POST", length=6)
        await ask(client, url, None, "POST")
        assert len(got) == 4
        assert [head.lower().count(b"content-length: 5") for head in server.heads] == [1, 0, 0, 0]
        assert b"Transfer-Encoding: chunked" in server.heads[1]
        assert b"Content-Length: 6" in server.heads[2]
        assert b"Content-Length: 0" in server.heads[3]
        assert server.connections == 1


async def test_an_answer_before_the_upload_is_over_is_read_and_its_connection_closed():
    async def answer(reader, writer):
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")

    async def endless():
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0.001)

    async with served(answer) as (_, client, url):
        assert await ask(client, url, endless(), "POST") == (413, (b"no", True))
        assert (client.idle, client.in_use) == (0, 0)


async def test_an_upload_whose_sender_leaves_breaks_the_exchange_off():
    async def broken():
        yield b"half"
        raise ConnectionResetError("The client left.")

    async def answer(reader, writer):
        await reader.read(-1)

    async with served(answer) as (_, client, url):
        with pytest.raises(ConnectionResetError):
            await ask(client, url, broken(), "POST")
        assert (client.idle, client.in_use) == (0, 0)


async def test_a_reader_that_is_slow_slows_the_server_down():
    size, sent = 64 << 20, 0

    async def answer(reader, writer):
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 65536):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with served(answer) as (_, client, url):
        response = await client.send("GET", url, [], None, connect=5.0)
        before = -1
        while before != sent:  # until the server waits
            before = sent
            await asyncio.sleep(0.2)
        assert sent < size // 2
        got = 0
        while data := await response.read_chunk():
            got += len(data)
        response.release()
        assert (got, client.idle) == (size, 1)


@pytest.mark.parametrize("when", ["before the head", "within the body"])
async def test_a_request_that_is_cancelled_leaves_no_connection_behind(when):
    async def answer(reader, writer):
        if when == "within the body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await asyncio.sleep(60)

    async with served(answer) as (server, client, url):
        task = asyncio.create_task(ask(client, url))
        await eventually(lambda: server.heads)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (client.idle, client.in_use) == (0, 0)
        assert len(asyncio.all_tasks()) <= 3  # this one and the server's


async def test_a_client_that_closes_ends_what_is_under_way():
    async def answer(reader, writer):
        await asyncio.sleep(60)

    async with served(answer) as (server, client, url):
        task = asyncio.create_task(ask(client, url))
        await eventually(lambda: server.heads)
        await client.close()
        with pytest.raises(AttemptFailed):
            await task
