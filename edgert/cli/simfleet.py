"""`edgert sim fleet`: a thousand devices on this machine, over a real broker, and what goes wrong with fleets."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgert.cli import ERROR, OK
from edgert.errors import ConfigError
from edgert.ports import screen

DESCRIPTORS = 64
"""Beside one socket a device."""
UP_S = 120.0
TOLD_S = 5
"""Between two lines in a pipe."""


def main(argv: list[str]) -> int:
    """Simulate a fleet.

    Returns:
        0 when every promise was kept, else 1.

    Raises:
        ConfigError: what is asked for makes no sense, or this process may not open so many sockets.
        LinkError: no broker can be reached or started.
        ArtifactError: the bundle is broken.
    """
    args = _parse(argv)
    # Here, because `edgert sim --help` should not wait for it.
    from edgert.programs import sim, simfleet

    chaos = tuple(each for each in args.chaos.split(",") if each)
    wrong = [each for each in chaos if each not in simfleet.CHAOS]
    if wrong:
        raise ConfigError(f"--chaos {wrong[0]}: choose of {', '.join(simfleet.CHAOS)}")
    share = -(-args.devices // args.processes)
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if share + DESCRIPTORS > allowed:
        raise ConfigError(
            f"--devices {args.devices}: a process may open {allowed} files; spread them over more with --processes"
        )
    plan = simfleet.Plan(
        devices=args.devices,
        minutes=args.minutes,
        processes=args.processes,
        chaos=chaos,
        seed=args.seed,
        url=args.broker,
        commands_hz=args.commands,
        bundle=args.bundle or sim.BUNDLE,
    )
    sim.manifest(plan.bundle)  # so that a broken one is told before anything starts
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgert-sim-")))
        fleet = stack.enter_context(simfleet.started(plan, folder))
        display = None if args.json or not screen.can_live() else stack.enter_context(screen.live())

        def told(at_s: float, totals: Mapping[str, Any], happened: list[str]) -> None:
            if args.json or not totals.get("devices"):
                return
            if display is None and round(at_s) % TOLD_S == 0:
                print(f"{at_s:6.0f} s  {line(totals)}", flush=True)
            elif display is not None:
                title = f"edgert sim fleet: {args.devices} devices, {at_s:.0f} s of {60 * args.minutes:.0f}"
                display.show(title, {}, facts(totals), happened)

        fleet.wait(lambda: fleet.up() >= args.devices, UP_S)
        found = simfleet.live(fleet, told)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in facts(found):
            print(f"  {name:<10} {value}")
        for why in found["broken"]:
            print(screen.paint(f"BROKEN: {why}", "red"))
        print(screen.paint("every promise was kept", "green") if not found["broken"] else "see above")
    return ERROR if found["broken"] else OK


def line(totals: Mapping[str, Any]) -> str:
    """One line about a fleet, for a pipe."""
    return ", ".join(f"{name} {value}" for name, value in facts(totals))


def facts(totals: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is shown of a fleet: (what, figures)."""
    faults = ", ".join(f"{name} {count}" for name, count in totals["faults"].items()) or "none"
    clones = f"{totals['clones']} now, {totals['clones_named']} noticed, {totals['clones_unnamed']} not"
    events = f"{totals['events_recorded']} written, {totals['events_delivered']} delivered"
    return [
        ("devices", f"{totals['up']} of {totals['devices']} up, {totals['away']} away"),
        ("commands", f"{totals['commands']}, {totals['commands_open']} open, {totals['duplicate_effects']} done twice"),
        ("events", f"{events}, {totals['events_waiting']} wait, {totals['events_dropped']} gave way"),
        ("clones", clones),
        ("links", faults),
        ("cost", f"{totals['cpu_s']:.1f} s of CPU, {totals['rss_bytes'] / 2**20:.0f} MiB"),
    ]


def parser() -> argparse.ArgumentParser:
    """What it understands."""
    made = argparse.ArgumentParser(
        prog="edgert sim fleet",
        description="A fleet over a real broker: real sessions and decisions, simulated boards, disks and time.",
    )
    made.add_argument("--devices", type=int, default=1000, metavar="N", help="(1000)")
    made.add_argument("--minutes", type=float, default=2.0, metavar="M", help="things happen for so long (2)")
    made.add_argument(
        "--chaos",
        default="",
        metavar="WHAT,...",
        help="kick, partition, clone, slow, power, restart (nothing happens)",
    )
    made.add_argument("--broker", metavar="URL", help="mqtt://host[:port] (one of its own)")
    made.add_argument("--seed", type=int, default=0, help="of what happens (0)")
    made.add_argument("--commands", type=float, default=10.0, metavar="HZ", help="jobs a second for the fleet (10)")
    made.add_argument(
        "--processes", type=int, default=max(1, (os.cpu_count() or 2) // 2), metavar="N", help="(half the cores)"
    )
    made.add_argument("--bundle", type=Path, metavar="FILE", help="what the devices run (the shipped breakout)")
    made.add_argument("--json", action="store_true", help="print one JSON document at the end")
    return made


def _parse(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    if not 1 <= args.devices <= 99_999 or not 1 <= args.processes <= args.devices:
        raise ConfigError("--devices must be 1 to 99999, --processes 1 to as many")
    if not 0 <= args.minutes <= 24 * 60 or not 0 <= args.commands <= 10_000:
        raise ConfigError("--minutes must be at most a day, --commands at most 10000")
    return args
