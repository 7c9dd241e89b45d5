"""One app started one way: alone on the public port, or behind the gateway as `init` says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil

DIRECT, BEHIND = "direct", "behind"
STARTING = 120.0  # seconds; some import for half a minute on a machine that is busy
STOPPING = 40.0  # what a platform waits at most, and a bit


def free_port() -> int:
    """One of five digits: pages that name their port are then of one length."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port >= 10_000:
            return port


@dataclass
class Started:
    way: str
    port: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def family(self) -> list[psutil.Process]:
        """The process that was started and whatever came of it."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def app(self) -> psutil.Process | None:
        """The app's own process as its start command made it."""
        family = self.family()
        if self.way == DIRECT:
            return family[0] if family else None
        serving = self.serving()
        below = [one for one in family[1:] if _parent(one) == self.process.pid]
        return next((one for one in below if one in serving or any(_above(one, worker) for worker in serving)), None)

    def serving(self) -> list[psutil.Process]:
        """Those of the app that listen on a port, the gateway itself left out."""
        found = []
        for one in self.family()[1 if self.way == BEHIND else 0 :]:
            try:
                if any(each.status == psutil.CONN_LISTEN for each in one.net_connections("inet")):
                    found.append(one)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def child(self) -> psutil.Process | None:
        """Who listens below a wrapper or a master that lives on when it dies."""
        app = self.app()
        return next((one for one in reversed(self.serving()) if app is not None and one != app), None)

    async def ready(self, path: str) -> float:
        """Seconds until `path` is answered below 500. Raises RuntimeError with the end of its log."""
        begun = time.monotonic()
        async with aiohttp.ClientSession() as session:
            while time.monotonic() - begun < STARTING:
                if self.process.returncode is not None:
                    break
                try:
                    async with session.get(self.url + path, timeout=aiohttp.ClientTimeout(20)) as answer:
                        if answer.status < 500:
                            return time.monotonic() - begun
                except (OSError, aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.2)
        raise RuntimeError(f"{self.way}: {path} was never answered; the end of its log:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    async def stop(self) -> tuple[int, float, int]:
        """SIGTERM: its exit status, the seconds that took, and how many of its processes were left."""
        family, begun = self.family(), time.monotonic()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOPPING)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        took = time.monotonic() - begun
        await asyncio.sleep(0.3)  # children that were told just now
        left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        for one in left:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        return self.process.returncode or 0, took, len(left)


def _parent(one: psutil.Process) -> int:
    try:
        return one.ppid()
    except psutil.NoSuchProcess:
        return 0


def _above(one: psutil.Process, other: psutil.Process) -> bool:
    try:
        return one in other.parents()
    except psutil.NoSuchProcess:
        return False


async def start(way: str, line: str, folder: Path, env: dict[str, str], log: Path) -> Started:
    port = free_port()
    with open(log, "wb") as file:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f"exec {line}", cwd=folder, env={**env, "PORT": str(port)},
            stdout=file, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Started(way, port, process, log)


def environment(home: Path, program: Path | None, vendor: str) -> dict[str, str]:
    """What a platform gives an app: little, and none of ours."""
    home.mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PATH", "/usr/bin:/bin")
    env = {
        "PATH": f"{program / 'bin'}{os.pathsep}{path}" if program else path,
        "HOME": str(home), "LANG": "C.UTF-8", "TMPDIR": "/tmp", "NO_COLOR": "1",
        "OPENAI_BASE_URL": vendor, "OPENAI_API_KEY": "sk-of-nobody",
        "GRADIO_ANALYTICS_ENABLED": "False", "NEXT_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    if program:
        env["VIRTUAL_ENV"] = str(program)
    return env


def python() -> str:
    return sys.executable
