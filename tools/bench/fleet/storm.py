"""How many devices one broker and this machine hold, what a command takes, and how a fleet comes back after kill -9.

All devices are `edgert sim fleet`'s. The storm: each device is given a job, and the broker is killed while these are on
their way; two seconds later it is there again. It is settled when every device has a session and said so, and every
job is heard to have ended. Jobs that the broker lost are said again, under the same id.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from edgert.programs import simfleet
from edgert.programs.simfleet import Fleet, Plan, started

MODEL = Path(__file__).parents[3] / "models" / "breakout.edgert"
UP_S, CALM_S, PATIENCE_S = 300.0, 20.0, 300.0
ASK_HZ = 5.0
DOWN_S = 2.0
SAY_HZ = 500.0


def percentile(values: list[float], share: float) -> float | None:
    """The smallest value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def _until(fleet: Fleet, at_s: float) -> None:
    while time.monotonic() < at_s:
        fleet.turn(min(0.05, max(0.0, at_s - time.monotonic())))


def round_trips(fleet: Fleet, count: int) -> list[float]:
    """Command to reply, s; devices in turn, so many a second."""
    names, head = fleet.names(), fleet.head
    head.rtts_s.clear()
    begun_s = time.monotonic()
    for k in range(count):
        head.ask(names[(k * 7919) % len(names)])
        _until(fleet, begun_s + (k + 1) / ASK_HZ)
    fleet.wait(lambda: len(head.rtts_s) >= count, 10.0)
    return list(head.rtts_s)


def storm(fleet: Fleet) -> dict[str, Any]:
    """Kill the broker under load, and wait until everything is as it was."""
    assert fleet.broker is not None
    head, names, count = fleet.head, fleet.names(), fleet.plan.devices
    begun_s = time.monotonic()
    for said, name in enumerate(names):
        head.order(name)
        if said == count // 2:
            fleet.turn(0.0)
            fleet.broker.kill()  # half of them are somewhere between here and there
        _until(fleet, begun_s + said / SAY_HZ)
    fleet.wait(lambda: False, DOWN_S)
    head.born.clear()
    fleet.mark()
    fleet.broker.restart()
    back_s, spent_s = time.monotonic(), _cpu_s(fleet)
    online = born = jobs = None
    curve: list[tuple[float, int, int, int]] = []
    while time.monotonic() < back_s + PATIENCE_S:
        fleet.turn(0.05)
        head.repeat()
        at_s = time.monotonic() - back_s
        up, seen = fleet.renewed(), sum(times > 0 for times in head.born.values())
        if not curve or at_s >= curve[-1][0] + 0.5:
            curve.append((round(at_s, 2), up, seen, len(head.sent)))
        online = at_s if online is None and up >= count else online
        born = at_s if born is None and seen >= count else born
        jobs = at_s if not head.sent else None
        if online is not None and born is not None and jobs is not None:
            break
    cpu_s = _cpu_s(fleet) - spent_s
    fleet.wait(lambda: not fleet.totals()["events_waiting"], 60.0)
    fleet.wait(lambda: False, 3.0)
    return {
        "sessions_s": online,
        "births_s": born,
        "jobs_s": jobs,
        "cpu_s": cpu_s,
        "storm_settled_s": None if online is None or born is None else max(online, born),
        "curve": curve,
        "totals": fleet.totals(),
    }


def run(*, devices: int, processes: int, asks: int, seed: int = 1) -> dict[str, Any]:
    """Hold a fleet, ask it, and let a storm come.

    Args:
        devices: how many.
        processes: they are spread over.
        asks: commands of which the round trip is measured.
        seed: of what is drawn.
    """
    simfleet.AGAIN_S = 30.0
    plan = Plan(devices=devices, processes=processes, seed=seed, bundle=MODEL, commands_hz=0.0)
    with tempfile.TemporaryDirectory() as name, started(plan, Path(name)) as fleet:
        begun_s = time.monotonic()
        fleet.wait(lambda: fleet.up() >= devices and len(fleet.head.born) >= devices, UP_S)
        up_s, held = time.monotonic() - begun_s, fleet.up()
        print(f"storm: {held} of {devices} devices up after {up_s:.0f} s", flush=True)
        fleet.wait(lambda: False, CALM_S)
        before = fleet.totals()
        trips = round_trips(fleet, asks)
        after = fleet.totals()
        print(f"storm: {len(trips)} round trips, median {1e3 * (percentile(trips, 0.5) or 0):.1f} ms", flush=True)
        found = storm(fleet)
        broker_bytes = _rss_bytes(fleet)
    totals = found["totals"]
    return {
        "devices": min(held, totals["up"]),
        "wanted": devices,
        "load_average": os.getloadavg()[0],
        "cores": os.cpu_count(),
        "processes": processes,
        "up_s": up_s,
        "asked": asks,
        "replied": len(trips),
        "command_rtt_p50_ms": None if not trips else 1e3 * (percentile(trips, 0.5) or 0.0),
        "command_rtt_p99_ms": None if not trips else 1e3 * (percentile(trips, 0.99) or 0.0),
        "cpu_while_asking_frac": (after["cpu_s"] - before["cpu_s"]) / max(1e-9, asks / ASK_HZ),
        "device_rss_bytes": totals["rss_bytes"],
        "broker_rss_bytes": broker_bytes,
        "duplicate_effects": totals["duplicate_effects"],
        "effects": totals["effects"],
        "commands_open": totals["commands_open"],
        "lost_events": max(0, totals["events_skipped"] - totals["events_dropped"]),
        **found,
    }


def _cpu_s(fleet: Fleet) -> float:
    """Processor time of broker, devices and head so far."""
    broker = Path("/proc") / str(fleet.broker.pid if fleet.broker else 0) / "stat"
    words = broker.read_text().rpartition(")")[2].split()
    ticks = int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK") + float(fleet.totals()["cpu_s"]) + time.process_time()


def _rss_bytes(fleet: Fleet) -> int | None:
    try:
        lines = (Path("/proc") / str(fleet.broker.pid if fleet.broker else 0) / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
