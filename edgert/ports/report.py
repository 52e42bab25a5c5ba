"""The report of a run: `report.json`, and one self-contained page with its figures.

Only this file knows matplotlib. It draws what the document says and judges nothing.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgert.errors import StoreError, UsageError
from edgert.ports import adaptation
from edgert.ports.adaptation import BLUE as _BLUE
from edgert.ports.adaptation import GREEN as _GREEN
from edgert.ports.adaptation import GREY as _GREY
from edgert.ports.adaptation import ORANGE as _ORANGE
from edgert.ports.adaptation import RED as _RED
from edgert.ports.adaptation import SHADES as _SHADES
from edgert.ports.screen import amount, binned, number, percent
from edgert.ports.store import write_atomic

RUNNING_MEAN = 10
LEARNING_BINS = 24
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a939c",
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff; margin: 2rem auto; max-width: 1080px;
  padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .2rem; }} h2 {{ font-size: 1.1rem; margin: 2.2rem 0 .4rem; }}
p {{ margin: .2rem 0 .8rem; }} .quiet {{ color: #66717c; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid #e6e9ec; vertical-align: top; }}
th {{ font-weight: 600; color: #66717c; }} td.n {{ font-variant-numeric: tabular-nums; }}
.ok {{ color: #23774a; font-weight: 600; }} .no {{ color: #c0392b; font-weight: 600; }}
figure {{ margin: 0; }} svg {{ width: 100%; height: auto; }} svg text {{ font-family: system-ui, sans-serif; }}
.wide {{ overflow-x: auto; }}
details pre {{ background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: 12px; }}
</style></head><body>
{body}
</body></html>
"""

Draw = Callable[[Any, Mapping[str, Any]], None]


def write(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write `report.json` and `report.html`.

    Args:
        folder: made if missing.
        document: of `programs.demo`: `title`, `summary`, `checks`, `facts`, `devices` with `series`, `returns`, `swaps`
            and `totals`, perhaps `adaptation`, `teachers`, `events`; all times in it count in seconds from its start.

    Returns:
        The page's path.

    Raises:
        StoreError: the folder cannot be written.
        UsageError: matplotlib is not installed; the JSON is written all the same.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the report's folder {folder}: {error}") from error
    write_atomic(folder / "report.json", (json.dumps(document, indent=1) + "\n").encode(), mode=0o644)
    page = folder / "report.html"
    write_atomic(page, render(document).encode(), mode=0o644)
    return page


def render(document: Mapping[str, Any]) -> str:
    """The page.

    Raises:
        UsageError: matplotlib is not installed.
    """
    devices: Mapping[str, Mapping[str, Any]] = document["devices"]
    figures: list[tuple[str, str, Draw]] = [
        (
            "Return",
            "One dot an episode, its running mean, and a line where a network trained on the device took over.",
            _returns,
        ),
        (
            "Learning",
            "Mean return and its quartiles over time, how far the teacher was trusted, and where networks took over or "
            "were rolled back, with the generation that acts from there on.",
            _learning,
        ),
        ("Decisions", "Decisions a second against the nominal rate, and the ticks missed so far.", _decisions),
        ("Exits", "Which exit answered, for each network that acted.", _exits),
        ("Latency", "Observation in hand to action chosen, over the last minute.", _latency),
        ("Teacher", "Observations asked and answered, and the bytes it took.", _teacher),
        ("Training", "Gradient steps and the exponential mean of the loss.", _training),
        ("CPU and battery", "CPU of each process as a share of one core, and the (simulated) battery.", _cost),
    ]
    parts = [f"<h1>{html.escape(document['title'])}</h1>", f'<p class="quiet">{html.escape(document["summary"])}</p>']
    parts.append(_checks(document["checks"]))
    parts.append("<h2>In figures</h2>" + _totals(devices))
    if told := document.get("adaptation"):
        parts.append(f'<h2>Adaptation</h2><p class="quiet">{html.escape(told["told"])}</p>')
        parts += [f"<figure>{adapted(columns, name)}</figure>" for name, columns in told["devices"].items()]
    for title, caption, draw in figures:
        parts.append(f'<h2>{title}</h2><p class="quiet">{caption}</p><figure>{_svg(devices, draw)}</figure>')
    if document.get("teachers"):
        parts.append("<h2>Teachers</h2>" + _table(("teacher", "figures"), document["teachers"].items()))
    parts.append("<h2>How it was run</h2>" + _table(("what", "value"), document["facts"].items()))
    shown = document["events"][-200:]
    rows = [(number(e["t_s"], " s"), e["device"], e["name"], json.dumps(e["detail"])) for e in shown]
    parts.append(
        f"<h2>Events</h2><details><summary>{len(document['events'])} events; the last {len(rows)}</summary>"
        f'<div class="wide">{_table(("at", "device", "event", "detail"), rows)}</div></details>'
    )
    return _PAGE.format(title=html.escape(document["title"]), body="\n".join(parts))


def board_page(document: Mapping[str, Any]) -> str:
    """The page of one simulated board.

    Args:
        document: of `edgert sim board`.

    Raises:
        UsageError: matplotlib is not installed.
    """
    title = f"{document['board']} through {document['scenario']}"
    facts = {key: document[key] for key in ("bundle", "seed", "hours", "simulated")}
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<figure>{adapted(document['columns'])}</figure>",
        "<h2>In figures</h2>" + _table(("what", "value"), document["summary"].items()),
        "<h2>How it was run</h2>" + _table(("what", "value"), facts.items()),
    ]
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _checks(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td class='{'ok' if check['passed'] else 'no'}'>{'pass' if check['passed'] else 'FAIL'}</td>"
        f"<td>{html.escape(check['name'])}</td><td>{html.escape(check['why'])}</td></tr>"
        for check in checks
    )
    return f"<table><tr><th></th><th>check</th><th>measured</th></tr>{rows}</table>"


