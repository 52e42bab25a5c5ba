"""The plots of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from edgert.ports import report
from edgert.programs.sim import Moment, columns
from tools.bench.govern.play import Row
from tools.bench.govern.traces import Case

COLOURS = ("#1f6fb4", "#333333", "#c9a227", "#c2571a", "#8a5fb0", "#3a8f5c")


def bars(rows: Sequence[Row], out: Path) -> None:
    """Return as a share of the oracle's, by kind of trace; what broke a constraint is pale."""
    kinds = list(dict.fromkeys(row.kind for row in rows if row.bound))
    names = list(dict.fromkeys(row.controller for row in rows))
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(11, 3.4))
    axis = figure.subplots()
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        for k, kind in enumerate(kinds):
            mine = [row for row in rows if row.controller == name and row.kind == kind and row.bound]
            share = float(np.mean([row.return_frac / row.bound for row in mine if row.bound]))
            kept = all(row.kept for row in mine)
            at, alpha = k + (i - len(names) / 2 + 0.5) * 0.13, 1.0 if kept else 0.35
            axis.bar(at, share, 0.12, color=colour, alpha=alpha)
        axis.bar(0, 0, color=colour, label=name)
    axis.axhline(1.0, color="#333333", lw=0.8, ls="--")
    axis.set_xticks(range(len(kinds)), kinds)
    axis.set_ylabel("return, share of the oracle's")
    axis.set_ylim(0, 1.05)
    pale = "pale: broke a\nconstraint"
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, title=pale, title_fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out / "govern.svg", metadata={"Date": None})


def timeline(case: Case, moments: Sequence[Moment], out: Path) -> None:
    """What ours did through one trace."""
    svg = report.adapted(
        columns(moments, case.model, 250), f"{case.name}: {case.model.name}, {case.work.manifest.name}"
    )
    (out / "govern-day.svg").write_text('<?xml version="1.0" encoding="utf-8"?>\n' + svg)


def table(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """Plain text: each controller over all traces, then the summary."""
    head = ("return", "gap", "gap eq.", "missed %", "energy MJ", "steps k", "MB", "lasted", "throttled %")
    lines = [f"{'controller':>15}" + "".join(f"{name:>12}" for name in (*head, "switch/h", "us"))]
    for name in dict.fromkeys(row.controller for row in rows):
        mine = [row for row in rows if row.controller == name]
        can = [row for row in mine if row.feasible]
        gaps = [row.gap for row in mine if row.gap is not None and row.kept]
        equal = [row.gap_equal for row in mine if row.gap_equal is not None and row.kept]
        figures = (
            f"{np.mean([row.return_frac for row in mine]):.3f}",
            f"{100 * max(gaps):.1f} %" if gaps else "-",
            f"{100 * max(equal):.1f} %" if equal else "-",
            f"{100 * np.mean([row.missed_frac for row in mine]):.3f}",
            f"{sum(row.energy_j for row in mine) / 1e6:.2f}",
            f"{sum(row.steps for row in mine) / 1e3:.0f}",
            f"{sum(row.link_bytes for row in mine) / 1e6:.0f}",
            f"{sum(bool(row.lasted) for row in can)}/{len(can)}",
            f"{100 * np.mean([row.throttled_frac for row in mine]):.1f}",
            f"{np.mean([row.switches_per_hour for row in mine]):.2f}",
            f"{1e6 * np.mean([row.decide_s for row in mine]):.0f}",
        )
        lines.append(f"{name:>15}" + "".join(f"{figure:>12}" for figure in figures))
    lines += ["", *(f"{name:<20} {value}" for name, value in summary.items())]
    return "\n".join(lines)
