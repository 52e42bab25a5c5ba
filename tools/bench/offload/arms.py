"""Who decides: what people do without learning, published ways to learn, and ours; all tuned on seeds of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from edgert.offload.bandits import LinearBandit
from edgert.offload.dqn import DQN, Training
from edgert.offload.hybrid import Hybrid
from edgert.offload.lyapunov import DriftPlusPenalty
from edgert.offload.space import Floor, Learner, Space
from edgert.offload.structured import Structured
from edgert.offload.tabular import JointQ, Rates, UserQ

TUNING_SEEDS = range(1000, 1002)
"""Settings were chosen on these; the seeds that are reported begin at `FIRST_SEED`."""
SETTINGS = 8
"""Each way to decide that has any settings has so many to choose from, ours as well."""
PENALTY = 10.0
"""Times the slowest fixed choice: the published reward, when the average accuracy misses the floor."""

Make = Callable[[Space, Floor, np.random.Generator, Any], Learner]


class Arm(NamedTuple):
    """One way to decide.

    Attributes:
        space: key of `world.spaces`: what it may choose from.
        make: builds the learner from space, floor, chance and a setting.
        grid: the settings that were tried; the first is what is used where nothing was tuned.
        floor: "mask" holds it by masks; "time" over time; "none" is above every floor anyway; "penalty" is the
            published way: no mask, and the worst cost whenever the average accuracy misses.
    """

    space: str
    make: Make
    grid: tuple[Any, ...] = (None,)
    floor: str = "mask"


def _rates(kind: Any) -> Make:
    return lambda space, floor, rng, setting: kind(space, floor, rates=setting)


def _bandit(rule: Any) -> Make:
    return lambda space, floor, rng, breadth: LinearBandit(space, floor, rule=rule, breadth=breadth)


def _dqn(head: Any) -> Make:
    return lambda space, floor, rng, training: DQN(space, floor, rng, head=head, training=training)


DECAYS = tuple(
    Rates(step_size=step, decay=decay, explore_least=0.01) for decay in (0.01, 0.03, 0.1, 0.3) for step in (0.0, 0.1)
)
BREADTHS = (0.1, 0.01, 0.03, 0.2, 0.3, 0.5, 1.0, 2.0)
HORIZONS = (50, 10, 25, 75, 100, 150, 200, 400)
EXPLORING = tuple(Rates(decay=decay, explore_least=least) for decay in (0.01, 0.03, 0.1, 0.3) for least in (0.01, 0.05))
NETS = tuple(
    Training(hidden=32, learning_rate=rate, decay=decay, updates=updates, explore_least=0.01)
    for rate in (1e-3, 5e-3)
    for decay in (0.01, 0.03)
    for updates in (1, 4)
)
ARMS: dict[str, Arm] = {
    "device": Arm("device", lambda space, floor, rng, _: JointQ(space, floor), floor="none"),
    "edge": Arm("edge", lambda space, floor, rng, _: JointQ(space, floor), floor="none"),
    "cloud": Arm("cloud", lambda space, floor, rng, _: JointQ(space, floor), floor="none"),
    "offload RL": Arm("offload", _rates(JointQ), DECAYS, floor="none"),
    "offload RL, int8 too": Arm("offload-int8", _rates(JointQ), DECAYS),
    "models only": Arm("models", _rates(UserQ), DECAYS),
    "greedy": Arm("full", _rates(UserQ), (Rates(explore=0.0, explore_least=0.0),)),
    "AutoScale-like": Arm("full", _rates(UserQ), DECAYS),
    "published RL": Arm("paper", _rates(JointQ), DECAYS, floor="penalty"),
    "DQN": Arm("full", _dqn("joint"), NETS),
    "branching DQN": Arm("full", _dqn("branches"), NETS),
    "LinUCB": Arm("full", _bandit("ucb"), BREADTHS),
    "Thompson": Arm("full", _bandit("thompson"), BREADTHS),
    "structured": Arm("full", _rates(Structured), EXPLORING),
    "drift plus penalty": Arm(
        "full",
        lambda space, floor, rng, patience: DriftPlusPenalty(space, floor, patience=patience),
        (0.2, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0),
        floor="time",
    ),
    "hybrid": Arm("full", lambda space, floor, rng, horizon: Hybrid(space, floor, horizon=horizon), HORIZONS),
}
