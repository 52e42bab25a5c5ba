"""The real thing on this machine: supervisor, actor, trainer and a plant, under a CPU quota and beside a hog.

The quota is a control group's (v1, root only) with a period of 10 ms: a slower processor, not one that stands still.
It is set once the device acts. Hog and device are in the same group and compete for it, both at nice 0; only the
trainer is nicer. The hog comes and goes. Misses are the actor's own count of ticks that were answered after their
deadline or not at all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edgert.cli.watch import Asker
from edgert.config import commented_default
from edgert.errors import UsageError
from edgert.ports.board import open_board
from edgert.ports.process import Layout, load_config
from edgert.programs.sim import BUNDLE, config

PERIOD_US, SHARES = 10_000, 16_384
HOGS, HOG_ON_S, HOG_OFF_S = 2, 10.0, 5.0
HOG = "while True: pass"
WARM_S = 12.0
"""Until the actor acts and the trainer trains."""
SETTLE_S = 2.0
READY_S = 40.0
ARMS: dict[str, dict[str, object]] = {
    "ours": {"goals.miss_frac": 0.001},
    "full depth": {"policy.thresholds": [1.0, 1.0], "govern.cpu_high_frac": 1.0, "govern.cpu_low_frac": 0.99},
    "first exit": {"policy.thresholds": [0.0, 0.0], "govern.cpu_high_frac": 1.0, "govern.cpu_low_frac": 0.99},
}
CGROUP = Path("/sys/fs/cgroup/cpu")


@contextlib.contextmanager
def quota() -> Iterator[Path | None]:
    """A control group, without its quota yet; None where we may not make one."""
    group = CGROUP / f"edgert-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        # Whatever else runs on this machine is no part of the measurement.
        (group / "cpu.shares").write_text(str(SHARES))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def limit(group: Path | None, quota_us: int) -> None:
    """Set the CPU time of a period; -1 is no limit."""
    if group is not None:
        (group / "cpu.cfs_quota_us").write_text(str(quota_us))


def _start(argv: Sequence[str], group: Path | None, log: Path) -> subprocess.Popen[bytes]:
    # The shell puts itself into the group before it becomes the program, so that no child is ever outside.
    enter = f"echo $$ > {group}/tasks && " if group is not None else ""
    with log.open("ab") as out:
        return subprocess.Popen(
            ["/bin/sh", "-c", f'{enter}exec "$@"', "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(how)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(arm: str, seconds: float, folder: Path, group: Path | None, cores: float) -> dict[str, Any]:
    """Run one arm.

    Args:
        arm: a key of `ARMS`.
        seconds: that count, after the warm-up.
        folder: for its files.
        group: the control group, or None.
        cores: its quota.

    Raises:
        UsageError: the device does not begin to act.
    """
    folder.mkdir(parents=True)
    path = folder / "edgert.toml"
    settings: dict[str, object] = {
        "device.id": "bench",
        "device.state_dir": str(folder / "state"),
        "device.run_dir": str(folder / "run"),
        "broker.url": "mqtt://127.0.0.1:1",  # nobody is there: the link is not what is measured
        "policy.bundle": str(BUNDLE),
        "plant.kind": "simulated",
        "plant.env": "MinAtar/Breakout-v1",
        "learn.min_transitions": 100,
        "teacher.enabled": False,
        **ARMS[arm],
    }
    path.write_text(commented_default(settings))
    device = _start([sys.executable, "-m", "edgert", "run", "--config", str(path)], group, folder / "log")
    hogs: list[subprocess.Popen[bytes]] = []
    asker = Asker(Layout(load_config(path)).control)
    samples: list[tuple[float, int, int]] = []
    try:
        limit(group, -1)  # to start is another matter
        _acting(asker, device, folder)
        limit(group, round(cores * PERIOD_US))
        time.sleep(SETTLE_S)
        began_s = time.monotonic()
        first: dict[str, Any] = {}
        last: dict[str, Any] = {}
        while (elapsed_s := time.monotonic() - began_s) < seconds:
            wanted = HOGS if elapsed_s % (HOG_ON_S + HOG_OFF_S) < HOG_ON_S else 0
            while len(hogs) > wanted:
                _end(hogs.pop(), signal.SIGKILL)
            while len(hogs) < wanted:
                hogs.append(_start([sys.executable, "-c", HOG], group, folder / "hog"))
            status = asker.ask()
            if status is not None and status.get("actor"):
                last = status
                first = first or status
                samples.append((elapsed_s, status["actor"]["ticks"], status["actor"]["missed"]))
            time.sleep(1.0)
    finally:
        asker.close()
        for hog in hogs:
            _end(hog, signal.SIGKILL)
        limit(group, -1)
        _end(device)
    return _told(arm, first, last, samples)


def _acting(asker: Asker, device: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until the warm-up is over."""
    deadline_s = time.monotonic() + READY_S
    while time.monotonic() < deadline_s and device.poll() is None:
        status = asker.ask()
        if status is not None and (status.get("actor") or {}).get("acting"):
            time.sleep(WARM_S)
            return
        time.sleep(0.5)
    tail = (folder / "log").read_text(errors="replace")[-2000:]
    raise UsageError(f"the device did not begin to act:\n{tail}")


