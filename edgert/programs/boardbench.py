"""`edgert bench board`: everything of this board that one would compare with another, in one file.

Identity and versions, what each exit of a network costs on each runtime, how late a sleeping process wakes up, what
heat does to a processor under full load, what a training step takes, and power where a sensor measures it. No name of
the machine or of its user is in the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert import __version__, kernels
from edgert.bundle import Cost
from edgert.errors import UsageError
from edgert.kernels import codec
from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.policy import artifact
from edgert.ports import boardfile
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.board.pi import MAILBOX
from edgert.ports.runtime.choice import candidates, key_of, versions
from edgert.ports.store import write_atomic
from edgert.programs.bench import shipped
from edgert.programs.policy_bench import expected_s, line_up, measured, race, shares
from edgert.values import Readings

FORMAT = 1
JITTER_HZ = 20.0
BATCH = 32
HOG = "while True: pass"


def identity() -> dict[str, Any]:
    """What this machine is, and what is installed; nothing that tells whose it is."""
    found = boardfile.detect()
    file, why = boardfile.load(None)
    cpuinfo = _read("/proc/cpuinfo")
    memory = re.search(r"MemTotal:\s+(\d+) kB", _read("/proc/meminfo"))
    models = [
        value for name in ("model name", "CPU part") for value in re.findall(rf"^{name}\s*: (.*)$", cpuinfo, re.M)
    ]
    return {
        "model": found.model or None,
        "compatible": list(found.compatible),
        "board_file": None if file is None else file.name,
        "board_file_why": why,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "processor": sorted(set(models)),
        "features": sorted(set((re.findall(r"^(?:Features|flags)\s*: (.*)$", cpuinfo, re.M) or [""])[0].split())),
        "memory_bytes": None if memory is None else 1024 * int(memory[1]),
        "kernel": (re.match(r"[\d.]*\d", platform.release()) or [""])[0],  # what follows may name whose it is
        "libc": " ".join(platform.libc_ver()),
        "system": _release().get("PRETTY_NAME"),
        "python": platform.python_version(),
        "edgert": __version__,
        "kernels": "C" if kernels.NATIVE and codec.NATIVE else "numpy",
        "runtimes": versions(),
        "numpy": np.__version__,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _release() -> dict[str, str]:
    return dict(re.findall(r'^(\w+)="?(.*?)"?$', _read("/etc/os-release"), re.M))


def costs(bundle: Path, seconds: float) -> dict[str, Any]:
    """What a bundle's exits cost on every runtime here, raced against each other at its control rate."""
    policy = artifact.load(bundle.read_bytes())
    runners = line_up(policy, candidates(policy))
    race(policy, runners, policy.manifest.control_rate_hz, seconds)
    key = key_of(policy)
    table: tuple[Cost, ...] = measured(runners, key, policy.manifest.control_rate_hz)
    return {
        "bundle": policy.manifest.name,
        "exits_taken": [round(share, 4) for share in shares(policy)],
        "costs": msgspec.to_builtins(table),
        "expected_s": {f"{cost.runtime} {cost.precision}": expected_s(cost.exits, shares(policy)) for cost in table},
        "refused": {runner.name: runner.why for runner in runners if runner.why},
    }


def jitter(seconds: float, hz: float = JITTER_HZ) -> dict[str, float]:
    """How late a process that sleeps until its next tick is woken up."""
    late_s, next_s = [], time.monotonic()
    for _ in range(max(1, int(seconds * hz))):
        next_s += 1 / hz
        time.sleep(max(0.0, next_s - time.monotonic()))
        late_s.append(time.monotonic() - next_s)
    p50, p99, worst = np.percentile(late_s, (50, 99, 100))
    return {"hz": hz, "p50_s": float(p50), "p99_s": float(p99), "max_s": float(worst), "ticks": len(late_s)}


def training(bundle: Path, steps: int) -> dict[str, Any]:
    """Seconds of a gradient step of the trainer, on one batch of the bundle's golden observations."""
    policy = artifact.load(bundle.read_bytes())
    rng = np.random.default_rng(1)
    picked = rng.integers(len(policy.golden_obs), size=(2, BATCH))
    n_actions = policy.spec.n_actions
    batch = Batch(
        obs=policy.golden_obs[picked[0]],
        action=rng.integers(n_actions, size=BATCH),
        reward=rng.random(BATCH, dtype=np.float32),
        next_obs=policy.golden_obs[picked[1]],
        terminated=rng.random(BATCH) < 0.05,
        teacher_q=rng.random((BATCH, n_actions), dtype=np.float32),
        taught=rng.random(BATCH) < 0.5,
    )
    learner, took_s, cpu_s = Learner(policy.params), [], []
    for i in range(steps + 2):  # the first two fill caches
        begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
        learner.step(batch, Hyper())
        if i >= 2:
            took_s.append(time.perf_counter() - begun_s)
            cpu_s.append(time.process_time() - begun_cpu_s)
    return {
        "bundle": policy.manifest.name,
        "batch": BATCH,
        "steps": steps,
        "p50_s": float(np.median(took_s)),
        "cpu_s": float(np.median(cpu_s)),
    }


