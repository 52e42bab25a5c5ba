"""What happens to a board: air, other load, charger, link and sensor faults over time; made from a seed, or in a file.

A trace file is CSV with a header line, or JSON lines (`.jsonl`); `#` begins a comment in both. Each row holds from its
`t_s` until the next one; what a row leaves out stays as it was. Columns:

- `t_s`: seconds from the beginning, rising
- `ambient_c`: air temperature
- `hog_cores`: what other programs want, in cores at the full clock
- `charger`: 1 or 0
- `link_up`: 1 or 0
- `rtt_s`, `loss_frac`, `link_bytes_per_s`: of the link while it is up
- `faults`: `sensor=kind` pairs with spaces between; a sensor is a field of `Readings`, kinds are in `FAULTS`
- `capacity_j`, `charge_frac`: of a battery, in the first row only; without them it is the board's own
- `out_...`: what a simulation found; not read
"""

from __future__ import annotations

import bisect
import csv
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgert.errors import ConfigError
from edgert.ports.board.physics import Model
from edgert.ports.store import store_error

STEP_S = 60.0
"""Between two rows of the traces that are made here."""
FILE_BYTES_MAX = 64 << 20
FAULTS = ("silent", "stuck", "stale", "noisy", "zero", "milli")
"""silent: no value; stuck: the value of before, as if it were new; stale: the same, and it says how old it is; noisy: a
tenth of it more or less; zero: 0.0; milli: a thousandth, as of one who takes mV for V."""
SENSORS = ("load_frac", "temp_c", "battery_frac", "power_w", "freq_frac", "trip_c")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What holds from `t_s` on; the fields are the columns of a trace file."""

    t_s: float = 0.0
    ambient_c: float = 25.0
    hog_cores: float = 0.0
    charger: bool = False
    link_up: bool = True
    rtt_s: float = 0.03
    loss_frac: float = 0.0
    link_bytes_per_s: float = 1e6
    faults: tuple[tuple[str, str], ...] = ()


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """A trace with a name.

    Attributes:
        name: of a made scenario, or of the file.
        rows: in order; the first holds from the beginning, the last for ever.
        capacity_j: of the battery; 0 is mains, None the board's own.
        charge_frac: at the beginning.
    """

    name: str
    rows: tuple[Row, ...] = (Row(),)
    capacity_j: float | None = None
    charge_frac: float = 1.0

    def at(self, t_s: float) -> Row:
        """What holds at a time."""
        return self.rows[max(0, bisect.bisect_right(self.rows, t_s, key=lambda row: row.t_s) - 1)]

    def pieces(self, from_s: float, to_s: float) -> Iterator[tuple[Row, float]]:
        """Each row that holds in a while, with how long it does in it."""
        k = max(0, bisect.bisect_right(self.rows, from_s, key=lambda row: row.t_s) - 1)
        while from_s < to_s:
            end_s = min(to_s, self.rows[k + 1].t_s) if k + 1 < len(self.rows) else to_s
            yield self.rows[k], end_s - from_s
            from_s, k = end_s, k + 1


class _Cells(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a file; None is an empty cell."""

    t_s: float
    ambient_c: float | None = None
    hog_cores: float | None = None
    charger: float | None = None
    link_up: float | None = None
    rtt_s: float | None = None
    loss_frac: float | None = None
    link_bytes_per_s: float | None = None
    faults: str | None = None
    capacity_j: float | None = None
    charge_frac: float | None = None


_RANGES = {
    "t_s": (0.0, 1e9),
    "ambient_c": (-60.0, 100.0),
    "hog_cores": (0.0, 1024.0),
    "charger": (0.0, 1.0),
    "link_up": (0.0, 1.0),
    "rtt_s": (0.0, 3600.0),
    "loss_frac": (0.0, 1.0),
    "link_bytes_per_s": (0.0, 1e12),
    "capacity_j": (0.0, 1e9),
    "charge_frac": (0.0, 1.0),
}


def make(name: str, model: Model, *, seed: int = 0, hours: float = 8.0) -> Scenario:
    """One of the made scenarios.

    Args:
        name: a key of `SCENARIOS`.
        model: the board; what is scarce for one is plenty for another.
        seed: of everything that is drawn; equal seeds give equal scenarios.
        hours: from its beginning to its end.

    Raises:
        ConfigError: there is no such scenario, or no such time.
    """
    if name not in SCENARIOS:
        raise ConfigError(f"no scenario {name!r}: choose one of {', '.join(SCENARIOS)}, or name a trace file")
    if not 0 < hours <= 24 * 366:
        raise ConfigError(f"{hours} hours: a scenario lasts more than 0 hours and at most a year")
    rng = random.Random(f"{name} {seed}")
    times = [k * STEP_S for k in range(max(1, math.ceil(hours * 3600 / STEP_S)))]
    return SCENARIOS[name](rng, times, hours * 3600, model)


