from __future__ import annotations

import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.learn.backprop import accumulate
from edgert.learn.dqn import Learner
from edgert.nets import Params, initialise
from edgert.placement import agent, view
from edgert.placement.agent import Outcome
from edgert.placement.jobs import HOST, Flow, Job, Part, Split
from edgert.placement.load import Capacity, Load, Resources


def capacity(speed: float = 1.0, cores: float = 4.0, link: float = 1e7) -> Capacity:
    return Capacity(cores=cores, memory_bytes=1e9, link_bytes_per_s=link, speed=speed)


def loads(*speeds: float, **more: Resources) -> dict[str, Load]:
    return {
        name: Load(node=name, session=1, seq=1, capacity=capacity(speed), used=more.get(name, Resources()))
        for name, speed in zip("abcdefgh", speeds, strict=False)
    }


def job(workers: tuple[int, ...] = (1, 2), moved: float = 1e5) -> Job:
    splits = tuple(
        Split(
            kind="data",
            parts=(Part(compute_core_s=4 / count, memory_bytes=1e8, flows=(Flow(HOST, moved),)),) * count,
        )
        for count in workers
    )
    return Job(id="j", owner="a", splits=splits, steps=10, ship_bytes=1_000_000)


PARAMS = initialise(agent.SPEC, np.random.default_rng(0))
NOTHING = Params(agent.SPEC)
"""A network that leaves everything to the cost model."""


@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_neighbours_is_ranked_in_full(count: int) -> None:
    sight = view.look("a", loads(*([1.0] * count)), 0.0)
    rng, tempted, made = np.random.default_rng(1), agent.Rule(accept=1.0), job((2, 2))
    seen = set()
    for _ in range(60):
        decided = agent.propose(PARAMS, made, sight, 0.0, rng=rng, rule=tempted)
        seen.add(None if decided.proposal is None else decided.proposal.split)
        if decided.proposal is not None:
            assert len(decided.proposal.nodes) == len(made.splits[decided.proposal.split].parts)
            assert all(sorted(each) == sorted(sight.names) for each in decided.proposal.ranked)
            assert len(decided.choices) == len(decided.proposal.nodes)
        else:
            assert decided.choices[-1].chosen == len(decided.choices[-1].places) - 1
    assert seen == {None, 0, 1}


def test_the_look_ahead_takes_the_quickest_end_and_asks_what_it_costs_others() -> None:
    sight = view.look("a", loads(1.0, 4.0, 1.0), 0.0)
    best = agent.propose(NOTHING, job(), sight, 0.0).proposal
    assert best is not None and best.split == 1 and best.nodes == ("b", "b"), "two cores of the fastest node"
    thrifty = agent.propose(NOTHING, job(), sight, 0.0, rule=agent.Rule(base=50.0)).proposal
    assert thrifty is not None and thrifty.split == 0


def test_it_waits_for_a_fast_node_but_not_for_ever() -> None:
    full = Resources(cores=4.0)
    sight = view.look("a", loads(1.0, 4.0, a=Resources(), b=full), 0.0)
    assert agent.propose(NOTHING, job((1,)), sight, 0.0).proposal is None, "four times as slow is not worth having"
    waited_s = agent.patience_s(view.prospect(job((1,)), sight).ideal_s)
    late = agent.propose(NOTHING, job((1,)), sight, waited_s).proposal
    assert late is not None and late.nodes == ("a",) and not late.choosy


def test_the_same_question_gets_the_same_answer() -> None:
    sight = view.look("a", loads(1.0, 0.5, 2.0), 0.0)
    one, two = (agent.propose(PARAMS, job(), sight, 3.0) for _ in range(2))
    assert one.proposal == two.proposal and one.choices[0].log_prob == two.choices[0].log_prob


