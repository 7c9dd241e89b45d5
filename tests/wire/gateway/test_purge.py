"""`ctl purge ROUTE [PATH]`, `ctl purge UPSTREAM`: an operator empties what a route or an upstream keeps."""

import asyncio
import json
import sys

import aiohttp
from egress_gateway import CHAT, Vendor, says
from gateway_process import APPS, ROOT, gateway

POLICY = """
routes:
  - {name: api, match: {path: /api/*}}
  - {name: pages, match: {path: /*}, cache: {ttl: 1h, scope: public}}
"""


async def ctl(g, *words):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "ctl", *words, "--policy", str(g.out.parent / f"policy-{g.port}.yaml"),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def is_hit(g, target):
    return b"Cache-Status: outrigger; hit" in await g.request(target)


async def test_a_route_or_a_path_of_it_is_emptied_and_an_unknown_route_is_an_error(tmp_path):
    async with gateway(tmp_path, sys.executable, str(APPS / "plain.py"), policy=POLICY) as g:
        await g.ready()
        for target in ("/a", "/a?x=1", "/b"):
            await g.request(target)
            assert await is_hit(g, target)
        code, said = await ctl(g, "purge", "pages", "/a")
        assert (code, "pages forgot 2 answers to /a" in said) == (0, True), said
        assert not await is_hit(g, "/a")
        assert await is_hit(g, "/b")
        code, said = await ctl(g, "purge", "pages")
        assert (code, "pages forgot 2 answers" in said) == (0, True), said
        assert not await is_hit(g, "/b")
        code, said = await ctl(g, "purge", "nowhere")
        assert (code, "nowhere is no route; there are api, pages, default" in said) == (1, True), said
        code, said = await ctl(g, "purge", "api")
        assert (code, "keeps no answers" in said) == (0, True), said
        code, said = await ctl(g, "purge", "openai")
        assert (code, "openai is no route" in said) == (1, True), f"it keeps no answers, so it has nothing: {said}"


async def test_an_upstream_is_emptied_by_its_name_and_a_route_of_that_name_with_it(tmp_path):
    vendor = Vendor(says())
    await vendor.start()
    base, keeps = f"http://127.0.0.1:{vendor.port}/v1", "cache: {ttl: 1h, when: always}"
    named = f"{{openai: {{base_url: '{base}', {keeps}}}, pages: {{kind: openai, base_url: '{base}', {keeps}}}}}"
    async with (
        gateway(tmp_path, sys.executable, str(APPS / "plain.py"), policy=f"{POLICY}upstreams: {named}\n") as g,
        aiohttp.ClientSession() as session,
    ):
        await g.ready()

        async def ask(upstream):
            url = f"http://127.0.0.1:{g.egress}/{upstream}/v1/chat/completions"
            async with session.post(url, json=CHAT) as answer:
                return answer.headers["x-outrigger-cache"]

        for upstream in ("openai", "pages"):
            assert [await ask(upstream), await ask(upstream)] == ["miss", "hit"]
        body = (await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2]
        shown = json.loads(body)["upstreams"]["openai"]["cache"]
        assert (shown["answers"], shown["hit_ratio"]) == (1, 0.5)
        code, said = await ctl(g, "purge", "openai")
        assert (code, "The upstream openai forgot 1 answer." in said) == (0, True), said
        assert [await ask("openai"), await ask("pages")] == ["miss", "hit"]
        await g.request("/a")
        code, said = await ctl(g, "purge", "pages")
        assert (code, "pages forgot 1 answer. The upstream pages forgot 1 answer." in said) == (0, True), said
        assert await ask("pages") == "miss"
        code, said = await ctl(g, "purge", "openai", "/v1")
        assert (code, "openai is no route" in said) == (1, True), "its answers have no paths"
    await vendor.stop()


async def test_status_says_what_a_route_keeps_and_how_often_the_app_was_spared(tmp_path):
    async with gateway(tmp_path, sys.executable, str(APPS / "plain.py"), policy=POLICY) as g:
        await g.ready()
        for _ in range(4):
            await g.request("/a")
        body = (await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2]
        routes = json.loads(body)["routes"]
    assert routes["api"]["cache"] is None
    assert routes["pages"]["cache"]["answers"] == 1
    assert routes["pages"]["cache"]["hit_ratio"] == 0.75
    assert routes["pages"]["cache"]["bytes"] > 0
