"""What edgert runs on: the sections of the configuration about the machine, and the description of a kind of board.

A board's file (`firmware_configs/<board>.toml`) is a configuration to start from and, in its table `hardware`, says
what the board is: how it is recognised, what it measures, where it throttles, what it draws, and what a user may want
to set in its firmware. Pure: text in, structs out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgert import tables
from edgert.errors import ConfigError

_NAME = "1 to 63 letters, digits, '.', '_' or '-', the first and the last a letter or a digit"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z", title=_NAME)]
Text = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", title="text in quotes, not empty")]
Directory = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", title="an absolute path")]
Share = Annotated[float, Meta(ge=0, le=1)]
Celsius = Annotated[float, Meta(ge=0, le=150)]
Watts = Annotated[float, Meta(ge=0, le=1000)]
Joules = Annotated[float, Meta(gt=0, le=1_000_000_000)]
Hertz = Annotated[float, Meta(gt=0, le=10_000_000_000)]
Core = Annotated[int, Meta(ge=0, le=1023)]
Line = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]+\Z", title="one line of text in quotes")]


class Gauge(msgspec.Struct, frozen=True, kw_only=True):
    """A chip on i2c that measures power or charge, as on a UPS HAT; needs the Python package smbus2.

    Attributes:
        kind: Which chip.
        measures: battery: it sits at the cells; supply: at what the board draws.
        bus: Number of the i2c bus, as in /dev/i2c-1.
        address: Of the chip, 3 to 119; unset: 64 (INA219, INA226), 54 (MAX17048).
        shunt_ohm: Resistance that an INA219 or INA226 measures the current by.
        cells: Cells in series; with a wrong count the charge is wrong.
        full_cell_v: Voltage of a cell that is full, at rest.
        empty_cell_v: Voltage of a cell from which nothing more should be taken.
        charging_positive: A positive current charges; false where the shunt is wired the other way round.
    """

    kind: Literal["ina219", "ina226", "max17048"]
    measures: Literal["battery", "supply"] = "battery"
    bus: Annotated[int, Meta(ge=0, le=255)] = 1
    address: Annotated[int, Meta(ge=3, le=119)] | None = None
    shunt_ohm: Annotated[float, Meta(gt=0, le=10)] = 0.1
    cells: Annotated[int, Meta(ge=1, le=16)] = 1
    full_cell_v: Annotated[float, Meta(gt=1, le=5)] = 4.2
    empty_cell_v: Annotated[float, Meta(gt=1, le=5)] = 3.2
    charging_positive: bool = True


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The sensors of this machine.

    Attributes:
        kind: linux: /proc and /sys; fake: simulated heat, from this machine's real CPU load.
        model: Name of the file that describes this board, as `edgert board list` shows; unset: what is detected.
        sysfs_root: Directory that holds proc and sys.
        thermal_zone: Type of the one thermal zone to watch; unset means the hottest of all.
        metered: Every byte of the link costs money; unset: what interface and lease suggest.
        idle_w: Watts of the whole machine while the CPU idles, robot included; unset: what the board's file says.
        busy_w: Watts more at full CPU load; unset: what the board's file says.
        gauges: Chips on i2c that measure power or charge.
        scenario: What happens to a fake board: a name that `edgert sim board --help` lists, or a trace file.
        speed: How much faster than told it happens.
    """

    kind: Literal["linux", "fake"] = "linux"
    model: Name | None = None
    sysfs_root: Directory = "/"
    thermal_zone: Text | None = None
    metered: bool | None = None
    idle_w: Watts | None = None
    busy_w: Watts | None = None
    gauges: tuple[Gauge, ...] = ()
    scenario: Text | None = None
    speed: Annotated[float, Meta(gt=0, le=100_000)] = 1.0


