"""The database door beside direct connections and PgBouncer: transactions a second, CPU, waits, COPY, memory.

PgBouncer runs as it is compared everywhere: one thread, transaction mode, the same pool. Debian's 1.18 knows no
prepared statements in that mode; they are set beside its session mode, in which a client keeps its connection.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench_tools import GATEWAY, PATH, ROOT, Bench, Peer, free_port, quantile, summarize, table

sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from postgres_cluster import PASSWORD, USER, Cluster, program
from postgres_wire_client import COPY_DONE, Wire, copy_data, query

RUNS, SECONDS, POOL, CLIENTS = 3, 4, 8, 16
POLICY = """
listen: {{public: off, admin: 127.0.0.1:{admin}, egress: "127.0.0.1:0"}}
log: {{level: warning}}
postgres:
  url: "{url}"
  listen: 127.0.0.1:{port}
  clients: 1500
  pool: {{min: 1, max: {pool}, wait: 60s}}
"""
# What the app gets is where the door is: it writes it down, and answers its readiness.
APP = """
import http.server, os, sys
open(sys.argv[1], "w").write(os.environ["DATABASE_URL"])
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), http.server.BaseHTTPRequestHandler).serve_forever()
"""
PGBOUNCER = """
[databases]
bench = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
default_pool_size = {pool}
max_client_conn = 1500
ignore_startup_parameters = extra_float_digits
logfile = {tmp}/pgbouncer.log
"""


class Way:
    """How clients reach the database; `peer` is the process between, if any."""

    def __init__(self, name: str, url: str, peer: Peer | None = None, admin: int = 0) -> None:
        self.name, self.url, self.peer, self.admin = name, url, peer, admin

    def cpu(self) -> float:
        # The app of the door is its child, and idle.
        return self.peer.cpu() if self.peer else 0.0

    def peak(self) -> float:
        """MiB at most so far."""
        assert self.peer is not None
        for line in Path(f"/proc/{self.peer.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
        return 0.0


def pooler(bench: Bench, cluster: Cluster, pool: int = POOL) -> Way:
    port, admin, reported = free_port(), free_port(), Path(bench.tmp) / f"url-{free_port()}"
    policy = Path(bench.tmp) / f"pooler-{port}.yaml"
    policy.write_text(POLICY.format(url=cluster.url("bench"), port=port, admin=admin, pool=pool))
    command = [
        *GATEWAY,
        "run",
        "--policy",
        str(policy),
        "--",
        sys.executable,
        "-c",
        APP,
        str(reported),
    ]
    peer = bench.spawn(f"pooler-{port}", port, command)
    deadline = time.monotonic() + 20
    while not reported.exists() or not reported.read_text():
        assert time.monotonic() < deadline, "the app never came up"
        time.sleep(0.02)
    return Way("Outrigger", reported.read_text(), peer, admin)


def pgbouncer(bench: Bench, cluster: Cluster, pool: int = POOL, mode: str = "transaction") -> Way | None:
    found = shutil.which("pgbouncer", path=PATH)
    if found is None:
        print("pgbouncer is not installed: not compared")
        return None
    port, home = free_port(), Path(bench.tmp)
    users, config = home / "users.txt", home / f"pgbouncer-{port}.ini"
    users.write_text(f'"{USER}" "{PASSWORD}"\n')
    config.write_text(PGBOUNCER.format(server=cluster.port, port=port, users=users, pool=pool, mode=mode, tmp=home))
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    home.chmod(0o777)
    peer = bench.spawn(f"pgbouncer-{port}", port, [found, "-q", *as_nobody, str(config)])
    return Way("PgBouncer", cluster.url("bench", port=port), peer)


def pgbench(way: Way, *options: str, cwd: str | None = None) -> tuple[float, int]:
    """Transactions a second and transactions of one run, without the time that connecting took."""
    done = subprocess.run(
        [program("pgbench"), "-n", *options, way.url],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PGSSLMODE": "disable"},
    )
    if done.returncode or ("failed" in done.stdout and not re.search(r"failed transactions: 0 ", done.stdout)):
        raise RuntimeError(f"{way.name}: {done.stderr[-600:]}{done.stdout[-600:]}")
    rate = re.search(r"tps = ([\d.]+)", done.stdout)
    count = re.search(r"actually processed: (\d+)", done.stdout)
    assert rate is not None
    assert count is not None
    return float(rate[1]), int(count[1])


def latencies(way: Way, *options: str) -> list[float]:
    """Milliseconds of each transaction, sorted; with a rate offered they count from when each was due."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        pgbench(way, "-l", "--log-prefix=t", *options, cwd=str(folder))
        lines = [line.split() for file in folder.iterdir() for line in file.read_text().splitlines()]
        return sorted(int(line[2]) / 1000 for line in lines)
    finally:
        shutil.rmtree(folder)


