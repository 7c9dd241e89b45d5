"""Where an app listens, read from the kernel (proc_net_tcp(5), proc_pid_fd(5)); nothing on systems other than Linux."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    port: int
    host: str

    @property
    def is_exposed(self) -> bool:
        """Whether addresses other than loopback reach it."""
        return not self.host.startswith("127.") and self.host != "::1"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_listeners(pids: Iterable[int], proc: Path = Path("/proc")) -> list[Listener]:
    """The TCP listeners of these processes, ordered by port. A process whose descriptors may not be read
    counts as having none."""
    inodes = {inode for pid in pids for inode in _socket_inodes(proc / str(pid) / "fd")}
    if not inodes:
        return []
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTEN and fields[9] in inodes:
                host, _, port = fields[1].partition(":")
                found.add(Listener(int(port, 16), _parse_address(host)))
    return sorted(found)


def _socket_inodes(folder: Path) -> list[str]:
    found = []
    try:
        for name in os.listdir(folder):
            try:
                target = os.readlink(folder / name)
            except OSError:
                continue
            if target.startswith("socket:["):
                found.append(target[8:-1])
    except OSError:
        pass
    return found


def _parse_address(text: str) -> str:
    """An address as /proc/net/tcp has it: words of 32 bits in the machine's byte order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    data = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