def load(path: Path) -> Scenario:
    """Read a trace file.

    Raises:
        ConfigError: a line of it is torn or makes no sense; says which and why.
        StoreError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise store_error(error, "read", path) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: {len(data)} bytes; a trace has at most {FILE_BYTES_MAX}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text") from error
    return parse(text, str(path), jsonl=path.suffix == ".jsonl")


def parse(text: str, name: str, *, jsonl: bool = False) -> Scenario:
    """Understand the text of a trace file.

    Args:
        text: CSV, or JSON lines.
        name: of the file.
        jsonl: which of both.

    Raises:
        ConfigError: a line is torn or makes no sense; says which and why.
    """
    rows: list[Row] = []
    first: _Cells | None = None
    for number, cells in _lines(text, name, jsonl):
        where = f"{name}, line {number}"
        try:
            told = msgspec.convert(cells, _Cells, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}") from error
        for key, (low, high) in _RANGES.items():
            value = getattr(told, key)
            if value is not None and not low <= value <= high:  # written so that NaN fails as well
                raise ConfigError(f"{where}: {key} is {value:g}; it lies between {low:g} and {high:g}")
        if rows and told.t_s <= rows[-1].t_s:
            raise ConfigError(f"{where}: t_s is {told.t_s:g} after {rows[-1].t_s:g}; it must rise")
        if first is not None and (told.capacity_j is not None or told.charge_frac is not None):
            raise ConfigError(f"{where}: capacity_j and charge_frac belong into the first row")
        first = first or told
        changed: dict[str, Any] = {
            key: getattr(told, key)
            for key in ("ambient_c", "hog_cores", "rtt_s", "loss_frac", "link_bytes_per_s")
            if getattr(told, key) is not None
        }
        changed |= {key: bool(getattr(told, key)) for key in ("charger", "link_up") if getattr(told, key) is not None}
        if told.faults is not None:
            changed["faults"] = _faults(told.faults, where)
        rows.append(msgspec.structs.replace(rows[-1] if rows else Row(), t_s=told.t_s, **changed))
    if first is None:
        raise ConfigError(f"{name}: no rows; a trace has at least one")
    charge = 1.0 if first.charge_frac is None else first.charge_frac
    return Scenario(name=name, rows=tuple(rows), capacity_j=first.capacity_j, charge_frac=charge)


def _lines(text: str, name: str, jsonl: bool) -> Iterator[tuple[int, Mapping[str, Any]]]:
    header: list[str] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        line, where = line.strip(), f"{name}, line {number}"
        if not line or line.startswith("#"):
            continue
        if jsonl:
            try:
                found = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{where}: not JSON ({error}); is it torn?") from error
            if not isinstance(found, dict):
                raise ConfigError(f"{where}: not an object of columns")
            yield number, {key: value for key, value in found.items() if not key.startswith("out_")}
            continue
        try:
            cells = next(csv.reader([line], strict=True))
        except csv.Error as error:
            raise ConfigError(f"{where}: {error}; is it torn?") from error
        if header is None:
            header = cells
            known = set(_Cells.__struct_fields__)
            strange = [each for each in header if each not in known and not each.startswith("out_")]
            if "t_s" not in header or strange or len(set(header)) != len(header):
                what = f"does not know {', '.join(map(repr, strange))}" if strange else "needs t_s, and each name once"
                raise ConfigError(f"{where}: a trace {what}; columns are {', '.join(_Cells.__struct_fields__)}")
        elif len(cells) != len(header):
            raise ConfigError(f"{where}: {len(cells)} cells for {len(header)} columns; is it torn?")
        else:
            yield number, {k: v for k, v in zip(header, cells, strict=True) if v != "" and not k.startswith("out_")}


def _faults(text: str, where: str) -> tuple[tuple[str, str], ...]:
    found = []
    for each in text.split():
        sensor, _, kind = each.partition("=")
        if sensor not in SENSORS or kind not in (*FAULTS, "none"):
            raise ConfigError(
                f"{where}: fault {each!r}; write sensor=kind, sensors are {', '.join(SENSORS)}, "
                f"kinds {', '.join(FAULTS)}, and sensor=none for all well"
            )
        if kind != "none":
            found.append((sensor, kind))
    return tuple(found)


def cells(row: Row) -> dict[str, str]:
    """A row as a line of CSV that `parse` reads back: column -> text."""
    told: dict[str, str] = {
        key: f"{getattr(row, key):.9g}"
        for key in ("t_s", "ambient_c", "hog_cores", "rtt_s", "loss_frac", "link_bytes_per_s")
    }
    told |= {key: str(int(getattr(row, key))) for key in ("charger", "link_up")}
    return told | {"faults": " ".join(f"{sensor}={kind}" for sensor, kind in row.faults) or "temp_c=none"}


def _wander(rng: random.Random, times: list[float], spread: float, back_s: float) -> list[float]:
    """Noise that comes back to 0: an Ornstein-Uhlenbeck process on a grid."""
    keep, value, found = math.exp(-STEP_S / back_s), 0.0, []
    for _ in times:
        value = keep * value + spread * math.sqrt(1 - keep * keep) * rng.gauss(0, 1)
        found.append(value)
    return found


def _bursts(rng: random.Random, times: list[float], off_s: float, on_s: float) -> list[bool]:
    """On and off, each for a time that is drawn."""
    on, left_s, found = False, rng.expovariate(1 / off_s), []
    for _ in times:
        while left_s <= 0:
            on = not on
            left_s += max(STEP_S, rng.expovariate(1 / (on_s if on else off_s)))
        found.append(on)
        left_s -= STEP_S
    return found


def _heatwave(rng: random.Random, times: list[float], end_s: float, model: Model) -> Scenario:
    """A summer day in a closed box: from a mild morning to an afternoon the board was not made for, and back."""
    peak = model.hot_c - sum(model.r_c_per_w) * (model.idle_w + 1.2 * model.busy_w_per_core) + rng.uniform(0, 6)
    clouds = _wander(rng, times, 1.5, 1200)
    hog = _bursts(rng, times, 2400, 900)
    rows = []
    for t_s, cloud, busy in zip(times, clouds, hog, strict=True):
        day = math.sin(math.pi * min(1.0, max(0.0, (t_s / end_s - 0.05) / 0.9))) ** 2
        rows.append(Row(t_s=t_s, ambient_c=round(24 + (peak - 24) * day + cloud, 3), hog_cores=0.8 * busy))
    return Scenario(name="heatwave", rows=tuple(rows))


def _low_battery(rng: random.Random, times: list[float], end_s: float, model: Model) -> Scenario:
    """A day on a battery that lasts at rest and not at full work; in the last fifth a charger comes."""
    rest_w, work_w = model.idle_w + model.static_w, model.busy_w_per_core
    needed_j = (rest_w + rng.uniform(0.25, 0.6) * work_w) * 0.8 * end_s / model.efficiency_frac
    charge = rng.uniform(0.6, 0.9)
    clouds = _wander(rng, times, 1.0, 3600)
    rows = (
        Row(t_s=t_s, ambient_c=round(22 + cloud, 3), charger=t_s >= 0.8 * end_s)
        for t_s, cloud in zip(times, clouds, strict=True)
    )
    return Scenario(name="low-battery", rows=tuple(rows), capacity_j=round(needed_j / charge, 1), charge_frac=charge)


def _bad_link(rng: random.Random, times: list[float], end_s: float, model: Model) -> Scenario:
    """A radio at the edge of its reach: good, bad, and gone."""
    far, gone = _bursts(rng, times, 1200, 1800), _bursts(rng, times, 2400, 240)
    rows = []
    for t_s, bad, out in zip(times, far, gone, strict=True):
        rtt_s = rng.lognormvariate(math.log(0.9 if bad else 0.05), 0.5)
        loss = min(0.5, rng.expovariate(1 / 0.08)) if bad else 0.0
        rate = rng.lognormvariate(math.log(1.2e4 if bad else 3e5), 0.6)
        rows.append(
            Row(
                t_s=t_s,
                ambient_c=24.0,
                link_up=not out,
                rtt_s=round(rtt_s, 4),
                loss_frac=round(loss, 4),
                link_bytes_per_s=round(rate, 1),
            )
        )
    return Scenario(name="bad-link", rows=tuple(rows))


def _cpu_hog(rng: random.Random, times: list[float], end_s: float, model: Model) -> Scenario:
    """Other programs that come and take what cores there are."""
    busy = _bursts(rng, times, 900, 600)
    wanted, rows = 0.0, []
    for k, (t_s, on) in enumerate(zip(times, busy, strict=True)):
        if on and (k == 0 or not busy[k - 1]):
            wanted = rng.uniform(0.5, 1.5) * model.cores
        rows.append(Row(t_s=t_s, ambient_c=22.0, hog_cores=round(wanted, 3) if on else 0.0))
    return Scenario(name="cpu-hog", rows=tuple(rows))


def _flaky_sensors(rng: random.Random, times: list[float], end_s: float, model: Model) -> Scenario:
    """A mild day on a battery whose sensors lie now and then."""
    plain = _low_battery(rng, times, end_s, model)
    rows, left = [], 0
    faults: tuple[tuple[str, str], ...] = ()
    for row in plain.rows:
        left -= 1
        if left < 0:
            faults = ()
        if left < 0 and rng.random() < 0.08:
            faults, left = ((rng.choice(SENSORS), rng.choice(FAULTS)),), rng.randrange(1, 10)
        rows.append(msgspec.structs.replace(row, faults=faults))
    return msgspec.structs.replace(plain, name="flaky-sensors", rows=tuple(rows))


SCENARIOS: dict[str, Callable[[random.Random, list[float], float, Model], Scenario]] = {
    "heatwave": _heatwave,
    "low-battery": _low_battery,
    "bad-link": _bad_link,
    "cpu-hog": _cpu_hog,
    "flaky-sensors": _flaky_sensors,
}
