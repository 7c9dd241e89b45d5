"""An operator's orders: how they are read, who may give them, what is said and logged."""

from __future__ import annotations

import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy.admin.auth import TokenAuthenticator
from proxy.admin.command_endpoint import CommandEndpoint
from proxy.admin.endpoints import AdminEndpoints
from proxy.admin.messages import AdminRequest
from proxy.cli.ctl import run_ctl
from proxy.errors import Refusal, UsageError
from proxy.observe.health import HealthCheckRegistry
from proxy.observe.metrics import Metrics
from proxy.policy import schema


class Actions:
    def __init__(self):
        self.done = []

    def _did(self, *what):
        self.done.append(what)
        return f"did {' '.join(what)}."

    async def block_user(self, user):
        return self._did("block", user)

    async def unblock_user(self, user):
        return self._did("unblock", user)

    async def forgive_user(self, user):
        return self._did("forgive", user)

    async def force_breaker(self, upstream, word):
        if upstream != "openai":
            raise Refusal("unknown-upstream", 404, "No such upstream", f"{upstream} is no upstream; there are openai.")
        return self._did("breaker", upstream, word)

    async def reload_policy(self):
        return self._did("reload")

    async def restart_app(self):
        return self._did("restart-app")

    async def purge_cache(self, route, path):
        return self._did("purge", route, *([path] if path else []))


class AdminFixture:
    def __init__(self, token=""):
        self.actions, self.events = Actions(), []
        self.endpoints = AdminEndpoints(
            health=HealthCheckRegistry(lambda: 0.0, version="1"),
            metrics=Metrics(schema.Metrics(), version="1"),
            authenticator=TokenAuthenticator(token, clock=lambda: 0.0),
            check_readiness=lambda: (True, ""),
            build_status=dict,
            version="1",
            commands=CommandEndpoint(self.actions, self.emit),
        )

    def emit(self, event, message, *, level="info", **facts):
        self.events.append({"event": event, "message": message, "level": level, **facts})

    async def post(self, path, *, method="POST", public=False, **headers):
        headers = {"host": "127.0.0.1:9901"} | {name.replace("_", "-"): text for name, text in headers.items()}
        request = AdminRequest(method, path, headers.get, "203.0.113.9", request_id="r-1")
        answer = await self.endpoints.handle(request, public=public)
        return answer.status, json.loads(answer.body) if answer.body else {}


@pytest.mark.parametrize(
    ("path", "done"),
    [
        ("block/ada", ("block", "ada")),
        ("unblock/ada%2Fb%20%C3%BC", ("unblock", "ada/b ü")),
        ("forgive/ip:192.0.2.1", ("forgive", "ip:192.0.2.1")),
        ("block/%2E%2E", ("block", "..")),
        ("breaker/openai/open", ("breaker", "openai", "open")),
        ("breaker/openai/auto", ("breaker", "openai", "auto")),
        ("reload", ("reload",)),
        ("restart-app", ("restart-app",)),
        ("purge/pages", ("purge", "pages")),
        ("purge/pages/%2Fcaf%25C3%25A9", ("purge", "pages", "/caf%C3%A9")),
    ],
)
async def test_an_order_is_done_said_and_logged(path, done):
    fixture = AdminFixture()
    assert await fixture.post(f"/ctl/{path}") == (200, {"done": f"did {' '.join(done)}."})
    assert fixture.actions.done == [done]
    [event] = fixture.events
    assert event["event"] == "ctl"
    assert event["message"] == f"did {' '.join(done)}."
    assert (event["peer"], event["request_id"], event["level"]) == ("203.0.113.9", "r-1", "info")
    assert event["action"].split()[0] == done[0]
    assert event["subject"] == (done[1] if len(done) > 1 else None)


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("", 404, "There are block/USER"),
        ("dance", 404, "breaker/UPSTREAM/open|close|auto"),
        ("block", 404, "There are"),
        ("block/a/b", 404, "percent-encoded"),
        ("block/", 400, "1 to 256 printable"),
        ("block/%00", 400, "1 to 256 printable"),
        ("block/" + "a" * 257, 400, "1 to 256 printable"),
        ("block/%FF", 400, "not UTF-8"),
        ("block/ada%0D%0ASet-Cookie:%20x=y", 400, "1 to 256 printable"),
        ("block/%E2%80%AEada", 400, "1 to 256 printable"),
        ("purge", 404, "purge/ROUTE[/PATH]"),
        ("purge/pages/a", 404, "purge/ROUTE[/PATH]"),
        ("breaker/openai/ajar", 404, "open|close|auto"),
        ("breaker/mistral/open", 404, "there are openai"),
    ],
)
async def test_an_order_that_makes_no_sense_does_nothing_and_says_what_would(path, status, says):
    fixture = AdminFixture()
    found, body = await fixture.post(f"/ctl/{path}")
    assert (found, body["status"]) == (status, status)
    assert says in body["detail"]
    assert fixture.actions.done == []


