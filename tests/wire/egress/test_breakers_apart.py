"""What fails at a vendor is refused, and what is sound there goes on: by endpoint and model, over real sockets."""

import asyncio
import json

from aiohttp import web
from egress_gateway import CHAT, Vendor, chunks, completion, egress_gateway
from gateway_process import eventually

RULES = "retry: {attempts: 1}\nbreaker: {min_calls: 5, open: 300ms}"
EMBEDDINGS = {"object": "list", "data": [{"index": 0, "embedding": [0.1]}], "model": "small", "usage": {}}


class Partly(Vendor):
    """Answers by path, and by whether the model is called bad; `bad` says how."""

    def __init__(self, bad):
        super().__init__(self._answer)
        self._bad = bad

    async def _answer(self, request):
        body = json.loads(self.requests[-1][3] or b"{}")
        if body.get("model") == "bad":
            return await self._bad(request)
        if request.path.endswith("/embeddings"):
            return web.json_response(EMBEDDINGS)
        if request.path.endswith("/models"):
            return web.json_response({"object": "list", "data": []})
        return web.json_response(completion())


async def busy(_):
    return web.json_response({"error": {"message": "busy", "type": "server_error"}}, status=503)


async def cut(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"".join(chunks("a")[:2]))
    request.transport.abort()
    return response


async def status(out, path, body=None):
    method = "POST" if body else "GET"
    async with out.session.request(method, f"{out.url}/openai/v1{path}", json=body) as answer:
        await answer.read()
        return answer.status


async def test_cut_streams_of_one_endpoint_leave_another_and_another_model_alone(tmp_path):
    async with egress_gateway(tmp_path, Partly(cut), openai=RULES) as out:
        for _ in range(5):
            await out.chat({**CHAT, "model": "bad", "stream": True})
        assert await status(out, "/chat/completions", {**CHAT, "model": "bad"}) == 503
        assert await status(out, "/embeddings", {"model": "small", "input": "x"}) == 200
        assert await status(out, "/chat/completions", CHAT) == 200
        assert out.egress.health().state == "degraded"
        assert "5 of the last 5 calls failed (chat with bad)" in out.egress.health().reason
        assert 'breaker_state{upstream="openai"} 2.0' in await out.text()
        assert out.egress.status()["openai"]["breakers"] == {"chat with bad": "open"}


async def test_lists_of_models_do_not_keep_closed_what_fails_and_pass_while_it_is_open(tmp_path):
    vendor = Partly(busy)
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        for _ in range(5):
            assert [await status(out, "/models") for _ in range(4)] == [200] * 4
            assert (await out.chat({**CHAT, "model": "bad"}))[0] == 503
        assert out.openai.breakers.counts() == (5, 5)
        asked = len(vendor.requests)
        assert "upstream_unavailable" in (await out.chat({**CHAT, "model": "bad"}))[2]
        assert len(vendor.requests) == asked
        assert await status(out, "/models") == 200


async def test_an_operator_holds_all_of_an_upstream(tmp_path):
    vendor = Partly(busy)
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        out.openai.breakers.force("open")
        assert [await status(out, "/models"), (await out.chat())[0]] == [503, 503]
        assert not vendor.requests
        out.openai.breakers.force(None)
        assert [await status(out, "/models"), (await out.chat())[0]] == [200, 200]
        assert 'breaker_state{upstream="openai"} 0.0' in await out.text()


async def test_calls_are_served_again_while_a_slow_probe_is_still_under_way(tmp_path):
    gate, turn = asyncio.Event(), []

    async def recovers(request):
        turn.append(request)
        if len(turn) <= 5:
            return await busy(request)
        if len(turn) == 6:
            await gate.wait()
        return web.json_response(completion())

    vendor = Partly(recovers)
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        bad = {**CHAT, "model": "bad"}
        for _ in range(5):
            assert (await out.chat(bad))[0] == 503
        await eventually(lambda: out.openai.breakers.state == "half-open")
        slow = asyncio.ensure_future(out.chat(bad))
        await eventually(lambda: vendor.open)
        assert (await out.chat(bad))[0] == 503  # not at the same moment

        async def served():
            return (await out.chat(bad))[0] == 200

        async with asyncio.timeout(10):
            while not await served():
                await asyncio.sleep(0.05)
        assert (out.openai.breakers.state, slow.done()) == ("closed", False)
        gate.set()
        assert (await slow)[0] == 200


async def test_a_small_app_has_its_retries(tmp_path):
    """A third of the attempts fails: of twenty calls none does."""
    turn = []

    async def sometimes(_):
        turn.append(1)
        return await busy(_) if len(turn) % 3 == 1 else web.json_response(completion())

    async with egress_gateway(
        tmp_path, Partly(sometimes), openai="breaker: off\nretry: {backoff: {first: 1ms, max: 1ms}}"
    ) as out:
        answers = [(await out.chat({**CHAT, "model": "bad"}))[0] for _ in range(20)]
    assert answers == [200] * 20
    assert len(turn) == 30