def seen(readings: Readings) -> dict[str, Any]:
    """The readings of one look that say how a board bears its load; unknown ones are None."""
    throttle = readings.throttle
    return {
        "temp_c": readings.temp_c.value,
        "freq_frac": readings.freq_frac.value,
        "power_w": readings.power_w.value,
        "power_source": readings.power_w.source or None,
        "throttled": None if throttle is None else list(throttle.now),
        "load_frac": readings.load_frac.value,
    }


def heat(seconds: float, look: Callable[[], Readings], *, every_s: float = 2.0) -> dict[str, Any]:
    """Load every core fully, and see what becomes of heat, clock and speed.

    Args:
        seconds: of full load.
        look: at the board.
        every_s: between two looks.

    Returns:
        `idle`, `series`, and `speed_frac`: work a second of processor time in the last fifth, as a share of that in the
        first.
    """
    idle = seen(look())
    hogs = [subprocess.Popen([sys.executable, "-c", HOG]) for _ in range((os.cpu_count() or 2) - 1)]
    begun_s = looked_s = time.monotonic()
    series, done = [], []
    try:
        while (now_s := time.monotonic()) - begun_s < seconds:
            # By the processor's own time: what other processes take of it is no slowness of the processor.
            count, begun_cpu_s = 0, time.process_time()
            while time.process_time() - begun_cpu_s < 0.1:
                sum(range(1000))
                count += 1
            done.append(count / (time.process_time() - begun_cpu_s))
            if now_s - looked_s >= every_s:
                looked_s = now_s
                series.append({"at_s": round(now_s - begun_s, 1), **seen(look())})
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    part = max(1, len(done) // 5)
    return {"idle": idle, "series": series, "speed_frac": float(np.median(done[-part:]) / np.median(done[:part]))}


def report(bundles: list[Path], seconds: float) -> dict[str, Any]:
    """Measure it all.

    Args:
        bundles: whose networks are measured.
        seconds: of each of the long parts.

    Returns:
        The document; its keys are those of the parts.

    Raises:
        UsageError: no bundle is there.
    """
    missing = [str(path) for path in bundles if not path.exists()]
    if missing or not bundles:
        raise UsageError(f"no such bundle: {', '.join(missing) or 'none was named'}")
    board = LinuxBoard()
    board.read(time.monotonic())
    parts: dict[str, Callable[[], Any]] = {
        "identity": identity,
        "sensors": lambda: {name: value for name, value in board.facts().items() if name != "host"},
        "jitter": lambda: jitter(seconds),
        "costs": lambda: [costs(path, seconds) for path in bundles],
        "training": lambda: [training(path, 20) for path in bundles],
        "jitter_again": lambda: jitter(seconds),
        "heat": lambda: heat(seconds, lambda: board.read(time.monotonic())),
    }
    document: dict[str, Any] = {
        "format": FORMAT,
        "seconds": seconds,
        "tasks_that_ran_before": os.getloadavg()[0],  # more than a few: the figures are those of a busy machine
        "firmware_mailbox": Path(MAILBOX).exists(),
    }
    for name, measure in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        document[name] = measure()
    return document


def show(document: dict[str, Any]) -> None:
    """Print what a person would look at first."""
    who = document["identity"]
    print(f"{who['model'] or who['machine']}, {who['cores']} cores, {who['system']}, Python {who['python']}")
    print(f"jitter at {JITTER_HZ:g} Hz: " + _milliseconds(document["jitter"], ("p50_s", "p99_s", "max_s")))
    for table in document["costs"]:
        print(f"{table['bundle']}: a decision on average")
        for name, value in sorted(table["expected_s"].items(), key=lambda pair: pair[1]):
            print(f"  {name:<20}{1e6 * value:>9.0f} us")
    for table in document["training"]:
        print(f"{table['bundle']}: a training step of {table['batch']} takes {1e3 * table['p50_s']:.1f} ms")
    hot = document["heat"]
    last = hot["series"][-1] if hot["series"] else hot["idle"]
    print(f"full load: speed {100 * hot['speed_frac']:.0f} % of the beginning, ", end="")
    for name, unit in (("temp_c", "C"), ("power_w", "W")):
        print(f"{hot['idle'][name] or '-'} -> {last[name] or '-'} {unit}", end=", " if name == "temp_c" else "\n")


def _milliseconds(figures: dict[str, float], keys: tuple[str, ...]) -> str:
    return ", ".join(f"{key.removesuffix('_s')} {1e3 * figures[key]:.2f} ms" for key in keys)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the file."""
    parser = argparse.ArgumentParser(prog="edgert bench board", description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, metavar="FILE", help="write everything to this JSON file")
    parser.add_argument("--bundle", type=Path, action="append", help="may be repeated (breakout, as it is shipped)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each of the four long parts (30)")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    document = report(args.bundle or [shipped()], args.seconds)
    show(document)
    if args.report is not None:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.report, (json.dumps(document, indent=1) + "\n").encode())
        print(f"written to {args.report}")
    return 0
