"""Every learner that a device may run, by the name that its configuration says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from edgert.offload.bandits import LinearBandit
from edgert.offload.dqn import DQN, Training
from edgert.offload.hybrid import Hybrid
from edgert.offload.lyapunov import DriftPlusPenalty
from edgert.offload.space import Floor, Goal, Learner, Space
from edgert.offload.structured import Structured
from edgert.offload.tabular import JointQ, Rates, UserQ
from edgert.sections import LearnerName

_TRAINING = Training(hidden=32, updates=4, decay=0.03, explore_least=0.01)
_MAKERS: dict[LearnerName, Callable[..., Learner]] = {
    "hybrid": Hybrid,
    "structured": partial(Structured, rates=Rates(decay=0.3, explore_least=0.01)),
    "linucb": partial(LinearBandit, rule="ucb", breadth=0.5),
    "thompson": partial(LinearBandit, rule="thompson", breadth=0.01),
    "dqn": partial(DQN, training=_TRAINING),
    "branching-dqn": partial(DQN, head="branches", training=_TRAINING),
    "joint-table": partial(JointQ, rates=Rates(decay=0.03, explore_least=0.01)),
    "user-tables": partial(UserQ, rates=Rates(decay=0.1, explore_least=0.01)),
    "drift-plus-penalty": partial(DriftPlusPenalty, patience=1.0),
}


def make(name: LearnerName, space: Space, floor: Floor, goal: Goal, rng: np.random.Generator) -> Learner:
    """Begin with nothing learned.

    Args:
        name: of the learner.
        space: to choose from.
        floor: to hold; for "drift-plus-penalty" a mean over time.
        goal: what is made small.
        rng: chance, for the weights of networks.

    Returns:
        The learner.

    Raises:
        nothing.
    Source:
        ours: settings as `tools.bench offload --tune` found them, on worlds that are not reported.
    """
    maker = _MAKERS[name]
    return maker(space, floor, goal=goal, **({"rng": rng} if name in ("dqn", "branching-dqn") else {}))
