"""What makes no sense, from either side: each a clear error in the dialect's shape, logged once with its reason."""

import asyncio
import io
import json

import pytest
from aiohttp import web
from egress_gateway import CHAT, QUICK, USAGE, Vendor, chunks, completion, egress_gateway, errs, says, streams

STREAM = {**CHAT, "stream": True}
TWICE = "retry: {attempts: 2, backoff: {first: 1ms, max: 1ms}}"


async def raw(out, data: bytes) -> tuple[bytes, dict]:
    """Bytes to the listener; the head and the JSON that come back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, json.loads(body)


def pages(status: int = 200):
    return says(b"<html>down for maintenance</html>", status, content_type="text/html")


# What the upstream answers to a chat completion, the status that the app gets, and a word of the message.
ANSWERS = {
    "a page": (pages(), 502, "page"),
    "no JSON": (says(b"well", content_type="application/json"), 502, "no JSON object"),
    "half of its JSON": (says(json.dumps(completion())[:-9].encode(), content_type="application/json"), 502, "no JSON"),
    "nothing": (says(b"", content_type="application/json"), 502, "no JSON object"),
    "a list": (says([1]), 502, "no JSON object"),
    "JSON of another shape": (says({"status": "ok"}), 502, "choices"),
    "an error with 200": (says({"error": {"message": "overloaded", "type": "server_error"}}), 500, "overloaded"),
    "an error with 200 and a status in it": (says({"error": {"message": "bad key", "code": 401}}), 401, "bad key"),
    "an error with 200 in a word": (says({"error": "no capacity"}), 502, "no capacity"),
    "a head of 100 KiB": (says(x_big="x" * 100_000), 502, "no sound HTTP"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_is_none_is_tried_again_and_then_a_clear_error(tmp_path, name):
    answer, status, word = ANSWERS[name]
    vendor = Vendor(answer)
    async with egress_gateway(tmp_path, vendor, openai=TWICE) as out:
        got, headers, text = await out.chat()
        assert (got, headers["Content-Type"].partition(";")[0]) == (status, "application/json")
        assert word in text
        assert "error" in json.loads(text)
        assert headers["x-outrigger-attempts"] == ("1" if status == 401 else "2")
        if status >= 500:
            assert headers["x-should-retry"] == "false"
        [line] = await out.logged()
        assert (line["status"], bool(line["reason"])) == (status, True)


async def test_an_answer_that_made_no_sense_once_is_mended(tmp_path):
    async with egress_gateway(tmp_path, Vendor(pages(), says(b"{"), says({}), says()), openai=QUICK) as out:
        status, headers, text = await out.chat()
        assert (status, headers["x-outrigger-attempts"], json.loads(text)) == (200, "4", completion())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("responses", {"id": "r", "object": "response", "status": "failed", "error": {"message": "x"}, "output": []}),
        ("embeddings", {"object": "list", "data": []}),
        ("moderations", {"results": []}),
        ("completions", {"choices": []}),
        ("models", {"odd": True}),
        ("audio/transcriptions", {"text": "well"}),
        ("images/generations", {"data": []}),
    ],
)
async def test_what_is_sound_passes(tmp_path, path, body):
    async with egress_gateway(tmp_path, Vendor(says(body))) as out:
        async with out.session.post(f"{out.url}/openai/v1/{path}", json={"model": "m"}) as answer:
            assert (answer.status, await answer.json()) == (200, body)
            assert answer.headers["x-outrigger-attempts"] == "1"


async def test_sound_passes_as_it_is_made(tmp_path):
    second = asyncio.Event()

    async def speech(request):
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
        await response.prepare(request)
        await response.write(b"first")
        await second.wait()
        await response.write(b"second")
        return response

    async with egress_gateway(tmp_path, Vendor(speech)) as out:
        async with out.session.post(f"{out.url}/openai/v1/audio/speech", json={"model": "tts"}) as answer:
            assert await asyncio.wait_for(answer.content.readany(), 5) == b"first"
            second.set()
            assert await answer.read() == b"second"


# ── from the app ─────────────────────────────────────────────────────────────────────────────


async def test_an_unknown_upstream_is_refused_and_logged_once(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        status, headers, text = await out.chat(upstream="opena")
        assert (status, json.loads(text)["error"]["code"]) == (404, "unknown_upstream")
        assert "openai" in json.loads(text)["error"]["message"]
        assert (headers["x-outrigger-attempts"], headers["x-outrigger-cache"]) == ("0", "off")
        assert headers["x-should-retry"] == "false"
        [line] = await out.logged()
        assert (line["refused"], line["outcome"]) == ("unknown_upstream", "refused")
        assert "opena" in line["reason"]


HEADS = {
    "a field of 100 KiB": (b"GET /openai/v1/models HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (b"s" * 100_000), 431),
    "a path of 100 KiB": (b"GET /openai/v1/%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"s" * 100_000), 431),
    "a name with a space": (b"GET /openai/v1/models HTTP/1.1\r\nHost: x\r\nA B: c\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "two lengths": (b"POST /openai/v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_head_that_nobody_reads_is_a_typed_refusal(tmp_path, name):
    data, status = HEADS[name]
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        head, body = await raw(out, data)
        assert head.split()[1] == b"%d" % status
        assert body["error"]["code"] == ("header_too_large" if status == 431 else "bad_request")
        assert b"x-should-retry: false" in head
        assert b"x-outrigger-attempts: 0" in head
        [line] = await out.logged()
        assert (line["status"], line["reason"]) == (status, body["error"]["message"])
        assert "sss" not in out.log.read_text()  # a head may hold a key
    assert not vendor.requests


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'"x"', b'{"messages": 3, "model": [], "stream": "yes"}', b""])
async def test_odd_bodies_are_the_vendors_to_judge(tmp_path, body):
    vendor = Vendor(errs(400))
    async with egress_gateway(tmp_path, vendor) as out:
        async with out.session.post(f"{out.url}/openai/v1/chat/completions", data=body) as answer:
            assert (answer.status, (await answer.json())["error"]["message"]) == (400, "no")
        [line] = await out.logged()
        assert (line["status"], line["reason"]) == (400, "status 400")
    assert vendor.requests[0][3] == body


async def test_a_body_over_4_mib_passes_unread_and_its_stream_is_watched_all_the_same(tmp_path):
    body = json.dumps({**STREAM, "messages": [{"role": "user", "content": "x" * 5_000_000}]}).encode()
    vendor = Vendor(streams(chunks("a")[:2], then="cut"))
    async with egress_gateway(tmp_path, vendor) as out:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip, br"}
        url, data = f"{out.url}/openai/v1/chat/completions", io.BytesIO(body)
        async with out.session.post(url, data=data, headers=headers) as answer:
            assert answer.status == 200
            assert b"upstream_unreachable" in await answer.read()
    assert vendor.requests[0][3] == body  # nothing was put into it
    assert vendor.requests[0][2]["Accept-Encoding"] == "identity"


async def test_the_upstreams_word_for_more_retries_ends_with_ours(tmp_path):
    async with egress_gateway(tmp_path, Vendor(errs(500, x_should_retry="true")), openai=TWICE) as out:
        status, headers, _ = await out.chat()
        assert (status, headers.getall("x-should-retry"), headers["x-outrigger-attempts"]) == (500, ["false"], "2")


# ── streams, byte by byte ────────────────────────────────────────────────────────────────────


def dribbles(data: bytes, step: int):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for at in range(0, len(data), step):
            await response.write(data[at : at + step])
            if at < 400:
                await asyncio.sleep(0)
        return response

    return answer


def unusual_stream(ending: bytes, *, blank: bool = True) -> tuple[bytes, bytes]:
    """A stream with everything that is allowed in one, and without the usage that we asked for."""
    parts = []
    for event in chunks("ä", "€ and 😀", usage=True):
        text = json.dumps(json.loads(event[6:]), ensure_ascii=False) if event[6:7] == b"{" else "[DONE]"
        lines = [b": keep-alive", b"id: 7"]
        if '"choices": [{"index": 0, "delta": {"content"' in text:
            first, comma, rest = text.partition(", ")
            lines += [b"data:" + (first + comma).encode(), b"data: " + rest.encode()]
        else:
            lines.append(b"data: " + text.encode())
        parts.append(ending.join(lines) + ending + ending)
    whole = b"".join(parts)
    kept = b"".join(part for part in parts if b"total_tokens" not in part)
    if not blank:
        whole = whole[: -len(ending) * 2]
        kept = kept[: -len(ending) * 2] + b"\n\n"
    return whole, kept


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("blank", [True, False], ids=["blank", "no blank line at the end"])
async def test_a_stream_passes_byte_for_byte_however_it_comes(tmp_path, ending, step, blank):
    whole, kept = unusual_stream(ending, blank=blank)
    async with egress_gateway(tmp_path, Vendor(dribbles(whole, step))) as out:
        status, headers, text = await out.chat(STREAM)
        assert (status, headers["x-outrigger-attempts"]) == (200, "1")
        assert text.encode() == kept
        [line] = await out.logged()
        assert (line["outcome"], line["output_tokens"]) == ("ok", USAGE["completion_tokens"])


async def test_a_choice_that_ends_before_another_begins_is_not_the_end(tmp_path):
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    choices = [(0, "a", None), (0, "", "stop"), (1, "b", None)]
    events = [
        b"data: %s\n\n"
        % json.dumps({**head, "choices": [{"index": n, "delta": {"content": said}, "finish_reason": end}]}).encode()
        for n, said, end in choices
    ]
    async with egress_gateway(tmp_path, Vendor(streams(events))) as out:
        _, _, text = await out.chat({**STREAM, "n": 2})
        assert "upstream_unreachable" in text


async def test_a_slow_reader_slows_the_upstream_and_not_our_memory(tmp_path):
    sent = 0
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % (b"x" * 10_000)

    async def endless(request):
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(event)
            sent += len(event)

    vendor = Vendor(endless)
    async with egress_gateway(tmp_path, vendor) as out:
        url = f"{out.url}/openai/v1/chat/completions"
        async with out.session.post(url, json=STREAM) as answer:
            await answer.content.readany()
            before = -1
            while sent != before:  # until everything between vendor and app is full
                before = sent
                await asyncio.sleep(0.3)
            assert sent < 40_000_000  # the sockets' own buffers, which the system grows, and little more
            taken = 0
            while taken < 2 * before:
                taken += len(await asyncio.wait_for(answer.content.readany(), 10))
        assert sent > before
