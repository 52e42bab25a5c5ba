from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgert.nets import initialise
from edgert.placement import agent
from tools.bench.srole import play, policies
from tools.train import placer
from tools.train.placer import Hyper, Run

TINY = Hyper(tuning_rounds=0, imitation_steps=3, imitation_turns=1, batch=64, epochs=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer, "NODES", (3,))
    monkeypatch.setattr(placer, "ROLLOUTS", 2)
    monkeypatch.setattr(placer, "VALIDATION", ((3, 0.5, 5.0, 15.0, 1),))
    whole = placer.scene

    def scene(method: str, nodes: int, *rest: float) -> placer.Scene:
        made = whole(method, 3, *rest)  # type: ignore[arg-type]  # the last one is a whole number
        return made._replace(queue=made.queue[:6])

    monkeypatch.setattr(placer, "scene", scene)


@pytest.mark.parametrize("method", list(placer.METHODS))
def test_every_method_trains_stops_and_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    made = Run(method, 0, tmp_path, TINY)
    while made.turns < TINY.imitation_turns:
        made.step(0.0)
    made.point()
    before = made.learner.params.flat.copy()
    made.step(0.0)
    assert made.updates == 1 and not np.array_equal(before, made.learner.params.flat)
    made.keep()
    again = Run(method, 0, tmp_path, TINY)
    assert np.array_equal(again.learner.params.flat, made.learner.params.flat) and again.updates == 1
    made.step(0.5)
    again.step(0.5)
    assert np.array_equal(again.learner.params.flat, made.learner.params.flat)
    assert {"drawn", "best", "spent_s"} <= json.loads((tmp_path / "curve.json").read_text())["curve"][0].keys()


def test_the_teacher_is_told_as_choices_of_the_agent() -> None:
    where = placer.scene("srole", 3, 0.8, 5.0, 15.0, 4)
    params = initialise(agent.SPEC, np.random.default_rng(0))
    told = placer.imitate(params, True, policies.priced(policies.Knobs()), None)
    played = placer.run(where, told, 0)
    plain = placer.run(where, policies.priced(policies.Knobs()), 0)
    assert played.times_s == plain.times_s
    assert played.made and all(0 <= each.chosen < len(each.places) for made in played.made for each in made.choices)


def test_the_play_that_went_better_is_the_one_to_follow() -> None:
    where = placer.scene("srole", 3, 0.8, 5.0, 15.0, 4)
    params = initialise(agent.SPEC, np.random.default_rng(0))
    decide = policies.learned(params, masked=True, explore=True)
    plays: list[play.Played] = [placer.run(where, decide, seed) for seed in range(4)]
    choices, gains = placer.advantages(plays, own_weight=1.0)
    assert len(choices) == len(gains) == sum(len(made.choices) for each in plays for made in each.made)
    first = plays[0].made[0]
    same = [each.times_s[first.job] for each in plays]
    if same[0] < np.exp(np.mean(np.log(same))):
        assert gains[0] > 0
    else:
        assert gains[0] <= 0
