"""Fit the simulator to what real processes took, and say how far it is off on joint actions that it never saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert.errors import UsageError
from edgert.offload.space import PLACES
from tools.bench.offload.world import F64, FAMILY, SETUP, Setup, share

REAL = Path(__file__).parents[1] / "results" / "offload-real.json"
NAMES = tuple(name for name, *_ in FAMILY)
STEPS, NUDGE, FAR = 25, 1e-3, 0.2
OUTLIERS = 4.0
"""Times the middle answer of its kind: a request that something else of this machine held up is not fitted."""


class Arrays:
    """Real joint actions as arrays: users who were not there are at no place."""

    def __init__(self, runs: Sequence[dict[str, Any]]) -> None:
        """Lay them out, (M, 5)."""
        most = max(len(run["action"]) for run in runs)
        shape = (len(runs), most)
        self.variant, self.place = np.zeros(shape, np.intp), np.full(shape, -1)
        self.weak, self.took = np.zeros(shape, np.bool_), np.full(shape, np.nan)
        self.far = np.array([run["links"] == "D" for run in runs])
        for row, run in enumerate(runs):
            for user, (variant, place) in enumerate(run["action"]):
                self.variant[row, user], self.place[row, user] = NAMES.index(variant), PLACES.index(place)
                self.weak[row, user], self.took[row, user] = run["weak"][user], run["response_s"][user]

    def predict(self, setup: Setup) -> F64:
        """(M, 5) seconds without noise."""
        core = np.array(setup.core_s)[self.variant]
        found = np.where(self.place == 0, core / setup.speed[0], np.nan)
        for place in (1, 2):
            here = self.place == place
            beyond = np.where(self.far, setup.cloud_weak_rtt_s, setup.cloud_rtt_s)[:, None] if place == 2 else 0.0
            rtt = np.where(self.weak, setup.weak_rtt_s, setup.regular_rtt_s) + beyond
            arrival = np.where(here, rtt / 2, np.inf).T.astype(np.float32)
            work = np.where(here, core / setup.speed[place], np.inf).T.astype(np.float32)
            done = share(arrival, work, setup.switching_frac).T
            found = np.where(here, done + rtt / 2, found)
        return np.asarray(found)


def _setup(x: F64) -> Setup:
    core, rest = np.exp(x[:8]), np.exp(x[8:])
    edge, cloud, regular, weak, beyond, far, switching = (float(each) for each in rest)
    return msgspec.structs.replace(
        SETUP,
        core_s=tuple(float(each) for each in core),
        speed=(SETUP.speed[0], edge, cloud),
        regular_rtt_s=regular,
        weak_rtt_s=weak,
        cloud_rtt_s=beyond,
        cloud_weak_rtt_s=far,
        switching_frac=switching,
    )


def fit(real: Path = REAL) -> dict[str, Any]:
    """Fit on every second joint action; judge on the others.

    Raises:
        UsageError: nothing was measured yet.
    """
    if not real.exists():
        raise UsageError(f"{real.name} is not there: measure with `python -m tools.bench.offload.real measure` first")
    document = json.loads(real.read_text())
    runs = [run for run in document["runs"] if all(run["response_s"])]
    settings: dict[str, list[dict[str, Any]]] = {}
    for run in runs:  # a setting is either fitted or judged on, never both
        settings.setdefault(json.dumps([run["links"], run["action"]]), []).append(run)
    keys = sorted(settings)
    order = np.random.default_rng(0).permutation(len(keys))
    known = Arrays([run for at in order[::2] for run in settings[keys[at]]])
    unseen_runs = [settings[keys[at]] for at in order[1::2]]
    begin = np.log([*SETUP.core_s, *SETUP.speed[1:], SETUP.regular_rtt_s, SETUP.weak_rtt_s])
    begin = np.r_[begin, np.log([SETUP.cloud_rtt_s, SETUP.cloud_weak_rtt_s, SETUP.switching_frac])]

    def residual(x: F64) -> F64:
        ratio = np.log(known.predict(_setup(x)) / known.took)
        # A weak pull to where it began keeps what the data do not tell from running away.
        return np.concatenate([ratio[~np.isnan(ratio)], 0.1 * (x - begin)])

    found = _setup(descend(residual, begin))
    left = known.took - known.predict(found)
    left[np.abs(left) > OUTLIERS * np.nanmedian(known.took)] = np.nan
    scatter = [
        float(1.4826 * np.nanmedian(np.abs(left[known.place == p] - np.nanmedian(left[known.place == p]))))
        for p in range(3)
    ]
    found = msgspec.structs.replace(
        found, scatter_s=(scatter[0], scatter[1], scatter[2]), service_std=0.03, network_std=0.05
    )
    unseen = Arrays([run for group in unseen_runs for run in group])
    predicted = unseen.predict(found)
    error = np.abs(predicted / unseen.took - 1)
    means = np.abs(np.nanmean(predicted, axis=1) / np.nanmean(unseen.took, axis=1) - 1)
    return {
        "setup": msgspec.to_builtins(found),
        "mape": round(float(np.nanmean(error)), 4),
        "median_error": round(float(np.nanmedian(error)), 4),
        "mape_of_joint_means": round(float(means.mean()), 4),
        "mape_by_place": {
            name: round(float(np.nanmean(error[unseen.place == at])), 4) for at, name in enumerate(PLACES)
        },
        "scatter_of_repeats": _repeats(document["runs"]),
        "fitted_on": len(known.took),
        "judged_on": len(unseen.took),
        "how": "every second setting (links, joint action) was fitted, the others were judged on; single answers",
    }


def descend(residual: Callable[[F64], F64], begin: F64) -> F64:
    """Least squares after Levenberg and Marquardt; what is far off counts less and less (Huber)."""
    x, damping = begin.copy(), 1e-2
    left = residual(x)
    for _ in range(STEPS):
        weight = np.minimum(1.0, FAR / np.maximum(np.abs(left), 1e-12))
        slope = np.stack([(residual(x + step) - left) / NUDGE for step in NUDGE * np.eye(len(x))], axis=1)
        square = slope.T @ (slope * weight[:, None])
        move = np.linalg.solve(square + damping * np.diag(np.diag(square) + 1e-9), -slope.T @ (weight * left))
        then = residual(x + move)
        if _cost(then) < _cost(left):
            x, left, damping = x + move, then, damping / 3
        else:
            damping *= 4
    return x


def _cost(left: F64) -> float:
    """Huber's loss."""
    far = np.abs(left)
    return float(np.where(far <= FAR, far**2 / 2, FAR * (far - FAR / 2)).sum())


def _repeats(runs: Sequence[dict[str, Any]]) -> float | None:
    """Mean absolute share by which the same variant at home differs from its own median: no simulator can do better."""
    home: dict[str, list[float]] = {}
    for run in runs:
        for (variant, place), took in zip(run["action"], run["response_s"], strict=True):
            if place == "device" and took:
                home.setdefault(variant, []).append(took)
    errors = [abs(np.median(each) / took - 1) for each in home.values() for took in each]
    return round(float(np.mean(errors)), 4) if errors else None
