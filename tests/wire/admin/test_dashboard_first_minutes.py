"""The dashboard's charts while there is hardly anything to draw."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import browser as chromium
import pytest
import status_scenes
from browser import look
from gateway_process import APPS, gateway
from playwright.async_api import Route, expect

pytestmark = pytest.mark.skipif(chromium.found() is None, reason=chromium.MISSING)

APP = (sys.executable, str(APPS / "plain.py"))
# What a chart writes is drawn, not text of the page: kept here, so that a test can read it.
WRITTEN = """
const write = CanvasRenderingContext2D.prototype.fillText;
window.written = [];
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  written.push(text);
  return write.call(this, text, ...rest);
};
"""
AGAIN = "written.length = 0; document.querySelector('input[name=range]:checked').dispatchEvent(new Event('change'))"
MINUTE = re.compile(r"\d\d:\d\d")
CASES = [(1, "15 minutes"), (2, "15 minutes"), (1, "24 hours")]


def first(count: int) -> dict[str, object]:
    """The samples of the first moments after a start, the newest of them now."""
    return {
        "day": status_scenes.points(status_scenes.DAY_STEP, count),
        "recent": status_scenes.points(status_scenes.FINE_SECONDS, count),
    }


def tells(count: int) -> Callable[[Route], Awaitable[None]]:
    async def answer(route: Route) -> None:
        history = "history" in route.request.url
        await route.fulfill(json={"history": first(count)} if history else status_scenes.quiet())

    return answer


async def test_the_time_axis_of_the_first_samples_is_about_now(tmp_path):
    async with gateway(tmp_path, *APP) as g, chromium.browser() as real:
        await g.ready()
        for count, label in CASES:
            async with look(real, "about:blank") as seen:
                page = seen.page
                await page.add_init_script(WRITTEN)

                await page.route("**/status*", tells(count))
                await page.goto(f"http://127.0.0.1:{g.admin}/dashboard")
                await page.get_by_role("radio", name=label).check()
                await expect(page.locator("#charts canvas")).to_have_count(3)
                await page.evaluate(AGAIN)
                async with asyncio.timeout(20):
                    while await page.evaluate("written.length") <= 15:
                        await asyncio.sleep(0.02)
                texts: list[str] = await page.evaluate("written")
                now = datetime.now()
                times = [text for text in texts if MINUTE.fullmatch(text)]
                assert len(set(times)) >= 3, (count, label, texts)
                assert not [text for text in texts if re.search("[A-Z][a-z]{2} [0-9]", text)], (count, label, texts)
                for text in times:
                    minutes = abs(now.hour * 60 + now.minute - int(text[:2]) * 60 - int(text[3:]))
                    assert min(minutes, 1440 - minutes) <= (16 if label == "15 minutes" else 75), (text, now)
                assert await seen.settled() == []


def test_the_samples_are_what_a_gateway_says() -> None:
    found = first(1)["recent"]
    assert isinstance(found, dict)
    assert (found["step_s"], len(found["at"]), len(found["requests"])) == (5.0, 1, 1)
    assert abs(found["at"][0] - time.time()) < 60
