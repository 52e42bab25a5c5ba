"""What all runs say together. Ratios are ours by theirs, of medians over the same seeds of one setting."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.bench.hybrid.converge import BLOCK, EVALUATIONS, SWITCH_EVERY, WITHIN

HOW = f"""Ten actions a user (eight models at home, the full one at the edge and in the cloud), floor on average;
simulated worlds (tools/bench/offload/world.py). A sample is one joint action. Converged: the first sample from which on
{EVALUATIONS} evaluations of the greedy choice are within {WITHIN[0]:.0%} (and {WITHIN[1]:.0%}) of the exhaustive
oracle and hold the floor. Not converged counts as the cap, and makes a ratio an upper bound. joint table:
Q-learning over all joint actions, evaluated every {BLOCK} samples. matched DQN: the same network with 8 or 32
updates a sample, which is at least the processor time of ours. cpu_s: deciding and learning; total_s: and waiting
for answers. switching: two link settings and two loads take turns every {SWITCH_EVERY} joint actions. full: 24
choices a user. Settings of all (eight of each learner, ours too; twelve of the joint table) were tuned on seeds
from 1000 on, which are not reported. Intervals: bootstrap over seeds."""
DRAWS = 2000
Row = Mapping[str, Any]
Key = tuple[str, int, str, str]


def by_cell(rows: Sequence[Row]) -> dict[Key, dict[str, dict[int, Row]]]:
    """Cell, then arm, then seed."""
    found: dict[Key, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[(row["kind"], row["users"], row["links"], row["floor"])][row["arm"]][row["seed"]] = row
    return found


def figure(row: Row, key: str, within: int) -> float:
    """Samples, or seconds, until converged."""
    return float(row[key][within])


def ratio(
    arms: Mapping[str, Mapping[int, Row]], ours: str, theirs: str, key: str, within: int
) -> dict[str, Any] | None:
    """Ours by theirs in one cell, over the seeds that both have; None without any."""
    both = sorted(set(arms.get(ours, {})) & set(arms.get(theirs, {})))
    if not both:
        return None
    a, b = (np.array([figure(arms[name][seed], key, within) for seed in both]) for name in (ours, theirs))
    picks = np.random.default_rng(0).integers(len(both), size=(DRAWS, len(both)))
    drawn = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    return {
        "value": float(f"{np.median(a) / np.median(b):.4g}"),
        "ci": [float(f"{each:.4g}") for each in np.percentile(drawn, (2.5, 97.5))],
        "ours": float(np.median(a)),
        "theirs": float(np.median(b)),
        "seeds": len(both),
        "censored_ours": int(sum(arms[ours][seed]["censored"][within] for seed in both)),
        "censored_theirs": int(sum(arms[theirs][seed]["censored"][within] for seed in both)),
    }


def over(
    rows: Sequence[Row], theirs: str, key: str = "samples", within: int = 0, kind: str = "static"
) -> dict[str, Any] | None:
    """The best, the median and the worst cell of a ratio."""
    cells = by_cell(rows)
    found = [
        (told["value"], cell, told)
        for cell, arms in cells.items()
        if cell[0] == kind and (told := ratio(arms, "hybrid", theirs, key, within)) is not None
    ]
    if not found:
        return None
    found.sort(key=lambda each: each[0])
    whole = float(np.exp(np.mean([np.log(each[0]) for each in found])))
    return {
        "best": {**found[0][2], "cell": found[0][1]},
        "median": found[len(found) // 2][0],
        "mean_of_logs": float(f"{whole:.4g}"),
        "worst": {**found[-1][2], "cell": found[-1][1]},
        "cells": len(found),
    }


def of(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary, and a line for each arm and each cell."""
    summary: dict[str, Any] = {
        "samples_vs_tabular_best": (over(rows, "joint table") or {}).get("best"),
        "samples_vs_tabular": over(rows, "joint table"),
        "samples_vs_dqn": over(rows, "DQN"),
        "samples_vs_matched_dqn": over(rows, "matched DQN"),
        "samples_vs_structured": over(rows, "structured"),
        "samples_vs_structured_full": over(rows, "structured", kind="full"),
        "samples_vs_structured_switching": over(rows, "structured", kind="switching"),
        "time_vs_dqn": over(rows, "DQN", "total_s"),
        "cpu_vs_dqn": over(rows, "DQN", "cpu_s"),
        "within_5_percent": {
            name: over(rows, name, within=1) for name in ("joint table", "DQN", "matched DQN", "structured")
        },
    }
    arms: dict[str, Any] = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        for kind in dict.fromkeys(row["kind"] for row in rows if row["arm"] == name):
            mine = [row for row in rows if row["arm"] == name and row["kind"] == kind]
            errors = [row["model_error"] for row in mine if row["model_error"] is not None]
            arms[f"{name} ({kind})"] = {
                "runs": len(mine),
                "samples_1": float(np.median([figure(row, "samples", 0) for row in mine])),
                "samples_1_p90": float(np.percentile([figure(row, "samples", 0) for row in mine], 90)),
                "samples_5": float(np.median([figure(row, "samples", 1) for row in mine])),
                "censored_1_frac": round(float(np.mean([row["censored"][0] for row in mine])), 3),
                "censored_5_frac": round(float(np.mean([row["censored"][1] for row in mine])), 3),
                "cpu_s": round(float(np.median([figure(row, "cpu_s", 0) for row in mine])), 4),
                "total_s": round(float(np.median([figure(row, "total_s", 0) for row in mine])), 2),
                "model_error": round(float(np.mean(errors)), 4) if errors else None,
            }
    cells = [
        {
            **dict(zip(("kind", "users", "links", "floor"), key, strict=True)),
            "samples_1": {
                name: float(np.median([row["samples"][0] for row in each.values()])) for name, each in found.items()
            },
            "samples_5": {
                name: float(np.median([row["samples"][1] for row in each.values()])) for name, each in found.items()
            },
        }
        for key, found in by_cell(rows).items()
    ]
    return {"summary": summary, "arms": arms, "depth": _depth(rows), "cells": cells}


def _depth(rows: Sequence[Row]) -> dict[str, Any]:
    """Samples by how much is planned, in the settings of the sweep."""
    swept = {(row["users"], row["links"], row["floor"]) for row in rows if "depth" in row["arm"]}
    names = [name for name in dict.fromkeys(row["arm"] for row in rows) if "," in name or name == "hybrid"]
    found = {}
    for name in names:
        mine = [
            r
            for r in rows
            if r["arm"] == name and r["kind"] == "static" and (r["users"], r["links"], r["floor"]) in swept
        ]
        if mine:
            found[name] = {
                "samples_1": float(np.median([row["samples"][0] for row in mine])),
                "samples_5": float(np.median([row["samples"][1] for row in mine])),
                "censored_1_frac": round(float(np.mean([row["censored"][0] for row in mine])), 3),
                "cpu_s": round(float(np.median([row["cpu_s"][0] for row in mine])), 4),
            }
    return found


def table(document: Mapping[str, Any]) -> str:
    """Plain text: each arm, then the summary."""
    lines = [f"{'':>30}   runs  within 1 %   p90     within 5 %  censored  cpu s"]
    for name, arm in document["arms"].items():
        lines.append(
            f"{name:>30}  {arm['runs']:5d}  {arm['samples_1']:9.0f}  {arm['samples_1_p90']:9.0f}"
            f"  {arm['samples_5']:9.0f}  {arm['censored_1_frac']:7.3f}  {arm['cpu_s']:8.3f}"
        )
    return "\n".join([*lines, json.dumps(document["summary"], indent=1), f"parts: {document['parts']}"])
