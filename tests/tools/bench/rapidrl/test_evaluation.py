from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.nets import initialise
from edgert.policy.exits import taken
from edgert.values import Operating

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("minatar")
from tools.bench import rapidrl
from tools.bench.rapidrl import evaluation, plan
from tools.bench.rapidrl.evaluation import Evaluation, Protocol, Record
from tools.bench.rapidrl.policies import Played, Policy, play
from tools.nets import NETS

TINY = Protocol(
    episodes=2,
    validation_episodes=2,
    scout_episodes=1,
    watched_episodes=2,
    observations=64,
    max_steps=20,
    latency_samples=20,
    paced_samples=2,
)


def trained(runs: Path, role: str, net: str, seed: int = 0, task: str = "breakout") -> Path:
    """What the trainer leaves of a run, with a network that has learnt nothing."""
    folder = plan.folder(runs, task, role, seed)
    folder.mkdir(parents=True, exist_ok=True)
    spec = NETS[net]((10, 10, 4), 3)
    params = initialise(spec, np.random.default_rng(len(role)))
    params.flat += np.random.default_rng(1).normal(0, 0.05, params.flat.shape).astype(np.float32)
    params.flat.tofile(folder / "best.f32")
    (folder / "run.json").write_text(json.dumps({"spec": msgspec.to_builtins(spec), "env": plan.TASKS[task].env}))
    return folder


def counted() -> tuple[list[Policy], Any]:
    asked: list[Policy] = []

    def run(trials: Any) -> Any:
        for trial in trials:
            asked.append(trial.policy)
            yield play(trial)

    return asked, run


def record(cost: float, returns: list[float], threshold: float) -> Record:
    policy = Policy(role="exits", operating=Operating((threshold,)))
    ticks = round(1000 * cost)
    return Record(
        key="", policy=policy, costs=[1, 0], returns=returns, exit_ticks=[[ticks, 1000 - ticks]], held_ticks=[0]
    )


def test_what_was_played_is_not_played_again_until_its_network_changes(tmp_path: Path) -> None:
    for role, net in (("full", "board"), ("exits", "board"), ("small34", "board-34")):
        trained(tmp_path, role, net)
    asked, run = counted()
    first = Evaluation(tmp_path, "breakout", 0, TINY, run)
    first.main()
    first.rest()
    names = set(first.book.records)
    assert {"random", "full-int8", "full-fp32", "chosen", "ours@0.34", "ours@full", "small34"} <= names
    assert {"always-exit-0", "always-exit-1", "random-exit", "gap@0.25", "entropy@0.7", "hold2-half"} <= names
    assert first.book.records["full-int8"].costs == [evaluation.full_ops(NETS["board"]((10, 10, 4), 3))]
    assert len(first.book.records["random"].returns) == 2 * TINY.episodes
    assert {"latency", "confidence"} <= set(first.book.notes)
    played = len(asked)
    again = Evaluation(tmp_path, "breakout", 0, TINY, run)
    again.main()
    again.rest()
    assert len(asked) == played
    assert again.book.records == first.book.records
    folder = trained(tmp_path, "small34", "board-34")
    (np.fromfile(folder / "best.f32", np.float32) + np.float32(0.01)).tofile(folder / "best.f32")
    Evaluation(tmp_path, "breakout", 0, TINY, run).main()
    assert {policy.role for policy in asked[played:]} == {"small34"}
    folder = trained(tmp_path, "exits", "board")
    (np.fromfile(folder / "best.f32", np.float32) + np.float32(0.01)).tofile(folder / "best.f32")
    anew = Evaluation(tmp_path, "breakout", 0, TINY, run)
    anew.main()
    assert "ours@0.34" in anew.book.records
    assert "gap@0.25" not in anew.book.records, "nothing of the network before is left"


