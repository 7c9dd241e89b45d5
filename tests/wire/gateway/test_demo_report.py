"""The demo's report from its page, in a real browser: made later behind the shipped policy, at once without a gateway."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import browser as chromium
import pytest
from axe_playwright_python.async_playwright import Axe
from browser import look
from egress_gateway import Vendor, completion, says
from free_ports import free_port
from gateway_process import ROOT, gateway
from playwright.async_api import expect

pytestmark = pytest.mark.skipif(chromium.found() is None, reason=chromium.MISSING)

expect.set_options(timeout=20_000)
DEMO = (sys.executable, "-m", "uvicorn", "app:app", "--app-dir", str(ROOT / "deploy" / "demo"), "--no-access-log")


def shipped_policy() -> str:
    """config/policy.yaml without its addresses, which a test has of its own."""
    text = (ROOT / "config" / "policy.yaml").read_text()
    return re.sub(r"^(?:listen|postgres):\n(?:  .*\n)+", "", text, flags=re.MULTILINE)


@asynccontextmanager
async def vendor_of_the_demo() -> AsyncIterator[dict[str, str]]:
    vendor = Vendor(says(completion("All is as it was.")))
    await vendor.start()
    try:
        yield {"OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/v1", "OPENAI_API_KEY": "sk-demo", "DATABASE_URL": ""}
    finally:
        await vendor.stop()


async def test_a_report_is_made_later_and_its_progress_is_shown_until_it_is_there(tmp_path: Path) -> None:
    async with (
        vendor_of_the_demo() as environ,
        gateway(tmp_path, f"{shlex.join(DEMO)} --port $PORT", policy=shipped_policy(), environ=environ) as g,
    ):
        await g.ready()
        async with chromium.browser() as real, look(real, f"http://127.0.0.1:{g.port}/?seconds=4") as seen:
            page = seen.page
            out = page.locator("#out")
            await page.get_by_role("button", name="Write a report").click()
            await expect(out).to_contain_text("202, it is made at /_outrigger/tasks/")
            await expect(page.locator("#state")).to_have_text("running")
            assert 0 < float(await page.locator("#progress").get_attribute("value") or 0) <= 1
            found = await Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"], "resultTypes": ["violations"]})
            assert found.violations_count == 0, found.generate_report()
            await expect(out).to_contain_text('"report":"All is as it was."')
            await expect(out).to_contain_text("200")
            await expect(page.locator("#work")).to_be_hidden()

            await page.goto(f"http://127.0.0.1:{g.port}/?seconds=50")
            await page.get_by_role("button", name="Write a report").click()
            await expect(page.locator("#state")).to_have_text("running")
            await page.get_by_role("button", name="Cancel").click()
            await expect(out).to_contain_text('"status": "cancelled"')
            # The demo has no icon.
            assert [one for one in await seen.settled() if "404" not in one] == []


async def test_without_a_gateway_the_same_page_waits_for_it(tmp_path: Path) -> None:
    port = free_port()
    async with vendor_of_the_demo() as environ:
        app = await asyncio.create_subprocess_exec(
            *DEMO, "--port", str(port), "--log-level", "warning", env={**os.environ, **environ}, cwd=tmp_path
        )
        try:
            for _ in range(300):
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            async with chromium.browser() as real, look(real, f"http://127.0.0.1:{port}/?seconds=1") as seen:
                await seen.page.get_by_role("button", name="Write a report").click()
                await expect(seen.page.locator("#out")).to_contain_text('"report":"All is as it was."')
        finally:
            app.terminate()
            await app.wait()
