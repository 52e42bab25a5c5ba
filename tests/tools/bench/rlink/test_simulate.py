"""The simulated device: its world is what it says, and a bad teacher leaves its student bit for bit alone."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench.rlink.simulate import Catch, earned, simulate, teacher

QUICK = {"learn.gated": False, "learn.min_transitions": 100}


def test_the_values_of_catch_are_those_of_playing_it() -> None:
    world = Catch(3)
    for _ in range(40):
        obs, claimed, reward, left = world.reset(), None, 0.0, 0
        over = False
        while not over:
            q = Catch.values(obs[None])[0]
            claimed = float(q.max()) if claimed is None else claimed
            obs, reward, over, _ = world.step(int(q.argmax()))
            left += 1
        assert claimed == pytest.approx(Catch.GAMMA ** (left - 1) * reward)


def test_each_teacher_is_of_its_quality() -> None:
    def level(name: str) -> float:
        values, world, total = teacher(name, "catch", 0), Catch(7), 0.0
        assert values is not None
        for _ in range(150):
            obs, over = world.reset(), False
            while not over:
                obs, reward, over, _ = world.step(int(values(obs[None])[0].argmax()))
            total += reward
        return total / 150

    good, weak, adversarial = level("good"), level("weak"), level("adversarial")
    assert good > 0.7 and adversarial < -0.9
    assert adversarial + 0.2 * (good - adversarial) < weak < good - 0.2


@pytest.mark.parametrize("name", ["adversarial", "random"])
def test_with_a_bad_teacher_a_student_lives_exactly_as_alone(name: str) -> None:
    lives = [
        simulate("catch", teacher(each, "catch", 0), transitions=600, seed=0, steps_per_transition=0.1, settings=QUICK)
        for each in ("none", name)
    ]
    assert lives[1]["counters"]["answered"] > 200, "it did listen"
    assert lives[0]["returns"] == lives[1]["returns"]
    assert lives[0]["steps"] == lives[1]["steps"] > 0


def test_a_good_teacher_is_believed_over_a_bad_link() -> None:
    found = simulate(
        "catch",
        teacher("good", "catch", 0),
        transitions=900,
        seed=0,
        steps_per_transition=0.1,
        rtt_s=0.5,
        loss=0.2,
        settings=QUICK,
    )
    assert found["trust"][-1][1] > 0.5
    assert found["counters"]["expired"] == 0 or found["counters"]["joined"] > 300
    assert len(earned(found)) == 6 and np.isfinite(earned(found)[-1])
