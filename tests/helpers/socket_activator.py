"""A service manager as small as can be: it holds sockets, hands them over, and hears what it is told."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from free_ports import free_port
from gateway_process import ROOT, GatewayProcess

# As systemd does between fork and exec: the sockets become 3, 4, …, and LISTEN_PID is the process itself.
LAUNCH = """
import os, sys
fds = [int(one) for one in sys.argv[1].split(",") if one]
spare = [os.dup(fd) for fd in fds]
spare = [os.dup(fd) if fd < 3 + len(fds) else fd for fd in spare]
for at, fd in enumerate(spare):
    os.dup2(fd, 3 + at)
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID") or str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "proxy", *sys.argv[2:]])
"""


class Manager:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = listening()
        self.port = self.public.getsockname()[1]
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(folder / "notify"))
        self._ear.setblocking(False)
        self.notifications: list[str] = []

    def hear(self) -> list[str]:
        while True:
            try:
                self.notifications += self._ear.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.notifications

    async def start(
        self,
        *command: str,
        sockets: Sequence[socket.socket] = (),
        names: str | None = "public",
        policy: str = "",
        environ: dict[str, str] | None = None,
    ) -> GatewayProcess:
        """A gateway with addresses of its own, but for those that are handed over."""
        sockets = sockets or (self.public,)
        admin, egress = free_port(), free_port()
        file = self.folder / f"policy-{admin}.yaml"
        file.write_text(f"listen: {{admin: '127.0.0.1:{admin}', egress: '127.0.0.1:{egress}', drain: 5s}}\n{policy}")
        out = self.folder / f"out-{admin}.log"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(self.folder / "notify")}
        env |= {"LISTEN_FDS": str(len(sockets))} | ({} if names is None else {"LISTEN_FDNAMES": names})
        with open(out, "wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", LAUNCH, ",".join(str(one.fileno()) for one in sockets),
                "--policy", str(file), "--", *command,
                cwd=self.folder, env=env | (environ or {}), stdout=log, stderr=log,
                pass_fds=[one.fileno() for one in sockets],
            )  # fmt: skip
        return GatewayProcess(process, self.port, admin, out, egress)

    def close(self) -> None:
        self.public.close()
        self._ear.close()


def listening(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.create_server((host, port), backlog=1024)
    sock.setblocking(False)
    return sock


@contextmanager
def manager(folder: Path) -> Iterator[Manager]:
    found = Manager(folder)
    try:
        yield found
    finally:
        found.close()
