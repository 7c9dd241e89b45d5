"""Hosts that no upstream names, by CONNECT and absolute form; and upgrades, which are raw tunnels too."""

import asyncio
import json

import aiohttp
import httpx
import pytest
from aiohttp import web
from egress_gateway import Vendor, egress_gateway, errs, resets, says

OBSERVE = "egress: {other_hosts: observe, timeout: {connect: 1s, idle: 400ms, total: 5s}}\n"


async def test_absolute_form_is_relayed_as_it_is(tmp_path):
    vendor = Vendor(says({"ok": True}, x_own="a"))
    async with egress_gateway(tmp_path, vendor, more=OBSERVE) as out:
        async with httpx.AsyncClient(proxy=out.url) as http:
            answer = await http.post(f"http://127.0.0.1:{vendor.port}/a%2Fb?q=%7E", content=b"body")
        assert (answer.json(), answer.headers["x-own"]) == ({"ok": True}, "a")
        assert (await out.logged())[0]["outcome"] == "ok"
    method, path, headers, body = vendor.requests[0]
    assert (method, path, body) == ("POST", "/a%2Fb?q=%7E", b"body")
    assert headers["Host"] == f"127.0.0.1:{vendor.port}"
    assert "Proxy-Connection" not in headers


async def connect(out, target: str, then: bytes = b""):
    reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
    writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() + then)
    return reader, writer


async def test_connect_is_a_tunnel_and_loses_no_byte_that_came_with_it(tmp_path):
    vendor = Vendor(says({"ok": True}))
    async with egress_gateway(tmp_path, vendor, more=OBSERVE) as out:
        request = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        reader, writer = await connect(out, f"127.0.0.1:{vendor.port}", request)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
        assert answer.endswith(b'{"ok": true}')


async def test_a_tunnel_carries_megabytes_both_ways(tmp_path):
    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with egress_gateway(tmp_path, Vendor(says()), more=OBSERVE) as out:
        reader, writer = await connect(out, f"127.0.0.1:{port}")
        await reader.readuntil(b"\r\n\r\n")
        sent = b"x" * 3_000_000
        writer.write(sent)
        assert await asyncio.wait_for(reader.readexactly(len(sent)), 10) == sent
        writer.close()
    server.close()


async def test_nobody_there_is_502_and_a_host_that_keeps_failing_is_refused_at_once(tmp_path):
    vendor = Vendor(says())
    more = OBSERVE.replace("timeout:", "breaker: {min_calls: 3}, timeout:")
    async with egress_gateway(tmp_path, vendor, more=more) as out:
        await vendor.stop()
        seen = []
        for _ in range(4):
            reader, writer = await connect(out, f"127.0.0.1:{vendor.port}")
            seen.append((await asyncio.wait_for(reader.readuntil(b"\r\n"), 5)).split()[1])
            writer.close()
        assert seen == [b"502", b"502", b"502", b"503"]


async def test_denied_hosts_are_told_so_and_named_ones_pass(tmp_path):
    vendor = Vendor(says({"ok": True}))
    async with egress_gateway(tmp_path, vendor, more="egress: {other_hosts: deny}\n") as out:
        reader, writer = await connect(out, "example.invalid:443")
        answer = await asyncio.wait_for(reader.read(2000), 5)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"egress.other_hosts" in answer
        async with httpx.AsyncClient(proxy=out.url) as http:
            assert (await http.get(f"http://127.0.0.1:{vendor.port}/")).status_code == 200


@pytest.mark.parametrize(
    ("base_url", "passes", "denied"),
    [
        ("https://api.far.invalid/v1", "api.far.invalid:443", ["api.far.invalid:22", "api.far.invalid:80"]),
        ("http://api.far.invalid", "api.far.invalid:80", ["api.far.invalid:443", "far.invalid:80"]),
        ("https://API.far.invalid:8443", "Api.FAR.invalid:8443", ["api.far.invalid:443"]),
        ("https://[2001:db8::1]", "[2001:db8::1]:443", ["[2001:db8::1]:22", "[2001:db8::2]:443"]),
    ],
)
async def test_only_the_port_that_an_upstream_names_passes_where_others_are_denied(tmp_path, base_url, passes, denied):
    more = f"  far: {{kind: http, base_url: '{base_url}'}}\n"
    more += "egress: {other_hosts: deny, timeout: {connect: 100ms}}\n"
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:

        async def said(target: str) -> bytes:
            reader, writer = await connect(out, target)
            answer = await asyncio.wait_for(reader.read(2000), 10)
            writer.close()
            return answer

        assert not (await said(passes)).startswith(b"HTTP/1.1 403")  # there is nobody of that name to reach
        for target in denied:
            answer = await said(target)
            assert answer.startswith(b"HTTP/1.1 403"), target
            assert b"egress.other_hosts" in answer
        async with httpx.AsyncClient(proxy=out.url) as http:
            assert (await http.get("http://api.far.invalid:22/")).status_code == 403


