"""Where to infer and with which model, against everything comparable: `python -m tools.bench offload`.

One to five devices ask at once and may compute at home, on an edge box or in the cloud, with one of eight models. Every
way to decide learns in the same simulated worlds; all links flip in the middle of a run. An exhaustive oracle says what
could have been had. `--tune` chooses the settings of every way to decide, on worlds of their own. Finished parts are
kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from edgert.errors import EdgertError
from edgert.offload.space import Floor
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
TUNED = RESULTS / "offload-tuned.json"
SHOWN = ("fitted", 5, "B", "85", "user")
AVERAGED = ("80", "85", "89")
AVERAGED_USERS = (3, 5)
AVERAGED_ARMS = ("offload RL", "published RL", "Thompson", "structured", "drift plus penalty", "hybrid")
IDLE_USERS = (3, 5)
IDLE_ARMS = ("device", "edge", "cloud", "offload RL", "offload RL, int8 too", "hybrid")
TUNED_CASES = ((3, "A", "85"), (5, "B", "89"))


class Cell(NamedTuple):
    """One setting; see `play.Row`."""

    machine: str
    users: int
    links: str
    floor: str
    per: str


def parse(argv: list[str]) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench offload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few settings and seeds; about a minute")
    parser.add_argument("--tune", action="store_true", help="choose settings on seeds that are not reported, then stop")
    parser.add_argument(
        "--fit", action="store_true", help="fit the simulator to what `offload.real` measured, then stop"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after the part during which these have passed")
    parser.add_argument("--runs", type=Path, default=Path("runs/offload"), help="where finished parts are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def cells(machine: str, users: int, links: str, *, quick: bool) -> Iterator[Cell]:
    """All floors of one set of worlds."""
    from tools.bench.offload.world import FLOORS

    if machine == "idle":
        yield Cell(machine, users, links, "89", "user")
        yield Cell(machine, users, links, "89", "average")
        return
    for floor in ("none", "89") if quick else FLOORS:
        yield Cell(machine, users, links, floor, "user")
    if users in AVERAGED_USERS and not quick:
        for floor in AVERAGED:
            yield Cell(machine, users, links, floor, "average")


def settings() -> dict[str, int]:
    """Which of each grid was best on the seeds for tuning; the first where nobody looked."""
    return {key: int(value["index"]) for key, value in json.loads(TUNED.read_text()).items()} if TUNED.exists() else {}


def tune() -> None:
    """Try every grid, and write which setting cost least while learning and after it."""
    from tools.bench.offload.arms import ARMS, TUNING_SEEDS
    from tools.bench.offload.play import play
    from tools.bench.offload.world import FLOORS, Case, World, machine, spaces

    scores: dict[str, list[float]] = {name: [0.0] * len(arm.grid) for name, arm in ARMS.items() if len(arm.grid) > 1}
    for users, links, floor in TUNED_CASES:
        which = spaces(users)
        for seed in TUNING_SEEDS:
            worlds = [
                World(Case(users, links, flipped=turn), which["full"], seed, machine("fitted"))
                for turn in (False, True)
            ]
            for name, found in scores.items():
                arm = ARMS[name]
                for index, setting in enumerate(arm.grid):
                    names = {
                        "machine": "fitted",
                        "users": users,
                        "links": links,
                        "floor": floor,
                        "per": "user",
                        "arm": name,
                    }
                    row = play(worlds, which[arm.space], arm, setting, Floor(FLOORS[floor]), seed, names)
                    found[index] += (row.learning_s + row.steady_s) / row.oracle_s
            print(f"tuned on {users} users, links {links}, floor {floor}, seed {seed}", flush=True)
    chosen = {
        name: {
            "index": min(range(len(found)), key=found.__getitem__),
            "grid": [str(each) for each in ARMS[name].grid],
            "score": [round(each / 2 / len(TUNED_CASES) / len(TUNING_SEEDS), 4) for each in found],
        }
        for name, found in scores.items()
    }
    TUNED.write_text(json.dumps(chosen, indent=1) + "\n")


def part(on: str, users: int, links: str, seed: int, *, quick: bool) -> list[dict[str, Any]]:
    """Every way to decide at every floor, in the worlds of one seed."""
    from tools.bench.offload.arms import ARMS
    from tools.bench.offload.play import play
    from tools.bench.offload.world import FLOORS, Case, World, machine, spaces

    which, tuned = spaces(users), settings()
    worlds = [World(Case(users, links, flipped=turn), which["full"], seed, machine(on)) for turn in (False, True)]
    rows = []
    for cell in cells(on, users, links, quick=quick):
        for name, arm in ARMS.items():
            wanted = IDLE_ARMS if on == "idle" else AVERAGED_ARMS if cell.per == "average" else tuple(ARMS)
            if name not in wanted or (cell.per == "user" and arm.floor == "time"):
                continue
            floor = Floor(FLOORS[cell.floor], cell.per)  # type: ignore[arg-type]  # a word of its Literal
            setting = arm.grid[tuned.get(name, 0)]
            names = {**cell._asdict(), "arm": name}
            row = play(worlds, which[arm.space], arm, setting, floor, seed, names, curve=tuple(cell) == SHOWN)
            rows.append(row._asdict())
    return rows


def main(argv: list[str]) -> int:
    """Run what is missing, sum up, draw, write, and say how it ended."""
    args = parse(argv)
    try:
        if args.fit:
            from tools.bench.offload.fit import fit

            (RESULTS / "offload-fit.json").write_text(json.dumps(fit(), indent=1) + "\n")
            return 0
        if args.tune:
            tune()
            return 0
        return run(args, argv)
    except EdgertError as error:
        print(f"offload: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Do what the command line says."""
    from tools.bench.offload import draw, summary
    from tools.bench.offload.world import LINKS

    began_s = time.monotonic()
    users, links = ((1, 3), ("A", "D")) if args.quick else ((5, 4, 3, 2, 1), LINKS)
    kept = args.runs / ("quick" if args.quick else "full")
    kept.mkdir(parents=True, exist_ok=True)
    seeds = range(2 if args.quick else args.seeds)
    wanted = [("fitted", n, each, seed) for seed in seeds for n in users for each in links]
    wanted += [("idle", n, each, seed) for seed in seeds for n in IDLE_USERS for each in links if not args.quick]
    rows: list[dict[str, Any]] = []
    done = 0
    for on, n, each, seed in wanted:
        file = kept / f"{on}-{n}-{each}-{seed}.json"
        if not file.exists() and (time.monotonic() - began_s) / 60 < args.minutes:
            found = part(on, n, each, seed, quick=args.quick)
            file.with_suffix(".tmp").write_text(json.dumps(found))
            file.with_suffix(".tmp").replace(file)
            print(f"{time.monotonic() - began_s:6.0f} s  {on}, {n} users, links {each}, seed {seed}", flush=True)
        if file.exists():
            rows += json.loads(file.read_text())
            done += 1
    document = {
        "command": " ".join(["python -m tools.bench offload", *argv]),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one core",
        "how": " ".join(summary.HOW.split()),
        "parts": f"{done} of {len(wanted)}",
        **summary.of(rows),
        "tuned": json.loads(TUNED.read_text()) if TUNED.exists() else None,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    name = "offload-quick" if args.quick else "offload"
    (args.out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw.figure(rows, args.out / f"{name}.svg")
    print(summary.table(document))
    return 0
