"""What a vendor says of its limits is by model: one model's hold back that model, and every model's only where the
vendor says so."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from egress_gateway import CHAT, Vendor, completion, egress_gateway
from gateway_process import eventually

PATIENT = "retry: {attempts: 1}\npace: {wait: 60s}"
OPENAIS = "Rate limit reached for slow in organization org-1 on tokens per min (TPM): Limit 30000, Used 22343. Visit https://platform.openai.com/account/rate-limits to learn more."
ANTHROPICS = "This request would exceed the rate limit for your organization (c26f) of 30,000 input tokens per minute."


def chat(model: str, **more: object) -> dict:
    return {**CHAT, "model": model, **more}


class ByModel(Vendor):
    """Answers for a model in its own way, once; then as usual. `models` is what was asked for, in order."""

    def __init__(self, own: dict[str, web.Response] | None = None) -> None:
        super().__init__()
        self.own = own or {}
        self.models: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        model = json.loads(body)["model"] if body else ""
        self.models.append(model)
        await self.gate.wait()
        return self.own.pop(model, None) or web.json_response(completion(model=model))


def refused(message: str, after: str = "40") -> web.Response:
    error = {"error": {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}}
    return web.json_response(error, status=429, headers={"Retry-After": after})


def short(kind: str) -> web.Response:
    headers = {f"x-ratelimit-remaining-{kind}": "0", f"x-ratelimit-reset-{kind}": "50s"}
    return web.json_response(completion(), headers=headers)


@asynccontextmanager
async def pending(out, body: dict):
    task = asyncio.ensure_future(out.chat(body))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "word",
    [
        lambda: refused(OPENAIS),
        lambda: refused(ANTHROPICS),
        lambda: refused("slow down"),
        lambda: short("requests"),
        lambda: short("tokens"),
    ],
    ids=["openai's 429", "anthropic's 429", "a 429 that says nothing", "no requests left", "no tokens left"],
)
async def test_one_models_limit_holds_back_that_model_alone(tmp_path, word):
    vendor = ByModel({"slow": word()})
    async with egress_gateway(tmp_path, vendor, openai=PATIENT) as out:
        assert (await out.chat(chat("slow")))[0] in (200, 429)
        async with pending(out, chat("slow", user="ada")) as waits:
            await eventually(lambda: len(out.openai.throttle._queue) == 1)
            # Whoever asks for another model is served, the same user too, while that one goes on waiting.
            for user in ("ada", "bob"):
                assert (await out.chat(chat("quick", user=user)))[0] == 200
            assert not waits.done()
            assert len(out.openai.throttle._queue) == 1
    assert vendor.models == ["slow", "quick", "quick"]


@pytest.mark.parametrize(
    "message",
    [
        "This request would exceed your account's rate limit. Please try again later.",
        "This request would exceed your account\u2019s rate limit. Please try again later.",
        "Too many requests across all models",
        "Too many requests from this IP address",
    ],
)
async def test_every_models_limit_is_one_that_says_so(tmp_path, message):
    vendor = ByModel({"slow": refused(message)})
    async with egress_gateway(tmp_path, vendor, openai=PATIENT) as out:
        assert (await out.chat(chat("slow")))[0] == 429
        async with pending(out, chat("quick")):
            await eventually(lambda: len(out.openai.throttle._queue) == 1)
        assert len(vendor.models) == 1


async def test_calls_of_no_model_are_one_of_their_own_and_all_that_plain_http_has(tmp_path):
    vendor = ByModel({"": refused("slow down")})
    more = "  plain: {kind: http, base_url: 'http://127.0.0.1:<0>', pace: {wait: 1s}, retry: {attempts: 1}}\n"
    async with egress_gateway(tmp_path, vendor, openai=PATIENT, more=more) as out:

        async def get(target: str) -> int:
            async with out.session.get(out.url + target) as answer:
                return answer.status

        assert await get("/plain/a") == 429
        assert len(vendor.models) == 1
        assert await get("/plain/b") == 429, "of ours: it would wait longer than pace.wait"
        assert len(vendor.models) == 1
        assert (await out.chat(chat("quick")))[0] == 200


async def test_who_waits_for_a_place_when_their_model_is_held_back_lets_others_pass(tmp_path):
    """With one call at once: the first is refused with Retry-After while two stand in line."""
    vendor = ByModel({"slow": refused(OPENAIS)})
    vendor.gate.clear()
    policy = "retry: {attempts: 1}\npace: {concurrency: 1, wait: 60s}"
    async with egress_gateway(tmp_path, vendor, openai=policy) as out:
        async with pending(out, chat("slow", user="a")) as first:
            await eventually(lambda: vendor.models)
            async with pending(out, chat("slow", user="b")) as second, pending(out, chat("quick", user="c")) as third:
                await eventually(lambda: len(out.openai.throttle._queue) == 2)
                vendor.gate.set()
                assert (await first)[0] == 429
                assert (await third)[0] == 200
                assert not second.done()
        await eventually(lambda: (out.openai.throttle._in_flight, len(out.openai.throttle._queue)) == (0, 0))


async def test_a_pause_that_is_over_lets_its_model_go_on(tmp_path):
    vendor = ByModel({"slow": refused(OPENAIS, after="0.3")})
    async with egress_gateway(tmp_path, vendor, openai=PATIENT) as out:
        assert (await out.chat(chat("slow")))[0] == 429
        assert (await asyncio.wait_for(out.chat(chat("slow")), 20))[0] == 200
