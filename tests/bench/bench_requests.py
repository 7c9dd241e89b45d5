"""CPU time a request and requests a second, beside nginx, HAProxy, Envoy, Caddy, Traefik and a plain aiohttp proxy;
memory with everything on.

CPU time is what counts: all of them share the machine's cores with the load and the app.
"""

import statistics
import sys

import peers
from bench_tools import HERE, TARGET, Bench, Peer, free_port, summarize, table
from drive import drive, generator

ROUNDS, SECONDS, CONNECTIONS = 4, 2, 32
# An edge that numbers requests lets no head come twice; without one a page that polls sends the same again and again.
REPEATED = "Outrigger, heads that repeat"
CHAT = '{"model":"gpt-4o-mini","user":"premium_USER","messages":[{"role":"user","content":"what is an outrigger?"}]}'


def main() -> None:
    print(
        f"Small JSON over {CONNECTIONS} keep-alive connections, {SECONDS} s each by turns, {ROUNDS} rounds, {generator()};"
    )
    print("one core each, an access log everywhere; a rate limit that counts every request where it is named")
    with Bench() as bench:
        vendor = free_port()
        bench.spawn("vendor", vendor, [sys.executable, str(HERE / "bench_vendor.py"), str(vendor)])
        everything, egress = bench.everything(vendor)
        idle = everything.resident()
        rows = {
            "nginx, limit_req": peers.nginx(bench, limited=True),
            "HAProxy, stick table": peers.haproxy(bench, limited=True),
            "Envoy, local limit": peers.envoy(bench, limited=True),
            "Caddy": peers.caddy(bench),
            "Traefik, rateLimit": peers.traefik(bench, limited=True),
            "plain aiohttp proxy": bench.plain(),
            "Outrigger: identity, limit, metrics": (limiting := bench.outrigger()),
            f"{REPEATED}: identity, limit, metrics": limiting,
            "Outrigger, everything on": everything,
            f"{REPEATED}, everything on": everything,
        }
        compared = {name: peer for name, peer in rows.items() if peer is not None}
        rates, costs = measure(compared)
        show(compared, rates, costs)
        drive(egress, SECONDS, 16, "/openai/v1/chat/completions", body=CHAT)
        after = everything.resident()
    print(
        f"everything on: {idle:.1f} MiB resident idle, {after:.1f} MiB after {ROUNDS} rounds and {SECONDS} s of calls\n"
    )
    ours, nginx = costs["Outrigger, everything on"], costs.get("nginx, limit_req")
    repeated = costs[f"{REPEATED}, everything on"]
    if nginx:
        summarize(
            "front, everything on ÷ nginx with access log and limit_req",
            f"{ours / nginx:.2f}, heads that repeat {repeated / nginx:.2f}  ({ours:.0f} and {repeated:.0f} / {nginx:.1f} µs)",
            "≤ 3.0",
        )
    web_servers = [costs[name] for name in ("Caddy", "Traefik, rateLimit") if name in costs]
    if web_servers:
        better = min(web_servers)
        summarize(
            "front, everything on ÷ the better of Caddy and Traefik",
            f"{ours / better:.2f}, heads that repeat {repeated / better:.2f}  ({ours:.0f} and {repeated:.0f} / {better:.0f} µs)",
            "≤ 0.67",
        )
    summarize("resident, everything on, after load", f"{after:.1f} MiB", "≤ 56 MiB")


def measure(compared: dict[str, Peer]) -> tuple[dict[str, float], dict[str, float]]:
    """Requests a second, the median of the rounds, and microseconds of CPU a request, the least: what else the machine
    does can only add to it."""
    rates: dict[str, list[float]] = {name: [] for name in compared}
    costs: dict[str, list[float]] = {name: [] for name in compared}
    for name, peer in compared.items():
        drive(peer.port, 1, CONNECTIONS, TARGET, numbered=not name.startswith(REPEATED))
    for _ in range(ROUNDS):  # in turn, so that a noisy moment hits all alike
        for name, peer in compared.items():
            before = peer.cpu()
            done = drive(peer.port, SECONDS, CONNECTIONS, TARGET, numbered=not name.startswith(REPEATED))
            rates[name].append(done / SECONDS)
            costs[name].append((peer.cpu() - before) / done * 1e6)
    middle = {name: statistics.median(each) for name, each in rates.items()}
    return middle, {name: min(each) for name, each in costs.items()}


def show(compared: dict[str, Peer], rates: dict[str, float], costs: dict[str, float]) -> None:
    base = costs.get("nginx, limit_req")
    rows = []
    for name, peer in compared.items():
        row = [
            peer.labelled(name),
            f"{rates[name]:,.0f}",
            f"{costs[name]:.1f}",
            f"{costs[name] / base:.2f} ×" if base else "—",
        ]
        rows.append([*row, f"{costs[name] / costs['plain aiohttp proxy']:.0%}", f"{peer.resident():.0f}"])
    head = ["", "requests/s", "CPU µs a request", "beside nginx with its limit", "beside plain aiohttp", "MiB"]
    table(head, rows)


if __name__ == "__main__":
    main()
