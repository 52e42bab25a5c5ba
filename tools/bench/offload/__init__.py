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
FIRST_SEED = 3
"""Of those that are reported: lower ones were looked at while our learner was worked on."""
SHOWN = ("fitted", 5, "B", "89", "user")
AVERAGED_USERS = (3, 5)
AVERAGED_ARMS = ("offload RL", "published RL", "Thompson", "structured", "drift plus penalty", "hybrid")
IDLE_USERS = (3, 5)
IDLE_ARMS = ("device", "edge", "cloud", "offload RL", "offload RL, int8 too", "hybrid")
TUNED_CASES = ((1, "A", "80"), (3, "A", "85"), (5, "B", "89"))
ALWAYS = "89"
"""The published case. The other floors take turns: each is played in half of the settings of users and links."""
TURNS = (("none", "85"), ("80", "max"))
AVERAGED_TURNS = ("85", "80")


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
    """The floors of one set of worlds."""
    if machine == "idle":
        yield Cell(machine, users, links, "89", "user")
        yield Cell(machine, users, links, "89", "average")
        return
    turn = (users + ord(links)) % 2
    for floor in ("none", ALWAYS) if quick else (ALWAYS, *TURNS[turn]):
        yield Cell(machine, users, links, floor, "user")
    if users in AVERAGED_USERS and not quick:
        for floor in (ALWAYS, AVERAGED_TURNS[turn]):
            yield Cell(machine, users, links, floor, "average")


def settings() -> dict[str, int]:
    """Which of each grid was best on the seeds for tuning; the first where nobody looked."""
    return {key: int(value["index"]) for key, value in json.loads(TUNED.read_text()).items()} if TUNED.exists() else {}


def tune(kept: Path) -> None:
    """Try every grid, and write which setting cost least while learning and after it. Finished worlds are kept."""
    from tools.bench.offload.arms import ARMS, TUNING_SEEDS

    totals: dict[str, list[float]] = {name: [0.0] * len(arm.grid) for name, arm in ARMS.items() if len(arm.grid) > 1}
    for users, links, floor in TUNED_CASES:
        for seed in TUNING_SEEDS:
            file = kept / f"tune-{users}-{links}-{floor}-{seed}.json"
            if not file.exists():
                file.write_text(json.dumps(tuned_in(users, links, floor, seed)))
                print(f"tuned on {users} users, links {links}, floor {floor}, seed {seed}", flush=True)
            found = json.loads(file.read_text())
            for name, scores in totals.items():
                for index, score in enumerate(found[name]):
                    scores[index] += score / len(TUNED_CASES) / len(TUNING_SEEDS)
    chosen = {
        name: {
            "index": min(range(len(scores)), key=scores.__getitem__),
            "grid": [str(each) for each in ARMS[name].grid],
            "score": [round(each, 4) for each in scores],
        }
        for name, scores in totals.items()
    }
    TUNED.write_text(json.dumps(chosen, indent=1) + "\n")


def tuned_in(users: int, links: str, floor: str, seed: int) -> dict[str, list[float]]:
    """Of each arm and setting the response by the oracle's: mean of the whole run and of its end.

    Who does not hold the floor pays for it: the share of joint actions below it is added; where it may hold over time,
    1 is added unless it does at the end.
    """
    from tools.bench.offload.arms import ARMS
    from tools.bench.offload.play import play, steps_before
    from tools.bench.offload.world import FLOORS, TENTH, Case, World, machine, spaces

    which = spaces(users)
    worlds = [World(Case(users, links, flipped=turn), which["full"], seed, machine("fitted")) for turn in (False, True)]
    names = {**Cell("fitted", users, links, floor, "user")._asdict()}
    found: dict[str, list[float]] = {}
    for name, arm in ARMS.items():
        if len(arm.grid) < 2:
            continue
        found[name] = []
        for setting in arm.grid:
            row = play(worlds, which[arm.space], arm, setting, Floor(FLOORS[floor]), seed, {**names, "arm": name})
            missed = row.broken / steps_before(users)
            if arm.floor == "time":
                missed = float(row.accuracy_frac < FLOORS[floor] - TENTH)
            found[name].append((row.learning_s + row.steady_s) / 2 / row.oracle_s + missed)
    return found


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
            args.runs.mkdir(parents=True, exist_ok=True)
            tune(args.runs)
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
    seeds = range(FIRST_SEED, FIRST_SEED + (2 if args.quick else args.seeds))
    wanted = [
        (on, n, each, seed)
        for seed in seeds
        for on, some in (("fitted", users), ("idle", () if args.quick else IDLE_USERS))
        for n in some
        for each in links
    ]
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
