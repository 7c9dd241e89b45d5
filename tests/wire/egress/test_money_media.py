"""Pictures and sound cost what they cost: whole, streamed, larger than is kept, timed out or cut."""

from __future__ import annotations

import asyncio
import gzip
import json

import aiohttp
import pytest
from aiohttp import web
from egress_gateway import QUICK, Vendor, egress_gateway, hangs, says, streams
from gateway_process import eventually

# The dollars are those of a million, so that a token of output costs a millionth.
PRICES = "prices: {gpt-image-2: {input: 0, output: 1}, gpt-4o-transcribe: {input: 1, output: 1}}"
DRAW = {"model": "gpt-image-2", "prompt": "a cat", "size": "1024x1024", "quality": "high"}
HIGH = 7024  # tokens of such an image
USAGE = {
    "input_tokens": 11,
    "output_tokens": 1000,
    "total_tokens": 1011,
    "input_tokens_details": {"text_tokens": 11, "image_tokens": 0},
}
BIG = "A" * (5 * 1024 * 1024)  # base64 of one image: more than is kept


def policy(more: str = "") -> str:
    return f"{QUICK}\n{PRICES}\n{more}".rstrip()


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def previews(count: int = 1, size: int = 1000) -> list[bytes]:
    return [event("image_generation.partial_image", b64_json="A" * size, partial_image_index=n) for n in range(count)]


def drawn(kind: str = "image_generation", picture: str = "A" * 1000, **fields: object) -> bytes:
    return event(f"{kind}.completed", b64_json=picture, **{"usage": USAGE, **fields})


async def draw(out, path: str = "/openai/v1/images/generations", **more: object) -> bytes:
    async with out.session.post(out.url + path, json={**DRAW, **more}) as answer:
        try:
            return await answer.read()
        except aiohttp.ClientError:
            return b""


async def cost(out) -> tuple[float, str]:
    """Millionths of a dollar, and what that rests on; nothing is reserved any more."""
    call = (await out.logged())[0]
    assert out.openai.billing.limits.reserved == 0
    return round(call["cost_usd"] * 1e6, 3), call["basis"]


# ── streamed ─────────────────────────────────────────────────────────────────────────────────────

STREAMED = {
    "one image": ([*previews(2), drawn()], 1000),
    "an edited one": ([drawn("image_edit")], 1000),
    "two images, each with its own usage": ([drawn(), drawn()], 2000),
    "images of five megabytes": ([*previews(2, len(BIG)), drawn(picture=BIG)], 1000),
    "usage before the picture": ([event("image_generation.completed", usage=USAGE, b64_json=BIG)], 1000),
    "no blank line at the end": ([*previews(), drawn()[:-2]], 1000),
    "lines that end with CRLF": ([drawn().replace(b"\n", b"\r\n")], 1000),
    "a byte at a time": ([bytes((byte,)) for byte in drawn(picture="A" * 50)], 1000),
}


@pytest.mark.parametrize("name", STREAMED)
async def test_a_streamed_image_is_paid_by_the_usage_of_its_last_event(tmp_path, name):
    events, tokens = STREAMED[name]
    async with egress_gateway(tmp_path, Vendor(streams(events)), openai=policy()) as out:
        assert await draw(out, stream=True) == b"".join(events), "and passes byte for byte"
        assert await cost(out) == (tokens, "reported")


async def test_a_stream_of_images_that_is_cut_is_paid_by_what_was_asked_for(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams(previews(), then="cut")), openai=policy()) as out:
        await draw(out, stream=True, partial_images=2)
        assert await cost(out) == (HIGH + 2 * 100, "estimated")


async def test_images_that_were_asked_for_and_not_shown_may_be_drawn_all_the_same(tmp_path):
    async with egress_gateway(tmp_path, Vendor(streams([drawn()], then="cut")), openai=policy()) as out:
        await draw(out, stream=True, n=3)
        assert await cost(out) == (3 * HIGH, "estimated")


async def test_a_stream_that_refuses_to_draw_costs_nothing(tmp_path):
    refusal = event("error", error={"type": "image_generation_user_error", "code": "moderation_blocked"})
    async with egress_gateway(tmp_path, Vendor(streams([refusal])), openai=policy()) as out:
        await draw(out, stream=True)
        assert (await cost(out))[0] == 0


