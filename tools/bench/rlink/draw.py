"""The plots of `rlink`: learning curves, the link, bad teachers, outages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from tools.bench.rlink.judge import Judged
from tools.bench.rlink.plan import ARMS, GATED, TEACHERS, USUAL
from tools.bench.rlink.summary import Known, iqm, of

matplotlib.use("svg")
import matplotlib.pyplot as plt  # after the choice of what draws

matplotlib.rcParams["svg.hashsalt"] = "edgert"
COLOURS = {
    "alone": "#c2571a",
    "alone-replay": "#e0a070",
    "alone-gated": "#c9a227",
    "cloning": "#6a8f3c",
    "kickstarting": "#8a5fb0",
    "qdagger": "#b05f8a",
    "advising": "#777777",
    "sync": "#333333",
    "ours": "#1f6fb4",
    "ours-stranger": "#9db8d8",
    "ours-ungated": "#70b0e0",
}
GRID = 100


def curve(runs: Sequence[Judged], steps: int) -> tuple[Any, Any]:
    """(GRID,) transitions, (seeds, GRID) returns: each network's until the next one acts."""
    at = np.linspace(0, steps, GRID)
    rows = []
    for judged in runs:
        begins = np.array([point.transitions for point in judged.points])
        values = np.array([point.value for point in judged.points])
        rows.append(values[np.clip(np.searchsorted(begins, at, side="right") - 1, 0, len(values) - 1)])
    return at, np.array(rows)


def _lines(axis: Any, groups: Mapping[str, Sequence[Judged]], colours: Mapping[str, str]) -> None:
    for name, runs in groups.items():
        if not runs:
            continue
        at, rows = curve(runs, max(judged.run.transitions for judged in runs))
        axis.plot(at, iqm(rows.T), color=colours[name], lw=2, label=f"{name}, {len(runs)}")
        if len(runs) > 1:
            low, high = np.percentile(rows, (25, 75), axis=0)
            axis.fill_between(at, low, high, color=colours[name], alpha=0.15, lw=0)


def _legend(axis: Any, **settings: Any) -> None:
    """Beside the panel: curves and bars fill all of it."""
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), **settings)


def _finish(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _panels(names: Sequence[str]) -> tuple[Any, list[Any]]:
    columns = min(3, max(1, len(names)))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.6 * columns, 3.4 * rows), squeeze=False)
    panels = list(axes.flat)
    for spare in panels[len(names) :]:
        spare.set_axis_off()
    return figure, panels


def curves(known: Sequence[Known], document: Mapping[str, Any], out: Path) -> None:
    """Return of the network that acts, link off, over environment steps; a panel a task."""
    names = list(document["tasks"])
    figure, panels = _panels(names)
    for axis, name in zip(panels, names, strict=False):
        mine = [each for each in known if each.plan.task == name and each.plan.link == USUAL and not each.plan.faults]
        mine = [each for each in mine if each.plan.part != "link"]
        _lines(axis, {arm: of(mine, arm=arm, teacher="good") for arm in ARMS}, COLOURS)
        told = document["tasks"][name]
        axis.axhline(told["teacher"], color="#777777", lw=1, ls="--")
        axis.axhline(told["threshold"], color="#777777", lw=1, ls=":")
        axis.set(title=name, xlabel="environment steps", ylabel="return, link off")
        _legend(axis)
    _finish(figure, out / "rlink-curves.svg")


def harm(known: Sequence[Known], document: Mapping[str, Any], out: Path) -> None:
    """The same with bad teachers, against learning alone."""
    names = [name for name, told in document["tasks"].items() if set(told.get("harm", {})) - {"good"}]
    if not names:
        return
    colours = dict(zip(TEACHERS, ("#1f6fb4", "#8a5fb0", "#777777", "#b02020"), strict=True))
    colours |= {arm: COLOURS[arm] for arm in ("alone", GATED)}
    figure, panels = _panels(names)
    for axis, name in zip(panels, names, strict=False):
        mine = [each for each in known if each.plan.task == name and each.plan.link == USUAL and not each.plan.faults]
        mine = [each for each in mine if each.plan.part != "link"]
        groups = {arm: of(mine, arm=arm) for arm in ("alone", GATED)}
        _lines(axis, groups | {teacher: of(mine, arm="ours", teacher=teacher) for teacher in TEACHERS}, colours)
        axis.set(title=name, xlabel="environment steps", ylabel="return, link off")
        _legend(axis, title="teacher", title_fontsize=7)
    _finish(figure, out / "rlink-harm.svg")


def links(document: Mapping[str, Any], out: Path) -> None:
    """Steps a second, and steps to the threshold, on every link."""
    tasks = {name: rows for name, rows in document["link"].items() if rows}
    if not tasks:
        return
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.6))
    for i, (name, rows) in enumerate(tasks.items()):
        places = np.arange(len(rows)) + 0.4 * i
        rate = [row["steps_per_s"]["value"] or 0 for row in rows.values()]
        sync = [row["sync_steps_per_s"] or 0 for row in rows.values()]
        axes[0].bar(places, rate, 0.18, label=f"{name}, asynchronous")
        axes[0].bar(places + 0.19, sync, 0.18, label=f"{name}, blocking")
        steps = [row["steps_to_threshold"]["value"] or 0 for row in rows.values()]
        axes[1].bar(places, steps, 0.35, label=name)
        for axis in axes:
            axis.set_xticks(np.arange(len(rows)), list(rows), rotation=40, ha="right", fontsize=7)
    axes[0].set(ylabel="environment steps a second", yscale="log")
    axes[1].set(ylabel="environment steps to threshold")
    for axis in axes:
        _legend(axis)
    _finish(figure, out / "rlink-link.svg")


def outages(known: Sequence[Known], out: Path) -> None:
    """Live returns, exploration and all, through what went wrong."""
    runs = [each for each in known if each.plan.faults]
    if not runs:
        return
    figure, panels = _panels([each.plan.key for each in runs])
    for axis, (plan, judged) in zip(panels, runs, strict=False):
        seqs, values = zip(*judged.run.episodes, strict=True) if judged.run.episodes else ((), ())
        seconds = np.interp(seqs, [n for _, n in judged.run.pace], [s for s, _ in judged.run.pace]) if seqs else []
        axis.plot(seconds, values, ".", ms=3, color=COLOURS["ours"])
        for fault in plan.faults:
            begins = np.interp(fault.at, [n for _, n in judged.run.pace], [s for s, _ in judged.run.pace])
            axis.axvspan(begins, begins + max(fault.lasts_s, 1), color="#b02020", alpha=0.2, lw=0)
        kinds = " and ".join(each.kind for each in plan.faults)
        axis.set(title=f"{plan.task}, seed {plan.seed}: {kinds}", xlabel="seconds", ylabel="live return")
    _finish(figure, out / "rlink-outage.svg")


def draw(known: Sequence[Known], document: Mapping[str, Any], out: Path) -> None:
    """Every plot that there is something for."""
    if document["tasks"]:
        curves(known, document, out)
    harm(known, document, out)
    links(document, out)
    outages(known, out)
