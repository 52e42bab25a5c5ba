"""The user's TOML file, as typed sections: one place for every key, its default, its range and its explanation.

Pure: text in, `Config` out. A bad file is reported whole, every fault at once, so that nobody fixes a board one
restart at a time. The `Attributes` of a section below are also the comments in the file that `edgert init` writes, so
the two cannot drift apart.
"""

from __future__ import annotations

import collections
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edgert.errors import ConfigError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes on Linux, one of them the closing NUL (unix(7))."""

_NAME = "1 to 63 letters, digits, '.', '_' or '-', the first and the last a letter or a digit"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?\Z", title=_NAME)]
Text = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", title="text in quotes, not empty")]
Directory = Annotated[str, Meta(pattern=r"^/[^\x00]*\Z", title="an absolute path")]
Share = Annotated[float, Meta(ge=0, le=1)]
Celsius = Annotated[float, Meta(ge=0, le=150)]
Weight = Annotated[float, Meta(ge=0, le=1000)]
Watts = Annotated[float, Meta(ge=0, le=1000)]
Interval = Annotated[float, Meta(gt=0, le=86_400)]


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Who this device is, and where it keeps its files.

    Attributes:
        id: Name of this device, unique in its fleet; a segment of its topics.
        fleet: Name of the fleet it belongs to; a segment of its topics.
        state_dir: Directory for what must survive a reboot.
        run_dir: Directory for sockets; may be emptied at boot.
    """

    id: Name
    fleet: Name = "default"
    state_dir: Directory = "/var/lib/edgert"
    run_dir: Directory = "/run/edgert"


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """The MQTT 5 broker.

    Attributes:
        url: mqtt://host[:1883], or mqtts://host[:8883] for TLS; user and password have keys of their own.
        username: User name, if the broker asks for one.
        password_file: File with the password on its first line.
        ca_file: PEM file of the authorities to trust; unset means the system's.
        cert_file: PEM file of this device's own certificate.
        key_file: PEM file of that certificate's private key.
        keepalive_s: A dead link is noticed after at most twice this many seconds.
        session_expiry_s: Seconds the broker keeps our messages while we are away; longer than any planned outage.
    """

    url: Text = "mqtt://127.0.0.1:1883"
    username: Text | None = None
    password_file: Text | None = None
    ca_file: Text | None = None
    cert_file: Text | None = None
    key_file: Text | None = None
    keepalive_s: Annotated[int, Meta(ge=5, le=65_535)] = 15
    session_expiry_s: Annotated[int, Meta(ge=0, le=0xFFFFFFFE)] = 172_800


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The network that acts.

    Attributes:
        bundle: Path of the .edgert bundle to start with.
        runtime: What runs it; auto: what `edgert policy bench` found, or the first of onnx, litert, tflite, numpy.
        thresholds: Confidence from which each exit but the last is believed; unset means the bundle's own.
        deadline_s: Seconds from observation in hand to action chosen; 0 means 0.8 of the control period.
        explore_frac: Share of decisions replaced by a random one, for training; of no use with bundles of kind policy.
        explore_from_frac: The same at the beginning, for a network that has learned nothing yet.
        explore_transitions: Transitions over which it falls to explore_frac; 0 means it begins there.
    """

    bundle: Text
    runtime: Literal["auto", "onnx", "litert", "tflite", "numpy"] = "auto"
    thresholds: tuple[Share, ...] | None = None
    deadline_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    explore_frac: Share = 0.0
    explore_from_frac: Share = 1.0
    explore_transitions: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0


class Plant(msgspec.Struct, frozen=True, kw_only=True):
    """What is observed and acted upon.

    Attributes:
        kind: socket: your program asks, through edgert.client; simulated: a gymnasium environment on this machine.
        env: gymnasium id, when simulated.
        seed: Seed of the simulated environment.
        socket: Unix socket on which decisions are asked for; empty means policy.sock in run_dir.
        lockstep_hz: For benchmarks: most decisions a second, never ahead of training; 0 means by the clock.
    """

    kind: Literal["socket", "simulated"] = "socket"
    env: Text | None = None
    seed: Annotated[int, Meta(ge=0, le=0x7FFFFFFF)] = 0
    socket: str = ""
    lockstep_hz: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0


class Learn(msgspec.Struct, frozen=True, kw_only=True):
    """Training on the device.

    Attributes:
        enabled: Go on learning here; false runs the installed network as it is.
        ring_transitions: Transitions kept for replay, the oldest overwritten first.
        batch: Transitions in one gradient step.
        train_steps_hz: Gradient steps a second while nothing is scarce; [govern] lowers it.
        learning_rate: Step size of Adam.
        taught_learning_rate: The same beside a fully trusted teacher, which bears larger steps; unset means no other.
        gamma: Discount of the next step's value.
        distill_weight: Weight of imitating a fully trusted teacher in the loss; less with less trust.
        td_weight: Weight of the temporal difference in the loss beside a fully trusted teacher; 1 without one.
        checkpoint_s: Seconds between two checkpoints, about 1 MB each; a power cut costs that much training.
        candidate_s: Seconds between two networks offered for acting.
        min_transitions: Transitions to gather before the first step.
        distill_transitions: Transitions over which that imitation fades to nothing; 0 means that trust alone decides.
        steps_per_transition: Most gradient steps that a new transition pays for; what is old teaches no more.
        target_every: Gradient steps between two copies of the network into its target.
        candidate_transitions: Transitions between two networks offered, instead of seconds; 0 means candidate_s.
        gated: The gate judges what is offered; false lets everything sound act, for comparison.
        rollout_transitions: Bundles of kind policy learn by PPO: transitions to a rollout, and to a network offered.
        epochs: Times that PPO goes through a rollout, as long as the policy stays near.
        gae_decay: Decay of PPO's advantages, its lambda; 1 believes only what happened, 0 only the value.
        entropy_weight: Weight of the entropy, which PPO seeks, in its loss.
    """

    enabled: bool = True
    ring_transitions: Annotated[int, Meta(ge=64, le=10_000_000)] = 20_000
    batch: Annotated[int, Meta(ge=1, le=4096)] = 32
    train_steps_hz: Annotated[float, Meta(gt=0, le=1000)] = 20.0
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 5e-4
    taught_learning_rate: Annotated[float, Meta(gt=0, le=1)] | None = None
    gamma: Share = 0.99
    distill_weight: Weight = 1.0
    td_weight: Weight = 0.1
    checkpoint_s: Interval = 300.0
    candidate_s: Interval = 30.0
    min_transitions: Annotated[int, Meta(ge=1, le=10_000_000)] = 500
    distill_transitions: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    steps_per_transition: Annotated[float, Meta(gt=0, le=1000)] = 4.0
    target_every: Annotated[int, Meta(ge=1, le=10_000_000)] = 1000
    candidate_transitions: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    gated: bool = True
    rollout_transitions: Annotated[int, Meta(ge=64, le=1_000_000)] = 1024
    epochs: Annotated[int, Meta(ge=1, le=100)] = 4
    gae_decay: Share = 0.95
    entropy_weight: Weight = 0.01


class Teacher(msgspec.Struct, frozen=True, kw_only=True):
    """Asking a bigger network elsewhere, over the broker.

    Attributes:
        enabled: Ask teachers at all.
        task: Task under which teachers listen, a segment of their topics; empty means the bundle's.
        batch: Observations in one question.
        max_bytes_per_s: Bytes a second, both ways, while nothing is scarce; [govern] lowers it.
        timeout_s: Seconds after which a question without an answer is given up.
        cache_bytes: Most bytes of answers kept on disk, so that a restart asks for nothing again.
        weighing: How far a teacher is followed: as measured on what happens, by returns alone, or always in full.
        vouched: Names of teachers that you vouch for, as `edgert teacher` prints them: believed at once, on credit.
    """

    enabled: bool = True
    task: str = ""
    batch: Annotated[int, Meta(ge=1, le=1024)] = 32
    max_bytes_per_s: Annotated[float, Meta(gt=0, le=1_000_000_000)] = 4000.0
    timeout_s: Interval = 10.0
    cache_bytes: Annotated[int, Meta(ge=4096, le=1 << 40)] = 4 << 20
    weighing: Literal["measured", "return", "full"] = "measured"
    vouched: tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...] = ()


class Govern(msgspec.Struct, frozen=True, kw_only=True):
    """When to spend less. Each limit is entered at one value and left at a kinder one, so that nothing flaps.

    Attributes:
        period_s: Seconds between two looks at the board.
        smooth_s: Time constant of the averages of load, heat, power and round trip, seconds; 0 means no averaging.
        stale_s: Seconds after which a reading counts as unknown.
        cpu_high_frac: CPU load, 0 to 1, from which training is slowed.
        cpu_low_frac: CPU load from which it no longer is.
        temp_high_c: Degrees Celsius from which training and asking are slowed, and the deepest exit is left out.
        temp_critical_c: Degrees Celsius from which there is no training, no asking, and only the first exit.
        temp_hysteresis_c: Degrees to cool below a limit before it is lifted.
        rtt_high_s: Round trip to the broker, seconds, from which teachers are asked less.
        battery_low_frac: Charge, 0 to 1, from which training and asking are slowed, and the deepest exit is left out.
        battery_critical_frac: Charge from which there is neither, and only the first exit.
        battery_hysteresis_frac: Charge to gain above a limit before it is lifted.
    """

    period_s: Annotated[float, Meta(ge=0.1, le=60)] = 1.0
    smooth_s: Annotated[float, Meta(ge=0, le=600)] = 5.0
    stale_s: Interval = 15.0
    cpu_high_frac: Share = 0.9
    cpu_low_frac: Share = 0.75
    temp_high_c: Celsius = 75.0
    temp_critical_c: Celsius = 85.0
    temp_hysteresis_c: Annotated[float, Meta(ge=0, le=50)] = 4.0
    rtt_high_s: Interval = 1.0
    battery_low_frac: Share = 0.2
    battery_critical_frac: Share = 0.05
    battery_hysteresis_frac: Annotated[float, Meta(ge=0, le=0.5)] = 0.03


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The sensors of this machine.

    Attributes:
        kind: linux: /proc and /sys; fake: simulated heat, from this machine's real CPU load.
        sysfs_root: Directory that holds proc and sys.
        thermal_zone: Type of the one thermal zone to watch; unset means the hottest of all.
    """

    kind: Literal["linux", "fake"] = "linux"
    sysfs_root: Directory = "/"
    thermal_zone: Text | None = None


