"""The figures: what every arm did in every cell, and the ratios that are asked for, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench.srole import cells, compare, fluid, optimum, play, policies
from tools.bench.srole.cells import HEURISTICS, Agent

HOW = """
Clusters are drawn from the boards of firmware_configs; what a core is worth beside the measured one, paging and heat
are estimates, stated in tools/bench/srole/boards.py. Jobs cost what tools.bench train measured. Arrivals are Poisson;
each arm of a cell meets the same clusters and arrivals. Intervals: 95 %, 4000 bootstrap draws over pairs of cell and
seed. Decisions and judgements cost the time that the code took, divided by the speed of the deciding board's core, and
10 ms a message. The best heuristic is the best arm of the cell, shielded or not, in hindsight. Collisions of an arm
with a shield are those that it let pass. The optimum knows all and lets transfers run alone.
"""
DRAWS = 4000
CENTRE = ("simgrid 10 nodes", "simgrid 25 nodes")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every play that was kept."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [each for each in found if "cell" in each]


def _cell(row: dict[str, Any]) -> str:
    return cells.name(cells.Cell(**{**row["cell"], "arms": ()}))


def _by(found: Sequence[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """(cell, seed) -> arm -> row."""
    made: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in found:
        made.setdefault((_cell(row), row["seed"]), {})[row["arm"]] = row
    return made


def _interval(values: Sequence[float]) -> list[float] | None:
    """[mean, low, high] of the mean, by bootstrap."""
    if not values:
        return None
    drawn = np.random.default_rng(0).choice(np.array(values), size=(DRAWS, len(values))).mean(1)
    return [round(float(x), 4) for x in (np.mean(values), *np.percentile(drawn, (2.5, 97.5)))]


def _ratio(pairs: Sequence[tuple[float, float]]) -> list[float] | None:
    """[ratio of sums, low, high], by bootstrap over pairs."""
    if not pairs or sum(b for _, b in pairs) <= 0:
        return None
    table = np.array(pairs)
    at = np.random.default_rng(0).integers(len(table), size=(DRAWS, len(table)))
    sums = table[at].sum(1)
    drawn = sums[:, 0] / np.maximum(sums[:, 1], 1e-9)
    whole = table.sum(0)
    return [round(float(x), 4) for x in (whole[0] / whole[1], *np.percentile(drawn, (2.5, 97.5)))]


def _times(found: Sequence[dict[str, Any]], one: str, other: str, worlds: tuple[str, ...]) -> list[tuple[float, float]]:
    by = {key: arms for key, arms in _by(found).items() if key[0].startswith(worlds)}
    return [(arms[one]["mean_s"], arms[other]["mean_s"]) for arms in by.values() if one in arms and other in arms]


def _log_ratio(pairs: Sequence[tuple[float, float]]) -> list[float] | None:
    """Geometric mean of ratios, so that no cell counts for more because its jobs are longer."""
    told = _interval([float(np.log(a / b)) for a, b in pairs])
    return None if told is None else [round(float(np.exp(x)), 4) for x in told]


def best_heuristic(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Cell -> the heuristic arm that was best there, each held against SROLE-C in the seeds that both played."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for (cell, _), arms in _by(found).items():
        for arm in HEURISTICS:
            if arm in arms and "SROLE-C" in arms:
                ratio = float(np.log(arms[arm]["mean_s"] / arms["SROLE-C"]["mean_s"]))
                ratios.setdefault(cell, {}).setdefault(arm, []).append(ratio)
    return {cell: min(arms, key=lambda arm: np.mean(arms[arm])) for cell, arms in ratios.items()}


def summarise(
    found: Sequence[dict[str, Any]],
    shields: Sequence[dict[str, Any]],
    small: Sequence[dict[str, Any]],
    real: dict[str, Any],
) -> dict[str, Any]:
    """The figures that are asked for: [value, low, high], or None where nothing was measured."""
    by, best = _by(found), best_heuristic(found)
    heuristic = [
        (arms["SROLE-C"]["mean_s"], arms[best[cell]]["mean_s"])
        for (cell, _), arms in by.items()
        if cell.startswith(CENTRE) and "SROLE-C" in arms and best.get(cell) in arms
    ]
    shielded = [row for row in found if row["arm"].startswith("SROLE") or row["arm"].endswith(" + shield")]
    counts = [
        tuple(arms[arm]["counts"]["collisions"] for arm in ("SROLE-C", "MARL"))
        for (cell, _), arms in by.items()
        if cell.startswith(CENTRE) and {"SROLE-C", "MARL"} <= arms.keys()
    ]
    goodput = [
        (arms["SROLE-C"]["goodput"], arms["MARL"]["goodput"])
        for (cell, _), arms in by.items()
        if cell.startswith(CENTRE) and {"SROLE-C", "MARL"} <= arms.keys()
    ]
    large = ("simgrid 25", "fluid 25", "fluid 50", "fluid 100")
    messages = [
        (arms["SROLE-D"]["counts"]["messages"], arms["SROLE-C"]["counts"]["messages"])
        for (cell, _), arms in by.items()
        if cell.startswith(("fluid 50", "fluid 100")) and {"SROLE-C", "SROLE-D"} <= arms.keys()
    ]
    marl = {
        cell: _log_ratio(
            [
                (a["SROLE-C"]["mean_s"], a["MARL"]["mean_s"])
                for (c, _), a in by.items()
                if c == cell and {"SROLE-C", "MARL"} <= a.keys()
            ]
        )
        for cell in {key[0] for key, arms in by.items() if {"SROLE-C", "MARL"} <= arms.keys()}
    }
    at_25 = [each for each in shields if each["nodes"] == 25]
    return {
        "time_vs_marl": _log_ratio(_times(found, "SROLE-C", "MARL", CENTRE)),
        "time_vs_marl_best_setting": min((each for each in marl.values() if each), default=None),
        "time_vs_masked_marl": _log_ratio(_times(found, "SROLE-C", "MARL, masked", CENTRE)),
        "time_vs_central": _log_ratio(_times(found, "SROLE-C", "central RL", CENTRE)),
        "real_time_vs_marl": real.get("time_vs_marl"),
        "collisions_vs_marl": _ratio([(float(a), float(b)) for a, b in counts]),
        "overloads_when_feasible": sum(row["counts"]["overloads"] for row in shielded),
        "time_vs_best_heuristic": _log_ratio(heuristic),
        "time_vs_optimum": _log_ratio([(each["srole_s"], each["best_s"]) for each in small]),
        "d_vs_c_time": _log_ratio(_times(found, "SROLE-D", "SROLE-C", large)),
        "d_vs_c_messages": _ratio(messages),
        "time_when_shield_dies": _log_ratio(_times(found, "SROLE-C, shield dies", "SROLE-C", ("simgrid", "fluid"))),
        "shield_ms_25_nodes": [at_25[0]["median_ms"], at_25[0]["p99_ms"], at_25[0]["max_ms"]] if at_25 else None,
        "simulator_mape": real.get("simulator_mape"),
        "simulators_apart": simulators(found).get("mape"),
        "goodput_vs_marl": _ratio(goodput),
        "utilisation_vs_marl": {
            name: _ratio(
                [
                    (arms["SROLE-C"]["use_mean"][name], arms["MARL"]["use_mean"][name])
                    for (cell, _), arms in by.items()
                    if cell.startswith(CENTRE) and {"SROLE-C", "MARL"} <= arms.keys()
                ]
            )
            for name in ("cpu", "memory", "link")
        },
    }


def cells_of(found: Sequence[dict[str, Any]]) -> list[str]:
    """Names of cells, in the order of their first row."""
    return list(dict.fromkeys(_cell(row) for row in found))


def cells_table(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Cell -> arm -> means over seeds."""
    made: dict[str, dict[str, dict[str, Any]]] = {}
    for cell in cells_of(found):
        for arm in dict.fromkeys(row["arm"] for row in found):
            mine = [row for row in found if _cell(row) == cell and row["arm"] == arm]
            if mine:
                made.setdefault(cell, {})[arm] = {
                    "seeds": len(mine),
                    "mean_s": _interval([row["mean_s"] for row in mine]),
                    "median_s": float(np.mean([row["median_s"] for row in mine])),
                    "p95_s": float(np.mean([row["p95_s"] for row in mine])),
                    "goodput": float(np.mean([row["goodput"] for row in mine])),
                    "use_median": {
                        name: float(np.mean([row["use_median"][name] or 0.0 for row in mine]))
                        for name in ("cpu", "memory", "link")
                    },
                    "counts": {
                        name: float(np.mean([row["counts"][name] for row in mine])) for name in mine[0]["counts"]
                    },
                    "decide_ms": float(np.mean([row["decide_ms_median"] for row in mine])),
                }
    return made


