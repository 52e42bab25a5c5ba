"""One way to decide in one setting: learn, then all links of end devices become the other kind, and learn on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edgert.offload.space import Action, Floor, Outcome, Space, accuracy_frac, allowed, meets
from tools.bench.offload.arms import PENALTY, Arm
from tools.bench.offload.world import World

REQUESTS, STEPS_LEAST = 600, 150
"""Before the flip: so many requests of all users together, but no fewer joint actions than that."""
AFTER = 120
STEADY = 50
"""The last joint actions before the flip, by which response times are judged."""
WARM_UP = 50
LAG = 5
"""Joint actions after which monitors tell of a flip."""
CLOSE = 1.05
HELD = 20
"""So many greedy choices one after the other within CLOSE of the oracle end the recovery."""


def steps_before(users: int) -> int:
    """Joint actions until all links flip."""
    return max(STEPS_LEAST, REQUESTS // users)


class Row(NamedTuple):
    """What came of one run. Times are seconds, means over users.

    Attributes:
        machine, users, links, floor, per, arm, seed: the setting.
        oracle_s: the lowest mean.
        learning_s, steady_s: expected means of what was chosen, over all and over the last joint actions.
        mean_s, p95_s, p99_s, worst_s: of answers in the steady part; the slowest user's mean.
        accuracy_frac: in the steady part.
        broken, broken_late: joint actions below the floor, in all and after the warm-up.
        greedy_s: the expected mean of the greedy choice at the end.
        recovery: joint actions after the flip until the greedy choice is good again; the cap where it never was.
        recovered: it was.
        after_oracle_s: the lowest mean after the flip.
        decision_s: median time of a decision.
        cpu_s: spent on deciding and learning.
        curve_s: expected mean of what was chosen, by joint action, before and after the flip.
    """

    machine: str
    users: int
    links: str
    floor: str
    per: str
    arm: str
    seed: int
    oracle_s: float
    learning_s: float
    steady_s: float
    mean_s: float
    p95_s: float
    p99_s: float
    worst_s: float
    accuracy_frac: float
    broken: int
    broken_late: int
    greedy_s: float
    recovery: int
    recovered: bool
    after_oracle_s: float
    decision_s: float
    cpu_s: float
    curve_s: tuple[float, ...] = ()


def translate(space: Space, whole: Space) -> list[int]:
    """The choices of a space as those of the whole one."""
    return [whole.choices.index(choice) for choice in space.choices]


def play(
    worlds: Sequence[World],
    space: Space,
    arm: Arm,
    setting: Any,
    floor: Floor,
    seed: int,
    names: dict[str, Any],
    *,
    curve: bool = False,
) -> Row:
    """Run one arm through one setting: in the first of two worlds, then in the second."""
    before, after = worlds
    flip = steps_before(before.case.users)
    rng = np.random.default_rng([seed, before.case.users, ord(before.case.links), 77])
    own = Floor() if arm.floor in ("none", "penalty") else floor
    learner = arm.make(space, own, rng, setting)
    may = allowed(space, own if arm.floor != "time" else Floor())
    index = translate(space, before.space)
    penalty = PENALTY * max(float(before.home_mean.max()), 1e-3)
    oracle, late = before.oracle(floor)[1], after.oracle(floor)[1]
    chosen_all, answers, broken, decided, learned = [], [], [], [], []
    states = (before.state(), after.state())
    recovery, held = AFTER, 0
    known: dict[Action, bool] = {}
    for step in range(flip + AFTER):
        world = before if step < flip else after
        state = states[step >= flip + LAG]
        began = time.process_time()
        chosen = learner.choose(state, may, rng)
        decided.append(time.process_time() - began)
        action: Action = tuple(index[each] for each in chosen)
        outcomes = world.outcomes(action, rng)
        good = meets(world.space, floor, action)
        fed = outcomes
        if arm.floor == "penalty" and not good:
            fed = tuple(Outcome(response_s=penalty) for _ in outcomes)
        began = time.process_time()
        learner.observe(state, chosen, fed)
        learned.append(time.process_time() - began)
        chosen_all.append(action)
        if step < flip:
            broken.append(not good)
            if step >= flip - STEADY:
                answers.append([outcome.response_s or 0.0 for outcome in outcomes])
        if step == flip - 1:
            greedy = world.mean_s(tuple(index[each] for each in learner.best(state, may)))
        if step >= flip and recovery == AFTER:
            best = tuple(index[each] for each in learner.best(state, may))
            if best not in known:
                known[best] = world.mean_s(best) <= CLOSE * late
            held = held + 1 if known[best] else 0
            if held >= HELD:
                recovery = step - flip - HELD + 2
    table = np.array(answers)
    taken = np.array(chosen_all)
    costs = np.concatenate([before.means(taken[:flip]), after.means(taken[flip:])]).mean(axis=1)
    return Row(
        **names,
        seed=seed,
        oracle_s=oracle,
        learning_s=float(np.mean(costs[:flip])),
        steady_s=float(np.mean(costs[flip - STEADY : flip])),
        mean_s=float(table.mean()),
        p95_s=float(np.percentile(table, 95)),
        p99_s=float(np.percentile(table, 99)),
        worst_s=float(table.mean(axis=0).max()),
        accuracy_frac=float(np.mean([accuracy_frac(before.space, each) for each in chosen_all[flip - STEADY : flip]])),
        broken=int(np.sum(broken)),
        broken_late=int(np.sum(broken[WARM_UP:])),
        greedy_s=greedy,
        recovery=recovery,
        recovered=recovery < AFTER,
        after_oracle_s=late,
        decision_s=float(np.median(decided)),
        cpu_s=float(np.sum(decided) + np.sum(learned)),
        curve_s=tuple(round(float(each), 6) for each in costs) if curve else (),
    )
