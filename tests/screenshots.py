"""`make screenshots`: the README's pictures of the dashboard, of the demo while its model's vendor is down.

Two minutes of small traffic come first, so that there is something to see.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

import aiohttp
import browser as chromium
from browser import look, says
from egress_gateway import Vendor, errs
from egress_gateway import says as answers
from free_ports import free_port

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TRAFFIC = 100.0  # seconds before the vendor goes down
PEOPLE = ("ada", "grace", "premium_alan", "edsger", "barbara", "admin_tony")
NEVER = 120.0  # seconds until something that does not come is given up


class Demo:
    def __init__(self, port: int, admin: int, vendor: Vendor, session: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.admin = f"http://127.0.0.1:{admin}"
        self.vendor = vendor
        self.session = session

    async def get(self, path: str, method: str = "GET") -> int:
        try:
            async with self.session.request(
                method, f"{self.url}{path}", json={} if method == "POST" else None
            ) as answer:
                await answer.read()
                return answer.status
        except aiohttp.ClientError:
            return 0

    async def ready(self) -> None:
        deadline = time.monotonic() + NEVER
        while await self.get("/health") != 200:
            assert time.monotonic() < deadline, "the demo never came up"
            await asyncio.sleep(0.2)

    async def traffic(self) -> None:
        """Until it is cancelled: pages and notes, a question now and then, one user who asks too often."""
        while True:
            user = random.choice(PEOPLE)
            await asyncio.gather(
                self.get("/"),
                self.get("/api/notes"),
                self.get(f"/api/user/{user}/ask", "POST"),
                self.get("/api/user/linus/ask", "POST"),
            )
            await asyncio.sleep(random.uniform(0.2, 1.2))


async def main() -> None:
    if chromium.found() is None:
        sys.exit(f"screenshots: {chromium.MISSING}")
    vendor = Vendor(answers())
    await vendor.start()
    port, admin, egress, pool = (free_port() for _ in range(4))
    text = (ROOT / "config" / "policy.yaml").read_text()
    text = text.replace("listen:\n", f"listen:\n  admin: 127.0.0.1:{admin}\n  egress: 127.0.0.1:{egress}\n")
    text = text.replace("postgres:\n", f"postgres:\n  listen: 127.0.0.1:{pool}\n")
    policy, ledger = Path("var", "screenshots.yaml"), Path("var", "screenshots.db")
    (ROOT / "var").mkdir(exist_ok=True)
    for old in (ROOT / "var").glob(f"{ledger.name}*"):
        old.unlink()
    (ROOT / policy).write_text(f"{text}\nledger: {{url: 'sqlite:///{ledger}'}}\n")
    environ = {
        **os.environ,
        "PORT": str(port),
        "OPENAI_BASE_URL": f"http://127.0.0.1:{vendor.port}/v1",
        "OUTRIGGER_POLICY": str(policy),
    }
    run = ("deploy/demo/run.py", "--gateway", sys.executable)
    process = await asyncio.create_subprocess_exec(
        ROOT / ".demo" / "bin" / "python", *run, cwd=ROOT, env=environ, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with aiohttp.ClientSession() as session:
            await shoot(Demo(port, admin, vendor, session))
    finally:
        process.terminate()
        await process.wait()
        await vendor.stop()


async def shoot(demo: Demo) -> None:
    await demo.ready()
    busy = asyncio.create_task(demo.traffic())
    await asyncio.sleep(TRAFFIC)
    demo.vendor.answers = [errs(503)]
    DOCS.mkdir(exist_ok=True)
    async with chromium.browser() as real:
        async with (
            look(real, f"{demo.admin}/", height=940) as wide,
            look(real, f"{demo.admin}/", width=360, height=760, scheme="dark") as phone,
        ):
            for seen, name in ((wide, "dashboard"), (phone, "dashboard-phone")):
                await says(seen.page, "is not answering", timeout=NEVER)
                await seen.page.wait_for_selector("#alert-list li:has-text('openai')", timeout=NEVER * 1000)
                await seen.page.wait_for_selector("#charts canvas")
                await seen.page.screenshot(path=DOCS / f"{name}.png")
                print(f"docs/{name}.png", (DOCS / f"{name}.png").stat().st_size // 1024, "KiB")
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
