"""The rest of the vendor's API passes too: uploads, downloads, pictures, sound, batches; and faults on purpose."""

import asyncio
import io
import json

import openai
import pytest
from aiohttp import web
from egress_gateway import CHAT, Vendor, chunks, egress_gateway, errs, says, streams

STREAM = {**CHAT, "stream": True}


def routed(**answers):
    """A vendor that answers by path; `POST_files` is POST /v1/files."""

    async def answer(request):
        name = f"{request.method}_{request.path.removeprefix('/v1/').replace('/', '_')}"
        found = answers[name]
        if isinstance(found, bytes):
            return web.Response(body=found, content_type="application/octet-stream")
        return web.json_response(found)

    return answer


FILE = {"id": "f", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch", "status": "ok"}
BATCH = {"id": "b", "object": "batch", "completion_window": "24h", "created_at": 1, "endpoint": "/v1/x"}
API = routed(
    POST_files=FILE,
    GET_files_f=FILE,
    GET_files_f_content=b"\x00\xffcontent",
    DELETE_files_f={"id": "f", "object": "file", "deleted": True},
    POST_batches={**BATCH, "input_file_id": "f", "status": "validating"},
    POST_audio_speech=b"ID3sound",
    POST_audio_transcriptions={"text": "heard"},
    POST_images_generations={"created": 1, "data": [{"b64_json": "aGk="}]},
    POST_moderations={"id": "m", "model": "m", "results": []},
    POST_embeddings={"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": [1.0]}]},
    GET_models={"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]},
    POST_vector_stores={"id": "v", "object": "vector_store", "created_at": 1},
)


async def test_what_the_sdk_can_ask_for_passes(tmp_path):
    vendor = Vendor(API)
    async with egress_gateway(tmp_path, vendor) as out:
        async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"{out.url}/openai/v1", max_retries=0) as sdk:
            assert (await sdk.files.create(file=("a", b"abc"), purpose="batch")).id == "f"
            assert (await sdk.files.retrieve("f")).id == "f"
            assert (await sdk.files.content("f")).content == b"\x00\xffcontent"
            assert (await sdk.files.delete("f")).deleted
            made = await sdk.batches.create(completion_window="24h", endpoint="/v1/chat/completions", input_file_id="f")
            assert made.status == "validating"
            assert (await sdk.audio.speech.create(model="m", voice="alloy", input="x")).content == b"ID3sound"
            heard = await sdk.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF"))
            assert heard.text == "heard"
            assert (await sdk.images.generate(model="m", prompt="x")).data[0].b64_json == "aGk="
            assert (await sdk.moderations.create(input="x")).results == []
            assert (await sdk.embeddings.create(model="m", input="x")).data[0].embedding == [1.0]
            assert [model.id async for model in sdk.models.list()] == ["m"]
            assert (await sdk.vector_stores.create()).id == "v"
        assert {line["outcome"] for line in await out.logged(12)} == {"ok"}
    upload = vendor.requests[0]
    assert upload[2]["Content-Type"].startswith("multipart/form-data; boundary=")
    assert b'name="purpose"\r\n\r\nbatch' in upload[3]


async def test_an_upload_is_passed_on_as_it_comes_and_waits_for_the_vendor(tmp_path):
    """Nothing is kept of it: what the vendor does not read, the app cannot send."""
    reading = asyncio.Event()
    size = 0

    async def vendor(reader, writer):
        nonlocal size
        await reader.readuntil(b"\r\n\r\n")
        await reading.wait()
        while size < 100_000_000:
            size += len(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(vendor, "127.0.0.1", 0)
    more = f'  slow: {{kind: openai, base_url: "http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"}}\n'
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        writer.write(
            b"POST /slow/v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 100000000\r\n\r\n"
        )
        sent = 0

        async def send():
            nonlocal sent
            for _ in range(1000):
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000

        sending = asyncio.ensure_future(send())
        before = -1
        while sent != before:  # until everything on the way is full
            before = sent
            await asyncio.sleep(0.5)
        assert sent < 40_000_000  # the sockets' own buffers, and little more
        reading.set()
        await asyncio.wait_for(sending, 20)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)).split()[1] == b"200"
        writer.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("length", [1_000, 3_000_000, 6_000_000])
async def test_what_may_be_sent_again_is_the_same_again_up_to_4_mib(tmp_path, length):
    body = json.dumps({**STREAM, "messages": [{"role": "user", "content": "x" * length}]}).encode()
    vendor = Vendor(errs(503), streams(chunks("a")))
    async with egress_gateway(tmp_path, vendor) as out:
        url = f"{out.url}/openai/v1/chat/completions"
        async with out.session.post(url, data=io.BytesIO(body)) as answer:
            assert answer.status == (200 if length < 4_000_000 else 503)
            await answer.read()
    lengths = {len(request[3]) for request in vendor.requests}
    assert len(lengths) == 1
    assert {request[2].get("Content-Length") for request in vendor.requests} == {str(size) for size in lengths}


# ── on purpose ───────────────────────────────────────────────────────────────────────────────


async def test_faults_on_purpose_are_loud_and_do_what_they_say(tmp_path):
    more = """
faults:
  - {upstream: openai, delay: 300ms}
  - {upstream: openai, cut: true}
"""
    policy = "retry: {attempts: 1}\nbreaker: off"
    async with egress_gateway(tmp_path, Vendor(says(), streams(chunks("a", "b"))), openai=policy, more=more) as out:
        began = asyncio.get_running_loop().time()
        status, _, text = await out.chat()
        assert asyncio.get_running_loop().time() - began > 0.25
        assert (status, json.loads(text)["error"]["code"]) == (502, "upstream_unreachable")
        assert "faults" in json.loads(text)["error"]["message"]
        status, _, text = await out.chat(STREAM)
        assert status == 200
        assert "upstream_unreachable" in text
        assert "[DONE]" not in text
        assert out.egress.status()["openai"]["faults"] == 2
        loud = [json.loads(line) for line in out.log.read_text().splitlines() if '"faults"' in line]
        assert loud[0]["level"] == "warning"


async def test_a_share_of_faults_is_a_share(tmp_path):
    more = "faults: [{upstream: openai, status: 503, share: 30%}]\n"
    policy = "retry: {attempts: 1}\nbreaker: off"
    async with egress_gateway(tmp_path, Vendor(says()), openai=policy, more=more) as out:
        seen = [(await out.chat())[0] for _ in range(200)]
        assert 20 < seen.count(503) < 110
        assert set(seen) == {200, 503}
