"""Uploads are priced by the model that they name, wherever in them that stands, and pass as they come."""

from __future__ import annotations

import asyncio
import io
import json

import aiohttp
import pytest
from egress_gateway import CHAT, QUICK, Vendor, completion, egress_gateway, says

PRICES = "prices: {cheap: {input: 1, output: 1}, dear: {input: 100, output: 100}, gpt-image-2: {input: 0, output: 1}}"
HEARD = {"text": "hello", "usage": {"type": "tokens", "input_tokens": 10, "output_tokens": 10, "total_tokens": 20}}
BOUNDARY = "----a-boundary"


def policy(more: str = "") -> str:
    return f"{QUICK}\n{PRICES}\n{more}".rstrip()


def form(*parts: tuple[str, str | bytes]) -> bytes:
    """Bytes are a file."""
    text = b""
    for name, value in parts:
        file = '; filename="a.mp3"\r\nContent-Type: audio/mpeg' if isinstance(value, bytes) else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        text += head.encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return text + f"--{BOUNDARY}--\r\n".encode()


async def upload(out, *pieces: bytes, path: str = "/openai/v1/audio/transcriptions", chunked: bool = False) -> int:
    """In just these pieces, each on its way before the next."""
    reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {sum(map(len, pieces))}"
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n{length}\r\n".encode())
    writer.write(b"Connection: close\r\n\r\n")
    for piece in pieces:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
        await asyncio.sleep(0)
    if chunked:
        writer.write(b"0\r\n\r\n")
    status = int((await reader.readline()).split()[1])
    await reader.read()
    writer.close()
    return status


SOUND = b"\r\n--" + BOUNDARY[:-1].encode() + b"\0" * 4000 + b'\r\nname="model"\r\n\r\ncheap\r\n'
LAST = form(("file", SOUND), ("language", "en"), ("model", "dear"))


async def last(out, count: int = 1) -> dict:
    call = (await out.logged(count))[-1]
    assert out.openai.billing.limits.reserved == 0
    return call


@pytest.mark.parametrize(
    "pieces",
    [
        [LAST],
        [LAST[:300], LAST[300:]],
        [LAST[at : at + 7] for at in range(0, len(LAST), 7)],
        [LAST[:-60], *(LAST[-60:][at : at + 1] for at in range(60))],
    ],
    ids=["whole", "two", "sevens", "a byte at a time"],
)
async def test_a_model_behind_the_file_is_the_one_that_is_paid(tmp_path, pieces):
    vendor = Vendor(says(completion(model="cheap")), says(HEARD))
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        await out.chat({**CHAT, "model": "cheap"})  # the last model that was seen
        assert await upload(out, *pieces) == 200
        call = await last(out, 2)
    assert vendor.requests[-1][3] == LAST, "not a byte is changed"
    assert (call["model"], call["cost_usd"], call["basis"]) == ("dear", 0.002, "reported")


async def test_a_model_before_the_file_still_is(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says(HEARD)), openai=policy()) as out:
        assert await upload(out, form(("model", "dear"), ("file", SOUND))) == 200
        call = await last(out)
    assert (call["model"], call["cost_usd"], call["basis"]) == ("dear", 0.002, "reported")


@pytest.mark.parametrize(
    "parts",
    [
        [("file", SOUND)],
        [("file", SOUND), ("model", "x" * 5000)],
        [("model", "dear"), ("file", SOUND), ("model", "cheap")],
        [("file", SOUND), ("model", b"dear")],
    ],
    ids=["none", "one that is too long", "two", "a file of that name"],
)
async def test_a_model_that_is_guessed_is_an_estimate(tmp_path, parts):
    vendor = Vendor(says(HEARD))
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        await upload(out, form(("model", "cheap"), ("file", b"")))
        await upload(out, form(*parts))
        call = await last(out, 2)
    assert call["basis"] == "estimated"
    assert call["cost_usd"] > 0


