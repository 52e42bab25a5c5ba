from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.errors import BoardError
from edgert.ports.levers import Clock, Cores, Group, Levers, Mode, Person, cpu_list

PID = 4321
WHO = Person(PID, 777)


def fill(root: Path, files: dict[str, object]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


def stat(nice: int = 0, started: int = 777, name: str = "py (x) y") -> str:
    fields = ["S", *["1"] * 15, str(nice), "1", "0", str(started), *["0"] * 30]
    return f"{PID} ({name}) {' '.join(fields)}"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    fill(
        tmp_path,
        {
            f"proc/{PID}/stat": stat(nice=19),
            f"proc/{PID}/status": "Name:\tx\nUid:\t1000\t1000\t1000\t1000",
            f"proc/{PID}/cgroup": "0::/system.slice/edgert.service",
            "proc/mounts": "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0",
            "sys/fs/cgroup/system.slice/edgert.service/cgroup.controllers": "cpu memory",
            "sys/fs/cgroup/system.slice/edgert.service/cgroup.subtree_control": "",
            "sys/fs/cgroup/system.slice/edgert.service/cgroup.procs": "",
            "sys/devices/system/cpu/online": "0-3",
        },
    )
    return tmp_path


def test_a_process_is_known_by_its_start_whatever_its_name(v2: Path) -> None:
    assert Levers(v2).person(PID) == WHO
    assert Levers(v2).person(1) is None
    assert Levers(v2).uids(PID) == {1000}
    assert Levers(v2).uids(1) == set()


def test_a_group_of_version_2_stands_beside_its_siblings_and_is_threaded(v2: Path) -> None:
    levers = Levers(v2)
    group = levers.plan_group(WHO)
    parent = v2 / "sys/fs/cgroup/system.slice/edgert.service"
    assert group == Group(WHO, str(parent / f"edgert-{PID}"), 2, enabled=True)
    # The kernel makes these files with the folder; here they must be there before.
    fill(Path(group.path), dict.fromkeys(("cgroup.type", "cgroup.procs", "cpu.max", "cpu.weight"), ""))
    levers.make_group(group)
    levers.limit_group(group, 0.3, None)
    told = {file.name: file.read_text().strip() for file in Path(group.path).iterdir()}
    assert told == {
        "cgroup.type": "threaded",
        "cgroup.procs": str(PID),
        "cpu.max": "120000 100000",
        "cpu.weight": "1",  # 19 steps of niceness
    }
    assert (parent / "cgroup.subtree_control").read_text().strip() == "+cpu"
    levers.limit_group(group, None, 50)
    assert (Path(group.path) / "cpu.max").read_text().startswith("max 100000")


def test_without_the_cpu_controller_it_says_what_to_do(v2: Path) -> None:
    fill(v2, {"sys/fs/cgroup/system.slice/edgert.service/cgroup.controllers": "memory pids"})
    with pytest.raises(BoardError, match="Delegate=cpu"):
        Levers(v2).plan_group(WHO)


@pytest.mark.parametrize("cgroup", ["0::/../../etc", "", "7:memory:/x"])
def test_no_group_is_made_where_it_cannot_be(v2: Path, cgroup: str) -> None:
    fill(v2, {f"proc/{PID}/cgroup": cgroup})
    with pytest.raises(BoardError, match="control group"):
        Levers(v2).plan_group(WHO)


def test_undoing_a_group_that_never_was_does_nothing(v2: Path) -> None:
    Levers(v2).undo(Group(WHO, str(v2 / "sys/fs/cgroup/nowhere/edgert-1"), 2))


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


UNIFIED = next(
    (Path(line.split()[1]) for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"),
    Path("/nowhere"),
)


@pytest.mark.skipif(
    os.getuid() != 0 or not os.access(UNIFIED, os.W_OK), reason="no group of version 2 can be made: none was tried"
)
def test_a_threaded_group_of_the_real_kernel_takes_a_process_from_beside_it_and_gives_it_back(sleeper: int) -> None:
    parent = UNIFIED / f"edgert-test-{sleeper}"
    parent.mkdir()
    levers = Levers()
    who = levers.person(sleeper)
    assert who is not None
    group = Group(who, str(parent / f"edgert-{sleeper}"), 2)
    try:
        (parent / "cgroup.procs").write_text(str(sleeper))
        levers.make_group(group)
        assert Path(f"/proc/{sleeper}/cgroup").read_text().rstrip().endswith(f"/edgert-{sleeper}")
        assert (Path(group.path) / "cgroup.type").read_text() == "threaded\n"
        levers.undo(group)
        assert not Path(group.path).exists()
        assert str(sleeper) in (parent / "cgroup.procs").read_text().split()
    finally:
        (UNIFIED / "cgroup.procs").write_text(str(sleeper))
        for path in (Path(group.path), parent):
            if path.exists():
                path.rmdir()


def cpufreq(root: Path, most_khz: int = 1_800_000, now_khz: int = 1_800_000) -> Path:
    folder = "sys/devices/system/cpu/cpufreq/policy0"
    fill(root, {f"{folder}/cpuinfo_min_freq": 600_000, f"{folder}/cpuinfo_max_freq": most_khz})
    fill(root, {f"{folder}/scaling_max_freq": now_khz})
    return root / folder / "scaling_max_freq"


@pytest.mark.parametrize(("cap", "khz"), [(0.5, 900_000), (0.1, 600_000), (1.0, 1_800_000)])
def test_the_clock_is_capped_within_what_the_policy_has_and_restored(tmp_path: Path, cap: float, khz: int) -> None:
    path, levers = cpufreq(tmp_path), Levers(tmp_path)
    (clock,) = levers.plan_clock(cap, {})
    levers.set_clock(clock)
    assert int(path.read_text()) == khz
    (again,) = levers.plan_clock(0.4, {clock.path: clock})
    assert again.before_khz == 1_800_000, "not the value that we wrote ourselves"
    levers.undo(clock)
    assert int(path.read_text()) == 1_800_000


def test_a_users_own_cap_is_never_exceeded(tmp_path: Path) -> None:
    cpufreq(tmp_path, now_khz=1_000_000)
    (clock,) = Levers(tmp_path).plan_clock(0.9, {})
    assert clock.after_khz == 1_000_000


def test_a_clock_that_somebody_else_raised_meanwhile_stays(tmp_path: Path) -> None:
    path = cpufreq(tmp_path, now_khz=1_500_000)
    Levers(tmp_path).undo(Clock(str(path), 1_200_000, 900_000))
    assert int(path.read_text()) == 1_500_000


def test_a_clock_that_the_kernel_rounded_up_is_restored_all_the_same(tmp_path: Path) -> None:
    path = cpufreq(tmp_path, now_khz=1_000_000)
    Levers(tmp_path).undo(Clock(str(path), 1_800_000, 900_000))
    assert int(path.read_text()) == 1_800_000


def test_while_the_kernel_cools_its_limit_is_not_taken_for_the_users(tmp_path: Path) -> None:
    path = cpufreq(tmp_path, now_khz=600_000)
    fill(tmp_path, {"sys/class/thermal/cooling_device0/type": "cpufreq-cpu0"})
    fill(tmp_path, {"sys/class/thermal/cooling_device0/cur_state": 4})
    with pytest.raises(BoardError, match="cool down"):
        Levers(tmp_path).plan_clock(0.5, {})
    held = Clock(str(path), 1_800_000, 900_000)
    assert Levers(tmp_path).plan_clock(0.4, {held.path: held})[0].before_khz == 1_800_000


def test_no_cpufreq_is_said(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="no cpufreq"):
        Levers(tmp_path).plan_clock(0.5, {})


def test_a_process_is_bound_and_freed_again(sleeper: int) -> None:
    levers = Levers()
    who = levers.person(sleeper)
    assert who is not None
    first = levers.online()[0]
    entry = levers.plan_cores(who, (first, 9999), None)
    assert entry.after == (first,)
    levers.set_cores(entry)
    assert os.sched_getaffinity(sleeper) == {first}
    assert levers.plan_cores(who, (first,), entry).before == entry.before
    levers.undo(entry)
    assert tuple(sorted(os.sched_getaffinity(sleeper))) == entry.before
    with pytest.raises(BoardError, match="none of the cores"):
        levers.plan_cores(who, (9999,), None)


def test_a_later_process_of_the_same_number_is_left_alone(sleeper: int) -> None:
    levers = Levers()
    before = os.sched_getaffinity(sleeper)
    levers.undo(Cores(Person(sleeper, 1), (levers.online()[0],), tuple(sorted(before))))
    assert os.sched_getaffinity(sleeper) == before


def test_a_power_mode_is_chosen_by_nvpmodel_and_a_refusal_is_passed_on(tmp_path: Path) -> None:
    program = tmp_path / "usr/sbin/nvpmodel"
    with pytest.raises(BoardError, match="no nvpmodel"):
        Levers(tmp_path).plan_mode(1, None)
    fill(tmp_path, {"mode": 0})
    program.parent.mkdir(parents=True)
    program.write_text(
        f'#!/bin/sh\ncd {tmp_path}\n[ "$1" = -q ] && echo "NV Power Mode: 15W" && cat mode && exit\n'
        '[ "$2" = 3 ] && echo "reboot required" >&2 && exit 1\necho "$2" > mode\n'
    )
    program.chmod(0o755)
    levers = Levers(tmp_path)
    entry = levers.plan_mode(1, None)
    assert entry == Mode(0, 1)
    levers.set_mode(1)
    assert levers.plan_mode(2, entry) == Mode(0, 2)
    with pytest.raises(BoardError, match="reboot required"):
        levers.set_mode(3)
    levers.undo(entry)
    assert (tmp_path / "mode").read_text() == "0\n"


@pytest.mark.parametrize(("text", "cores"), [("0-3\n", (0, 1, 2, 3)), ("0,2-3", (0, 2, 3)), ("", ()), ("5", (5,))])
def test_lists_of_cores(text: str, cores: tuple[int, ...]) -> None:
    assert cpu_list(text) == cores
