"""Learning from a remote teacher over a bad link, against everything comparable: `python -m tools.bench rlink`.

Makes the bundles that are missing, lives what has not been lived yet over the real path, judges it with the link off,
and writes `rlink.json` and `rlink-*.svg`. It may be stopped at any time: what is finished is kept.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import json
import platform
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert.errors import EdgertError, LinkError, UsageError
from edgert.ports.models import teacher_name
from tools.bench.rlink import plan
from tools.bench.rlink.plan import ARMS, PARTS, TASKS, Planned
from tools.train import commit

RESULTS = Path(__file__).parents[1] / "results"
_APART: set[subprocess.Popen[str]] = set()
"""Not to be left behind when this process ends; each stops its own cluster at SIGTERM."""
QUICK_STEPS = 2500
QUICK_ARMS = ("alone", "ours", "sync")


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench rlink", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[])
    parser.add_argument("--seeds", type=int, help="of each arm; 10, and 3 on Atari, by default")
    parser.add_argument("--steps", type=int, help="of every run, for a trial that counts for nothing else")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; one takes about two cores")
    parser.add_argument("--minutes", type=float, help="begin no run after so long")
    parser.add_argument("--runs", type=Path, default=Path("runs/rlink"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="show what is missing, its commands and what it would take")
    what.add_argument("--make", action="store_true", help="make the bundles only")
    what.add_argument("--tune", action="store_true", help="live the grids of the arms, on seeds of their own")
    what.add_argument("--report", action="store_true", help="live nothing, write what is known")
    what.add_argument("--one", help=argparse.SUPPRESS)  # a `Planned` in JSON: what `_live_apart` starts
    what.add_argument("--quick", action="store_true", help="one cheap task, some minutes: does it all run?")
    return parser.parse_args(argv)


def folder(runs: Path, run: Planned) -> Path:
    """Where a run lies."""
    return runs / "runs" / run.key


def make(runs: Path, wanted: Sequence[Planned]) -> None:
    """Make every bundle that these runs need and that is not there.

    Raises:
        UsageError: a command failed.
    """
    for made in plan.bundles(runs, wanted):
        if made.there:
            continue
        made.path.parent.mkdir(parents=True, exist_ok=True)
        for command in made.commands:
            out = Path(command[command.index("--out") + 1])
            if (out / "run.json").exists():
                continue
            print(f"# {' '.join(command[1:])}", flush=True)
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
                raise UsageError(f"failed: {' '.join(command)}")
        if not made.there:
            raise UsageError(f"{made.path} is missing, and nothing says how to make it")


def live(runs: Path, run: Planned) -> None:
    """Live one run and judge it; only what is whole is kept.

    Raises:
        EdgertError: it did not come to its end.
    """
    from tools.bench.rlink import baselines, judge
    from tools.bench.rlink.live import live as over_the_path

    task, out = TASKS[run.task], folder(runs, run)
    student = plan.made(runs, run.task, "student", run.seed).path
    teacher = plan.made(runs, run.task, run.teacher).path
    told: dict[str, Any] = {"student": student, "teacher": teacher, "steps": run.steps, "seed": run.seed, "out": out}
    told |= {"shape": plan.LINKS[run.link], "faults": run.faults, "settings": run.settings}
    if run.arm in plan.IN_PROCESS:
        lived = baselines.run(task.game, task.env, **told)
    else:
        told["settings"] = {key: value for key, value in run.settings.items() if not key.startswith("bench.")}
        if run.settings.get("bench.vouched"):
            # By the owner, who knows the teacher that was installed; a bad one that took its place is a stranger.
            told["settings"]["teacher.vouched"] = [teacher_name(plan.made(runs, run.task, "good").path.read_bytes())]
        lived = over_the_path(task.game, **told)
    judged = judge.judge(lived, task)
    (out / "plan.json").write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1))
    judge.keep(judged, out / "judged.json")
    for copy in lived.copies[:-1]:
        Path(copy.path).unlink(missing_ok=True)


def live_all(args: argparse.Namespace, wanted: Sequence[Planned]) -> int:
    """Live what is missing; a run that fails is told and left for the next time.

    Returns:
        How many failed.

    Raises:
        UsageError: a bundle cannot be made.
    """
    began_s, failed, n = time.monotonic(), 0, 0
    todo = [run for run in wanted if not (folder(args.runs, run) / "judged.json").exists()]
    waiting, living = list(todo), set[threading.Thread]()
    came: queue.SimpleQueue[tuple[Planned, float, Exception | None]] = queue.SimpleQueue()

    def one(run: Planned) -> None:
        started_s, why = time.monotonic(), None
        try:
            # A process of its own: its judging would otherwise hold up the watching of the others.
            _live_apart(args.runs, run)
        except Exception as error:  # broad: whatever ends one run, the others go on and this one is told
            why = error
        came.put((run, time.monotonic() - started_s, why))

    while waiting or living:
        if args.minutes is not None and time.monotonic() - began_s > args.minutes * 60 and waiting:
            print(f"time is up; {len(waiting)} runs are left", flush=True)
            waiting.clear()
        while waiting and len(living) < args.jobs:
            run = waiting.pop(0)
            make(args.runs, [run])
            thread = threading.Thread(target=one, args=(run,), name=run.key, daemon=True)
            thread.start()
            living.add(thread)
        if not living:
            break
        run, took_s, why = came.get()
        living = {thread for thread in living if thread.name != run.key}
        n, failed = n + 1, failed + (why is not None)
        print(f"{n}/{len(todo)} {run.key}: {took_s:.0f} s" + (f": {why}" if why else ""), flush=True)
    return failed


def _live_apart(runs: Path, run: Planned) -> None:
    """`live` in another process, which is ended with this one.

    Raises:
        LinkError: it failed, with the last thing it said.
    """
    out = folder(runs, run)
    out.mkdir(parents=True, exist_ok=True)
    asked = msgspec.json.encode(run).decode()
    command = [sys.executable, "-m", "tools.bench", "rlink", "--one", asked, "--runs", str(runs)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _APART.add(process)
    said = process.communicate()[1].strip()
    _APART.discard(process)
    if process.returncode:
        raise LinkError(said.splitlines()[-1] if said else f"it ended with {process.returncode}")


def grids(tasks: Sequence[str], arms: Sequence[str]) -> list[Planned]:
    """Every point of every arm's grid, one setting moved at a time."""
    found = []
    for name in tasks:
        for arm, grid in plan.GRIDS.items():
            for key, values in grid.items() if not arms or arm in arms else ():
                for value in values:
                    steps = TASKS[name].steps
                    exact = max(1, round(value * steps)) if key == "learn.distill_transitions" else value
                    settings = {**plan.settings_of(TASKS[name], arm, steps), key: exact}
                    found += [
                        Planned(
                            part="tuning",
                            task=name,
                            arm=arm,
                            link=plan.USUAL,
                            teacher="good",
                            seed=seed,
                            steps=steps,
                            settings=settings,
                        )
                        for seed in plan.TUNING_SEEDS
                    ]
    return list({run.key: run for run in found}.values())


