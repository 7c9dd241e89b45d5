"""Input that two readers could read differently never reaches the app, and never reaches a client."""

import asyncio

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until

from proxy.ingress.listener import ClientTimeouts

GET = b"GET / HTTP/1.1\r\nHost: t\r\n"
POST = b"POST / HTTP/1.1\r\nHost: t\r\n"

BAD = {
    "length and chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coded and chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked with a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "space before a length's colon": POST + b"Content-Length : 5\r\n\r\nhello",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "two equal lengths": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": POST + b"Content-Length: -5\r\n\r\nhello",
    "a spaced length": POST + b"Content-Length: 5 0\r\n\r\nhello",
    "a hexadecimal length": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "an empty length": POST + b"Content-Length: \r\n\r\nhello",
    "a huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "a folded line": GET + b"X-A: b\r\n c\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n X: y\r\nHost: t\r\n\r\n",
    "a bare line feed": b"GET / HTTP/1.1\nHost: t\n\n",
    "a bare line feed in a field": GET + b"X-A: b\nX-B: c\r\n\r\n",
    "a bare carriage return": GET + b"X-A: b\rc\r\n\r\n",
    "a NUL in a value": GET + b"X-A: b\0c\r\n\r\n",
    "a NUL in a name": GET + b"X\0A: b\r\n\r\n",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: t\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: t\r\n\r\n",
    "an empty name": GET + b": b\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "a bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a signed chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "an 0x chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a huge chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk without its end": POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "a bare line feed after a chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "a bare CR in a chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a bare LF in a chunk extension": POST + b"Transfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\n",
    "two hosts": GET + b"Host: u\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nHost: t/evil\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "a host of two words": b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: t\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/3.1": b"GET / HTTP/3.1\r\nHost: t\r\n\r\n",
    "lower case version": b"GET / http/1.1\r\nHost: t\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "no method": b" / HTTP/1.1\r\nHost: t\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
    "a relative target": b"GET index.html HTTP/1.1\r\nHost: t\r\n\r\n",
}
LONG = {
    "a long target": b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
    "a long value": GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n",
    "a long name": GET + b"X" * 40_000 + b": a\r\n\r\n",
    "many fields": GET + b"".join(b"X-%d: y\r\n" % n for n in range(100_000)) + b"\r\n",
    "together too long": GET + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(40)) + b"\r\n",
    "a head without an end": GET + b"X-A: b\r\n" * 10_000,
}


