from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgert.nets import Params, initialise
from edgert.placement import agent
from tools.bench.srole import play, policies
from tools.train import placer
from tools.train.placer import Hyper, Run

TINY = Hyper(batch=64, epochs=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer, "NODES", (3,))
    monkeypatch.setattr(placer, "ROLLOUTS", 2)
    monkeypatch.setattr(placer, "VALIDATION", ((3, 0.5, 5.0, 15.0, 1, 1),))
    whole = placer.scene

    def scene(method: str, nodes: int, *rest: float) -> placer.Scene:
        made = whole(method, 3, *rest)  # type: ignore[arg-type]  # the last one is a whole number
        return made._replace(queue=made.queue[:6])

    monkeypatch.setattr(placer, "scene", scene)


@pytest.mark.parametrize("method", list(placer.METHODS))
def test_every_method_trains_stops_and_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    made = Run(method, 0, tmp_path, TINY)
    made.point()
    before = made.learner.params.flat.copy()
    made.update(0.0)
    assert made.updates == 1 and not np.array_equal(before, made.learner.params.flat)
    made.keep()
    again = Run(method, 0, tmp_path, TINY)
    assert np.array_equal(again.learner.params.flat, made.learner.params.flat) and again.updates == 1
    made.update(0.5)
    again.update(0.5)
    assert np.array_equal(again.learner.params.flat, made.learner.params.flat)
    assert {"drawn", "best", "spent_s"} <= json.loads((tmp_path / "curve.json").read_text())["curve"][0].keys()


def test_a_network_begins_with_nothing_to_say() -> None:
    where = placer.scene("srole", 3, 0.8, 5.0, 15.0, 4)
    decide = [policies.learned(p, masked=True, explore=False) for p in (placer.begin(3), Params(agent.SPEC))]
    first, second = (placer.run(where, each, 0) for each in decide)
    assert first.times_s == second.times_s


@pytest.mark.parametrize(("burst", "groups"), [(1, 6), (4, 2), (0, 1)])
def test_jobs_come_one_by_one_or_together(burst: int, groups: int) -> None:
    queue = placer.scene("srole", 3, 0.8, 5.0, 15.0, 4, burst).queue
    assert len({job.born_s for job in queue}) == groups


def test_constants_are_tuned_to_what_is_no_worse(capsys: pytest.CaptureFixture[str]) -> None:
    found = placer.tune(rounds=1, draws=2)
    told = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert isinstance(found, agent.Rule) and told == sorted(told, reverse=True)


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
