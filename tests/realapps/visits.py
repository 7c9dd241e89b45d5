"""What a person does in an app's own pages, in a real Chromium."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, TimeoutError
from seen import Seen
from started import Started

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from browser import browser, found

__all__ = ["browser", "found", "visit"]
PATIENCE = 45_000  # milliseconds; a page of a few megabytes on a machine that is busy
Act = Callable[[Page], Awaitable[Any]]


async def visit(browser: Browser, app: Started, path: str, act: Act) -> Seen:
    """Its page opened and used: what the person saw at the end, errors in the console, files that did not come."""
    context = await browser.new_context(service_workers="block", extra_http_headers={"X-Forwarded-For": "203.0.113.99"})
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    console: set[str] = set()
    failed: set[str] = set()
    sockets: list[str] = []
    port = str(app.port)
    page.on(
        "console", lambda said: console.add(said.text.replace(port, "PORT")[:150]) if said.type == "error" else None
    )
    page.on("pageerror", lambda error: console.add(str(error).replace(port, "PORT")[:150]))
    page.on("websocket", lambda ws: sockets.append(ws.url))
    page.on(
        "response", lambda answer: failed.add(f"{answer.status} {_path(answer.url)}") if answer.status >= 400 else None
    )
    facts: dict[str, Any] = {}
    try:
        await page.goto(app.url + path, wait_until="load")
        facts["seen"] = await act(page)
    except TimeoutError as error:
        facts["seen"] = f"never came: {error.message.splitlines()[0][:120]}"
    facts["console"], facts["failed"], facts["sockets"] = sorted(_ours(console)), sorted(_own(failed)), bool(sockets)
    await context.close()
    came = "never came" not in str(facts["seen"])
    return Seen(facts, int(came), 1, said="" if came else str(facts["seen"]))


def _path(url: str) -> str:
    return url.partition("//")[2].partition("?")[0]


def _own(failed: set[str]) -> set[str]:
    return {one.partition(" ")[0] + " /" + one.partition("/")[2] for one in failed if "127.0.0.1" in one}


def _ours(console: set[str]) -> set[str]:
    """Without what pages say of hosts that cannot be reached from a machine without a network."""
    return {
        one
        for one in console
        if "ERR_NAME_NOT_RESOLVED" not in one and "ERR_INTERNET" not in one and "net::ERR_" not in one
    }


async def plain_page(page: Page) -> Any:
    """Any app: its title and how much it shows, once it is quiet."""
    try:
        await page.wait_for_load_state("networkidle", timeout=10_000)
    except TimeoutError:
        pass
    return await page.title(), len(await page.evaluate("document.body.innerText")) > 0


async def our_page(page: Page) -> Any:
    """The page of our own small apps: a button that fetches, listens to events and talks over a WebSocket."""
    await page.click("#go")
    await page.wait_for_selector("#seen li:text('done')")
    return sorted(await page.eval_on_selector_all("#seen li", "all => all.map(one => one.textContent)"))


async def datasette(page: Page) -> Any:
    await page.click("a[href='/data']")
    await page.locator("a[href='/data/items']").first.click()
    await page.click("a[href*='_next']")
    return await page.title(), await page.locator("table.rows-and-columns tr").count()


async def streamlit(page: Page) -> Any:
    box = page.get_by_label("Name")
    await box.fill("Ada")
    await box.press("Enter")
    await page.get_by_text("Hello, Ada").wait_for()
    await page.locator("input[type=file]").set_input_files(
        {"name": "sea.bin", "mimeType": "application/octet-stream", "buffer": b"sea" * 700_000}
    )
    digest = await page.get_by_text("sha256").inner_text()
    await page.get_by_role("button", name="Ask").click()
    return digest, await page.get_by_text("Answer:").inner_text()


async def gradio(page: Page) -> Any:
    await page.get_by_label("Name").fill("Ada")
    await page.get_by_role("button", name="Greet").click()
    await page.wait_for_function("[...document.querySelectorAll('textarea,input')].some(e => e.value === 'Hello, Ada')")
    await page.get_by_role("button", name="Ask").click()
    await page.wait_for_function(
        "[...document.querySelectorAll('textarea,input')].some(e => e.value.includes('rough'))"
    )
    return "greeted and answered"


async def django(page: Page) -> Any:
    await page.fill("#id_username", "ada")
    await page.fill("#id_password", "a-long-password")
    await page.click("input[type=submit]")
    await page.get_by_role("link", name="Users", exact=True).click()
    await page.get_by_role("link", name="ada", exact=True).click()
    await page.fill("#id_first_name", "Ada")
    await page.click("input[name=_save]")
    return await page.locator(".messagelist").inner_text()


async def chainlit(page: Page) -> Any:
    await page.get_by_text("Ask me anything").wait_for()
    box = page.locator("#chat-input")
    await box.click()
    await page.keyboard.type("How is the sea?")
    await page.keyboard.press("Enter")
    await page.get_by_text("the boat stays upright").wait_for()
    return "asked and answered"


async def marimo(page: Page) -> Any:
    box = page.locator("marimo-text input, input[type=text]").first
    await box.fill("Ada")
    await box.press("Enter")
    await page.get_by_text("Hello, Ada").wait_for()
    return "named and greeted"


async def jupyterlab(page: Page) -> Any:
    """A notebook made, a cell of it run: its kernel answers over a WebSocket."""
    await page.locator(".jp-LauncherCard[data-category='Notebook']").first.click()
    await page.get_by_text("| Idle").first.wait_for()  # its kernel is up
    cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
    await cell.click()
    await page.keyboard.type("print(6 * 7)")
    await page.keyboard.press("Shift+Enter")
    await page.locator(".jp-OutputArea-output").get_by_text("42").wait_for()
    return "42"


async def next_pages(page: Page) -> Any:
    """Our page, then a link that its router follows by itself."""
    seen = await our_page(page)
    await page.get_by_role("link", name="Items").click()
    await page.wait_for_selector("#items li")
    return seen, await page.locator("#items li").count()
