"""The plot of the result: who takes how long, how they learned, what grows with the cluster, what the shield costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PALE, GOOD, BAD = "#2b2b2b", "#c9c9c9", "#1f6fb4", "#c2571a"
ARMS = {
    "SROLE-C": GOOD,
    "SROLE-D": "#5aa9e6",
    "MARL": BAD,
    "MARL, masked": "#e0a458",
    "central RL": "#8a5fb0",
    "HEFT, 2 at most + shield": "#3a8f5c",
    "HEFT, split + shield": "#7fb685",
    "random + shield": "#9a9a9a",
}
METHODS = {"srole": "SROLE-C", "marl": "MARL", "masked": "MARL, masked", "central": "central RL"}


def overview(document: dict[str, Any], out: Path) -> None:
    """Four panels in one file."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(11.5, 8.0))
    grid = figure.add_gridspec(2, 2, width_ratios=(1.25, 1), hspace=0.32, wspace=0.42)
    _ranking(figure.add_subplot(grid[:, 0]), document)
    _curves(figure.add_subplot(grid[0, 1]), document)
    _sizes(figure.add_subplot(grid[1, 1]), document)
    figure.savefig(out / "srole.svg", metadata={"Date": None}, bbox_inches="tight")


def _ranking(axis: Axes, document: dict[str, Any]) -> None:
    """Mean job time of every arm in the cell with all of them, a bar an arm."""
    name = max(document["cells"], key=lambda cell: len(document["cells"][cell]))
    arms = sorted(document["cells"][name].items(), key=lambda item: -item[1]["mean_s"][0])
    for k, (arm, row) in enumerate(arms):
        mean, low, high = row["mean_s"]
        colour = ARMS.get(arm, PALE)
        axis.barh(k, mean, color=colour, height=0.72)
        axis.plot([low, high], [k, k], color=INK, lw=1.0)
        hit = row["counts"]["overloads"]
        told = f"{mean:.0f} s" + (f"   {hit:.0f} overloads" if hit else "")
        axis.text(high + 4, k, told, va="center", fontsize=7.5, color=INK)
    most = max(row["seeds"] for _, row in arms)
    named = [arm if row["seeds"] == most else f"{arm} ({row['seeds']} of {most} seeds)" for arm, row in arms]
    axis.set_yticks(range(len(arms)), named, fontsize=8)
    axis.set_xlim(0, 1.35 * max(row["mean_s"][2] for _, row in arms))
    axis.set_xlabel("mean time from a job's arrival to its end, s")
    axis.set_title(name, fontsize=9, loc="left")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _curves(axis: Axes, document: dict[str, Any]) -> None:
    """Validation over the budget of every training."""
    for run, curve in document["curves"].items():
        arm = METHODS[run.split("-")[0]]
        x = [each["spent_s"] for each in curve]
        y = [min(each["drawn"], each["best"]) for each in curve]
        axis.plot(x, y, color=ARMS[arm], lw=1.6, marker="o", ms=2.5)
        axis.text(x[-1], y[-1], f" {arm}", color=ARMS[arm], va="center", fontsize=8)
    axis.set_xlabel("training, s of one core")
    axis.set_ylabel("mean job time, s")
    axis.set_title("learning, on scenes kept for it", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)


def _sizes(axis: Axes, document: dict[str, Any]) -> None:
    """Job time over the size of the cluster, and the shield's time on a second axis."""
    cells = {cell: arms for cell, arms in document["cells"].items() if "load 0.7 window 5 s stale 15 s" in cell}
    sizes = sorted({int(cell.split()[1]) for cell in cells})
    for arm, colour in ARMS.items():
        points = []
        for size in sizes:
            mine = [
                arms[arm]["mean_s"][0] for cell, arms in cells.items() if int(cell.split()[1]) == size and arm in arms
            ]
            if mine:
                points.append((size, float(np.mean(mine))))
        if len(points) > 1:
            axis.plot(*zip(*points, strict=True), color=colour, lw=1.5, marker="o", ms=3, label=arm)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.set_yscale("log")  # who overloads nodes takes ten times as long
    axis.set_yticks(ticks := [50, 100, 200, 500, 1000, 2000], [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("nodes")
    axis.set_ylabel("mean job time, s")
    axis.set_title("size of the cluster, and what a judgement costs", fontsize=9, loc="left")
    if axis.lines:
        axis.legend(frameon=False, fontsize=7, loc="upper right", ncol=2)
    axis.spines[["top"]].set_visible(False)
    other = axis.twinx()
    shields = document["shield"]
    other.plot([each["nodes"] for each in shields], [each["median_ms"] for each in shields], color=INK, ls=":", lw=1.3)
    other.set_ylabel("shield, median ms (dotted)")
    other.set_ylim(0, None)
    other.spines[["top"]].set_visible(False)
