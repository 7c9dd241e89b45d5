"""Drivers and frameworks on their defaults, more of them than the pool of two has connections: what direct gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from database_drivers import SCRIPTS
from gateway_process import APPS, ROOT
from postgres_cluster import needs, program

NODE = ROOT / ".venv-callers-drivers"
CLIENTS = 5


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_driver_sees_through_the_door_what_it_sees_direct(poolers, name: str) -> None:
    script = SCRIPTS[name]
    with poolers(clients=500, pool={"min": 0, "max": 2, "wait": "30s"}) as pooler, poolers.beside() as direct:
        with ThreadPoolExecutor(CLIENTS) as pool:
            through = list(pool.map(lambda n: script(pooler.url, n), range(CLIENTS)))
            expected = list(pool.map(lambda n: script(direct, n), range(CLIENTS)))
        assert through == expected
        pooler.clean()


def run(url: str, *command: str, cwd: Path | None = None, stdin: str = "") -> str:
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PG")},
        "DATABASE_URL": url,
        "NODE_PATH": str(NODE / "node_modules"),
        "PRISMA_CLIENT": str(NODE / "client"),
        "PSQLRC": "/nowhere",
    }
    done = subprocess.run(command, env=environ, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout


npm = pytest.mark.skipif(not (NODE / ".stamp").exists(), reason="npm has not set up Node's drivers (make callers)")
FRAMEWORKS = {
    "Django": [sys.executable, str(APPS / "database_django.py"), str(CLIENTS)],
    "Tortoise": [sys.executable, str(APPS / "database_tortoise.py"), str(CLIENTS)],
    "Node's pg": ["node", str(APPS / "database_node.js"), str(CLIENTS)],
    "Prisma": ["node", str(APPS / "database_prisma.js"), str(CLIENTS)],
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[needs("node"), npm] if command[0] == "node" else [])
        for name, command in FRAMEWORKS.items()
    ],
)
def test_a_framework_sees_through_the_door_what_it_sees_direct(poolers, name: str) -> None:
    with poolers(pool={"min": 0, "max": 2, "wait": "30s"}) as pooler, poolers.beside() as direct:
        through, expected = (json.loads(run(url, *FRAMEWORKS[name])) for url in (pooler.url, direct))
        assert through == expected
        pooler.clean()


def test_alembic_migrates_up_and_down_through_the_door(poolers) -> None:
    with poolers(pool={"min": 0, "max": 2}) as pooler, poolers.beside() as direct:
        where = str(APPS / "database_alembic")
        code = (
            "from alembic import command; from alembic.config import Config; c = Config()\n"
            f"c.set_main_option('script_location', {where!r}); c.set_main_option('path_separator', 'os')\n"
            "command.upgrade(c, 'head'); command.downgrade(c, 'one'); command.upgrade(c, '+1'); command.current(c)"
        )
        seen = []
        for url in (pooler.url, direct):
            reported = run(url, sys.executable, "-c", code)
            seen.append((reported, run(url, program("psql"), "-XAtc", "table item; table alembic_version", url)))
        assert seen[0] == seen[1]
        pooler.clean()


PSQL = r"""
\set ON_ERROR_STOP 0
create table psql (id serial primary key, body text);
insert into psql (body) select 'r' || g from generate_series(1, 30) g;
\d psql
\dt
\copy (select * from psql order by id) to stdout
\copy psql (body) from stdin
one
two
\.
select * from psql where id > 28 order by id \gdesc
select $1::int + $2::int \bind 1 2 \g
select 1/0;
begin;
insert into psql (id) values (1);
select 1;
rollback;
\set FETCH_COUNT 7
select * from psql order by id;
\unset FETCH_COUNT
select body from psql where id = 3 \gset mine_
\echo :mine_body
select 'select ' || g from generate_series(1, 3) g \gexec
\parse named
select count(*) from psql \parse named
\bind_named named \g
\close_prepared named
\startpipeline
select 1 \sendpipeline
select 2 \sendpipeline
\endpipeline
set search_path = pg_catalog, public;
show search_path;
\sf pg_catalog.now
\encoding LATIN1
select 'x';
\lo_import /etc/hostname
\lo_unlink :LASTOID
explain (costs off) select * from psql where id = 1;
"""


def test_psql_prints_through_the_door_what_it_prints_direct(poolers) -> None:
    with poolers(pool={"min": 0, "max": 2}) as pooler, poolers.beside() as direct:
        seen = [run(url, program("psql"), "-X", url, stdin=PSQL + "") for url in (pooler.url, direct)]
        seen = [re.sub(r"(lo_import|lo_unlink) \d+", "", text) for text in seen]
        assert "r30" in seen[1]
        assert seen[0] == seen[1]
        pooler.clean()


@pytest.mark.parametrize("mode", ["simple", "extended", "prepared"])
def test_pgbench_fails_in_nothing(poolers, mode: str) -> None:
    with poolers(pool={"min": 0, "max": 2, "wait": "60s"}) as pooler:
        pgbench = program("pgbench")
        run(pooler.url, pgbench, "-i", "-q", pooler.url)
        for more in (["-S", "-t", "50"], ["-t", "20"], ["-S", "-C", "-t", "4"]):
            # A thread a client: pgbench prepares with a blocking call, which may wait for what its neighbour holds.
            said = run(pooler.url, pgbench, "-n", "-M", mode, "-c", "8", "-j", "8", *more, pooler.url)
            assert re.search(r"number of failed transactions: 0 ", said)
        sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)"
        assert run(pooler.url, program("psql"), "-Atc", sums, pooler.url) == "t\n"
        pooler.clean()


def test_a_dump_and_its_restore_are_those_of_a_direct_connection(poolers, tmp_path: Path) -> None:
    with poolers(pool={"min": 0, "max": 2, "wait": "30s"}) as pooler:
        run(pooler.url, program("pgbench"), "-i", "-q", pooler.url)
        run(
            pooler.url,
            program("psql"),
            "-Xqc",
            "create view v as select * from pgbench_tellers; create index on pgbench_accounts (abalance); create materialized view m as select 1",
            pooler.url,
        )
        whole = [_dump(url) for url in (pooler.url, pooler.direct)]
        assert whole[0] == whole[1]
        file = tmp_path / "dump"
        run(pooler.url, program("pg_dump"), "-Fc", "-f", str(file), pooler.url)
        # Through another door, by more connections than it has.
        with poolers(schema=(), pool={"min": 0, "max": 2, "wait": "60s"}) as other:
            run(other.url, program("pg_restore"), "-j", "4", "--no-owner", "-d", other.url, str(file))
            assert _dump(other.direct) == whole[1]
            other.clean()
        pooler.clean()


def _dump(url: str) -> str:
    return re.sub(r"\\(un)?restrict \S+", "", run(url, program("pg_dump"), "--no-owner", url))
