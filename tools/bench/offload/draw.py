"""The plot of the result: how far every way to decide stays above the oracle, and how learning goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tools.bench.offload.play import LAG, steps_before
from tools.bench.offload.summary import by_cell, gap

COLOURS = {
    "hybrid": "#1f6fb4",
    "Thompson": "#3a8f5c",
    "structured": "#c9a227",
    "DQN": "#c2571a",
    "AutoScale-like": "#8a5fb0",
    "offload RL": "#333333",
    "published RL": "#999999",
}


def figure(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw both panels."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9})
    whole = Figure(figsize=(11, 4.2))
    left, right = whole.subplots(1, 2, width_ratios=(1, 1.15))
    _gaps(left, rows)
    _curves(right, rows)
    whole.tight_layout()
    whole.savefig(out, metadata={"Date": None})


def _gaps(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Every cell a dot, by arm; the line is the median."""
    cells = {key: arms for key, arms in by_cell(rows).items() if key[0] == "fitted" and key[4] == "user"}
    names = list(dict.fromkeys(name for arms in cells.values() for name in arms))
    found = {
        name: [1 + gap()(list(arms[name].values()), []) for arms in cells.values() if name in arms] for name in names
    }
    names.sort(key=lambda name: -float(np.median(found[name])))
    rng = np.random.default_rng(0)
    for at, name in enumerate(names):
        colour = COLOURS.get(name, "#777777")
        axis.scatter(found[name], at + rng.uniform(-0.25, 0.25, len(found[name])), s=5, color=colour, alpha=0.5, lw=0)
        middle = float(np.median(found[name]))
        axis.plot([middle, middle], [at - 0.35, at + 0.35], color=colour, lw=2)
    axis.axvline(1.0, color="#333333", lw=0.8, ls="--")
    axis.set_xscale("log")
    ticks = (1, 1.5, 2, 3, 5, 10, 20)
    axis.set_xticks(ticks, [str(each) for each in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.97)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("response time / oracle's, once learned; a dot a setting")
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Learning, the flip, and learning again, in one setting."""
    shown = [row for row in rows if row["curve_s"]]
    for name, colour in COLOURS.items():
        mine = [np.array(row["curve_s"]) for row in shown if row["arm"] == name]
        if not mine:
            continue
        mean = 1e3 * np.mean(mine, axis=0)
        smooth = np.array([mean[max(0, at - 4) : at + 1].mean() for at in range(len(mean))])
        axis.plot(np.arange(1, len(mean) + 1), smooth, color=colour, lw=1.6 if name == "hybrid" else 1.0, label=name)
    ours = [row for row in shown if row["arm"] == "hybrid"]
    if ours:
        length, flip = len(ours[0]["curve_s"]), steps_before(ours[0]["users"])
        for key, begin, end in (("oracle_s", 0, flip), ("after_oracle_s", flip, length)):
            level = 1e3 * float(np.mean([row[key] for row in ours]))
            axis.plot([begin, end], [level, level], color="#333333", lw=0.8, ls="--")
        axis.axvspan(flip, flip + LAG, color="#dddddd")
        axis.annotate("links flip", (flip, axis.get_ylim()[1]), ha="right", va="top", fontsize=8)
        first = ours[0]
        axis.set_title(f"{first['users']} users, links {first['links']}, floor {first['floor']} %", fontsize=9)
    axis.set_xlabel("joint actions")
    axis.set_ylabel("mean response, ms (dashed: oracle)")
    axis.set_ylim(0)
    axis.legend(frameon=False, fontsize=8, ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
