"""Who decides: the agent, and the rules it is measured against. All see the same and may rank every node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgert.nets import Params
from edgert.placement import agent, view
from edgert.placement.agent import Decided
from edgert.placement.jobs import Job, Proposal, urgency
from edgert.placement.view import Sight

F64 = npt.NDArray[np.float64]
Decide: TypeAlias = Callable[[Job, Sight, float, int, np.random.Generator], Decided]
"""(job, what is known, now_s, attempt, rng) -> the decision."""
Score: TypeAlias = Callable[[view.Fit, Sight, np.random.Generator], F64]
"""(how the next part would do, what is known, rng) -> (N,) the smaller the better."""


def learned(params: Params, *, masked: bool, explore: bool, rule: agent.Rule = agent.RULE) -> Decide:
    """The agent, drawing from its policy or taking the best."""

    def decide(job: Job, sight: Sight, now_s: float, attempt: int, rng: np.random.Generator) -> Decided:
        drawn = rng if explore else None
        return agent.propose(params, job, sight, now_s, attempt=attempt, masked=masked, rng=drawn, rule=rule)

    return decide


def _greedy(
    job: Job, s: int, score: Score, sight: Sight, rng: np.random.Generator
) -> tuple[list[F64], list[int], float]:
    """Part by part to the node with the best score that has room: (scores, places, finish); places may be too few."""
    placed: list[int] = []
    scores: list[F64] = []
    finish_s = float("inf")
    for _ in job.splits[s].parts:
        fit = view.estimate(job, job.splits[s : s + 1], placed, sight)
        cost = score(fit, sight, rng)
        cost = np.where(fit.fits[0], cost, cost + 1e6)
        n = int(cost.argmin())
        if not fit.fits[0][n]:
            break
        finish_s = float(fit.step_s[0][n] * job.steps + fit.ship_s[0][n])
        placed.append(n)
        scores.append(cost)
    return scores, placed, finish_s


def rule(score: Score, workers: Sequence[int] = (1,), *, choosy: bool = False) -> Decide:
    """A rule that scores nodes, with the split that it expects to end first among those with so many parts."""

    def decide(job: Job, sight: Sight, now_s: float, attempt: int, rng: np.random.Generator) -> Decided:
        best: tuple[float, int, list[F64], list[int]] | None = None
        for s, split in enumerate(job.splits):
            if len(split.parts) in workers and (split.kind == "data" or len(workers) > 1):
                scores, placed, finish_s = _greedy(job, s, score, sight, rng)
                if len(placed) == len(split.parts) and (best is None or finish_s < best[0]):
                    best = finish_s, s, scores, placed
        if best is None:
            return Decided(None, ())
        _, s, scores, placed = best
        chosen = [np.argsort(cost, kind="stable") for cost in scores]
        if choosy:
            chosen = [each[cost[each] <= ACCEPT * cost.min()] for each, cost in zip(chosen, scores, strict=True)]
        ranked = tuple(tuple(sight.names[n] for n in each) for each in chosen)
        nodes = tuple(sight.names[n] for n in placed)
        made = Proposal(
            choosy=choosy and now_s - job.born_s < agent.patience_s(view.prospect(job, sight).ideal_s),
            job=job,
            attempt=attempt,
            split=s,
            nodes=nodes,
            ranked=ranked,
            urgency_s=urgency(job, s, now_s),
        )
        return Decided(made, ())

    return decide


ACCEPT = 1.5
"""Times the cost of the best place: a rule that knows times rather waits than takes a place that costs more."""


def _random(fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
    return rng.random(len(sight.names))


def _least(fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
    return np.asarray(-fit.cores[0] / sight.cores + 1e-6 * rng.random(len(sight.names)))


def _two(fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
    cost = np.full(len(sight.names), 1e3) + rng.random(len(sight.names))
    room = np.flatnonzero(fit.fits[0])
    drawn = rng.choice(room, min(2, len(room)), replace=False) if len(room) else room
    cost[drawn] = -fit.cores[0][drawn]
    return cost


def _best_fit(fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
    return np.asarray(fit.cores[0] / sight.cores + fit.memory[0] / sight.memory)


def _finish(fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
    return np.asarray(fit.step_s[0] + 1e-3 * fit.ship_s[0])


class _Turn:
    """Round robin: one after the other, each device from where it stopped."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}

    def __call__(self, fit: view.Fit, sight: Sight, rng: np.random.Generator) -> F64:
        me, count = sight.names[sight.me], len(sight.names)
        self.at[me] = (self.at.get(me, int(rng.integers(count))) + 1) % count
        return np.roll(np.arange(count, dtype=np.float64), self.at[me])


def rules() -> dict[str, Decide]:
    """Every rule; what splits a job does so as far as it expects to gain by it."""
    return {
        "random": rule(_random),
        "round robin": rule(_Turn()),
        "least loaded": rule(_least),
        "two choices": rule(_two),
        "best fit": rule(_best_fit),
        "HEFT": rule(_finish, choosy=True),
        "HEFT, split": rule(_finish, (1, 2, 4), choosy=True),
        "HEFT, 2 at most": rule(_finish, (1, 2), choosy=True),
        "least loaded, 2": rule(_least, (2,)),
    }
