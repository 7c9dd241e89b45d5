"""What the app uses of what there is, read from the kernel's own files."""

from __future__ import annotations

import os
from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63
FULL = 10  # measurements from one that counts shared pages once to the next
_ROOT = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def limit(root: Path = _ROOT, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The container's memory limit in bytes (cgroup v2, v1, or v2 beside v1), or None where there is none to be
    seen. A limit may stand at any level above us: the least of them is the one that ends us."""
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                files += [file for base in (root, root / "unified") for file in _up(base, path, "memory.max")]
            elif "memory" in controllers.split(","):
                files += _up(root / "memory", path, "memory.limit_in_bytes")
    except (OSError, ValueError):
        pass
    found = [value for value in map(_number, files) if value is not None and value < UNLIMITED]
    return min(found, default=None)


def _up(base: Path, path: str, name: str) -> list[Path]:
    """The file at every level from a group up to the tree's root."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:depth], name) for depth in range(len(parts), 0, -1)]


class Meter:
    """Bytes of the app with all its processes (a master and its forked workers are one), measured anew each time.

    A page that several processes share counts once, where the kernel tells (PSS in smaps_rollup). It walks every
    page for that, 6 ms for 400 MB, so it is asked at every tenth measurement and whenever the processes are others;
    in between the change of resident memory is added. Where PSS may not be read, resident memory stands in, without
    the pages that a child shares with files or others.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._pids: list[int] = []
        self._pid = self._full = self._resident = self._turn = 0

    def bytes(self, pid: int) -> int | None:
        """None where it has ended."""
        pids = _descendants(pid, self._proc)
        if pids is None:
            # Reading of every process there is takes 0.1 ms each: what it found is good for the next ones, too.
            known = self._pid == pid and self._turn < FULL - 1
            pids = self._pids if known else family(pid, self._proc)
        self._pid = pid
        sizes = [size for one in pids if (size := _resident(self._proc / str(one))) is not None]
        if not sizes:
            return None
        resident = sum(whole for whole, _ in sizes)
        self._turn += 1
        if pids != self._pids or self._turn >= FULL:
            own = [_proportional(self._proc / str(one)) for one in pids]
            if any(size is None for size in own):
                biggest = max(whole for whole, _ in sizes)
                shared = sum(common for _, common in sizes) - max(common for whole, common in sizes if whole == biggest)
                self._full = resident - shared
            else:
                self._full = sum(size for size in own if size is not None)
            self._pids, self._resident, self._turn = pids, resident, 0
        return max(0, self._full + resident - self._resident)


def _descendants(pid: int, proc: Path) -> list[int] | None:
    """A process and its descendants in order; None where the kernel was built without task/*/children."""
    if not (proc / str(pid) / "task" / str(pid) / "children").exists():
        return None
    found, waiting = set[int](), [pid]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            try:
                for task in (proc / str(one) / "task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except (OSError, ValueError):
                continue  # it ended meanwhile
    return sorted(found)


def family(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """The same by everybody's parents, and whoever is of its group."""
    try:
        parents = _parents(proc)
    except OSError:
        return [pid]
    found, waiting = set[int](), [pid, *(one for one, (_, group) in parents.items() if group == pid)]
    children: dict[int, list[int]] = {}
    for one, (parent, _) in parents.items():
        children.setdefault(parent, []).append(one)
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += children.get(one, ())
    return sorted(found)


def _parents(proc: Path) -> dict[int, tuple[int, int]]:
    """Parent and group of every process there is."""
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


def _resident(folder: Path) -> tuple[int, int] | None:
    """Resident bytes, and those of them that are files' or shared memory."""
    try:
        fields = (folder / "statm").read_text().split()
        return int(fields[1]) * _PAGE, int(fields[2]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def _proportional(folder: Path) -> int | None:
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
