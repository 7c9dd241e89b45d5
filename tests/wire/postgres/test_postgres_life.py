"""The whole gateway with a database: what the app gets, what the endpoints say, how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from free_ports import free_port
from gateway_process import GatewayProcess, eventually, gateway
from postgres_cluster import PASSWORD, Cluster, backends
from postgres_wire_client import Gone, Wire, fields, kinds, query

# Tells what it got; ends when told to, by SIGTERM, after the query it has begun.
APP = """
import http.server, json, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Answer).serve_forever()
"""


def policy(url: str, port: int, more: str = "") -> str:
    return f'postgres:\n  url: "{url}"\n  listen: 127.0.0.1:{port}\n  pool: {{min: 0, max: 2, wait: 3s}}\n{more}'


async def environment(running: GatewayProcess) -> dict[str, str]:
    head, _, body = (await running.request("/")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return json.loads(body)


async def body(running: GatewayProcess, path: str) -> bytes:
    return (await running.request(path, port=running.admin)).partition(b"\r\n\r\n")[2]


async def metrics(running: GatewayProcess) -> dict[str, float]:
    text = (await body(running, "/metrics")).decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line and line[0] != "#"
    }


async def test_the_app_gets_a_url_of_the_door_s_and_no_secret_of_the_database_s(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    port = free_port()
    url = (
        cluster.url(database) + "?sslmode=require&channel_binding=require&schema=mine&connection_limit=7&pgbouncer=true"
    )
    async with gateway(
        tmp_path,
        sys.executable,
        "-c",
        APP,
        policy=policy("${DATABASE_URL:-}", port),
        environ={"DATABASE_URL": cluster.url(database)},
    ) as plain:
        await plain.ready()
        got = await environment(plain)
        assert PASSWORD not in repr(got)
        found = urlsplit(got["DATABASE_URL"])
        assert (found.hostname, found.port, found.path) == ("127.0.0.1", port, f"/{database}")
        assert found.scheme == "postgresql"
        assert found.query == ""
        with Wire(got["DATABASE_URL"]) as wire:
            assert wire.value("select current_database()") == database
        assert PASSWORD not in plain.output()
        assert urlsplit(got["DATABASE_URL"]).password not in plain.output()
        assert await plain.stop() == 0
    async with gateway(
        tmp_path,
        sys.executable,
        "-c",
        APP,
        policy=policy("${DATABASE_URL:-}", free_port()),
        environ={"DATABASE_URL": url},
    ) as more:
        await more.ready()
        asked = parse_qs(urlsplit((await environment(more))["DATABASE_URL"]).query)
        assert asked == {"sslmode": ["disable"], "schema": ["mine"], "connection_limit": ["7"], "pgbouncer": ["true"]}


async def test_the_parts_of_a_url_may_have_variables_of_their_own(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    port = free_port()
    parts = "  env: {DB_HOST: host, DB_PORT: port, DB_USER: user, DB_PASSWORD: password, DB_NAME: database}\n"
    async with gateway(
        tmp_path, sys.executable, "-c", APP, policy=policy(cluster.url(database), port, parts)
    ) as running:
        await running.ready()
        got = await environment(running)
        assert (got["DB_HOST"], got["DB_PORT"], got["DB_USER"], got["DB_NAME"]) == (
            "127.0.0.1",
            str(port),
            "app",
            database,
        )
        with Wire(f"postgresql://app:{got['DB_PASSWORD']}@127.0.0.1:{port}/{database}") as wire:
            assert wire.value("select 1") == "1"


async def test_without_a_url_the_app_s_own_is_left_alone(tmp_path: Path, cluster: Cluster, database: str) -> None:
    url = cluster.url(database) + "?sslmode=prefer"
    async with gateway(tmp_path, sys.executable, "-c", APP, environ={"DATABASE_URL": url}) as running:
        await running.ready()
        assert (await environment(running))["DATABASE_URL"] == url
        health = json.loads(await body(running, "/healthz"))
        assert health["postgres"]["state"] == "off"


async def test_metrics_and_health_tell_of_the_door(tmp_path: Path, cluster: Cluster, database: str) -> None:
    async with gateway(
        tmp_path, sys.executable, "-c", APP, policy=policy(cluster.url(database), free_port())
    ) as running:
        await running.ready()
        url = (await environment(running))["DATABASE_URL"]
        fresh = await metrics(running)
        assert any(name.startswith("outrigger_postgres_transactions_total{") for name in fresh)
        with Wire(url) as wire, Wire(url):
            for _ in range(5):
                wire.ask(query("select 1"))
            wire.ask(query("select 1/0"))
            wire.ask(query("begin"))
            now = await metrics(running)
            of = {name: value for name, value in now.items() if "postgres" in name}
            assert (
                sum(value for name, value in of.items() if name.startswith("outrigger_postgres_client_connections{"))
                == 2
            ), of
            assert (
                sum(value for name, value in of.items() if name.startswith("outrigger_postgres_server_connections{"))
                >= 1
            ), of
            assert (
                sum(value for name, value in of.items() if name.startswith("outrigger_postgres_transactions_total{"))
                == 6
            ), of
            assert of["outrigger_postgres_wait_seconds_count"] >= 6
            assert json.loads(await body(running, "/healthz"))["postgres"]["state"] == "ok"
            assert "postgres" in json.loads(await body(running, "/status"))


async def test_a_database_that_is_away_hurts_nobody_else(tmp_path: Path, own: Cluster) -> None:
    async with gateway(tmp_path, sys.executable, "-c", APP, policy=policy(own.url("app"), free_port())) as running:
        await running.ready()
        url = (await environment(running))["DATABASE_URL"]
        with Wire(url) as wire:
            wire.ask(query("select 1"))
            own.kill()
            while sum(
                value for name, value in (await metrics(running)).items() if "postgres_server_connections" in name
            ):
                await asyncio.sleep(0.02)
            found = wire.ask(query("select 1"))
            assert kinds(found) == "EZ"
            for _ in range(20):
                await environment(running)
            await until_health(running, "degraded")
            assert json.loads(await body(running, "/healthz"))["postgres"]["state"] in ("degraded", "down")
            assert (await running.request("/_outrigger/healthz")).startswith(b"HTTP/1.1 200")
            own.start()
            assert wire.value("select 'served'") == "served"
            await until_health(running, "ok")


async def until_health(running: GatewayProcess, status: str) -> None:
    async with asyncio.timeout(15):
        while json.loads(await body(running, "/healthz"))["status"] != status:
            await asyncio.sleep(0.05)


async def test_a_gateway_that_starts_before_its_database_serves_once_it_is_there(tmp_path: Path, own: Cluster) -> None:
    own.stop()
    async with gateway(tmp_path, sys.executable, "-c", APP, policy=policy(own.url("app"), free_port())) as running:
        await running.ready()
        url = (await environment(running))["DATABASE_URL"]
        own.start()

        def served() -> bool:
            try:
                with Wire(url) as wire:
                    return wire.value("select 'served'") == "served"
            except Exception:  # refused in one way or another, until it is not
                return False

        await eventually(served)


async def test_at_the_end_transactions_finish_and_idle_clients_are_told(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    async with gateway(
        tmp_path, sys.executable, "-c", APP, policy=policy(cluster.url(database), free_port())
    ) as running:
        await running.ready()
        url = (await environment(running))["DATABASE_URL"]
        idle, busy = Wire(url), Wire(url)
        idle.ask(query("select 1"))
        busy.ask(query("create table kept (a int); begin; insert into kept values (1)"))
        running.signal(signal.SIGTERM)
        await eventually(lambda: any(each.get("event", "").startswith("app") for each in running.events()[-3:]))
        loop = asyncio.get_running_loop()
        last = [fields(each.body) for each in await loop.run_in_executor(None, idle.ended) if each.kind == "E"]
        assert [each["C"] for each in last] == ["57P01"]
        found = await loop.run_in_executor(None, lambda: busy.ask(query("insert into kept values (2); commit")))
        assert kinds(found) == "CCZ"
        assert await running.ended() == 0
        assert [each.kind for each in busy.ended()] in ([], ["E"])
        with Wire(cluster.url(database)) as direct:
            assert direct.value("select count(*) from kept") == "2"
    with cluster.control() as control:
        await eventually(lambda: not backends(control, database))


async def test_a_gateway_that_is_killed_leaves_no_backend(tmp_path: Path, cluster: Cluster, database: str) -> None:
    async with gateway(
        tmp_path, sys.executable, "-c", APP, policy=policy(cluster.url(database), free_port())
    ) as running:
        await running.ready()
        wire = Wire((await environment(running))["DATABASE_URL"])
        wire.ask(query("begin; create table undone (a int)"))
        running.signal(signal.SIGKILL)
        await running.ended()
        with cluster.control() as control:
            await eventually(lambda: not backends(control, database))
        with pytest.raises(Gone):
            wire.read()
        wire.drop()


async def test_an_alert_names_whose_transactions_hold_the_pool_while_others_wait(
    tmp_path: Path, cluster: Cluster, database: str
) -> None:
    rules = 'alerts: {every: 200ms, rules: {pool_exhausted: {when: "pool wait > 100ms over 5s"}}}'
    text = policy(cluster.url(database), free_port(), rules)
    async with gateway(tmp_path, sys.executable, "-c", APP, policy=text) as running:
        await running.ready()
        url = (await environment(running))["DATABASE_URL"]
        with Wire(url) as one, Wire(url) as two, Wire(url) as three, Wire(url) as four:
            one.ask(query("begin"))
            two.ask(query("begin"))
            three.send(query("select 1"))
            four.send(query("select 1"))
            (alert,) = await eventually(lambda: running.events("alert"))
            assert alert["alert"] == "pool_exhausted"
            assert "waited for a database connection longer than 100ms" in alert["message"]
            assert "2 idle in transactions of no request (2)" in alert["likely_cause"]
