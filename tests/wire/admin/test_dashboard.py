"""The dashboard in a real browser: a scripted incident from beginning to end, and who may read it how."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import browser as chromium
import pytest
import pytest_asyncio
import status_scenes
from axe_playwright_python.async_playwright import Axe
from browser import Look, look
from egress_gateway import Vendor, completion, errs
from egress_gateway import says as answers
from gateway_process import APPS, GatewayProcess, gateway
from playwright.async_api import Browser, Page, Route, expect

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(chromium.found() is None, reason=chromium.MISSING),
]

expect.set_options(timeout=20_000)
TOKEN = "a token for the dashboard"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]  # of axe-core; contrast is among them
EVIL = "<img src=x onerror=complaints.push(1)>"
POLICY = """\
  claim: [/dashboard, /ctl]
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


class DashboardScene(SimpleNamespace):
    gateway: GatewayProcess
    vendor: Vendor
    session: aiohttp.ClientSession
    browser: Browser

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.gateway.admin}"

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    @property
    def public(self) -> str:
        return f"{self.root}/_outrigger"

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
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DashboardScene]:
    vendor = Vendor(answers(completion()))
    await vendor.start()
    policy = POLICY.replace("<port>", str(vendor.port))
    app = (sys.executable, str(APPS / "plain.py"))
    environ = {"OUTRIGGER_ADMIN_TOKEN": TOKEN}
    folder = tmp_path_factory.mktemp("dashboard")
    async with gateway(folder, *app, policy=policy, environ=environ) as running:
        await running.ready()
        async with chromium.browser() as real, aiohttp.ClientSession() as session:
            yield DashboardScene(gateway=running, vendor=vendor, session=session, browser=real)
    await vendor.stop()


async def test_it_shows_an_incident_from_beginning_to_end(scene: DashboardScene) -> None:
    async with look(scene.browser, f"{scene.admin}/", token=TOKEN) as seen, in_haste(seen.page):
        page = seen.page
        now, row = page.locator("#now"), page.locator("#upstreams tbody tr", has_text="openai")
        await scene.chat(2)
        await expect(now).to_have_text("All is well.")
        await expect(row).to_contain_text("closed, calls pass")
        await expect(page.locator("#money")).to_contain_text("spent")

        scene.vendor.answers = [errs(500)]
        await scene.chat(3)
        await expect(now).to_contain_text("openai is not answering since")
        await expect(page).to_have_title(re.compile("^! openai is"))
        await expect(now).to_have_class("degraded")
        await expect(row).to_contain_text("open, calls are refused")
        await expect(page.locator("#failed tbody tr").first).to_contain_text("500")
        await expect(page.locator("#alert-list li.firing")).to_contain_text("breaker_open: openai")

        await expect(now).to_contain_text("openai is being tried again")
        scene.vendor.answers = [answers(completion())]
        await scene.chat(1)
        await expect(now).to_have_text("All is well.")
        await expect(page.locator("#alert-list li.cleared")).to_contain_text("breaker_open: openai")
        await expect(row).to_contain_text("closed, calls pass")
        assert await seen.settled() == []


