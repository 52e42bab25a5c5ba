"""From judged runs to figures: thresholds, ratios, interquartile means and bootstrap intervals.

Threshold of a task: half way from what cloning alone comes to (interquartile mean over seeds, last quarter of the run)
to what the teacher is worth. Where cloning is as good as the teacher, it is the teacher's own level less a tenth of the
way from the initial network; then cloning reaches it as well, a ratio to learning alone says nothing about more than
cloning, and `cloning_reaches` says so. A run has reached the threshold at the first network from which on two networks
on end are as good on the mean. One that never does counts with its whole length, so ratios to it are lower bounds and
`censored` counts them.

Ratios are quotients of interquartile means over seeds (Agarwal et al. 2021, arXiv 2108.13264); intervals are 95 %
percentiles of a bootstrap over seeds, each arm drawn by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tools.bench.rlink.judge import Judged
from tools.bench.rlink.live import Run
from tools.bench.rlink.plan import (
    ARMS,
    DISTILLATIONS,
    GATED,
    LINK_TASKS,
    LINKS,
    PERFECT,
    TASKS,
    TEACHERS,
    USUAL,
    WORST,
    Planned,
)

F64 = npt.NDArray[np.float64]
DRAWS = 2000
LAST_FRAC = 0.25
"""Share of a run whose networks make its final return."""
KEYS = (
    "convergence_median_x",
    "convergence_best_x",
    "steps_vs_best_distillation_x",
    "harm_worst_ratio",
    "async_step_rate_at_500ms",
    "bad_link_convergence_ratio",
)


class Known(NamedTuple):
    """A run that was planned, and what came of it."""

    plan: Planned
    judged: Judged


def iqm(values: F64, axis: int = -1) -> F64:
    """Mean of the middle half; the outermost of the rest count with the share of them that lies inside it."""
    ordered = np.sort(values, axis=axis)
    n = ordered.shape[axis]
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    weights = np.diff(edges) * 2
    return np.asarray(np.apply_along_axis(lambda row: float(row @ weights), axis, ordered))


def interval(draws: F64, digits: int = 3) -> dict[str, Any]:
    """The figure, which is the first draw, and its 95 % interval."""
    known = draws[1:][np.isfinite(draws[1:])]
    if not len(draws) or not np.isfinite(draws[0]) or not len(known):
        return {"value": None, "ci": None}
    low, high = np.percentile(known, (2.5, 97.5))
    return {"value": round(float(draws[0]), digits), "ci": [round(float(low), digits), round(float(high), digits)]}


def resampled(values: Sequence[float], rng: np.random.Generator) -> F64:
    """(DRAWS + 1,) interquartile means of the values and of resamples of them; NaN where there are none."""
    known = np.asarray(values, float)
    if not len(known):
        return np.full(DRAWS + 1, np.nan)
    slots = rng.integers(len(known), size=(DRAWS + 1, len(known)))
    slots[0] = np.arange(len(known))
    return iqm(known[slots])


class Reached(NamedTuple):
    """Where a run reached the threshold: transitions, seconds and bytes; its whole length when it did not."""

    steps: float
    wall_s: float
    wire_bytes: float
    censored: bool


def reached(judged: Judged, threshold: float) -> Reached:
    """First network from which on two on end are good enough on the mean."""
    points = judged.points
    for now, after in itertools.pairwise(points):
        if (now.value + after.value) / 2 >= threshold:
            return Reached(max(1, now.transitions), now.wall_s, now.wire_bytes, False)
    link = judged.run.link
    passed = link.get("up_wire_bytes", 0) + link.get("down_wire_bytes", 0)
    return Reached(judged.run.transitions, judged.run.wall_s, passed, True)


def final(judged: Judged) -> float:
    """Mean return over the transitions of the last quarter."""
    return _mean_from(judged, (1 - LAST_FRAC) * judged.run.transitions)


def life(judged: Judged) -> float:
    """Mean return over the transitions of the run: what an owner would have had of it with the link off."""
    return _mean_from(judged, 0.0)


def _mean_from(judged: Judged, first: float) -> float:
    """Of the networks that acted from a transition on, each with its share of the time."""
    at = np.array([point.transitions for point in judged.points] + [judged.run.transitions], float)
    values = np.array([point.value for point in judged.points])
    spans = np.diff(np.maximum(at, first))
    return float(spans @ values / spans.sum()) if spans.sum() > 0 else float(values[-1])


def step_rate(run: Run) -> float:
    """Transitions a second after the first tenth, in which processes start and exploration is free."""
    pace = np.array([(s, n) for s, n in run.pace if n >= run.transitions / 10] or run.pace, float)
    spent_s = pace[-1, 0] - pace[0, 0]
    return float((pace[-1, 1] - pace[0, 1]) / spent_s) if spent_s > 0 else float("nan")


class Task(NamedTuple):
    """The figures of a task, and the draws that figures over tasks are made of.

    Attributes:
        document: for the result file.
        ratio: steps to the threshold, of alone to ours.
        distilled: of the best distillation to ours.
        harm: teacher -> return, of learning alone; the smaller of the whole life's and the end's.
        harm_gated: the same, of learning alone behind the same gate: what the teacher itself does.
        gate: of learning alone behind the gate, of learning alone: what the gate costs.
    """

    document: dict[str, Any]
    ratio: F64
    distilled: F64
    harm: dict[str, F64]
    harm_gated: dict[str, F64]
    gate: F64 | None


def of(known: Sequence[Known], **where: Any) -> list[Judged]:
    """Those whose plan says so."""
    return [each.judged for each in known if all(getattr(each.plan, key) == value for key, value in where.items())]


def threshold_of(cloning: float, teacher: float, initial: float) -> tuple[float, bool]:
    """(threshold, whether cloning reaches it as well)."""
    if cloning < teacher - 0.05 * abs(teacher - initial):
        return (cloning + teacher) / 2, False
    return teacher - 0.1 * abs(teacher - initial), True


def of_task(name: str, known: Sequence[Known], levels: Mapping[str, float], rng: np.random.Generator) -> Task | None:
    """All figures of one task but those of the link; None while there is nothing to compare.

    Args:
        name: of the task.
        known: its runs of the parts convergence and harm, on the usual link and without faults.
        levels: return of each teacher, by the judge's rule.
        rng: where chance comes from.
    """
    good = [each for each in known if each.plan.link == USUAL and not each.plan.faults]
    arms = {arm: of(good, arm=arm, teacher="good") for arm in ARMS}
    if not arms["alone"] or "good" not in levels:
        return None
    initial = float(np.mean([judged.points[0].value for judged in arms["alone"]]))
    # Without cloning there is no plateau to lie above: the teacher's level has to do until there is.
    cloned = float(resampled([final(each) for each in arms["cloning"]], rng)[0])
    plateau = levels["good"] if np.isnan(cloned) else cloned
    threshold, cloning_reaches = threshold_of(plateau, levels["good"], initial)
    steps = {arm: [reached(each, threshold) for each in runs] for arm, runs in arms.items()}
    draws = {arm: resampled([each.steps for each in found], rng) for arm, found in steps.items()}
    document: dict[str, Any] = {
        "teacher": round(levels["good"], 3),
        "initial": round(initial, 3),
        "cloning_plateau": None if np.isnan(cloned) else round(cloned, 3),
        "threshold": round(threshold, 3),
        "cloning_reaches": cloning_reaches,
        "rtt_in_steps": None,
        "arms": {},
    }
    rates = [step_rate(each.run) for each in arms["ours"] or arms["alone"]]
    document["rtt_in_steps"] = round(2 * LINKS[USUAL].delay_s * float(np.nanmean(rates)), 1)
    for arm, runs in arms.items():
        if not runs:
            continue
        told: dict[str, Any] = {"seeds": len(runs), "censored": sum(each.censored for each in steps[arm])}
        for what in ("steps", "wall_s", "wire_bytes"):
            to = resampled([float(getattr(each, what)) for each in steps[arm]], rng)
            told[f"{what}_to_threshold"] = interval(to, 1)
            if what != "wire_bytes":
                alone = resampled([float(getattr(each, what)) for each in steps["alone"]], rng)
                told[f"{what}_vs_alone_x"] = interval(alone / to)
        if arms["alone-replay"]:
            told["steps_vs_alone_replay_x"] = interval(draws["alone-replay"] / draws[arm])
        told["final"] = interval(resampled([final(each) for each in runs], rng))
        told["gradient_steps"] = round(float(np.mean([each.run.status["trainer"]["steps"] for each in runs])))
        told["cpu_s"] = round(float(np.mean([each.run.cpu_s for each in runs])), 1)
        document["arms"][arm] = told
    ratio = draws["alone"] / draws["ours"]
    others = [draws[arm] for arm in DISTILLATIONS if arms[arm]]
    distilled = np.min(others, axis=0) / draws["ours"] if others else np.full(DRAWS + 1, np.nan)
    document["steps_vs_alone_x"], document["steps_vs_best_distillation_x"] = interval(ratio), interval(distilled)
    document["final_vs_teacher"] = interval(resampled([final(each) for each in arms["ours"]], rng) / levels["good"])
    # Returns may be negative, so shares are of the way up: from the initial networks, or from as deep as learning
    # alone fell now and then, since random weights may be lucky.
    low = np.percentile([point.value for judged in arms["alone"] for point in judged.points], 5)
    bottom = min(initial, float(low))
    harm, harm_gated = dict[str, F64](), dict[str, F64]()
    gated, gate = of(good, arm=GATED), None
    if gated:
        per = shares(gated, arms["alone"], bottom, rng)
        gate = np.min(per, axis=0)
        document["gate"] = {"seeds": len(gated), "life_vs_alone": interval(per[0]), "final_vs_alone": interval(per[1])}
    for teacher in TEACHERS:
        runs = of(good, arm="ours", teacher=teacher)
        if not runs:
            continue
        per = shares(runs, arms["alone"], bottom, rng)
        harm[teacher] = np.min(per, axis=0)
        told = {"level": levels.get(teacher), "seeds": len(runs)}
        told |= {"life_vs_alone": interval(per[0]), "final_vs_alone": interval(per[1])}
        if gated:
            per = shares(runs, gated, bottom, rng)
            harm_gated[teacher] = np.min(per, axis=0)
            told |= {"life_vs_gated": interval(per[0]), "final_vs_gated": interval(per[1])}
        document.setdefault("harm", {})[teacher] = told
    return Task(document, ratio, distilled, harm, harm_gated, gate)


def shares(runs: Sequence[Judged], others: Sequence[Judged], bottom: float, rng: np.random.Generator) -> list[F64]:
    """What runs come to as a share of what others do, over the whole life and at its end, from `bottom` up."""
    found = []
    for measure in (life, final):
        mine, theirs = (resampled([measure(each) - bottom for each in group], rng) for group in (runs, others))
        found.append(np.where(theirs > 0, mine / np.where(theirs > 0, theirs, 1), np.nan))
    return found


def of_links(known: Sequence[Known], thresholds: Mapping[str, float], rng: np.random.Generator) -> dict[str, Any]:
    """Step rates and convergence on every link; what came of outages."""
    found: dict[str, Any] = {"tasks": {}, "draws": {}}
    for task in LINK_TASKS:
        runs = [each for each in known if each.plan.task == task and each.plan.part == "link"]
        links: dict[str, Any] = {}
        draws: dict[str, tuple[F64, F64]] = {}
        for link in LINKS:
            ours, sync = of(runs, link=link, arm="ours"), of(runs, link=link, arm="sync")
            if not ours:
                continue
            rate = resampled([step_rate(each.run) for each in ours], rng)
            at = thresholds.get(task, np.nan)
            met = [reached(each, at) for each in ours]
            steps = resampled([each.steps for each in met], rng)
            draws[link] = rate, steps
            links[link] = {
                "seeds": len(ours),
                "steps_per_s": interval(rate, 1),
                "sync_steps_per_s": round(float(np.mean([step_rate(each.run) for each in sync])), 2) if sync else None,
                "steps_to_threshold": interval(steps, 0),
                "censored": sum(each.censored for each in met),
                "final": interval(resampled([final(each) for each in ours], rng)),
            }
        found["tasks"][task], found["draws"][task] = links, draws
    return found


def of_outages(known: Sequence[Known]) -> list[dict[str, Any]]:
    """Live returns before, during and after what went wrong: exploration and all, as it was."""
    found = []
    for plan, judged in known:
        if not plan.faults:
            continue
        at = plan.faults[0].at
        pace = judged.run.pace
        began_s = float(np.interp(at, [n for _, n in pace], [s for s, _ in pace]))
        lasts_s = max(plan.faults[0].lasts_s, 10.0)
        until = float(np.interp(began_s + lasts_s, [s for s, _ in pace], [n for _, n in pace]))
        spans = {"before": (0.5 * at, at), "during": (at, until), "after": (until, judged.run.transitions)}
        told: dict[str, Any] = {"task": plan.task, "seed": plan.seed, "faults": [each.kind for each in plan.faults]}
        for span, (first, last) in spans.items():
            returns = [value for seq, value in judged.run.episodes if first <= seq < last]
            told[span] = {"episodes": len(returns), "return": round(float(np.mean(returns)), 3) if returns else None}
        told["steps_during"] = round(until - at)
        told["longest_gap_s"] = round(max((b[0] - a[0] for a, b in itertools.pairwise(pace)), default=0.0), 2)
        told["final"] = round(final(judged), 3)
        found.append(told)
    return found


def summary(tasks: Mapping[str, Task], links: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the result file that this part is about; null, with a reason, where runs are missing."""
    found: dict[str, Any] = {}

    def put(key: str, draws: F64 | None, why: str) -> None:
        known = None if draws is None else interval(draws)
        if known is None or known["value"] is None:
            found[key], found[f"{key}_why"] = None, why
        else:
            found[key], found[f"{key}_ci"] = known["value"], known["ci"]

    def over(pick: Callable[[F64], F64], rows: Sequence[F64]) -> F64 | None:
        known = [row for row in rows if np.isfinite(row[0])]
        return pick(np.stack(known)) if known else None

    ratios = [task.ratio for task in tasks.values()]
    put("convergence_median_x", over(lambda rows: np.median(rows, axis=0), ratios), "no task has both alone and ours")
    put("convergence_best_x", over(lambda rows: np.max(rows, axis=0), ratios), "no task has both alone and ours")
    distilled = over(lambda rows: np.median(rows, axis=0), [task.distilled for task in tasks.values()])
    put("steps_vs_best_distillation_x", distilled, "no task has ours and a distillation")
    harms = [draws for task in tasks.values() for teacher, draws in task.harm.items() if teacher != "good"]
    put("harm_worst_ratio", over(lambda rows: np.min(rows, axis=0), harms), "no run with a bad teacher")
    found["harm_worst_is"] = None
    if found.get("harm_worst_ratio") is not None:
        worst = min(
            ((draws[0], name, teacher) for name, task in tasks.items() for teacher, draws in task.harm.items()),
            key=lambda each: each[0] if each[2] != "good" else np.inf,
        )
        found["harm_worst_is"] = f"{worst[1]}, teacher {worst[2]}"
    beside = [draws for task in tasks.values() for teacher, draws in task.harm_gated.items() if teacher != "good"]
    put("harm_worst_beside_gate", over(lambda rows: np.min(rows, axis=0), beside), f"no run of {GATED}")
    gates = [task.gate for task in tasks.values() if task.gate is not None]
    put("gate_price_ratio", over(lambda rows: np.min(rows, axis=0), gates), f"no run of {GATED}")
    asynchronous, bad = [], []
    for draws in links["draws"].values():
        if {PERFECT, "500ms"} <= draws.keys():
            asynchronous.append(draws["500ms"][0] / draws[PERFECT][0])
        if {PERFECT, WORST} <= draws.keys():
            bad.append(draws[WORST][1] / draws[PERFECT][1])
    put("async_step_rate_at_500ms", over(lambda rows: np.min(rows, axis=0), asynchronous), "no run at 1 ms and 500 ms")
    put("bad_link_convergence_ratio", over(lambda rows: np.max(rows, axis=0), bad), f"no run at 1 ms and {WORST}")
    found["tasks"] = sorted(tasks)
    found["tasks_where_cloning_reaches_the_threshold"] = [
        name for name, task in sorted(tasks.items()) if task.document["cloning_reaches"]
    ]
    return found