async def test_an_idle_tunnel_ends_and_leaves_nothing(tmp_path):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with egress_gateway(tmp_path, Vendor(says()), more=OBSERVE) as out:
        before = len(asyncio.all_tasks())
        tunnels = [await connect(out, f"127.0.0.1:{port}") for _ in range(20)]
        for reader, writer in tunnels[:10]:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()
        for reader, writer in tunnels[10:]:
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        for _ in range(100):
            if len(asyncio.all_tasks()) <= before:
                break
            await asyncio.sleep(0.02)
        assert len(asyncio.all_tasks()) <= before
    server.close()


async def test_a_broken_answer_breaks_off(tmp_path):
    async def half(request):
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        await asyncio.sleep(0.05)
        request.transport.abort()
        return response

    async with egress_gateway(tmp_path, Vendor(half), more=OBSERVE) as out:
        async with httpx.AsyncClient(proxy=out.url) as http:
            with pytest.raises(httpx.HTTPError):
                await http.get(f"http://127.0.0.1:{out.openai.policy.base_url.rsplit(':')[-1].split('/')[0]}/")


async def test_what_no_proxy_understands_is_400(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says()), more=OBSERVE) as out:
        reader, writer = await asyncio.open_connection("127.0.0.1", out.port)
        writer.write(b"GET https://a/b HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"}"), 5)).startswith(b"HTTP/1.1 400")
        writer.close()


# ── upgrades ─────────────────────────────────────────────────────────────────────────────────


async def socket_echo(request):
    ws = web.WebSocketResponse(protocols=["realtime"], max_msg_size=2**22)
    await ws.prepare(request)
    async for message in ws:
        if message.data == "close":
            await ws.close(code=4001, message=b"bye")
        elif message.type == aiohttp.WSMsgType.TEXT:
            await ws.send_str(message.data)
        else:
            await ws.send_bytes(message.data)
    return ws


async def test_websockets_pass_as_they_are(tmp_path):
    vendor = Vendor(socket_echo)
    async with egress_gateway(tmp_path, vendor, openai="timeout: {connect: 1s, total: 1s}") as out:
        url = f"{out.url}/openai/v1/realtime?model=m"
        async with out.session.ws_connect(url, protocols=["realtime"], compress=15, max_msg_size=2**22) as ws:
            assert ws.protocol == "realtime"
            await ws.send_str("a")
            assert await ws.receive_str() == "a"
            big = b"x" * 2**20
            await ws.send_bytes(big)
            assert await ws.receive_bytes() == big
            await asyncio.sleep(1.2)  # no deadline ends it
            await ws.send_str("b")
            assert await ws.receive_str() == "b"
            await ws.send_str("close")
            message = await ws.receive()
            assert (message.type, ws.close_code) == (aiohttp.WSMsgType.CLOSE, 4001)
        assert (await out.logged())[0]["status"] == 101
    assert vendor.requests[0][1] == "/v1/realtime?model=m"


async def test_an_app_that_leaves_a_websocket_closes_it_beyond(tmp_path):
    vendor = Vendor(socket_echo)
    async with egress_gateway(tmp_path, vendor) as out:
        before = len(asyncio.all_tasks())
        for _ in range(20):
            async with aiohttp.ClientSession() as session:
                ws = await session.ws_connect(f"{out.url}/openai/v1/realtime")
                ws._response.close()
        for _ in range(100):
            if not vendor.open and len(asyncio.all_tasks()) <= before:
                break
            await asyncio.sleep(0.02)
        assert vendor.open == 0
        assert out.egress.accounting.in_flight == 0


@pytest.mark.parametrize(("answer", "status"), [(errs(403), 403), (resets(), 502)])
async def test_a_refused_upgrade_is_a_plain_answer(tmp_path, answer, status):
    async with egress_gateway(tmp_path, Vendor(answer)) as out:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await out.session.ws_connect(f"{out.url}/openai/v1/realtime")
        assert raised.value.status == status


async def test_status_shows_every_upstream(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        await out.chat()
        assert json.dumps(out.egress.status())
        assert out.egress.status()["openai"]["breaker"] == "closed"