async def test_names_of_users_are_text_whatever_they_are(scene: DashboardScene) -> None:
    await scene.chat(1, EVIL)
    assert await scene.ask("/narrow", 3, EVIL) == 429
    async with look(scene.browser, f"{scene.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        await expect(page.locator("#limited")).to_contain_text(EVIL)
        await expect(page.locator("#spenders")).to_contain_text(EVIL)
        await page.locator("#limited tr", has_text=EVIL).get_by_role("button", name="Block").click()
        await expect(page.locator("#sure-what")).to_have_text(f"Block {EVIL}?")
        await page.keyboard.press("Escape")
        assert await page.locator("img").count() == 0
        assert await seen.settled() == []
    reported = {
        "status": status_scenes.everywhere(EVIL, status_scenes.bad_night()),
        "history": status_scenes.history(0.1),
    }
    async with look(scene.browser, "about:blank", token=TOKEN) as seen:
        page = await tell(seen, reported, scene)
        for part in ("now", "glance", "alerts", "parts", "routes", "models", "upstreams", "caps", "blocked", "failed"):
            await expect(page.locator(f"#{part}")).to_contain_text(EVIL[:12])
        await page.locator("#upstreams").get_by_role("button", name="Open").first.click()
        await expect(page.locator("#sure-what")).to_contain_text(EVIL)
        assert await page.locator("img").count() == 0
        assert await seen.settled() == []


async def test_who_has_no_token_logs_in_by_the_form_and_out_again(scene: DashboardScene) -> None:
    async with look(scene.browser, f"{scene.root}/dashboard") as seen:
        page = seen.page
        await expect(page).to_have_url(f"{scene.public}/dashboard")
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
        await page.goto(f"{scene.root}/dashboard")
        await expect(page.locator("#routes tbody tr")).to_have_count(2)
        assert await seen.settled() == []
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Admin token")).to_be_visible()
        assert await page.context.cookies() == []


async def test_a_page_of_another_site_neither_acts_nor_reads_nor_frames_it(scene: DashboardScene) -> None:
    page_of_theirs = f"""
        <iframe src="{scene.public}/dashboard"></iframe><iframe name="hidden"></iframe>
        <form method="post" target="hidden" action="{scene.public}/ctl/restart-app"></form>
        <script>
          document.forms[0].submit();
          for (const [path, method] of [["ctl/reload", "POST"], ["status", "GET"]])
            fetch(`{scene.public}/${{path}}`, {{method, mode: "no-cors", credentials: "include"}});
        </script>"""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n{page_of_theirs}".encode())
        writer.close()

    theirs = await asyncio.start_server(serve, "127.0.0.1")
    async with theirs, look(scene.browser, f"{scene.public}/dashboard") as seen:
        await seen.page.get_by_label("Admin token").fill(TOKEN)
        await seen.page.keyboard.press("Enter")
        await expect(seen.page.locator("#routes tbody tr")).to_have_count(2)
        before = scene.gateway.app_pid(), len(scene.gateway.events("ctl"))
        page, answers = await seen.page.context.new_page(), dict[str, int]()
        page.on("response", lambda got: answers.update({got.url.rpartition("_outrigger")[2]: got.status}))
        await page.goto(f"http://localhost:{theirs.sockets[0].getsockname()[1]}/")  # the same machine, another site
        await page.wait_for_load_state("networkidle")
        assert [answers.get(path) for path in ("/ctl/restart-app", "/ctl/reload", "/status")] == [401, 401, 401]
        assert "Outrigger" not in "".join([await frame.content() for frame in page.frames[1:]])
        assert (scene.gateway.app_pid(), len(scene.gateway.events("ctl"))) == before


@pytest.mark.parametrize(("proto", "secure"), [("https", True), ("http", False)])
async def test_the_cookie_is_secure_where_a_trusted_proxy_says_https(
    scene: DashboardScene, proto: str, secure: bool
) -> None:
    url, form = f"{scene.public}/dashboard/login", {"token": TOKEN}
    headers = {"X-Forwarded-Proto": proto, "X-Forwarded-For": "203.0.113.7"}
    async with scene.session.post(url, data=form, headers=headers, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/_outrigger/dashboard")
        assert ("Secure" in answer.headers["Set-Cookie"].split("; ")) == secure


async def test_a_user_is_blocked_and_unblocked_by_hand_with_the_keyboard_alone(scene: DashboardScene) -> None:
    async with look(scene.browser, f"{scene.admin}/dashboard") as seen:
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
        assert await scene.ask("/", user="mallory") == 403
        again = page.locator("#blocked").get_by_role("button", name="Unblock mallory")
        await again.focus()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(again).to_have_count(0)
        assert await scene.ask("/", user="mallory") == 200
        assert await seen.settled() == []


async def test_a_breaker_is_held_open_and_given_back_by_hand(scene: DashboardScene) -> None:
    async with look(scene.browser, f"{scene.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        for name, shown in (("Open", "open, calls are refused"), ("Auto", "closed, calls pass")):
            await page.get_by_role("button", name=f"{name} the breaker of openai").click()
            await page.get_by_role("button", name="Do it").click()
            await expect(page.locator("#upstreams tbody")).to_contain_text(shown)
        assert await seen.settled() == []


async def test_a_phone_and_a_reader_of_screens_can_read_the_worst_of_nights(scene: DashboardScene) -> None:
    reported = {"status": status_scenes.bad_night(), "history": status_scenes.history()}
    async with look(scene.browser, "about:blank", token=TOKEN) as seen:
        page = await tell(seen, reported, scene)
        await expect(page.locator("#now .line").nth(1)).to_contain_text("openai is not answering since")
        await expect(page.locator("#glance li").nth(3)).to_contain_text("96 % of openai’s cap")
        await expect(page.locator("#gauges")).to_contain_text("CPU: 0.47 of 0.5 cores")
        await expect(page.locator("#routes tbody tr")).to_have_count(10)
        await expect(page.locator("#routes tbody tr").first).to_contain_text("1 / 15")  # with errors, so first
        await expect(page.locator("#charts canvas")).to_have_count(8)
        await expect(page.locator("#task-routes tbody tr")).to_have_count(10)
        await expect(page.locator("#task-waiting tbody tr").first).to_contain_text("400 s")
        await expect(page.locator("#task-failed tbody tr").nth(1)).to_contain_text("timeout")
        await expect(page.locator("#tasks-away")).to_contain_text("disk I/O error")
        await expect(page.locator("#schedules tbody tr").first).to_contain_text("*/5 1-4 * * MON-FRI")
        for figure in await page.locator("#charts [role=img]").all():
            assert re.search(r"\d.* now, .*\d.* at most", await figure.get_attribute("aria-label") or "")
        await page.get_by_label("24 hours").check()
        await expect(page.get_by_role("img", name="Memory, 24 hours. app: 389 MiB now")).to_be_visible()
        await page.evaluate("document.querySelectorAll('tr:nth-child(n + 4)').forEach((one) => one.remove())")  # alike
        for width, scheme, rules in ((1280, "light", RULES), (360, "dark", ["color-contrast"])):
            await page.set_viewport_size({"width": width, "height": 800})
            await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            found = await Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]})
            assert found.violations_count == 0, found.generate_report()
        await page.evaluate("document.querySelectorAll('.more:not([hidden])').forEach((one) => one.click())")
        await expect(page.locator("#errors tbody tr")).to_have_count(50)
        await expect(page.locator("#routes tbody tr")).to_have_count(30)
        for width in (320, 360, 768, 993, 1280):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await seen.settled() == []


