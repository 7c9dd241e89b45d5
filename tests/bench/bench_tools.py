"""What the benchmarks share: peers on free ports, CPU time by process, load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TICK = os.sysconf("SC_CLK_TCK")
# With what runs in production alone: libraries take along what else is installed.
_OUTRIGGER = ROOT / ".outrigger" / "bin" / "python"
GATEWAY = [str(_OUTRIGGER) if _OUTRIGGER.exists() else sys.executable, "-m", "proxy"]
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

POLICY = """
listen: {{public: 127.0.0.1:{port}, admin: 127.0.0.1:{admin}, egress: "127.0.0.1:0"}}
app: {{url: "http://127.0.0.1:{app}"}}
identity:
  user: [{{path: "/api/user/{{user}}/*"}}]
  tiers: [{{name: premium, users: "premium_*"}}, {{name: free}}]
routes:
  - {{name: api, match: {{path: "/api/user/*"}}, timeout: 60s, rate_limit: {{free: 10/h, premium: 1000/s}}}}
  - {{name: default, match: {{path: "/*"}}, timeout: 30s}}
"""

# Everything that refuses, limits and counts, with figures that nothing here meets.
EVERYTHING = """
listen: {{public: 127.0.0.1:{port}, admin: 127.0.0.1:{admin}, egress: 127.0.0.1:{egress}, max_body: 10MiB, body: {{min_rate: 500B/s}}, connections: {{per_address: 256}}}}
app: {{url: "http://127.0.0.1:{app}", memory: {{limit: 512MiB}}}}
identity:
  user: [{{jwt: {{claim: sub, key: 0123456789abcdef0123456789abcdef}}}}, {{path: "/api/user/{{user}}/*"}}, ip]
  tiers: [{{name: premium, users: "premium_*"}}, {{name: free}}]
routes:
  - name: api
    match: {{path: "/api/user/*"}}
    timeout: 60s
    total: 5m
    rate_limit: {{free: 10/h, premium: 1000/s}}
    concurrency: 64
    queue: {{size: 64, wait: 5s}}
    streams: 100
    max_body: 1MiB
    requires_budget: true
  - {{name: report, match: {{path: "/api/report/*"}}, background: {{mode: prefer}}}}
  - {{name: default, match: {{path: "/*"}}, timeout: 30s, rate_limit: 600/min}}
overload: {{mode: adaptive, priority: {{premium: 1, free: 2}}}}
upstreams:
  openai:
    base_url: http://127.0.0.1:{vendor}/v1
    pace: {{concurrency: 20, wait: 5s}}
    cache: {{ttl: 1h, max: 16MiB}}
    coalesce: true
    cap: {{per_user: [$1/d, $20/month], unattributed: $10/d, total: $100/d}}
