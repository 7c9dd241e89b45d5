"""Which request a database connection works for: with `when_abandoned: cancel` a request that is given up takes
its queries along, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
from importlib.util import find_spec
from itertools import groupby
from urllib.parse import urlsplit

import asyncpg
import pytest
from free_ports import free_port
from gateway_process import APPS, ROOT, eventually, gateway
from postgres_process import postgres

from proxy.app.attribution import FOLDER

POLICY = """
routes: [{{name: ask, match: {{path: "/*"}}, when_abandoned: cancel}}]
postgres: {{url: "{url}", listen: "127.0.0.1:{port}"}}
"""
DRIVERS = ["asyncpg", "prepared", "psycopg", "async_psycopg", "psycopg2", "sqlalchemy_asyncpg"]
RUNNING = """
select count(*) from pg_stat_activity
where state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


def reported_queries(url: str, pool: str) -> list[list[str]]:
    """What is told of the connections of working.py, where the pool has this address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(FOLDER), "OUTRIGGER_POSTGRES": pool}
        env |= {"OUTRIGGER_EGRESS": f"http://127.0.0.1:{sock.getsockname()[1]}", "OUTRIGGER_METERED": ""}
        command = [sys.executable, str(APPS / "working.py"), url]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert (done.stderr, done.returncode) == ("", 0)
        words = []
        while True:
            try:
                words.append(sock.recv(4096).decode().split(" "))
            except BlockingIOError:
                return [line[1:] for line in words if line[0] == "works"]


def test_what_a_connection_works_for_is_told_when_it_changes(server):
    found = reported_queries(server.url, urlsplit(server.url).netloc.rpartition("@")[2])
    by_port = [[token for _, token in lines] for _, lines in groupby(found, lambda line: line[0])]
    assert by_port == [["a1", "b2", "-"]] * 3


def test_a_connection_past_the_pool_is_not_spoken_of(server):
    assert reported_queries(server.url, "127.0.0.1:9") == []


@pytest.mark.skipif(find_spec("proxy.postgres") is None, reason="there is no database pool yet")
async def test_an_abandoned_request_takes_its_queries_with_it_and_the_next_one_keeps_its_own(server, tmp_path):
    policy = POLICY.format(url=server.url, port=free_port())
    command = f"{shlex.quote(sys.executable)} -m uvicorn querying:app --port $PORT --log-level warning"
    environ = {"DATABASE_URL": server.url, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    direct = await asyncpg.connect(server.url)

    async def until(count: int) -> None:
        async with asyncio.timeout(20):
            while await direct.fetchval(RUNNING) != count:
                await asyncio.sleep(0.05)

    try:
        async with gateway(tmp_path, command, policy=policy, environ=environ) as g:
            await g.ready(40)
            for driver in DRIVERS:
                assert b" 200 " in await g.request(f"/{driver}/0")
                _, writer = await asyncio.open_connection("127.0.0.1", g.port)
                writer.write(f"GET /{driver}/60 HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                await until(1)
                writer.close()
                await until(0)
                # The same connection, another request: what was given up before has no say any more.
                assert b" 200 " in await g.request(f"/{driver}/0.3")
            said = (await eventually(lambda: g.events("app.attribution")))[-1]
            assert said["not_hooked"] == []
            assert {"asyncpg", "psycopg", "sqlalchemy"} <= set(said["hooked"])
    finally:
        await direct.close()