def tuned(args: argparse.Namespace, wanted: Sequence[Planned]) -> str:
    """What each point of a grid came to: return over the run, mean over the tuning seeds, best first."""
    from tools.bench.rlink import judge, summary

    values: dict[tuple[str, str, str], list[float]] = {}
    for run in wanted:
        judged = judge.kept(folder(args.runs, run) / "judged.json")
        usual = plan.settings_of(TASKS[run.task], run.arm, run.steps)
        moved = {key: value for key, value in run.settings.items() if usual.get(key) != value}
        if judged is not None:
            values.setdefault((run.task, run.arm, json.dumps(moved)), []).append(summary.life(judged))
    rows = sorted(values.items(), key=lambda row: (row[0][:2], -float(np.mean(row[1]))))
    return "\n".join(f"{task:<12} {arm:<13} {np.mean(v):10.3f} of {len(v)}  {moved}" for (task, arm, moved), v in rows)


def report(args: argparse.Namespace, argv: list[str], wanted: Sequence[Planned]) -> None:
    """Write the result file and the plots, and print the table.

    Raises:
        UsageError: nothing is known yet.
    """
    from tools.bench.rlink import draw, judge, summary

    known = []
    for run in wanted:
        judged = judge.kept(folder(args.runs, run) / "judged.json")
        if judged is not None:
            known.append(summary.Known(run, judged))
    if not known:
        raise UsageError(f"{args.runs}: nothing is lived and judged yet; --list shows what there is to do")
    rng, tasks = np.random.default_rng(0), {}
    for name in summary.tasks_of(known):
        paths = {role: plan.made(args.runs, name, role).path for role in plan.TEACHERS}
        levels = {role: judge.level(path, name, args.runs) for role, path in paths.items() if path.exists()}
        mine = [each for each in known if each.plan.task == name and each.plan.part in ("convergence", "harm")]
        figures = summary.of_task(name, mine, levels, rng)
        if figures is not None:
            tasks[name] = figures
    links = summary.of_links(known, {name: task.document["threshold"] for name, task in tasks.items()}, rng)
    document: dict[str, Any] = {
        "command": "python -m tools.bench rlink " + " ".join(argv),
        "commit": commit(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}; no board; link emulated by a TCP proxy",
        "how": f"{plan.__doc__}\n{summary.__doc__}\n{importlib.import_module('edgert.ports.relay').__doc__}",
        "summary": summary.summary(tasks, links),
        "tasks": {name: task.document for name, task in tasks.items()},
        "link": links["tasks"],
        "outages": summary.of_outages(known),
        "plan": {name: task for name, task in TASKS.items() if name in tasks},
        "arms": ARMS,
        "grids": plan.GRIDS,
        "links": plan.LINKS,
        "teachers_cost": {name: _cost(args.runs, name) for name in tasks},
        "missing": summary.missing(wanted, known),
    }
    document = json.loads(msgspec.json.encode(document))
    document["summary"] |= elsewhere(RESULTS)
    document["foreign"] = foreign(RESULTS)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rlink.json").write_text(json.dumps(document, indent=1) + "\n")
    draw.draw(known, document, args.out)
    print(summary.table(document))


