"""How much memory the app has, which route it grows with, and when it is replaced for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.app.memory_recycler import MIB, SAMPLES_OVER, MemoryRecycler
from proxy.app.memory_usage import PROCESSES_EVERY, PSS_EVERY, MemoryMeter, memory_limit, process_family
from proxy.observe.memory_growth import MemoryGrowth, RouteGrowth
from proxy.observe.process_sampler import ResourceSample
from proxy.policy import schema

PAGE = os.sysconf("SC_PAGE_SIZE")


def process(
    proc: Path, pid: int, parent: int, *, pss: int | None, rss: int = 10, shared: int = 4, group: int = 1
) -> None:
    """`pss` in KiB, `rss` and `shared` in pages."""
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"{pid} (a) (b c) S {parent} {group} 1 0\n")
    (folder / "statm").write_text(f"100 {rss} {shared} 1 0 5 0\n")
    if pss is not None:
        (folder / "smaps_rollup").write_text(f"0-1 ---p 0 0 0 [rollup]\nRss: 9 kB\nPss: {pss} kB\n")


def test_a_master_and_its_workers_are_one_app_and_shared_pages_count_once(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, pss=100)
    process(tmp_path, 11, 10, pss=50)
    process(tmp_path, 12, 11, pss=25)
    process(tmp_path, 13, 1, pss=5, group=10)  # orphaned, of the app's group still
    process(tmp_path, 99, 1, pss=1000)
    assert process_family(10, tmp_path) == [10, 11, 12, 13]
    assert MemoryMeter(tmp_path).measure_bytes(10) == 180 * 1024


def test_where_pss_may_not_be_read_shared_pages_count_once_as_well(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, pss=None, rss=10, shared=4)
    process(tmp_path, 11, 10, pss=None, rss=8, shared=3)
    assert MemoryMeter(tmp_path).measure_bytes(10) == (10 + 8 - 3) * PAGE


def test_between_full_measurements_the_change_of_resident_memory_is_added(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, pss=100, rss=50)
    meter = MemoryMeter(tmp_path)
    assert meter.measure_bytes(10) == 100 * 1024
    process(tmp_path, 10, 1, pss=7, rss=60)
    assert [meter.measure_bytes(10) for _ in range(PSS_EVERY)] == [100 * 1024 + 10 * PAGE] * (PSS_EVERY - 1) + [
        7 * 1024
    ]


def test_a_new_process_counts_three_measurements_later_at_the_latest(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, pss=100)
    meter = MemoryMeter(tmp_path)
    assert meter.measure_bytes(10) == 100 * 1024
    process(tmp_path, 11, 10, pss=50)
    assert [meter.measure_bytes(10) for _ in range(PROCESSES_EVERY)] == [100 * 1024] * (PROCESSES_EVERY - 1) + [
        150 * 1024
    ]


def test_another_app_is_measured_whole_at_once(tmp_path: Path) -> None:
    process(tmp_path, 10, 1, pss=100)
    process(tmp_path, 20, 1, pss=7)
    meter = MemoryMeter(tmp_path)
    assert [meter.measure_bytes(10), meter.measure_bytes(20), meter.measure_bytes(30), meter.measure_bytes(10)] == [
        102400,
        7168,
        None,
        102400,
    ]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="there is no /proc here")
def test_real_children_are_counted_and_a_gone_process_has_none() -> None:
    code = "import time; x = b'x' * 50_000_000; print(flush=True); time.sleep(60)"
    meter = MemoryMeter()
    before = meter.measure_bytes(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        after = [meter.measure_bytes(os.getpid()) for _ in range(PROCESSES_EVERY)][-1]
        assert before is not None
        assert after is not None
        assert 40_000_000 < after - before < 120_000_000
    finally:
        child.kill()
        child.communicate()
    assert meter.measure_bytes(2**22 + 1) is None


# ── the limit ─────────────────────────────────────────────────────────────────────────────────

MAX_V1 = "9223372036854771712"  # what v1 says where it has no limit


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("0::/", {"memory.max": "max"}, None),
        ("0::/", {"memory.max": "536870912\n"}, 536870912),
        ("0::/", {}, None),
        ("0::/pod/box", {"pod/memory.max": "400", "pod/box/memory.max": "max"}, 400),
        ("0::/pod/box", {"pod/memory.max": "400", "pod/box/memory.max": "300"}, 300),
        ("0::/../../elsewhere", {"memory.max": "500"}, 500),
        ("0::/", {"memory.max": "2000000000"}, 1_024_000_000),  # more than the machine has
        ("4:memory:/", {"memory/memory.limit_in_bytes": "500"}, 500),
        ("3:cpu,memory:/x/y", {"memory/x/memory.limit_in_bytes": "1000"}, 1000),
        ("4:memory:/docker/ab", {"memory/memory.limit_in_bytes": "500"}, 500),  # the host's path leads nowhere
        (
            "4:cpu,memory:/pod/box",
            {"memory/pod/memory.limit_in_bytes": "400", "memory/pod/box/memory.limit_in_bytes": MAX_V1},
            400,
        ),
        (
            "4:memory:/",
            {
                "memory/memory.limit_in_bytes": MAX_V1,
                "memory/memory.stat": f"cache 7\nhierarchical_memory_limit {MAX_V1}",
            },
            None,
        ),
        (
            "4:memory:/pod/box",
            {"memory/memory.limit_in_bytes": MAX_V1, "memory/memory.stat": "cache 7\nhierarchical_memory_limit 400\n"},
            400,
        ),
        ("4:memory:/\n0::/box", {"memory/memory.limit_in_bytes": MAX_V1, "unified/box/memory.max": "600"}, 600),
        ("nonsense", {"memory.max": "500"}, 500),
        ("", {"memory.max": "nonsense"}, None),
    ],
)
def test_the_containers_limit_is_the_least_of_any_level_and_of_the_machine(
    tmp_path: Path, own: str, files: dict[str, str], found: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own)
    (tmp_path / "meminfo").write_text("MemTotal:           1000000 kB\nMemFree: 7 kB\n")
    assert memory_limit(tmp_path, tmp_path / "own", tmp_path / "meminfo") == found


def test_where_the_machine_says_nothing_the_groups_word_stands(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("500")
    assert memory_limit(tmp_path, tmp_path / "none", tmp_path / "none") == 500


# ── growth ────────────────────────────────────────────────────────────────────────────────────


class Growing:
    def __init__(self) -> None:
        self.now = 0.0
        self.in_flight: dict[str, int] = {}
        self.growth = MemoryGrowth(self.in_flight, lambda: self.now)

    def sample(self, size: int | None, pid: int | None = 1, *, begun: dict[str, int] | None = None) -> None:
        self.now += 1
        self.growth.started_requests.update(begun or {})
        self.growth.record_sample(pid, size)


def test_a_leak_has_the_name_of_its_route() -> None:
    g = Growing()
    g.sample(100)
    for n in range(1, 11):
        g.sample(100 + n * 50, begun={"leaks": 2})
        g.sample(100 + n * 50, begun={"tidy": 40})
    assert list(g.growth.growth_by_route().items()) == [("leaks", RouteGrowth(500, 20)), ("tidy", RouteGrowth(0, 400))]


def test_requests_in_flight_at_once_share_evenly_and_a_long_one_takes_part_in_each_second() -> None:
    g = Growing()
    g.sample(100)
    g.in_flight["long"] = 1
    g.sample(100, begun={"long": 1})
    g.sample(400, begun={"a": 2})
    assert g.growth.growth_by_route() == {"a": RouteGrowth(200, 2), "long": RouteGrowth(100, 1)}


def test_a_new_process_begins_anew_and_what_nobody_asked_for_is_nobodys() -> None:
    g = Growing()
    g.sample(100)
    g.sample(900)
    g.sample(50, pid=2, begun={"a": 1})
    g.sample(None, pid=None, begun={"a": 1})
    g.sample(700, pid=2, begun={"a": 1})
    assert g.growth.growth_by_route() == {"a": RouteGrowth(0, 3)}


def test_it_is_forgotten_after_an_hour() -> None:
    g = Growing()
    g.sample(100)
    g.sample(200, begun={"a": 1})
    g.now += 3500
    g.sample(300, begun={"b": 1})
    assert set(g.growth.growth_by_route()) == {"a", "b"}
    g.now += 200
    assert g.growth.growth_by_route() == {"b": RouteGrowth(100, 1)}


# ── pressure ──────────────────────────────────────────────────────────────────────────────────


class App:
    is_ready = True
    last_start_took: float | None = 2.0


class Pressed:
    def __init__(self, memory: schema.Memory, *, hold: float = 15.0) -> None:
        self.now = 1000.0
        self.stopping = False
        self.app = App()
        self.policy = schema.App(memory=memory, hold=hold)
        self.said: list[tuple[str, str]] = []
        self.replaced: list[str] = []
        self.pressure = MemoryRecycler(
            self.app,  # type: ignore[arg-type]
            lambda: self.policy,
            replace=self.replaced.append,
            emit=lambda event, message, **facts: self.said.append((event, message)),
            clock=lambda: self.now,
            stopping=lambda: self.stopping,
        )

    def at(self, percent: int, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1
            self.pressure.check_sample(ResourceSample(gateway_bytes=0, app_bytes=percent * MIB, limit_bytes=100 * MIB))

    def events(self) -> list[str]:
        return [event for event, _ in self.said]


def test_memory_is_warned_of_once_a_crossing_and_not_again_while_it_wavers() -> None:
    p = Pressed(schema.Memory())
    for percent in (79, 80, 85, 79, 81, 76, 90):
        p.at(percent, 5)
    assert p.events() == ["memory.warning"]
    p.at(74)
    p.at(80)
    assert p.events() == ["memory.warning"] * 2
    assert p.said[0][1].startswith("Memory is at 80% of 100 MiB: the app 80 MiB, the gateway 0 MiB")
    assert not p.replaced


def test_the_app_is_replaced_at_its_share_but_not_for_a_passing_peak() -> None:
    p = Pressed(schema.Memory(recycle=0.92))
    p.at(95, SAMPLES_OVER - 1)
    p.at(50)
    assert not p.replaced
    p.at(92, SAMPLES_OVER)
    assert p.replaced == ["memory"]


def test_it_is_replaced_at_most_once_in_every_and_said_so_once() -> None:
    p = Pressed(schema.Memory(recycle=0.92, every=600.0))
    p.at(95, 590)
    assert p.replaced == ["memory"]
    assert p.said[-1][1].endswith(
        "the app is not replaced: it was replaced for memory less than 600 s ago (app.memory.every)."
    )
    assert p.events().count("memory.recycle") == 2
    p.at(95, 20)
    assert p.replaced == ["memory"] * 2


@pytest.mark.parametrize(("took", "said"), [(None, "unknown"), (15.0, "15.0 s"), (40.0, "40.0 s")])
def test_an_app_that_starts_slower_than_hold_is_only_warned_of(took: float | None, said: str) -> None:
    p = Pressed(schema.Memory(recycle=0.92))
    p.app.last_start_took = took
    p.at(99, 50)
    assert not p.replaced
    assert p.events() == ["memory.warning", "memory.recycle"]
    assert f"its last start took {said}, and requests wait no longer than 15 s (app.hold)" in p.said[-1][1]


def test_nothing_is_done_without_a_limit_or_while_the_app_is_away_or_the_gateway_ends() -> None:
    p = Pressed(schema.Memory(recycle=0.92))
    p.pressure.check_sample(ResourceSample(app_bytes=10**9, limit_bytes=None))
    p.app.is_ready = False
    p.at(99, 10)
    p.app.is_ready, p.stopping = True, True
    p.at(99, 10)
    assert p.events() == []


def test_a_newer_policy_holds_from_the_next_sample_on() -> None:
    p = Pressed(schema.Memory(recycle=0.92))
    p.at(95, SAMPLES_OVER - 1)
    p.policy = schema.App(memory=schema.Memory())
    p.at(95)
    p.policy = schema.App(memory=schema.Memory(recycle=0.92))
    p.at(95, SAMPLES_OVER - 1)
    assert not p.replaced
    p.policy = schema.App(memory=schema.Memory(recycle=0.97))
    p.at(95, SAMPLES_OVER)
    assert not p.replaced
    p.policy = schema.App(memory=schema.Memory(recycle=0.9))
    p.at(95, SAMPLES_OVER)
    assert p.replaced == ["memory"]
    p.policy = schema.App(memory=schema.Memory(recycle=0.9, every=10.0))
    p.at(95, 10)
    assert p.replaced == ["memory"] * 2
