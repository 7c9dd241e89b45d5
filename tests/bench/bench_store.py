"""What it costs that instances share a store: CPU time and latency of a limited request and of a call with caps, by
where they are counted (memory, Valkey, PostgreSQL), beside Envoy's local limit and LiteLLM with Redis; memory.

One gateway at a time is under load, in turn, all over one Valkey and one PostgreSQL."""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
import uvloop
from bench_calls import CAPPED, OWNED
from bench_calls import POLICY as CALLS
from bench_tools import GATEWAY, HERE, POLICY, TARGET, Bench, Peer, free_port, paced, quantile, summarize, table
from drive import drive, generator

sys.path.insert(0, str(HERE.parent / "helpers"))
from postgres_cluster import Cluster
from valkey_process import valkey

ROUNDS, SECONDS = 3, 2
RATE, PACED_SECONDS = 200, 3.0  # requests a second of the latencies
CHAT = "/openai/v1/chat/completions"
ONE_USER = OWNED.replace("premium_USER", "premium_1")
UNLIMITED = POLICY.replace(", rate_limit: {{free: 10/h, premium: 1000/s}}", "")
Run = Callable[[Peer, int], int]  # loads a peer for so many seconds; how many were answered


def main() -> None:
    cluster = Cluster.made()
    try:
        cluster.make("bench")
        with tempfile.TemporaryDirectory() as folder, valkey(Path(folder)) as server, Bench() as bench:
            stores = {"memory": "", "Valkey": server.url, "PostgreSQL": cluster.url("bench")}
            requests(bench, stores)
            calls(bench, stores, int(server.url.rpartition(":")[2].partition("/")[0]))
    finally:
        cluster.close()


def requests(bench: Bench, stores: dict[str, str]) -> None:
    """A request that no limit concerns, and one that is counted, by store."""
    found = {"no limit": gateway(bench, UNLIMITED)}
    found |= {name: gateway(bench, POLICY, url) for name, url in stores.items()}
    envoys = {"Envoy, no limit": peers.envoy(bench), "Envoy, local limit": peers.envoy(bench, limited=True)}
    found |= {name: peer for name, peer in envoys.items() if peer is not None}
    idle = {name: peer.resident() for name, peer in found.items()}
    costs = measure(found, lambda peer, seconds: drive(peer.port, seconds, 32, TARGET))
    latency: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(ROUNDS):
        for name, peer in found.items():
            latency[name] += uvloop.run(paced(peer.port, RATE, PACED_SECONDS))
    rows = []
    for name, peer in found.items():
        base = "Envoy, no limit" if name.startswith("Envoy") else "no limit"
        times, none = sorted(latency[name]), sorted(latency[base])
        more, later = costs[name] - costs[base], quantile(times, 0.5) - quantile(none, 0.5)
        row = [peer.labelled(name), f"{costs[name]:.0f}", f"{more:+.0f}"]
        row += [f"{quantile(times, 0.5):.2f}", f"{later:+.2f}", f"{quantile(times, 0.99):.2f}"]
        rows.append([*row, f"{idle[name]:.1f}", f"{peer.resident():.1f}"])
        if stores.get(name):
            what = f"limited request, counted in {name}, more than no limit"
            summarize(what, f"{more:+.0f} µs, p50 {later:+.2f} ms", "≤ 40 µs, ≤ 0.5 ms")
            memory = peer.resident() - found["memory"].resident()
            summarize(f"memory of store.url, {name}", f"{memory:+.1f} MiB", "≤ 6 MiB")
    print(f"Small JSON over 32 connections, {generator()}; latency at {RATE} a second, {ROUNDS} rounds by turns\n")
    table(["limit counted in", "CPU µs a request", "+", "p50 ms", "+", "p99 ms", "MiB idle", "after"], rows)


def calls(bench: Bench, stores: dict[str, str], redis: int) -> None:
    """A call with caps by user and day, by user and month, and in total, of one user and of 256 in turn."""
    vendor = free_port()
    bench.spawn("vendor", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor)])
    found = {name: way_out(bench, vendor, url) for name, url in stores.items()}
    many = measure(found, lambda peer, seconds: drive(peer.port, seconds, 16, CHAT, body=OWNED))
    one = measure(found, lambda peer, seconds: drive(peer.port, seconds, 16, CHAT, body=ONE_USER))
    rows = []
    for name, peer in found.items():
        more = {users: costs[name] - costs["memory"] for users, costs in (("one", one), ("many", many))}
        row = [name, f"{one[name]:.0f}", f"{more['one']:+.0f}", f"{many[name]:.0f}", f"{more['many']:+.0f}"]
        rows.append([*row, f"{peer.resident():.1f}"])
        if stores[name]:
            what = f"call with caps held in {name}, more than in memory"
            summarize(what, f"{more['one']:+.0f} µs (256 users in turn {more['many']:+.0f})", "≤ 10 µs")
    alone, over_redis = peers.litellm(bench, vendor), peers.litellm(bench, vendor, redis=redis)
    if alone is not None and over_redis is not None:
        ways = {"LiteLLM's proxy": alone, "LiteLLM's proxy, with Redis": over_redis}
        costs = measure(ways, lambda peer, seconds: drive(peer.port, 5, 16, "/v1/chat/completions", body=OWNED))
        for name, peer in ways.items():
            more = costs[name] - costs["LiteLLM's proxy"]
            rows.append(
                [peer.labelled(name), "—", "—", f"{costs[name]:,.0f}", f"{more:+,.0f}", f"{peer.resident():.0f}"]
            )
    print("Small chats of 16 callers, metered, capped, on the ledger\n")
    table(["caps held in", "CPU µs a call, one user", "+", "256 users", "+", "MiB after"], rows)


def measure(found: dict[str, Peer], run: Run) -> dict[str, float]:
    """CPU µs of each for one that was answered: the median of several runs, in turn, so that a noisy moment hits all
    alike."""
    costs: dict[str, list[float]] = {name: [] for name in found}
    for peer in found.values():
        run(peer, 1)
    for _ in range(ROUNDS):
        for name, peer in found.items():
            before = peer.cpu()
            done = run(peer, SECONDS)
            costs[name].append((peer.cpu() - before) / done * 1e6)
    return {name: statistics.median(each) for name, each in costs.items()}


def gateway(bench: Bench, policy: str, store: str = "") -> Peer:
    return bench.outrigger(policy + shared(store))


def way_out(bench: Bench, vendor: int, store: str) -> Peer:
    egress = free_port()
    path = Path(bench.tmp) / f"shared-calls-{egress}.yaml"
    ports = {"egress": egress, "admin": free_port(), "app": bench.app_port, "vendor": vendor}
    text = CALLS.format(rules=CAPPED, level="info", ledger=f"{bench.tmp}/shared-calls-{egress}.db", **ports)
    path.write_text(text + shared(store))
    return bench.spawn("Outrigger", egress, [*GATEWAY, "run", "--policy", str(path)])


def shared(store: str) -> str:
    if not store:
        return ""
    return f"store:\n  url: '{store}'\n  prefix: bench{free_port()}\n  timeout: 5s\n"


if __name__ == "__main__":
    main()
