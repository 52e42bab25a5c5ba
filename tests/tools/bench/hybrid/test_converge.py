from __future__ import annotations

import numpy as np
import pytest

from edgert.offload.hybrid import Hybrid
from edgert.offload.space import Action, Floor
from edgert.offload.tabular import Rates
from tools.bench.hybrid import Cell, summary
from tools.bench.hybrid.arms import ARMS, run_arm
from tools.bench.hybrid.converge import BLOCK, EVALUATIONS, Scene, _Watch, converge, table
from tools.bench.hybrid.dyna import Dyna, Planning
from tools.bench.offload.world import SETUP, Case, World, spaces

FLOOR = Floor(0.89, "average")


@pytest.fixture(scope="module")
def scene() -> Scene:
    space = spaces(2)["paper"]
    return Scene([World(Case(2, "A"), space, 0, SETUP)], space, FLOOR)


class Knows:
    """Chooses one joint action, whatever happens."""

    def __init__(self, action: Action) -> None:
        self.action = action

    def choose(self, *_: object) -> Action:
        return self.action

    best = choose

    def observe(self, *_: object) -> None:
        pass

    def save(self) -> bytes:
        return b""


def test_who_knows_the_oracle_needs_one_sample(scene: Scene) -> None:
    best = tuple(scene.actions[int(scene.means[0].argmin())].tolist())  # type: ignore[index]  # two users are listed
    found = converge(Knows(best), scene, 500, np.random.default_rng(0))
    assert found.samples == (1, 1) and found.censored == (False, False) and found.gap < 1e-9


def test_who_never_gets_there_is_counted_at_the_cap(scene: Scene) -> None:
    found = converge(Knows((8, 8)), scene, 150, np.random.default_rng(0))
    assert found.samples == (150, 150) and all(found.censored)


def test_one_slip_begins_the_hundred_anew() -> None:
    watch = _Watch()
    gaps = [0.0] * 60 + [0.03] + [0.0] * 200
    ended = [watch.look(gap, (at, 0.0, 0.0)) for at, gap in enumerate(gaps)]
    assert watch.result((999, 0.0, 0.0), 999, 0.0, None).samples == (61, 0)
    assert ended.index(True) == 60 + EVALUATIONS


def test_hybrid_needs_fewer_samples_than_the_table(scene: Scene) -> None:
    ours = converge(Hybrid(scene.space, FLOOR), scene, 400, np.random.default_rng(0))
    theirs = table(scene, Rates(decay=1e-3, explore_least=0.1), 40 * BLOCK, np.random.default_rng(0))
    assert ours.samples[1] < theirs.samples[1]
    assert ours.model_error is not None and ours.model_error < 0.3


def test_dyna_learns(scene: Scene) -> None:
    rng = np.random.default_rng(0)
    found = converge(Dyna(scene.space, FLOOR, rng, Planning(simulated=2, decay=0.05)), scene, 80, rng)
    assert found.gap < 0.3


def test_ratios_are_of_medians_over_the_same_seeds() -> None:
    cell = Cell("static", 3, "A", "85")
    rows = [
        {**cell._asdict(), "arm": arm, "seed": seed, "samples": (value, value), "censored": (False, False),
         "cpu_s": (1.0, 1.0), "total_s": (1.0, 1.0), "gap": 0.0, "model_error": None}
        for arm, seed, value in [("hybrid", 0, 10), ("hybrid", 1, 10), ("hybrid", 2, 99), ("joint table", 0, 1000),
                                 ("joint table", 1, 1000)]
    ]  # fmt: skip
    best = summary.of(rows)["summary"]["samples_vs_tabular_best"]
    assert (best["value"], best["seeds"]) == (0.01, 2)


@pytest.mark.parametrize("name", ["structured", "DQN"])
def test_every_arm_can_be_built(scene: Scene, name: str) -> None:
    assert run_arm(ARMS[name]._replace(cap=30), scene, name, 0).samples[0] <= 30
