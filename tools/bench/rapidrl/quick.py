"""Play the shipped bundles for three minutes and compare with the figures that are committed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgert import modelfile
from edgert.errors import EdgertError, UsageError
from edgert.policy import artifact, frontier
from edgert.policy.artifact import Policy as Bundle
from tools.bench.rapidrl.plan import Task
from tools.bench.rapidrl.policies import F64, Policy, Trial, costs
from tools.frontier import Played

QUICK_SEED = 140_000_000
BUDGET_S = 150.0
ROUND = 8
"""Episodes between two looks at the clock."""
EPISODES_MAX = 320
OPS_TOLERANCE_FRAC = 0.05

Run = Callable[[Iterable[Trial]], Iterator[Played]]


class Figures(NamedTuple):
    """What a bundle's own setting brings and costs, each with a 95 % interval.

    Attributes:
        return_ratio: normalised by the frontier's rule: estimate, low, high.
        ops_ratio: the same.
        episodes: played.
    """

    return_ratio: tuple[float, float, float]
    ops_ratio: tuple[float, float, float]
    episodes: int


def shipped(models: Path) -> dict[str, tuple[Bundle, str]]:
    """The bundles of policies that carry a frontier, and the SHA-256 of each."""
    found = {}
    for path in sorted(models.glob("*.edgert")):
        data = path.read_bytes()
        if modelfile.is_model(data):
            continue
        policy = artifact.load(data)
        if policy.manifest.frontier is not None:
            found[path.stem] = policy, hashlib.sha256(data).hexdigest()
    return found


def committed(bundle: Bundle, sha256: str) -> dict[str, Any]:
    """What a bundle says of its own setting, as it goes into the result file.

    Raises:
        UsageError: the setting is no point of its frontier.
    """
    measured, operating = bundle.manifest.frontier, bundle.manifest.operating
    points = measured.points if measured else ()
    at = frontier.find(points, operating)
    if measured is None or at is None:
        raise UsageError(f"{bundle.manifest.name}: its own setting {operating} was not measured; export it again")
    point = points[at]
    return {
        "sha256": sha256,
        "env": measured.env,
        "thresholds": list(operating.thresholds),
        "ops_ratio": point.ops_frac,
        "return_ratio": point.return_frac,
        "return_ratio_ci": [point.return_low, point.return_high],
        "episodes": point.episodes,
    }


def ratio_of_sums(above: F64, below: F64, rng: np.random.Generator, draws: int = 2000) -> tuple[float, float, float]:
    """The ratio of two sums over the same episodes, with its 95 % interval from resampled episodes."""
    picked = rng.integers(len(above), size=(draws, len(above)))
    low, high = np.percentile(above[picked].sum(1) / below[picked].sum(1), (2.5, 97.5))
    return float(above.sum() / below.sum()), float(low), float(high)


def play(bundle: Bundle, run: Run, budget_s: float, rounds_max: int = EPISODES_MAX // ROUND) -> Figures:
    """Play a bundle's own setting and its full network in rounds until the time is over, two rounds at least.

    Raises:
        UsageError: the full network is not clearly better than a random policy.
    """
    measured, spec = bundle.manifest.frontier, bundle.spec
    assert measured is not None
    task = Task("atari", measured.env, "", "", {}, {}, parallel=ROUND)
    policies = (
        Policy(role="ours", operating=bundle.manifest.operating),
        Policy(role="full", only=spec.n_exits - 1),
    )
    found: tuple[list[Played], list[Played]] = [], []
    begun_s = time.monotonic()
    for i in range(rounds_max):
        seeds = range(QUICK_SEED + i * ROUND, QUICK_SEED + (i + 1) * ROUND)
        trials = [Trial(task, policy, spec, None, bundle.tensors, seeds) for policy in policies]
        for kept, played in zip(found, run(trials), strict=True):
            kept.append(played)
        spent_s = time.monotonic() - begun_s
        if i >= 1 and spent_s * (i + 2) / (i + 1) > budget_s:
            break
    rng, (ours, full) = np.random.default_rng(0), found
    returns = np.concatenate([each.returns for each in ours])
    ticks = np.concatenate([each.exit_ticks for each in ours])
    held = np.concatenate([each.held_ticks for each in ours])
    spent = (ticks @ np.asarray(costs(policies[0], spec))).astype(float)
    estimate, low, high = frontier.normalised(
        returns, np.concatenate([each.returns for each in full]), np.array([measured.random.mean]), rng
    )
    ops = ratio_of_sums(spent, (ticks.sum(1) + held) * float(measured.full_ops), rng)
    return Figures((estimate, low, high), ops, len(returns))


def agrees(found: Figures, figures: Mapping[str, Any]) -> bool:
    """Whether the intervals of the returns overlap, and the operations are the committed ones within theirs."""
    low, high = figures["return_ratio_ci"]
    _, ours_low, ours_high = found.return_ratio
    wanted = figures["ops_ratio"]
    slack = OPS_TOLERANCE_FRAC * wanted
    return bool(
        ours_low <= high and low <= ours_high and found.ops_ratio[1] - slack <= wanted <= found.ops_ratio[2] + slack
    )


def main(models: Path, results: Path, run: Run, budget_s: float = BUDGET_S) -> int:
    """Play, print, compare.

    Returns:
        0 when everything agrees; 1 when something does not, or there is nothing to compare.
    """
    bundles = shipped(models)
    if not bundles:
        print(f"no bundle of {models} has a frontier: export one with --frontier-episodes")
        return 1
    path = results / "rapidrl.json"
    known = json.loads(path.read_text()).get("shipped", {}) if path.exists() else {}
    end_s, wrong = time.monotonic() + budget_s, 0
    print(f"{'bundle':<18}{'ops ratio':>24}{'committed':>11}{'return ratio':>24}{'committed':>24}  episodes")
    for i, (name, (bundle, sha256)) in enumerate(bundles.items()):
        try:
            figures = committed(bundle, sha256)
            if known.get(name, figures)["sha256"] != sha256:
                print(f"{name}: rapidrl.json speaks of another bundle; compared with what the bundle itself says")
            else:
                figures = known.get(name, figures)
            found = play(bundle, run, (end_s - time.monotonic()) / (len(bundles) - i))
        except EdgertError as error:
            print(f"{name}: {error}")
            wrong += 1
            continue
        good = agrees(found, figures)
        wrong += not good
        ops, returned, ci = found.ops_ratio, found.return_ratio, figures["return_ratio_ci"]
        print(
            f"{name:<18}{f'{ops[0]:.3f} [{ops[1]:.3f}, {ops[2]:.3f}]':>24}{figures['ops_ratio']:>11.3f}"
            f"{f'{returned[0]:.3f} [{returned[1]:.3f}, {returned[2]:.3f}]':>24}"
            f"{format(figures['return_ratio'], '.3f') + f' [{ci[0]:.3f}, {ci[1]:.3f}]':>24}"
            f"  {found.episodes:>8}  {'agrees' if good else 'DISAGREES'}",
            flush=True,
        )
    return 1 if wrong else 0
