"""The dashboard's part of tasks in a real browser: what waits, what runs, what failed and why; done by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator

import browser as chromium
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from browser import look
from gateway_process import GatewayProcess, gateway
from playwright.async_api import expect
from task_client import TASK_APP, find, submit, until
from test_dashboard import RULES, TOKEN

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(chromium.found() is None, reason=chromium.MISSING),
]

POLICY = """
identity: {user: [{header: X-User}, ip]}
routes:
  - {name: status, match: {path: /status}, background: {mode: prefer, retry: {attempts: 1}}}
  - {name: hold, match: {path: /hold}, background: {mode: prefer, concurrency: 1}}
schedules:
  - {name: nightly, cron: "30 2 * * *", timezone: Europe/Berlin, request: {method: POST, path: /work}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def g(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("dashboard-tasks")
    environ = {"OUTRIGGER_ADMIN_TOKEN": TOKEN, "WORKED": str(folder / "worked")}
    async with gateway(folder, *TASK_APP, policy=POLICY, environ=environ) as running:
        await running.ready()
        yield running


async def test_tasks_are_seen_and_tried_again_and_cancelled_by_hand(g: GatewayProcess, tmp_path) -> None:
    failed = await submit(g, "/status?code=503&good=2", "X-User: ann")
    assert (await until(g, failed))["status"] == "failed"
    runs = await submit(g, f"/hold?file={tmp_path}/never", "X-User: bob")
    await until(g, runs, "running")
    waits = await submit(g, f"/hold?file={tmp_path}/never", "X-User: <b>eve</b>")
    async with chromium.browser() as real, look(real, f"http://127.0.0.1:{g.admin}/", token=TOKEN) as seen:
        page = seen.page
        rows = {name: page.locator(f"#task-{name} tbody tr") for name in ("routes", "waiting", "running", "failed")} | {
            "schedules": page.locator("#schedules tbody tr")
        }
        await expect(rows["running"]).to_contain_text("bob")
        await expect(rows["waiting"]).to_contain_text("<b>eve</b>")
        await expect(rows["failed"]).to_contain_text("status-503")
        await expect(rows["schedules"]).to_contain_text("30 2 * * * (Europe/Berlin)")
        await expect(rows["routes"].filter(has_text="hold")).to_be_visible()
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            found = await Axe().run(page, options={"runOnly": RULES, "resultTypes": ["violations"]})
            assert found.violations_count == 0, found.generate_report()

        await rows["failed"].get_by_role("button", name="Try again").click()
        await page.get_by_role("button", name="Do it").click()
        await expect(page.locator("#done")).to_contain_text("queued again")
        assert (await until(g, failed, "succeeded"))["attempts"] == 2
        await expect(rows["failed"]).to_have_count(0)

        for part, id in (("waiting", waits), ("running", runs)):
            await rows[part].get_by_role("button", name=f"Cancel the task {id[:8]}").click()
            await expect(page.locator("#sure-what")).to_contain_text(id[:8])
            await page.get_by_role("button", name="Do it").click()
            await expect(rows[part].get_by_role("button", name=f"Cancel the task {id[:8]}")).to_have_count(0)
            assert (await find(g, id))["status"] == "cancelled"

        await expect(page.locator("#charts h3", has_text="Tasks a minute")).to_be_visible()
        picture = page.get_by_role("img", name="Tasks a minute, 15 minutes")
        await expect(picture).to_be_visible()
        assert await seen.settled() == []