def throughput(ways: list[Way], sessions: Way | None) -> None:
    results: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(RUNS):
        for mode in ("simple", "extended", "prepared"):
            for way in ways:
                used = sessions if sessions and way.name == "PgBouncer" and mode == "prepared" else way
                before = used.cpu()
                rate, count = pgbench(used, "-S", "-M", mode, "-c", str(CLIENTS), "-j", "1", "-T", str(SECONDS))
                results.setdefault((mode, way.name), []).append((rate, (used.cpu() - before) / count * 1e6))
    rows = []
    middle = {key: tuple(statistics.median(column) for column in zip(*runs)) for key, runs in results.items()}
    for (mode, name), (rate, cpu) in middle.items():
        beside = middle.get((mode, "PgBouncer"))
        row = [f"{mode}, {name}", f"{rate:,.0f}", f"{cpu:.0f} µs" if cpu else "-"]
        row += [f"{rate / beside[0]:.0%}", f"{cpu / beside[1]:.1f} ×" if cpu else "-"] if beside else ["-", "-"]
        rows.append(row)
        if cpu and beside and name == "Outrigger":
            figure = f"{cpu / beside[1]:.2f}  ({cpu:.1f} / {beside[1]:.1f} µs)"
            summarize(f"CPU a transaction ÷ PgBouncer, {mode}", figure, "≤ 1.25")
    print(f"pgbench -S, {CLIENTS} clients over a pool of {POOL}; PgBouncer's prepared in session mode over {CLIENTS}")
    table(["", "transactions/s", "CPU a transaction", "beside PgBouncer", "its CPU"], rows)
    if ("prepared", "Outrigger") in middle:
        share = middle[("prepared", "Outrigger")][0] / middle[("extended", "Outrigger")][0]
        print(f"Outrigger's prepared is {share:.0%} of its own extended\n")


def offered(ways: list[Way]) -> None:
    """In turns, so that what else the machine does meets them all."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(RUNS):
        for way in ways:
            found[way.name] += latencies(way, "-c", "8", "-j", "1", "-R", "200", "-T", "6")
    rows = []
    base = quantile(sorted(found[ways[0].name]), 0.95)
    for name, times in found.items():
        times.sort()
        p50, p95, p99 = (quantile(times, q) for q in (0.5, 0.95, 0.99))
        rows.append([name, f"{p50:.2f}", f"{p95:.2f}", f"{p99:.2f}", f"{p95 - base:+.2f}"])
    print("TPC-B, 200 transactions a second offered: ms")
    table(["", "p50", "p95", "p99", "p95 beside direct"], rows)


def crowds(ways: list[Way]) -> None:
    rows = []
    for clients in (100, 1000):
        for way in ways:
            if way.peer is None:
                continue  # the database itself takes no such number
            each = str(20_000 // clients)  # not by time: connecting would count
            rate, _ = pgbench(way, "-S", "-M", "extended", "-c", str(clients), "-j", "1", "-t", each)
            rows.append([f"{clients} clients, {way.name}", f"{rate:,.0f}", f"{way.peer.resident():.0f} MiB"])
    table(["", "transactions/s", "resident after"], rows)


def waits(way: Way) -> dict[float, float]:
    """The door's own histogram: how many waited at most so many seconds."""
    if not way.admin:
        return {}
    with urllib.request.urlopen(f"http://127.0.0.1:{way.admin}/metrics") as answer:
        text = answer.read().decode()
    return {float(m[1]): float(m[2]) for m in re.finditer(r'postgres_wait_seconds_bucket\{le="([^"]+)"\} (\S+)', text)}


def saturated(ways: list[Way], bench: Bench) -> None:
    """32 clients, each transaction holding one of 8 connections for 5 ms: at best 20 ms each, 15 of them waiting."""
    script = Path(bench.tmp) / "sleep.sql"
    script.write_text("select pg_sleep(0.005);\n")
    rows = []
    for way in ways:
        if way.peer is None:
            continue
        before = waits(way)
        found = latencies(way, "-f", str(script), "-c", "32", "-j", "1", "-T", "5")
        rates = (f"{quantile(found, q):.1f}" for q in (0.5, 0.95, 0.99, 0.999))
        rows.append([way.name, f"{len(found) / 5:,.0f}", *rates])
        if before:
            counts = {le: count - before[le] for le, count in waits(way).items()}
            at = next(le for le, count in counts.items() if count >= 0.99 * max(counts.values()))
            print(f"Outrigger's own histogram: 99 % of the waits within {at * 1000:g} ms")
    print("32 clients over 8 connections, 5 ms each: ms a transaction, the wait included")
    table(["", "transactions/s", "p50", "p95", "p99", "p99.9"], rows)