async def test_what_is_not_there_is_said_in_a_line(scene: DashboardScene) -> None:
    reported = {"status": status_scenes.starting(), "history": status_scenes.history(0)}
    async with look(scene.browser, "about:blank", token=TOKEN, width=360) as seen, in_haste(seen.page):
        page = await tell(seen, reported, scene)
        await expect(page.locator("#now")).to_contain_text("the app does not answer since")
        await expect(page.locator("#no-trend")).to_have_text("The first point comes five seconds after the start.")
        await expect(page.locator("#off")).to_have_text("Off: upstreams, postgres, store, ledger, tasks.")
        for text in (
            "No alert in",
            "No upstream is named",
            "No upstream has prices",
            "Nothing runs later",
            "No database goes",
            "No error is",
        ):
            await expect(page.get_by_text(text)).to_be_visible()
        assert await page.locator("table:not(.empty), canvas").evaluate_all("(all) => all.map((one) => one.id)") == [
            "parts",
            "routes",
        ]
        reported |= {"status": status_scenes.quiet(), "history": status_scenes.history(0.1)}
        await expect(page.locator("#now")).to_have_text("All is well.")
        await expect(page.locator("#charts h3")).to_have_text(["Requests a minute", "Time of a request", "Memory"])
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        assert await seen.settled() == []


@asynccontextmanager
async def in_haste(page: Page) -> AsyncIterator[None]:
    """The page's own time passes tenfold: it asks every fifth of a second."""
    await page.clock.install()

    async def run() -> None:
        while True:
            await asyncio.sleep(0.2)
            await page.clock.fast_forward(2000)

    running = asyncio.create_task(run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def tell(seen: Look, reported: Mapping[str, object], scene: DashboardScene) -> Page:
    """The page, of what no gateway says in the time that a test has."""

    async def answer(route: Route) -> None:
        history = "history" in route.request.url
        await route.fulfill(json={"history": reported["history"]} if history else reported["status"])

    await seen.page.route("**/status*", answer)
    await seen.page.goto(f"{scene.admin}/dashboard")
    return seen.page


async def test_what_is_old_is_said_to_be_old_and_a_hidden_tab_does_not_ask(scene: DashboardScene) -> None:
    async with look(scene.browser, f"{scene.admin}/dashboard", token=TOKEN) as seen:
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


async def test_an_error_is_found_by_its_request_id(scene: DashboardScene) -> None:
    await scene.ask("/narrow", user="ann")
    await scene.ask("/die", user="ann", **{"X-Request-Id": "lost-1"})
    async with look(scene.browser, f"{scene.admin}/dashboard", token=TOKEN) as seen:
        page = seen.page
        await expect(page.locator("#errors")).to_contain_text("lost-1")
        await page.get_by_label("Find a request id").fill("nothing-like-it")
        await expect(page.locator("#errors")).to_be_hidden()
        await page.get_by_label("Find a request id").fill("lost-1")
        await expect(page.locator("#errors tbody tr")).to_have_count(1)
        await expect(page.locator("#errors")).to_contain_text("GET /die")
