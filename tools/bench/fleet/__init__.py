"""What a fleet does to its devices, and what it costs: `python -m tools.bench fleet`.

Every part leaves a file under `runs/fleet`; one that is there is not measured again, so a run that was stopped goes on
where it was. `--fresh` begins anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from edgert.errors import EdgertError
from edgert.ports.store import write_atomic
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
HOW = {
    "storm": "simulated devices (real brain, guard and session; simulated board, actor, disk) against one mosquitto; "
    "round trips are of goal commands while all devices are up; for the storm each device is given a job, the broker "
    "is killed with SIGKILL half way and is there again 2 s later; settled is when every device has a session and its "
    "birth was heard",
    "outage": "one device with its real spool file; the broker is away for an hour by the device's clock, which runs "
    "faster meanwhile; the device is killed with SIGKILL in the middle; once with room for all events, once without",
    "cuts": "the real stores under strace; what they wrote is replayed up to a random call, of what was not synced any "
    "part is kept in any order, torn between sectors; each store must be as it was after the last call that returned, "
    "or after the one under way",
    "updates": "one signed bundle to simulated devices; a fifth of its chunks is lost, and power goes at random",
    "fuzz": "valid messages of every schema, bent, cut, spliced and filled with other types, at the device's guard and "
    "at the decoders; growth is of resident memory after the first 30 %",
    "idle": "write_bytes of /proc/PID/io of all processes of a real device on which nothing happens, after its start, "
    "scaled to a day, and what is written every few hours, measured by itself",
}


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much of everything."""

    devices: int = 5000
    processes: int = 1
    asks: int = 400
    hours: float = 1.0
    speed: float = 240.0
    cuts: int = 10_000
    lives: int = 20
    ops: int = 150
    updated: int = 200
    fuzz: int = 1_000_000
    idle_s: float = 600.0


QUICK = Sizes(devices=300, asks=50, hours=0.2, cuts=300, lives=2, ops=80, updated=20, fuzz=20_000, idle_s=60.0)


def parts(sizes: Sizes, notes: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> what measures it."""

    def storm() -> dict[str, Any]:
        from tools.bench.fleet import storm as part

        return part.run(devices=sizes.devices, processes=sizes.processes, asks=sizes.asks)

    def outage() -> dict[str, Any]:
        from tools.bench.fleet import outage as part

        return {
            name: part.run(max_bytes=max_bytes, speed=sizes.speed, hours=sizes.hours)
            for name, max_bytes in (("roomy", 4 << 20), ("tight", 65_536))
        }

    def cuts() -> dict[str, Any]:
        from tools.bench.fleet import cuts as part

        return part.run(cuts=sizes.cuts, lives=sizes.lives, ops=sizes.ops, notes=notes)

    def updates() -> dict[str, Any]:
        from tools.bench.fleet import updates as part

        return part.run(devices=sizes.updated, loss=0.2, kill=0.01, seed=1)

    def fuzz() -> dict[str, Any]:
        from tools.bench.fleet import fuzz as part

        return part.run(messages=sizes.fuzz)

    def idle() -> dict[str, Any]:
        from tools.bench.fleet import idle as part

        return part.run(seconds=sizes.idle_s)

    return {"storm": storm, "outage": outage, "cuts": cuts, "updates": updates, "fuzz": fuzz, "idle": idle}


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is to be compared with what was asked for."""
    storm, outage, cuts, updates = found["storm"], found["outage"], found["cuts"], found["updates"]
    lost = sum(each["lost"] for each in outage.values()) + len(cuts["lost"]) + storm["lost_events"]
    return {
        "devices": storm["devices"],
        "storm_settled_s": storm["storm_settled_s"],
        "duplicate_effects": storm["duplicate_effects"] + updates["duplicate_effects"],
        "lost_acknowledged": lost,
        "power_cuts": cuts["power_cuts"],
        "update_bytes_ratio": updates["bytes_ratio_max"],
        "fuzz_messages": found["fuzz"]["fuzz_messages"],
        "fuzz_crashes": found["fuzz"]["fuzz_crashes"],
        "idle_bytes_per_day": found["idle"]["idle_bytes_per_day"],
        "command_rtt_p99_ms": storm["command_rtt_p99_ms"],
        "command_rtt_p50_ms": storm["command_rtt_p50_ms"],
    }


def rounded(value: Any) -> Any:
    """Four digits are enough."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def parse(argv: list[str]) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer of everything; under four minutes")
    parser.add_argument("--parts", nargs="+", choices=list(HOW), metavar="PART", help=f"only these: {', '.join(HOW)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--devices", type=int, help="of the storm (5000)")
    parser.add_argument("--processes", type=int, help="that they are spread over (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="for what was measured so far (runs)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Measure, write, print."""
    args = parse(argv)
    sizes = QUICK if args.quick else Sizes()
    named = {"devices": args.devices, "processes": args.processes}
    sizes = msgspec.structs.replace(sizes, **{name: value for name, value in named.items() if value is not None})
    folder = args.runs / ("fleet-quick" if args.quick else "fleet")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return run(args, argv, sizes, folder)
    except (EdgertError, FileNotFoundError, AssertionError) as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str], sizes: Sizes, folder: Path) -> int:
    """Do what the command line says.

    Raises:
        EdgertError: something that is measured does not start.
        FileNotFoundError: a program is not installed.
    """
    wanted = parts(sizes, folder)

    def measure(name: str) -> None:
        path, began_s = folder / f"{name}.json", time.monotonic()
        if args.fresh or not path.exists():
            for note in folder.glob(f"{name}-*.note") if args.fresh else ():
                note.unlink()  # of a part that was stopped, of other code perhaps
            found = wanted[name]()
            told = {"commit": commit(), "sizes": msgspec.to_builtins(sizes), "took_s": time.monotonic() - began_s}
            write_atomic(path, json.dumps({**told, "found": found}).encode(), mode=0o644)
        print(f"{name}: measured, in {time.monotonic() - began_s:.0f} s", flush=True)

    chosen = [name for name in wanted if args.parts is None or name in args.parts]
    if "storm" in chosen:
        measure("storm")  # alone: it is about time
    with ThreadPoolExecutor(1) as beside:
        # It waits all the time, and counts bytes.
        waiting = beside.submit(measure, "idle") if "idle" in chosen else None
        for name in chosen:
            if name not in ("storm", "idle"):
                measure(name)
        if waiting is not None:
            waiting.result()
    files = {name: folder / f"{name}.json" for name in wanted}
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        print(f"not measured yet: {', '.join(missing)}")
        return 0
    read = {name: json.loads(path.read_bytes()) for name, path in files.items()}
    found = {name: each["found"] for name, each in read.items()}
    document = {
        "command": " ".join(["python -m tools.bench fleet", *argv]),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "how": HOW,
        "summary": rounded(summary(found)),
        "parts": {name: rounded(each) for name, each in read.items()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "fleet.json").write_text(json.dumps(document, indent=1) + "\n")
    from tools.bench.fleet import draw

    draw.storm(found["storm"], args.out)
    for name, value in document["summary"].items():
        print(f"{name:<22} {value}")
    return 0
