"""Answers that are compressed on their way (`routes[].compress`), over real sockets."""

import asyncio
import zlib

import pytest
from ingress_gateway import Scripted, answering, ingress_gateway

from proxy.ingress.compression.encoders import Encoders

POLICY = "routes: [{name: all, match: {path: /*}, compress: auto}]"
TEXT = b"<p>The same words, again and again.</p>\n" * 100
ENCODERS = Encoders.load()


def answer(body=TEXT, *fields, status="200 OK", kind="text/html"):
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parse(raw):
    """Status, fields by their lower-case names, and the body with its chunks put together."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        fields[name] = f"{fields[name]}, {value.strip()}" if name in fields else value.strip()
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if not int(size, 16):
                break
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        rest = body
    return int(status.split()[1]), fields, rest


@pytest.mark.parametrize("coding", ENCODERS.whole)
async def test_text_goes_out_in_the_coding_that_the_client_takes(coding):
    async with ingress_gateway(answering(answer()), POLICY) as g:
        raw = await g.get("/", f"Accept-Encoding: {coding}")
        status, fields, body = parse(raw)
    assert status == 200
    assert fields["content-encoding"] == coding
    assert fields["vary"] == "Accept-Encoding"
    assert "content-length" not in fields
    assert len(body) < len(TEXT) / 4
    assert ENCODERS.decoders[coding](body) == TEXT


@pytest.mark.parametrize("said", ["", "gzip;q=0", "identity", "gzip;q=0, br;q=0, zstd;q=0, *;q=1", "deflate"])
async def test_who_takes_no_coding_gets_it_plain_and_a_vary(said):
    async with ingress_gateway(answering(answer()), POLICY) as g:
        _, fields, body = parse(await g.get("/", *([f"Accept-Encoding: {said}"] if said else [])))
    assert "content-encoding" not in fields
    assert fields["vary"] == "Accept-Encoding"
    assert body == TEXT


@pytest.mark.parametrize(
    ("given", "vary"),
    [
        (answer(TEXT, "Cache-Control: no-transform"), None),
        (answer(TEXT, "Content-Encoding: br"), None),
        (answer(b"small"), None),
        (answer(kind="image/png"), None),
        (answer(TEXT, "Content-Range: bytes 0-9/100", status="206 Partial Content"), None),
    ],
)
async def test_what_may_not_be_coded_passes_as_it_came(given, vary):
    async with ingress_gateway(answering(given), POLICY) as g:
        _, fields, body = parse(await g.get("/", "Accept-Encoding: gzip"))
    assert fields.get("content-encoding") in (None, "br")
    assert fields.get("vary") is vary
    assert body == given.partition(b"\r\n\r\n")[2]
    assert fields["content-length"] == str(len(body))


async def test_a_vary_of_the_app_is_kept_beside_ours_and_ranges_are_not_offered():
    async with ingress_gateway(answering(answer(TEXT, "Vary: Cookie", "Accept-Ranges: bytes")), POLICY) as g:
        _, fields, _ = parse(await g.get("/", "Accept-Encoding: gzip"))
        _, plain, _ = parse(await g.get("/"))
    assert fields["vary"] == "Cookie, Accept-Encoding"
    assert "accept-ranges" not in fields
    assert plain["accept-ranges"] == "bytes"


@pytest.mark.parametrize("compares", ["texts", "as the RFC says"])
async def test_a_tag_made_weak_is_still_good_to_revalidate_with(compares):
    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            asked = next(
                (line[15:].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"if-none-match:")), b""
            )
            same = asked == b'"v1"' if compares == "texts" else asked.removeprefix(b"W/") == b'"v1"'
            writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "v1"\r\n\r\n' if same else answer(TEXT, 'ETag: "v1"'))

    app = Scripted(script)
    async with ingress_gateway(app, POLICY) as g:
        _, first, _ = parse(await g.get("/", "Accept-Encoding: gzip"))
        assert first["etag"] == 'W/"v1"'
        status, again, body = parse(await g.get("/", "Accept-Encoding: gzip", f"If-None-Match: {first['etag']}"))
        assert (status, again["etag"], body) == (304, 'W/"v1"', b"")
        assert again["vary"] == "Accept-Encoding"
        # One that the client got plain, and whose tag is strong, stays strong.
        _, plain, _ = parse(await g.get("/"))
        assert plain["etag"] == '"v1"'
        status, again, _ = parse(await g.get("/", 'If-None-Match: "v1"'))
        assert (status, again["etag"]) == (304, '"v1"')


async def test_a_weak_tag_of_the_apps_own_comes_back_as_it_was():
    async with ingress_gateway(app := answering(answer(TEXT, 'ETag: W/"v1"')), POLICY) as g:
        _, fields, _ = parse(await g.get("/", "Accept-Encoding: gzip"))
        assert fields["etag"] == 'W/"v1"'
        await g.get("/", 'If-None-Match: W/"v1"')
    assert b'If-None-Match: W/"v1"\r\n' in app.heads[1]


async def test_head_says_what_get_would_and_has_no_body():
    async def script(reader, writer):
        while True:
            head = await app.head(reader)
            whole = answer(TEXT, 'ETag: "v1"')
            writer.write(whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head.startswith(b"HEAD") else whole)

    app = Scripted(script)
    async with ingress_gateway(app, POLICY) as g:
        raw = await g.get("/", "Accept-Encoding: gzip", method="HEAD")
        _, fields, body = parse(raw)
        _, whole, _ = parse(await g.get("/", "Accept-Encoding: gzip"))
    assert body == b""
    for name in ("content-encoding", "vary", "etag"):
        assert fields[name] == whole[name]
    assert "content-length" not in fields


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_without_a_body_stays_one(status):
    given = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\n\r\n".encode()
    async with ingress_gateway(answering(given), POLICY) as g:
        code, fields, body = parse(await g.get("/", "Accept-Encoding: gzip"))
    assert code == int(status[:3])
    assert "content-encoding" not in fields
    assert "transfer-encoding" not in fields
    assert body == b""


@pytest.mark.parametrize("coding", ENCODERS.streams)
async def test_each_event_of_a_stream_arrives_when_it_was_sent(coding):
    go_on = asyncio.Event()

    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(3):
            event = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await go_on.wait()
            go_on.clear()
        writer.write(b"0\r\n\r\n")

    app = Scripted(script)
    async with ingress_gateway(app, POLICY) as g:
        reader, writer = await g.connect()
        writer.write(f"GET / HTTP/1.1\r\nHost: t\r\nAccept-Encoding: {coding}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        coded = b""
        for number in range(3):
            async with asyncio.timeout(10):
                while (decode_begun(coding, coded) or b"").count(b"data:") <= number:
                    size = int((await reader.readuntil(b"\r\n")), 16)
                    coded += (await reader.readexactly(size + 2))[:-2]
            go_on.set()
        writer.close()


def decode_begun(coding, data):
    """What the beginning of a coded body decodes to."""
    if not data:
        return b""
    if coding == "gzip":
        return zlib.decompressobj(31).decompress(data)
    if coding == "br":
        import brotli

        return brotli.Decompressor().process(data)
    try:
        from compression import zstd
    except ImportError:
        from backports import zstd
    return zstd.ZstdDecompressor().decompress(data)


async def test_a_large_body_that_breaks_off_breaks_off_for_the_client_too():
    async def script(reader, writer):
        await app.head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 100000\r\n\r\n" + TEXT)
        await writer.drain()
        writer.close()

    app = Scripted(script)
    async with ingress_gateway(app, POLICY) as g:
        raw = await g.get("/", "Accept-Encoding: gzip")
    assert not raw.endswith(b"0\r\n\r\n")


async def test_a_large_answer_of_many_pieces_arrives_whole():
    body = b"".join(b"line %d of many\n" % number for number in range(200_000))
    async with ingress_gateway(answering(answer(body)), POLICY) as g:
        _, fields, coded = parse(await g.get("/", "Accept-Encoding: gzip"))
    assert zlib.decompress(coded, 31) == body
