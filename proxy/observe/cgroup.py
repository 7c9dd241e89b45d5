"""CPU use and throttling of the container, from its cgroup's files (v1 and v2, cgroups(7))."""

from __future__ import annotations

from pathlib import Path

_CONTROLLERS = ("cpu,cpuacct", "cpu")


class CpuThrottling:
    """How long the CPU quota held the container back.

    A quota may be set at any level above us, and each level counts only its own throttling, so all levels that can be
    read are added up. The files are looked up once.
    """

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._files = _find_stat_files(root, own)

    def throttled_seconds(self) -> float:
        """Seconds since the cgroup was made; 0 if no file tells (no cgroup, no quota, not Linux)."""
        return sum(_read_throttled(file) for file in self._files)


def _find_stat_files(root: Path, own: Path) -> list[Path]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        groups[controllers] = path
    found: list[Path] = []
    trees = [(root / name, groups.get(name, "/")) for name in _CONTROLLERS]
    # The v2 tree is mounted at the root, or at `unified` beside v1's.
    trees += [(base, groups.get("", "/")) for base in (root, root / "unified")]
    for base, path in trees:
        below = base / path.lstrip("/")
        # Inside a container the path may be the host's and lead nowhere: then the mount's root is our group.
        levels = [below, *below.parents] if below.is_dir() else [base]
        for level in levels:
            # Above the mount there are no cgroup files.
            if level != base and base not in level.parents:
                break
            file = level / "cpu.stat"
            if file.is_file() and not any(file.samefile(known) for known in found):
                found.append(file)
    return found


def _read_throttled(file: Path) -> float:
    try:
        text = file.read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == "throttled_usec" and value.isdigit():
            return int(value) / 1e6
        if key == "throttled_time" and value.isdigit():
            return int(value) / 1e9
    return 0.0


class CpuUsage:
    """CPU time of our own cgroup, and the least quota of any level above it."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._folders = [file.parent for file in _find_stat_files(root, own)]

    def usage_seconds(self) -> float | None:
        """Seconds of CPU time since the cgroup was made, None if no file tells."""
        for folder in self._folders[:1]:
            for name, key, scale in (("cpu.stat", "usage_usec", 1e6), ("cpuacct.usage", "", 1e9)):
                if (value := _read_number(folder / name, key)) is not None:
                    return value / scale
        return None

    def quota_cores(self) -> float | None:
        """How many cores the container may keep busy; None without a quota."""
        return min((cores for folder in self._folders if (cores := _read_quota(folder)) is not None), default=None)


def _read_number(file: Path, key: str) -> int | None:
    """The number after a key, or the file's only number if `key` is empty."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name == key and value.isdigit():
            return int(value)
    return None


def _read_quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota.isdigit() and int(period) else None
    except (OSError, ValueError):
        return None
