"""What all runs say together. A cell is one setting: its figure is a mean over seeds, its interval a bootstrap."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tools.bench.offload.fit import REAL
from tools.bench.offload.play import AFTER, LAG, REQUESTS, STEADY, STEPS_LEAST, WARM_UP, steps_before
from tools.bench.offload.world import FITTED

HOW = f"""Simulated worlds of processor sharing, noise and links (tools/bench/offload/world.py); accuracies are the
published top-5 figures of MobileNetV1, not measured. {REQUESTS} requests of all users together (but {STEPS_LEAST} joint
actions at least), then all links of devices flip and {AFTER} joint actions more follow; monitors tell of the flip after
{LAG}. steady: the last {STEADY} before the flip, exploration included.
Response: the exact expectation of what was chosen; p95 and p99: of single answers. Ratios are ours (hybrid) by theirs.
offload RL: tabular Q-learning over places with the full float model, the published comparison. Warm-up: {WARM_UP} joint
actions. Recovery: joint actions after the flip until the greedy choice is within 5 % of the new oracle and stays, times
users = requests. idle_core: the same with service times of a core on which nothing else runs, where int8 is twice as
fast; under quotas beside other processes it is not. Every way to decide had the same number of
settings and the same worlds to be tuned on (seeds 1000..), which are not reported."""
LOST_MOST = 0.009
DRAWS = 2000
Row = Mapping[str, Any]
Key = tuple[str, int, str, str, str]


def by_cell(rows: Sequence[Row]) -> dict[Key, dict[str, dict[int, Row]]]:
    """Cell, then arm, then seed."""
    found: dict[Key, dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        found[(row["machine"], row["users"], row["links"], row["floor"], row["per"])][row["arm"]][row["seed"]] = row
    return found


def interval(
    rows: Sequence[Row], others: Sequence[Row], figure: Callable[[Sequence[Row], Sequence[Row]], float]
) -> dict[str, Any]:
    """A figure of two lists that are paired by seed, and its 95 % interval over seeds."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(rows), size=(DRAWS, len(rows)))
    drawn = [figure([rows[i] for i in pick], [others[i] for i in pick]) for pick in picks]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": round(figure(rows, others), 4), "ci": [round(float(low), 4), round(float(high), 4)]}


def ratio(key: str) -> Callable[[Sequence[Row], Sequence[Row]], float]:
    """Ours by theirs, of means over seeds."""
    return lambda ours, theirs: float(np.mean([row[key] for row in ours]) / np.mean([row[key] for row in theirs]))


def gap(key: str = "steady_s") -> Callable[[Sequence[Row], Sequence[Row]], float]:
    """How far above the oracle, of means over seeds."""
    return lambda ours, _: float(np.mean([row[key] / row["oracle_s"] for row in ours]) - 1)


def of(rows: Sequence[Row]) -> dict[str, Any]:
    """The summary, and a line for each arm and each cell."""
    real = [row for row in rows if row["machine"] == "fitted"]
    idle = [row for row in rows if row["machine"] == "idle"]
    cells = by_cell(real)
    summary = _summary(real)
    if idle:
        kept = ("response_", "accuracy_", "p99_", "oracle_gap_max")
        summary["idle_core"] = {key: value for key, value in _summary(idle).items() if key.startswith(kept)}
    return {"summary": summary, "arms": _arms(cells), "cells": _cells(by_cell(rows))}


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    cells = by_cell(rows)
    against: dict[str, list[tuple[float, Key, float]]] = defaultdict(list)
    gaps: list[tuple[float, Key]] = []
    for key, arms in cells.items():
        ours = arms["hybrid"]
        lost = 0.899 - float(np.mean([row["accuracy_frac"] for row in ours.values()]))
        gaps.append((gap()(list(ours.values()), []), key))
        for name, theirs in arms.items():
            both = sorted(set(ours) & set(theirs))
            value = ratio("steady_s")([ours[seed] for seed in both], [theirs[seed] for seed in both])
            against[name].append((value, key, lost))

    def pair(key: Key, name: str) -> tuple[list[Row], list[Row]]:
        ours, theirs = cells[key]["hybrid"], cells[key][name]
        both = sorted(set(ours) & set(theirs))
        return [ours[seed] for seed in both], [theirs[seed] for seed in both]

    def told(name: str, best: bool) -> dict[str, Any]:
        fair = [each for each in against[name] if each[2] <= LOST_MOST + 1e-9 or not best]
        _, key, lost = min(fair) if best else max(fair)
        return {
            **interval(*pair(key, name), ratio("steady_s")),
            "cell": key,
            "accuracy_lost_points": round(100 * lost, 2),
        }

    mine = [row for row in rows if row["arm"] == "hybrid"]
    best = told("offload RL", True)
    worst_key = max(gaps)[1]
    recovery = [
        (float(np.median([row["recovery"] for row in arms["hybrid"].values()])), key) for key, arms in cells.items()
    ]
    slowest = max(recovery, key=lambda each: each[0] * each[1][1])
    fit = json.loads(FITTED.read_text()) if FITTED.exists() else None
    most = max(row["users"] for row in mine)
    summary = {
        "response_vs_offload_rl_best": best,
        "response_vs_offload_rl_worst": told("offload RL", False),
        "response_vs_offload_int8_rl_best": told("offload RL, int8 too", True)
        if "offload RL, int8 too" in against
        else None,
        "response_vs_offload_int8_rl_worst": told("offload RL, int8 too", False),
        "accuracy_lost_points": best["accuracy_lost_points"],
        "oracle_gap_max": {**interval(*pair(worst_key, "hybrid"), gap()), "cell": worst_key},
        "oracle_gap_median": round(float(np.median([value for value, _ in gaps])), 4),
        "cells_within_2_percent": f"{sum(value <= 0.02 for value, _ in gaps)} of {len(gaps)}",
        "greedy_gap_max": round(max(gap("greedy_s")(list(arms["hybrid"].values()), []) for arms in cells.values()), 4),
        "p99_vs_offload_rl": {
            **interval(*pair(tuple(best["cell"]), "offload RL"), ratio("p99_s")),
            "cell": best["cell"],
        },
        "violations": int(sum(row["broken"] for row in mine)),
        "violations_after_warmup": int(sum(row["broken_late"] for row in mine)),
        "recovery_requests": {
            "value": slowest[0] * slowest[1][1],
            "cell": slowest[1],
            "median_joint_actions": float(np.median([row["recovery"] for row in mine])),
            "p90_joint_actions": float(np.percentile([row["recovery"] for row in mine], 90)),
            "median_requests": float(np.median([row["recovery"] * row["users"] for row in mine])),
            "p90_requests": float(np.percentile([row["recovery"] * row["users"] for row in mine], 90)),
            "within_50_requests_frac": round(float(np.mean([row["recovery"] * row["users"] <= 50 for row in mine])), 4),
            "not_recovered_frac": round(float(np.mean([not row["recovered"] for row in mine])), 4),
        },
        "decision_ms": round(1e3 * float(np.median([row["decision_s"] for row in mine if row["users"] == most])), 3),
        "simulator_mape": None if fit is None else fit["mape"],
        "simulator_mape_of_joint_means": None if fit is None else fit["mape_of_joint_means"],
        "monitoring": json.loads(REAL.read_text())["monitoring"] if REAL.exists() else None,
    }
    return summary


