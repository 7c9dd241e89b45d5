"""Where the retry budget is spent, a call that would be tried again is left to its caller: its SDK goes on as it would
without us. Of a vendor that fails half of what it gets, an app would else see more than without us."""

import openai
import pytest
from egress_gateway import Vendor, egress_gateway, errs, resets, says

SPENT = 14  # requests: four calls of four attempts, cut down to the budget's ten retries
RULES = "breaker: off\nretry: {backoff: {first: 1ms, max: 1ms}}"
FAULTS = {"500": errs(500), "503": errs(503), "a reset": resets()}


async def ask(out, retries: int) -> str:
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=f"{out.url}/openai/v1", max_retries=retries) as sdk:
        said = [{"role": "user", "content": "hello"}]
        answer = await sdk.chat.completions.create(model="gpt-4o-mini", messages=said)
        return answer.choices[0].message.content or ""


async def spend_the_budget(out, vendor):
    for _ in range(4):
        await out.chat()
    assert len(vendor.requests) == SPENT


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_an_sdk_tries_again_where_the_budget_kept_us_from_it(tmp_path, fault):
    vendor = Vendor(*[errs(503)] * SPENT, fault, fault, says())
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        await spend_the_budget(out, vendor)
        assert await ask(out, retries=2) == "well"
    assert len(vendor.requests) == SPENT + 3


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_it_makes_as_many_attempts_as_without_us_and_no_more(tmp_path, fault):
    vendor = Vendor(*[errs(503)] * SPENT, fault)
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        await spend_the_budget(out, vendor)
        with pytest.raises(openai.InternalServerError):
            await ask(out, retries=2)
    assert len(vendor.requests) == SPENT + 3


async def test_what_is_permanent_stays_so(tmp_path):
    vendor = Vendor(*[errs(503)] * SPENT, errs(429, "insufficient_quota"))
    async with egress_gateway(tmp_path, vendor, openai=RULES) as out:
        await spend_the_budget(out, vendor)
        with pytest.raises(openai.RateLimitError):
            await ask(out, retries=2)
    assert len(vendor.requests) == SPENT + 1
