"""Before llmock, a vendor that somebody else wrote: it misbehaves on demand, and judges what called it."""

import asyncio
from contextlib import asynccontextmanager

import anthropic
import openai
import pytest
from egress_gateway import egress_gateway
from llmock.pytest_plugin import LLMock
from llmock.testing import LLMockServer

SAY = [{"role": "user", "content": "tell me of boats"}]
QUICK = "timeout: {idle: 1s}\nretry: {budget: 100%, backoff: {first: 20ms, max: 100ms}}\nbreaker: off"


class Mock:
    """Stands where the other tests have their scripted vendor; the server is one for all tests."""

    def __init__(self, server: LLMockServer) -> None:
        self.says = LLMock(server)
        self.port = server.port

    async def start(self) -> None:
        self.says.reset()

    async def stop(self) -> None:
        self.says.reset()

    async def errors(self) -> list[str]:
        """What llmock finds wrong with its caller."""
        verdict = await asyncio.to_thread(self.says.verdict)
        return [finding.code for finding in verdict.errors]


@asynccontextmanager
async def mocked(tmp_path, server: LLMockServer, policy: str = QUICK):
    mock = Mock(server)
    more = f'  anthropic: {{base_url: "http://127.0.0.1:<0>/anthropic", {", ".join(policy.splitlines())}}}\n'
    async with egress_gateway(tmp_path, mock, openai=policy, more=more) as out:
        yield mock, out


async def chat(out, *, stream: bool, user: str = "ada") -> str:
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"{out.url}/openai/v1", timeout=10) as sdk:
        answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=SAY, stream=stream, user=user)
        if not stream:
            return answer.choices[0].message.content
        return "".join([part.choices[0].delta.content or "" async for part in answer])


async def respond(out, *, stream: bool) -> str:
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"{out.url}/openai/v1", timeout=10) as sdk:
        answer = await sdk.responses.create(model="gpt-4o-mini", input="tell me of boats", stream=stream)
        if not stream:
            return answer.output_text
        return "".join([event.delta async for event in answer if event.type == "response.output_text.delta"])


async def claude(out, *, stream: bool) -> str:
    async with anthropic.AsyncAnthropic(api_key="sk-x", base_url=f"{out.url}/anthropic", timeout=10) as sdk:
        if not stream:
            return (await sdk.messages.create(model="claude", max_tokens=99, messages=SAY)).content[0].text
        async with sdk.messages.stream(model="claude", max_tokens=99, messages=SAY) as parts:
            return "".join([text async for text in parts.text_stream])


CALLS = {"chat": chat, "responses": respond, "messages": claude}

# What is mended, so that the app sees nothing of it: the fault, and whether a stream is asked for.
MENDED = {
    "500 twice": (lambda mock: mock.fail(500, times=2), False),
    "503 before a stream": (lambda mock: mock.fail(503), True),
    "529": (lambda mock: mock.fail(529), False),
    "rate limits with Retry-After": (lambda mock: mock.rate_limit(times=2, retry_after=0.3), False),
    "a slow answer": (lambda mock: mock.delay(0.5), False),
    "a slow first token": (lambda mock: mock.slow_first_token(0.5), True),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", MENDED)
async def test_what_passes_is_mended_and_the_vendor_has_nothing_to_say_against_it(tmp_path, llmock_server, fault, call):
    cause, stream = MENDED[fault]
    async with mocked(tmp_path, llmock_server) as (mock, out):
        whole = await CALLS[call](out, stream=stream)
        assert whole
        mock.says.reset()
        cause(mock.says)
        assert await CALLS[call](out, stream=stream) == whole
        assert await mock.errors() == []
        assert (await out.logged(2))[1]["outcome"] == "ok"


# What is told, since the app has seen a part of it or nothing helps: what its `except` gets, and of how many attempts.
TOLD = {
    "an outage": (lambda mock: mock.outage(), False, "InternalServerError", 4),
    "a prompt that is too long": (lambda mock: mock.context_overflow(), False, "BadRequestError", 1),
    "a wrong key": (lambda mock: mock.fail(401), False, "AuthenticationError", 1),
    "a stream cut off": (lambda mock: mock.disconnect(after_chunks=5), True, "APIError", 1),
    "a stream that ends early": (lambda mock: mock.truncate(after_chunks=5), True, "APIError", 1),
    "a chunk that is no JSON": (lambda mock: mock.corrupt(after_chunks=5), True, "APIError", 1),
    "a stream that stalls": (lambda mock: mock.stall(seconds=30, after_chunks=5), True, "APIError", 1),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", TOLD)
async def test_what_cannot_be_mended_is_raised_and_never_half_an_answer(tmp_path, llmock_server, fault, call):
    cause, stream, raised, attempts = TOLD[fault]
    wanted = getattr(openai if call != "messages" else anthropic, raised)
    async with mocked(tmp_path, llmock_server) as (mock, out):
        cause(mock.says)
        with pytest.raises(wanted):
            await CALLS[call](out, stream=stream)
        assert (await out.logged())[0]["attempts"] == attempts
        # It sees an early end that is not asked again about, and cannot see that the app was told.
        assert set(await mock.errors()) <= {"truncated_stream_accepted"}


async def test_a_vendors_quota_is_learnt_and_nobody_is_refused(tmp_path, llmock_server):
    """60 a minute, of which 60 are there at the start: the others come in as the quota does, one a second."""
    policy = "retry: {attempts: 8, budget: 100%, backoff: {first: 100ms, max: 1s}}\npace: {wait: 20s}"
    async with mocked(tmp_path, llmock_server, policy) as (mock, out):
        mock.says.limits(rpm=60)
        texts = await asyncio.gather(*(chat(out, stream=False, user=str(n)) for n in range(64)))
        assert all(texts)
        assert await mock.errors() == []
        assert out.openai.breakers.state == "closed"
