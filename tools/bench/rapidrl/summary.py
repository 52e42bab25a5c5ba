"""The result file: what all tasks and seeds say together, and how it stands to what was asked for."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from edgert.ports.runtime.choice import cpu_name
from tools.bench.rapidrl import choice
from tools.bench.rapidrl.evaluation import Book, Record
from tools.bench.rapidrl.plan import TASKS
from tools.bench.rapidrl.statistics import F64, Sample, gains, interval, mean_known, over_seeds

DISTILLED = ("small20", "small34", "small55")
GROUPS = ("atari", "drone", "minatar")
WANTED: dict[str, tuple[float, float, bool]] = {
    # figure: what the paper has, what is asked for, and whether more is better.
    "atari_ops_ratio": (0.34, 0.34, False),
    "atari_return_ratio": (0.88, 0.95, True),
    "atari_latency_ratio": (1.0, 0.5, False),
    "drone_ops_ratio": (0.25, 0.25, False),
    "drone_return_ratio": (0.91, 0.97, True),
    "drone_latency_ratio": (1.0, 0.4, False),
    "deepest_exit_latency_ratio": (1.10, 1.03, False),
    "frontier_min_gain_over_distilled": (0.0, 0.0, True),
}
HOW = {
    "return ratio": "(J - J_random) / (J_full - J_random), J_full of the int8 network without exits; pooled over seeds",
    "ops ratio": "edgert.nets.ops, mean over ticks, by that of the network without exits",
    "latency ratio": "median of the nested-If int8 graph by median of the int8 graph without exits, interleaved, hot",
    "intervals": (
        "95 %, percentile bootstrap over training seeds and episodes (pairs of calls for latency); with three training "
        "seeds they are too narrow, with one they say nothing about training"
    ),
    "drone": (
        "thresholds are chosen where they are judged, in other episodes; no network was trained in these places. "
        "How its exits are taught, and how wide the first is, was chosen there as well, by seed 0 in other episodes"
    ),
    "thresholds": (
        "the dearest setting within one standard error of the best on validation episodes, of those that cost at most "
        "0.97 of the limit there; judged on test episodes"
    ),
    "frontier gain": (
        "smallest difference of normalised return between 0.2 and 0.8 of the operations, from the cheapest distilled "
        "net on; straight lines between measured points, the network without exits ends the distilled nets' front; "
        "mean over Atari and drone tasks"
    ),
    "always-exit-k": "costs the trunk up to exit k and its head alone",
    "exits_of": "role whose network has the chosen setting: `judged` has the confidences that were taught apart",
    "random-exit": "takes every exit as often as the chosen setting did",
    "choice": (
        "what the first exit gives away by the full network's values, on held-out states of its own making, and in "
        "which order a score hands them to the last exit: auroc of disagreement; avoided regret over chance as a share "
        "of what the best order avoids; then returns, all scores and chance at one share of last exits, same episodes"
    ),
    "gap, entropy": "exits of the same network; thresholds proposed and validated as for the learnt confidence",
    "deepest": "nested-If graph with all early exits refused, against the graph without exits",
}


class Found(NamedTuple):
    """One task.

    Attributes:
        document: for the result file.
        draws: figure -> (draws,), to be averaged over tasks.
    """

    document: dict[str, Any]
    draws: dict[str, F64]


def figures(sample: Sample, name: str) -> dict[str, Any]:
    """Of one policy."""
    records = sample.of(name)
    ticks, held = (sum(np.sum(getattr(each, part), 0) for each in records) for part in ("exit_ticks", "held_ticks"))
    total = float(np.sum(ticks) + held)
    return {
        "ops_ratio": interval(sample.ops(name)),
        "return_ratio": interval(sample.normalised(name)),
        "return": interval(sample.returns(name), 3),
        "exit_share": [round(float(n) / total, 4) for n in np.atleast_1d(ticks)],
        "held_share": round(float(held) / total, 4),
        "episodes": sum(len(each.returns) for each in records),
        "seeds": len(records),
        "by_seed": [round(float(np.mean(each.returns)), 3) for each in records],
    }


def of_task(name: str, books: Mapping[int, Book], whole: int, exits: Sequence[int], rng: np.random.Generator) -> Found:
    """Everything of one task.

    Args:
        name: of the task.
        books: training seed -> what was played.
        whole: operations of the network without exits.
        exits: operations of an answer at each exit of the network with exits.
        rng: of the bootstrap.
    """
    task = TASKS[name]
    sample = Sample({seed: tested(book.records) for seed, book in books.items()}, whole, rng)
    policies = {policy: figures(sample, policy) for policy in sample.names}
    for exact in {"full-int8", "full-fp32"} & policies.keys():
        policies[exact]["ops_ratio"] = {"value": 1.0, "ci": [1.0, 1.0]}
    draws: dict[str, F64] = {}
    if "chosen" in policies:
        draws["ops_ratio"], draws["return_ratio"] = sample.ops("chosen"), sample.normalised("chosen")
    ours = sample.front([policy for policy in sample.names if policy.startswith("ours@")])
    at, above = gains(ours, sample.front(DISTILLED, with_full=True))
    if len(at):
        draws["frontier_min_gain"], draws["frontier_mean_gain"] = above.min(1), above.mean(1)
    measured = {seed: book.notes["latency"].value for seed, book in books.items() if "latency" in book.notes}
    for figure, part in (("latency_ratio", "hot"), ("paced_latency_ratio", "paced"), ("deepest_ratio", "deepest")):
        if measured:
            timed = [each[part] for each in measured.values()]
            values, drawn = ([each[name] for each in timed] for name in ("p50_ratio", "p50_ratio_draws"))
            draws[figure] = over_seeds(values, drawn, rng)
    document = {
        "env": task.env,
        "judged_in": task.arena,
        "max_ops_ratio": task.max_ops_frac,
        "seeds": sample.seeds,
        "floor_ops_ratio": round(exits[0] / whole, 4),
        "exit_ops_ratio": [round(cost / whole, 4) for cost in exits],
        "figures": {figure: interval(values) for figure, values in draws.items()},
        "policies": policies,
        "frontier_gain": {"ops_ratio": at.tolist(), "gain": above[0].round(4).tolist()},
        "latency": {seed: {part: shortened(each[part]) for part in each} for seed, each in measured.items()},
        "confidence": {
            seed: book.notes["confidence"].value for seed, book in books.items() if "confidence" in book.notes
        },
        "exits_of": {
            seed: book.records["chosen"].policy.role for seed, book in books.items() if "chosen" in book.records
        },
        "choice": choice.document(books, rng),
        "thresholds": {
            seed: book.records["chosen"].policy.operating.thresholds
            for seed, book in books.items()
            if "chosen" in book.records
        },
    }
    return Found(document, draws)


def shortened(timed: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement of latency without its draws."""
    return {name: value for name, value in timed.items() if name != "p50_ratio_draws"}


