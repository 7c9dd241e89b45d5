"""What seeing costs: CPU time a request with metrics, access log, history and samples, and without any of them.

Without is the same gateway with those parts made to do nothing. The goal is 15 % of a request at most.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from pathlib import Path

import uvloop
from bench_tools import POLICY, Bench, Peer, free_port, load, table

ROUNDS, SECONDS = 5, 2.0

BLIND = """
import sys
from proxy.__main__ import main
from proxy.ingress.account import Account
from proxy.observe.history import History
from proxy.observe.metrics import Metrics
from proxy.observe.runtime import Runtime

Metrics.request = lambda *_: None
Account._line = lambda *_: None
History.take = lambda *_: None
Runtime.sample = lambda self, lag=0.0: self.latest
sys.argv[0] = "proxy"
main()
"""


def blind(bench: Bench) -> Peer:
    port = free_port()
    file = Path(bench.tmp) / f"policy-{port}.yaml"
    file.write_text(POLICY.format(port=port, admin=free_port(), app=bench.app_port))
    return bench.spawn("without", port, [sys.executable, "-c", BLIND, "run", "--policy", str(file)])


def main() -> None:
    print("Small JSON over 32 keep-alive connections; metrics, access log, history, samples, and none of them")
    with Bench() as bench:
        peers = [bench.outrigger(), blind(bench)]
        costs: dict[str, list[float]] = {peer.name: [] for peer in peers}
        for peer in peers:
            uvloop.run(load(peer.port, 0.5))
        for _ in range(ROUNDS):
            for peer in peers:
                before = peer.cpu()
                done = uvloop.run(load(peer.port, SECONDS))
                costs[peer.name].append((peer.cpu() - before) / done * 1e6)
        all_of_it, without = (statistics.median(costs[peer.name]) for peer in peers)
        table(
            ["", "CPU µs a request"],
            [["with all observation", f"{all_of_it:.0f}"], ["without any", f"{without:.0f}"]],
        )
        print(f"observation: {(all_of_it - without) / all_of_it:.0%} of a request's CPU time\n", flush=True)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(None)
    main()
