"""`edgert offload show`: where an inference would run now, with which model, why, and what the others would cost."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgert.cli import OK
from edgert.client.infer import Inference
from edgert.errors import ConfigError
from edgert.ports.process import load_config
from edgert.ports.screen import spark
from edgert.ports.store import write_atomic

_OBSTACLES = {
    "floor": "less accurate than asked for",
    "failed": "failed here",
    "deadline": "too slow for the deadline",
    "link-down": "no link",
    "nobody-there": "no node there",
    "not-offered": "not offered there",
    "bytes": "over the byte budget",
    "busy": "the node refused lately",
}
"""What keeps a choice from being taken, in words; the names are in `--json`."""
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_SHOWN = 6
"""Choices that a plot names; what was taken seldomer is drawn as one."""


def main(argv: list[str]) -> int:
    """Show what the chooser of this device would do now, and what it has done.

    Returns:
        0; 75 when no chooser answers, 78 when none is configured.

    Raises:
        ConfigError: the configuration cannot be read, or offloads nothing.
        LinkError: nobody answers at the chooser's socket.
        StoreError: the plot cannot be written.
    """
    parser = argparse.ArgumentParser(prog="edgert offload", description="What the chooser of this device does.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="the present choice, why, and what it costs")
    show.add_argument("--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(%(default)s)")
    show.add_argument("--json", action="store_true", help="everything, for programs")
    show.add_argument("--plot", type=Path, metavar="FILE", help="draw learning and choices over time into an SVG file")
    args = parser.parse_args(argv)
    config = load_config(args.config)
    if not config.offload.enabled:
        raise ConfigError(f"{args.config}: offload.enabled is false: nothing is offloaded here")
    with Inference(config.offload.socket, 5.0) as inference:
        shown = inference.show()
    if args.plot is not None:
        write_atomic(args.plot, plot(shown["windows"]).encode(), 0o644)
    print(json.dumps(shown, indent=2) if args.json else text(shown))
    return OK


def text(shown: Mapping[str, Any]) -> str:
    """For people."""
    best = next((each for each in shown["choices"] if each["best"]), None)
    lines = [
        f"task      {shown['task']}, {'the least energy' if shown['goal'] == 'energy' else 'the shortest time'}, "
        f"accuracy at least {shown['floor_frac']:.1%}, within {_ms(shown['deadline_s'])}",
        f"now       {_named(best) if best else 'nothing may answer'}",
        f"last      {shown['choice'] or 'nothing was asked yet'}" + (f": {shown['why']}" if shown["why"] else ""),
        f"link      {'up' if shown['up'] else 'down'}, round trip {_ms(shown['state']['users'][0]['rtt_s'])}, "
        f"{shown['left_bytes'] / 1e6:.1f} MB may be sent now",
        *(f"node      {name}: busy {_share(load['cpu_frac'])}" for name, load in sorted(shown["nodes"].items())),
        f"since     {shown['requests']} requests, {shown['fell_back']} fell back on a model here, "
        f"{shown['late']} late, "
        f"{shown['refused']} refused, {shown['bytes'] / 1e6:.1f} MB, {1e3 * shown['decision_s']:.2f} ms a decision",
        f"learned   from {shown['learned']} answers, {shown['changes']} changes noticed",
    ]
    if shown["windows"]:
        lines.append(f"times     {spark([each['response_s'] for each in shown['windows']])}")
    lines += ["", f"  {'model':<22} {'where':<7} {'accuracy':>9} {'expected':>10} {'energy':>9} {'sent':>9}"]
    for each in sorted(shown["choices"], key=lambda each: (bool(each["obstacle"]), each["expected_s"] or 0.0)):
        told = "best now" if each["best"] else _OBSTACLES.get(each["obstacle"], each["obstacle"])
        lines.append(
            f"{'*' if each['best'] else ' '} {each['variant']:<22} {each['place']:<7} {each['accuracy_frac']:>8.1%}"
            f"{' ' if each['measured'] else 'q'} {_ms(each['expected_s']):>10} {each['joules']:>7.3f} J "
            f"{each['bytes'] / 1e3:>6.1f} kB  {told}".rstrip()
        )
    if not all(each["measured"] for each in shown["choices"]):
        lines.append("\n  q: quoted, not measured: " + "; ".join(sorted(_sources(shown["choices"]))))
    return "\n".join(lines)


def _named(choice: Mapping[str, Any]) -> str:
    return f"{choice['variant']} at {choice['place']}, {_ms(choice['expected_s'])} expected"


def _sources(choices: Sequence[Mapping[str, Any]]) -> set[str]:
    return {each["source"] for each in choices if not each["measured"]}


def _ms(value_s: float | None) -> str:
    return "unknown" if value_s is None else f"{1e3 * value_s:.1f} ms"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def plot(windows: Sequence[Mapping[str, Any]]) -> str:
    """Response times, accuracy and choices over the requests, as an SVG file.

    Raises:
        ConfigError: nothing was answered yet.
        UsageError: matplotlib is not installed.
    """
    from edgert.ports.report import picture

    if not windows:
        raise ConfigError("nothing was asked yet: there is nothing to draw")
    taken: Counter[str] = Counter()
    for window in windows:
        taken.update(window["choices"])
    named = [name for name, _ in taken.most_common(_SHOWN)]
    x, total = [], 0
    for window in windows:
        total += window["requests"]
        x.append(total)

    def fill(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(x, [1e3 * each["response_s"] for each in windows], color=COLOURS[0], label="mean of a window")
        above.plot(x, [1e3 * each["worst_s"] for each in windows], color=COLOURS[7], lw=0.8, label="the longest")
        above.set_ylabel("response [ms]")
        above.set_ylim(bottom=0)
        above.legend(loc="lower right", frameon=True)
        right = above.twinx()
        right.plot(x, [100 * each["accuracy_frac"] for each in windows], color=COLOURS[2], lw=0.8)
        right.set_ylabel("accuracy [%]", color=COLOURS[2])
        right.set_ylim(max(0.0, 100 * min(each["accuracy_frac"] for each in windows) - 10), 100)
        shares = [[100 * each["choices"].get(name, 0) / each["requests"] for each in windows] for name in named]
        others = [max(0.0, 100 - sum(column)) for column in zip(*shares, strict=True)]
        below.stackplot(x, *shares, others, labels=[*named, "others"], colors=[*COLOURS[: len(named)], "#dddddd"])
        below.set_ylabel("choices [%]")
        below.set_xlabel("requests")
        below.set_ylim(0, 100)
        below.legend(loc="lower left", fontsize="small", ncols=2, frameon=True)

    return picture(fill, 5.0)