def test_everything_from_a_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs, out = tmp_path / "runs", tmp_path / "out"
    trained(runs, "full", "board")
    trained(runs, "exits", "board")
    limits = [
        word
        for name in ("episodes", "validation_episodes", "scout_episodes", "watched_episodes", "observations")
        for word in ("--" + name.replace("_", "-"), str(getattr(TINY, name)))
    ]
    told = ["--runs", str(runs), "--out", str(out), "--models", str(tmp_path), "--tasks", "breakout", "--seeds", "2"]
    more = ["--parts", "main", "--max-steps", "20", "--latency-samples", "20", "--paced-samples", "2"]
    assert rapidrl.main([*told, *limits, *more]) == 0
    document = json.loads((out / "rapidrl.json").read_text())
    assert (out / "rapidrl.svg").read_text().lstrip().startswith("<?xml")
    assert "breakout seed 1: not trained" in document["missing"]
    assert "breakout seed 0: alone34 missing" in document["missing"]
    assert document["tasks"]["breakout"]["seeds"] == [0]
    assert document["command"].startswith("python -m tools.bench rapidrl --runs")
    assert "full-int8" in capsys.readouterr().out
    assert rapidrl.main([*told, "--report"]) == 0
    assert rapidrl.main([*told, "--list"]) == 0
    assert "finished" in capsys.readouterr().out


def test_other_processes_play_the_same(tmp_path: Path) -> None:
    trained(tmp_path, "full", "board")
    seeds = range(3)
    net = Evaluation(tmp_path, "breakout", 0, TINY, counted()[1]).network("full")
    assert net is not None
    policies = [Policy(role="full", only=1), Policy(role="")]
    trials = [
        evaluation.Trial(plan.TASKS["breakout"], policy, net.spec, None, net.tensors, seeds, 20) for policy in policies
    ]
    with rapidrl.players(2) as run:
        found: list[Played] = list(run(trials))
    for one, two in zip(map(play, trials), found, strict=True):
        assert np.array_equal(one.returns, two.returns)
        assert np.array_equal(one.exit_ticks, two.exit_ticks)


def test_the_best_setting_within_each_limit_is_chosen_and_chance_is_not_mistaken_for_better() -> None:
    validated = [
        record(0.2, [1.0, 1.2], 0.1),
        record(0.3, [5.0, 7.0], 0.2),
        record(0.33, [5.5, 6.0], 0.3),
        record(0.6, [2.0, 2.1], 0.4),
        record(1.0, [9.0, 9.0], 1.0),
    ]

    def thresholds(name: str) -> float:
        return chosen[name].operating.thresholds[0]

    chosen = evaluation.choose(validated, 1, (0.1, 0.25, 0.34, 0.7, 1.1))
    assert thresholds("0.1") == 0.1, "nothing is as cheap: the cheapest"
    assert thresholds("0.25") == 0.1
    assert thresholds("0.34") == 0.2, "0.33 of 0.34 leaves no room"
    assert thresholds("0.7") == 0.3, "as good as the best within its error, and dearer"
    assert thresholds("1.1") == 1.0
    assert thresholds("full") == 1.0


def test_proposals_stay_within_what_they_may_cost() -> None:
    rng = np.random.default_rng(0)
    heads = {k: rng.normal(size=(300, 4)).astype(np.float32) for k in range(3)}
    cost, whole = [20, 50, 104], 100
    limits = (0.1, 0.3, 0.5, 0.8)
    settings = evaluation.propose(heads, cost, whole, limits)
    spent = [float(np.asarray(cost, float)[taken(heads, each.thresholds)].mean()) / whole for each in settings]
    assert spent[0] == pytest.approx(0.2)
    assert settings[-1] == Operating((1.0, 1.0))
    for limit in limits[1:]:
        assert 0.75 * limit < max(each for each in spent if each <= limit) <= limit
    assert len(set(settings)) == len(settings)


def test_calibration_error() -> None:
    sure = np.array([[1.0, 0.0, 50.0]] * 6 + [[0.0, 1.0, 50.0]] * 2, np.float32)
    best = np.array([[1.0, 0.0, 0.0]] * 8, np.float32)
    (found,) = evaluation.calibration({0: sure, 1: best}, (0.5,))
    assert found == {"exit": 0, "reached": 1.0, "agreement": 0.75, "confidence": 1.0, "ece": 0.25}


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "eval-s0.json"
    assert evaluation.read_book(path) == evaluation.Book()
    path.write_text('{"records": 3}')
    with pytest.raises(UsageError, match="remove it"):
        evaluation.read_book(path)
