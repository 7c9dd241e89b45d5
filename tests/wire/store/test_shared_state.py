"""What an operator or a vendor says to one instance holds on all of them, and what operators see of instances."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from egress_gateway import Vendor, completion, errs, says
from gateway_process import APPS, GatewayProcess, gateway
from postgres_cluster import Cluster
from store_servers import StoreServer, new_instance, postgres_server, valkey_server

from proxy.cli.doctor import run_doctor
from proxy.cli.explain import run_explain
from proxy.store.marks import SharedMarks

PLAIN = (sys.executable, str(APPS / "plain.py"))
POLICY = """
store: {url: '%s', prefix: %s, region: oregon, timeout: 2s}
identity: {user: [{header: X-User}]}
ledger: {url: 'sqlite:///%s/ledger.db'}
upstreams: {openai: off, mail: {base_url: 'http://127.0.0.1:9'}}
routes: [{name: made, match: {path: /made}, rate_limit: 10/h}]
"""


class Houses:
    def __init__(self, stack: AsyncExitStack, server: StoreServer, folder: Path) -> None:
        self._stack, self._server, self._folder = stack, server, folder

    async def add(self, name: str) -> GatewayProcess:
        """An instance with a disk of its own, as on Render."""
        folder = self._folder / name
        folder.mkdir()
        policy = POLICY % (self._server.url, self._server.prefix, folder)
        made = await self._stack.enter_async_context(gateway(folder, *PLAIN, policy=policy))
        await made.ready()
        return made


@asynccontextmanager
async def houses(server: StoreServer, folder: Path) -> AsyncIterator[Houses]:
    async with AsyncExitStack() as stack:
        yield Houses(stack, server, folder)


async def until(ask, timeout: float = 20.0):
    async with asyncio.timeout(timeout):
        while not (found := await ask()):
            await asyncio.sleep(0.05)
    return found


async def status(g: GatewayProcess) -> dict:
    return json.loads((await g.request("/status", port=g.admin)).partition(b"\r\n\r\n")[2])


async def ctl(g: GatewayProcess, path: str) -> bytes:
    return await g.request(f"/ctl/{path}", method="POST", port=g.admin)


async def code(g: GatewayProcess, user: str) -> bytes:
    return (await g.request("/", headers=[f"X-User: {user}"]))[9:12]


async def test_blocks_and_held_breakers_hold_on_every_instance_and_on_those_to_come(tmp_path: Path) -> None:
    with valkey_server() as server:
        async with houses(server, tmp_path) as made:
            one, two = await made.add("one"), await made.add("two")

            async def blocked(g: GatewayProcess, user: str) -> bool:
                return await code(g, user) == b"403"

            async def breaker(g: GatewayProcess) -> str:
                return (await status(g))["upstreams"]["mail"]["breaker"]

            assert b"is blocked" in await ctl(one, "block/ada")
            assert b"open until" in await ctl(one, "breaker/mail/open")
            await until(lambda: blocked(two, "ada"))
            assert await code(two, "bob") == b"200"
            await until(lambda: _equals(breaker(two), "open"))
            # One that starts later, with an empty disk, knows as well.
            three = await made.add("three")
            await until(lambda: blocked(three, "ada"))
            await until(lambda: _equals(breaker(three), "open"))
            assert b"not blocked any more" in await ctl(three, "unblock/ada")
            await until(lambda: _equals(code(one, "ada"), b"200"))
            await until(lambda: _equals(code(two, "ada"), b"200"))
            await ctl(two, "breaker/mail/auto")
            await until(lambda: _equals(breaker(one), "closed"))


async def _equals(asked, wanted) -> bool:
    return await asked == wanted


async def test_operators_see_the_instances_and_the_store(tmp_path: Path) -> None:
    with valkey_server() as server:
        async with houses(server, tmp_path) as made:
            one, two = await made.add("one"), await made.add("two")
            await until(lambda: _sees_two(one))
            shown = await status(one)
            assert {"id", "host", "region", "version", "started", "seen"} == set(shown["instances"][0])
            assert {member["region"] for member in shown["instances"]} == {"oregon"}
            assert shown["store"]["up"] is True
            metrics = (await one.request("/metrics", port=one.admin)).decode()
            assert 'outrigger_instances{region="oregon"} 2.0' in metrics
            (policy,) = (tmp_path / "one").glob("policy-*.yaml")
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy", "ctl", "instances", "--policy", str(policy),
                stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3],
            )  # fmt: skip
            printed = (await process.communicate())[0].decode()
            for member in shown["instances"]:
                assert member["id"] in printed
            assert f"{shown['store']['this']} *" in printed
            assert "2 instances" in printed
            # One that ends says so.
            await two.stop()
            await until(lambda: _sees(one, 1), timeout=9)


async def _sees(g: GatewayProcess, count: int) -> bool:
    return len((await status(g))["instances"]) == count


async def _sees_two(g: GatewayProcess) -> bool:
    return await _sees(g, 2)


async def test_marks_that_were_made_apart_agree_when_they_meet(server: StoreServer) -> None:
    """The newest decision holds, whatever order they are heard in."""
    clock = 100.0
    one, two = new_instance(server), new_instance(server)
    seen: dict[str, dict[str, object]] = {"one": {}, "two": {}}
    made = [
        SharedMarks(instance.store, "block", seen[name].__setitem__, now=lambda: clock)
        for name, instance in (("one", one), ("two", two))
    ]
    made[0].add_older(["old"], True)  # out of a ledger
    made[0].set("ada", True)
    clock = 200.0
    made[1].set("ada", None)
    made[1].set("bob", True)
    await one.store.start()
    await two.store.start()
    async with asyncio.timeout(20):
        while not (one.store.is_up and two.store.is_up):
            await asyncio.sleep(0.02)
    await made[0].synchronize()
    await made[1].synchronize()
    assert seen == {"one": {"ada": None, "bob": True}, "two": {"old": True}}
    clock = 300.0
    made[0].set("bob", None)
    async with asyncio.timeout(10):
        while seen["two"].get("bob", True) is not None:
            await asyncio.sleep(0.05)
    for marks, instance in zip(made, (one, two), strict=True):
        await marks.close()
        await instance.store.stop()


def _doctor(policy: str, tmp_path: Path) -> tuple[int, str]:
    (tmp_path / "outrigger.yaml").write_text(policy)
    out = io.StringIO()
    done = run_doctor(["--policy", str(tmp_path / "outrigger.yaml")], {"PATH": ""}, out, io.StringIO())
    return done, "\n".join(line for line in out.getvalue().splitlines() if " store" in line)


def test_doctor_tries_the_store(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # doctor looks at the app of this folder, too
    base = f"ledger: {{url: 'sqlite:///{tmp_path}/l.db'}}\nlisten: {{public: off}}\n"
    with valkey_server("maxmemory-policy noeviction") as server:
        _, line = _doctor(f"{base}store: {{url: '{server.url}'}}\n", tmp_path)
        assert line.startswith("ok")
        assert "Valkey 9." in line
        assert "eviction policy noeviction" in line
        assert "ms away, can be written" in line
        server.server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        _, line = _doctor(f"{base}store: {{url: '{server.url}'}}\n", tmp_path)
        assert line.startswith("warning")
        assert "set maxmemory-policy to noeviction" in line
        assert "doctor" not in server.server.ask("KEYS", "*")
    with postgres_server(cluster) as database:
        _, line = _doctor(f"{base}store: {{url: '{database.url}'}}\n", tmp_path)
        assert line.startswith("ok")
        assert "PostgreSQL 18" in line
    status, line = _doctor(f"{base}store: {{url: 'redis://:hunter2@127.0.0.1:9'}}\n", tmp_path)
    assert (status, line.startswith("error")) == (1, True)
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("{}", "this instance's memory"),
        (
            "{url: 'redis://:hunter2@h/1'}",
            "limits in redis://:***@h/1, by its clock; without it with this instance's part; caps in"
            " redis://:***@h/1, in slices of 2% of what is left",
        ),
        (
            "{url: 'redis://h', money: 'postgresql://m/d', on_error: deny, slice: 5%}",
            "limits in redis://h, by its clock; without it not at all: it is refused with 503; caps in"
            " postgresql://m/d, in slices of 5% of what is left",
        ),
    ],
)
def test_explain_says_where_a_count_lives(tmp_path: Path, store: str, said: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        f"store: {store}\nroutes: [{{name: a, rate_limit: 10/h}}]\nupstreams: {{openai: {{cap: {{total: $5/d}}}}}}\n"
    )
    out = io.StringIO()
    assert run_explain(["GET", "/", "--policy", str(file)], {}, out, io.StringIO()) == 0
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith("counted in"))
    assert line.removeprefix("counted in").strip() == said


async def test_what_a_vendor_asks_of_one_instance_all_of_them_obey(tmp_path: Path) -> None:
    """A 429 with Retry-After at one instance holds back the other's next call of that model, and no other model's."""
    vendor = Vendor(errs(429, "rate_limit_exceeded", Retry_After="20"), says(completion("ok")))
    await vendor.start()
    with valkey_server() as server:
        async with AsyncExitStack() as stack:
            made = []
            for name in ("one", "two"):
                folder = tmp_path / name
                folder.mkdir()
                policy = (
                    f"store: {{url: '{server.url}', prefix: {server.prefix}, timeout: 2s}}\n"
                    f"ledger: {{url: 'sqlite:///{folder}/ledger.db'}}\n"
                    f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1', retry: {{attempts: 1}}, pace: {{wait: 1s}}}}}}\n"
                )
                made.append(await stack.enter_async_context(gateway(folder, *PLAIN, policy=policy)))
            one, two = made
            for g in made:
                await g.ready()

            async def call(g: GatewayProcess, model: str) -> bytes:
                body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
                fields = ["Content-Type: application/json"]
                return await g.request(
                    "/openai/v1/chat/completions", method="POST", headers=fields, body=body, port=g.egress
                )

            assert (await call(one, "gpt-4o"))[9:12] == b"429"

            async def held() -> bool:
                answer = await call(two, "gpt-4o")
                return answer[9:12] == b"429" and b"upstream" in answer

            await until(held)
            assert (await call(two, "gpt-4o-mini"))[9:12] == b"200"
    await vendor.stop()


async def test_who_guesses_the_token_is_slowed_down_everywhere(server: StoreServer) -> None:
    from proxy.admin.auth import TokenAuthenticator

    one, two = new_instance(server), new_instance(server)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    gateways = [TokenAuthenticator("right", clock=lambda: 0.0, sleep=sleep) for _ in range(2)]
    gateways[0].on_attempt = lambda peer, right: one.store.publish("token", {"peer": peer, "right": right})
    two.store.subscribe("token", lambda message: gateways[1].note_attempt(message["peer"], right=message["right"]))
    await one.store.start()
    await two.store.start()
    for _ in range(4):
        assert not await gateways[0].authenticate("Bearer wrong", "198.51.100.7")
    waits.clear()
    async with asyncio.timeout(10):
        while not waits:
            await asyncio.sleep(0.2)
            assert not await gateways[1].authenticate("Bearer wrong", "203.0.113.9")
            if gateways[1]._peers.get("198.51.100.7") is not None and gateways[1]._peers["198.51.100.7"].failures >= 3:
                waits.clear()
                assert await gateways[1].authenticate("Bearer right", "198.51.100.7")
                break
    assert waits, "it was let in without a delay"
    await one.store.stop()
    await two.store.stop()


async def test_the_region_stands_on_metrics_lines_and_ledger_rows(tmp_path: Path) -> None:
    vendor = Vendor(says(completion("ok")))
    await vendor.start()
    policy = (
        f"store: {{region: oregon}}\nledger: {{url: 'sqlite:///{tmp_path}/ledger.db'}}\n"
        f"upstreams: {{openai: {{base_url: 'http://127.0.0.1:{vendor.port}/v1'}}}}\n"
    )
    async with gateway(tmp_path, *PLAIN, policy=policy) as g:
        await g.ready()
        assert (await g.request("/"))[9:12] == b"200"
        body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()
        fields = ["Content-Type: application/json"]
        answer = await g.request("/openai/v1/chat/completions", method="POST", headers=fields, body=body, port=g.egress)
        assert answer[9:12] == b"200"
        metrics = (await g.request("/metrics", port=g.admin)).decode()
        assert 'outrigger_http_requests_total{code="200",method="GET",region="oregon",route="default"}' in metrics
        assert 'outrigger_instances{region="oregon"} 1.0' in metrics

        async def lines() -> bool:
            return bool(g.events("request")) and bool(g.events("call"))

        await until(lines)
        assert {event["region"] for event in g.events()} == {"oregon"}
        await g.stop()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        assert connection.execute("SELECT region FROM outrigger_calls").fetchall() == [("oregon",)]
    connection.close()
    await vendor.stop()
