"""CPU time a request and requests a second, beside nginx, HAProxy and a plain aiohttp proxy; memory."""

import asyncio
import statistics

import uvloop
from bench_tools import Bench, load, table

ROUNDS, SECONDS = 3, 2.5


def main() -> None:
    print(
        "Small JSON over 32 keep-alive connections, an access log everywhere; Outrigger with identity, limit, metrics"
    )
    with Bench() as bench:
        peers = [peer for peer in (bench.nginx(), bench.haproxy(), bench.plain(), bench.outrigger()) if peer]
        gateway = peers[-1]
        idle = gateway.resident()
        rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
        costs: dict[str, list[float]] = {peer.name: [] for peer in peers}
        for peer in peers:
            uvloop.run(load(peer.port, 0.5))
        for _ in range(ROUNDS):  # in turn, so that a noisy moment hits all alike
            for peer in peers:
                before = peer.cpu()
                done = uvloop.run(load(peer.port, SECONDS))
                rates[peer.name].append(done / SECONDS)
                costs[peer.name].append((peer.cpu() - before) / done * 1e6)
        cost = {name: statistics.median(values) for name, values in costs.items()}
        rows = []
        for peer in peers:
            row = [peer.name, f"{statistics.median(rates[peer.name]):,.0f}", f"{cost[peer.name]:.0f}"]
            row.append(f"{cost[peer.name] / cost['nginx']:.1f} ×" if "nginx" in cost else "—")
            row.append(f"{cost[peer.name] / cost['plain aiohttp proxy']:.0%}")
            rows.append(row)
        table(["", "requests/s", "CPU µs a request", "beside nginx", "beside plain aiohttp"], rows)
        print(f"resident: {idle:.1f} MiB idle, {gateway.resident():.1f} MiB after load\n", flush=True)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(None)
    main()
