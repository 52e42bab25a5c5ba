from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gymnasium")
from tools.bench.rapidrl import plan
from tools.nets import NETS

RUNS = Path("some/runs")


def test_every_command_is_one_that_the_trainer_reads() -> None:
    pytest.importorskip("torch")
    from tools.train import judge
    from tools.train.__main__ import parse

    for run in plan.planned(RUNS, list(plan.TASKS), 1):
        judged = plan.ROLES[run.role].judged is not None
        assert run.module == ("tools.train.judge" if judged else "tools.train")
        args = (judge.parse if judged else parse)(list(run.arguments))
        assert args.out == RUNS / run.task / f"{run.role}-s0"
        assert judged or args.net in NETS


def test_what_imitates_comes_after_its_teacher_and_takes_as_many_steps_as_the_others() -> None:
    pytest.importorskip("torch")
    from tools.train.__main__ import parse

    for task in plan.TASKS:
        runs = plan.planned(RUNS, [task], 1)
        done: set[Path] = set()
        steps = {}
        for run in runs:
            assert run.needs is None or run.needs in done
            done.add(run.folder)
            if plan.ROLES[run.role].judged is not None:
                continue
            args = parse(list(run.arguments))
            steps[run.role] = args.frames, args.frames_per_update, args.batch
            assert (args.teacher is not None) == plan.ROLES[run.role].distilled
        assert steps["small20"] == steps["small34"] == steps["small55"] == steps["exits"]
        assert steps["alone34"] == steps["full"]


def test_the_full_network_learns_as_if_it_had_no_exits() -> None:
    (run,) = plan.planned(RUNS, ["pong"], 1, roles=["full"])
    assert "--detached" in run.arguments
    assert "--teacher" not in run.arguments


def test_the_drones_first_exit_learns_alone_by_the_recipe_of_its_static_nets() -> None:
    exits, small = plan.planned(RUNS, ["drone"], 1, roles=["exits", "small20"])
    assert "--frozen" in exits.arguments and "--frozen" not in small.arguments
    for option in ("--value-weight", "--learning-rate", "--adam-eps", "--hold-max", "--epsilon"):
        values = {run.arguments[run.arguments.index(option) + 1] for run in (exits, small)}
        assert len(values) == 1


def test_ablations_belong_to_some_tasks_and_seeds_can_be_limited() -> None:
    roles = {run.role for run in plan.planned(RUNS, ["breakout"], 1)}
    assert roles == set(plan.ROLES)
    assert {run.role for run in plan.planned(RUNS, ["pong"], 1)} < roles
    assert len({run.seed for run in plan.planned(RUNS, ["seaquest"])}) == 10
    (run,) = plan.planned(RUNS, ["pong"], 1, frames=1234, roles=["full"])
    assert run.arguments[run.arguments.index("--frames") + 1] == "1234"


def test_confidences_are_taught_apart_to_the_exits_of_the_same_seed() -> None:
    runs = {run.role: run for run in plan.planned(RUNS, ["breakout"], 1)}
    for role in ("judged", "judged-agreement", "apart", "apart-agreement"):
        arguments = runs[role].arguments
        assert arguments[arguments.index("--run") + 1] == str(runs["exits"].folder) == str(runs[role].needs)
        assert ("--no-gap" in arguments) == role.startswith("apart")
        assert ("agreement" in arguments) == role.endswith("agreement")


def test_the_state_of_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    (run,) = plan.planned(tmp_path, ["pong"], 1, roles=["full"])
    assert (run.finished, run.state) == (False, "missing")
    run.folder.mkdir(parents=True)
    assert run.state == "begun"
    (run.folder / "curve.csv").write_text("frames,updates\n1000,2\n25000,9\n")
    assert run.state == "at 25,000 frames"
    (run.folder / "run.json").write_text("{}")
    assert (run.finished, run.state) == (True, "finished")


def test_what_lacks_its_teacher_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.train(plan.planned(tmp_path, ["pong"], 1, roles=["exits", "small20"])) == 2
    assert "left out" in capsys.readouterr().out


def test_the_drone_is_judged_where_it_was_not_trained() -> None:
    assert plan.TASKS["drone"].arena == "edgert/DroneTest-v0" != plan.TASKS["drone"].env
    assert plan.TASKS["pong"].arena == plan.TASKS["pong"].env
