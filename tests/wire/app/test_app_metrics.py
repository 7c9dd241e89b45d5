"""`metrics.app`: one scrape for both, whatever the app's own metrics are like."""

from __future__ import annotations

import asyncio
import gzip
import shutil
import subprocess

from aiohttp import web
from free_ports import free_port
from gateway_process import GatewayProcess, gateway
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

TEXT = "# HELP orders_total Orders.\n# TYPE orders_total counter\norders_total 3\n# HELP process_open Files.\n# TYPE process_open gauge\nprocess_open 1\n"
OPEN = '# TYPE orders counter\norders_total{a="b"} 3 # {t="1"} 1.0\n# EOF\n'
ASKED = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class App:
    """Answers what `how` says; keeps what it was asked."""

    def __init__(self) -> None:
        self.how = "text"
        self.asked: list[web.Request] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.path != "/own":
            return web.Response(text="hello")
        self.asked.append(request)
        if self.how == "both":
            if "openmetrics" in request.headers["Accept"]:
                return web.Response(
                    body=OPEN.encode(), headers={"Content-Type": "application/openmetrics-text; version=1.0.0"}
                )
            return web.Response(body=TEXT.encode(), headers={"Content-Type": "text/plain"})
        if self.how == "gzip":
            body = gzip.compress(TEXT.encode())
            return web.Response(body=body, headers={"Content-Type": "text/plain", "Content-Encoding": "gzip"})
        if self.how == "clash":
            return web.Response(text=TEXT + "outrigger_app_up 17\n")
        if self.how == "html":
            return web.Response(text="<p>", content_type="text/html")
        if self.how == "broken":
            return web.Response(text=TEXT + "no sample at all\n")
        if self.how == "error":
            return web.Response(status=500, text=TEXT)
        if self.how == "slow":
            await asyncio.sleep(30)
        if self.how == "bomb":
            body = gzip.compress(b"a 1\n" * 4_000_000, 1)
            return web.Response(body=body, headers={"Content-Type": "text/plain", "Content-Encoding": "gzip"})
        return web.Response(text=TEXT)


async def scrape(g: GatewayProcess, *headers: str) -> tuple[str, str]:
    head, _, body = (await g.request("/metrics", port=g.admin, headers=headers)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return head.decode(), body.decode()


async def test_ours_are_served_with_the_apps_or_without(tmp_path):
    app = App()
    runner = web.ServerRunner(web.Server(app), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with gateway(tmp_path, policy=f"app: {{url: http://127.0.0.1:{port}}}\nmetrics: {{app: /own}}\n") as g:
            await g.ready()
            for how in ("text", "gzip", "clash"):
                app.how = how
                _, text = await scrape(g)
                found = {family.name: family for family in plain(text)}
                assert found["orders"].samples[0].value == 3, how
                assert found["process_open"].samples[0].value == 1
                assert found["outrigger_app_scrape_success"].samples[0].value == 1
                assert found["outrigger_app_scrape_dropped"].samples[0].value == (how == "clash")
                assert found["outrigger_app_up"].samples[0].value == 1
                if shutil.which("promtool"):
                    ran = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True)
                    assert ran.returncode == 0, ran.stderr
                    assert ran.stdout + ran.stderr == b""
            head, text = await scrape(g, ASKED)  # it speaks text alone: then so do we
            assert "text/plain" in head
            assert "# EOF" not in text
            app.how = "both"
            head, text = await scrape(g, ASKED)
            assert "application/openmetrics-text" in head
            assert text.count("# EOF") == 1
            families = {family.name: family for family in openmetrics(text)}
            assert families["orders"].samples[0].exemplar.value == 1
            assert "outrigger_http_requests" in families
            said = 0
            for how in ("html", "broken", "error", "slow", "bomb"):
                app.how = how
                head, text = await scrape(g, ASKED)
                families = {family.name: family for family in openmetrics(text)}
                assert families["outrigger_app_scrape_success"].samples[0].value == 0, how
                assert "orders" not in families
                await scrape(g) if how == "error" else None
                said += 1
            app.how = "text"
            await scrape(g)
            assert await g.stop() == 0
            warnings = [line for line in g.events("metrics.app") if line["level"] == "warning"]
            assert len(warnings) == said
            assert g.events("metrics.app")[-1]["message"] == "The app's own metrics (/own) are there again."
            assert not [line for line in g.events("request") if line["path"] == "/own"]
            assert app.asked[0].headers["User-Agent"] == "outrigger-scrape"
    finally:
        await runner.cleanup()
