"""Boards that are not there: for the demo, for a laptop, for tests and benchmarks. No clock: time is told to them."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from edgert.config import Battery, Config
from edgert.hardware import Hardware
from edgert.ports import boardfile
from edgert.ports.board import physics
from edgert.ports.board.physics import Done, Model
from edgert.ports.board.scenario import SCENARIOS, SENSORS, Scenario, make
from edgert.ports.board.scenario import load as read_trace
from edgert.values import UNKNOWN, Reading, Readings, Throttle

SOURCE = "simulated"
SLOWER = 4.0
"""A small board's core takes about so many times as long as one of the machine that plays it (ours)."""
_TICKS_HZ = os.sysconf("SC_CLK_TCK")


class _Board(Protocol):
    name: str

    def read(self, now_s: float) -> Readings: ...


class SimulatedBoard:
    """A board of `physics` to which the things of a `Scenario` happen.

    Attributes:
        name: the model's.
        model: with the scenario's battery, and as fast as it was asked to be.
        state: of the board, at the last look.
        done: between the last two looks.
        row: of the scenario, at the last look.
    """

    def __init__(
        self,
        model: Model,
        scenario: Scenario,
        *,
        demand: Callable[[float], float | None] = lambda now_s: 0.0,
        speed: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Begin in balance at rest.

        Args:
            model: what it is made of.
            scenario: what happens to it.
            demand: time, s -> what edgert would execute since its last call, in cores at the full clock; None is 0.
            speed: times as fast as the scenario tells it. Battery and thermal masses are smaller by as much, so that
                watts and degrees stay what they are.
            seed: of noise.
        """
        capacity_j = model.capacity_j if scenario.capacity_j is None else scenario.capacity_j
        self.model = msgspec.structs.replace(
            model,
            capacity_j=capacity_j / speed,
            tau_s=tuple(tau_s / speed for tau_s in model.tau_s),
            poll_s=model.poll_s / speed,
        )
        self.name = model.name
        self.row = scenario.rows[0]
        self.state = physics.initial(self.model, ambient_c=self.row.ambient_c, charge_frac=scenario.charge_frac)
        self.done = Done(executed_core_s=0.0, energy_j=0.0, load_frac=0.0, freq_frac=1.0, on_s=0.0)
        self._scenario, self._demand, self._speed = scenario, demand, speed
        self._rng = random.Random(seed)
        self._begun_s: float | None = None
        self._at_s = 0.0
        self._former: dict[str, tuple[Reading, float]] = {}

    def read(self, now_s: float) -> Readings:
        """Let the time since the last call pass; see `Board.read`. How far the link is, the board does not know."""
        demand = self._demand(now_s) or 0.0
        if self._begun_s is None:
            self._begun_s = self._at_s = now_s
        self._pass(demand, max(self._at_s, now_s))
        self.row = self._scenario.at((self._at_s - self._begun_s) * self._speed)
        model, state, on_battery = self.model, self.state, self.model.capacity_j > 0
        known = Readings(
            load_frac=Reading(self.done.load_frac, source=SOURCE),
            temp_c=Reading(state.temp_c, source=SOURCE),
            battery_frac=Reading(state.charge_j / model.capacity_j, source=SOURCE) if on_battery else UNKNOWN,
            power_w=Reading(self._power_w(demand), source=SOURCE),
            has_battery=on_battery,
            external_power=self.row.charger if on_battery else True,
            trip_c=Reading(model.hot_c, source=SOURCE),
            freq_frac=Reading(state.freq_frac, source=SOURCE),
            throttle=Throttle(now=("freq-capped",) if state.level else ()),
            link_loss_frac=Reading(self.row.loss_frac, source=SOURCE),
            link_bytes_per_s=Reading(self.row.link_bytes_per_s, source=SOURCE),
        )
        return self._broken(known, dict(self.row.faults), now_s)

    def _pass(self, demand: float, to_s: float) -> None:
        begun_s = self._begun_s or 0.0
        executed = energy_j = busy = clock = on_s = 0.0
        pieces = self._scenario.pieces((self._at_s - begun_s) * self._speed, (to_s - begun_s) * self._speed)
        for row, lasted_s in pieces:
            self.state, done = physics.advance(
                self.model,
                self.state,
                demand_cores=demand + row.hog_cores,
                ambient_c=row.ambient_c,
                elapsed_s=lasted_s / self._speed,
                supply_w=self.model.charger_w if row.charger else 0.0,
            )
            executed, energy_j, on_s = executed + done.executed_core_s, energy_j + done.energy_j, on_s + done.on_s
            busy, clock = busy + done.load_frac * done.on_s, clock + done.freq_frac * done.on_s
        if on_s or to_s > self._at_s:
            self.done = Done(
                executed_core_s=executed,
                energy_j=energy_j,
                load_frac=min(1.0, busy / on_s) if on_s else 0.0,
                freq_frac=clock / on_s if on_s else 0.0,
                on_s=on_s,
            )
        self._at_s = to_s

    def _power_w(self, demand: float) -> float:
        """Of now: what it will draw if all goes on as it does."""
        freq = self.state.freq_frac
        busy = min(demand + self.row.hog_cores, self.model.cores * freq) / freq
        return physics.chip_w(self.model, busy, freq) + self.model.static_w if self.state.on else 0.0

    def _broken(self, readings: Readings, faults: Mapping[str, str], now_s: float) -> Readings:
        changed: dict[str, Reading] = {}
        for sensor in SENSORS:
            good: Reading = getattr(readings, sensor)
            kind = faults.get(sensor)
            former, former_s = self._former.get(sensor, (good, now_s))
            if kind not in ("stuck", "stale"):
                self._former[sensor] = good, now_s
            if kind is not None:
                changed[sensor] = self._lie(kind, good, former, max(0.0, now_s - former_s))
        return msgspec.structs.replace(readings, **changed) if changed else readings

    def _lie(self, kind: str, good: Reading, former: Reading, age_s: float) -> Reading:
        if kind == "silent" or good.value is None:
            return UNKNOWN
        if kind in ("stuck", "stale"):
            return Reading(former.value, age_s if kind == "stale" else 0.0, SOURCE)
        factor = {"zero": 0.0, "milli": 1e-3}.get(kind, 1.0 + 0.1 * self._rng.gauss(0, 1))
        return Reading(good.value * factor, source=SOURCE)


class BatteryBoard:
    """Any board, on a simulated battery.

    Attributes:
        name: the board's.
    """

    def __init__(self, board: _Board, model: Model, scenario: Scenario) -> None:
        """Put the battery in.

        Args:
            board: gives everything else; its load drains the battery, none while that is unknown.
            model: what draws from the battery. It is never throttled: the heat is that of the board.
            scenario: when there is a charger.
        """
        self.name = board.name
        self._board, self._load_frac = board, 0.0
        cool = msgspec.structs.replace(model, hot_c=math.inf, trip_c=math.inf)
        self._battery = SimulatedBoard(cool, scenario, demand=lambda now_s: self._load_frac * model.cores)

    def read(self, now_s: float) -> Readings:
        """Let the time since the last call pass; see `Board.read`."""
        readings = self._board.read(now_s)
        self._load_frac = readings.load_frac.value or 0.0
        battery = self._battery.read(now_s)
        return msgspec.structs.replace(
            readings,
            battery_frac=battery.battery_frac,
            power_w=battery.power_w,
            has_battery=True,
            external_power=battery.external_power,
        )


class Family:
    """What this process and its children execute: a device on a machine that it shares with others."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """Nothing was seen yet."""
        self._proc = proc
        self._former: dict[str, float] = {}
        self._at_s: float | None = None

    def cores(self, now_s: float) -> float | None:
        """CPU time a second since the last call; None at the first, or where /proc does not tell.

        Blocks: a few files of /proc.
        """
        spent_s = {pid: used_s for pid in self._pids() if (used_s := self._used_s(pid)) is not None}
        # Who came in between counts from its beginning, and who has gone counts no more.
        more_s = sum(used_s - self._former.get(pid, 0.0) for pid, used_s in spent_s.items())
        elapsed_s = None if self._at_s is None else now_s - self._at_s
        self._former, self._at_s = spent_s, now_s
        return None if elapsed_s is None or elapsed_s <= 0 or not spent_s else max(0.0, more_s) / elapsed_s

    def _pids(self) -> list[str]:
        found = ["self"]
        try:
            for task in (self._proc / "self" / "task").iterdir():
                found += (task / "children").read_text().split()
        except OSError:
            pass
        return found

    def _used_s(self, pid: str) -> float | None:
        """proc(5), /proc/pid/stat: utime and stime, behind a name that may hold anything."""
        try:
            words = (self._proc / pid / "stat").read_text().rpartition(")")[2].split()
            return (int(words[11]) + int(words[12])) / _TICKS_HZ
        except (OSError, ValueError, IndexError):
            return None


def physics_of(hardware: Hardware) -> Model:
    """A kind of board as something to simulate; on mains."""
    return Model(name=hardware.title, **msgspec.structs.asdict(hardware.physics))


def fitted(battery: Battery, model: Model) -> Model:
    """A model on the battery that the configuration describes, and with the powers it says.

    Args:
        battery: of the configuration; mains when it is not simulated.
        model: gives everything else.
    """
    if battery.kind != "simulated":
        return msgspec.structs.replace(model, capacity_j=0.0)
    return msgspec.structs.replace(
        model,
        capacity_j=battery.capacity_j,
        static_w=max(0.0, battery.idle_w - model.idle_w),
        idle_w=min(model.idle_w, battery.idle_w),
        busy_w_per_core=battery.busy_w / model.cores,
    )


def open_simulated(config: Config, load: Callable[[float], float | None]) -> SimulatedBoard:
    """The simulated board that the configuration names.

    Args:
        config: its sections `board` and `battery`.
        load: time, s -> busy share of this machine since its last call; without a scenario the board is as busy. With
            one, only what this device does makes it busy, and what the scenario says.

    Raises:
        ConfigError: there is no such scenario or board, or its file makes no sense.
        StoreError: the scenario's file cannot be read.
    """
    board = None if config.board.model is None else boardfile.load(config.board.model)[0]
    model = fitted(config.battery, Model()) if board is None else physics_of(board.hardware)
    if board is not None and config.battery.kind == "simulated":
        model = msgspec.structs.replace(model, capacity_j=config.battery.capacity_j)
    told = config.board.scenario
    if told is None:
        scenario = Scenario(name="calm", charge_frac=config.battery.initial_frac)
    else:
        scenario = make(told, model) if told in SCENARIOS else read_trace(Path(told))
        if scenario.capacity_j is None:
            scenario = msgspec.structs.replace(scenario, charge_frac=config.battery.initial_frac)

    family = Family()

    def demand(now_s: float) -> float | None:
        if told is not None:
            cores = family.cores(now_s)
            return None if cores is None else SLOWER * cores
        busy_frac = load(now_s)
        return None if busy_frac is None else busy_frac * model.cores

    return SimulatedBoard(model, scenario, demand=demand, speed=config.board.speed)
