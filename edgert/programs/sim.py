"""A device that is not there: a simulated board, the work of edgert on it, and a governor, in accelerated time.

What is simulated is the board (`ports.board.physics`) and what its processes would do: how long decisions take at the
clock there is and beside what else runs, how many come too late, what training gets done and what crosses the link.
What is real is the governor, and the bundle with its frontier.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from edgert import bundle
from edgert.bundle import Manifest
from edgert.config import Config, Device, Policy
from edgert.errors import ConfigError
from edgert.govern import plausible
from edgert.govern.cost import prices
from edgert.govern.decide import decide
from edgert.govern.energy import Supply
from edgert.govern.state import Look, Setup, State
from edgert.policy.frontier import settle
from edgert.ports import boardfile
from edgert.ports.board.physics import Model, Task, shares
from edgert.ports.board.scenario import Row, Scenario
from edgert.ports.board.simulated import SimulatedBoard, physics_of
from edgert.ports.process import load_config
from edgert.ports.store import store_error
from edgert.values import UNKNOWN, ActorReport, Budget, Choice, Clock, Prices, Reading, Readings, TrainerReport

Controller = Callable[[Readings, ActorReport | None, TrainerReport | None, float], Budget]
"""What the board gave, what the processes did, the time -> what may be spent from now on."""

CALL_OPS, TICK_OPS = 2e6, 6e6
"""What a call into the runtime, and the tick around it, cost beside the network: so many of its operations."""
TRAIN_DECISIONS = 400
"""A gradient step on `BATCH` observations, in decisions of the full network: forwards and backwards, in float32."""
BATCH = 32
REST_CORES = 0.02
"""The supervisor, and what the system itself does."""
NICE_WEIGHT, TRAIN_WEIGHT = 1024.0, 15.0
"""Of the scheduler: nice 0, and nice 19 (kernel/sched/core.c, sched_prio_to_weight)."""
ASK_FRAC = 0.7
"""Share of the teacher's bytes that is used."""
_CHECKOUT = Path(__file__).parents[2] / "models" / "breakout.edgert"
BUNDLE = _CHECKOUT if _CHECKOUT.exists() else Path(sys.prefix) / "share/edgert/models/breakout.edgert"
OPS_PER_CYCLE, GENERIC_HZ = 3.0, 1.5e9
"""What one core does of an int8 network a cycle, about: an A53 somewhat less, an A76 twice as much (ours)."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What edgert does on a board.

    Attributes:
        manifest: of the acting bundle.
        prices: what its decisions take on this board at the full clock, undisturbed.
        tick_s: CPU time around a decision.
        deadline_s: from observation to answer.
        step_s: CPU time of a gradient step.
        train_steps_hz: gradient steps a second when nothing is scarce.
        teacher_bytes_per_s: for teachers, when nothing is scarce.
    """

    manifest: Manifest
    prices: Prices
    tick_s: float
    deadline_s: float
    step_s: float
    train_steps_hz: float = 20.0
    teacher_bytes_per_s: float = 4000.0


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One period of a simulated device.

    Attributes:
        t_s: its end.
        lasted_s: how long it was.
        row: of the scenario, when it began.
        temp_c, charge_frac, freq_frac: at its end; no charge on mains.
        load_frac, power_w: over it.
        on_frac: share of it in which the board ran.
        budget: in force.
        choice: how the network was run.
        return_frac: normalised return of that setting, as its frontier says.
        ticks, missed: decisions due, and those too late or not made; none of both while the board is off.
        steps: gradient steps done.
        link_bytes: for teachers.
        energy_j: drawn.
        chip_j: above what the board draws at rest.
        acted_core_s, trained_core_s: work of the actor and the trainer, in seconds of one core at the full clock.
    """

    t_s: float
    lasted_s: float
    row: Row
    temp_c: float
    charge_frac: float | None
    freq_frac: float
    load_frac: float
    power_w: float
    on_frac: float
    budget: Budget
    choice: Choice
    return_frac: float
    ticks: float
    missed: float
    steps: float
    link_bytes: float
    energy_j: float
    chip_j: float
    acted_core_s: float
    trained_core_s: float


def board_model(name: str) -> tuple[Model, float]:
    """A board to simulate, and the operations a second that one of its cores does.

    Args:
        name: "generic", a board that `edgert board list` shows, or a board's file.

    Raises:
        ConfigError: there is none, or its file makes no sense.
    """
    if name == "generic":
        return Model(), OPS_PER_CYCLE * GENERIC_HZ
    path = Path(name)
    found = boardfile.load(path.stem, places=[path.parent] if path.suffix == ".toml" else None)[0]
    if found is None:
        raise ConfigError(f"no board {name!r}")
    highest_hz = max((cluster.max_hz for cluster in found.hardware.clusters), default=GENERIC_HZ)
    return physics_of(found.hardware), OPS_PER_CYCLE * highest_hz


def powered(model: Model, scenario: Scenario) -> Model:
    """The board with the battery that the scenario brings."""
    if scenario.capacity_j is None:
        return model
    return msgspec.structs.replace(model, capacity_j=scenario.capacity_j)


def manifest(path: Path | None) -> Manifest:
    """Of a bundle; the shipped one where none is named.

    Raises:
        ArtifactError: it is broken.
        StoreError: it cannot be read.
    """
    path = path or BUNDLE
    try:
        return bundle.read(path.read_bytes()).manifest
    except OSError as error:
        raise store_error(error, "read", path) from error


def config(path: Path | None) -> Config:
    """Of a device, for its limits and goals; the defaults where none is named.

    Raises:
        ConfigError: it cannot be read or makes no sense.
    """
    if path is None:
        return Config(device=Device(id="simulated"), policy=Policy(bundle="-"))
    return load_config(path)


class Governor:
    """The real governor, as a `Controller`.

    Attributes:
        setup: what it knows beforehand.
        state: what it remembers.
    """

    def __init__(self, work: Workload, model: Model, config: Config, *, day_s: float = 28_800.0) -> None:
        """It has seen nothing yet.

        Args:
            work: its prices are known beforehand.
            model: its figures are the configured ones of the supply.
            config: limits and goals.
            day_s: time of the day at the beginning, for goals that name one.
        """
        self.setup = Setup(
            govern=config.govern,
            goals=config.goals,
            supply=Supply(
                cores=model.cores,
                idle_w=model.idle_w + model.static_w,
                busy_w=model.cores * model.busy_w_per_core,
                capacity_j=model.capacity_j * model.efficiency_frac,
            ),
            prices=work.prices,
            train_steps_hz=work.train_steps_hz,
            teacher_bytes_per_s=work.teacher_bytes_per_s,
            deadline_s=work.deadline_s,
        )
        self.state = State()
        self._seen, self._day_s = plausible.State(), day_s

    def __call__(
        self, readings: Readings, actor: ActorReport | None, trainer: TrainerReport | None, now_s: float
    ) -> Budget:
        """What may be spent from now on."""
        self._seen, believed = plausible.judge(self._seen, readings, now_s)
        clock_s = self._day_s + now_s
        look = Look(
            readings=believed,
            actor=actor,
            trainer=trainer,
            link_up=readings.link_rtt_s.value is not None,
            clock=Clock(1 + int(clock_s // 86_400), clock_s % 86_400),
        )
        self.state, budget = decide(self.state, self.setup, look, now_s)
        return budget


def workload(manifest: Manifest, ops_per_s: float, *, batch: int = BATCH, train_steps_hz: float = 20.0) -> Workload:
    """What a bundle costs on a board nobody measured it on.

    Args:
        manifest: of the bundle.
        ops_per_s: operations of an int8 network that one core does at the full clock.
        batch: observations of a gradient step.
        train_steps_hz: when nothing is scarce; 0 is no training.
    """
    table = prices(manifest)
    ops = [each.ops or 2 * each.macs for each in manifest.exits]
    exits_s = tuple((CALL_OPS + each) / ops_per_s for each in ops)
    return Workload(
        manifest=manifest,
        prices=msgspec.structs.replace(table, exits_s=exits_s, source="bundle"),
        tick_s=TICK_OPS / ops_per_s,
        deadline_s=0.8 / table.rate_hz,
        step_s=TRAIN_DECISIONS / BATCH * batch * ops[-1] / ops_per_s,
        train_steps_hz=train_steps_hz,
    )


def chosen(work: Workload, budget: Budget) -> tuple[Choice, float]:
    """How the actor runs its network under a budget, and the normalised return of that.

    An exit that the budget forbids passes its ticks on to the deepest that it allows. What that brings nobody measured:
    it counts as the best setting that never goes so deep, or as the cheapest there is.
    """
    table, manifest = work.prices, work.manifest
    point = budget.point if budget.point is not None and budget.point < len(table.points) else None
    setting = settle(manifest, pinned=None, wanted=None, point=point, max_ops_frac=budget.max_ops_frac)
    choice = table.own if setting.point is None else table.points[setting.point]
    last = len(table.exits_s) - 1
    deepest = min(max(0, budget.max_exit), last)
    if deepest == last or sum(choice.shares[deepest + 1 :]) <= 0.01:
        return choice, 1.0 if choice.return_frac is None else choice.return_frac
    known = [each for each in table.points if sum(each.shares[deepest + 1 :]) <= 0.01 and each.repeat == 1]
    cheapest = min(table.points, key=lambda each: each.ops_frac, default=None)
    best = max(known, key=lambda each: each.return_frac or 0.0, default=cheapest)
    folded = (*choice.shares[:deepest], sum(choice.shares[deepest:]))
    share = tuple(folded) + (0.0,) * (last - deepest)
    return msgspec.structs.replace(choice, point=None, max_exit=deepest, shares=share), (
        0.0 if best is None else best.return_frac or 0.0
    )


def late_frac(work: Workload, choice: Choice, freq_frac: float, stretch: float) -> float:
    """Share of the ticks that come too late.

    Args:
        work: gives what a decision takes, and how far single ones lie from that.
        choice: how the network is run.
        freq_frac: the clock.
        stretch: how much longer everything takes beside what else wants the processor.
    """
    late = 0.0
    for share, exit_s in zip(choice.shares, work.prices.exits_s, strict=True):
        if share > 0:
            sigmas = math.log(work.deadline_s * freq_frac / (exit_s * stretch)) / work.prices.spread_frac
            late += share * 0.5 * math.erfc(sigmas / math.sqrt(2))
    return min(1.0, late)


def crowd(hog_cores: float, cores: int) -> float:
    """How much longer a task takes that needs one core now and then, beside `hog_cores` that never rest."""
    return max(1.0, (math.ceil(hog_cores) + 1) / cores)


def simulate(
    model: Model,
    scenario: Scenario,
    work: Workload,
    controller: Controller,
    *,
    seconds: float,
    period_s: float = 1.0,
    seed: int = 0,
) -> Iterator[Moment]:
    """Let a device live through a scenario.

    Args:
        model: the board.
        scenario: what happens to it.
        work: what edgert does.
        controller: the governor.
        seconds: how long, in the scenario's time.
        period_s: between two looks of the governor.
        seed: of the noise of sensors.

    Yields:
        One `Moment` a period. Equal arguments give equal moments.
    """
    demand = 0.0
    board = SimulatedBoard(model, scenario, demand=lambda now_s: demand, seed=seed)
    actor, trainer = Acted(work), Trained()
    readings = board.read(0.0)
    rest_w = model.idle_w + model.static_w
    for k in range(max(1, math.ceil(seconds / period_s))):
        now_s, row = k * period_s, scenario.at(k * period_s)
        linked = msgspec.structs.replace(
            readings,
            link_rtt_s=Reading(row.rtt_s) if row.link_up else UNKNOWN,
            link_bytes_per_s=Reading(row.link_bytes_per_s) if row.link_up else UNKNOWN,
        )
        budget = controller(linked, actor.report(), trainer.report(), now_s)
        choice, return_frac = chosen(work, budget)
        rate_hz = work.prices.rate_hz
        tick_s = work.tick_s + sum(s * t for s, t in zip(choice.shares, work.prices.exits_s, strict=True))
        train = min(budget.train_steps_hz, work.train_steps_hz) * work.step_s
        wanted = [
            Task(demand_cores=REST_CORES),
            Task(demand_cores=rate_hz * tick_s),
            Task(demand_cores=train, weight=TRAIN_WEIGHT),
            Task(demand_cores=row.hog_cores, weight=NICE_WEIGHT * max(1.0, row.hog_cores), threads=row.hog_cores),
        ]
        demand = sum(min(task.demand_cores, 1.0) for task in wanted[:3])
        readings = board.read(now_s + period_s)
        done, state = board.done, board.state
        on_frac = min(1.0, done.on_s / period_s)
        freq = done.freq_frac or 1.0
        got = shares(model.cores * freq, wanted, freq)
        acted = got[1] / wanted[1].demand_cores
        stretch = crowd(row.hog_cores, model.cores)
        late = max(late_frac(work, choice, freq, stretch), 1.0 - acted)
        ticks = rate_hz * period_s * on_frac
        steps = got[2] / work.step_s * period_s * on_frac if work.step_s else 0.0
        actor.add(choice, ticks, late * ticks, [t * stretch / freq for t in work.prices.exits_s], tick_s)
        trainer.add(steps, steps * work.step_s / freq, period_s)
        link = row.link_bytes_per_s * (1.0 - row.loss_frac) if row.link_up else 0.0
        asked = min(budget.teacher_bytes_per_s, work.teacher_bytes_per_s, link) * ASK_FRAC
        yield Moment(
            t_s=now_s + period_s,
            lasted_s=period_s,
            row=row,
            temp_c=state.temp_c,
            charge_frac=state.charge_j / board.model.capacity_j if board.model.capacity_j else None,
            freq_frac=state.freq_frac,
            load_frac=done.load_frac,
            power_w=done.energy_j / period_s,
            on_frac=on_frac,
            budget=budget,
            choice=choice,
            return_frac=return_frac,
            ticks=ticks,
            missed=late * ticks,
            steps=steps,
            link_bytes=asked * period_s * on_frac,
            energy_j=done.energy_j,
            chip_j=done.energy_j - rest_w * done.on_s,
            acted_core_s=got[1] * period_s * on_frac,
            trained_core_s=got[2] * period_s * on_frac,
        )


def columns(moments: Sequence[Moment], model: Model, most: int = 1500) -> dict[str, list[Any]]:
    """What `ports.adaptation` draws: name -> values over time, thinned to about `most`, but for changes of reasons."""
    stride = max(1, len(moments) // most)
    kept = [m for k, m in enumerate(moments) if k % stride == 0 or m.budget.why != moments[k - 1].budget.why]
    found: dict[str, list[Any]] = {
        name: [getattr(moment, name) for moment in kept]
        for name in ("t_s", "temp_c", "freq_frac", "load_frac", "power_w", "return_frac")
    }
    found["battery_frac"] = [moment.charge_frac for moment in kept]
    found |= {
        name: [getattr(moment.row, name) for moment in kept]
        for name in ("ambient_c", "hog_cores", "charger", "link_up", "rtt_s")
    }
    found["rtt_s"] = [rtt_s if up else None for rtt_s, up in zip(found["rtt_s"], found["link_up"], strict=True)]
    found |= {
        name: [getattr(moment.budget, name) for moment in kept]
        for name in ("train_steps_hz", "teacher_bytes_per_s", "max_exit", "max_ops_frac", "why")
    }
    found["steps_hz"] = [moment.steps / moment.lasted_s for moment in kept]
    found["exits"] = [list(moment.choice.shares) for moment in kept]
    found["trip_c"] = [model.hot_c] * len(kept)
    return found


def summary(moments: Sequence[Moment]) -> dict[str, float | str | None]:
    """What a run comes to."""
    seconds = sum(moment.lasted_s for moment in moments)
    on_s = sum(moment.on_frac * moment.lasted_s for moment in moments)
    ticks = sum(moment.ticks for moment in moments)
    settings = [moment.choice for moment in moments]
    changes = sum(before != after for before, after in pairwise(settings))
    return {
        "hours": seconds / 3600,
        "on_frac": on_s / seconds,
        "missed_frac": sum(moment.missed for moment in moments) / ticks if ticks else None,
        "return_frac": sum(m.return_frac * (m.ticks - m.missed) for m in moments) / (ticks / on_s * seconds)
        if ticks
        else 0.0,
        "steps": sum(moment.steps for moment in moments),
        "link_bytes": sum(moment.link_bytes for moment in moments),
        "energy_j": sum(moment.energy_j for moment in moments),
        "above_rest_j": sum(moment.chip_j for moment in moments),
        "temp_max_c": max(moment.temp_c for moment in moments),
        "freq_min_frac": min(moment.freq_frac for moment in moments),
        "charge_min_frac": min((m.charge_frac for m in moments if m.charge_frac is not None), default=None),
        "switches_per_hour": changes / (seconds / 3600),
    }


class Acted:
    """What a simulated actor did, as an actor tells it."""

    def __init__(self, work: Workload) -> None:
        """Nothing yet."""
        self._work = work
        n = len(work.prices.exits_s)
        self._exits, self._exits_s, self._exits_s2 = [0.0] * n, [0.0] * n, [0.0] * n
        self._ticks = self._missed = self._held = self._cpu_s = 0.0
        self._point: int | None = None
        self._last_s = 0.0

    def add(self, choice: Choice, ticks: float, missed: float, exits_s: list[float], tick_s: float) -> None:
        """It ran like this for so many ticks."""
        spread = 1.0 + self._work.prices.spread_frac**2
        for k, (share, took_s) in enumerate(zip(choice.shares, exits_s, strict=True)):
            self._exits[k] += share * ticks
            self._exits_s[k] += share * ticks * took_s
            self._exits_s2[k] += share * ticks * took_s * took_s * spread
        answered = sum(choice.shares)
        self._last_s = sum(s * t for s, t in zip(choice.shares, exits_s, strict=True)) / max(1e-9, answered)
        self._held += (1.0 - answered) * ticks
        self._ticks, self._missed = self._ticks + ticks, self._missed + missed
        self._cpu_s += ticks * tick_s
        self._point = choice.point

    def report(self) -> ActorReport | None:
        """What it would tell now; None before it did anything."""
        if not self._ticks:
            return None
        return ActorReport(
            pid=1,
            ticks=round(self._ticks),
            missed=round(self._missed),
            safe=0,
            exits=[round(each) for each in self._exits],
            exits_s=list(self._exits_s),
            exits_s2=list(self._exits_s2),
            latency_p50_s=self._last_s,
            latency_p99_s=self._last_s * (1.0 + 2.3 * self._work.prices.spread_frac),
            latency_max_s=self._last_s * (1.0 + 3.0 * self._work.prices.spread_frac),
            episodes=0,
            returns=[],
            faults={},
            generation=0,
            acting=True,
            first_action_s=0.0,
            cpu_s=self._cpu_s,
            rss_bytes=0,
            held=round(self._held),
            point=self._point,
            has_frontier=self._work.manifest.frontier is not None,
        )


class Trained:
    """What a simulated trainer did, as a trainer tells it."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._steps = self._cpu_s = 0.0
        self._steps_hz: float | None = None

    def add(self, steps: float, cpu_s: float, period_s: float) -> None:
        """So many steps were taken, for so much CPU time."""
        self._steps, self._cpu_s = self._steps + steps, self._cpu_s + cpu_s
        self._steps_hz = steps / period_s

    def report(self) -> TrainerReport:
        """What it would tell now."""
        return TrainerReport(
            pid=2,
            steps=round(self._steps),
            loss=None,
            transitions=0,
            asked=0,
            answered=0,
            joined=0,
            candidates=0,
            accepted=0,
            generation=0,
            checkpoint=0,
            faults={},
            cpu_s=self._cpu_s,
            rss_bytes=0,
            steps_hz=self._steps_hz,
        )
