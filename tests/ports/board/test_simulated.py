from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.config import Battery, Board, Config, Device, Policy
from edgert.errors import ConfigError
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import SCENARIOS, Row, Scenario, make
from edgert.ports.board.simulated import BatteryBoard, Family, SimulatedBoard, fitted, open_simulated
from edgert.values import UNKNOWN, Reading, Readings

CALM = Scenario(name="calm")


def faulty(kind: str, sensor: str = "temp_c") -> SimulatedBoard:
    rows = (Row(), Row(t_s=10.0, faults=((sensor, kind),)), Row(t_s=30.0))
    return SimulatedBoard(Model(), Scenario(name="t", rows=rows), demand=lambda now_s: 2.0)


def test_it_begins_in_balance_and_warms_with_the_load() -> None:
    board = SimulatedBoard(Model(), CALM, demand=lambda now_s: 2.0)
    first = board.read(0.0).temp_c.value
    assert first == pytest.approx(32.0)
    values = [board.read(now_s).temp_c.value for now_s in (10.0, 100.0, 1e5)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(50.0)
    assert board.read(1e5).load_frac.value == pytest.approx(0.5)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20))
def test_heat_and_charge_do_not_depend_on_how_often_one_looks(steps_s: list[float]) -> None:
    rows = (Row(), Row(t_s=50.0, ambient_c=35.0, hog_cores=1.0), Row(t_s=120.0, charger=True))
    once, often = (
        SimulatedBoard(Model(), Scenario(name="t", rows=rows, capacity_j=20_000.0), demand=lambda now_s: 1.0)
        for _ in range(2)
    )
    once.read(0.0)
    now_s = often.read(0.0).load_frac.age_s
    for step_s in steps_s:
        now_s += step_s
        many = often.read(now_s)
    single = once.read(now_s)
    assert many.temp_c.value == pytest.approx(single.temp_c.value)
    assert many.battery_frac.value == pytest.approx(single.battery_frac.value)


def test_a_clock_that_steps_back_gives_no_energy() -> None:
    board = SimulatedBoard(Model(capacity_j=1000.0), CALM)
    board.read(50.0)
    assert board.read(0.0).battery_frac.value == 1.0


def test_faster_means_smaller_masses_and_the_same_watts() -> None:
    slow, fast = (
        SimulatedBoard(Model(capacity_j=30_000.0), make("heatwave", Model(), hours=2.0), speed=speed)
        for speed in (1.0, 60.0)
    )
    for minute in range(100):
        one, other = slow.read(60.0 * minute), fast.read(1.0 * minute)
    assert one.temp_c.value == pytest.approx(other.temp_c.value)
    assert one.power_w.value == pytest.approx(other.power_w.value)
    assert one.battery_frac.value == pytest.approx(other.battery_frac.value)


def test_charge_and_power_tell_the_same_story() -> None:
    board = SimulatedBoard(Model(capacity_j=30_000.0, efficiency_frac=1.0), CALM, demand=lambda now_s: 1.0)
    board.read(0.0)
    power_w = board.read(10.0).power_w.value
    before, after = (board.read(now_s).battery_frac.value for now_s in (20.0, 120.0))
    assert power_w is not None
    assert (before - after) * 30_000.0 == pytest.approx(100.0 * power_w)  # type: ignore[operator]  # both are known


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("silent", lambda bad, good: bad == UNKNOWN),
        ("zero", lambda bad, good: bad.value == 0.0),
        ("milli", lambda bad, good: bad.value == pytest.approx(good.value / 1000)),
        ("stuck", lambda bad, good: bad.value < good.value and bad.age_s == 0.0),
        ("stale", lambda bad, good: bad.value < good.value and bad.age_s == 10.0),
        ("noisy", lambda bad, good: 0.3 * good.value < bad.value < 1.7 * good.value and bad.value != good.value),
    ],
)
def test_a_sensor_lies_for_its_time_only(kind: str, check: object) -> None:
    broken, healthy = faulty(kind), faulty("none", "load_frac")
    for board in (broken, healthy):
        board.read(0.0)
        board.read(9.0)
    assert check(broken.read(19.0).temp_c, healthy.read(19.0).temp_c)  # type: ignore[operator]  # a table of lambdas
    assert broken.read(40.0) == healthy.read(40.0)


