"""How a device adapted, as a picture: what was scarce above, what it did about it in the middle, and why below.

Draws on a figure it is given, so that `report` stays the only file that knows matplotlib. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

BLUE, ORANGE, GREEN, RED, GREY = "#2f6db5", "#d9822b", "#3a8f5c", "#c0392b", "#9aa3ad"
SHADES = ("#a8c8ea", "#5b95d1", "#24568f", "#12304f")
Columns = Mapping[str, Sequence[Any]]
"""Name -> values, all as long as `t_s`; None where unknown, and a column may be missing. `why` holds maps from a limit
to its reason, `exits` the share of decisions of each exit."""
_HOUR_S, _MINUTE_S = 3600.0, 60.0


def reasons(columns: Columns) -> dict[str, list[tuple[float, float]]]:
    """When each reason held: name -> (from, to) in seconds, in the order of their first appearance."""
    found: dict[str, list[tuple[float, float]]] = {}
    times, whys = columns["t_s"], columns.get("why", ())
    for (begin_s, why), (end_s, _) in pairwise(zip(times, whys, strict=False)):
        for reason in dict.fromkeys((why or {}).values()):
            if reason == "ok":
                continue
            spans = found.setdefault(reason, [])
            if spans and spans[-1][1] >= begin_s:
                spans[-1] = spans[-1][0], end_s
            else:
                spans.append((begin_s, end_s))
    return found


def height(columns: Columns) -> float:
    """Inches that `draw` needs."""
    return sum(size for size, _ in _panels(columns)) + 0.6


def draw(figure: Any, columns: Columns, title: str = "") -> None:
    """Draw one device.

    Args:
        figure: of matplotlib, as wide as wanted and `height` high.
        columns: what it measured and did.
        title: above it.
    """
    panels = _panels(columns)
    heights = [size for size, _ in panels]
    found = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights})
    span_s = max(columns["t_s"], default=0.0)
    unit_s, unit = 1.0, "seconds"
    if span_s > 600:
        unit_s, unit = (_HOUR_S, "hours") if span_s > 3 * _HOUR_S else (_MINUTE_S, "minutes")
    times = [t_s / unit_s for t_s in columns["t_s"]]
    for (_, drawn), (panel,) in zip(panels, found, strict=True):
        drawn(panel, columns, times, unit_s)
    if title:
        found[0][0].set_title(title, loc="left", fontsize=9, color="#66717c")
    found[-1][0].set_xlabel(unit)
    if times:
        found[-1][0].set_xlim(0, times[-1] or 1.0)


_Panel = Callable[[Any, Columns, Sequence[float], float], None]


def _panels(columns: Columns) -> list[tuple[float, _Panel]]:
    found: list[tuple[float, _Panel]] = []
    if _known(columns, "temp_c"):
        found.append((1.5, _heat))
    if _known(columns, "battery_frac"):
        found.append((1.3, _charge))
    found.append((1.3, _load))
    if _known(columns, "rtt_s"):
        found.append((1.3, _link))
    found.append((1.5, _decisions))
    found.append((1.3, _training))
    named = len(reasons(columns))
    if named:
        found.append((0.35 + 0.2 * named, _why))
    return found


def _known(columns: Columns, name: str) -> bool:
    return any(value is not None for value in columns.get(name, ()))


def _line(panel: Any, columns: Columns, times: Sequence[float], name: str, factor: float = 1.0, **style: Any) -> None:
    values = [None if value is None else factor * value for value in columns.get(name, ())]
    if any(value is not None for value in values):
        # None becomes a gap.
        panel.plot(times, [float("nan") if value is None else value for value in values], **style)


def _finish(panel: Any, *others: Any) -> None:
    """One legend beside the panel, for all its axes: curves fill the panel itself."""
    handles, labels = panel.get_legend_handles_labels()
    for other in others:
        more, names = other.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    if handles:
        panel.legend(handles, labels, loc="center left", bbox_to_anchor=(1.09, 0.5), borderaxespad=0.0)


def _right(panel: Any, label: str, colour: str) -> Any:
    other = panel.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    other.set_ylabel(label, color=colour)
    other.tick_params(axis="y", labelcolor=colour)
    return other


def _heat(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("°C")
    _line(panel, columns, times, "temp_c", color=RED, linewidth=1.4, label="chip")
    _line(panel, columns, times, "ambient_c", color=ORANGE, linewidth=1.1, linestyle="--", label="air")
    _line(panel, columns, times, "trip_c", color=GREY, linewidth=0.9, linestyle=":", label="throttles from")
    if not _known(columns, "freq_frac"):
        return _finish(panel)
    other = _right(panel, "clock %", BLUE)
    _line(other, columns, times, "freq_frac", 100, color=BLUE, linewidth=1.1, label="clock")
    other.set_ylim(0, 105)
    return _finish(panel, other)


def _charge(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("charge %")
    _line(panel, columns, times, "battery_frac", 100, color=GREEN, linewidth=1.4, label="charge")
    panel.set_ylim(0, 105)
    other = _right(panel, "W", ORANGE)
    _line(other, columns, times, "power_w", color=ORANGE, linewidth=0.9, label="power")
    other.set_ylim(bottom=0)
    _shade(panel, columns, times, "charger", True, GREEN, "charger")
    _finish(panel, other)


def _load(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("load %")
    _line(panel, columns, times, "load_frac", 100, color=GREY, linewidth=1.1, label="all cores")
    panel.set_ylim(0, 105)
    if not any(columns.get("hog_cores", ())):
        return _finish(panel)
    other = _right(panel, "cores", RED)
    _line(other, columns, times, "hog_cores", color=RED, linewidth=0.9, label="others want")
    other.set_ylim(bottom=0)
    return _finish(panel, other)


def _link(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("round trip, ms")
    _line(panel, columns, times, "rtt_s", 1000, color=BLUE, linewidth=1.2, label="round trip")
    _line(
        panel, columns, times, "bare_rtt_s", 1000, color=GREY, linewidth=1.0, linestyle="--", label="of the bare link"
    )
    milli = [1000 * value for value in (*columns["rtt_s"], *columns.get("bare_rtt_s", ())) if value]
    if milli:
        panel.set_yscale("log")
        # Whole decades, so that there are at least two labels and none in between.
        low, high = math.floor(math.log10(min(milli))), math.floor(math.log10(max(milli))) + 1
        panel.set_ylim(10.0**low, 10.0**high)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        panel.yaxis.set_minor_formatter(lambda value, _: "")
    _shade(panel, columns, times, "link_up", False, RED, "link down")
    if not _known(columns, "teacher_bytes_per_s"):
        return _finish(panel)
    other = _right(panel, "KiB/s", ORANGE)
    _line(other, columns, times, "teacher_bytes_per_s", 1 / 1024, color=ORANGE, linewidth=1.1, label="may ask")
    other.set_ylim(bottom=0)
    return _finish(panel, other)


def _decisions(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("decisions %")
    rows = [row or [] for row in columns.get("exits", ())]
    depth = max((len(row) for row in rows), default=0)
    if depth:
        padded = [[100 * value for value in row] + [0.0] * (depth - len(row)) for row in rows]
        panel.stackplot(
            times,
            list(zip(*padded, strict=True)),
            colors=[SHADES[min(k, 3)] for k in range(depth)],
            labels=[f"exit {k}" for k in range(depth)],
            step="post",
        )
    panel.set_ylim(0, 105)
    if not _known(columns, "return_frac"):
        return _finish(panel)
    other = _right(panel, "return", ORANGE)
    _line(other, columns, times, "return_frac", color=ORANGE, linewidth=1.3, label="return of\nthis setting")
    other.set_ylim(bottom=0)
    return _finish(panel, other)


def _training(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    panel.set_ylabel("steps / s")
    _line(panel, columns, times, "train_steps_hz", color=GREY, linestyle="--", linewidth=1.1, label="may train")
    _line(panel, columns, times, "steps_hz", color=GREEN, linewidth=1.3, label="trains")
    panel.set_ylim(bottom=0)
    _finish(panel)


def _why(panel: Any, columns: Columns, times: Sequence[float], unit_s: float) -> None:
    found = reasons(columns)
    for row, spans in enumerate(found.values()):
        bars = [(begin_s / unit_s, (end_s - begin_s) / unit_s) for begin_s, end_s in spans]
        panel.broken_barh(bars, (row - 0.35, 0.7), color=BLUE, linewidth=0)
    panel.set_yticks(range(len(found)), list(found))
    panel.set_ylim(len(found) - 0.4, -0.6)
    panel.grid(visible=False, axis="y")


def _shade(
    panel: Any, columns: Columns, times: Sequence[float], name: str, when: bool, colour: str, label: str
) -> None:
    flags = [value is when for value in columns.get(name, ())]
    begun: float | None = None
    shown: str | None = label
    for at, on in [*zip(times, flags, strict=False), (times[-1] if times else 0.0, False)]:
        if on and begun is None:
            begun = at
        elif not on and begun is not None:
            panel.axvspan(begun, at, color=colour, alpha=0.12, linewidth=0, label=shown)
            begun, shown = None, None
