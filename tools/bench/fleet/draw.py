"""The plot of the result: a fleet comes back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


def storm(found: Mapping[str, Any], out: Path) -> None:
    """Sessions, births that were heard, and jobs still open, over the seconds since the broker was there again."""
    curve = found["curve"]
    matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 9})
    figure = Figure(figsize=(8, 3.2))
    axis = figure.subplots()
    at_s = [row[0] for row in curve]
    for column, label, colour in (
        (1, "sessions", "#1f6fb4"),
        (2, "births heard", "#3a8f5c"),
        (3, "jobs not known to have ended", "#c2571a"),
    ):
        axis.plot(at_s, [row[column] for row in curve], label=label, color=colour, lw=1.6)
    settled_s = found["storm_settled_s"]
    if settled_s is not None:
        axis.axvline(settled_s, color="#333333", lw=0.8, ls="--")
        axis.annotate(f" settled, {settled_s:.0f} s", (settled_s, 0.05 * found["wanted"]), fontsize=8)
    axis.set_xlabel("seconds since the broker is there again")
    axis.set_ylabel(f"of {found['wanted']} devices")
    axis.set_ylim(0, 1.08 * found["wanted"])
    axis.legend(frameon=False, loc="center right", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out / "fleet.svg", metadata={"Date": None})
