"""Whose work a token names after its request: for ten minutes, whatever else came in meanwhile."""

import asyncio
import re

import pytest
from egress_gateway import CHAT, Vendor, egress_gateway, says
from ingress_gateway import answering, ingress_gateway, until

from proxy.observe.request_registry import KEEP_ENDED_SECONDS, MAX_UNUSED_ENDED, MAX_USED_ENDED, RequestRegistry

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n."
TOKEN = re.compile(rb"X-Outrigger-Request: (\w+)", re.IGNORECASE)
BY_HEADER = "identity: {user: [{header: X-User}]}"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


async def ask(gateway, user="ada"):
    """One request; its token, as the app got it."""
    assert b" 200 " in await gateway.get("/", f"X-User: {user}")
    return TOKEN.search(gateway.app.heads[-1])[1].decode()


async def static_files(gateway, count):
    """So many requests for pages and files, that call nobody."""
    reader, writer = await gateway.connect()
    for _ in range(0, count, 50):
        writer.write(b"GET /static/app.js HTTP/1.1\r\nHost: t\r\nX-User: bob\r\n\r\n" * 50)
        for _ in range(50):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            await reader.readexactly(1)
        gateway.app.heads.clear()
    writer.close()


@pytest.mark.parametrize("called_before", [True, False])
async def test_a_background_task_keeps_its_owner_over_six_thousand_static_files(tmp_path, called_before):
    app = answering(PAGE)
    async with (
        egress_gateway(tmp_path, Vendor(says())) as out,
        ingress_gateway(app, BY_HEADER, requests=out.requests) as gateway,
    ):
        token = await ask(gateway)
        if called_before:
            await out.chat(CHAT, {"X-Outrigger-Request": token})
        await static_files(gateway, 6000)
        await out.chat(CHAT, {"X-Outrigger-Request": token})
        line = (await out.logged(1 + called_before))[-1]
        assert (line["user"], len(line["request_id"])) == ("ada", 32)


async def test_where_there_are_too_many_those_that_nobody_came_back_with_go_first(monkeypatch):
    monkeypatch.setattr("proxy.observe.request_registry.MAX_UNUSED_ENDED", 160)
    requests = RequestRegistry(asyncio.get_running_loop().time)
    async with ingress_gateway(answering(PAGE), BY_HEADER, requests=requests) as gateway:
        early, silent = await ask(gateway), await ask(gateway, "eve")
        assert requests.find(early).user == "ada"
        await static_files(gateway, 400)
        assert requests.find(early).user == "ada"
        assert requests.find(silent) is None


async def test_requests_that_were_refused_push_nobody_out(monkeypatch):
    """Their tokens never left, so nobody can come with them."""
    monkeypatch.setattr("proxy.observe.request_registry.MAX_UNUSED_ENDED", 160)
    requests = RequestRegistry(asyncio.get_running_loop().time)
    policy = f"{BY_HEADER}\nroutes: [{{name: a, match: {{path: /limited}}, rate_limit: 1/h}}]"
    async with ingress_gateway(answering(PAGE), policy, requests=requests) as gateway:
        token = await ask(gateway)
        for _ in range(300):
            await gateway.get("/limited", "X-User: bob")
        assert requests.find(token).user == "ada"


class Asked:
    tier, request_id, trace_id, route_name = "free", "r" * 32, "a" * 32, "ask"

    def __init__(self, user="ada"):
        self.user = user

    def time_left(self, now):
        return None


def over(requests, token, user="ada", **how):
    requests.begin(token, Asked(user))
    requests.end(token, **how)


def test_an_owner_is_told_as_it_was_whatever_is_in_its_names():
    requests = RequestRegistry(Clock())
    for at, user in enumerate(("ada", "", "Zoë", "a\0b", "\ud83d", "x" * 1000)):
        over(requests, str(at), user)
        owner = requests.find(str(at))
        assert (owner.user, owner.tier, owner.route) == (user.replace("\0", "\ufffd"), "free", "ask")
        assert (owner.request_id, owner.trace_id, owner.request) == ("r" * 32, "a" * 32, None)


def test_a_token_that_came_back_does_not_hold_longer_for_it():
    clock = Clock()
    requests = RequestRegistry(clock)
    over(requests, "one")
    for _ in range(int(KEEP_ENDED_SECONDS // 50)):
        clock.now += 50
        assert requests.find("one") is not None
        over(requests, f"other{clock.now}")
    clock.now += 1
    assert requests.find("one") is None


def test_what_is_remembered_is_bounded_and_goes_with_time():
    clock = Clock()
    requests = RequestRegistry(clock)
    for at in range(MAX_UNUSED_ENDED + MAX_USED_ENDED):
        over(requests, f"s{at}")
        over(requests, f"h{at}")
        requests.find(f"h{at}")
    ended = int(re.search(r"(\d+) ended", repr(requests))[1])
    assert 0.9 * (MAX_UNUSED_ENDED + MAX_USED_ENDED) <= ended <= MAX_UNUSED_ENDED + MAX_USED_ENDED
    clock.now += KEEP_ENDED_SECONDS + 1
    over(requests, "last")
    over(requests, "heard")
    requests.find("heard")
    assert re.search(r"(\d+) ended", repr(requests))[1] == "2"


async def test_a_query_says_whose_it_is_by_the_same_token(tmp_path):
    """The database door asks the same place; a token that it asked for counts as used."""
    requests = RequestRegistry(asyncio.get_running_loop().time)
    app = answering(PAGE)
    async with ingress_gateway(app, BY_HEADER, requests=requests) as gateway:
        token = await ask(gateway)
        assert requests.register_work(token, lambda: None) is not None  # it has ended: there is nothing to cancel
        assert requests.find(token).route == "default"
        await until(lambda: "0 live, 1 ended" in repr(requests))
