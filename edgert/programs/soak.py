"""`edgert bench soak`: real processes under hurried work for a long time; does the memory of any of them grow?

A device plays, asks and trains with a broker and a teacher, as fast as its plant can be stepped, and does more often
what it does seldom: checkpoints, candidates, looks at its sensors. What it has done by the end is counted in hours of a
device at its nominal pace, deed by deed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.errors import LinkError
from edgert.ports.cluster import GAMES, Cluster, Collector

SAMPLE_S = 10.0
GROWTH_MB = 2.0
"""Between the second and the last quarter; the first one fills caches and replay."""
HURRIED = {
    "plant.lockstep_hz": 1000.0,
    "policy.deadline_s": 1.0,
    "govern.cpu_high_frac": 1.0,
    "govern.period_s": 0.1,
    "learn.min_transitions": 200,
    "learn.ring_transitions": 2000,
    "learn.checkpoint_s": 5.0,
    "learn.candidate_s": 2.0,
    "learn.train_steps_hz": 1000.0,
    "learn.steps_per_transition": 0.25,
    "teacher.max_bytes_per_s": 50_000.0,
}
"""A small ring, so that it is full before the first quarter is over."""
NOMINAL_S = {"decisions": None, "looks at the sensors": 1.0, "checkpoints": 300.0, "candidates": 30.0}
"""Deed -> seconds between two of them by default; of decisions the bundle says it."""


def own_mb(pid: int) -> float | None:
    """Megabytes that a process holds for itself, or None when it is gone.

    Not its proportional set: that grows when another process that shares a library ends.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous:")), None)


def growth_mb(samples: Sequence[float]) -> float | None:
    """How much more memory there was in the last quarter than in the second: medians; None of fewer than 8 samples.

    Args:
        samples: megabytes, at even times.
    """
    if len(samples) < 8:
        return None
    quarter = len(samples) // 4
    return statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter])


def hours(done: Mapping[str, float], rate_hz: float) -> dict[str, float]:
    """Deed -> hours in which a device at its nominal pace would have done as many.

    Args:
        done: deed -> how often.
        rate_hz: decisions a second.
    """
    return {deed: count * (NOMINAL_S[deed] or 1 / rate_hz) / 3600 for deed, count in done.items()}


def run(game: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Let a device work, and look at its memory.

    Args:
        game: key of `GAMES`.
        minutes: of wall time.
        folder: for what it writes.

    Returns:
        The document that `show` prints.

    Raises:
        LinkError: it did not come up, or ended.
    """
    cluster = Cluster(folder, game, devices=1, device_config=HURRIED)
    samples: dict[str, list[float]] = {}
    pids: dict[str, set[int]] = {}
    status: dict[str, Any] = {}
    try:
        cluster.start()
        collector = Collector(cluster.url, cluster.fleet)
        begun_s = looked_s = time.monotonic()
        while time.monotonic() - begun_s < 60 * minutes:
            cluster.poll()
            collector.poll()
            name = cluster.devices[0]
            status = collector.devices[name].status if name in collector.devices else status
            if time.monotonic() - looked_s >= SAMPLE_S:
                looked_s = time.monotonic()
                for pid, _, role in cluster.members():
                    if (found := own_mb(pid)) is not None:
                        samples.setdefault(role, []).append(round(found, 2))
                        pids.setdefault(role, set()).add(pid)
                actor = status.get("actor") or {}
                print(
                    f"{(looked_s - begun_s) / 60:5.1f} min, {actor.get('ticks', 0):>9} decisions, own MB: "
                    + ", ".join(f"{role} {each[-1]:.1f}" for role, each in samples.items()),
                    file=sys.stderr,
                    flush=True,
                )
            if not status and time.monotonic() - begun_s > 60:
                raise LinkError(f"the device did not come up: {cluster.tail(name)}")
            time.sleep(0.2)
        told = Counter(event.name for _, event in collector.events)
        collector.close()
        elapsed_s = time.monotonic() - begun_s
    finally:
        cluster.stop()
    actor, trainer, counters = (status.get(key) or {} for key in ("actor", "trainer", "counters"))
    judged = counters.get("networks-accepted", 0) + counters.get("networks-refused", 0)
    done = {
        "decisions": actor.get("ticks", 0),
        "looks at the sensors": elapsed_s / HURRIED["govern.period_s"],
        "checkpoints": elapsed_s / HURRIED["learn.checkpoint_s"],
        "candidates": judged,
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "game": game,
        "minutes": round(elapsed_s / 60, 1),
        "done": {deed: round(count) for deed, count in done.items()},
        "hours": {deed: round(value, 1) for deed, value in hours(done, cluster.nominal_hz).items()},
        "gradient_steps": trainer.get("steps", 0),
        "generation": (status.get("policy") or {}).get("generation", 0),
        "answers": counters.get("answers", 0),
        "processes": {role: len(found) for role, found in pids.items()},
        "events": dict(told.most_common()),
        "load": os.getloadavg()[0],
        "own_mb": samples,
        "growth_mb": {role: growth_mb(each) for role, each in samples.items()},
    }


def flat(document: Mapping[str, Any]) -> bool:
    """Is no process of the device larger in the end, and none of them a second one?"""
    roles = ("supervisor", "actor", "trainer")
    grown = [document["growth_mb"].get(role) for role in roles]
    once = all(document["processes"].get(role) == 1 for role in roles)
    return once and all(value is not None and value <= GROWTH_MB for value in grown)


def show(document: Mapping[str, Any]) -> None:
    """Print it."""
    print(f"{document['game']}, {document['minutes']:g} minutes; {document['machine']}")
    for deed, count in document["done"].items():
        print(f"  {deed:<22}{count:>10}, as in {document['hours'][deed]:g} h at the nominal pace")
    steps, answers, generation = (document[key] for key in ("gradient_steps", "answers", "generation"))
    print(f"  {steps} gradient steps, {answers} answers of the teacher, generation {generation}")
    print(f"{'process':<14}{'own MB: first':>14}{'last':>8}{'growth':>9}")
    for role, each in document["own_mb"].items():
        grown = document["growth_mb"][role]
        print(f"{role:<14}{each[0]:>14.1f}{each[-1]:>8.1f}{'-' if grown is None else format(grown, '+.2f'):>9}")
    again = [f"{role} {count - 1} times" for role, count in document["processes"].items() if count > 1]
    print(
        f"started again: {', '.join(again) or 'nothing'}; load of this machine at the end: {document['load']:.0f} tasks"
    )
    print("flat" if flat(document) else "NOT FLAT")


def main(argv: list[str] | None = None) -> int:
    """Soak; exit code 1 when memory grew."""
    parser = argparse.ArgumentParser(prog="edgert bench soak", description=__doc__.splitlines()[0])
    parser.add_argument("--game", choices=GAMES, default="breakout")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped on the way out
    with tempfile.TemporaryDirectory(prefix="edgert-soak-") as folder:
        document = run(args.game, args.minutes, Path(folder))
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    return 0 if flat(document) else 1
