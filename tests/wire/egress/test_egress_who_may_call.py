"""Who may call out with the real key: whoever shows the one that was made for the app, and no page in a browser."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket

import pytest
from egress_gateway import ReceivedCall, Vendor, egress_gateway, says
from gateway_process import APPS, eventually, gateway

STRIPE = '  stripe: {kind: http, base_url: "http://127.0.0.1:<0>", api_key: sk_live:1/2}\n'


def put(text: str, key: str) -> str:
    """KEY and REAL replaced; what stands in angle brackets is base64."""
    text = text.replace("KEY", key).replace("REAL", key)
    return re.sub("<(.*)>", lambda found: base64.b64encode(found[1].encode()).decode(), text)


# how a call shows the key KEY, and what the vendor then gets, with the real one as REAL: target and a header field
SHOWN = {
    "bearer": ("/v1/charges", {"Authorization": "Bearer KEY"}, "/v1/charges", ("Authorization", "Bearer REAL")),
    "scheme of its own": ("/a", {"Authorization": "Token token=KEY"}, "/a", ("Authorization", "Token token=REAL")),
    "basic, as the user": ("/a", {"Authorization": "Basic <KEY:>"}, "/a", ("Authorization", "Basic <REAL:>")),
    "basic, as the password": ("/a", {"Authorization": "Basic <me:KEY>"}, "/a", ("Authorization", "Basic <me:REAL>")),
    "x-api-key": ("/a", {"X-Api-Key": "KEY"}, "/a", ("X-Api-Key", "REAL")),
    "api-key": ("/a", {"api-key": "KEY"}, "/a", ("api-key", "REAL")),
    "a field of the vendor's own": ("/a", {"X-Goog-Api-Key": "KEY"}, "/a", ("X-Goog-Api-Key", "REAL")),
    "the query": ("/a?x=1&key=KEY&y=2", {}, "/a?x=1&key=sk_live:1/2&y=2", None),
    "the path": ("/botKEY/getMe", {}, "/botsk_live:1/2/getMe", None),
    "twice": ("/a?key=KEY", {"x-key": "KEY"}, "/a?key=sk_live:1/2", ("x-key", "REAL")),
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
async def test_the_real_key_takes_the_place_of_the_made_one_wherever_it_is_shown(tmp_path, name):
    target, fields, reached, field = SHOWN[name]
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, more=STRIPE) as out:
        made = out.egress.app_environment(out.policy, "h:1", {})["STRIPE_API_KEY"]

        headers = {key: put(value, made) for key, value in fields.items()}
        async with out.session.get(f"{out.url}/stripe{put(target, made)}", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
        [(_, path, got, _)] = vendor.requests
        assert path == reached
        if field is not None:
            assert got[field[0]] == put(field[1], "sk_live:1/2")
        assert made not in str(vendor.requests)
        await out.logged()
    assert "sk_live" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer sk-other"}, {"Authorization": "Bearer sk-outrigger-" + "x" * 32}, {"x-api-key": ""}],
)
@pytest.mark.parametrize("upstream", ["stripe", "openai", "claude", "anthropic"])
async def test_an_upstream_with_a_key_of_ours_serves_nobody_who_does_not_show_the_made_one(tmp_path, upstream, headers):
    vendor = Vendor(says())
    more = STRIPE + (
        '  claude: {kind: anthropic, base_url: "http://127.0.0.1:<0>", api_key: sk-ant}\n'
        '  anthropic: {base_url: "http://127.0.0.1:<0>", api_key: sk-ant}\n'
    )
    async with egress_gateway(tmp_path, vendor, openai="api_key: sk-real", more=more) as out:
        async with out.session.post(f"{out.url}/{upstream}/v1/x", headers=headers) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (401, "invalid_api_key")
    assert vendor.requests == []


async def test_keys_of_one_upstream_open_no_other_of_kind_http(tmp_path):
    vendor = Vendor(says())
    other = '  mail-er: {kind: http, base_url: "http://127.0.0.1:<0>", api_key: mg}\n'
    async with egress_gateway(tmp_path, vendor, more=STRIPE + other) as out:
        env = out.egress.app_environment(out.policy, "h:1", {})
        for upstream, variable, status in (
            ("mail-er", "MAIL_ER_API_KEY", 200),
            ("mail-er", "STRIPE_API_KEY", 401),
            ("stripe", "STRIPE_API_KEY", 200),
        ):
            headers = {"x-api-key": env[variable]}
            async with out.session.get(f"{out.url}/{upstream}/x", headers=headers) as answer:
                assert answer.status == status, (upstream, variable)


async def test_the_app_has_the_key_in_a_variable_named_after_its_upstream(tmp_path):
    vendor = Vendor(says())
    await vendor.start()
    policy = f"""
upstreams:
  stripe: {{kind: http, base_url: "http://127.0.0.1:{vendor.port}", api_key: sk_live, env: [STRIPE_BASE_URL]}}
  plain: {{kind: http, base_url: "http://127.0.0.1:{vendor.port}"}}