class Battery(msgspec.Struct, frozen=True, kw_only=True):
    """What feeds this machine.

    Attributes:
        kind: none: mains; linux: /sys/class/power_supply; simulated: drained by the CPU load.
        capacity_j: Energy of a full simulated battery, joules (1 Wh is 3600 J).
        initial_frac: Charge of a simulated battery at the start, 0 to 1.
        idle_w: Watts taken from a simulated battery while the CPU idles.
        busy_w: Watts more at full CPU load.
    """

    kind: Literal["none", "linux", "simulated"] = "none"
    capacity_j: Annotated[float, Meta(gt=0, le=1_000_000_000)] = 36_000.0
    initial_frac: Share = 1.0
    idle_w: Watts = 2.0
    busy_w: Watts = 4.0


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that wait on disk while the broker is out of reach.

    Attributes:
        max_bytes: Bytes to keep; the least important and oldest go first.
    """

    max_bytes: Annotated[int, Meta(ge=65_536, le=1 << 40)] = 4 * 1024 * 1024


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole, checked configuration; one attribute a section of the file.

    Attributes:
        device, broker, policy, plant, learn, teacher, govern, board, battery, spool: the sections; `parse` has filled
            in what one key takes from another (`plant.socket`).
    """

    device: Device
    policy: Policy
    broker: Broker = Broker()
    plant: Plant = Plant()
    learn: Learn = Learn()
    teacher: Teacher = Teacher()
    govern: Govern = Govern()
    board: Board = Board()
    battery: Battery = Battery()
    spool: Spool = Spool()