def test_noise_comes_from_the_seed() -> None:
    first, same = (faulty("noisy") for _ in range(2))
    assert [first.read(float(k)) for k in range(30)] == [same.read(float(k)) for k in range(30)]


def test_a_hot_board_says_that_its_clock_is_capped() -> None:
    rows = (Row(ambient_c=70.0),)
    board = SimulatedBoard(Model(), Scenario(name="t", rows=rows), demand=lambda now_s: 4.0)
    board.read(0.0)
    readings = board.read(600.0)
    assert readings.throttle is not None
    assert readings.throttle.now == ("freq-capped",)
    assert readings.freq_frac.value is not None
    assert readings.freq_frac.value < 1.0
    assert readings.trip_c.value == Model().hot_c


def test_an_unknown_load_is_none() -> None:
    board = SimulatedBoard(Model(), CALM, demand=lambda now_s: None)
    board.read(0.0)
    assert board.read(10.0).load_frac.value == 0.0


class Scripted:
    name = "real"

    def read(self, now_s: float) -> Readings:
        return Readings(load_frac=Reading(1.0), temp_c=Reading(90.0))


def test_a_real_board_drains_a_simulated_battery_and_keeps_its_own_heat() -> None:
    model = fitted(Battery(kind="simulated", capacity_j=1000.0, idle_w=1.0, busy_w=9.0), Model(efficiency_frac=1.0))
    board = BatteryBoard(Scripted(), model, CALM)
    board.read(0.0)
    readings = board.read(10.0)
    assert (board.name, readings.temp_c.value, readings.has_battery) == ("real", 90.0, True)
    assert readings.power_w.value == pytest.approx(10.0)
    assert readings.battery_frac.value == pytest.approx(0.9)


def config(board: Board, battery: Battery | None = None) -> Config:
    return Config(device=Device(id="d"), policy=Policy(bundle="b"), board=board, battery=battery or Battery())


def test_the_configuration_names_what_happens(tmp_path: Path) -> None:
    calm = open_simulated(config(Board(kind="fake")), lambda now_s: 0.5)
    assert not calm.read(0.0).has_battery
    charged = Battery(kind="simulated", initial_frac=0.5)
    assert open_simulated(config(Board(kind="fake"), charged), lambda now_s: 0.5).read(0.0).battery_frac.value == 0.5
    trace = tmp_path / "t.csv"
    trace.write_text("t_s,ambient_c,capacity_j,charge_frac\n0,40,9000,0.25\n")
    readings = open_simulated(config(Board(kind="fake", scenario=str(trace))), lambda now_s: None).read(0.0)
    assert readings.battery_frac.value == 0.25
    assert readings.temp_c.value == pytest.approx(47.0)
    named = open_simulated(config(Board(kind="fake", model="raspberry-pi-zero-2-w"), charged), lambda now_s: 0.0)
    assert (named.name, named.model.capacity_j) == ("Raspberry Pi Zero 2 W", charged.capacity_j)
    for name in SCENARIOS:
        open_simulated(config(Board(kind="fake", scenario=name, speed=60.0)), lambda now_s: 0.0).read(0.0)
    with pytest.raises(ConfigError):
        trace.write_text("nonsense\n")
        open_simulated(config(Board(kind="fake", scenario=str(trace))), lambda now_s: None)


def stat(proc: Path, pid: str, ticks: int) -> None:
    (proc / pid).mkdir(parents=True, exist_ok=True)
    (proc / pid / "stat").write_text(f"1 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1 0\n")


def test_a_family_is_a_process_with_its_children(tmp_path: Path) -> None:
    stat(tmp_path, "self", 100)
    stat(tmp_path, "7", 1000)
    children = tmp_path / "self" / "task" / "1" / "children"
    children.parent.mkdir(parents=True)
    children.write_text("7 8 ")
    family = Family(tmp_path)
    assert family.cores(0.0) is None
    stat(tmp_path, "self", 150)
    stat(tmp_path, "7", 1100)
    assert family.cores(1.0) == pytest.approx(1.5)
    assert family.cores(1.0) is None, "no time has passed"
    children.write_text("8")
    assert family.cores(2.0) == 0.0, "7 has gone and takes nothing back"


def test_a_family_that_nothing_is_known_of_is_unknown(tmp_path: Path) -> None:
    family = Family(tmp_path)
    assert family.cores(0.0) is None
    assert family.cores(1.0) is None
    assert Family().cores(0.0) is None