"""
    try:
        async with gateway(tmp_path, "python3", str(APPS / "plain.py"), policy=policy) as g:
            await g.ready()
            made = (await g.request("/env?STRIPE_API_KEY")).partition(b"\r\n\r\n")[2].decode()
            assert made.startswith("sk-outrigger-")
            assert (await g.request("/env?PLAIN_API_KEY")).partition(b"\r\n\r\n")[2].decode() == "(unset)"
            shown = [f"Authorization: Bearer {made}"]
            assert (await g.request("/stripe/x", port=g.egress, headers=shown)).startswith(b"HTTP/1.1 200")
            assert (await g.request("/stripe/x", port=g.egress)).startswith(b"HTTP/1.1 401")
            await eventually(lambda: len(g.events("call")) >= 2)
            await g.stop()
            assert made not in g.output()
            assert "sk_live" not in g.output()
    finally:
        await vendor.stop()


# ── pages in a browser ───────────────────────────────────────────────────────────────────────


async def ask(port: int, *fields: str, target: str = "/openai/v1/models", method: str = "GET", host: str = "127.0.0.1"):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write("\r\n".join([f"{method} {target} HTTP/1.1", *fields, "Connection: close", "", ""]).encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode("latin-1").lower(), body


HERE = "Host: 127.0.0.1:9902"
PAGES = {
    "a page of another site": ((HERE, "Origin: https://evil.example"), 403, "cross_site"),
    "one that hides its origin": ((HERE, "Origin: null"), 403, "cross_site"),
    "one that shows a key": ((HERE, "Origin: https://evil.example", "Authorization: Bearer x"), 403, "cross_site"),
    "one of a site that looks like ours": ((HERE, "Origin: http://localhost.evil.example"), 403, "cross_site"),
    "a picture or a script of another site": ((HERE, "Sec-Fetch-Site: cross-site"), 403, "cross_site"),
    "a rebound name": (("Host: evil.example:9902",), 421, "misdirected"),
    "a rebound name that looks like ours": (("Host: localhost.evil.example:9902",), 421, "misdirected"),
    "an address of somebody else's": (("Host: 10.0.0.1:9902",), 421, "misdirected"),
    "an IPv6 address of somebody else's": (("Host: [fe80::1]:9902",), 421, "misdirected"),
    "a Host of nothing": (("Host: ",), 421, "misdirected"),
}


@pytest.mark.parametrize("name", PAGES)
async def test_no_page_in_a_browser_is_served(tmp_path, name):
    fields, status, code = PAGES[name]
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        for method, target in (("GET", "/openai/v1/models"), ("OPTIONS", "/openai/v1/models"), ("GET", "/nobody/x")):
            got, head, body = await ask(out.port, *fields, method=method, target=target)
            assert (got, json.loads(body)["error"]["code"]) == (status, code)
            assert "access-control" not in head
        lines = await out.logged(3)
        assert {line["refused"] for line in lines} == {code}
    assert vendor.requests == []


APPS_OWN = {
    "an address": (HERE,),
    "a name": ("Host: localhost:9902",),
    "IPv6": ("Host: [::1]:9902",),
    "the upstream's own, stated by the app": ("Host: 127.0.0.1:1",),
    "a name of the machine's own": ("Host: outrigger:9902",),
    "a container's way to its host": ("Host: host.docker.internal:9902",),
    "a page of the app's in development, passed on": (HERE, "Origin: http://localhost:3000"),
    "a page of the app's, passed on": (HERE, "Origin: https://my.app", "Sec-Fetch-Site: same-origin"),
    "a page of the app's other host, passed on": (HERE, "Origin: https://my.app", "Sec-Fetch-Site: same-site"),
}


@pytest.mark.parametrize("name", APPS_OWN)
async def test_the_apps_own_calls_are(tmp_path, name):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        assert (await ask(out.port, *APPS_OWN[name]))[0] == 200


async def test_the_host_of_the_upstream_itself_is_no_strangers(tmp_path):
    more = '  far: {kind: http, base_url: "https://api.far.example"}\n'
    async with egress_gateway(tmp_path, Vendor(says()), more=more) as out:
        assert (await ask(out.port, "Host: api.far.example"))[0] == 200
        assert (await ask(out.port, "Host: api.farther.example"))[0] == 421


async def test_whoever_shows_the_token_of_a_request_under_way_is_the_app(tmp_path):
    async with egress_gateway(tmp_path, Vendor(says())) as out:
        token = "t" * 32
        out.requests.begin(token, ReceivedCall())
        fields = [HERE, "Origin: https://my.app", "Sec-Fetch-Site: cross-site"]
        assert (await ask(out.port, *fields, f"X-Outrigger-Request: {token}"))[0] == 200
        assert (await ask(out.port, *fields, "X-Outrigger-Request: guess"))[0] == 403


async def test_an_address_that_the_policy_opened_to_others_answers_by_any_name(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, bind="0.0.0.0") as out:
        # From another container the connection comes in at an address that is not loopback.
        own = await asyncio.to_thread(own_address)
        if own is None:
            pytest.skip("this machine has loopback alone")
        assert (await ask(out.port, "Host: outrigger:9902", host=own))[0] == 200
        assert (await ask(out.port, f"Host: {own}:9902", "Origin: https://evil.example", host=own))[0] == 403
        assert (await ask(out.port, "Host: evil.example"))[0] == 421  # and on loopback as ever


def own_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return None
        found = probe.getsockname()[0]
    return None if found.startswith("127.") else found


async def test_a_proxys_requests_have_other_hosts_by_nature(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor, more="egress: {other_hosts: observe}") as out:
        target = f"http://127.0.0.1:{vendor.port}/x"
        status, _, _ = await ask(out.port, f"Host: 127.0.0.1:{vendor.port}", "Origin: https://my.app", target=target)
        assert status == 200


async def test_a_web_socket_of_a_page_is_refused_too(tmp_path):
    vendor = Vendor(says())
    async with egress_gateway(tmp_path, vendor) as out:
        fields = [HERE, "Origin: https://evil.example", "Upgrade: websocket"]
        assert (await ask(out.port, *fields))[0] == 403
    assert vendor.requests == []