@pytest.mark.parametrize("name", [*BAD, *LONG])
@pytest.mark.parametrize("piece", [None, 1], ids=["whole", "byte by byte"])
async def test_hostile_input_gets_an_answer_and_a_closed_connection_and_never_the_app(name, piece):
    data = {**BAD, **LONG}[name]
    if piece and len(data) > 2000:
        pytest.skip("too long to send byte by byte")

    async def script(reader, writer):
        await app.head(reader)
        await reader.read(-1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        try:
            for at in range(0, len(data), piece or len(data)):
                writer.write(data[at : at + (piece or len(data))])
                if piece:
                    await asyncio.sleep(0)
            await writer.drain()
            answer = await asyncio.wait_for(reader.read(), 8)
        except ConnectionError:
            answer = b""
        finally:
            writer.close()
        if answer or name in BAD:
            status = answer.split(b" ")[1]
            assert status == (b"431" if name in LONG else b"400"), answer
            assert b"Content-Type: application/problem+json\r\n" in answer
            assert b"Connection: close\r\n" in answer
            assert answer.count(b"Content-Length: ") == 1
        if "chunk" not in name:  # the head of a body that proves bad later is there before it
            assert app.heads == []


async def test_what_follows_a_bad_request_is_never_read_as_another():
    async with ingress_gateway(answering(OK)) as gateway:
        answer = await gateway.raw(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello" + GET + b"\r\n")
        assert answer.count(b"Content-Length: ") == 1
        assert gateway.app.heads == []


async def test_good_requests_before_a_bad_one_are_answered():
    async with ingress_gateway(answering(OK)) as gateway:
        reader, writer = await gateway.connect()
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 OK")
        writer.write(b"nonsense\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 3)).startswith(b"HTTP/1.1 400 Bad Request")
        writer.close()


@pytest.mark.parametrize(
    ("data", "patience"),
    [
        (b"GET / HT", ClientTimeouts(head=0.2, sweep=0.05)),
        (GET + b"X-A: b\r\n", ClientTimeouts(head=0.2, sweep=0.05)),
        (POST + b"Content-Length: 10\r\n\r\nhell", ClientTimeouts(body=0.2, sweep=0.05)),
    ],
)
async def test_slow_heads_and_bodies_get_a_408(data, patience):
    async def script(reader, writer):
        await reader.read(-1)

    async with ingress_gateway(Scripted(script), patience=patience) as gateway:
        answer = await gateway.raw(data)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"urn:outrigger:request-timeout"' in answer


async def test_a_head_dripped_byte_by_byte_is_not_waited_for_for_ever():
    async with ingress_gateway(answering(OK), patience=ClientTimeouts(head=0.3, sweep=0.05)) as gateway:
        reader, writer = await gateway.connect()
        reading = asyncio.create_task(reader.read())
        for _ in range(100):
            if reading.done():
                break
            writer.write(b"G" if _ == 0 else b"E" if _ == 1 else b"T")
            await asyncio.sleep(0.02)
        assert (await asyncio.wait_for(reading, 3)).startswith(b"HTTP/1.1 4")
        writer.close()


async def test_an_idle_connection_is_closed_after_keepalive():
    async with ingress_gateway(answering(OK), "listen: {keepalive: 200ms}") as gateway:
        assert await gateway.raw(b"") == b""
        answer = await gateway.raw(GET + b"\r\n")
        assert answer.endswith(b"ok")


async def test_a_client_that_never_reads_is_dropped_and_the_app_is_not_read_ahead():
    sent = 0

    async def script(reader, writer):
        nonlocal sent
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while sent < 10**9:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    app = Scripted(script)
    async with ingress_gateway(app, patience=ClientTimeouts(stall=0.5, sweep=0.05)) as gateway:
        _, writer = await gateway.connect()
        writer.transport.pause_reading()
        writer.write(GET + b"\r\n")
        await until(lambda: app.connections == 1 and app.open == 0, 8)
        assert sent < 64 * 2**20
        await until(lambda: not gateway.service.listener.connections)
        writer.close()


MISFRAMED = {
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
    "a foreign coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "a NUL": b"HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9\r\n",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "a switch nobody asked for": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "a head without an end": b"HTTP/1.1 200 OK\r\n" + b"X-A: bbbbbbbbbbbbbbbbbbbb\r\n" * 20_000,
}


@pytest.mark.parametrize("name", MISFRAMED)
@pytest.mark.parametrize("piece", [None, 1], ids=["whole", "byte by byte"])
async def test_bad_framing_from_the_app_is_a_502_and_never_a_second_answer(name, piece):
    data = MISFRAMED[name]
    if piece and len(data) > 2000:
        pytest.skip("too long to send byte by byte")

    async def script(reader, writer):
        await app.head(reader)
        for at in range(0, len(data), piece or len(data)):
            writer.write(data[at : at + (piece or len(data))])
            if piece:
                await writer.drain()
                await asyncio.sleep(0)
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert answer.count(b"Content-Length: ") == 1
        await until(lambda: app.open == 0)


async def test_bytes_behind_an_answer_never_answer_the_next_request():
    poisoned = OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

    async def script(reader, writer):
        first = app.connections == 1
        while True:
            await app.head(reader)
            writer.write(poisoned if first else OK)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        for _ in range(3):
            answer = await gateway.get()
            assert answer.endswith(b"\r\n\r\nok")
        assert app.connections >= 2


async def test_a_late_unasked_answer_is_noise():
    async def script(reader, writer):
        while True:
            await app.head(reader)
            writer.write(OK)
            await writer.drain()
            if app.connections == 1:
                await asyncio.sleep(0.05)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
                await reader.read(-1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        assert (await gateway.get()).endswith(b"ok")
        await asyncio.sleep(0.1)
        assert (await gateway.get()).endswith(b"\r\n\r\nok")
        assert app.connections == 2
