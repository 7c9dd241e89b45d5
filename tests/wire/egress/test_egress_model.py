"""Before a real model, where `make model` has set one up: llama.cpp's server, which knows nothing of these tests."""

import asyncio
import json
import os
from pathlib import Path

import openai
import pytest
from egress_gateway import egress_gateway
from free_ports import free_port
from gateway_process import eventually

HOME = Path(__file__).parents[3] / ".venv-model"
MODEL, PYTHON = HOME / "model.gguf", HOME / "bin" / "python"
# The model only continues a text; so this also stands for the legacy completions, streamed and not.
EXACT = {"model": "gemma", "prompt": "Once upon a time, there was a small boat", "temperature": 0, "max_tokens": 12}

pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="no model here: make model")


class Server:
    """Stands where the other tests have their scripted vendor."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *(str(PYTHON), "-m", "llama_cpp.server", "--model", str(MODEL), "--port", str(self.port)),
            *("--n_ctx", "512", "--n_threads", "2", "--host", "127.0.0.1"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": ""},
        )
        for _ in range(600):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            except OSError:
                await asyncio.sleep(0.2)
        raise AssertionError("the model's server never listened")

    async def stop(self) -> None:
        self.process.kill()
        await self.process.wait()


async def test_a_real_model_answers_through_as_it_does_direct(tmp_path):
    """Whole, streamed, from memory, and given up half-way."""
    server = Server(free_port())
    policy = "timeout: {idle: 60s}\ncache: {ttl: 1h}"
    async with egress_gateway(tmp_path, server, openai=policy) as out:
        urls = [f"http://127.0.0.1:{server.port}/v1", f"{out.url}/openai/v1"]
        direct, through = (openai.AsyncOpenAI(api_key="sk-x", base_url=url, timeout=120) for url in urls)

        said = [await sdk.completions.create(**EXACT) for sdk in (direct, through)]
        texts = [answer.choices[0].text for answer in said]
        assert texts[0] == texts[1]
        assert len(texts[0]) > 10
        assert said[0].usage == said[1].usage

        again = await through.completions.with_raw_response.create(**EXACT)
        assert again.headers["x-outrigger-cache"] == "hit"
        assert again.parse() == said[1]

        streamed = []
        for sdk in (direct, through):
            parts = [part async for part in await sdk.completions.create(**EXACT, stream=True)]
            assert all(part.choices for part in parts)
            streamed.append("".join(part.choices[0].text for part in parts))
        assert streamed[0] == streamed[1] == texts[0]

        lines = await out.logged(3)
        assert [line["outcome"] for line in lines] == ["ok", "cached", "ok"]
        assert lines[0]["output_tokens"] == said[0].usage.completion_tokens

        stream = await through.completions.create(**{**EXACT, "max_tokens": 400}, stream=True)
        async for _ in stream:
            break
        await stream.close()
        await eventually(lambda: not out.egress.accounting.in_flight)
        assert (await out.logged(4))[3]["outcome"] == "gone"

        bad = await asyncio.gather(through.completions.create(**{**EXACT, "prompt": {}}), return_exceptions=True)
        assert isinstance(bad[0], openai.APIStatusError)
        assert json.dumps(bad[0].body)
        for sdk in (direct, through):
            await sdk.close()
