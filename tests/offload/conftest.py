"""Eight variants, and a small world in which those who share a node wait for one another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgert.offload.space import Action, Learner, Load, Outcome, Space, State, Variant, allowed

ACCURACY = (0.9, 0.88, 0.85, 0.74)
MACS = (569, 317, 150, 41)


class Toy:
    """Seconds = what the variant costs there, times who is there; noise of a few percent."""

    def __init__(self, space: Space, weak: tuple[bool, ...] | None = None) -> None:
        self.space, self.weak, self.slow = space, weak or (False,) * space.users, 1.0

    @property
    def state(self) -> State:
        users = tuple(Load(cpu_frac=0.0, rtt_s=0.04 if weak else 0.002) for weak in self.weak)
        return State(users=users, edge=Load(cpu_frac=0.0), cloud=Load(cpu_frac=0.0, rtt_s=0.01))

    def seconds(self, action: Action) -> list[float]:
        chosen = [self.space.choices[each] for each in action]
        found = []
        for user, choice in enumerate(chosen):
            variant = self.space.variants[choice.variant]
            work = (0.02 + 0.1 * variant.macs / 569) * (0.5 if variant.precision == "int8" else 1.0)
            crowd = sum(choice.place == other.place for other in chosen)
            if choice.place == "device":
                found.append(work * (1 + 0.05 * user))
            else:
                far = 0.04 * self.weak[user] + (0.01 if choice.place == "cloud" else 0.0)
                speed = {"edge": 2.0 / self.slow, "cloud": 4.0}[choice.place]
                found.append(far + work * crowd / speed)
        return found

    def outcomes(self, action: Action, rng: np.random.Generator) -> tuple[Outcome, ...]:
        return tuple(Outcome(response_s=each * float(np.exp(rng.normal(0, 0.03)))) for each in self.seconds(action))

    def mean_s(self, action: Action) -> float:
        return float(np.mean(self.seconds(action)))

    def teach(self, learner: Learner, steps: int, rng: np.random.Generator) -> list[float]:
        may = allowed(self.space, getattr(getattr(learner, "joint", None), "floor", None))
        costs = []
        for _ in range(steps):
            action = learner.choose(self.state, may, rng)
            learner.observe(self.state, action, self.outcomes(action, rng))
            costs.append(self.mean_s(action))
        return costs


@pytest.fixture
def variants() -> tuple[Variant, ...]:
    return tuple(
        Variant(name=f"{macs}-{kind}", accuracy_frac=best - less, macs=macs, precision=kind, input_bytes=1000)
        for kind, less in (("float32", 0.0), ("int8", 0.005))
        for best, macs in zip(ACCURACY, MACS, strict=True)
    )


@pytest.fixture
def toy() -> Callable[..., Toy]:
    return Toy
