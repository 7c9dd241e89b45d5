"""Some hosts answer 200 with an error in it, of pictures and sound too: that is none of what was asked for."""

import json

import pytest
from egress_gateway import QUICK, Vendor, egress_gateway, says

PRICES = (
    f"{QUICK}\nprices: {{drawn: {{input: 5, output: 10}}, spoken: {{characters: 15}}, heard: {{input: 2, output: 4}}}}"
)
WRONG = {"error": {"message": "busy", "code": 503}, "user_id": "u"}
UPLOAD = (
    b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\nheard\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n...\r\n--edge--\r\n'
)
ASKED = {
    "/images/generations": json.dumps({"model": "drawn", "prompt": "a hat"}).encode(),
    "/audio/speech": json.dumps({"model": "spoken", "input": "hello", "voice": "alloy"}).encode(),
    "/audio/transcriptions": UPLOAD,
}


async def ask(out, path, body):
    kind = "application/json" if body[:1] == b"{" else "multipart/form-data; boundary=edge"
    async with out.session.post(f"{out.url}/openai/v1{path}", data=body, headers={"Content-Type": kind}) as answer:
        return answer.status, await answer.read()


@pytest.mark.parametrize("path", ASKED)
async def test_it_has_the_status_of_its_kind_and_costs_nothing(tmp_path, path):
    async with egress_gateway(
        tmp_path, Vendor(says(WRONG)), openai=PRICES.replace("{backoff", "{attempts: 1, backoff")
    ) as out:
        status, body = await ask(out, path, ASKED[path])
        assert (status, json.loads(body)) == (503, WRONG)
        limits = out.openai.billing.limits
        assert (limits.spent("d"), limits.reserved) == (0, 0)


async def test_it_is_tried_again_as_that_status_is(tmp_path):
    drawn = {"created": 1, "data": [{"b64_json": ""}], "usage": {"input_tokens": 100, "output_tokens": 10}}
    async with egress_gateway(tmp_path, Vendor(says(WRONG), says(drawn)), openai=PRICES) as out:
        assert (await ask(out, "/images/generations", ASKED["/images/generations"]))[0] == 200
        assert out.openai.billing.limits.spent("d") == 100 * 5_000 + 10 * 10_000


async def test_what_was_begun_and_failed_is_an_answer_and_passes_as_it_is(tmp_path):
    video = {"id": "video_1", "object": "video", "status": "failed", "error": {"code": "busy", "message": "no"}}
    async with egress_gateway(tmp_path, Vendor(says(video)), openai=PRICES) as out:
        body = json.dumps({"model": "sora-2", "prompt": "a hat", "seconds": "4"}).encode()
        assert await ask(out, "/videos", body) == (200, json.dumps(video).encode())
