"""What an idle device writes to its disk in a day: a real one, for some minutes, scaled.

The kernel counts what each process causes to be written to block devices (`write_bytes` of /proc/PID/io, whole pages).
The start is left out, and what comes every few hours is measured by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgert.fleet import duties, records
from edgert.ports import broker as brokers
from edgert.ports.jobs import JobStore

HOUSE = Path(__file__).parents[3]
DAY_S = 86_400.0
START_S = 75.0


def family(pid: int) -> dict[int, str]:
    """A process and those it started: pid -> what it runs."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        each = todo.pop()
        try:
            words = (Path("/proc") / str(each) / "cmdline").read_bytes().decode().split("\0")
            found[each] = next(
                (word.rpartition(".")[2] for word in words if word.startswith("edgert.programs")), "supervisor"
            )
            for task in (Path("/proc") / str(each) / "task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, ValueError):
            continue
    return found


def written(pids: dict[int, str]) -> Counter[str]:
    """Bytes to block devices so far, by program."""
    total: Counter[str] = Counter()
    for pid, name in pids.items():
        try:
            lines = (Path("/proc") / str(pid) / "io").read_text().splitlines()
        except OSError:
            continue
        total[name] += next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))
    return total


def changed(folder: Path, before: dict[str, int]) -> dict[str, int]:
    """File -> time of its last change, of those that have changed."""
    now = stamps(folder)
    return {name: stamp for name, stamp in now.items() if before.get(name) != stamp}


def stamps(folder: Path) -> dict[str, int]:
    """File -> time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def rare_bytes() -> int:
    """What is written so seldom that nobody waits for it: the time, every few hours; bytes a day."""
    times = 8
    with tempfile.TemporaryDirectory() as name, JobStore(Path(name) / "jobs.db") as store:
        store.write_fact(records.SEEN, records.time_bytes(0.0))
        before = written({os.getpid(): "self"})["self"]
        for k in range(times):
            store.write_fact(records.SEEN, records.time_bytes(float(k)))
        return round((written({os.getpid(): "self"})["self"] - before) / times * DAY_S / duties.SEEN_S)


CONFIG = """
[device]
id = "idle"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
[broker]
url = "{url}"
[policy]
bundle = "{bundle}"
[board]
kind = "fake"
scenario = "{folder}/calm.csv"
"""
CALM = "t_s,ambient_c\n0,20\n"


def run(*, seconds: float) -> dict[str, Any]:
    """Watch a device on which nothing happens: its plant is a program that does not come, its board a simulated one.

    The board is simulated since what else runs on this machine would keep the governor busy.

    Args:
        seconds: to watch.
    """
    with tempfile.TemporaryDirectory() as name, brokers.start("auto", Path(name) / "broker") as broker:
        folder = Path(name)
        config, state = folder / "edgert.toml", folder / "state"
        bundle = HOUSE / "models" / "breakout.edgert"
        config.write_text(CONFIG.format(folder=folder, url=broker.url, bundle=bundle))
        (folder / "calm.csv").write_text(CALM)
        device = subprocess.Popen(
            [sys.executable, "-m", "edgert", "run", "--config", str(config)], stderr=subprocess.DEVNULL
        )
        try:
            time.sleep(START_S)
            pids = family(device.pid)
            before, began_s, files = written(pids), time.monotonic(), stamps(state)
            time.sleep(seconds)
            lasted_s = time.monotonic() - began_s
            after = written(family(device.pid))
            touched = changed(state, files)
            status = json.loads(
                subprocess.run(
                    [sys.executable, "-m", "edgert", "status", "--json", "--config", str(config)],
                    check=True,
                    capture_output=True,
                ).stdout
            )
        finally:
            device.terminate()
            device.wait(30.0)
    rare = rare_bytes()
    by = {name: after[name] - before[name] for name in after}
    return {
        "watched_s": round(lasted_s, 1),
        "written_bytes": sum(by.values()),
        "by_process": by,
        "changed_files": sorted(touched),
        "idle_bytes_per_day": rare + round(sum(by.values()) * DAY_S / lasted_s),
        "rare_bytes_per_day": rare,
        "link_up": status["link"]["up"],
        "events_waiting": status["link"]["events_waiting"],
        "processes": sorted(pids.values()),
    }
