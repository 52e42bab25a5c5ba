"""The oracle is what it claims to be: nobody who keeps the constraints gets more."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgert import bundle
from edgert.ports.board.physics import Model
from edgert.programs.sim import Workload, simulate
from edgert.values import Budget
from tools.bench.govern import oracle, play
from tools.bench.govern.oracle import Offer, bound, feasible, lowest, offer
from tools.bench.govern.traces import MISS_FRAC, RESERVE_FRAC, Case, case, sized

MODELS = Path(__file__).parents[4] / "models"
MANIFESTS = [bundle.read((MODELS / f"{name}.edgert").read_bytes()).manifest for name in ("pong", "breakout")]
BOARDS = [Model(), Model(cores=2, busy_w_per_core=2.0)]


def made(kind: str, seed: int) -> Case:
    return case(kind, seed, MANIFESTS, BOARDS, hours=1.0)


def mixed(each: Case, rng: random.Random) -> tuple[float, bool]:
    """Return of somebody who runs two settings in turns, trains a little, and knows nothing; and were limits kept."""
    points = [rng.randrange(len(each.work.prices.points)) for _ in range(2)]
    share, train = rng.random(), rng.choice([0.0, 0.0, 0.1, 1.0])

    def decide(*_: object) -> Budget:
        point = points[rng.random() < share]
        return Budget(max_exit=9, train_steps_hz=train * 20.0, teacher_bytes_per_s=0.0, point=point)

    moments = list(simulate(each.model, each.scenario, each.work, decide, seconds=each.seconds, period_s=each.period_s))
    ticks = sum(m.ticks for m in moments)
    due = each.work.prices.rate_hz * each.seconds
    gained = sum(m.return_frac * (m.ticks - m.missed) for m in moments) / due
    kept = sum(m.missed for m in moments) <= MISS_FRAC * ticks
    if each.until_s:
        spared = [m for m in moments if m.t_s <= each.until_s + 1e-6]
        kept &= all(m.on_frac > 0.999 for m in spared) and (spared[-1].charge_frac or 0.0) >= RESERVE_FRAC
    return gained, kept


@pytest.mark.parametrize("kind", ["battery", "load", "heat", "day"])
@pytest.mark.parametrize("seed", [0, 1])
def test_nobody_who_keeps_the_constraints_gets_more(kind: str, seed: int) -> None:
    each, rng = made(kind, seed), random.Random(seed)
    most = bound(offer(each))
    tried = [mixed(each, rng) for _ in range(12)]
    assert all(gained <= most + 1e-6 for gained, kept in tried if kept)


@pytest.mark.parametrize("kind", ["battery", "load", "link"])
def test_nor_does_any_controller_of_the_benchmark(kind: str) -> None:
    for name in play.CONTROLLERS:
        row = play.play(made(kind, 2), name)
        if row.kept and row.bound is not None:
            assert row.return_frac <= row.bound + 1e-6, name
            assert row.bound_equal is not None
            assert row.bound_equal <= row.bound + 1e-9


def test_with_one_constraint_it_is_the_best_mixture() -> None:
    """Two settings, energy for the dear one in half of the ticks: the optimum is known."""
    gain = np.tile([0.4, 1.0], (10, 1))
    told = Offer(gain, np.zeros((10, 2)), np.array([1.0, 3.0]), np.ones(10, bool), 10 * 2.0, 1.0)
    assert bound(told) == pytest.approx(0.7, abs=1e-4)
    assert bound(told._replace(energy_core_s=10 * 3.0)) == pytest.approx(1.0, abs=1e-4)
    assert bound(told._replace(energy_core_s=10 * 1.0)) == pytest.approx(0.4, abs=1e-3)
    assert bound(told._replace(energy_core_s=float("inf")), work_core_s=20.0) == pytest.approx(0.7, abs=1e-4)


def test_with_deadlines_too_it_is_the_best_mixture() -> None:
    late = np.tile([0.0, 0.5], (1000, 1))
    told = Offer(np.tile([0.4, 1.0], (1000, 1)) * (1 - late), late, np.ones(2), np.zeros(1000, bool), float("inf"), 1.0)
    share = MISS_FRAC / 0.5
    assert bound(told) == pytest.approx(0.4 + share * 0.1, abs=1e-5)


def test_scarce_traces_are_infeasible_and_the_others_are_not() -> None:
    assert not any(feasible(offer(made("scarce", seed))) for seed in range(3))
    assert all(feasible(offer(made("battery", seed))) for seed in range(3))


def test_more_energy_is_never_worth_less() -> None:
    told = offer(made("battery", 0))
    spans = [bound(told._replace(energy_core_s=told.energy_core_s * factor)) for factor in (1.0, 1.2, 2.0, 10.0)]
    assert spans == sorted(spans)


def test_the_search_finds_the_bottom_of_a_convex_function() -> None:
    price, value = lowest(lambda x: (x - 0.37) ** 2 + 1.0, 50.0)
    assert price == pytest.approx(0.37, abs=1e-3)
    assert value == pytest.approx(1.0)
    assert oracle.lowest(lambda x: x, 5.0) == (0.0, 0.0)


def test_a_size_is_the_share_of_a_core() -> None:
    work: Workload = sized(MANIFESTS[0], 0.25, 0.5)
    frontier = MANIFESTS[0].frontier
    assert frontier is not None
    full_s = work.prices.exits_s[-1] * frontier.full_ops / (MANIFESTS[0].exits[-1].ops or 1)
    assert full_s * work.prices.rate_hz == pytest.approx(0.25)
    assert work.step_s * work.train_steps_hz == pytest.approx(0.5)


def test_equal_seeds_give_equal_traces() -> None:
    assert msgspec.to_builtins(made("day", 1).scenario) == msgspec.to_builtins(made("day", 1).scenario)
    assert made("day", 1).scenario != made("day", 2).scenario