class Battery(msgspec.Struct, frozen=True, kw_only=True):
    """What feeds this machine.

    Attributes:
        kind: none: mains; linux: /sys/class/power_supply; gauge: [[board.gauges]]; simulated: drained by the CPU load.
        capacity_j: Energy of a full battery, joules (1 Wh is 3600 J); one of /sys that tells its own counts by that.
        initial_frac: Charge of a simulated battery at the start, 0 to 1.
        idle_w: Watts taken from a simulated battery while the CPU idles; of others [board] says it.
        busy_w: Watts more at full CPU load.
    """

    kind: Literal["none", "linux", "gauge", "simulated"] = "none"
    capacity_j: Joules = 36_000.0
    initial_frac: Share = 1.0
    idle_w: Watts = 2.0
    busy_w: Watts = 4.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the privileged helper (edgert-limits.service) may do when the budget asks for it.

    Attributes:
        enabled: Ask the helper at all, and let it act; without it a budget is obeyed by good will alone.
        socket: Unix socket of the helper.
        user: Who may ask, besides root: the user that edgert.service runs as.
        cpu: Limit the trainer's CPU time by its control group.
        clock: Cap the clock of the CPU.
        affinity: Give trainer and actor cores of their own, where there are small and big ones.
        least_trainer_frac: Never leave the trainer less of all cores' time than this.
        least_clock_frac: Never cap the clock below this share of the highest.
        power_modes: Ids of nvpmodel modes of a Jetson that may be chosen; empty: none.
        state_dir: Directory where the helper notes what it must undo after a crash.
    """

    enabled: bool = False
    socket: Directory = "/run/edgert-limits/limits.sock"
    user: Name = "edgert"
    cpu: bool = True
    clock: bool = True
    affinity: bool = True
    least_trainer_frac: Annotated[float, Meta(gt=0, le=1)] = 0.05
    least_clock_frac: Annotated[float, Meta(gt=0, le=1)] = 0.4
    power_modes: tuple[Annotated[int, Meta(ge=0, le=63)], ...] = ()
    state_dir: Directory = "/var/lib/edgert-limits"


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """How a board is recognised: by its device tree, else by its processor.

    Attributes:
        compatible: Of the device tree's root, any of them.
        model: Beginnings of the model's name, any of them; where the device tree lacks a compatible of its own.
        machine: As uname -m says; only for files that fit any board of an architecture.
    """

    compatible: tuple[Text, ...] = ()
    model: tuple[Text, ...] = ()
    machine: tuple[Text, ...] = ()


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """Cores that are alike and share a clock.

    Attributes:
        name: What they are.
        cores: Their numbers.
        min_hz: Lowest clock.
        max_hz: Highest clock.
    """

    name: Text
    cores: tuple[Core, ...]
    min_hz: Hertz
    max_hz: Hertz


class Heat(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is measured and what happens when.

    Attributes:
        zones: Types of the thermal zones that matter; the hottest counts.
        throttle_c: From here on the clock is taken down, step by step.
        hard_c: From here on it is taken down whatever it costs.
        critical_c: From here on the kernel shuts the machine down.
        soft_c: From here on a little of the clock is given up, to last longer.
    """

    zones: tuple[Text, ...] = ()
    throttle_c: Celsius | None = None
    hard_c: Celsius | None = None
    critical_c: Celsius | None = None
    soft_c: Celsius | None = None


class Rail(msgspec.Struct, frozen=True, kw_only=True):
    """A supply whose power the board measures.

    Attributes:
        name: Its label in sysfs.
        driver: Of the chip that measures it.
        total: It feeds the whole module.
        shunt_ohm: Resistance that it is measured by.
    """

    name: Text
    driver: Text
    total: bool = False
    shunt_ohm: Annotated[float, Meta(gt=0, le=10)] | None = None