class Address(NamedTuple):
    """Where the broker listens."""

    host: str
    port: int
    tls: bool


_SECTIONS: dict[str, Any] = {
    "device": Device,
    "broker": Broker,
    "policy": Policy,
    "plant": Plant,
    "learn": Learn,
    "teacher": Teacher,
    "govern": Govern,
    "board": Board,
    "battery": Battery,
    "spool": Spool,
}

_EXAMPLES = {
    "broker.username": "edgert",
    "broker.password_file": "/etc/edgert/password",
    "broker.ca_file": "/etc/edgert/ca.pem",
    "broker.cert_file": "/etc/edgert/device.pem",
    "broker.key_file": "/etc/edgert/device.key",
    "policy.thresholds": [0.8, 0.9],
    "plant.env": "MinAtar/Breakout-v1",
    "learn.taught_learning_rate": 0.001,
    "board.thermal_zone": "cpu-thermal",
}


def parse(text: str, source: str) -> Config:
    """Check a whole configuration file and give it types.

    Args:
        text: TOML 1.0.
        source: the file's name, for messages only.

    Returns:
        The configuration, with every default filled in.

    Raises:
        ConfigError: one line a fault: file, key path, what is wrong, what would be right.

    Source:
        TOML v1.0.0; ours: all faults at once, because each attempt on a remote board costs a restart.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not TOML: {error}; strings need quotes, and a key may appear once") from error
    faults: list[str] = []
    for name in sorted(document.keys() - _SECTIONS.keys()):
        faults.append(f"{name}: unknown section{_did_you_mean(name, _SECTIONS, document[name])}")
    sections = {name: _section(name, cls, document.get(name, {}), faults) for name, cls in _SECTIONS.items()}
    _relations(sections, faults)
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in sorted(faults, key=_file_order)))
    plant = sections["plant"]
    if not plant["socket"]:
        plant["socket"] = f"{sections['device']['run_dir'].rstrip('/')}/policy.sock"
    return Config(**{name: cls(**sections[name]) for name, cls in _SECTIONS.items()})


def broker_address(url: str) -> Address:
    """Take a broker URL apart.

    Args:
        url: `mqtt://host[:port]` or `mqtts://host[:port]`; IPv6 hosts in brackets.

    Returns:
        Host, port (1883, or 8883 with TLS, where none is written) and whether to speak TLS.

    Raises:
        ConfigError: anything else, with the reason.

    Source:
        IANA service names mqtt (1883) and secure-mqtt (8883); RFC 3986 section 3.2.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r}: {error}; write mqtt://host:1883") from error
    if parts.scheme not in ("mqtt", "mqtts") or not host:
        raise ConfigError(f"{url!r} is not a broker URL; write mqtt://host:1883, or mqtts://host:8883 for TLS")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("has a user or password inside; write username and password_file instead")
    if parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise ConfigError(f"{url!r} has more than host and port; write mqtt://host:1883")
    tls = parts.scheme == "mqtts"
    return Address(host, port or (8883 if tls else 1883), tls)