def simulators(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far the fast simulator is from SimGrid, job by job, on the same placements."""
    pairs = [pair for row in found for pair in row.get("replayed", ())]
    if not pairs:
        return {}
    errors = [(b - a) / a for a, b in pairs]
    return {
        "jobs": len(pairs),
        "mape": _interval([abs(each) for each in errors]),
        "bias": round(float(np.mean(errors)), 4),
        "p95": round(float(np.percentile(np.abs(errors), 95)), 4),
    }


def real(folder: Path) -> dict[str, Any]:
    """What the real run says: our job time over that without a shield, and how far the simulators are from it."""
    measured, parts = folder / "srole-real.json", folder / "srole-parts.json"
    if not measured.exists() or not parts.exists():
        return {}
    runs = json.loads(measured.read_text())["runs"]
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for name, run in runs.items():
        scheme, _, seed = name.partition("/")
        by.setdefault(seed, {})[scheme] = run
    made: dict[str, Any] = {"seeds": len(by), "schemes": sorted({name.partition("/")[0] for name in runs})}
    for key, one, other in (
        ("time_vs_marl", "srole-c", "marl"),
        ("time_vs_central", "srole-c", "central"),
        ("time_vs_least_loaded", "srole-c", "least-loaded+shield"),
    ):
        pairs = [
            (arms[one]["mean_s"], arms[other]["mean_s"])
            for arms in by.values()
            if one in arms and other in arms and arms[one]["mean_s"] and arms[other]["mean_s"]
        ]
        made[key] = _log_ratio(pairs)
    apart = compare.compare(measured, parts)
    made["simulators"] = apart
    made["simulator_mape"] = apart.get("simgrid", apart["fluid"])["mape"]
    return made


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The curve of every training."""
    found = {}
    for path in sorted(folder.glob("*/curve.json")):
        found[path.parent.name] = json.loads(path.read_text())["curve"]
    return found


def small_cases(agents: dict[str, list[Agent]], count: int, limit_s: float, folder: Path) -> list[dict[str, Any]]:
    """Small cases: what the agents behind the shield took, and the better of the two solvers."""
    found = []
    for seed in range(count):
        kept = folder / "optimum" / f"{seed}.json"
        if not kept.exists():
            sat, bound = optimum.solve("cp-sat", seed, limit_s)
            highs, _ = optimum.solve("highs", seed, limit_s)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"cp_sat_s": sat, "highs_s": highs if highs < 1e18 else None, "bound_s": bound}))
        told = json.loads(kept.read_text())
        nodes, queue = optimum.case(seed)
        best = min(each for each in (told["cp_sat_s"], told["highs_s"]) if each is not None)
        made: dict[str, Any] = {"seed": seed, **told, "best_s": best}
        arms = {
            f"{method}_s": policies.learned(a[0].params, masked=method != "marl", explore=a[0].explore)
            for method, a in agents.items()
        }
        arms |= {"heft_s": policies.rules()["HEFT, split"]}
        for arm, decide in arms.items():
            shield = "C" if arm in ("srole_s", "heft_s") else "none"
            where = play.Setting(shield=shield, window_s=1.0, stale_s=0.0, central=arm == "central_s")
            played = play.play(nodes, queue, decide, fluid.Fluid(nodes), where, np.random.default_rng(seed))
            made[arm] = float(np.mean(list(played.times_s.values())))
        found.append(made)
    return found


def table(document: dict[str, Any]) -> str:
    """Plain text: every cell, then the summary."""
    lines = []
    for cell, arms in document["cells"].items():
        lines.append(f"\n{cell}\n{'':28}{'mean s':>9}{'median':>9}{'p95':>9}{'collisions':>12}{'overloads':>11}")
        for arm, row in sorted(arms.items(), key=lambda item: item[1]["mean_s"][0]):
            told = row["counts"]
            lines.append(
                f"{arm:28}{row['mean_s'][0]:9.1f}{row['median_s']:9.1f}{row['p95_s']:9.1f}"
                f"{told['collisions']:12.1f}{told['overloads']:11.1f}"
            )
    lines += ["", *(f"{name:<26} {value}" for name, value in document["summary"].items())]
    return "\n".join(lines)