class Physics(msgspec.Struct, frozen=True, kw_only=True):
    """How the board heats and what it draws, for the simulated board: the fields of `ports.board.physics.Model`.

    Attributes:
        cores: Number of cores.
        idle_w: Of the chip at rest.
        busy_w_per_core: More, for a core that is busy at the full clock.
        static_w: Of the rest of the board.
        voltage_floor_frac: Supply voltage that is left at a clock of 0, as a share of that at the full clock.
        r_c_per_w: Thermal resistances from the chip to the air, degrees Celsius a watt.
        tau_s: Time constant of each.
        hot_c: From here on the clock is stepped down.
        trip_c: From here on the lowest clock is taken at once.
        min_freq_frac: Lowest clock, as a share of the highest.
        freq_steps: From the highest clock to the lowest.
    """

    cores: Annotated[int, Meta(ge=1, le=1024)]
    idle_w: Watts
    busy_w_per_core: Watts
    static_w: Watts
    voltage_floor_frac: Share
    r_c_per_w: tuple[Annotated[float, Meta(gt=0, le=1000)], ...]
    tau_s: tuple[Annotated[float, Meta(gt=0, le=86_400)], ...]
    hot_c: Celsius
    trip_c: Celsius
    min_freq_frac: Annotated[float, Meta(gt=0, le=1)]
    freq_steps: Annotated[int, Meta(ge=1, le=1000)]


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What suits the board.

    Attributes:
        threads: Of the runtime, for one decision.
        precision: What runs faster as long as nothing was measured: `edgert policy bench` measures.
        max_ops_frac: What a decision should cost on average, as a share of the network without exits.
    """

    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    precision: Literal["int8", "float32"] = "int8"
    max_ops_frac: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Fragment(msgspec.Struct, frozen=True, kw_only=True):
    """Something to set on the board, which `edgert board apply` does and undoes.

    Attributes:
        name: For `edgert board apply --only`.
        why: What it is good for.
        file: The files that may hold it; the first that exists, else `create`, is edited.
        create: The file is made where there is none.
        lines: What goes into the file, in a block of its own.
        words: What goes at the end of the file's first line, for the kernel's command line.
        standard: Applied unless left out; what is not standard must be asked for by name.
        reboot: Takes effect with the next start.
        run: What makes it take effect at once, for the user to type; not run by edgert.
    """

    name: Name
    why: Line
    file: tuple[Directory, ...] = ()
    create: bool = False
    lines: tuple[Line, ...] = ()
    words: tuple[Line, ...] = ()
    standard: bool = True
    reboot: bool = True
    run: tuple[Line, ...] = ()


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of board.

    Attributes:
        title: What its maker calls it.
        match: How it is recognised.
        clusters: Its cores.
        heat: Where it throttles.
        rails: What it measures of its supplies.
        physics: How it heats and what it draws.
        advice: What suits it.
        fragments: What can be set on it.
    """

    title: Text
    match: Match
    heat: Heat
    physics: Physics
    clusters: tuple[Cluster, ...] = ()
    rails: tuple[Rail, ...] = ()
    advice: Advice = Advice()
    fragments: tuple[Fragment, ...] = ()


class BoardFile(msgspec.Struct, frozen=True, kw_only=True):
    """A board's file.

    Attributes:
        name: of the file, without its ending.
        hardware: what the board is.
        settings: dotted key -> value of a configuration to start from; only what differs from the defaults.
    """

    name: str
    hardware: Hardware
    settings: dict[str, object]


def parse_board(text: str, name: str) -> BoardFile:
    """Read a board's file.

    Args:
        text: TOML 1.0.
        name: of the file, without its ending.

    Returns:
        The board, and its settings as they stand: `config.commented_default` checks them.

    Raises:
        ConfigError: one line a fault in the table `hardware`.

    Source:
        ours: one file a board, so that what is known of it is found in one place.
    """
    whole = tables.document(text, name)
    faults: list[str] = []
    values = tables.read("hardware", Hardware, whole.get("hardware", {}), faults)
    if not faults:
        faults += _relations(values)
    if faults:
        raise ConfigError("\n".join(f"{name}: {fault}" for fault in faults))
    settings = {
        f"{section}.{key}": value
        for section, table in whole.items()
        if section != "hardware"
        for key, value in (table.items() if isinstance(table, dict) else {})
    }
    return BoardFile(name=name, hardware=Hardware(**values), settings=settings)


def _relations(values: dict[str, Any]) -> list[str]:
    physics, match, heat = values["physics"], values["match"], values["heat"]
    faults = []
    if len(physics.r_c_per_w) != len(physics.tau_s) or not physics.tau_s:
        faults.append("hardware.physics.tau_s: must be one for each of r_c_per_w, and at least one")
    if physics.hot_c >= physics.trip_c:
        faults.append(f"hardware.physics.hot_c: is {physics.hot_c}; must be below trip_c ({physics.trip_c})")
    if not (match.compatible or match.model or match.machine):
        faults.append("hardware.match: says nothing; nothing would be recognised by it")
    marks = [c for c in (heat.soft_c, heat.throttle_c, heat.hard_c, heat.critical_c) if c is not None]
    if marks != sorted(marks):
        faults.append("hardware.heat: soft_c, throttle_c, hard_c and critical_c must rise")
    for cluster in values["clusters"]:
        if cluster.min_hz > cluster.max_hz:
            faults.append(f"hardware.clusters: {cluster.name}: min_hz is above max_hz")
    cores = [core for cluster in values["clusters"] for core in cluster.cores]
    if cores and sorted(cores) != list(range(physics.cores)):
        faults.append(f"hardware.clusters: hold cores {cores}; hardware.physics.cores says {physics.cores}")
    for fragment in values["fragments"]:
        is_typed = not (fragment.file or fragment.lines or fragment.words) and fragment.run
        if not is_typed and (bool(fragment.lines) == bool(fragment.words) or not fragment.file):
            faults.append(
                f"hardware.fragments: {fragment.name}: needs a file and either lines or words for it, or only run"
            )
    return faults