def table(document: Mapping[str, Any]) -> str:
    """What a person wants to see at once."""

    def told(figure: Mapping[str, Any] | None) -> str:
        if not figure or figure["value"] is None:
            return "-"
        return f"{figure['value']:g} [{figure['ci'][0]:g}, {figure['ci'][1]:g}]"

    lines = []
    for name, task in document["tasks"].items():
        reach = ", which cloning reaches too" if task["cloning_reaches"] else ""
        lines.append(
            f"{name}: initial {task['initial']}, teacher {task['teacher']}, threshold {task['threshold']}{reach}"
        )
        lines.append(f"  {'arm':<13} {'n':>2} {'never':>5}  {'steps to threshold':<28} {'x alone':<24} final")
        for arm, row in task["arms"].items():
            lines.append(
                f"  {arm:<13} {row['seeds']:>2} {row['censored']:>5}  {told(row['steps_to_threshold']):<28} "
                f"{told(row['steps_vs_alone_x']):<24} {told(row['final'])}"
            )
        if "gate" in task:
            per = [told(task["gate"][what]) for what in ("life_vs_alone", "final_vs_alone")]
            lines.append(f"  the gate: life {per[0]}, final {per[1]} of learning alone")
        for teacher, row in task.get("harm", {}).items():
            lines.append(
                f"  teacher {teacher:<12} n {row['seeds']}: life {told(row['life_vs_alone'])}, "
                f"final {told(row['final_vs_alone'])} of learning alone"
            )
    for name, links in document["link"].items():
        for link, row in links.items():
            lines.append(
                f"{name} over {link:<18} {told(row['steps_per_s'])} steps/s (blocking {row['sync_steps_per_s']}), "
                f"{told(row['steps_to_threshold'])} steps to threshold"
            )
    for name, arms in document.get("foreign", {}).items():
        for arm, row in arms.items():
            lines.append(
                f"foreign {name}, {arm:<19} n {row['seeds']}, never {row['never']}: {told(row['steps_to_threshold'])} "
                f"steps to threshold, x alone {told(row['fewer_than_alone_x'])}, final {told(row['final'])}"
            )
    lines += [f"{key} {value}" for key, value in document["summary"].items() if not key.endswith(("_ci", "_why"))]
    return "\n".join(lines)


def missing(plans: Sequence[Planned], known: Sequence[Known]) -> list[str]:
    """Planned runs that nobody has made."""
    there = {each.plan.key for each in known}
    return [run.key for run in plans if run.key not in there]


def tasks_of(known: Sequence[Known]) -> list[str]:
    """In the order of the plan."""
    return [name for name in TASKS if any(each.plan.task == name for each in known)]
