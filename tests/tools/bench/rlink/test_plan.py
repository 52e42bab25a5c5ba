from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgert.config import commented_default, parse
from edgert.ports.cluster import GAMES
from tools.bench.rlink import command, plan
from tools.nets import NETS


def test_every_task_and_arm_makes_a_configuration_that_a_device_takes() -> None:
    for run in plan.planned(plan.PARTS, list(plan.TASKS), list(plan.ARMS), seeds=1):
        told = {key: value for key, value in run.settings.items() if not key.startswith("bench.")}
        told |= {"device.id": "d", "policy.bundle": "/b.edgert"}
        assert parse(commented_default(told), run.key)
    assert all(GAMES[task.game] == task.env and task.net in NETS for task in plan.TASKS.values())


def test_the_arms_take_the_same_gradient_steps_and_explore_alike() -> None:
    runs = plan.planned(["convergence"], ["cartpole"], seeds=1)
    assert {run.arm for run in runs} == set(plan.ARMS) - {plan.GATED, *plan.ABLATIONS}
    same = ("learn.steps_per_transition", "learn.batch", "policy.explore_transitions", "learn.candidate_transitions")
    for key in same:
        said = {run.settings[key] for run in runs if run.arm != "alone-replay"}
        assert len(said) == 1, key


def test_a_run_is_known_by_what_it_depends_on() -> None:
    (run,) = plan.planned(["convergence"], ["cartpole"], ["ours"], seeds=1)
    changed = [
        msgspec.structs.replace(run, seed=2),
        msgspec.structs.replace(run, steps=1),
        msgspec.structs.replace(run, settings={**run.settings, "learn.learning_rate": 0.5}),
        msgspec.structs.replace(run, link="500ms"),
        msgspec.structs.replace(run, faults=(plan.Fault(1, "reset"),)),
    ]
    assert len({run.key, *(each.key for each in changed)}) == 6
    assert msgspec.structs.replace(run, part="harm").key == run.key
    assert msgspec.json.decode(msgspec.json.encode(run), type=plan.Planned) == run


def test_what_two_parts_want_is_lived_once_and_first_seeds_come_first() -> None:
    runs = plan.planned(["convergence", "harm"], ["cartpole"], seeds=2)
    assert len({run.key for run in runs}) == len(runs)
    assert sum(run.arm == "alone" for run in runs) == 2
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert {run.teacher for run in runs if run.arm == "ours"} == set(plan.TEACHERS)
    alone, gated = (next(run.settings for run in runs if run.arm == arm) for arm in ("alone", plan.GATED))
    assert {key for key in alone if alone[key] != gated[key]} == {"learn.gated"}


def test_a_blocking_student_is_timed_and_not_waited_for() -> None:
    runs = plan.planned(["link"], ["cartpole"], seeds=3)
    slowest = max(run.estimate_s for run in runs if run.arm == "sync")
    assert slowest < 400
    assert {run.link for run in runs if run.arm == "ours"} == set(plan.LINKS)


def test_bundles_are_made_once_and_good_teachers_before_bad_ones(tmp_path: Path) -> None:
    runs = plan.planned(["convergence", "harm"], ["cartpole"], seeds=2)
    made = plan.bundles(tmp_path, runs)
    paths = [each.path.name for each in made]
    assert len(set(paths)) == len(paths)
    assert {"cartpole-1.edgert", "cartpole-2.edgert", "cartpole-adversarial.edgert"} <= set(paths)
    assert paths.index("cartpole-teacher.edgert") < paths.index("cartpole-third.edgert")
    assert all("--out" in line for each in made for line in each.commands)


def test_shares_of_a_run_become_transitions() -> None:
    settings = plan.settings_of(plan.TASKS["cartpole"], "kickstarting", 1000)
    assert settings["learn.distill_transitions"] == 500
    grids = command.grids(["cartpole"], ["kickstarting"])
    assert {run.settings["learn.distill_transitions"] for run in grids} == {3000, 6000, 12_000}
    assert {run.seed for run in grids} == set(plan.TUNING_SEEDS)


def test_listing_needs_nothing_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "--tasks", "cartpole", "--seeds", "1", "--runs", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "tools.train" in told and "runs to come" in told
    assert command.main(["--report", "--runs", str(tmp_path)]) == 1


def test_what_other_commands_measured_is_told_with_its_interval_or_with_a_reason(tmp_path: Path) -> None:
    found = command.elsewhere(tmp_path)
    assert set(found) == set(plan.ELSEWHERE) | {f"{key}_why" for key in plan.ELSEWHERE}
    (tmp_path / "train.json").write_text('{"summary": {"train_time_vs_torch_nature": [0.7, 0.6, 0.8], "more": 1}}')
    (tmp_path / "rlink-codec.json").write_text('{"summary": {"codec_encode_us_max": 9.5}}')
    found = command.elsewhere(tmp_path)
    assert found["train_time_vs_torch_nature"] == 0.7 and found["train_time_vs_torch_nature_ci"] == [0.6, 0.8]
    assert found["codec_encode_us_max"] == 9.5 and "more" not in found
    assert found["codec_time_vs_zstd9"] is None and "codec_encode_us_max_why" not in found


def test_students_of_another_library_are_told_of_with_the_others(tmp_path: Path) -> None:
    assert command.foreign(tmp_path) == {}
    (tmp_path / "rlink-foreign.json").write_text('{"cartpole, dqn": {"arms": {"alone": {"seeds": 3}}, "lives": {}}}')
    assert command.foreign(tmp_path) == {"cartpole, dqn": {"alone": {"seeds": 3}}}
