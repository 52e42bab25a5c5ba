from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("minatar", reason="NOT TESTED: MinAtar is not installed (extra `minatar`)")

from edgert.nets import F32, U8
from edgert.policy import artifact
from tools.bench.rlink import plan
from tools.bench.rlink.baselines import Waiting

POLICY = artifact.load((Path(__file__).parents[4] / "models" / "breakout.edgert").read_bytes())
STEPS = 200


class Asker:
    """A teacher that always wants action 2, at no distance."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def ask(self, obs: U8) -> F32:
        self.sizes.append(len(obs))
        return np.tile(np.array([0.0, 0.0, 1.0], np.float32), (len(obs), 1))


def student(arm: str, **changes: object) -> tuple[Waiting, Asker]:
    settings = plan.settings_of(plan.TASKS["breakout"], arm, STEPS)
    settings |= {"learn.min_transitions": 50, "learn.ring_transitions": 1000, "learn.candidate_transitions": 100}
    asker = Asker()
    told = {**settings, **changes}
    return Waiting(POLICY, told, "MinAtar/Breakout-v1", STEPS, 1, asker), asker  # type: ignore[arg-type]  # asks alike


def test_a_blocking_student_asks_about_everything_in_batches() -> None:
    one, asker = student("sync", **{"bench.ask_batch": 32})
    while one.seq < STEPS:
        one.turn()
    assert asker.sizes == [32] * (STEPS // 32)
    taught = one.replay.taught()[2]
    assert len(taught) == STEPS // 32 * 32 and (taught[:, :3].argmax(1) == 2).all()
    assert one.learner.steps == pytest.approx((STEPS - 50) / 4, abs=2)
    assert one.episodes and one.episodes[-1][0] <= STEPS


def test_advice_is_followed_first_and_as_long_as_the_budget_lasts() -> None:
    one, asker = student("advising", **{"bench.advice_frac": 0.25})
    while one.seq < STEPS:
        one.turn()
    assert sum(asker.sizes) <= STEPS // 4 and set(asker.sizes) == {1}
    assert sum(asker.sizes) > STEPS // 8
    assert not len(one.replay.taught()[2])  # it acts on advice and learns from rewards
    lived = one.replay.newest(STEPS)
    assert (lived.batch.action[lived.seq <= STEPS // 10] == 2).all()


def test_what_is_offered_acts_and_says_when_it_was_made() -> None:
    one, _ = student("sync", **{"bench.ask_batch": 32})
    assert one.offer() is None
    while one.seq < STEPS:
        one.turn()
    before = one.net
    data = one.offer()
    assert data is not None and one.net is not before
    made = artifact.load(data).manifest.provenance["trained_on_device"]
    assert made == {"transitions": STEPS, "steps": one.learner.steps}
