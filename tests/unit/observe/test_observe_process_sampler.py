"""Memory, throttling and lag are taken once a second, from whatever kind of cgroup there is."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from proxy.observe.cgroup import CpuThrottling, CpuUsage
from proxy.observe.metrics import Metrics
from proxy.observe.process_sampler import ProcessSampler, ResourceSample, resident_bytes
from proxy.policy import schema


def stat(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.stat").write_text(text)


def own(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cgroup"
    file.write_text(text)
    return file


V2 = "usage_usec 5\nnr_periods 10\nnr_throttled 3\nthrottled_usec {}\n"
V1 = "nr_periods 10\nnr_throttled 3\nthrottled_time {}\n"


def test_version_2_sums_up_every_level(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    stat(root, "usage_usec 5\n")
    stat(root / "a", V2.format(2_000_000))
    stat(root / "a/b", V2.format(500_000))
    assert CpuThrottling(root, own(tmp_path, "0::/a/b\n")).throttled_seconds() == 2.5


def test_version_1_is_in_nanoseconds(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    stat(root / "cpu,cpuacct" / "a", V1.format(1_500_000_000))
    (root / "cpu").symlink_to(root / "cpu,cpuacct")
    text = "4:memory:/a\n3:cpu,cpuacct:/a\n0::/\n"
    assert CpuThrottling(root, own(tmp_path, text)).throttled_seconds() == 1.5


def test_a_path_of_the_host_leads_to_the_containers_own_root(tmp_path: Path) -> None:
    root = tmp_path / "fs"
    stat(root, V2.format(1_000_000))
    assert CpuThrottling(root, own(tmp_path, "0::/docker/0123\n")).throttled_seconds() == 1.0


@pytest.mark.parametrize("text", ["", "0::/\n", "nonsense\n", "1:cpu:/../../etc\n"])
def test_no_file_means_never_throttled(tmp_path: Path, text: str) -> None:
    assert CpuThrottling(tmp_path / "none", own(tmp_path, text)).throttled_seconds() == 0
    assert CpuThrottling(tmp_path / "none", tmp_path / "none").throttled_seconds() == 0


async def test_a_sample_reaches_metrics_and_listeners() -> None:
    metrics = Metrics(schema.Metrics(), version="1")
    throttled = iter([10.0, 10.5, 10.5])
    runtime = ProcessSampler(
        metrics,
        clock=lambda: 0.0,
        app_bytes=lambda: 300,
        limit_bytes=lambda: 1000,
        own_bytes=lambda: 100,
        throttled=lambda: next(throttled),
    )
    heard: list[ResourceSample] = []
    runtime.on_sample(heard.append)
    sample = runtime.take_sample(lag=0.25)
    runtime.take_sample()
    assert sample.memory_share == 0.4
    assert heard == [sample, runtime.latest]
    text = (await metrics.render())[0].decode()
    assert "outrigger_app_memory_bytes 300.0" in text
    assert "outrigger_memory_limit_bytes 1000.0" in text
    assert "outrigger_cpu_throttled_seconds_total 0.5" in text


def test_without_a_limit_or_a_measurement_there_is_no_share() -> None:
    assert ResourceSample(gateway_bytes=5).memory_share is None
    assert ResourceSample(gateway_bytes=5, app_bytes=5).memory_share is None


async def test_the_loops_lag_is_how_late_the_next_second_came() -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        if now > 2:
            await asyncio.Event().wait()
        now += seconds + 0.2

    runtime = ProcessSampler(
        Metrics(schema.Metrics(), version="1"),
        clock=lambda: now,
        app_bytes=lambda: None,
        limit_bytes=lambda: None,
        throttled=lambda: 0.0,
        sleep=sleep,
    )
    heard: list[float] = []
    runtime.on_sample(lambda sample: heard.append(round(sample.lag_s, 3)))
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(runtime.run(), 0.05)
    assert heard == [0.0, 0.2, 0.2]


def test_resident_memory_is_that_of_a_python_process() -> None:
    assert 5_000_000 < resident_bytes() < 2_000_000_000


@pytest.mark.parametrize(
    ("files", "seconds", "cores"),
    [
        ({"cpu.stat": "usage_usec 2500000\nuser_usec 1\n", "cpu.max": "50000 100000\n"}, 2.5, 0.5),
        ({"cpu.stat": "usage_usec 2500000\n", "cpu.max": "max 100000\n"}, 2.5, None),
        (
            {
                "cpu/cpu.stat": "nr_periods 1\n",
                "cpu/cpuacct.usage": "3000000000\n",
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
            2.0,
        ),
        ({"cpu/cpu.stat": "nr_periods 1\n", "cpu/cpu.cfs_quota_us": "-1\n"}, None, None),
        ({}, None, None),
    ],
)
def test_what_the_container_uses_of_its_cpu(
    tmp_path: Path, files: dict[str, str], seconds: float | None, cores: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    usage = CpuUsage(tmp_path, tmp_path / "none")
    assert (usage.usage_seconds(), usage.quota_cores()) == (seconds, cores)