@pytest.mark.parametrize(
    ("token", "public", "shown", "status"),
    [
        ("", False, None, 200),
        ("", True, None, 401),
        ("t0ken", False, None, 401),
        ("t0ken", False, "Bearer t0ken", 200),
        ("t0ken", True, None, 401),
        ("t0ken", True, "Bearer wrong", 401),
        ("t0ken", True, "Bearer t0ken", 200),
    ],
)
async def test_only_who_shows_the_token_gives_orders_where_there_is_one(token, public, shown, status):
    fixture = AdminFixture(token)
    headers = {"authorization": shown} if shown else {}
    assert (await fixture.post("/ctl/reload", public=public, **headers))[0] == status
    assert bool(fixture.actions.done) == (status == 200)


async def test_a_page_of_another_site_and_a_rebound_name_give_no_orders():
    fixture = AdminFixture()
    assert (await fixture.post("/ctl/reload", origin="https://evil.example"))[0] == 403
    assert (await fixture.post("/ctl/reload", sec_fetch_site="cross-site"))[0] == 403
    assert (await fixture.post("/ctl/reload", host="evil.example"))[0] == 421
    assert fixture.actions.done == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
async def test_a_look_is_no_order(method):
    fixture = AdminFixture()
    assert (await fixture.post("/ctl/reload", method=method))[0] == 405
    assert fixture.actions.done == []


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["block"],
        ["block", ""],
        ["breaker", "openai"],
        ["breaker", "openai", "ajar"],
        ["reload", "x"],
        ["--x"],
        ["--policy"],
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(words):
    with pytest.raises(UsageError):
        run_ctl(words, {}, io.StringIO(), io.StringIO())


def test_where_nobody_answers_one_sentence_says_which_address_was_tried_and_what_to_do(tmp_path):
    file, err = tmp_path / "p.yaml", io.StringIO()
    file.write_text("listen: {admin: 127.0.0.1:1}\n")
    assert run_ctl(["reload", "--policy", str(file)], {}, io.StringIO(), err) == 1
    assert err.getvalue().startswith("ctl: no gateway answers on 127.0.0.1:1 (")
    assert "listen.admin" in err.getvalue()


@pytest.mark.parametrize(
    ("answer", "says"), [(b"HTTP/1.1 200 OK\r\n\r\nhello", "not as a gateway does"), (b"", "no gateway")]
)
def test_another_that_listens_there_is_told_from_a_gateway(tmp_path, answer, says):
    with socket.create_server(("127.0.0.1", 0)) as server:
        file, err = tmp_path / "p.yaml", io.StringIO()
        file.write_text(f"listen: {{admin: 127.0.0.1:{server.getsockname()[1]}}}\n")

        def serve():
            peer, _ = server.accept()
            with peer:
                asked.append(peer.recv(4096))
                peer.sendall(answer)

        asked: list[bytes] = []
        with ThreadPoolExecutor() as pool:
            pool.submit(serve)
            assert run_ctl(["block", "a/\udcff", "--policy", str(file)], {}, io.StringIO(), err) == 1
    assert says in err.getvalue()
    assert asked[0].startswith(b"POST /ctl/block/a%2F%FF HTTP/1.1\r\n")


def test_a_policy_that_cannot_be_taken_says_why(tmp_path):
    file, err = tmp_path / "p.yaml", io.StringIO()
    file.write_text("lisen: {}\n")
    assert run_ctl(["reload", f"--policy={file}"], {}, io.StringIO(), err) == 2
    assert "p.yaml:1: lisen" in err.getvalue()
