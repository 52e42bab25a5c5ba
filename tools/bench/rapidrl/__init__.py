"""Early-exit policies against the network without exits: `python -m tools.bench rapidrl`.

Trains what is missing with `--train`; evaluates the runs that are there, writes `rapidrl.json` and `rapidrl.svg`;
`--quick` plays the shipped bundles instead and compares with the figures that are committed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert.errors import EdgertError, UsageError
from edgert.nets import NetSpec, ops
from edgert.policy.frontier import full_ops
from tools.bench.rapidrl import plan
from tools.bench.rapidrl.plan import TASKS
from tools.train import commit, kept

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("main", "choice", "rest")


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    from tools.bench.rapidrl.evaluation import Protocol

    parser = argparse.ArgumentParser(prog="python -m tools.bench rapidrl", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, help="training seeds of each task; 3, and 10 on MinAtar, by default")
    parser.add_argument("--runs", type=Path, default=Path("runs/rapidrl"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show every training run, its command and its state")
    what.add_argument("--train", action="store_true", help="train what is missing, one run after the other")
    what.add_argument("--report", action="store_true", help="play nothing, write what is known")
    what.add_argument("--quick", action="store_true", help="play the shipped bundles and compare, in three minutes")
    parser.add_argument("--roles", nargs="+", choices=plan.ROLES, default=[], help="of --list and --train")
    parser.add_argument("--frames", type=int, help="of every training run, for a trial")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the evaluation")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--models", type=Path, default=Path(__file__).parents[3] / "models", help="folder of the shipped bundles"
    )
    defaults = Protocol()
    for name in Protocol.__struct_fields__:
        if isinstance(default := getattr(defaults, name), int):
            parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument(
        "--limits",
        type=float,
        nargs="+",
        default=defaults.limits,
        help="shares of the operations to choose a setting for",
    )
    return parser.parse_args(argv)


@contextmanager
def players(processes: int) -> Iterator[Any]:
    """What plays trials, in so many processes, and gives what came of each in their order."""
    from tools.bench.rapidrl.policies import Trial, play
    from tools.frontier import Played

    if processes == 1:
        yield partial(map, play)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))

    def run(trials: Iterable[Trial]) -> Iterator[Played]:
        return pool.map(play, trials)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)


def seeds_of(args: argparse.Namespace, task: str) -> range:
    """Of training."""
    return range(TASKS[task].seeds if args.seeds is None else args.seeds)


def specs(args: argparse.Namespace, task: str, role: str) -> list[NetSpec]:
    """What the networks of a role look like, of the seeds that have one."""
    folders = [plan.folder(args.runs, task, role, seed) for seed in seeds_of(args, task)]
    return [kept(run)[0].spec for run in folders if (run / "run.json").exists()]


def evaluate(args: argparse.Namespace) -> None:
    """Play what is not known yet: what the headline needs of all tasks and seeds first."""
    from tools.bench.rapidrl import choice
    from tools.bench.rapidrl.evaluation import Evaluation, Protocol

    play_part = {"main": Evaluation.main, "choice": choice.evaluate, "rest": Evaluation.rest}
    protocol = Protocol(**{name: getattr(args, name) for name in Protocol.__struct_fields__ if hasattr(args, name)})
    for task in args.tasks:
        if TASKS[task].max_ops_frac not in protocol.limits:
            raise UsageError(f"--limits: {task} is judged at {TASKS[task].max_ops_frac:g}, which must be among them")
    with players(args.processes) as run:
        for part in args.parts:
            for task in args.tasks:
                for seed in seeds_of(args, task):
                    if not (plan.folder(args.runs, task, "full", seed) / "run.json").exists():
                        continue
                    play_part[part](Evaluation(args.runs, task, seed, protocol, run))


def report(args: argparse.Namespace, argv: list[str]) -> None:
    """Write the result file and the plot, and print the table."""
    from tools.bench.rapidrl import draw, quick, summary
    from tools.bench.rapidrl.evaluation import book_path, read_book

    found, missing = {}, []
    rng = np.random.default_rng(0)
    for task in TASKS:  # also what was not asked for now: the result file is one
        books = {}
        for seed in seeds_of(args, task):
            if not (plan.folder(args.runs, task, "full", seed) / "run.json").exists():
                missing.append(f"{task} seed {seed}: not trained")
                continue
            books[seed] = read_book(book_path(args.runs, task, seed))
            missing += [
                f"{task} seed {seed}: {run.role} {run.state}"
                for run in plan.planned(args.runs, [task], seed + 1)
                if run.seed == seed and not run.finished
            ]
        if any({"random", "full-int8"} <= book.records.keys() for book in books.values()):
            full, exits = (specs(args, task, role) for role in ("full", "exits"))
            found[task] = summary.of_task(task, books, full_ops(full[0]), ops((exits or full)[0]), rng)
    if not found:
        raise UsageError(f"{args.runs}: nothing is trained and evaluated yet; --list shows what to run")
    document: dict[str, Any] = {
        "command": "python -m tools.bench rapidrl " + " ".join(argv),
        "commit": commit(),
        "machine": summary.machine(),
        "how": summary.HOW,
        "summary": summary.together(found),
        "tasks": {task: each.document for task, each in found.items()},
        "shipped": {name: quick.committed(*each) for name, each in quick.shipped(args.models).items()},
        "missing": missing,
    }
    document["verdict"] = summary.verdict(document["summary"])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rapidrl.json").write_text(json.dumps(msgspec.to_builtins(document, str_keys=True), indent=1) + "\n")
    draw.draw(document, args.out / "rapidrl.svg")
    print(summary.table(document))


def main(argv: list[str]) -> int:
    """List, train, evaluate or compare."""
    args = parse(argv)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"rapidrl: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Do what the command line says.

    Raises:
        UsageError: an argument makes no sense, or there is nothing to report.
    """
    if args.processes < 1:
        raise UsageError(f"--processes {args.processes}: one at least")
    if args.list or args.train:
        runs = plan.planned(args.runs, args.tasks, args.seeds, args.frames, args.roles)
        if args.list:
            plan.show(runs)
            return 0
        return 1 if plan.train(runs) else 0
    if args.quick:
        from tools.bench.rapidrl import quick

        with players(args.processes) as play:
            return quick.main(args.models, args.out, play)
    if not args.report:
        evaluate(args)
    report(args, argv)
    return 0