def copies(ways: list[Way], cluster: Cluster) -> None:
    gib, part = 1 << 30, b"x" * 65000 + b"\n"
    rows = []
    for way in ways:
        with Wire(way.url, patience=120) as wire:
            before, began = way.cpu(), time.perf_counter()
            wire.send(query(f"copy (select repeat('x', 65000) from generate_series(1, {gib // len(part)})) to stdout"))
            size = 0
            while (found := wire.read()).kind != "Z":
                size += len(found.body)
            down, down_cpu = size / (time.perf_counter() - began), way.cpu() - before
            before, began = way.cpu(), time.perf_counter()
            wire.send(query("copy swallow from stdin"))
            chunk, count = copy_data(part) * 8, gib // len(part) // 8
            for _ in range(count):
                wire.send(chunk)
            wire.send(COPY_DONE)
            end = wire.answer()
            assert all(each.kind != "E" for each in end), end
            up, up_cpu = count * 8 * len(part) / (time.perf_counter() - began), way.cpu() - before
        rows.append(
            [
                way.name,
                *(f"{rate / (1 << 20):,.0f}" for rate in (down, up)),
                f"{down_cpu:.2f} s",
                f"{up_cpu:.2f} s",
                f"{way.peak():.0f} MiB" if way.peer else "-",
            ]
        )
    print("COPY of 1 GiB: MiB a second")
    table(["", "out", "in", "CPU out", "CPU in", "resident at most"], rows)


def memory(bench: Bench, cluster: Cluster) -> None:
    way = pooler(bench, cluster, pool=40)
    assert way.peer is not None
    with contextlib.ExitStack() as stack:
        for _ in range(20):  # what the first ones load is nobody's
            Wire(way.url).bye()
        idle = way.peer.resident()
        for _ in range(500):
            stack.enter_context(Wire(way.url))
        clients = way.peer.resident()
        holders = [stack.enter_context(Wire(way.url)) for _ in range(40)]
        base = way.peer.resident()
        for wire in holders:
            wire.ask(query("begin"))
        servers = way.peer.resident()
    print(
        f"memory: {idle:.1f} MiB with a connection and nobody, {(clients - idle) * 1024 / 500:.1f} KiB an idle client, {(servers - base) * 1024 / 39:.1f} KiB a server connection\n"
    )


def first(ways: list[Way]) -> None:
    rows = []
    for way in ways:
        found = []
        for _ in range(60):
            began = time.perf_counter()
            wire = Wire(way.url)
            found.append((time.perf_counter() - began) * 1000)
            wire.bye()
        found.sort()
        rows.append([way.name, f"{quantile(found, 0.5):.2f}", f"{quantile(found, 0.95):.2f}"])
    print("A first connection, TCP to ReadyForQuery by SCRAM: ms")
    table(["", "p50", "p95"], rows)


@contextlib.contextmanager
def database() -> Iterator[Cluster]:
    cluster = Cluster.made(max_connections=100, options=["shared_buffers=64MB", "max_wal_size=1GB"])
    try:
        cluster.make(
            "bench",
            "create table swallow (line text)",
            "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$",
            "create trigger nothing before insert on swallow for each row execute function nothing()",
        )
        subprocess.run(
            [program("pgbench"), "-i", "-q", "-s", "10", cluster.url("bench")], check=True, capture_output=True
        )
        yield cluster
    finally:
        cluster.close()


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with database() as cluster, Bench() as bench:
        ways = [Way("direct", cluster.url("bench"))]
        bouncer = pgbouncer(bench, cluster)
        ways += [bouncer] if bouncer else []
        if "--without-pooler" not in sys.argv:
            ways.append(pooler(bench, cluster))
        first(ways)
        throughput(ways, pgbouncer(bench, cluster, CLIENTS, "session") if bouncer else None)
        offered(ways)
        crowds(ways)
        saturated(ways, bench)
        copies(ways, cluster)
        if "--without-pooler" not in sys.argv:
            memory(bench, cluster)


if __name__ == "__main__":
    main()
