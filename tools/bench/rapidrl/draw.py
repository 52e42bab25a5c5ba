"""The plot: a panel a task, normalised return over operations, every policy with its intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench.rapidrl.summary import DISTILLED

COLUMNS = 4


class Look(NamedTuple):
    """How a group of policies is drawn.

    Attributes:
        label: in the legend.
        colour: of its marks.
        marker: its shape.
        line: style of the line through its points, from cheap to dear; empty for none.
        size: of the marks.
    """

    label: str
    colour: str
    marker: str
    line: str = ""
    size: float = 5


LOOKS: dict[str, Look] = {
    "ours@": Look("early exits, learnt confidence", "#1f6fb4", "o", "-"),
    "small": Look("distilled small nets", "#c2571a", "s", "-"),
    "alone34": Look("small net trained alone", "#c2571a", "x"),
    "always-exit-": Look("always exit k", "#777777", "^", ":"),
    "random-exit": Look("exits at random, same rates", "#777777", "D"),
    "gap@": Look("exits by Q-gap", "#2f8f5b", "v", "--", 4),
    "entropy@": Look("exits by entropy", "#8a5bb0", "P", "--", 4),
    "hold": Look("sure actions repeated", "#1f6fb4", "*", "", 7),
    "full-fp32": Look("whole net, fp32", "#111111", "1", "", 9),
    "full-int8": Look("whole net, int8", "#111111", "o", "", 4),
    "chosen": Look("chosen on validation episodes", "#d02030", "o", "", 9),
}


def points(policies: Mapping[str, Any], prefix: str) -> list[tuple[float, float, list[float], list[float]]]:
    """Operations, return and both intervals of a group's policies, from cheap to dear."""
    found = []
    for name, figures in policies.items():
        if not (name.startswith(prefix) if prefix != "small" else name in DISTILLED):
            continue
        ops, normalised = figures["ops_ratio"], figures["return_ratio"]
        if ops["value"] is not None and normalised["value"] is not None:
            found.append((ops["value"], normalised["value"], ops["ci"], normalised["ci"]))
    return sorted(found)


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Write the SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    tasks = document["tasks"]
    columns = min(COLUMNS, len(tasks))
    rows = -(-len(tasks) // columns)
    plt.rcParams["svg.hashsalt"] = "edgert"  # equal figures give equal files
    figure, axes = plt.subplots(rows, columns, figsize=(max(7.5, 3.9 * columns + 0.3), 3.4 * rows + 1.2), squeeze=False)
    known: dict[str, Any] = {}
    for axis, (name, task) in zip(axes.flat, tasks.items(), strict=False):
        seen: list[float] = []
        for prefix, look in LOOKS.items():
            group = points(task["policies"], prefix)
            if not group:
                continue
            x, y, x_ci, y_ci = zip(*group, strict=True)
            seen += y
            hollow = prefix == "chosen"
            known[look.label] = axis.errorbar(
                x,
                y,
                xerr=[
                    [v - ci[0] for v, ci in zip(x, x_ci, strict=True)],
                    [ci[1] - v for v, ci in zip(x, x_ci, strict=True)],
                ],
                yerr=[
                    [v - ci[0] for v, ci in zip(y, y_ci, strict=True)],
                    [ci[1] - v for v, ci in zip(y, y_ci, strict=True)],
                ],
                fmt=look.marker + look.line,
                color=look.colour,
                ms=look.size,
                mfc="none" if hollow else look.colour,
                mew=1.4,
                lw=1.6 if look.line == "-" else 1.0,
                elinewidth=0.6,
                alpha=0.9,
                zorder=4 if prefix in ("ours@", "chosen") else 3,
            )
        axis.axhline(1, color="#bbbbbb", lw=0.8, zorder=1)
        axis.axvline(task["max_ops_ratio"], color="#bbbbbb", lw=0.8, ls="--", zorder=1)
        low = min([0.8, *seen])
        axis.set_xlim(0, 1.1)
        axis.set_ylim(max(-0.1, low - 0.1), max([1.15, *(each + 0.1 for each in seen)]))
        n = len(task["seeds"])
        axis.set_title(f"{name}, {n} seed{'s' if n != 1 else ''}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("normalised return")
    for column in range(columns):
        lowest = [axis for axis in axes[:, column] if axis.get_visible()][-1]
        lowest.set_xlabel("operations, share of the net without exits")
    per_row = max(2, min(4, columns * 2))
    figure.legend(list(known.values()), list(known), loc="lower center", ncols=per_row, frameon=False, fontsize=8.5)
    legend_inches = 0.22 * -(-len(known) // per_row) + 0.15
    figure.tight_layout(rect=(0, legend_inches / figure.get_figheight(), 1, 1))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
