"""The locks name every package that is needed, within its bounds and with the hashes of its files."""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from proxy import __repository__, __version__

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "release"))
RELOCK = "the dependencies have changed: run make lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def wanted(lines: list[str]) -> list[Requirement]:
    bare = (re.sub(r"\s+#.*$", "", line).strip() for line in lines)
    return [Requirement(line) for line in bare if line and not line.startswith("#")]


def locked(name: str) -> dict[str, tuple[Requirement, int]]:
    """Each package's line, and how many hashes it has."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.partition(" --hash=")[0])
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is there twice"
            hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)
            found[canonicalize_name(requirement.name)] = requirement, len(hashes)
    return found


LOCKS = {
    "requirements.lock": wanted((ROOT / "requirements.txt").read_text().splitlines()),
    "requirements-build.lock": wanted(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]),
}


@pytest.mark.parametrize("name", LOCKS)
def test_what_is_needed_is_locked_within_its_bounds(name):
    found = locked(name)
    for one in LOCKS[name]:
        assert canonicalize_name(one.name) in found, RELOCK
        (pinned,) = found[canonicalize_name(one.name)][0].specifier
        assert pinned.operator == "=="
        assert one.specifier.contains(Version(pinned.version)), f"{one.name}: {RELOCK}"


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_one_version_and_the_hashes_of_its_files_and_comes_from_no_address_of_its_own(name):
    for package, (requirement, hashes) in locked(name).items():
        assert hashes, package
        assert requirement.url is None
        assert len(requirement.specifier) == 1
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "--index" not in text


@pytest.mark.parametrize("python", PYTHONS)
def test_what_a_python_needs_by_its_marker_is_locked_for_it(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    found = locked("requirements.lock")
    for one in LOCKS["requirements.lock"]:
        pinned = found[canonicalize_name(one.name)][0]
        if one.marker is None or one.marker.evaluate(environment):
            assert pinned.marker is None or pinned.marker.evaluate(environment), (one.name, python)


def test_the_lock_for_an_apps_repository_begins_with_the_wheel_and_its_hash(tmp_path):
    from kit import format_lock

    wheel = tmp_path / f"outrigger-{__version__}-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    first = next(line for line in format_lock(wheel).splitlines() if not line.startswith("#"))
    assert first.endswith(f"{wheel.name} --hash=sha256:{hashlib.sha256(b'wheel').hexdigest()}")
    # Until the repository has an address the wheel is the file beside the lock.
    assert first.startswith("./" if "/OWNER/" in __repository__ else "outrigger @ https://")