def _table(head: Sequence[str], rows: Any) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td class='n'>{html.escape(text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def text(value: object) -> str:
    """Any plain value in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(each)}" for key, each in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _totals(devices: Mapping[str, Mapping[str, Any]]) -> str:
    """One column a device."""
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("decisions a second", lambda t: f"{number(t['decisions_hz'], digits=2)} of {number(t['nominal_hz'])}"),
        ("ticks missed", lambda t: f"{t['missed']:,} of {t['ticks']:,} ({percent(t['missed_frac'], 3)})"),
        ("process start to first action", lambda t: number(t["first_action_s"], " s", 2)),
        ("latency p50 / p99", lambda t: f"{_ms(t['p50_s'])} / {_ms(t['p99_s'])}"),
        ("episodes", lambda t: f"{t['episodes']:,}"),
        (
            "return, first and last third",
            lambda t: f"{number(t['return_first'], digits=2)} → {number(t['return_last'], digits=2)}",
        ),
        ("gradient steps", lambda t: f"{t['steps']:,.0f}"),
        (
            "observations asked / answered / joined",
            lambda t: f"{t['asked']:,.0f} / {t['answered']:,.0f} / {t['joined']:,.0f}",
        ),
        ("bytes to / from teachers", lambda t: f"{amount(t['ask_bytes'])} / {amount(t['answer_bytes'])}"),
        (
            "networks offered / accepted / swapped in / rolled back",
            lambda t: f"{t['candidates']:,.0f} / {t['accepted']:,.0f} / {t['swaps']} / {t.get('rolled_back', 0)}",
        ),
        ("events recorded / arrived", lambda t: f"{text(t['events_recorded'])} / {t['events_arrived']}"),
        ("resident memory, at most", lambda t: ", ".join(f"{k} {amount(v)}" for k, v in t["rss_bytes"].items())),
    ]
    return _table(("", *devices), ((name, *(show(d["totals"]) for d in devices.values())) for name, show in rows))


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.2f} ms"


def _svg(devices: Mapping[str, Mapping[str, Any]], draw: Draw) -> str:
    """One panel a device, side by side, as one inline picture."""

    def fill(figure: Any) -> None:
        panels = figure.subplots(1, max(1, len(devices)), sharey=len(devices) > 1, squeeze=False)[0]
        for panel, (name, device) in zip(panels, devices.items(), strict=False):
            panel.set_title(name, loc="left", fontsize=9, color="#66717c")
            panel.set_xlabel("seconds")
            draw(panel, device)
        # Not before everything is drawn: a limit set earlier would also fix the upper end.
        for axes in figure.axes:
            if axes.get_autoscaley_on():
                axes.set_ylim(bottom=0)

    return picture(fill, 2.9)


def picture(fill: Callable[[Any], None], height_in: float) -> str:
    """An inline SVG as wide as a page.

    Args:
        fill: draws on the figure that it is given.
        height_in: of the figure, inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("the page needs matplotlib: pip install 'edgert[demo]'; report.json is complete") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10.5, height_in), layout="constrained")
        fill(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]