def _told(
    arm: str, first: dict[str, Any], last: dict[str, Any], samples: list[tuple[float, int, int]]
) -> dict[str, Any]:
    rows = np.array([(b[1] - a[1], b[2] - a[2]) for a, b in pairwise(samples)], float)
    actor, trainer = last.get("actor") or {}, last.get("trainer") or {}
    before, trained = first.get("actor") or {}, first.get("trainer") or {}
    exits = [b - a for a, b in zip(before.get("exits", []), actor.get("exits", []), strict=False)]
    return {
        "arm": arm,
        "seconds": samples[-1][0] - samples[0][0] if samples else 0.0,
        "windows": rows.tolist(),
        "ticks": float(rows[:, 0].sum()) if len(rows) else 0.0,
        "missed": float(rows[:, 1].sum()) if len(rows) else 0.0,
        "exits": exits,
        "actor_cpu_s": actor.get("cpu_s", 0.0) - before.get("cpu_s", 0.0),
        "trainer_cpu_s": trainer.get("cpu_s", 0.0) - trained.get("cpu_s", 0.0),
        "steps": trainer.get("steps", 0) - trained.get("steps", 0),
        "why": (last.get("budget") or {}).get("why"),
    }


def arms(seconds: float, rounds: int, names: Sequence[str], cores: float = 0.6) -> dict[str, Any]:
    """Every arm in turns.

    Args:
        seconds: of each.
        rounds: how often.
        names: of `ARMS`.
        cores: quota of device and hogs together.
    """
    runs = []
    with tempfile.TemporaryDirectory(prefix="edgert-") as folder, quota() as group:
        for turn in range(rounds):
            for name in names:
                runs.append(measure(name, seconds, Path(folder) / f"{turn}-{name.replace(' ', '-')}", group, cores))
        limited = group is not None
    found = {}
    for name in names:
        mine = [run for run in runs if run["arm"] == name]
        windows = np.array([window for run in mine for window in run["windows"]], float)
        found[name] = {
            **miss_rate(windows),
            "ticks": int(windows[:, 0].sum()),
            "missed": int(windows[:, 1].sum()),
            "exits": [sum(each) for each in zip(*(run["exits"] for run in mine), strict=False)],
            **{key: round(sum(run[key] for run in mine), 3) for key in ("actor_cpu_s", "trainer_cpu_s", "steps")},
            "why": mine[-1]["why"],
        }
    return {
        "quota": f"{cores:g} of a core, in periods of {PERIOD_US / 1000:g} ms" if limited else "none: it needs root",
        "hog": f"{HOGS} processes, {HOG_ON_S:g} s on and {HOG_OFF_S:g} s off, nice 0, under the same quota",
        "bundle": BUNDLE.name,
        "arms": found,
    }


def miss_rate(windows: np.ndarray[Any, Any], draws: int = 2000) -> dict[str, float]:
    """Share of late ticks, with a 95 % bootstrap interval over windows of a second.

    Args:
        windows: (n, 2) ticks and missed ones.
        draws: resamples.
    """
    if not len(windows) or not windows[:, 0].sum():
        raise UsageError("no tick was counted")
    drawn = windows[np.random.default_rng(0).integers(0, len(windows), (draws, len(windows)))].sum(1)
    low, high = np.percentile(drawn[:, 1] / np.maximum(1, drawn[:, 0]), (2.5, 97.5))
    return {
        "value": float(windows[:, 1].sum() / windows[:, 0].sum()),
        "low": float(low),
        "high": float(high),
    }


def probe(seconds: float) -> dict[str, Any]:
    """What looking at this machine's sensors costs, as the supervisor does it: its share of one core.

    Args:
        seconds: to look for, once a second.
    """
    board = open_board(config(None))
    board.read(time.monotonic())
    shares = []
    began_s, looked_s = time.monotonic(), time.monotonic()
    while time.monotonic() - began_s < seconds:
        spent_s = time.thread_time()
        board.read(time.monotonic())
        spent_s = time.thread_time() - spent_s
        time.sleep(max(0.0, looked_s + 1.0 - time.monotonic()))
        now_s = time.monotonic()
        shares.append(spent_s / (now_s - looked_s))
        looked_s = now_s
    drawn = np.array(shares)[np.random.default_rng(0).integers(0, len(shares), (2000, len(shares)))].mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {
        "value": float(np.mean(shares)),
        "low": float(low),
        "high": float(high),
        "sensors": "this machine's; it has neither thermal zones nor batteries nor rails",
    }
