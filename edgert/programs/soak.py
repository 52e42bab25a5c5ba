"""`edgert bench soak`: the processes of a device under a hurried clock, days in minutes; does any of them grow?

A device plays, asks and trains with a broker and a teacher. Its clock runs so much faster that `--hours` pass in
`--minutes`, and with them all that a device does by the clock: looks at its sensors, reports, checkpoints, midnights. A
broker that is killed once an hour of that clock, and programs that ask for the status, come on top. No processor runs
faster for it: deed by deed it is counted how many hours of a device at its nominal pace have as many.
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
from edgert.ports import ipc
from edgert.ports.cluster import GAMES, Cluster, Collector
from edgert.programs import hurry
from edgert.values import StatusRequest

SAMPLE_S = 10.0
GROWTH_MB = 2.0
"""Between the second and the last quarter; the first one fills caches and replay."""
HURRIED = {
    "plant.lockstep_hz": 2.0,
    "policy.deadline_s": 60.0,
    "battery.kind": "none",
    "broker.keepalive_s": 600,
    "govern.cpu_high_frac": 1.0,
    "govern.rtt_high_s": 3600.0,
    "learn.min_transitions": 200,
    "learn.ring_transitions": 2000,
    "learn.steps_per_transition": 0.05,
    "teacher.timeout_s": 3600.0,
    "teacher.max_bytes_per_s": 500.0,
}
"""Where real time is compared with the hurried clock it is given more, since a broker and a processor do not hurry. A
small ring, so that it is full before the first quarter is over."""
CALM_S = 60.0
"""For starting, which takes real time."""
BROKER_S, STATUS_S = 3600.0, 600.0
"""Of the hurried clock, from one death of the broker, and from one program that asks for the status, to the next."""
NOMINAL_S = {
    "decisions": None,
    "looks at the sensors": 1.0,
    "checkpoints": 300.0,
    "candidates": 30.0,
    "connections to the broker": BROKER_S,
    "programs that asked": STATUS_S,
    "midnights": 86_400.0,
}
"""Deed -> seconds between two of them by default; of decisions the bundle says it."""
ENDS = ("child-exited", "child-hung", "start-failed")


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


class _Visitor:
    """A program that asks a device how it is, and leaves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.served = 0

    def ask(self) -> None:
        """Come, ask and go, whatever comes of it."""
        channel = ipc.connect(self._path)
        if channel is None:
            return
        channel.send(StatusRequest())
        if channel.wait(1.0) and channel.receive():
            self.served += 1
        channel.close()