def adapted(columns: adaptation.Columns, title: str = "") -> str:
    """An inline SVG of how one device adapted.

    Raises:
        UsageError: matplotlib is not installed.
    """
    return picture(lambda figure: adaptation.draw(figure, columns, title), adaptation.height(columns))


def _legend(panel: Any, *others: Any) -> None:
    handles, labels = panel.get_legend_handles_labels()
    for other in others:
        more, names = other.get_legend_handles_labels()
        handles, labels = handles + more, labels + names
    if handles:
        panel.legend(handles, labels, loc="best")


def _second(panel: Any, label: str, colour: str) -> Any:
    """A right-hand axis."""
    other = panel.twinx()
    other.grid(visible=False)
    other.spines["right"].set_visible(True)
    other.set_ylabel(label, color=colour)
    other.tick_params(axis="y", labelcolor=colour)
    return other


def _lines(panel: Any, series: Mapping[str, Any], name: str, **style: Any) -> None:
    points = [(t, v) for t, v in zip(series["t_s"], series[name], strict=True) if v is not None]
    if points:
        panel.plot(*zip(*points, strict=True), **style)


def _rates(series: Mapping[str, Any], name: str, clock: str = "t_s", window: int = 5) -> list[tuple[float, float]]:
    """(time, growth per second) of a counter, over a few samples; nothing across a restart."""
    points = [(t, v) for t, v in zip(series[clock], series[name], strict=True) if v is not None]
    spans = [(points[max(0, i - window)], point) for i, point in enumerate(points) if i]
    return [(t1, (v1 - v0) / (t1 - t0)) for (t0, v0), (t1, v1) in spans if t1 > t0 and v1 >= v0]


def _swaps(panel: Any, device: Mapping[str, Any]) -> None:
    """A line where another network took over; back to a former one in red."""
    labels = {"new network": _GREEN, "rolled back": _RED}
    acting = 0
    for swap in device["swaps"]:
        generation = swap.get("generation", acting + 1)
        if generation == acting or not swap.get("ok", True):
            continue  # taken up again by an actor that was restarted
        label = "new network" if generation > acting else "rolled back"
        style = "-" if generation > acting else "--"
        shown = label if label in labels else None
        colour = labels.pop(label, _GREEN if generation > acting else _RED)
        panel.axvline(swap["t_s"], color=colour, linewidth=1, alpha=0.8, linestyle=style, label=shown)
        acting = generation


