"""From rows to the figures that count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.bench.govern.play import ANNOUNCE_S, Row

HOW = """Simulated: board, processes and what happens; real: the governor's code, frontiers of the shipped bundles, and
the run under quota and hog. `oracle_gap_max` is over every trace whose constraints somebody can meet: 1 - return / the
most that could be had by one who knows the trace, under the same constraints (battery with its reserve until the stated
hour, share of late decisions); `equal_energy` the same against one who does no more work. `energy_ratio` is the CPU
energy of acting, not the board's at rest, at the least that keeps 0.95 of the return, against fixed full depth; where
the full network alone keeps it, that is 1. `switches_per_hour` is over traces that are constant but for noise."""


def mean(values: Sequence[float], draws: int = 2000) -> dict[str, float]:
    """A mean with its 95 % bootstrap interval."""
    each = np.array(values, float)
    drawn = each[np.random.default_rng(0).integers(0, len(each), (draws, len(each)))].mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": float(each.mean()), "low": float(low), "high": float(high)}


def share(hits: int, n: int) -> dict[str, float | None]:
    """A share with its 95 % interval (Wilson 1927)."""
    if not n:
        return {"value": None, "low": None, "high": None}
    z, p = 1.959964, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


def of(
    rows: Sequence[Row], steady: Sequence[Row], energy: Sequence[dict[str, Any]], real: dict[str, Any], probe: Any
) -> dict[str, Any]:
    """The six figures.

    Args:
        rows: every trace under every controller.
        steady: ours on the steady traces.
        energy: of `ratios`.
        real: of `real.arms`.
        probe: of `real.probe`.
    """
    ours = [row for row in rows if row.controller == "ours"]
    gaps = {row.trace: row.gap for row in ours if row.gap is not None}
    equal = [row.gap_equal for row in ours if row.gap_equal is not None]
    worst = max(gaps, key=lambda name: gaps[name])
    can = [row for row in ours if row.feasible]
    cannot = [row for row in ours if row.feasible is False]
    told = [row for row in cannot if row.announced_s is not None and row.announced_s <= ANNOUNCE_S]
    restless = max(steady, key=lambda row: row.switches_per_hour)
    return {
        "oracle_gap_max": {
            "value": gaps[worst],
            "trace": worst,
            "mean": mean(list(gaps.values())),
            "equal_energy": max(equal),
            "equal_energy_mean": mean(equal),
        },
        "miss_rate_hog": {key: real["arms"]["ours"][key] for key in ("value", "low", "high")} if real else None,
        "energy_ratio": {**mean([row["ratio"] for row in energy]), "each": list(energy)},
        "goals_met_frac": {
            **share(sum(bool(row.lasted) for row in can), len(can)),
            "traces": len(can),
            "infeasible_announced": f"{len(told)} of {len(cannot)}",
            "false_alarms": sum(row.announced_s is not None for row in can),
        },
        "switches_per_hour": {
            "value": restless.switches_per_hour,
            "trace": restless.trace,
            "mean": mean([row.switches_per_hour for row in steady]),
        },
        "probe_core_frac": probe,
    }


def rounded(value: Any) -> Any:
    """Plain data, numbers rounded to what they are worth."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value
