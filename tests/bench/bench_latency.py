"""Added latency at 100 requests a second, on a free core and on half of one; start to ready."""

import os
import statistics
import time
from pathlib import Path

import uvloop
from bench_tools import Bench, Peer, paced, quantile, table

RATE, SECONDS = 100, 5
GROUP = f"outrigger-bench-{os.getpid()}"


def half_core(peer: Peer) -> str | None:
    """Hold the peer to half a core by a cgroup of its own; why not, where that is not permitted."""
    try:
        if Path("/sys/fs/cgroup/cgroup.controllers").exists():
            group = Path("/sys/fs/cgroup") / GROUP
            group.mkdir()
            (group / "cpu.max").write_text("50000 100000")
        else:
            group = Path("/sys/fs/cgroup/cpu") / GROUP
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("50000")
        (group / "cgroup.procs").write_text(str(peer.process.pid))
    except OSError as error:
        return str(error)
    return None


def main() -> None:
    print("Added latency at 100 requests a second, and start to ready")
    with Bench() as bench:
        began = time.perf_counter()
        gateway = bench.outrigger()
        starts = [time.perf_counter() - began]
        for _ in range(2):
            began = time.perf_counter()
            bench.outrigger()
            starts.append(time.perf_counter() - began)
        rows = []
        direct = uvloop.run(paced(bench.app_port, RATE, SECONDS))
        through = uvloop.run(paced(gateway.port, RATE, SECONDS))
        rows.append(["a free core", *_added(direct, through)])
        why = half_core(gateway)
        if why is None:
            through = uvloop.run(paced(gateway.port, RATE, SECONDS))
            rows.append(["half a core", *_added(direct, through)])
        table(["", "p50 direct ms", "p50 added ms", "p99 direct ms", "p99 added ms"], rows)
        if why is not None:
            print(f"half a core: a CPU quota is not permitted here ({why})")
        print(f"start to ready, gateway alone: {statistics.median(starts):.2f} s\n", flush=True)
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/cpu"):
        try:
            (Path(root) / GROUP).rmdir()
        except OSError:
            pass


def _added(direct: list[float], through: list[float]) -> list[str]:
    out = []
    for q in (0.5, 0.99):
        before, after = quantile(direct, q), quantile(through, q)
        out += [f"{before:.2f}", f"{after - before:.2f}"]
    return out


if __name__ == "__main__":
    main()
