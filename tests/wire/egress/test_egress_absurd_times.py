"""What a vendor says of time may be any text: a call is never worse off for it."""

from __future__ import annotations

import pytest
from egress_gateway import QUICK, Vendor, egress_gateway, errs, says

ABSURD = (
    "Fri, 31 Dec 99999999999 23:59:59 GMT",
    "Fri, 31 Dec 9999 23:59:59 +9999999",
    "Wed, 21 Oct 2015 99999999999999999999:28:00 GMT",
    "Wed, 21 Oct 2015 07:28:00 -99999999999999999999",
    "9" * 5000,
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-5",
    "soon",
    "",
    "²",
)
SAID = ("retry_after", "retry_after_ms", "x_ratelimit_reset_requests", "anthropic_ratelimit_requests_reset")


@pytest.mark.parametrize("said", SAID)
async def test_an_absurd_time_is_no_fault_of_ours(tmp_path, said):
    left = {"x_ratelimit_remaining_requests": "5", "anthropic_ratelimit_requests_remaining": "5"}
    vendor = Vendor(*(errs(503, **left, **{said: value}) for value in ABSURD))
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 1}\nbreaker: off") as out:
        for value in ABSURD:
            got, _, text = await out.chat()
            assert got == 503, (value[:60], text)


@pytest.mark.parametrize("value", [ABSURD[0], ABSURD[4], ABSURD[5]], ids=["date", "digits", "infinite"])
async def test_a_429_with_one_holds_the_next_calls_no_longer_than_any_other(tmp_path, value):
    vendor = Vendor(errs(429, retry_after=value))
    async with egress_gateway(tmp_path, vendor, openai="retry: {attempts: 1}\npace: {wait: 0s}") as out:
        assert (await out.chat())[0] == 429
        _, headers, _ = await out.chat()
        assert headers["Retry-After"] == value or float(headers["Retry-After"]) <= 60


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2015 07:28:00 GMT", "0", "-1", "0.001"])
async def test_a_time_that_is_over_is_waited_for_no_longer(tmp_path, value):
    async with egress_gateway(tmp_path, Vendor(errs(503, retry_after=value), says()), openai=QUICK) as out:
        assert (await out.chat())[0] == 200
