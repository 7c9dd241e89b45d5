"""CPU time a request: out of the cache and past it, and compressed by each coding, beside plain."""

import asyncio
import statistics

import uvloop
from bench_tools import Bench, load, table

from proxy.ingress.compression.encoders import Encoders

ROUNDS, SECONDS = 3, 1.5
POLICY = """
listen: {{public: 127.0.0.1:{port}, admin: 127.0.0.1:{admin}, egress: "127.0.0.1:0"}}
app: {{url: "http://127.0.0.1:{app}"}}
routes:
  - {{name: public, match: {{path: "/public/*"}}, cache: {{scope: public, ttl: 1h}}}}
  - {{name: user, match: {{path: "/user/*"}}, cache: {{ttl: 1h}}}}
  - {{name: unkept, match: {{path: "/unkept/*"}}, cache: {{scope: public}}}}
  - {{name: text, match: {{path: "/text/*"}}, compress: auto}}
  - {{name: default, match: {{path: "/*"}}}}
"""
TEXT = "/text/20000"


def measure(bench: Bench, rows: list[tuple[str, str, str]]) -> list[list[str]]:
    """The median cost of each (name, target, fields), in turn so that a noisy moment hits all alike."""
    gateway = bench.outrigger(POLICY)
    idle = gateway.resident()
    costs: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for _, target, fields in rows:
        uvloop.run(load(gateway.port, 0.3, target=target, fields=fields))
    for _ in range(ROUNDS):
        for name, target, fields in rows:
            before = gateway.cpu()
            done = uvloop.run(load(gateway.port, SECONDS, target=target, fields=fields))
            costs[name].append((gateway.cpu() - before) / done * 1e6)
    print(f"resident: {idle:.1f} MiB idle, {gateway.resident():.1f} MiB after load")
    first = statistics.median(next(iter(costs.values())))
    return [
        [name, f"{statistics.median(found):.0f}", f"{statistics.median(found) / first:.2f} ×"]
        for name, found in costs.items()
    ]


def main() -> None:
    with Bench() as bench:
        kept = [
            ("no cache on the route", "/plain", ""),
            ("a miss that is not kept", "/unkept/a", ""),
            ("a hit, scope public", "/public/a", ""),
            ("a hit, scope user", "/user/a", "Cookie: session=abcdefghijklmnopqrstuvwxyz\r\n"),
        ]
        table(["small JSON", "CPU µs a request", "beside no cache"], measure(bench, kept))
    with Bench() as bench:
        coded = [("plain, 20 kB", TEXT, "")]
        coded += [(f"{coding}, 20 kB", TEXT, f"Accept-Encoding: {coding}\r\n") for coding in Encoders.load().whole]
        table(["JSON", "CPU µs a request", "beside plain"], measure(bench, coded))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(None)
    main()
