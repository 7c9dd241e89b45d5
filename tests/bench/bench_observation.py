"""What seeing costs: CPU time a request with metrics, access log, history and samples, and without any of them; and
what is resident with everything on.

Without is the same gateway with those parts made to do nothing. The goals are 15 % of a request, and 64 MiB idle.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path

import uvloop
from bench_tools import POLICY, Bench, Peer, free_port, load, table

ROUNDS, SECONDS = 15, 1.0  # short and by turns: the machine's own pace changes by the second
IDLE = 20.0  # seconds

BLIND = """
import sys
from proxy.__main__ import main
from proxy.ingress.accounting import RequestAccounting
from proxy.observe.timeseries.history import MetricsHistory
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ProcessSampler

Metrics.observe_request = lambda *_: None
RequestAccounting._log_access = lambda *_: None
MetricsHistory.record_snapshot = lambda *_: None
ProcessSampler.take_sample = lambda self, lag=0.0: self.latest
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
        print(f"observation: {(all_of_it - without) / all_of_it:.0%} of a request's CPU time", flush=True)
        full, _ = bench.everything()
        time.sleep(IDLE)
        print(f"everything on, idle for {IDLE:.0f} s: {full.resident():.1f} MiB resident\n", flush=True)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(None)
    main()
