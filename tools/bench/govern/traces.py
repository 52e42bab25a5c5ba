"""The traces that controllers are judged on: made from seeds, and recorded ones from files.

Each draws a board of `firmware_configs`, a bundle with its measured frontier, and how big a network it stands for: the
share of one core that the full network would keep busy on that board. The shipped networks are far smaller than what
boards are bought for, and with them nothing a controller decides would show.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgert.bundle import Manifest
from edgert.config import Goals
from edgert.govern.cost import prices
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Row, Scenario, load, make
from edgert.programs.sim import REST_CORES, Workload

SETS = {"look": "", "report": "report: "}
"""Seeds to look at while something is being changed, and seeds that are only reported: what is chosen by the first is
judged by the second."""
RECORDED = Path(__file__).parents[3] / "tests" / "traces"
SIZES = (0.05, 0.6)
"""Share of one core that the full network keeps busy at the full clock; drawn evenly in its logarithm."""
TRAIN = (0.2, 0.9)
"""The same of training at its full rate; drawn evenly."""
TRAIN_HZ = 20.0
RETURN_FRAC = 0.8
"""What the operator asks for, beside the kind's own goal."""
MISS_FRAC = 0.001
RESERVE_FRAC = 0.05
"""Of the battery, which `lasts until` means to be left: the charge that the governor does not spend."""


class Case(NamedTuple):
    """One trace with its board, work and goals.

    Attributes:
        name: kind and seed.
        kind: heat, battery, scarce (infeasible), faults, load, link, day or recorded.
        model, scenario, work, goals: what `sim.simulate` and a governor take.
        seconds, period_s: how long, and between two looks.
        until_s: the battery is to last so long; 0 without a battery.
        seed: of the noise of sensors.
    """

    name: str
    kind: str
    model: Model
    scenario: Scenario
    work: Workload
    goals: Goals
    seconds: float
    period_s: float
    until_s: float
    seed: int


def sized(manifest: Manifest, size: float, train: float) -> Workload:
    """A bundle's frontier, at the size of another network.

    Args:
        manifest: gives frontier, rate, and what an exit costs against the full network.
        size: share of one core that the full network keeps busy.
        train: the same of training.
    """
    table = prices(manifest)
    ops = [each.ops or 2 * each.macs for each in manifest.exits]
    full_ops = manifest.frontier.full_ops if manifest.frontier else ops[-1]
    full_s = size / table.rate_hz
    return Workload(
        manifest=manifest,
        prices=msgspec.structs.replace(
            table, exits_s=tuple(full_s * each / full_ops for each in ops), source="bundle", spread_frac=0.15
        ),
        tick_s=0.02 * full_s,
        deadline_s=0.8 / table.rate_hz,
        step_s=train / TRAIN_HZ,
        train_steps_hz=TRAIN_HZ,
    )


def cheapest_s(work: Workload) -> float:
    """CPU time of a tick at the cheapest setting that decides at every tick."""
    found = [each for each in work.prices.points if each.repeat == 1]
    point = min(found or work.prices.points, key=lambda each: each.ops_frac)
    return work.tick_s + sum(s * t for s, t in zip(point.shares, work.prices.exits_s, strict=True))


def _drawn(rng: random.Random, manifests: Sequence[Manifest], boards: Sequence[Model]) -> tuple[Model, Workload]:
    low, high = SIZES
    size = low * (high / low) ** rng.random()
    return rng.choice(boards), sized(rng.choice(manifests), size, rng.uniform(*TRAIN))


def _battery(rng: random.Random, model: Model, work: Workload, hours: float, until_s: float, spare: float) -> Scenario:
    """As much charge as the cheapest setting needs until then, and the share `spare` of what the dearest needs more.

    Below 0 even the cheapest empties the battery.
    """
    plain = make("low-battery", model, seed=rng.randrange(1 << 30), hours=hours)
    least_cores = REST_CORES + work.prices.rate_hz * cheapest_s(work)
    most_cores = REST_CORES + work.prices.rate_hz * (work.tick_s + work.prices.exits_s[-1])
    most_cores += work.train_steps_hz * work.step_s
    rest_w = model.idle_w + model.static_w
    least_w, most_w = (rest_w + model.busy_w_per_core * cores for cores in (least_cores, most_cores))
    needed_j = (least_w + spare * (most_w - least_w)) * until_s / model.efficiency_frac
    charge_frac = rng.uniform(0.6, 0.95)
    return msgspec.structs.replace(
        plain, capacity_j=round(needed_j / (charge_frac - RESERVE_FRAC), 1), charge_frac=charge_frac
    )


def _day(rng: random.Random, model: Model, work: Workload, hours: float, until_s: float) -> Scenario:
    """All at once, each in moderation: a warm day on a battery, with visitors on the processor and a bad link."""
    names = ("heatwave", "cpu-hog", "bad-link")
    parts = [make(name, model, seed=rng.randrange(1 << 30), hours=hours) for name in names]
    power = _battery(rng, model, work, hours, until_s, rng.uniform(0.4, 0.7))
    rows = []
    for warm, busy, far, charged in zip(*(part.rows for part in parts), power.rows, strict=True):
        rows.append(
            Row(
                t_s=warm.t_s,
                ambient_c=24 + 0.6 * (warm.ambient_c - 24),
                hog_cores=0.1 * busy.hog_cores,
                charger=charged.charger,
                link_up=far.link_up,
                rtt_s=far.rtt_s,
                loss_frac=far.loss_frac,
                link_bytes_per_s=far.link_bytes_per_s,
            )
        )
    hog_w = model.busy_w_per_core * sum(row.hog_cores for row in rows if row.t_s < until_s) / max(1, len(rows)) * hours
    extra_j = hog_w * 3600 / model.efficiency_frac
    capacity_j = (power.capacity_j or 0.0) + extra_j / (power.charge_frac - RESERVE_FRAC)
    return msgspec.structs.replace(power, name="day", rows=tuple(rows), capacity_j=round(capacity_j, 1))