def _arms(cells: Mapping[Key, Mapping[str, Mapping[int, Row]]]) -> dict[str, Any]:
    """Of each arm over all cells it was in: the median and the worst cell."""
    found: dict[str, Any] = {}
    names = dict.fromkeys(name for arms in cells.values() for name in arms)
    for name in names:
        mine = [list(arms[name].values()) for arms in cells.values() if name in arms]
        flat = [row for each in mine for row in each]
        gaps = [gap()(each, []) for each in mine]
        found[name] = {
            "cells": len(mine),
            "gap_median": round(float(np.median(gaps)), 4),
            "gap_worst": round(max(gaps), 4),
            "learning_gap_median": round(float(np.median([gap("learning_s")(each, []) for each in mine])), 4),
            "p95_by_oracle_mean": round(float(np.median([row["p95_s"] / row["oracle_s"] for row in flat])), 3),
            "p99_by_oracle_mean": round(float(np.median([row["p99_s"] / row["oracle_s"] for row in flat])), 3),
            "worst_user_by_oracle_mean": round(float(np.median([row["worst_s"] / row["oracle_s"] for row in flat])), 3),
            "accuracy_frac": round(float(np.mean([row["accuracy_frac"] for row in flat])), 4),
            "violations_frac": round(float(np.mean([row["broken"] / steps_before(row["users"]) for row in flat])), 4),
            "violations_late_frac": round(
                float(np.mean([row["broken_late"] / (steps_before(row["users"]) - WARM_UP) for row in flat])), 4
            ),
            "recovery_median": float(np.median([row["recovery"] for row in flat])),
            "recovered_frac": round(float(np.mean([row["recovered"] for row in flat])), 3),
            "decision_ms": round(1e3 * float(np.median([row["decision_s"] for row in flat])), 3),
            "cpu_s": round(float(np.mean([row["cpu_s"] for row in flat])), 4),
        }
    return found


def _cells(cells: Mapping[Key, Mapping[str, Mapping[int, Row]]]) -> list[dict[str, Any]]:
    return [
        {
            **dict(zip(("machine", "users", "links", "floor", "per"), key, strict=True)),
            "seeds": len(arms["hybrid"]),
            "oracle_ms": round(1e3 * float(np.mean([row["oracle_s"] for row in arms["hybrid"].values()])), 2),
            "steady_ms": {
                name: round(1e3 * float(np.mean([row["steady_s"] for row in each.values()])), 2)
                for name, each in arms.items()
            },
            "p99_ms": {
                name: round(1e3 * float(np.mean([row["p99_s"] for row in each.values()])), 1)
                for name, each in arms.items()
            },
            "worst_user_ms": round(1e3 * float(np.mean([row["worst_s"] for row in arms["hybrid"].values()])), 2),
            "accuracy_frac": round(float(np.mean([row["accuracy_frac"] for row in arms["hybrid"].values()])), 4),
        }
        for key, arms in cells.items()
    ]


def table(document: Mapping[str, Any]) -> str:
    """Plain text: each arm, then the summary."""
    lines = [f"{'':>22}  gap med.  worst   learning  p99/orc  accuracy  broken  late    recovery  ms"]
    for name, arm in document["arms"].items():
        lines.append(
            f"{name:>22}  {arm['gap_median']:7.3f}  {arm['gap_worst']:6.3f}  {arm['learning_gap_median']:7.3f}"
            f"  {arm['p99_by_oracle_mean']:7.2f}  {arm['accuracy_frac']:8.4f}  {arm['violations_frac']:6.4f}"
            f"  {arm['violations_late_frac']:6.4f}  {arm['recovery_median']:5.0f}  {arm['decision_ms']:8.3f}"
        )
    return "\n".join([*lines, json.dumps(document["summary"], indent=1), f"parts: {document['parts']}"])
