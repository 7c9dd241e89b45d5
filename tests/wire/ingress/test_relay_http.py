"""HTTP/1.1 through the front door: what went in comes out."""

import asyncio

import pytest
from ingress_gateway import OK, Scripted, answering, ingress_gateway, until

from proxy.ingress import relay


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def head_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a%2Fb%20c/../d?q=%7E",
        "//double//slashes/./dots",
        "/q?a=1&b=%00&c=[x]|y",
        "/?",
        "/#frag",
        "http://test/absolute?x=1",
    ],
)
async def test_path_and_query_reach_the_app_byte_for_byte(target):
    async with ingress_gateway(answering(OK)) as gateway:
        raw = target.encode("latin-1")
        answer = await gateway.raw(b"GET " + raw + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert gateway.app.heads[0].startswith(b"GET " + raw + b" HTTP/1.1\r\n")


async def test_end_to_end_fields_pass_as_they_are_and_connection_level_ones_stop():
    async with ingress_gateway(answering(OK)) as gateway:
        await gateway.get(
            "/",
            "X-CaSe: Kept  inside",
            "Cookie: a=1",
            "Cookie: b=2",
            "Keep-Alive: timeout=5",
            "Proxy-Authorization: Basic x",
            "Proxy-Connection: close",
            "X-Secret-Hop: 1",
            "Connection: x-secret-hop",
            "Upgrade-Insecure-Requests: 1",
        )
        head = gateway.app.heads[0]
        assert b"\r\nX-CaSe: Kept  inside\r\n" in head
        assert b"\r\nCookie: a=1\r\nCookie: b=2\r\n" in head
        assert b"\r\nHost: test\r\n" in head
        assert b"\r\nVia: 1.1 outrigger\r\n" in head
        for gone in (b"Keep-Alive", b"Proxy-Auth", b"Proxy-Conn", b"X-Secret-Hop", b"\r\nConnection:"):
            assert gone not in head
        assert b"Upgrade-Insecure-Requests: 1" in head


async def test_a_client_cannot_forge_what_the_gateway_vouches_for():
    async with ingress_gateway(answering(OK), "listen: {trusted_proxies: none}") as gateway:
        await gateway.get(
            "/",
            "X-Forwarded-For: 6.6.6.6",
            "X_Forwarded_For: 6.6.6.6",
            "Forwarded: for=6.6.6.6",
            "X-Forwarded-Proto: gopher",
            "X-Outrigger-Request: guess",
            "X-Request-Id: not valid!",
        )
        head = gateway.app.heads[0]
        for forged in (b"6.6.6.6", b"gopher", b"guess", b"not valid"):
            assert forged not in head
        assert b"X-Forwarded-For: 127.0.0.1\r\n" in head


async def test_a_request_id_is_taken_over_and_comes_back():
    async with ingress_gateway(answering(OK)) as gateway:
        answer = await gateway.get("/", "X-Request-Id: mine.1_2-3")
        assert b"X-Request-Id: mine.1_2-3\r\n" in gateway.app.heads[0]
        assert b"X-Request-Id: mine.1_2-3\r\n" in answer
        answer = await gateway.get("/", "X-Correlation-Id: theirs")
        assert b"X-Request-Id: theirs\r\n" in answer
        assert b"X-Correlation-Id: theirs\r\n" in gateway.app.heads[1]


async def test_the_apps_own_request_id_is_the_apps():
    async with ingress_gateway(
        answering(b"HTTP/1.1 200 OK\r\nX-Request-Id: own\r\nContent-Length: 0\r\n\r\n")
    ) as gateway:
        answer = await gateway.get("/", "X-Request-Id: mine")
        assert answer.count(b"X-Request-Id") == 1
        assert b"X-Request-Id: own\r\n" in answer


async def test_the_apps_answer_keeps_its_fields_their_order_and_their_spelling():
    app = answering(
        b"HTTP/1.1 418 I'm a teapot\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-A: \xc3\xa9\xff\r\n"
        b"Content-Length: 3\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nConnection: keep-alive, X-Hop\r\n\r\nabc"
    )
    async with ingress_gateway(app) as gateway:
        answer = await gateway.get()
        assert answer.startswith(
            b"HTTP/1.1 418 I'm a teapot\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-A: \xc3\xa9\xff\r\n"
        )
        assert b"X-Hop" not in answer
        assert b"Keep-Alive" not in answer
        assert b"Via: 1.1 outrigger\r\n" in answer
        assert body_of(answer) == b"abc"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"


async def test_chunks_and_trailers_pass():
    async with ingress_gateway(answering(CHUNKED)) as gateway:
        answer = await gateway.get()
        assert b"Transfer-Encoding: chunked\r\n" in answer
        assert body_of(answer) == b"3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n"


async def test_an_http10_client_gets_a_body_that_the_connections_end_delimits():
    async with ingress_gateway(answering(CHUNKED)) as gateway:
        answer = await gateway.raw(b"GET / HTTP/1.0\r\n\r\n")
        assert b"chunked" not in answer
        assert body_of(answer) == b"abcde"
        assert gateway.app.heads[0].startswith(b"GET / HTTP/1.1\r\n")
        assert b"\r\nHost: 127.0.0.1:" in gateway.app.heads[0]


async def test_an_http10_keep_alive_is_honoured():
    async with ingress_gateway(answering(OK)) as gateway:
        reader, writer = await gateway.connect()
        for _ in range(2):
            writer.write(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Connection: keep-alive\r\n" in head
            assert await reader.readexactly(2) == b"ok"
        writer.close()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_that_the_apps_close_delimits_arrives_whole(version):
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/%s 200 OK\r\nConnection: close\r\n\r\nfirst" % version)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"last")

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        assert body_of(await gateway.get()) == b"5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 99\r\n\r\n", b""),
        (
            "GET",
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nab",
            b"ab",
        ),
    ],
)
async def test_answers_without_a_body_keep_their_meaning_and_the_connection_goes_on(method, answer, body):
    async with ingress_gateway(answering(answer)) as gateway:
        reader, writer = await gateway.connect()
        for _ in range(3):
            writer.write(f"{method} / HTTP/1.1\r\nHost: t\r\nRange: bytes=0-1\r\n\r\n".encode())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
            assert head.split(b"\r\n")[0] == answer.split(b"\r\n")[0]
            for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
                assert line in head or b"Transfer-Encoding" in line
            assert await reader.readexactly(len(body)) == body
        writer.close()
        assert gateway.app.connections == 1


