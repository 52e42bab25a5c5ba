from __future__ import annotations

from pathlib import Path

import pytest

from edgert.ports.board.files import Files
from edgert.ports.board.proc import Cluster, Processor

CPU = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def policy(number: int, cores: str, current: int, cap: int, highest: int) -> dict[str, str]:
    stem = f"{CPU}/cpufreq/policy{number}"
    return {
        f"{stem}/related_cpus": cores,
        f"{stem}/scaling_cur_freq": str(current),
        f"{stem}/scaling_max_freq": str(cap),
        f"{stem}/cpuinfo_max_freq": str(highest),
        f"{stem}/scaling_governor": "ondemand",
    }


def stat(*busy: int) -> str:
    lines = [f"cpu{core} {ticks} 0 0 {100 - ticks}" for core, ticks in enumerate(busy)]
    return "\n".join([f"cpu {sum(busy)} 0 0 {100 * len(busy) - sum(busy)}", *lines, "intr 1 2 3"])


def twice(root: Path, *busy: int) -> Processor:
    """A processor that has seen its cores work."""
    processor = Processor(Files(str(root)))
    write(root, {"proc/stat": stat(*[0] * len(busy)).replace(" 100", " 0").replace(f" {100 * len(busy)}", " 0")})
    processor.scan()
    processor.load(0.0)
    write(root, {"proc/stat": stat(*busy)})
    processor.load(1.0)
    return processor


def test_load_of_all_and_of_each_core(tmp_path: Path) -> None:
    processor = Processor(Files(str(tmp_path)))
    write(tmp_path, {"proc/stat": "cpu 0 0 0 0\ncpu0 0 0 0 0\ncpu1 0 0 0 0\nintr 5"})
    assert processor.load(0.0).readings == {}
    write(tmp_path, {"proc/stat": "cpu 60 0 0 140\ncpu0 50 0 0 50\ncpu1 10 0 0 90\nintr 5"})
    told = processor.load(1.0).readings
    assert {name: each.value for name, each in told.items()} == pytest.approx(
        {"load_frac": 0.3, "core0_load_frac": 0.5, "core1_load_frac": 0.1}
    )
    assert told["load_frac"].source == str(tmp_path / "proc/stat")


def test_a_core_that_goes_away_is_told_no_more(tmp_path: Path) -> None:
    processor = twice(tmp_path, 50, 50)
    write(tmp_path, {"proc/stat": "cpu 80 0 0 120\ncpu0 80 0 0 20"})
    assert set(processor.load(2.0).readings) == {"load_frac"} | {"core0_load_frac"}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("some avg10=12.34 avg60=0.00 avg300=0.00 total=1", 0.1234),
        ("some avg10=0.00 avg60=9.00 avg300=0.00 total=1", 0.0),
        ("full avg10=3.00 avg60=0.00 avg300=0.00 total=1", None),
        ("some avg10=101.00", None),
        ("some avg10=-1", None),
        ("some avg10=nan", None),
        ("some avg10=", None),
        ("", None),
    ],
)
def test_pressure(tmp_path: Path, text: str, share: float | None) -> None:
    write(tmp_path, {"proc/pressure/memory": text})
    found = Processor(Files(str(tmp_path))).pressure(0.0).readings.get("memory_pressure_frac")
    assert (None if found is None else found.value) == (None if share is None else pytest.approx(share))


def test_memory_is_told_in_bytes(tmp_path: Path) -> None:
    write(tmp_path, {"proc/meminfo": "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\nSwapFree: 0 kB"})
    told = Processor(Files(str(tmp_path))).memory(0.0).readings
    values = {name: each.value for name, each in told.items()}
    assert values == {
        "memory_total_bytes": 1000 * 1024.0,
        "memory_available_bytes": 600 * 1024.0,
        "swap_free_bytes": 0.0,
    }


def test_the_slowest_cluster_that_works_counts(tmp_path: Path) -> None:
    write(tmp_path, policy(0, "0 1", 600_000, 1_800_000, 1_800_000) | policy(2, "2 3", 1_200_000, 2_400_000, 2_400_000))
    told = twice(tmp_path, 50, 0, 50, 50).clocks(1.0).readings
    assert told["freq_frac"].value == pytest.approx(1 / 3)
    assert told["policy2_freq_hz"].value == 1.2e9
    # Without work on the small ones, their low clock says nothing.
    told = twice(tmp_path, 0, 5, 50, 50).clocks(1.0).readings
    assert told["freq_frac"].value == pytest.approx(0.5)


def test_of_an_idle_machine_the_cap_is_told(tmp_path: Path) -> None:
    write(tmp_path, policy(0, "0 1", 600_000, 900_000, 1_800_000))
    told = twice(tmp_path, 0, 1).clocks(1.0).readings["freq_frac"]
    assert told.value == pytest.approx(0.5)
    assert told.source.endswith("scaling_max_freq")


def test_a_boost_above_the_highest_clock_is_all_of_it(tmp_path: Path) -> None:
    write(tmp_path, policy(0, "0", 2_000_000, 1_800_000, 1_800_000))
    assert twice(tmp_path, 90).clocks(1.0).readings["freq_frac"].value == 1.0


def test_clusters_come_from_cpufreq_or_else_from_their_capacity(tmp_path: Path) -> None:
    capacities = {f"{CPU}/cpu{core}/cpu_capacity": str(381 if core < 4 else 1024) for core in range(6)}
    write(tmp_path, capacities | {f"{CPU}/cpuidle/current_driver": "none"})
    processor = Processor(Files(str(tmp_path)))
    processor.scan()
    small, big = processor.clusters
    assert (small.cores, big) == ((0, 1, 2, 3), Cluster((4, 5), 1.0))
    assert small.capacity_frac == pytest.approx(381 / 1024)
    write(tmp_path, policy(4, "4 5", 1, 1, 1_800_000))
    processor.scan()
    assert processor.clusters == (Cluster((4, 5), 1.0, 1.8e9, "ondemand", f"{CPU}/cpufreq/policy4"),)
    assert processor.facts() == {"cores 4-5": "capacity 1.00, at most 1800 MHz, governor ondemand"}