def tested(records: Mapping[str, Record]) -> dict[str, Record]:
    """Those that were played on the test episodes of all policies."""
    return {name: record for name, record in records.items() if not name.startswith(("validation ", "choice "))}


def together(found: Mapping[str, Found]) -> dict[str, Any]:
    """The `summary` of the result file: means over tasks, each with its interval and the worst task."""
    made: dict[str, Any] = {}

    def add(key: str, tasks: Sequence[str], figure: str, more_is_better: bool) -> None:
        known = [found[task].draws[figure] for task in tasks if figure in found[task].draws]
        stacked = np.stack(known) if known else np.full((1, 2), np.nan)
        worst = stacked.min(0) if more_is_better else stacked.max(0)
        for name, draws in ((key, mean_known(stacked, 0)), (f"{key}_{'min' if more_is_better else 'max'}", worst)):
            shown = interval(draws)
            made[name], made[f"{name}_ci"] = shown["value"], shown["ci"]

    of_group = {group: [name for name in found if TASKS[name].group == group] for group in GROUPS}
    for group, names in of_group.items():
        add(f"{group}_ops_ratio", names, "ops_ratio", False)
        add(f"{group}_return_ratio", names, "return_ratio", True)
        add(f"{group}_latency_ratio", names, "latency_ratio", False)
        add(f"{group}_paced_latency_ratio", names, "paced_latency_ratio", False)
    camera = of_group["atari"] + of_group["drone"]
    add("deepest_exit_latency_ratio", camera, "deepest_ratio", False)
    add("frontier_min_gain_over_distilled", camera, "frontier_min_gain", True)
    add("frontier_mean_gain_over_distilled", camera, "frontier_mean_gain", True)
    add("minatar_deepest_exit_latency_ratio", of_group["minatar"], "deepest_ratio", False)
    add("minatar_frontier_min_gain_over_distilled", of_group["minatar"], "frontier_min_gain", True)
    add("minatar_frontier_mean_gain_over_distilled", of_group["minatar"], "frontier_mean_gain", True)
    return made


def verdict(summary: Mapping[str, Any]) -> dict[str, str]:
    """Each figure that something is asked of: `beats`, `matches`, `misses` or `unknown`."""
    said = {}
    for key, (match, beat, more_is_better) in WANTED.items():
        value = summary.get(key)
        if value is None:
            said[key] = "unknown"
            continue
        sign = 1 if more_is_better else -1
        beaten = sign * value > sign * beat if key.startswith("frontier") else sign * value >= sign * beat
        said[key] = "beats" if beaten else "matches" if sign * value >= sign * match else "misses"
    return said


def machine() -> str:
    """What all of it ran on."""
    packages = [f"{name} {version(name)}" for name in ("numpy", "onnxruntime")]
    return ", ".join([platform.machine(), cpu_name(), f"Python {platform.python_version()}", *packages])


def table(document: Mapping[str, Any]) -> str:
    """For the terminal: tasks, then the summary against what is asked for."""

    def cell(figure: Mapping[str, Any]) -> str:
        if figure["value"] is None:
            return "-"
        low, high = figure["ci"]
        return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"

    lines = [f"{'task':<16}{'policy':<22}{'ops ratio':>24}{'return ratio':>26}{'return':>12}  seeds  episodes"]
    for name, task in document["tasks"].items():
        for policy, figures_ in task["policies"].items():
            mean = figures_["return"]["value"]
            lines.append(
                f"{name:<16}{policy:<22}{cell(figures_['ops_ratio']):>24}{cell(figures_['return_ratio']):>26}"
                f"{'-' if mean is None else format(mean, '.2f'):>12}  {figures_['seeds']:>5}  {figures_['episodes']:>8}"
            )
        for figure in (
            "latency_ratio",
            "paced_latency_ratio",
            "deepest_ratio",
            "frontier_min_gain",
            "frontier_mean_gain",
        ):
            if figure in task["figures"]:
                lines.append(f"{name:<16}{figure:<22}{cell(task['figures'][figure]):>24}")
        lines.append("")
    summary = document["summary"]
    for key, said in document["verdict"].items():
        value, ci = summary[key], summary[f"{key}_ci"]
        shown = "-" if value is None else f"{value:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]"
        match, beat, more = WANTED[key]
        sign = ">" if key.startswith("frontier") else ">=" if more else "<="
        asked = f"{sign} {beat:g}" if match == beat else f"{sign} {match:g}, better {sign} {beat:g}"
        lines.append(f"{key:<36}{shown:>26}   asked {asked:<24} {said}")
    lines += [f"missing: {why}" for why in document["missing"]]
    return "\n".join(lines)