def _returns(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("return")
    _swaps(panel, device)
    if device["returns"]:
        times, values = zip(*device["returns"], strict=True)
        panel.plot(times, values, "o", color=_BLUE, markersize=3, alpha=0.45, label="episode")
        means = [
            sum(values[max(0, i + 1 - RUNNING_MEAN) : i + 1]) / min(i + 1, RUNNING_MEAN) for i in range(len(values))
        ]
        panel.plot(times, means, color=_BLUE, linewidth=1.8, label=f"mean of {RUNNING_MEAN}")
    _legend(panel)


def _learning(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("return")
    _swaps(panel, device)
    times = device["series"]["t_s"]
    elapsed_s = max([t for t, _ in device["returns"]] + [times[-1] if times else 0.0, 1.0])
    # Minutes where there are enough of them to see a curve, shorter bins in a short run.
    curve = binned(device["returns"], min(60.0, elapsed_s / LEARNING_BINS))
    if curve:
        middles = [t for t, _ in curve]
        low, high, mean = (list(column) for column in zip(*(figures for _, figures in curve), strict=True))
        panel.fill_between(middles, low, high, color=_BLUE, alpha=0.15, linewidth=0, label="middle half")
        panel.plot(middles, mean, color=_BLUE, linewidth=1.8, marker="o", markersize=3, label="mean return")
    top, generation = panel.get_xaxis_transform(), 0
    for swap in device["swaps"]:
        if swap.get("ok", True) and swap.get("generation", 0) != generation:
            generation = swap["generation"]
            panel.text(swap["t_s"], 1.0, f" {generation}", transform=top, va="top", fontsize=7, color=_GREY)
    if any(value is not None for value in device["series"].get("trust", [])):
        other = _second(panel, "trust", _ORANGE)
        _lines(other, device["series"], "trust", color=_ORANGE, linewidth=1.2, label="trust in the teacher")
        other.set_ylim(0, 1.05)
        _legend(panel, other)
    else:
        _legend(panel)
    if legend := panel.get_legend():
        legend.set_frame_on(True)
        legend.get_frame().set(alpha=0.85, edgecolor="none")


def _decisions(panel: Any, device: Mapping[str, Any]) -> None:
    nominal_hz = device["totals"]["nominal_hz"]
    panel.set_ylabel("decisions / s")
    panel.axhline(nominal_hz, color=_GREY, linestyle="--", linewidth=1, label="nominal")
    if points := _rates(device["series"], "decided", "reported_s"):
        panel.plot(*zip(*points, strict=True), color=_BLUE, linewidth=1.5, label="decisions / s")
    panel.set_ylim(0, nominal_hz * 1.25)
    other = _second(panel, "missed", _RED)
    _lines(other, device["series"], "missed", color=_RED, linewidth=1.2, label="missed, in all")
    other.set_ylim(0, max(10.0, other.get_ylim()[1]))
    _legend(panel, other)


def _exits(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_xlabel("network (0 is the installed one)")
    panel.set_ylabel("share of decisions")
    taken: dict[int, list[int]] = {}
    rows = list(zip(device["series"]["generation"], device["series"]["exits"], strict=True))
    rows = [row for row in rows if row[1]]
    for (_, before), (generation, after) in pairwise([(0, []), *rows]):
        before = before if len(before) == len(after) and sum(before) <= sum(after) else [0] * len(after)
        counts = taken.setdefault(generation, [0] * len(after))
        for k, (old, new) in enumerate(zip(before, after, strict=True)):
            counts[k] += new - old
    shown = {g: counts for g, counts in sorted(taken.items()) if sum(counts)}
    floor = [0.0] * len(shown)
    for k in range(max(map(len, shown.values()), default=0)):
        shares = [counts[k] / sum(counts) for counts in shown.values()]
        panel.bar(range(len(shown)), shares, bottom=floor, color=_SHADES[min(k, 3)], width=0.7, label=f"exit {k}")
        floor = [low + share for low, share in zip(floor, shares, strict=True)]
    panel.set_xticks(range(len(shown)), [str(g) for g in shown])
    panel.set_ylim(0, 1)
    panel.set_xlim(-0.6, max(4, len(shown)) - 0.4)
    if shown:
        panel.legend(loc="lower right", ncols=4, bbox_to_anchor=(1, 1), borderaxespad=0.1)


def _latency(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("ms")
    for name, colour, label in (("p50_s", _BLUE, "p50"), ("p99_s", _ORANGE, "p99")):
        milli = {"t_s": device["series"]["t_s"], name: [v if v is None else v * 1e3 for v in device["series"][name]]}
        _lines(panel, milli, name, color=colour, linewidth=1.5, label=label)
    _legend(panel)


def _teacher(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("observations")
    for name, colour in (("asked", _GREY), ("answered", _BLUE), ("joined", _GREEN)):
        _lines(panel, device["series"], name, color=colour, linewidth=1.5, label=name)
    other = _second(panel, "KiB", _ORANGE)
    for name, label, style in (("ask_bytes", "bytes up", "-"), ("answer_bytes", "bytes down", ":")):
        kibi = {"t_s": device["series"]["t_s"], name: [v / 1024 for v in device["series"][name]]}
        _lines(other, kibi, name, color=_ORANGE, linewidth=1.2, linestyle=style, label=label)
    _legend(panel, other)


def _training(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("gradient steps")
    _lines(panel, device["series"], "steps", color=_BLUE, linewidth=1.5, label="steps")
    other = _second(panel, "loss", _ORANGE)
    _lines(other, device["series"], "loss", color=_ORANGE, linewidth=1.2, label="loss")
    _swaps(panel, device)
    _legend(panel, other)


def _cost(panel: Any, device: Mapping[str, Any]) -> None:
    panel.set_ylabel("% of a core")
    for name, colour in (("supervisor", _GREY), ("actor", _BLUE), ("trainer", _GREEN)):
        points = _rates(device["series"], f"cpu_s.{name}")
        if points:
            panel.plot([t for t, _ in points], [100 * v for _, v in points], color=colour, linewidth=1.5, label=name)
    other = _second(panel, "battery %", _ORANGE)
    percentages = [v if v is None else 100 * v for v in device["series"]["battery_frac"]]
    _lines(
        other, {"t_s": device["series"]["t_s"], "b": percentages}, "b", color=_ORANGE, linewidth=1.2, label="battery"
    )
    other.set_ylim(0, 100)
    _legend(panel, other)
