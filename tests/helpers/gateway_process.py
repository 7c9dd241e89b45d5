"""A gateway as a user starts it: `python -m proxy`, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from free_ports import free_port

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "apps"
MAIN = "\nimport sys\nfrom proxy.__main__ import main\nsys.argv[0] = 'proxy'\nmain()\n"  # as `python -m proxy`


def processes_of(group: int) -> list[int]:
    """Who is left of a process group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getpgid(int(entry)) == group and Path(f"/proc/{entry}/stat").read_text().split()[2] != "Z":
                    found.append(int(entry))
            except (ProcessLookupError, FileNotFoundError):
                pass
    return found


class GatewayProcess:
    def __init__(self, process: asyncio.subprocess.Process, port: int, admin: int, out: Path, egress: int = 0) -> None:
        self.egress = egress
        self.process = process
        self.port = port
        self.admin = admin
        self.out = out

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        return self.out.read_text(errors="replace")

    def events(self, name: str = "") -> list[dict]:
        lines = (line for line in self.output().splitlines() if line.startswith("{"))
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return [event for event in events if not name or event.get("event") == name]

    def app_pid(self) -> int:
        return self.events("app.start")[-1]["pid"]

    async def request(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        headers: Sequence[str] = (),
        body: bytes = b"",
        port: int = 0,
    ) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.port)
        try:
            lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
            if body:
                lines.append(f"Content-Length: {len(body)}")
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            async with asyncio.timeout(20):
                return await reader.read(-1)
        finally:
            writer.close()

    async def ready(self, timeout: float = 60.0) -> None:
        await self.until_answer("/_outrigger/readyz", timeout)

    async def until_answer(self, target: str, timeout: float = 20.0) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            try:
                answer = await self.request(target)
                if answer.startswith(b"HTTP/1.1 2"):
                    return answer
            except OSError:
                answer = b"nothing"
            if self.process.returncode is not None or time.monotonic() > deadline:
                raise AssertionError(f"never ready ({answer[:80]!r}):\n{self.output()[-4000:]}")
            await asyncio.sleep(0.05)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ended(self, timeout: float = 20.0) -> int:
        return await asyncio.wait_for(self.process.wait(), timeout)

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
        return await self.ended()


async def eventually(condition, timeout: float = 10.0):
    """Wait until something holds; what it gave, or AssertionError."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "it never held"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def gateway(
    tmp: Path,
    *command: str,
    policy: str = "",
    environ: dict[str, str] | None = None,
    arguments: Sequence[str] = (),
    port: int = 0,
    admin: int = 0,
    egress: int = 0,
    cwd: Path | None = None,
    preexec: Callable[[], None] | None = None,
    prelude: str = "",
) -> AsyncIterator[GatewayProcess]:
    """`policy` gets the listeners' addresses put in front of it; the app gets $PORT. `prelude` is Python that the
    gateway's process runs first: it shortens what a test has no time to wait for."""
    port, admin, egress = port or free_port(), admin or free_port(), egress or free_port()
    file = tmp / f"policy-{port}.yaml"
    file.write_text(
        f"listen:\n  public: 127.0.0.1:{port}\n  admin: 127.0.0.1:{admin}\n  egress: 127.0.0.1:{egress}\n{policy}"
    )
    out = tmp / f"out-{port}.log"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(port), **(environ or {})}
    with open(out, "wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(("-c", prelude + MAIN) if prelude else ("-m", "proxy")),
            "run",
            "--policy",
            str(file),
            *arguments,
            *(("--", *command) if command else ()),
            cwd=cwd or tmp,
            env=env,
            stdout=log,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=preexec,
        )
    running = GatewayProcess(process, port, admin, out, egress)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