async def test_a_response_that_shows_pictures_passes_whatever_its_events_weigh(tmp_path):
    """Three pictures of five megabytes are in the one event that ends it."""
    item = {"type": "image_generation_call", "result": BIG, "status": "completed", "id": "ig"}
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
    tool_usage = {"image_gen": {"input_tokens": 5, "output_tokens": 3000}}
    whole = {"id": "r", "model": "m", "output": [item] * 3, "usage": usage, "tool_usage": tool_usage, "tools": []}
    events = [
        event("response.created", sequence_number=0, response={"id": "r", "model": "m", "output": []}),
        event("response.output_item.done", sequence_number=1, output_index=0, item=item),
        event("response.completed", sequence_number=2, response=whole),
    ]
    prices = "prices: {m: {input: 0, output: 1}}\nunknown_price: zero"
    async with egress_gateway(tmp_path, Vendor(streams(events)), openai=f"{QUICK}\n{prices}") as out:
        body = {"model": "m", "input": "draw", "stream": True}
        async with out.session.post(f"{out.url}/openai/v1/responses", json=body) as answer:
            assert await answer.read() == b"".join(events)
        assert (await cost(out))[0] == 7


# ── larger than is kept ──────────────────────────────────────────────────────────────────────────

PICTURES = [{"b64_json": BIG, "revised_prompt": 'He wrote "usage": {"output_tokens": 5}'}]
LARGE = {
    "usage at the end": {"created": 1, "data": PICTURES, "size": "1024x1024", "usage": USAGE},
    "usage at the beginning": {"created": 1, "usage": USAGE, "data": PICTURES},
    "usage of something else within": {"data": [*PICTURES, {"usage": {"output_tokens": 5}}], "usage": USAGE, "x": {}},
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", LARGE)
async def test_usage_is_read_of_an_answer_that_is_larger_than_is_kept(tmp_path, name, packed):
    body = json.dumps(LARGE[name]).encode()
    # Incompressible, as pictures are: else there would be nothing large about it.
    noise = "".join(f"{number:x}" for number in range(900_000)) if packed else ""
    body = body.replace(b"AAAA", noise.encode() or b"AAAA", 1)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        if packed:
            data = gzip.compress(body, 0)
            return web.Response(body=data, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})
        return web.Response(body=body, content_type="application/json")

    async with egress_gateway(tmp_path, Vendor(answer), openai=policy()) as out:
        assert await draw(out) == body
        assert await cost(out) == (1000, "reported")


async def test_usage_is_read_of_embeddings_that_are_larger_than_is_kept(tmp_path):
    vectors = [{"object": "embedding", "index": n, "embedding": [0.123456789] * 2000} for n in range(220)]
    body = {"object": "list", "data": vectors, "model": "m", "usage": {"prompt_tokens": 4000, "total_tokens": 4000}}
    prices = "prices: {m: {input: 1, output: 0}}"
    async with egress_gateway(tmp_path, Vendor(says(body)), openai=f"{QUICK}\n{prices}") as out:
        async with out.session.post(f"{out.url}/openai/v1/embeddings", json={"model": "alias", "input": "x"}) as answer:
            assert len(await answer.read()) > 4 * 1024 * 1024
        assert await cost(out) == (4000, "reported")


BY_IMAGE = "prices: {gpt-image-2: {input: 0, output: 0, per_image: 0.04}}"


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "large"])
async def test_a_model_that_is_priced_by_the_image_is_so_in_every_shape(tmp_path, streamed):
    answer = streams([drawn(), drawn()]) if streamed else says({"data": [*PICTURES, *PICTURES], "usage": USAGE})
    async with egress_gateway(tmp_path, Vendor(answer), openai=f"{QUICK}\n{BY_IMAGE}") as out:
        await draw(out, n=2, stream=streamed)
        assert await cost(out) == (80_000, "reported")


# ── what is reserved, and paid where nothing is known ────────────────────────────────────────────


