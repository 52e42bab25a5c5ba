"""How many real samples until the greedy choice is as good as the oracle's, and stays so."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgert.offload.hybrid import Hybrid
from edgert.offload.joint import Joint
from edgert.offload.space import Allowed, Floor, Learner, Space, State, allowed
from edgert.offload.tabular import Rates
from tools.bench.hybrid.dyna import Dyna
from tools.bench.offload.play import translate
from tools.bench.offload.world import World

WITHIN = (0.01, 0.05)
EVALUATIONS = 100
SWITCH_EVERY = 10
"""Joint actions after which a scene of several worlds goes on to the next."""
BLOCK = 128
"""Samples of the joint table between two evaluations."""


class Found(NamedTuple):
    """When a learner had converged.

    Attributes:
        samples: by each share of `WITHIN`: joint actions that were really taken; the cap where it never converged.
        censored: by each share: it never did.
        cpu_s: by each share: spent on deciding and learning until then.
        total_s: by each share: that, and the time that the joint actions themselves took.
        gap: at the end.
        log_gap: mean over the run of the logarithm of the gap, which counts as 0.1 % at least.
        model_error: of a system model at the end, mean absolute share over joint actions of the floor; None without.
    """

    samples: tuple[int, ...]
    censored: tuple[bool, ...]
    cpu_s: tuple[float, ...]
    total_s: tuple[float, ...]
    gap: float
    model_error: float | None
    log_gap: float


class Scene:
    """One or several worlds that take turns, and what is best in each.

    Attributes:
        worlds, space, floor: as given.
        oracles: the lowest mean in each world.
        states: what is reported in each.
        allowed: masks of the floor.
    """

    def __init__(self, worlds: Sequence[World], space: Space, floor: Floor) -> None:
        """Ask the oracle.

        Args:
            worlds: over a space that holds `space`.
            space: what may be chosen.
            floor: to hold.
        """
        self.worlds, self.space, self.floor = list(worlds), space, floor
        self.index = np.array(translate(space, worlds[0].space))
        self.states: list[State] = [world.state() for world in worlds]
        self.allowed: Allowed = allowed(space, floor)
        self.actions = None
        joint = Joint(space, floor)
        if np.prod(joint.mask(self.allowed).sum(axis=1).astype(float)) <= 1 << 17:
            self.actions = joint.every(self.allowed)
            self.means = [world.means(self.index[self.actions]).mean(axis=1) for world in worlds]
            self.oracles = [float(each.min()) for each in self.means]
        else:
            self.oracles = [world.oracle(floor)[1] for world in worlds]

    def turn(self, step: int) -> int:
        """Whose turn it is."""
        return step // SWITCH_EVERY % len(self.worlds)

    def gap(self, learner: Learner | Dyna) -> float:
        """How far the greedy choice is above the oracle, in the worst of the worlds."""
        found = []
        for world, state, oracle in zip(self.worlds, self.states, self.oracles, strict=True):
            best = self.index[list(learner.best(state, self.allowed))]
            found.append(float(world.means(best[None]).mean()) / oracle - 1)
        return max(found)


class _Watch:
    """Keeps, for each share, since when all evaluations were within it."""

    def __init__(self) -> None:
        self.since: list[tuple[int, float, float] | None] = [None] * len(WITHIN)
        self.held = [0] * len(WITHIN)
        self.found: list[tuple[int, float, float] | None] = [None] * len(WITHIN)
        self.log_gaps: list[float] = []

    def look(self, gap: float, now: tuple[int, float, float]) -> bool:
        """Take one evaluation; True when everything has been found."""
        self.log_gaps.append(float(np.log(max(gap, 1e-3))))
        for at, share in enumerate(WITHIN):
            if gap > share + 1e-9:
                self.since[at], self.held[at] = None, 0
                continue
            if self.since[at] is None:
                self.since[at] = now
            self.held[at] += 1
            if self.held[at] >= EVALUATIONS and self.found[at] is None:
                self.found[at] = self.since[at]
        return all(each is not None for each in self.found)

    def result(self, cap: tuple[int, float, float], evaluations: int, gap: float, model_error: float | None) -> Found:
        """Sum up; what was not found is censored at the cap, and who has converged would have stayed as it was."""
        kept = self.log_gaps + [float(np.mean(self.log_gaps[-EVALUATIONS:]))] * (evaluations - len(self.log_gaps))
        whole = [each or cap for each in self.found]
        return Found(
            tuple(each[0] for each in whole),
            tuple(each is None for each in self.found),
            tuple(each[1] for each in whole),
            tuple(each[1] + each[2] for each in whole),
            gap,
            model_error,
            float(np.mean(kept)),
        )


def converge(learner: Learner | Dyna, scene: Scene, cap: int, rng: np.random.Generator) -> Found:
    """Let a learner learn until it has converged, or the cap."""
    watch, cpu_s, took_s, gap = _Watch(), 0.0, 0.0, np.inf
    for step in range(cap):
        turn = scene.turn(step)
        state = scene.states[turn]
        began = time.process_time()
        action = learner.choose(state, scene.allowed, rng)
        cpu_s += time.process_time() - began
        outcomes = scene.worlds[turn].outcomes(tuple(scene.index[list(action)].tolist()), rng)
        began = time.process_time()
        learner.observe(state, action, outcomes)
        cpu_s += time.process_time() - began
        took_s += max(outcome.response_s or 0.0 for outcome in outcomes)
        gap = scene.gap(learner)
        if watch.look(gap, (step + 1, cpu_s, took_s)):
            break
    return watch.result((cap, cpu_s, took_s), cap, gap, model_error(learner, scene, rng))


def model_error(learner: Learner | Dyna, scene: Scene, rng: np.random.Generator) -> float | None:
    """How far a system model is off, over joint actions drawn by chance."""
    if not isinstance(learner, Hybrid):
        return None
    errors = []
    for world, state in zip(scene.worlds, scene.states, strict=True):
        actions = np.array([learner.joint.draw(scene.allowed, rng) for _ in range(200)])
        expected = learner.joint.expect(learner.model.tables(state), actions)
        errors.append(float(np.mean(np.abs(expected / world.means(scene.index[actions]) - 1))))
    return float(np.mean(errors))


def table(scene: Scene, rates: Rates, cap: int, rng: np.random.Generator) -> Found:
    """The joint table of `tabular.JointQ`, in blocks: `BLOCK` samples are drawn with what was known before them.

    A hundred thousand samples of a table are otherwise minutes of interpreter.
    """
    if scene.actions is None:
        raise ValueError("joint actions that cannot be listed have no table")
    size = len(scene.actions)
    count = np.zeros((len(scene.worlds), size))
    mean = np.full((len(scene.worlds), size), np.inf)
    watch, cpu_s, took_s, gap, steps = _Watch(), 0.0, 0.0, np.inf, 0
    while steps < cap:
        turn = steps // BLOCK % len(scene.worlds)
        world = scene.worlds[turn]
        began = time.process_time()
        explore = max(rates.explore * (1 - rates.decay) ** steps, rates.explore_least)
        pick = np.where(rng.random(BLOCK) < explore, rng.integers(size, size=BLOCK), int(mean[turn].argmin()))
        cpu_s += time.process_time() - began
        answers = world.steps(scene.index[scene.actions[pick]], rng)
        began = time.process_time()
        for index, cost in zip(pick.tolist(), answers.mean(axis=1).tolist(), strict=True):
            count[turn, index] += 1
            rate = max(rates.step_size, 1 / count[turn, index])
            known = mean[turn, index]
            mean[turn, index] = cost if np.isinf(known) else known + rate * (cost - known)
        cpu_s += time.process_time() - began
        took_s += float(answers.max(axis=1).sum())
        steps += BLOCK
        gap = max(
            float(means[known.argmin()]) / oracle - 1
            for means, known, oracle in zip(scene.means, mean, scene.oracles, strict=True)
        )
        if watch.look(gap, (steps, cpu_s, took_s)):
            break
    return watch.result((cap, cpu_s, took_s), cap // BLOCK, gap, None)
