"""The plot of the result: samples until converged, setting by setting, and by how much is planned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tools.bench.hybrid.summary import by_cell

COLOURS = {
    "hybrid": "#1f6fb4",
    "structured": "#c9a227",
    "matched DQN": "#c2571a",
    "DQN": "#e39a6b",
    "joint table": "#333333",
}


def figure(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw both panels."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9})
    whole = Figure(figsize=(11, 4.2))
    left, right = whole.subplots(1, 2, width_ratios=(1.7, 1))
    _cells(left, rows)
    _depth(right, rows)
    whole.tight_layout()
    whole.savefig(out, metadata={"Date": None})


def _cells(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every static setting, by what the table needs there; a ring is a median of runs of which half never converged."""
    cells = [(key, arms) for key, arms in by_cell(rows).items() if key[0] == "static" and "joint table" in arms]
    cells.sort(key=lambda each: (each[0][1], np.median([row["samples"][0] for row in each[1]["joint table"].values()])))
    for name, colour in COLOURS.items():
        for at, (_, arms) in enumerate(cells):
            if name not in arms:
                continue
            samples = [row["samples"][0] for row in arms[name].values()]
            lost = np.mean([row["censored"][0] for row in arms[name].values()]) >= 0.5
            low, high = np.percentile(samples, (10, 90))
            axis.plot([at, at], [low, high], color=colour, lw=1, alpha=0.5)
            face = "none" if lost else colour
            axis.scatter([at], [np.median(samples)], s=16, facecolor=face, edgecolor=colour, lw=1, zorder=3)
        axis.scatter([], [], s=16, color=colour, label=name)
    users = [key[1] for key, _ in cells]
    for n in sorted(set(users)):
        mine = [at for at, each in enumerate(users) if each == n]
        axis.axvline(mine[0] - 0.5, color="#dddddd", lw=0.8)
        axis.annotate(f"{n} users", (np.mean(mine), 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    axis.set_yscale("log")
    axis.set_xticks([])
    axis.set_xlabel("settings of links and floor (ring: most runs never converged)")
    axis.set_ylabel("real samples until within 1 % of the oracle")
    axis.legend(frameon=False, fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    axis.spines[["top", "right"]].set_visible(False)


def _depth(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Samples by how much is planned."""
    swept = {(row["users"], row["links"], row["floor"]) for row in rows if "depth" in row["arm"]}
    names = [name for name in dict.fromkeys(row["arm"] for row in rows) if "," in name]
    names = [*sorted(name for name in names if "Dyna" in name), *sorted(n for n in names if "depth" in n), "hybrid"]
    names.sort(key=lambda name: (name == "hybrid" or "depth" in name, len(name) if "Dyna" in name else 0))
    shown = []
    for name in names:
        mine = [
            row["samples"]
            for row in rows
            if row["arm"] == name and row["kind"] == "static" and (row["users"], row["links"], row["floor"]) in swept
        ]
        if mine:
            shown.append((name, np.median(np.array(mine), axis=0)))
    for at, (_, (one, five)) in enumerate(shown):
        axis.barh(at - 0.18, one, 0.34, color="#1f6fb4")
        axis.barh(at + 0.18, five, 0.34, color="#9cc3e4")
    axis.barh([0], [0], color="#1f6fb4", label="within 1 %")
    axis.barh([0], [0], color="#9cc3e4", label="within 5 %")
    axis.set_yticks(range(len(shown)), ["hybrid, depth 3" if name == "hybrid" else name for name, _ in shown])
    axis.set_xscale("log")
    axis.set_xlabel("real samples, by how much is planned")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
