"""A real Chromium, and the gateway that it looks at."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = f"none of {', '.join(NAMES)} is on PATH (Debian: apt-get install chromium)"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
WATCH = """
window.complaints = [];
addEventListener("securitypolicyviolation", (event) => complaints.push(event.violatedDirective + " " + event.blockedURI));
"""


def found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=found(), args=list(FLAGS))
        try:
            yield running
        finally:
            await running.close()


class Look:
    """A page, and whatever the browser had to complain of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    async def settled(self) -> list[str]:
        return self.complaints + await self.page.evaluate("window.complaints")


@asynccontextmanager
async def look(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    token: str = "",
    reduced: bool = False,
) -> AsyncIterator[Look]:
    """`token` is shown with every request, as who has a header to send."""
    context: BrowserContext = await browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce" if reduced else "no-preference",
        extra_http_headers={"Authorization": f"Bearer {token}"} if token else None,
    )
    context.set_default_timeout(20_000)
    await context.add_init_script(WATCH)
    try:
        page = await context.new_page()
        seen = Look(page)
        await page.goto(url)
        yield seen
    finally:
        await context.close()


async def says(page: Page, text: str, where: str = "#now", timeout: float = 20.0) -> str:
    """Wait until a part of the page has this text."""
    await page.wait_for_function(
        "([where, text]) => document.querySelector(where)?.innerText.includes(text)",
        arg=[where, text],
        timeout=timeout * 1000,
    )
    return await page.inner_text(where)


async def picture(page: Page, file: Path, *, full: bool = False) -> None:
    await page.screenshot(path=file, full_page=full)
