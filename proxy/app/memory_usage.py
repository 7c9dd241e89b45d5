"""The memory limit, and what the app uses of it, read from the kernel (cgroups(7), proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63
PSS_EVERY = 10  # measurements between two that count shared pages once
PROCESSES_EVERY = 3  # measurements between two looks at which processes there are
_ROOT = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def memory_limit(root: Path = _ROOT, own: Path = Path("/proc/self/cgroup"), meminfo: Path = _MEMINFO) -> int | None:
    """The container's memory limit in bytes (cgroup v2, v1, or v2 beside v1), or None if none can be read.

    A limit may be set at any level above us: the least of them is the one that holds, or the machine's memory if that
    is less still."""
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                files += [
                    file for base in (root, root / "unified") for file in _files_upwards(base, path, "memory.max")
                ]
            elif "memory" in controllers.split(","):
                files += _files_upwards(root / "memory", path, "memory.limit_in_bytes")
    except (OSError, ValueError):
        pass
    found = [value for value in map(_read_number, files) if value is not None and value < UNLIMITED]
    if not found:  # v1 also reports levels that a container cannot see
        hidden = _read_field(root / "memory" / "memory.stat", "hierarchical_memory_limit")
        found = [hidden] if hidden is not None and hidden < UNLIMITED else []
    if not found:
        return None
    there = machine_memory(meminfo)
    return min(*found, there) if there is not None else min(found)


def machine_memory(meminfo: Path = _MEMINFO) -> int | None:
    """Bytes of memory that the machine has, or None if the kernel does not say."""
    there = _read_field(meminfo, "MemTotal:")
    return there * 1024 if there is not None else None


def _files_upwards(base: Path, path: str, name: str) -> list[Path]:
    """The file at every level from a group up to the tree's root."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:depth], name) for depth in range(len(parts), 0, -1)]


class MemoryMeter:
    """Measures the memory of the app with all its processes: a master and its forked workers are one app.

    A page that several processes share counts once if the kernel tells (PSS, the proportional set size in
    smaps_rollup). The kernel walks every page for that, 6 ms for 400 MB, so it is read at every tenth measurement and
    whenever the processes have changed; in between the change of the resident set size is added. If PSS may not be
    read, resident memory is taken, without the pages that a child shares with files or other processes.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._pids: list[int] = []
        self._pid = self._measured = self._resident = self._turn = 0

    def measure_bytes(self, pid: int) -> int | None:
        """Bytes of the process and its family; None if it has ended."""
        turn = self._turn = (self._turn + 1) % PSS_EVERY if pid == self._pid else 0
        pids = process_family(pid, self._proc) if turn % PROCESSES_EVERY == 0 else self._pids
        sizes = [size for one in pids if (size := _read_resident(self._proc / str(one))) is not None]
        self._pid = pid if sizes else 0
        if not sizes:
            return None
        resident = sum(whole for whole, _ in sizes)
        # A process that came or went changes what is shared, so the difference of resident memory is not enough.
        if turn == 0 or pids != self._pids:
            own = [_read_field(self._proc / str(one) / "smaps_rollup", "Pss:") for one in pids]
            if any(size is None for size in own):
                # The pages that children share with the biggest process (the master, as a rule) are counted once.
                biggest = max(whole for whole, _ in sizes)
                shared = sum(common for _, common in sizes) - max(common for whole, common in sizes if whole == biggest)
                self._measured = resident - shared
            else:
                self._measured = sum(size * 1024 for size in own if size is not None)
            self._pids, self._resident = pids, resident
        return max(0, self._measured + resident - self._resident)


def process_family(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """The ids of a process, its descendants, and the members of its process group (orphans), in order.

    The parent of every process is read for it, 0.05 ms each. The kernel also lists children, but one list for each
    thread: that takes 40 ms for twenty workers of forty threads.
    """
    try:
        everybody = process_parents(proc)
    except OSError:
        return [pid]
    found, waiting = set[int](), [pid, *(one for one, (_, group) in everybody.items() if group == pid)]
    children: dict[int, list[int]] = {}
    for one, (parent, _) in everybody.items():
        children.setdefault(parent, []).append(one)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += children.get(one, ())
    return sorted(found)


def process_parents(proc: Path) -> dict[int, tuple[int, int]]:
    """Parent and process group of every process, by its id."""
    found = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                # The name, in brackets, may hold anything, brackets included (proc_pid_stat(5)).
                fields = (proc / name / "stat").read_text(errors="replace").rpartition(")")[2].split()
                found[int(name)] = int(fields[1]), int(fields[2])
            except (OSError, ValueError, IndexError):
                continue
    return found


def _read_resident(folder: Path) -> tuple[int, int] | None:
    """Resident bytes, and how many of them are pages of files or shared memory."""
    try:
        fields = (folder / "statm").read_text().split()
        return int(fields[1]) * _PAGE, int(fields[2]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def _read_field(file: Path, name: str) -> int | None:
    """The number behind a name, as /proc and memory.stat have them."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
