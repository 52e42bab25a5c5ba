from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgert.errors import ConfigError, StoreError
from edgert.ports import boardfile
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Row, Scenario, make
from edgert.programs.sim import (
    Governor,
    Moment,
    Workload,
    board_model,
    chosen,
    columns,
    config,
    crowd,
    late_frac,
    manifest,
    powered,
    simulate,
    summary,
    workload,
)
from edgert.values import ActorReport, Budget, Readings, TrainerReport

WORK = workload(manifest(None), 4.5e9)
ALL = Budget(max_exit=9, train_steps_hz=20.0, teacher_bytes_per_s=4000.0)
NOTHING = Budget(max_exit=0, train_steps_hz=0.0, teacher_bytes_per_s=0.0)
CALM = Scenario(name="calm")


def run(
    budget: Budget, scenario: Scenario = CALM, seconds: float = 600.0, work: Workload = WORK, period_s: float = 5.0
) -> list[Moment]:
    return list(simulate(Model(), scenario, work, lambda *_: budget, seconds=seconds, period_s=period_s))


def test_equal_arguments_give_equal_moments() -> None:
    scenario = make("flaky-sensors", Model(), seed=4, hours=0.5)
    first, second = (
        list(
            simulate(
                powered(Model(), scenario),
                scenario,
                WORK,
                Governor(WORK, powered(Model(), scenario), config(None)),
                seconds=1800.0,
                period_s=10.0,
                seed=9,
            )
        )
        for _ in range(2)
    )
    assert first == second
    assert len(first) == 180


def test_work_costs_energy_and_heat() -> None:
    busy, idle = run(ALL), run(NOTHING)
    assert summary(busy)["energy_j"] > summary(idle)["energy_j"]  # type: ignore[operator]  # both are numbers
    assert busy[-1].temp_c > idle[-1].temp_c
    assert sum(m.steps for m in busy) == pytest.approx(20.0 * 600.0)
    assert sum(m.steps for m in idle) == 0.0
    own_j = Model().busy_w_per_core * sum(m.acted_core_s + m.trained_core_s for m in busy)
    rest_j = Model().busy_w_per_core * 0.02 * 600.0
    assert sum(m.chip_j for m in busy) == pytest.approx(own_j + rest_j, rel=1e-6)


def test_an_empty_battery_ends_everything() -> None:
    moments = run(ALL, Scenario(name="small", capacity_j=800.0))
    assert moments[-1].on_frac == 0.0
    assert moments[-1].ticks == moments[-1].steps == moments[-1].link_bytes == 0.0
    told = summary(moments)
    assert 0.0 < told["on_frac"] < 1.0  # type: ignore[operator]  # a number
    assert told["return_frac"] == pytest.approx(moments[0].return_frac * told["on_frac"])  # type: ignore[operator]  # both are numbers


def test_nothing_crosses_a_link_that_is_down() -> None:
    rows = (Row(), Row(t_s=300.0, link_up=False))
    moments = run(ALL, Scenario(name="cut", rows=rows))
    assert moments[0].link_bytes > 0.0
    assert moments[-1].link_bytes == 0.0


def test_the_governor_is_the_real_one_and_says_why() -> None:
    scenario = Scenario(name="oven", rows=(Row(ambient_c=68.0, rtt_s=3.0),))
    governor = Governor(WORK, Model(), config(None))
    moments = list(simulate(Model(), scenario, WORK, governor, seconds=900.0, period_s=5.0))
    assert moments[-1].budget == governor.state.budget
    assert moments[-1].budget.why["train_steps_hz"].startswith(("temp-", "throttled"))
    assert moments[-1].budget.train_steps_hz < 20.0
    assert moments[-1].budget.teacher_bytes_per_s < 4000.0


def test_a_budget_chooses_among_measured_points() -> None:
    table = WORK.prices
    full, gain = chosen(WORK, msgspec.structs.replace(ALL, point=len(table.points) - 1))
    assert (full, gain) == (table.points[-1], table.points[-1].return_frac)
    tight, _ = chosen(WORK, msgspec.structs.replace(ALL, max_ops_frac=0.5))
    assert tight.ops_frac <= 0.5
    own, _ = chosen(WORK, msgspec.structs.replace(ALL, point=999))
    assert own == table.own


def test_a_forbidden_exit_passes_its_ticks_on_and_counts_no_more_than_was_measured() -> None:
    choice, gain = chosen(WORK, msgspec.structs.replace(ALL, max_exit=0))
    assert choice.shares[0] == pytest.approx(sum(WORK.prices.own.shares))
    assert choice.shares[1:] == (0.0, 0.0)
    assert gain <= max(each.return_frac or 0.0 for each in WORK.prices.points if each.shares[0] > 0.99)


def test_slower_and_more_crowded_is_later() -> None:
    choice = WORK.prices.points[-1]
    slow = msgspec.structs.replace(WORK, deadline_s=3.0 * WORK.prices.exits_s[-1])
    lates = [late_frac(slow, choice, freq, crowd(hog, 4)) for freq, hog in ((1.0, 0.0), (0.6, 0.0), (0.6, 8.0))]
    assert lates == sorted(lates)
    assert lates[0] < 0.01 < 0.5 < lates[-1]
    assert [crowd(hog, 4) for hog in (0.0, 3.0, 4.0, 7.0)] == [1.0, 1.0, 1.25, 2.0]


def test_reports_let_the_slow_down_be_measured() -> None:
    told: list[ActorReport] = []

    def watch(readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float) -> Budget:
        if actor is not None:
            told.append(actor)
        return ALL

    hogged = Scenario(name="hog", rows=(Row(hog_cores=7.0),))
    list(simulate(Model(), hogged, WORK, watch, seconds=60.0))
    before, after = told[-2:]
    count, total_s = after.exits[-1] - before.exits[-1], after.exits_s[-1] - before.exits_s[-1]
    assert total_s / count == pytest.approx(2.0 * WORK.prices.exits_s[-1], rel=0.1)


@pytest.mark.parametrize("name", boardfile.load_all())
def test_boards_can_be_simulated(name: str) -> None:
    model, ops_per_s = board_model(name)
    assert model.name
    assert ops_per_s > 1e8
    assert model.hot_c < model.trip_c


def test_unknown_boards_and_bundles_are_refused(tmp_path: Path) -> None:
    for name in ("toaster", str(tmp_path / "toaster.toml")):
        with pytest.raises(ConfigError, match="no board 'toaster'"):
            board_model(name)
    with pytest.raises(StoreError, match="no such file"):
        manifest(tmp_path / "gone.edgert")


def test_columns_are_equally_long_and_keep_changes_of_reason() -> None:
    moments = run(ALL, seconds=3000.0, period_s=1.0)
    odd = msgspec.structs.replace(moments[1234], budget=msgspec.structs.replace(ALL, why={"point": "deadline"}))
    drawn = columns([*moments[:1234], odd, *moments[1235:]], Model(), most=100)
    assert len({len(values) for values in drawn.values()}) == 1
    assert len(drawn["t_s"]) < 200
    assert {"point": "deadline"} in drawn["why"]