def commented_default(settings: Mapping[str, object]) -> str:
    """Write a configuration file that explains itself: every key with its meaning, range and default.

    Args:
        settings: dotted key -> value for what is to be set; all other keys are written commented out. `device.id`
            and `policy.bundle` have no default and must be here.

    Returns:
        TOML that `parse` accepts.

    Raises:
        UsageError: a key that does not exist, or a value `parse` would refuse.

    Source:
        ours: generated from the sections above, so that a comment can never contradict the check.
    """
    known = {f"{name}.{key}" for name, cls in _SECTIONS.items() for key in cls.__struct_fields__}
    if strange := sorted(settings.keys() - known):
        raise UsageError(f"no such configuration keys: {', '.join(strange)}")
    lines = ["# Configuration of edgert. A line that starts with '#' shows a default: remove the '#' to change it.", ""]
    for name, cls in _SECTIONS.items():
        docs = _docs(cls)
        lines += [f"# {docs['']}", f"[{name}]"]
        hints = typing.get_type_hints(cls, include_extras=True)
        for field in msgspec.structs.fields(cls):
            lines.append(f"# {docs[field.name]} [{_wanted(hints[field.name])}]")
            if f"{name}.{field.name}" in settings:
                lines.append(f"{field.name} = {_toml(settings[f'{name}.{field.name}'])}")
            elif field.default is None:
                lines.append(
                    f"#{field.name} = {_toml(_EXAMPLES[f'{name}.{field.name}'])}  # an example; unset by default"
                )
            elif field.default is not msgspec.NODEFAULT:
                lines.append(f"#{field.name} = {_toml(field.default)}")
        lines.append("")
    text = "\n".join(lines)
    try:
        parse(text, "settings")
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return text