def run(game: str, minutes: float, span_h: float, folder: Path) -> dict[str, Any]:
    """Let a device work, and look at its memory.

    Args:
        game: key of `GAMES`.
        minutes: of wall time, without `CALM_S`.
        span_h: hours that its clock is to run in that time.
        folder: for what it writes.

    Returns:
        The document that `show` prints.

    Raises:
        LinkError: it did not come up, or ended.
    """
    factor = 60 * span_h / minutes
    from_s = time.monotonic() + CALM_S
    os.environ |= hurry.environment(folder, factor, from_s, os.environ)  # before the cluster takes it over
    cluster = Cluster(folder, game, devices=1, device_config=HURRIED)
    name = cluster.devices[0]
    visitor = _Visitor(cluster.run_dir(name) / "control.sock")
    samples: dict[str, list[float]] = {}
    pids: dict[str, set[int]] = {}
    status: dict[str, Any] = {}
    ends: list[dict[str, Any]] = []
    restarts, heard = 0, 0
    try:
        cluster.start()
        collector = Collector(cluster.url, cluster.fleet)
        looked_s, killed_s, asked_s = (from_s + wait_s / factor for wait_s in (0.0, BROKER_S, STATUS_S))
        while (now_s := time.monotonic()) < from_s + 60 * minutes:
            running = {one.name: one for one in cluster.poll()}
            collector.poll()
            status = collector.devices[name].status if name in collector.devices else status
            at_min = round((now_s - from_s) / 60, 2)
            fresh = [event for _, event in collector.events[heard:]]
            heard += len(fresh)
            ends += [{"at_min": at_min, "name": each.name, **each.detail} for each in fresh if each.name in ENDS]
            if running[name].restarts > restarts:
                restarts = running[name].restarts
                why = {"role": "supervisor", "code": running[name].code, "log": cluster.tail(name)}
                ends.append({"at_min": at_min, "name": "supervisor-exited", **why})
            if now_s >= killed_s:
                killed_s += BROKER_S / factor
                cluster.kill("broker")
            if now_s >= asked_s:
                asked_s += STATUS_S / factor
                visitor.ask()
            if now_s >= looked_s:
                looked_s += SAMPLE_S
                for pid, _, role in cluster.members():
                    if (found := own_mb(pid)) is not None:
                        samples.setdefault(role, []).append(round(found, 2))
                        pids.setdefault(role, set()).add(pid)
                actor = status.get("actor") or {}
                print(
                    f"{at_min:5.1f} min, {actor.get('ticks', 0):>9} decisions, own MB: "
                    + ", ".join(f"{role} {each[-1]:.1f}" for role, each in samples.items()),
                    file=sys.stderr,
                    flush=True,
                )
            if not status and now_s > from_s:
                raise LinkError(f"the device did not come up: {cluster.tail(name)}")
            time.sleep(0.1)
        told = Counter(event.name for _, event in collector.events)
        looks = len(collector.devices[name].samples)
        collector.close()
        elapsed_s = time.monotonic() - from_s
    finally:
        cluster.stop()
    actor, trainer, counters = (status.get(key) or {} for key in ("actor", "trainer", "counters"))
    done = {
        "decisions": actor.get("ticks", 0),
        "looks at the sensors": looks,
        "checkpoints": trainer.get("checkpoint", 0),
        "candidates": counters.get("networks-accepted", 0) + counters.get("networks-refused", 0),
        "connections to the broker": (status.get("link") or {}).get("ups", 0),
        "programs that asked": visitor.served,
        "midnights": int(factor * elapsed_s / 86_400),
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "game": game,
        "minutes": round(elapsed_s / 60, 1),
        "clock_h": round(factor * elapsed_s / 3600, 1),
        "done": {deed: round(count) for deed, count in done.items()},
        "hours": {deed: round(value, 1) for deed, value in hours(done, cluster.nominal_hz).items()},
        "gradient_steps": trainer.get("steps", 0),
        "generation": (status.get("policy") or {}).get("generation", 0),
        "answers": counters.get("answers", 0),
        "processes": {role: len(found) for role, found in pids.items()},
        "ends": ends,
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
    clock = f"{document['minutes']:g} minutes, by its own clock {document['clock_h']:g} hours"
    print(f"{document['game']}, {clock}; {document['machine']}")
    for deed, count in document["done"].items():
        print(f"  {deed:<26}{count:>10}, as in {document['hours'][deed]:g} h at the nominal pace")
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
    for end in document["ends"]:
        print("  " + ", ".join(f"{key} {value}" for key, value in end.items()))
    print("flat" if flat(document) else "NOT FLAT")


def main(argv: list[str] | None = None) -> int:
    """Soak; exit code 1 when memory grew."""
    parser = argparse.ArgumentParser(prog="edgert bench soak", description=__doc__.splitlines()[0])
    parser.add_argument("--game", choices=GAMES, default="breakout")
    parser.add_argument("--minutes", type=float, default=31.0, help="of wall time, after a minute for starting (31)")
    parser.add_argument("--hours", type=float, default=48.0, help="of the device's clock in that time (48)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is stopped on the way out
    with tempfile.TemporaryDirectory(prefix="edgert-soak-") as folder:
        document = run(args.game, args.minutes, args.hours, Path(folder))
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    return 0 if flat(document) else 1