@pytest.mark.parametrize(
    ("asked", "tokens"),
    [
        ({}, HIGH),
        ({"n": 4}, 4 * HIGH),
        ({"quality": "low"}, 196),
        ({"quality": "auto", "size": "auto"}, HIGH),
        ({"size": "1536x1024"}, 5488),
        ({"stream": True, "partial_images": 3}, HIGH + 300),
    ],
)
async def test_an_image_is_reserved_by_size_quality_and_number(tmp_path, asked, tokens):
    vendor = Vendor(hangs())
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        call = asyncio.ensure_future(draw(out, **asked))
        await eventually(lambda: vendor.open)
        assert out.openai.billing.limits.reserved == tokens * 1000
        call.cancel()
        assert await cost(out) == (tokens, "estimated"), "given up, it is drawn all the same"


async def test_an_image_that_timed_out_is_paid(tmp_path):
    async with egress_gateway(tmp_path, Vendor(hangs()), openai=policy("timeout: {total: 300ms}")) as out:
        await draw(out)
        assert await cost(out) == (HIGH, "estimated")


async def test_pictures_do_not_pass_a_cap_at_once(tmp_path):
    gate = asyncio.Event()

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        await gate.wait()
        return web.json_response({"data": [], "usage": USAGE})

    async with egress_gateway(tmp_path, Vendor(answer), openai=policy("cap: {total: $0.02/d}")) as out:
        calls = [asyncio.ensure_future(draw(out)) for _ in range(10)]
        await eventually(lambda: sum(call.done() for call in calls) == 8)
        gate.set()
        answers = await asyncio.gather(*calls)
        assert sum(b"cost_cap_exceeded" in one for one in answers) == 8, "two of 0.7 cents fit into two cents"


# ── sound ────────────────────────────────────────────────────────────────────────────────────────

HEARD = {"type": "tokens", "input_tokens": 170, "output_tokens": 30, "total_tokens": 200}


def sound(*fields: tuple[str, str], seconds: float = 10.0) -> aiohttp.FormData:
    form = aiohttp.FormData()
    for name, value in fields:
        form.add_field(name, value)
    form.add_field("file", b"\0" * int(seconds * 4000), filename="a.mp3", content_type="audio/mpeg")
    return form


async def test_a_streamed_transcription_is_paid_by_the_usage_of_its_last_event(tmp_path):
    events = [event("transcript.text.delta", delta="hello "), event("transcript.text.done", text="hello", usage=HEARD)]
    async with egress_gateway(tmp_path, Vendor(streams(events)), openai=policy()) as out:
        form = sound(("model", "gpt-4o-transcribe"), ("stream", "true"))
        async with out.session.post(f"{out.url}/openai/v1/audio/transcriptions", data=form) as answer:
            assert await answer.read() == b"".join(events)
        assert await cost(out) == (200, "reported")


async def test_a_transcription_that_is_cut_is_paid_by_its_sound_and_its_text(tmp_path):
    events = [event("transcript.text.delta", delta="hello " * 100)]
    async with egress_gateway(tmp_path, Vendor(streams(events, then="cut")), openai=policy()) as out:
        form = sound(("model", "gpt-4o-transcribe"), ("stream", "true"))
        async with out.session.post(f"{out.url}/openai/v1/audio/transcriptions", data=form) as answer:
            with pytest.raises(aiohttp.ClientError):
                await answer.read()
        paid, basis = await cost(out)
    assert basis == "estimated"
    assert 170 + 150 <= paid <= 340


async def test_speech_that_streams_events_is_paid_by_what_it_reports(tmp_path):
    usage = {"input_tokens": 10, "output_tokens": 90, "total_tokens": 100}
    events = [event("speech.audio.delta", audio="A" * 100), event("speech.audio.done", usage=usage)]
    body = {"model": "gpt-4o-transcribe", "input": "hello", "stream_format": "sse"}
    async with egress_gateway(tmp_path, Vendor(streams(events)), openai=policy()) as out:
        async with out.session.post(f"{out.url}/openai/v1/audio/speech", json=body) as answer:
            assert await answer.read() == b"".join(events)
        assert await cost(out) == (100, "reported")
