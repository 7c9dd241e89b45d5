"""The dashboard in a real browser: a scripted incident from beginning to end, and who may read it how."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace

import aiohttp
import browser as chromium
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from browser import look
from outward import Vendor, completion, errs
from outward import says as answers
from playwright.async_api import Browser, expect
from running import APPS, Running, gateway

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(chromium.found() is None, reason="there is no Chromium on PATH (Debian: chromium)"),
]

expect.set_options(timeout=20_000)
TOKEN = "a token for the dashboard"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]  # of axe-core; contrast is among them
EVIL = "<img src=x onerror=complaints.push(1)>"
POLICY = """
identity: {user: [{header: X-User}, ip]}
routes:
  - {name: narrow, match: {path: /narrow}, rate_limit: 1/h}
alerts:
  every: 1s
  rules:
    breaker_open: {when: "breaker is open for 1s", severity: critical}
    error_rate: off
upstreams:
  openai:
    base_url: http://127.0.0.1:<port>/v1
    retry: {attempts: 1}
    cap: {total: $5/d, per_user: $4/d}
    breaker: {min_calls: 2, failure_ratio: 10%, open: 3s, window: 10s}
"""


class House(SimpleNamespace):
    gateway: Running
    vendor: Vendor
    session: aiohttp.ClientSession
    browser: Browser

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.gateway.admin}"

    @property
    def public(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}/_outrigger"

    async def chat(self, count: int = 1, user: str = "ada") -> None:
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": "hello"}],
            "safety_identifier": user,
        }
        url = f"http://127.0.0.1:{self.gateway.egress}/openai/v1/chat/completions"
        for _ in range(count):
            async with self.session.post(url, json=body) as answer:
                await answer.read()

    async def ask(self, path: str, count: int = 1, user: str = "eve", **headers: str) -> int:
        for _ in range(count):
            fields = {"X-User": user, **headers}
            async with self.session.get(f"http://127.0.0.1:{self.gateway.port}{path}", headers=fields) as answer:
                await answer.read()
        return answer.status


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    vendor = Vendor(answers(completion()))
    await vendor.start()
    policy = POLICY.replace("<port>", str(vendor.port))
    app = (sys.executable, str(APPS / "plain.py"))
    environ = {"OUTRIGGER_ADMIN_TOKEN": TOKEN}
    folder = tmp_path_factory.mktemp("dashboard")
    async with gateway(folder, *app, policy=policy, environ=environ) as running:
        await running.ready()
        async with chromium.browser() as real, aiohttp.ClientSession() as session:
            yield House(gateway=running, vendor=vendor, session=session, browser=real)
    await vendor.stop()


async def test_it_shows_an_incident_from_beginning_to_end(house: House) -> None:
    async with look(house.browser, f"{house.admin}/", token=TOKEN) as seen:
        page = seen.page
        now, row = page.locator("#now"), page.locator("#upstreams tbody tr", has_text="openai")
        await page.clock.install()
        await house.chat(2)
        await page.clock.fast_forward(2000)
        await expect(now).to_have_text("All is well.")
        await expect(row).to_contain_text("closed, calls pass")
        await expect(page.locator("#money")).to_contain_text("spent")

        house.vendor.answers = [errs(500)]
        await house.chat(3)
        await page.clock.fast_forward(2000)
        await expect(now).to_contain_text("openai is not answering since")
        await expect(page).to_have_title(re.compile("^! openai is"))
        await expect(now).to_have_class("degraded")
        await expect(row).to_contain_text("open, calls are refused")
        await expect(page.locator("#failed tbody tr").first).to_contain_text("500")
        await expect(page.locator("#alert-list li.firing")).to_contain_text("breaker_open: openai")

        await expect(now).to_contain_text("openai is being tried again")
        house.vendor.answers = [answers(completion())]
        await house.chat(1)
        await page.clock.fast_forward(2000)
        await expect(now).to_have_text("All is well.")
        await expect(page.locator("#alert-list li.cleared")).to_contain_text("breaker_open: openai")
        await expect(row).to_contain_text("closed, calls pass")
        assert await seen.settled() == []


async def test_names_of_users_are_text_whatever_they_are(house: House) -> None:
    await house.chat(1, EVIL)
    assert await house.ask("/narrow", 3, EVIL) == 429
    async with look(house.browser, f"{house.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        await expect(page.locator("#limited")).to_contain_text(EVIL)
        await expect(page.locator("#spenders")).to_contain_text(EVIL)
        await page.locator("#limited tr", has_text=EVIL).get_by_role("button", name="Block").click()
        await expect(page.locator("#sure-what")).to_have_text(f"Block {EVIL}?")
        await page.keyboard.press("Escape")
        assert await page.locator("img").count() == 0
        assert await seen.settled() == []


async def test_who_has_no_token_logs_in_by_the_form_and_out_again(house: House) -> None:
    async with look(house.browser, f"{house.public}/dashboard") as seen:
        page = seen.page
        await page.get_by_label("Admin token").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("That is not the token.")
        seen.complaints.clear()  # a 401 is one to the browser
        await page.get_by_label("Admin token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("#routes tbody tr")).to_have_count(2)
        (cookie,) = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/_outrigger")
        await page.get_by_role("button", name="Reload the policy").click()
        await page.get_by_role("button", name="Do it").click()
        await expect(page.locator("#done")).to_contain_text("policy")
        assert "Not done" not in await page.inner_text("#done")
        assert await seen.settled() == []
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Admin token")).to_be_visible()
        assert await page.context.cookies() == []


@pytest.mark.parametrize(("proto", "secure"), [("https", True), ("http", False)])
async def test_the_cookie_is_secure_where_a_trusted_proxy_says_https(house: House, proto: str, secure: bool) -> None:
    url, form = f"{house.public}/dashboard/login", {"token": TOKEN}
    headers = {"X-Forwarded-Proto": proto, "X-Forwarded-For": "203.0.113.7"}
    async with house.session.post(url, data=form, headers=headers, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/_outrigger/dashboard")
        assert ("Secure" in answer.headers["Set-Cookie"].split("; ")) == secure


async def test_a_user_is_blocked_and_unblocked_by_hand_with_the_keyboard_alone(house: House) -> None:
    async with look(house.browser, f"{house.admin}/dashboard") as seen:
        page = seen.page
        await expect(page.get_by_label("Admin token")).to_be_focused()
        await page.keyboard.type(TOKEN)
        await page.keyboard.press("Enter")
        await expect(page.locator("#routes tbody tr")).to_have_count(2)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        await expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("button", name="Restart the app")).to_be_focused()
        assert await page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

        await page.get_by_label("A user by name").focus()
        await page.keyboard.type("mallory")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_contain_text("Block mallory?")
        await expect(page.get_by_role("button", name="Leave it")).to_be_focused()
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator("#done")).to_contain_text("mallory")
        assert await house.ask("/", user="mallory") == 403
        again = page.locator("#blocked").get_by_role("button", name="Unblock mallory")
        await again.focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(again).to_have_count(0)
        assert await house.ask("/", user="mallory") == 200
        assert await seen.settled() == []


async def test_a_breaker_is_held_open_and_given_back_by_hand(house: House) -> None:
    async with look(house.browser, f"{house.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        for name, shown in (("Open", "open, calls are refused"), ("Auto", "closed, calls pass")):
            await page.get_by_role("button", name=f"{name} the breaker of openai").click()
            await page.get_by_role("button", name="Do it").click()
            await expect(page.locator("#upstreams tbody")).to_contain_text(shown)
        assert await seen.settled() == []


async def test_a_phone_and_a_reader_of_screens_can_read_it(house: House) -> None:
    house.vendor.answers = [errs(500), answers(completion())]
    house.vendor._turn = 0
    long = "a-user-with-a-name-that-is-long-" + 8 * "and-longer-"
    await house.chat(1, long)
    await house.ask("/narrow", 2, long)
    async with look(house.browser, f"{house.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        await expect(page.locator("#failed tbody tr").first).to_contain_text("500")
        await expect(page.locator("#charts canvas").first).to_be_visible()
        for figure in await page.locator("#charts [role=img]").all():
            assert ":" in (await figure.get_attribute("aria-label") or "")
        await page.get_by_label("24 hours").check()
        await expect(page.get_by_role("img", name="Memory, 24 hours")).to_be_visible()
        await page.get_by_label("15 minutes").check()
        for width, scheme in ((1280, "light"), (360, "dark"), (360, "light")):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            if (width, scheme) != (360, "light"):
                rules = RULES if scheme == "light" else ["color-contrast"]
                found = await Axe().run(page, options={"runOnly": rules})
                assert found.violations_count == 0, found.generate_report()
        assert await seen.settled() == []


async def test_what_is_old_is_said_to_be_old_and_a_hidden_tab_does_not_ask(house: House) -> None:
    async with look(house.browser, f"{house.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        asked: list[str] = []
        await expect(page.locator("#routes tbody tr")).to_have_count(2)
        await page.clock.install()
        await page.route("**/status*", lambda route: route.abort())
        await page.clock.fast_forward(10_000)
        await expect(page.get_by_role("alert")).to_contain_text("No answer since")
        await page.unroute("**/status*")
        await page.clock.fast_forward(3_000)
        await expect(page.locator("#stale")).to_be_hidden()

        await page.evaluate(
            "Object.defineProperty(document, 'hidden', {get: () => true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await page.wait_for_load_state("networkidle")
        page.on("request", lambda request: asked.append(request.url))
        await page.clock.fast_forward(10_000)
        assert asked == []
        await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        await expect(page.locator("#stale")).to_be_hidden()
        assert asked[0].endswith("/status")


async def test_an_error_is_found_by_its_request_id(house: House) -> None:
    await house.ask("/narrow", user="ann")
    await house.ask("/die", user="ann", **{"X-Request-Id": "lost-1"})
    await house.gateway.ready()
    async with look(house.browser, f"{house.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        await expect(page.locator("#errors")).to_contain_text("lost-1")
        await page.get_by_label("Find a request id").fill("nothing-like-it")
        await expect(page.locator("#errors")).to_be_hidden()
        await page.get_by_label("Find a request id").fill("lost-1")
        await expect(page.locator("#errors tbody tr")).to_have_count(1)
        await expect(page.locator("#errors")).to_contain_text("GET /die")
