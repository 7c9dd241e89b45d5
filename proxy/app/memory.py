"""What the app uses of what there is, read from the kernel's own files."""

from __future__ import annotations

from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63
_ROOT = Path("/sys/fs/cgroup")


def limit(root: Path = _ROOT, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The container's memory limit in bytes (cgroup v2, then v1), or None where there is none to be seen."""
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    try:
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                files.append(root / path.lstrip("/") / "memory.max")
            elif "memory" in controllers.split(","):
                files.append(root / "memory" / path.lstrip("/") / "memory.limit_in_bytes")
    except (OSError, ValueError):
        pass
    found = [value for value in map(_number, files) if value is not None and value < UNLIMITED]
    return min(found, default=None)


def app_bytes(pid: int, proc: Path = Path("/proc")) -> int | None:
    """Resident bytes of a process and all its descendants, shared pages counted once (PSS) where the kernel
    tells; None where it has ended."""
    total, seen, waiting = 0, set[int](), [pid]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        size = _process(proc / str(one))
        if size is None:
            continue
        total += size
        waiting += _children(proc / str(one))
    return total or None


def _process(folder: Path) -> int | None:
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return int((folder / "statm").read_text().split()[1]) * 4096
    except (OSError, ValueError, IndexError):
        return None


def _children(folder: Path) -> list[int]:
    found: list[int] = []
    try:
        for task in (folder / "task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
