"""`make bench`: every figure of docs/figures.md, each part a script of its own. Nothing is asserted about time."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_tools import table

HERE = Path(__file__).parent
PARTS = (
    "bench_requests",
    "bench_latency",
    "bench_store",
    "bench_bytes",
    "bench_cache",
    "bench_calls",
    "bench_streams",
    "bench_http2",
    "bench_postgres",
    "bench_money",
    "bench_ledger",
    "bench_tasks",
    "bench_attribution",
    "overload",
    "logs",
    "bench_observation",
    "scrape",
)


def main() -> None:
    wanted = sys.argv[1:] or PARTS
    environ = {**os.environ, "PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if busy > cores / 4:
        print(f"{busy:.1f} processes run already on {cores} cores: latencies are theirs too, and ratios are rough")
    with tempfile.NamedTemporaryFile("r") as summary:
        environ["OUTRIGGER_BENCH_SUMMARY"] = summary.name
        for part in wanted:
            print(f"── {part}", flush=True)
            subprocess.run([sys.executable, str(HERE / f"{part}.py")], env=environ, check=True)
        if rows := [json.loads(line) for line in summary]:
            print("── beside peers")
            table(["", "figure", "goal"], rows)


if __name__ == "__main__":
    main()
