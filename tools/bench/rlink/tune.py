"""What each arm of `plan` does best with: `python -m tools.bench.rlink.tune --task acrobot --arms alone ours`.

Every point of an arm's grid, one setting moved at a time, on the tuning seeds, in one process and in virtual time
(`simulate`): the real trainer and the arm's own settings, over a link of 50 ms. That ranks settings at a tenth of the
time of the real path, where `python -m tools.bench rlink --tune` does the same. A figure is the mean return of all
episodes while learning; nothing of it is reported as a result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from edgert.policy import artifact
from tools.bench.rlink import plan, simulate
from tools.bench.rlink.command import grids, make
from tools.bench.rlink.plan import ARMS, TASKS, Planned

RATE_HZ = 500.0
"""Decisions a second, about what the real path comes to: a round trip of 50 ms is 25 transitions."""


def lived(runs: Path, run: Planned) -> float:
    """Mean return of the episodes of one life."""
    settings = {key: value for key, value in run.settings.items() if not key.startswith("bench.")}
    if run.settings.get("bench.vouched"):
        settings["teacher.vouched"] = [simulate.NAME]
    taught = run.settings["teacher.enabled"]
    teacher = artifact.load(plan.made(runs, run.task, "good").path.read_bytes())
    found = simulate.simulate(
        TASKS[run.task].game,
        simulate.network(teacher.params) if taught else None,
        transitions=run.steps,
        seed=run.seed,
        rate_hz=RATE_HZ,
        steps_per_transition=float(run.settings["learn.steps_per_transition"]),
        rtt_s=2 * plan.LINKS[run.link].delay_s,
        bytes_per_s=float(run.settings["teacher.max_bytes_per_s"]),
        candidate_transitions=TASKS[run.task].every,
        settings=settings,
        student=plan.made(runs, run.task, "student", run.seed).path,
    )
    return float(np.mean([value for _, value in found["returns"]]))


def main() -> None:
    """Print one line a life, then the points of each arm, best first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--arms", nargs="+", default=["alone", "cloning", "kickstarting", "qdagger", "ours"], choices=ARMS
    )
    parser.add_argument("--seeds", type=int, default=len(plan.TUNING_SEEDS))
    parser.add_argument("--runs", type=Path, default=Path("runs/rlink"))
    args = parser.parse_args()
    values: dict[tuple[str, str], list[float]] = {}
    for run in grids([args.task], args.arms):
        if run.seed not in plan.TUNING_SEEDS[: args.seeds]:
            continue
        make(args.runs, [run])
        usual = plan.settings_of(TASKS[run.task], run.arm, run.steps)
        moved = json.dumps({key: value for key, value in run.settings.items() if usual.get(key) != value})
        came = lived(args.runs, run)
        values.setdefault((run.arm, moved), []).append(came)
        print(f"{run.arm} {moved} seed {run.seed}: {came:.1f}", flush=True)
    for (arm, moved), each in sorted(values.items(), key=lambda row: (row[0][0], -float(np.mean(row[1])))):
        print(f"{arm:<13} {np.mean(each):9.2f} of {len(each)}  {moved}")


if __name__ == "__main__":
    main()