def cases(manifests: Sequence[Manifest], boards: Sequence[Model], *, seeds: str, quick: bool = False) -> list[Case]:
    """All traces, or a few of each kind.

    Args:
        manifests: of the bundles.
        boards: to draw from.
        seeds: a key of `SETS`. Recorded traces were looked at, and are no part of "report".
        quick: fewer and shorter.
    """
    counts = {"heat": 5, "battery": 7, "scarce": 6, "faults": 4, "load": 6, "link": 3, "day": 4}
    hours = 6.0
    if quick:
        counts, hours = dict.fromkeys(counts, 1) | {"battery": 2}, 3.0
    found = []
    for kind, count in counts.items():
        for seed in range(count):
            found.append(case(kind, seed, manifests, boards, hours=hours, seeds=seeds))
    if seeds == "report":
        return found
    for path in sorted(RECORDED.glob("*.csv"))[: 1 if quick else None]:
        rng = random.Random(path.stem)
        model, work = _drawn(rng, manifests, boards)
        told = msgspec.structs.replace(load(path), name=path.stem)
        # What was recorded on one board is an ordeal for another: the battery is made to fit the work.
        until_s = 0.8 * told.rows[-1].t_s if told.capacity_j else 0.0
        if until_s:
            sound = _battery(rng, model, work, told.rows[-1].t_s / 3600, until_s, 0.5)
            told = msgspec.structs.replace(told, capacity_j=sound.capacity_j, charge_frac=sound.charge_frac)
        goals = wanted(until_s)
        found.append(Case(path.stem, "recorded", model, told, work, goals, told.rows[-1].t_s, 5.0, until_s, 0))
    return found


def wanted(until_s: float) -> Goals:
    """What the operator of a trace asks for."""
    until = f"{until_s / 3600:.4f} h" if until_s else None
    return Goals(min_return_frac=RETURN_FRAC, miss_frac=MISS_FRAC, last_until=until)


def case(
    kind: str,
    seed: int,
    manifests: Sequence[Manifest],
    boards: Sequence[Model],
    *,
    hours: float = 8.0,
    seeds: str = "look",
) -> Case:
    """One made trace; equal arguments give equal ones."""
    rng = random.Random(f"{SETS[seeds]}{kind} {seed}")
    model, work = _drawn(rng, manifests, boards)
    period_s, until_s = 5.0, 0.0
    drawn = rng.randrange(1 << 30)
    if kind in ("battery", "scarce", "faults"):
        until_s = 0.8 * 3600 * hours
        spare = rng.uniform(-0.5, -0.2) if kind == "scarce" else rng.uniform(0.15, 0.8)
        scenario = _battery(rng, model, work, hours, until_s, spare)
        if kind == "faults":
            lies = make("flaky-sensors", model, seed=drawn, hours=hours)
            rows = (msgspec.structs.replace(r, faults=f.faults) for r, f in zip(scenario.rows, lies.rows, strict=True))
            scenario = msgspec.structs.replace(scenario, name="flaky-sensors", rows=tuple(rows))
    elif kind == "day":
        until_s = 0.8 * 3600 * hours
        scenario = _day(rng, model, work, hours, until_s)
    else:
        name = {"heat": "heatwave", "load": "cpu-hog", "link": "bad-link"}[kind]
        if kind == "load":
            hours, period_s = hours / 4, 1.0
        scenario = make(name, model, seed=drawn, hours=hours)
    goals = wanted(until_s)
    return Case(f"{kind} {seed}", kind, model, scenario, work, goals, hours * 3600, period_s, until_s, seed)


def steady(manifests: Sequence[Manifest], boards: Sequence[Model], *, seeds: str) -> list[Case]:
    """Conditions that do not change but for noise, right where a controller would like to switch."""
    found = []
    hours = 3.0
    for k, manifest in enumerate(manifests):
        model, work = boards[k % len(boards)], sized(manifest, 0.3, 0.5)
        rng = random.Random(f"{SETS[seeds]}steady {k}")
        rest_c = sum(model.r_c_per_w) * (model.idle_w + 0.5 * model.busy_w_per_core)
        warm = tuple(
            Row(t_s=60.0 * n, ambient_c=model.hot_c - 3.0 - rest_c + rng.gauss(0, 0.7)) for n in range(int(60 * hours))
        )
        busy = tuple(Row(t_s=60.0 * n, hog_cores=model.cores * rng.uniform(0.75, 0.95)) for n in range(int(60 * hours)))
        half = msgspec.structs.replace(_battery(rng, model, work, hours, 3600 * hours, 0.5), name="steady drain")
        half = msgspec.structs.replace(
            half, rows=tuple(msgspec.structs.replace(row, charger=False) for row in half.rows)
        )
        for name, scenario, until_s in (
            ("warm", Scenario(name="steady warmth", rows=warm), 0.0),
            ("busy", Scenario(name="steady load", rows=busy), 0.0),
            ("drain", half, 3600 * hours),
        ):
            goals, title = wanted(until_s), f"steady {name} {k}"
            found.append(Case(title, "steady", model, scenario, work, goals, hours * 3600, 5.0, until_s, k))
    return found