def test_a_full_node_is_not_chosen_and_with_no_room_anywhere_the_job_waits() -> None:
    full = Resources(cores=3.5)
    sight = view.look("a", loads(1.0, 1.0, 1.0, a=full, c=full), 0.0)
    rng = np.random.default_rng(2)
    for _ in range(40):
        decided = agent.propose(PARAMS, job((1,)), sight, 0.0, rng=rng)
        assert decided.proposal is None or decided.proposal.nodes == ("b",)
    nowhere = view.look("a", loads(1.0, a=full), 0.0)
    assert agent.propose(PARAMS, job(), nowhere, 0.0).proposal is None
    unmasked = [agent.propose(PARAMS, job(), nowhere, 0.0, masked=False, rng=rng).proposal for _ in range(30)]
    assert any(each is not None for each in unmasked)


def test_the_gradient_of_a_lesson_is_that_of_its_loss() -> None:
    sight = view.look("a", loads(1.0, 0.5, 2.0), 0.0)
    rng = np.random.default_rng(3)
    decided = [agent.propose(PARAMS, job(), sight, float(k), rng=rng) for k in range(6)]
    choices = [choice for each in decided for choice in each.choices]
    gains = [float(gain) for gain in rng.normal(size=len(choices))]
    moved = PARAMS.copy()
    moved.flat += rng.normal(size=moved.flat.size).astype(np.float32) * np.float32(0.01)
    told = agent.lesson(moved, choices, gains, entropy_weight=0.1)
    learner = Learner(moved)
    accumulate(moved, told.obs, lambda _, part: {0: told.d_out[part]}, learner.grads)
    direction = rng.normal(size=moved.flat.size).astype(np.float32)
    step = np.float32(1e-3)
    losses = []
    for sign in (1, -1):
        there = moved.copy()
        there.flat += sign * step * direction
        losses.append(agent.lesson(there, choices, gains, entropy_weight=0.1).loss)
    expected = (losses[0] - losses[1]) / (2 * float(step))
    assert float(learner.grads.flat @ direction) == pytest.approx(expected, rel=0.05, abs=2e-3)


def test_lessons_need_as_many_advantages_as_choices() -> None:
    with pytest.raises(UsageError):
        agent.lesson(PARAMS, [], [])


def test_a_device_learns_from_how_its_jobs_went() -> None:
    """Node b is ten times slower than it says: jobs that went there took longer, and soon none goes there."""
    sight = view.look("a", loads(1.0, 1.0), 0.0)
    rng = np.random.default_rng(5)
    learner = Learner(initialise(agent.SPEC, rng))

    def share() -> float:
        asked = [agent.propose(learner.params, job((1,)), sight, 0.0, rng=rng).proposal for _ in range(100)]
        placed = [each.nodes[0] for each in asked if each is not None]
        return placed.count("b") / max(1, len(placed))

    before = share()
    for _ in range(60):
        outcomes = []
        for _ in range(16):
            decided = agent.propose(learner.params, job((1,)), sight, 0.0, rng=rng)
            if decided.proposal is not None:
                outcomes.append(Outcome(decided.choices, 400.0 if decided.proposal.nodes == ("b",) else 40.0, 40.0))
        if not outcomes:
            continue
        choices = [choice for each in outcomes for choice in each.choices]
        told = agent.lesson(learner.params, choices, agent.worth(outcomes))
        accumulate(learner.params, told.obs, lambda _, part, d=told.d_out: {0: d[part]}, learner.grads)
        learner.descend(told.loss, 3e-3, 1.0)
    assert before > 0.3 and share() < 0.1


def test_the_worth_of_outcomes_is_relative() -> None:
    choice = agent.propose(PARAMS, job((1,)), view.look("a", loads(1.0), 0.0), 0.0).choices
    gains = agent.worth([Outcome(choice, 10.0, 10.0), Outcome(choice, 100.0, 10.0)])
    assert gains[0] > 0 > gains[-1] and sum(gains) == pytest.approx(0, abs=1e-9)
    assert agent.worth([]) == []