def _section(name: str, cls: Any, table: object, faults: list[str]) -> dict[str, Any]:
    """The section's values, defaults where absent or wrong, so that the relations can still be looked at."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(cls)}
    values = {key: None if f.default is msgspec.NODEFAULT else f.default for key, f in fields.items()}
    if not isinstance(table, dict):
        faults.append(f"{name}: is {_shown(table)}; must be a section, [{name}]")
        table = {}
    for key, value in table.items():
        if key not in fields:
            faults.append(f"{name}.{key}: unknown key{_did_you_mean(key, fields, value)}")
            continue
        try:
            if not _finite(value):
                raise msgspec.ValidationError
            values[key] = msgspec.convert(value, hints[key])
        except msgspec.ValidationError:
            faults.append(f"{name}.{key}: is {_shown(value)}; must be {_wanted(hints[key])}")
    for key, field in fields.items():
        if field.default is msgspec.NODEFAULT and key not in table:
            faults.append(f"{name}.{key}: missing; must be {_wanted(hints[key])}. {_docs(cls)[key]}")
    return values


def _relations(sections: dict[str, dict[str, Any]], faults: list[str]) -> None:
    """What no key can be judged by alone."""
    govern, device, broker, plant, learn = (sections[s] for s in ("govern", "device", "broker", "plant", "learn"))
    for low, high in (
        ("cpu_low_frac", "cpu_high_frac"),
        ("temp_high_c", "temp_critical_c"),
        ("battery_critical_frac", "battery_low_frac"),
    ):
        if govern[low] >= govern[high]:
            faults.append(f"govern.{low}: is {govern[low]}; must be below govern.{high} ({govern[high]})")
    if govern["battery_low_frac"] + govern["battery_hysteresis_frac"] > 1:
        faults.append("govern.battery_hysteresis_frac: with battery_low_frac above 1; the limit could never be lifted")
    if govern["stale_s"] <= govern["period_s"]:
        faults.append(f"govern.stale_s: is {govern['stale_s']}; must exceed govern.period_s ({govern['period_s']})")
    _fits_socket("device.run_dir", device["run_dir"].rstrip("/") + "/knowledge.sock", faults)
    if plant["socket"]:
        if not plant["socket"].startswith("/"):
            faults.append(f"plant.socket: is {_shown(plant['socket'])}; must be an absolute path")
        _fits_socket("plant.socket", plant["socket"], faults)
    if plant["kind"] == "simulated" and plant["env"] is None:
        faults.append('plant.env: missing; kind "simulated" needs a gymnasium id, such as "MinAtar/Breakout-v1"')
    try:
        tls = broker_address(broker["url"]).tls
    except ConfigError as error:
        faults.append(f"broker.url: {error}")
    else:
        for key in ("ca_file", "cert_file", "key_file"):
            if broker[key] is not None and not tls:
                faults.append(f'broker.{key}: has no effect without TLS; write url = "mqtts://...", or remove it')
    for key, needs in (("password_file", "username"), ("cert_file", "key_file"), ("key_file", "cert_file")):
        if broker[key] is not None and broker[needs] is None:
            faults.append(f"broker.{needs}: missing; broker.{key} needs it")
    for key in ("batch", "min_transitions"):
        if learn[key] > learn["ring_transitions"]:
            faults.append(
                f"learn.{key}: is {learn[key]}; must be at most learn.ring_transitions ({learn['ring_transitions']})"
            )
    if learn["enabled"] and learn["distill_weight"] == 0 and learn["td_weight"] == 0:
        faults.append("learn.td_weight: is 0, and so is learn.distill_weight; one must be above 0, or enabled = false")
    task = sections["teacher"]["task"]
    if task and (task in ("-",) or task[0] == "$" or any(c in "/+#\0" for c in task)):
        faults.append(
            f"teacher.task: is {_shown(task)}; must be free of '/', '+', '#', and neither '-' nor begin with '$'"
        )
    if sections["battery"]["kind"] == "linux" and sections["board"]["kind"] == "fake":
        faults.append('battery.kind: is "linux"; a fake board has "none" or "simulated"')


def _fits_socket(key: str, path: str, faults: list[str]) -> None:
    size = len(path.encode())
    if size > SOCKET_PATH_BYTES:
        faults.append(f"{key}: {path!r} is {size} bytes; a Unix socket's path must be at most {SOCKET_PATH_BYTES}")


def _did_you_mean(name: str, known: Mapping[str, object], value: object) -> str:
    """A hint for a misspelt or misplaced name."""
    import difflib  # 1 MB that only a faulty file needs

    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    homes = [
        section for section, cls in _SECTIONS.items() if name in cls.__struct_fields__ and not isinstance(value, dict)
    ]
    if homes:
        return f"; it belongs in [{homes[0]}]"
    return f"; known: {', '.join(known)}"


def _file_order(fault: str) -> int:
    section = fault.partition(":")[0].partition(".")[0]
    return list(_SECTIONS).index(section) if section in _SECTIONS else -1


def _finite(value: object) -> bool:
    """TOML has inf and nan; no key of ours means anything with them."""
    if isinstance(value, list):
        return all(_finite(each) for each in value)
    return not isinstance(value, float) or math.isfinite(value)


def _docs(cls: Any) -> dict[str, str]:
    """Key -> its explanation, and "" -> the section's, from the struct's docstring."""
    import inspect  # 2 MB that only `edgert init` needs

    summary, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
    lines = (line.strip().partition(": ") for line in attributes.splitlines())
    return collections.defaultdict(str, {key: text for key, _, text in lines}, **{"": summary})


def _wanted(hint: Any) -> str:
    """What a right value looks like, in words."""
    options = [each for each in typing.get_args(hint) if each is not types.NoneType]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _wanted(options[0])
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{each}"' for each in options)
    if typing.get_origin(hint) is tuple:
        return "a list of " + _wanted(options[0]).replace("a number", "numbers")
    if hint in (bool, str):
        return "true or false" if hint is bool else "text in quotes"
    kind, meta = options
    if meta.title:
        return str(meta.title)
    words = "a whole number" if kind is int else "a number"
    return (
        f"{words} above {meta.gt}, at most {meta.le}" if meta.gt is not None else f"{words} from {meta.ge} to {meta.le}"
    )


def _shown(value: object) -> str:
    text = "a section" if isinstance(value, dict) else _toml(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _toml(value: object) -> str:
    """One TOML value; strings escape as JSON's do, which TOML's basic strings accept."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
    return str(value)
