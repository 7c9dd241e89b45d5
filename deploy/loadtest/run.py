"""`make loadtest`, `make soak`: 100 users on the demo behind Outrigger under config/sprint.yaml, before a vendor that
is now and then unwell and at the end away. Ends in a verdict on the plan's own criteria; exit status 1 if one fails.

Run by the demo's Python; the gateway and Locust by their own.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DEMO = ROOT / "deploy" / "demo"
sys.path.insert(0, str(DEMO))

from database import Database  # noqa: E402
from run import free_port, wait_for  # noqa: E402

TOKEN = "loadtest"
BARS = "▁▂▃▄▅▆▇█"
EVERY = 2.0  # seconds between two samples of memory
UNITS = {"s": 1, "m": 60, "h": 3600}


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--gateway", required=True, help="the Python that has Outrigger's packages")
    options.add_argument("--locust", required=True, help="the program")
    options.add_argument("--for", dest="length", default="5m")
    options.add_argument("--users", type=int, default=100)
    chosen = options.parse_args()
    seconds = int(chosen.length[:-1]) * UNITS[chosen.length[-1]]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Stage(folder, chosen.gateway) as stage:
            watch = Watch(stage)
            print(f"{chosen.users} users for {chosen.length} …", flush=True)
            stats = locust(chosen.locust, stage, chosen.users, seconds)
            watch.end()
            cost, asked = stage.spent(), sum(one["num_requests"] for one in stats if one["name"] in ("ask", "story"))
            print("the vendor goes away …", flush=True)
            load = threading.Thread(target=locust, args=(chosen.locust, stage, chosen.users, 90))
            load.start()
            alert = stage.alert_after(patience=85)
            load.join()
            faults = stage.refusals()
        return verdict(stats, watch, cost, asked, alert, faults)


class Stage:
    """The vendor, the database, the gateway and the app, each a process; all of them end with it."""

    def __init__(self, folder: Path, python: str) -> None:
        self._folder, self._python = folder, os.path.abspath(python)
        self.port, self.admin, self.vendor = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._database = Database(folder, "loadtest")

    def __enter__(self) -> "Stage":
        try:
            self._begin()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self) -> None:
        vendor = [sys.executable, "-m", "uvicorn", "vendor:app", "--port", str(self.vendor), "--log-level", "critical"]
        self._start(vendor, {**os.environ, "PYTHONPATH": f"{HERE}:{DEMO}"})
        wait_for(self.vendor)
        self._database.start()
        text = (ROOT / "config" / "sprint.yaml").read_text()
        ours = [f"{name}: 127.0.0.1:{port}" for name, port in (("admin", self.admin), ("egress", free_port()))]
        text = text.replace("  drain: 20s\n", "  drain: 20s\n" + "".join(f"  {line}\n" for line in ours))
        text = text.replace("postgres:\n", f"postgres:\n  listen: 127.0.0.1:{free_port()}\n", 1)
        policy = self._folder / "outrigger.yaml"
        policy.write_text(text)
        app = [
            sys.executable,
            "-m",
            "uvicorn",
            "app:app",
            "--app-dir",
            str(DEMO),
            "--no-access-log",
            "--port",
            str(self.port),
        ]
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            "DATABASE_URL": self._database.url,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.vendor}/v1",
            "OPENAI_API_KEY": "sk-loadtest",
            "OUTRIGGER_ADMIN_TOKEN": TOKEN,
            "SLACK_WEBHOOK_URL": f"http://127.0.0.1:{self.vendor}/slack",
        }
        self._start([self._python, "-m", "proxy", "run", "--policy", str(policy), "--", *app], environ)
        wait_for(self.port, 60)

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._database.stop()

    def _start(self, command: list[str], environ: dict[str, str]) -> None:
        with open(self._folder / "log", "ab") as log:
            process = subprocess.Popen(command, env=environ, cwd=self._folder, stdout=log, stderr=log, process_group=0)
        self._processes.append(process)

    def metrics(self, *names: str) -> list[float]:
        """Of each the sum of all its series, from one scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = [re.findall(rf"^outrigger_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE) for name in names]
        return [sum(map(float, values)) for values in found]

    def refusals(self) -> Counter[str]:
        """Of all requests that had no good answer, those while the vendor was away included: route and why."""
        found: Counter[str] = Counter()
        for line in (self._folder / "log").read_text(errors="replace").splitlines():
            if '"event":"request"' in line and (event := json.loads(line))["status"] >= 400:
                found[f"{event['route']}: {event['status']} {event['refused'] or 'by the app'}"] += 1
        return found

    def spent(self) -> float:
        return self.metrics("cost_usd_total")[0]

    def alert_after(self, patience: float) -> tuple[float, str] | None:
        """From the vendor's end to Slack's first message about it, in seconds."""
        self._tell("down", b"")
        deadline = time.monotonic() + patience
        try:
            while time.monotonic() < deadline:
                heard = json.loads(self._tell("heard"))
                for at, text in heard["messages"]:
                    if "breaker_open" in text:
                        return at - heard["down"], text
                time.sleep(0.5)
        finally:
            self._tell("up", b"")
        return None

    def _tell(self, path: str, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.vendor}/{path}", body, timeout=10) as answer:
            return answer.read()


class Watch:
    """Memory of the gateway and of the app, sampled until `end`."""

    def __init__(self, stage: Stage) -> None:
        self.gateway: list[float] = []
        self.app: list[float] = []
        self._stage = stage
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(EVERY):
            try:
                gateway, app = self._stage.metrics("process_resident_memory_bytes", "app_memory_bytes")
            except OSError:
                continue  # a sample that is missed is no reason to stop looking for the rest of the night
            self.gateway.append(gateway / 2**20)
            self.app.append(app / 2**20)


def locust(program: str, stage: Stage, users: int, seconds: int) -> list[dict]:
    command = [
        program, "-f", str(HERE / "locustfile.py"), "--headless", "--json", "--only-summary", "--host", stage.url,
        "-u", str(users), "-r", "10", "-t", f"{seconds}s", "--stop-timeout", "30", "--exit-code-on-error", "0",
        "--loglevel", "ERROR",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def verdict(
    stats: list[dict], watch: Watch, cost: float, asked: int, alert: tuple[float, str] | None, faults: Counter[str]
) -> int:
    times: dict[float, int] = {}
    print(f"\n{'':8}{'requests':>10}{'failed':>8}{'p50 s':>8}{'p95 s':>8}")
    for one in stats:
        for milliseconds, count in one["response_times"].items():
            times[float(milliseconds)] = times.get(float(milliseconds), 0) + count
        own = {float(at): count for at, count in one["response_times"].items()}
        print(f"{one['name']:8}{one['num_requests']:10}{one['num_failures']:8}{at(own, 0.5):8.2f}{at(own, 0.95):8.2f}")
    total, failed = (sum(one[name] for one in stats) for name in ("num_requests", "num_failures"))
    each = cost / max(1, asked)
    grown = growth(watch.gateway), growth(watch.app)
    print(f"\ngateway {sparkline(watch.gateway)}\napp     {sparkline(watch.app)}")
    for text, count in faults.most_common(10):
        print(f"{count} × {text}")
    if alert is not None:
        print(f"Slack   {alert[1]}")
    checks = [
        ("p95 below 5 s", at(times, 0.95) < 5, f"{at(times, 0.95):.2f} s"),
        ("no transient fault reaches a user", failed == 0, f"{failed} of {total} requests failed"),
        ("memory is stable", max(grown) < 0.05, f"gateway {grown[0]:+.1%}, app {grown[1]:+.1%}, quarter 2 to 4"),
        ("a request costs less than $0.01", each < 0.01, f"${each:.5f} by {asked} calls"),
        ("told within 5 minutes", alert is not None, f"{alert[0]:.0f} s" if alert else "not told"),
    ]  # fmt: skip
    print()
    for name, well, figure in checks:
        print(f"  {'ok  ' if well else 'FAIL'}  {name}: {figure}")
    return 0 if all(well for _, well, _ in checks) else 1


def at(times: dict[float, int], share: float) -> float:
    """A percentile in seconds, of counts by milliseconds."""
    left = share * sum(times.values())
    for milliseconds in sorted(times):
        left -= times[milliseconds]
        if left <= 0:
            return milliseconds / 1000
    return 0.0


def growth(samples: list[float]) -> float:
    """From the second quarter, when everything was loaded, to the last."""
    quarter = max(1, len(samples) // 4)
    early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return (sum(late) / len(late)) / (sum(early) / len(early)) - 1


def sparkline(samples: list[float], width: int = 60) -> str:
    """The means of `width` stretches, from 0 to the highest, and what they are in MiB."""
    step = max(1, len(samples) // width)
    means = [sum(part) / len(part) for part in (samples[n : n + step] for n in range(0, len(samples), step))]
    bars = "".join(BARS[min(len(BARS) - 1, int(one / max(means) * len(BARS)))] for one in means)
    return f"{bars}  {min(samples):.0f} … {max(samples):.0f} MiB"


if __name__ == "__main__":
    sys.exit(main())