async def test_bodies_pass_framed_as_they_came():
    seen = []

    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            if b"chunked" in head.lower():
                data = await reader.readuntil(b"0\r\n\r\n")
            else:
                data = await reader.readexactly(5)
            seen.append(data)
            writer.write(OK)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        await gateway.get("/", method="POST", body=b"hello")
        assert b"Content-Length: 5\r\n" in app.heads[0]
        await gateway.raw(
            b"POST / HTTP/1.1\r\nHost: t\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5;x=y\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
        )
        assert seen == [b"hello", b"5\r\nhello\r\n0\r\n\r\n"]


async def test_a_body_streams_to_the_app_as_it_comes_and_the_answer_may_come_first():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            data = await reader.readexactly(4)
            writer.write(b"4\r\n" + data + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 12\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        for piece in (b"aaaa", b"bbbb", b"cccc"):
            writer.write(piece)
            assert await asyncio.wait_for(reader.readexactly(9), 3) == b"4\r\n" + piece + b"\r\n"
        assert await asyncio.wait_for(reader.readexactly(5), 3) == b"0\r\n\r\n"
        writer.close()


async def test_an_early_answer_reaches_a_client_that_is_still_sending():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        await asyncio.sleep(0.05)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10000000\r\n\r\n")
        sent = 0
        while sent < 2_000_000 and not reader.at_eof():
            writer.write(b"x" * 100_000)
            sent += 100_000
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 413 No\r\n")
        assert b"Connection: close\r\n" in answer
        assert answer.endswith(b"big")


async def test_expect_continue_is_between_client_and_app():
    async def script(reader, writer):
        head = await app.head(reader)
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_early_hints_pass():
    app = answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n" + OK)
    async with ingress_gateway(app) as gateway:
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_server_sent_events_are_never_held_back():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(3):
            await gate.acquire()
            writer.write(b"9\r\ndata: %d\n\n\r\n" % n)
        writer.write(b"0\r\n\r\n")
        await reader.read(1)

    gate = asyncio.Semaphore(0)
    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        reader, writer = await gateway.connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        for n in range(3):
            gate.release()
            assert await asyncio.wait_for(reader.readexactly(14), 3) == b"9\r\ndata: %d\n\n\r\n" % n
        writer.close()


async def test_pipelined_requests_are_answered_in_order():
    app = answering(*(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n for n in range(10)))
    async with ingress_gateway(app) as gateway:
        requests = b"".join(
            b"GET /%d HTTP/1.1\r\nHost: t\r\n%s\r\n" % (n, b"Connection: close\r\n" if n == 39 else b"")
            for n in range(40)
        )
        answer = await gateway.raw(requests)
        bodies = [part[:1] for part in answer.split(b"\r\n\r\n")[1:]]
        assert bodies == [b"%d" % (n % 10) for n in range(40)]


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ],
)
async def test_an_answer_that_breaks_off_breaks_off_downstream(broken):
    async def script(reader, writer):
        await app.head(reader)
        writer.write(broken)
        await writer.drain()

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        answer = await gateway.get()
        assert b"half" in answer
        assert not answer.endswith(b"0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await gateway.raw(b"GET / HTTP/1.0\r\n\r\n") if b"chunked" in broken else await _reset()


async def _reset():
    raise ConnectionResetError


async def test_an_app_that_refuses_or_breaks_before_the_first_byte_is_a_502(monkeypatch):
    monkeypatch.setattr(relay, "MAX_REFUSING_SECONDS", 0.5)

    async def script(reader, writer):
        await app.head(reader)

    app = Scripted(script)
    async with ingress_gateway(app) as gateway:
        answer = await gateway.get("/", "Origin: https://page.example")
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b'"urn:outrigger:app-unreachable"' in answer
        assert b"Access-Control-Allow-Origin: https://page.example\r\n" in answer
        await app.stop()
        app.address = ("127.0.0.1", 1)
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 502 ")


async def test_time_outs_before_the_head_and_between_bytes():
    async def script(reader, writer):
        head = await app.head(reader)
        if b"/stall" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await reader.read(1)

    app = Scripted(script)
    policy = "routes: [{name: quick, match: {path: /*}, timeout: 150ms}]"
    async with ingress_gateway(app, policy) as gateway:
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert b'"urn:outrigger:timeout"' in answer
        answer = await gateway.get("/stall")
        assert answer.endswith(b"half")
        await until(lambda: app.open == 0)


async def test_a_total_ends_a_stream_that_flows():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    app = Scripted(script)
    async with ingress_gateway(app, "routes: [{name: r, match: {path: /*}, timeout: 5s, total: 200ms}]") as gateway:
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert not answer.endswith(b"0\r\n\r\n")
        await until(lambda: app.open == 0)


async def test_a_request_waits_for_an_app_that_restarts_and_passes():
    app = answering(OK)
    async with ingress_gateway(app) as gateway:
        app.is_ready, app.state = False, "restarting"
        asking = asyncio.create_task(gateway.get())
        await asyncio.sleep(0.05)
        assert not asking.done()
        app.is_ready = True
        assert body_of(await asking) == b"ok"


async def test_an_app_that_stays_away_is_a_503_that_says_when_to_come_again():
    app = answering(OK)
    async with ingress_gateway(app, "app: {hold: 50ms}") as gateway:
        app.is_ready, app.state = False, "restarting"
        answer = await gateway.get()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in answer
        assert b'"urn:outrigger:app-starting"' in answer


async def test_drain_finishes_what_is_in_flight_and_closes_what_is_idle():
    gate = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        await gate.wait()
        writer.write(OK)
        await reader.read(1)

    app = Scripted(script)
    async with ingress_gateway(
        app, patience=__import__("proxy.ingress.listener", fromlist=["x"]).ClientTimeouts(sweep=0.05, drain=0.1)
    ) as gateway:
        idle_reader, idle = await gateway.connect()
        asking = asyncio.create_task(gateway.get())
        uploading_reader, uploading = await gateway.connect()
        uploading.write(b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 10\r\n\r\nhello")
        await until(lambda: len(app.heads) == 2)
        draining = asyncio.create_task(gateway.service.drain(5))
        assert await asyncio.wait_for(idle_reader.read(), 2) == b""
        assert not draining.done()
        uploading.write(b"world")
        gate.set()
        assert body_of(await asking) == b"ok"
        assert b"Connection: close" in head_of(await asyncio.wait_for(uploading_reader.read(), 2))
        assert await asyncio.wait_for(draining, 2)
        with pytest.raises(OSError):
            await gateway.connect()
        idle.close()
        uploading.close()


async def test_max_body_by_length_and_by_counting():
    app = answering(OK)
    async with ingress_gateway(app, "routes: [{name: r, match: {path: /*}, max_body: 10}]") as gateway:
        answer = await gateway.get("/", method="POST", body=b"x" * 11)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert app.heads == []
        answer = await gateway.raw(
            b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n" + b"8\r\nxxxxxxxx\r\n" * 2
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'"urn:outrigger:body-too-large"' in answer


async def test_a_trace_that_is_continued_carries_the_requests_token():
    app = answering(OK)
    async with ingress_gateway(app) as f:
        parent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await f.get("/", parent, "tracestate: a=1,outrigger=theirs", "tracestate: b=2")
        await f.get("/", "tracestate: a=1")
    continued, alone = (head.decode().lower() for head in app.heads)
    token = continued.split("x-outrigger-request: ")[1].split("\r\n")[0]
    assert f"tracestate: outrigger={token},a=1,b=2\r\n" in continued
    assert "tracestate: a=1\r\n" in alone