async def test_the_last_model_of_a_chat_is_no_guess_for_sound(tmp_path):
    vendor = Vendor(says(completion(model="cheap")), says(HEARD))
    async with egress_gateway(tmp_path, vendor, openai=policy("unknown_price: zero")) as out:
        await out.chat({**CHAT, "model": "cheap"})
        await upload(out, form(("file", SOUND)))
        assert (await last(out, 2))["cost_usd"] == 0


async def test_an_upload_is_under_way_before_it_has_come(tmp_path):
    """Nothing waits for the fields: the vendor has the first bytes while the app still writes."""
    seen = asyncio.Event()

    class Slow(Vendor):
        async def _handle(self, request):
            assert await request.content.readany()
            seen.set()
            return await super()._handle(request)

    async with egress_gateway(tmp_path, Slow(says(HEARD)), openai=policy()) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        writer.write(b"POST /openai/v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n")
        writer.write(f"Content-Type: {kind}\r\nContent-Length: {len(LAST)}\r\n\r\n".encode() + LAST[:1000])
        await asyncio.wait_for(seen.wait(), 5)
        writer.write(LAST[1000:])
        assert b"200" in await reader.readline()
        await reader.read()
        writer.close()
        assert (await last(out))["model"] == "dear"


async def test_an_edit_of_an_image_is_estimated_by_its_fields_wherever_they_stand(tmp_path):
    parts = [("image", b"\x89PNG"), ("model", "gpt-image-2"), ("n", "2"), ("quality", "high"), ("size", "1024x1024")]
    async with egress_gateway(tmp_path, Vendor(says({"created": 1, "data": [{}]})), openai=policy()) as out:
        await upload(out, form(*parts), path="/openai/v1/images/edits")
        call = await last(out)
    assert (call["model"], call["cost_usd"], call["basis"]) == ("gpt-image-2", 0.014048, "estimated")


async def test_an_upload_of_no_told_length_is_paid_by_the_bytes_that_came(tmp_path):
    vendor = Vendor(says(b"hello", Content_Type="text/plain"))
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        body = form(("model", "cheap"), ("file", b"\0" * 235_000))
        await upload(out, *(body[at : at + 50_000] for at in range(0, len(body), 50_000)), chunked=True)
        call = await last(out)
    assert call["basis"] == "estimated"
    assert 0.001 <= call["cost_usd"] < 0.0012, "a thousand tokens of sound, and a word"


@pytest.mark.parametrize("behind", [False, True], ids=["before the picture", "behind it"])
async def test_json_that_is_too_large_to_be_kept_says_which_model_is_asked(tmp_path, behind):
    picture = {"images": [{"image_url": "data:image/png;base64," + "A" * (5 * 1024 * 1024)}]}
    named = {"prompt": "x", "model": "gpt-image-2", "user": "ada", "n": 2}
    body = json.dumps({**picture, **named} if behind else {**named, **picture}).encode()
    usage = {"input_tokens": 5, "output_tokens": 900, "total_tokens": 905}
    vendor = Vendor(says({"data": [{}], "usage": usage}))
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        url, kind = f"{out.url}/openai/v1/images/edits", {"Content-Type": "application/json"}
        async with out.session.post(url, data=io.BytesIO(body), headers=kind) as answer:
            assert answer.status == 200
        call = await last(out)
    assert vendor.requests[0][3] == body
    assert (call["model"], call["cost_usd"], call["basis"]) == ("gpt-image-2", 0.0009, "reported")
    assert call["user"] == ("unattributed" if behind else "ada"), "who asks must be known before"


async def test_the_sdks_upload_is_what_it_was(tmp_path):
    vendor = Vendor(says(HEARD))
    async with egress_gateway(tmp_path, vendor, openai=policy()) as out:
        parts = aiohttp.FormData()
        parts.add_field("file", b"\0" * 1000, filename="a.mp3", content_type="audio/mpeg")
        parts.add_field("model", "dear")
        url = f"{out.url}/openai/v1/audio/transcriptions"
        async with out.session.post(url, data=parts) as answer:
            assert json.loads(await answer.read()) == HEARD
        assert (await last(out))["cost_usd"] == 0.002