postgres: {{listen: "127.0.0.1:{pool}", url: "postgresql://u:p@127.0.0.1:{nobody}/d"}}
ledger: {{url: "sqlite:///{tmp}/ledger-{port}.db"}}
alerts: {{webhook: "http://127.0.0.1:{nobody}/"}}
metrics: {{app: /metrics}}
"""


@dataclass
class Peer:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    version: str = ""

    def labelled(self, text: str) -> str:
        """`text`, "nginx, limited" for instance, with the version behind the name."""
        name, comma, rest = text.partition(",")
        return f"{name} {self.version}".strip() + comma + rest

    def cpu(self) -> float:
        """Seconds of CPU of the process and its children so far."""
        return sum(_cpu(pid) for pid in (self.process.pid, *_children(self.process.pid)))

    def resident(self) -> float:
        """MiB resident."""
        return self._memory("VmRSS")

    def peak(self) -> float:
        """The most MiB that were ever resident."""
        return self._memory("VmHWM")

    def _memory(self, name: str) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        return 0.0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(port: int, patience: float = 20.0) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


class Bench:
    """Everything started is ended with it."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.tmp = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.app_port = free_port()

    def __enter__(self) -> Bench:
        self.spawn("app", self.app_port, [sys.executable, str(HERE / "bench_app.py"), str(self.app_port)])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def spawn(
        self, name: str, port: int, command: list[str], patience: float = 20.0, environ: dict[str, str] | None = None
    ) -> Peer:
        out = self._stack.enter_context(open(f"{self.tmp}/{name}-{port}.log", "wb"))
        full = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": PATH, **(environ or {})}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=full)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        wait_for(port, patience)
        return Peer(name, port, process)

    def plain(self) -> Peer:
        port = free_port()
        command = [sys.executable, str(HERE / "bench_plain.py"), str(port), str(self.app_port)]
        return self.spawn("plain aiohttp proxy", port, command)

    def outrigger(self, policy: str = POLICY) -> Peer:
        port = free_port()
        file = Path(self.tmp) / f"policy-{port}.yaml"
        file.write_text(policy.format(port=port, admin=free_port(), app=self.app_port))
        return self.spawn("Outrigger", port, [*GATEWAY, "run", "--policy", str(file)])

    def everything(self, vendor: int = 0) -> tuple[Peer, int]:
        """The gateway with all of EVERYTHING on, and the port of its way out."""
        names = ("port", "admin", "egress", "pool", "nobody")
        ports = {name: free_port() for name in names}
        file = Path(self.tmp) / f"policy-{ports['port']}.yaml"
        file.write_text(EVERYTHING.format(app=self.app_port, tmp=self.tmp, vendor=vendor or ports["nobody"], **ports))
        command = [*GATEWAY, "run", "--policy", str(file)]
        return self.spawn("Outrigger, everything on", ports["port"], command), ports["egress"]


TARGET = "/api/user/premium_USER/items?page=1"


async def load(
    port: int, seconds: float, connections: int = 32, *, target: str = TARGET, fields: str = "", body: str = ""
) -> int:
    """Requests answered in that time, each connection asking again as soon as it was answered.

    Each is a user of its own, whose limit (1,000 a second, counted exactly) lets all of it pass.
    """
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    for n in range(connections):
        named, sent = (text.replace("USER", str(n)) for text in (target, body))
        head = f"{'POST' if body else 'GET'} {named} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n{fields}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
        client = Client(f"{head}\r\n{sent}".encode())
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)
        clients.append(client)
    await asyncio.sleep(seconds)
    done = sum(client.done for client in clients)
    for client in clients:
        client.transport.abort()
    assert all(client.ok for client in clients), "an answer was not 200"
    return done


class Client(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self.request = request
        self.done = 0
        self.ok = True
        self.need = 0
        self.rest = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while not self.need:
            end = self.rest.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.rest[:end].lower()
            self.ok = self.ok and head.startswith(b"http/1.1 200")
            if b"transfer-encoding: chunked" in head:
                if not self.rest.endswith(b"0\r\n\r\n"):
                    return
                self.rest = b""
                break
            self.need = end + 4 + int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self.rest) < self.need:
            return
        self.rest, self.need = self.rest[self.need :], 0
        self.done += 1
        self.transport.write(self.request)


async def paced(port: int, rate: int, seconds: float, target: str = TARGET) -> list[float]:
    """Latencies in ms of an open loop: requests leave on time whatever came back."""
    latencies: list[float] = []
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    idle: asyncio.Queue = asyncio.Queue()
    for stream in streams:
        idle.put_nowait(stream)
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()

    async def ask(due: float) -> None:
        reader, writer = await idle.get()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        latencies.append((time.perf_counter() - due) * 1000)
        idle.put_nowait((reader, writer))

    began = time.perf_counter()
    tasks = []
    for n in range(int(rate * seconds)):
        due = began + n / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(time.perf_counter())))
    await asyncio.gather(*tasks)
    for _, writer in streams:
        writer.close()
    return sorted(latencies)


def quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(len(values) * q))]


def summarize(what: str, figure: str, goal: str) -> None:
    """A line of the table that a run of several parts ends with (run.py)."""
    if file := os.environ.get("OUTRIGGER_BENCH_SUMMARY"):
        with open(file, "a") as out:
            out.write(json.dumps([what, figure, goal]) + "\n")
    else:
        print(f"{what}: {figure}  (goal: {goal})")


def table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(len(head))]
    for row in (head, ["─" * width for width in widths], *rows):
        first, *rest = row
        print("  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))]))
    print(flush=True)
