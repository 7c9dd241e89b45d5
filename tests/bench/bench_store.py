"""CPU time and latency that a limited request costs by where its limit is counted, beside Envoy's local limit if there
is an Envoy; memory. One gateway at a time is under load, all over one Valkey and one PostgreSQL."""

import asyncio
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import uvloop
from bench_tools import PATH, POLICY, Bench, Peer, free_port, load, paced, quantile, table

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))
from postgres_cluster import Cluster
from valkey_process import valkey

ROUNDS, SECONDS = 3, 2.0
RATE, PACED_SECONDS = 200, 4.0  # requests a second of the latencies
# Exact, as most limits are, and never in the way of one connection: 20,000 a second.
LIMITED = POLICY.replace("premium: 1000/s", "premium: 400/20ms")
UNLIMITED = POLICY.replace(", rate_limit: {{free: 10/h, premium: 1000/s}}", "")
ENVOY = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          access_log:
          - name: file
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {tmp}/envoy.access}}
          route_config:
            virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: app}}}}]}}]
          http_filters:
{limit}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: app
    connect_timeout: 5s
    load_assignment:
      cluster_name: app
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {app}}}}}}}}}]}}]
"""
LOCAL_LIMIT = """
          - name: envoy.filters.http.local_ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit
              stat_prefix: bench
              token_bucket: {max_tokens: 1000000, tokens_per_fill: 1000000, fill_interval: 1s}
              filter_enabled: {default_value: {numerator: 100, denominator: HUNDRED}}
              filter_enforced: {default_value: {numerator: 100, denominator: HUNDRED}}
"""


def gateway(bench: Bench, name: str, policy: str, store: str = "") -> Peer:
    peer = bench.outrigger(policy + (f"store: {{{{url: '{store}', prefix: bench, timeout: 5s}}}}\n" if store else ""))
    return Peer(name, peer.port, peer.process)


def envoy(bench: Bench, name: str, limit: str) -> Peer | None:
    found = shutil.which("envoy", path=PATH)
    if found is None:
        return None
    port, file = free_port(), Path(bench.tmp) / f"{name}.yaml"
    file.write_text(
        ENVOY.format(port=port, admin=free_port(), app=bench.app_port, tmp=bench.tmp, limit=limit.strip("\n"))
    )
    command = [found, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]
    return bench.spawn(name, port, command)


def main() -> None:
    print("Small JSON, a user a connection with 400/20ms; CPU of the gateway alone, over 32 and over 1 connections")
    cluster = Cluster.made()
    try:
        cluster.make("bench")
        with tempfile.TemporaryDirectory() as folder, valkey(Path(folder)) as server, Bench() as bench:
            peers = [
                gateway(bench, "no limit", UNLIMITED),
                gateway(bench, "memory", LIMITED),
                gateway(bench, "Valkey", LIMITED, server.url),
                gateway(bench, "PostgreSQL", LIMITED, cluster.url("bench")),
                envoy(bench, "Envoy, no limit", ""),
                envoy(bench, "Envoy, local limit", LOCAL_LIMIT),
            ]
            measure([peer for peer in peers if peer is not None])
            if None in peers:
                print("Envoy is not installed: not compared")
    finally:
        cluster.close()


def measure(peers: list[Peer]) -> None:
    idle = {peer.name: peer.resident() for peer in peers}
    costs: dict[tuple[str, int], list[float]] = {}
    for peer in peers:
        uvloop.run(load(peer.port, 0.5))
    for _ in range(ROUNDS):  # in turn, so that a noisy moment hits all alike
        for peer in peers:
            for connections in (32, 1):
                before = peer.cpu()
                done = uvloop.run(load(peer.port, SECONDS, connections))
                costs.setdefault((peer.name, connections), []).append((peer.cpu() - before) / done * 1e6)
    latency: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for peer in peers:
            latency.setdefault(peer.name, []).extend(uvloop.run(paced(peer.port, RATE, PACED_SECONDS)))
    rows = []
    for peer in peers:
        base = "Envoy, no limit" if peer.name.startswith("Envoy") else "no limit"
        row = [peer.name]
        for connections in (32, 1):
            cost = statistics.median(costs[peer.name, connections])
            row += [f"{cost:.0f}", f"{cost - statistics.median(costs[base, connections]):+.0f}"]
        times, none = sorted(latency[peer.name]), sorted(latency[base])
        row += [f"{quantile(times, 0.5):.2f}", f"{quantile(times, 0.5) - quantile(none, 0.5):+.2f}"]
        row += [f"{quantile(times, 0.99):.2f}", f"{idle[peer.name]:.1f}", f"{peer.resident():.1f}"]
        rows.append(row)
    head = ["limit counted in", "µs at 32", "+", "µs at 1", "+", "p50 ms", "+", "p99 ms", "MiB idle", "after"]
    table(head, rows)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(None)
    main()
