"""Noticing that a policy's file was saved, and what of it waits for a restart."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.policy.loading import PolicySource, load_policy, read_file
from proxy.policy.schema import Policy
from proxy.policy.watch import FIXED_KEYS, FileWatcher, find_fixed_changes, keep_fixed_keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("a")
    return path


def polls(watcher: FileWatcher, times: int = 4) -> int:
    return sum(watcher.has_changed() for _ in range(times))


def test_a_file_that_nobody_touches_never_changes(file: Path) -> None:
    assert polls(FileWatcher(file)) == 0


def test_writing_into_the_file_is_one_change(file: Path) -> None:
    watcher = FileWatcher(file)
    file.write_text("longer")
    assert polls(watcher) == 1


def test_a_file_renamed_over_it_is_one_change_even_with_its_size_and_time(file: Path) -> None:
    watcher = FileWatcher(file)
    other = file.with_suffix(".new")
    other.write_text("b")
    stat = file.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.rename(file)
    assert polls(watcher) == 1


def test_a_link_that_points_elsewhere_is_one_change(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    watcher = FileWatcher(link)
    other = file.with_name("other")
    other.write_text("b")
    swap = file.with_name("swap")
    swap.symlink_to(other)
    swap.rename(link)
    assert polls(watcher) == 1


def test_a_missing_file_is_no_change_until_it_is_back(file: Path) -> None:
    watcher = FileWatcher(file)
    file.unlink()
    assert polls(watcher) == 0
    file.write_text("back, and longer")
    assert polls(watcher) == 1


def test_a_file_that_is_still_being_written_is_waited_for(file: Path) -> None:
    watcher = FileWatcher(file)
    file.write_text("")
    assert not watcher.has_changed()
    file.write_text("half")
    assert not watcher.has_changed()
    file.write_text("the whole")
    assert not watcher.has_changed()
    assert watcher.has_changed()
    assert not watcher.has_changed()


def test_a_change_between_reading_and_watching_is_not_lost(file: Path) -> None:
    source = read_file(file, "policy.yaml")
    file.write_text("saved meanwhile")
    assert polls(FileWatcher(file, source.stamp)) == 1


async def test_changes_come_at_every_interval_and_only_then(file: Path) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            file.write_text("saved")
        if len(slept) > 20:
            raise asyncio.CancelledError

    watcher = FileWatcher(file, interval=0.25, sleep=sleep)
    seen: list[int] = []

    async def follow() -> None:
        async for _ in watcher.changes():
            seen.append(len(slept))

    with pytest.raises(asyncio.CancelledError):
        await follow()
    assert seen == [3]
    assert set(slept) == {0.25}


def say(text: str) -> Policy:
    return load_policy(PolicySource("p.yaml", None, text), {})


def test_what_a_reload_cannot_change_is_named_and_kept_and_the_rest_is_taken() -> None:
    old = say("listen: {public: 127.0.0.1:1}")
    new = say("listen: {public: 127.0.0.1:2, drain: 5s}\napp: {port: 9, hold: 1s}\nlog: {level: error}")
    assert find_fixed_changes(old, new) == ("app.port", "listen.public")
    kept = keep_fixed_keys(old, new)
    assert find_fixed_changes(old, kept) == ()
    assert (kept.listen.public, kept.app.port) == (old.listen.public, "auto")
    assert (kept.listen.drain, kept.app.hold, kept.log.level) == (5.0, 1.0, "error")


def test_policies_that_differ_in_nothing_fixed_are_taken_whole() -> None:
    old, new = say(""), say("app: {hold: 3s}")
    assert find_fixed_changes(old, new) == ()
    assert keep_fixed_keys(old, new) is new


@pytest.mark.parametrize("key", FIXED_KEYS)
def test_every_fixed_key_is_a_key_of_the_policy(key: str) -> None:
    section, name = key.split(".")
    policy = Policy()
    changed = replace(policy, **{section: replace(getattr(policy, section), **{name: "else"})})  # type: ignore[arg-type]
    assert find_fixed_changes(policy, changed) == (key,)