def elsewhere(results: Path) -> dict[str, Any]:
    """The figures of this benchmark that other commands measure, from where those have written them."""
    known: dict[str, Any] = {}
    for name in ("rlink-codec.json", "train.json"):
        if (results / name).exists():
            known |= json.loads((results / name).read_text())["summary"]
    found: dict[str, Any] = {}
    for key in plan.ELSEWHERE:
        told = known.get(key)
        if told is None:
            found |= {key: None, f"{key}_why": "that part has not been run"}
        elif isinstance(told, list):
            found |= {key: told[0], f"{key}_ci": told[1:]}
        else:
            found[key] = told
    return found


def foreign(results: Path) -> dict[str, Any]:
    """What `python -m tools.bench rlink foreign` has written: (game, student) -> arm -> figures."""
    path = results / "rlink-foreign.json"
    return {name: told["arms"] for name, told in json.loads(path.read_text()).items()} if path.exists() else {}


def _cost(runs: Path, name: str) -> dict[str, Any] | None:
    """What training the teacher took, which no ratio contains."""
    try:
        told = json.loads((runs / "models" / f"{name}-teacher" / "run.json").read_bytes())
        return {key: told[key] for key in ("command", "frames", "gradient_steps", "cpu_s")}
    except (OSError, ValueError, KeyError):
        return None


def show(args: argparse.Namespace, wanted: Sequence[Planned]) -> None:
    """What is missing, and what it would take."""
    left_s: dict[tuple[str, str], list[float]] = {}
    for made in plan.bundles(args.runs, wanted):
        if not made.there:
            for command in made.commands or (("nothing says how to make", str(made.path)),):
                print(" ".join(("python", *command[1:])))
    for run in wanted:
        if not (folder(args.runs, run) / "judged.json").exists():
            left_s.setdefault((run.task, run.part), []).append(run.estimate_s)
    for (task, part), each in left_s.items():
        print(f"{task:<15} {part:<12} {len(each):>4} runs to come, about {sum(each) / 3600:6.1f} h")
    print(
        f"{sum(map(len, left_s.values()))} of {len(wanted)} runs, about {sum(map(sum, left_s.values())) / 3600:.1f} h"
    )


def quick(args: argparse.Namespace, argv: list[str]) -> int:
    """One seed of three arms on the cheapest task, and a blackhole on the way of ours; nothing is claimed by it."""
    from tools.bench.rlink.live import Fault

    args.out = args.runs / "quick"
    args.steps = args.steps or QUICK_STEPS
    wanted = shortened(plan.planned(["convergence"], ["cartpole"], QUICK_ARMS, 1), args.steps)
    gone = Fault(args.steps // 2, "outage", 3.0)
    ours = next(run for run in wanted if run.arm == "ours")
    wanted.append(msgspec.structs.replace(ours, part="outage", faults=(gone, Fault(args.steps * 3 // 4, "broker"))))
    failed = live_all(args, wanted)
    if failed:
        raise LinkError(f"{failed} of {len(wanted)} runs failed")
    report(args, argv, wanted)
    return 0


def shortened(wanted: Sequence[Planned], steps: int | None) -> list[Planned]:
    """The same runs, of so many steps."""
    return [run if steps is None else msgspec.structs.replace(run, steps=min(steps, run.steps)) for run in wanted]


def main(argv: list[str]) -> int:
    """Do what the command line says."""
    args = parse(argv)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"rlink: {error}", file=sys.stderr)
        return 1


def _leave() -> None:
    for process in list(_APART):
        process.terminate()


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """List, make, tune, live, report.

    Raises:
        EdgertError: something does not work.
    """
    if shutil.which("mosquitto") is None and not Path("/usr/sbin/mosquitto").exists():
        raise UsageError("mosquitto is not installed: apt install mosquitto")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(_leave)
    if args.one:
        live(args.runs, msgspec.json.decode(args.one, type=Planned))
        return 0
    if args.quick:
        return quick(args, argv)
    if args.tune:
        wanted = shortened(grids(args.tasks, args.arms), args.steps)
        failed = live_all(args, wanted)
        print(tuned(args, wanted))
        return 1 if failed else 0
    wanted = shortened(plan.planned(args.parts, args.tasks, args.arms, args.seeds), args.steps)
    if args.list:
        show(args, wanted)
        return 0
    if args.make:
        make(args.runs, wanted)
        return 0
    failed = 0 if args.report else live_all(args, wanted)
    report(args, argv, wanted)
    return 1 if failed else 0
