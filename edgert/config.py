"""The user's TOML file, as typed sections: one place for every key, its default, its range and its explanation.

Pure: text in, `Config` out. A bad file is reported whole, every fault at once, so that nobody fixes a board one
restart at a time. The `Attributes` of a section below are also the comments in the file that `edgert init` writes, so
the two cannot drift apart.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from edgert import tables
from edgert.errors import ConfigError, UsageError
from edgert.hardware import Battery as Battery
from edgert.hardware import Board as Board
from edgert.hardware import Celsius, Directory, Name, Share, Text
from edgert.hardware import Gauge as Gauge
from edgert.hardware import Limits as Limits
from edgert.sections import Offload as Offload
from edgert.sections import OffloadVariant as OffloadVariant
from edgert.sections import Placement as Placement

SOCKET_PATH_BYTES = 107
"""sockaddr_un.sun_path holds 108 bytes on Linux, one of them the closing NUL (unix(7))."""

Weight = Annotated[float, Meta(ge=0, le=1000)]
Interval = Annotated[float, Meta(gt=0, le=86_400)]
SpoolBytes = Annotated[int, Meta(ge=65_536, le=1 << 40)]
SpoolAge = Annotated[float, Meta(ge=60, le=10 * 366 * 86_400)]
WhenFull = Literal["drop-oldest", "reject-newest"]
UNTIL = r"^(([01]?[0-9]|2[0-3]):[0-5][0-9]|[0-9]{1,4}(\.[0-9]{1,3})? ?h)\Z"
"""How a person says until when: `18:00`, or `6.5 h`."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """Who this device is, and where it keeps its files.

    Attributes:
        id: Name of this device, unique in its fleet; a segment of its topics.
        fleet: Name of the fleet it belongs to; a segment of its topics.
        labels: Names under which it is one of many: `edgert fleet push --to LABEL`.
        robot: What kind of robot this is; policies may be signed for some kinds only.
        state_dir: Directory for what must survive a reboot.
        run_dir: Directory for sockets; may be emptied at boot.
    """

    id: Name
    fleet: Name = "default"
    labels: tuple[Name, ...] = ()
    robot: Name | None = None
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


class Trust(msgspec.Struct, frozen=True, kw_only=True):
    """Whose word counts.

    Attributes:
        keys_file: Keys to believe, made by `edgert key`; with it, nothing unsigned counts that came over the link.
        require_signed: Run no policy that no key vouches for, not even one that was put on this device by hand.
    """

    keys_file: Text | None = None
    require_signed: bool = False


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
        temp_high_c: Degrees Celsius from which training and asking are slowed; half way to the next, decisions too.
        temp_critical_c: Degrees Celsius from which there is no training, no asking, and only the first exit.
        temp_hysteresis_c: Degrees to cool below a limit before it is lifted.
        rtt_high_s: Round trip to the broker, seconds, from which teachers are asked less.
        battery_low_frac: Charge, 0 to 1, from which the same gives way, unless a goal last_until plans the charge.
        battery_critical_frac: Charge from which there is neither, and only the first exit.
        battery_hysteresis_frac: Charge to gain above a limit before it is lifted.
        dwell_s: What was taken away for time or heat comes back after it could have for so many seconds on end.
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
    dwell_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0


Priority = Literal["return", "training", "link"]


class Goals(msgspec.Struct, frozen=True, kw_only=True):
    """What you want of this device; within it, the best return is sought. `edgert fleet goals` may set the same.

    Attributes:
        deadline_s: Seconds from observation in hand to action chosen; 0 means policy.deadline_s.
        miss_frac: Share of the deadlines that may be missed.
        min_return_frac: Return to keep, 0 a random policy's and 1 the full network's, as the bundle's frontier says.
        last_until: On battery: time of the day ("18:00"), or hours from the start of the machine ("6.5 h").
        max_power_w: Watts that the whole board may draw.
        least_energy: Spend the least that keeps min_return_frac, instead of what brings the best return.
        memory_max_bytes: Resident bytes of supervisor, actor and trainer, added up; 0 means no limit.
        bytes_per_day: Bytes over the link on one day, both ways, by what edgert sends and asks for; 0 means no limit.
        use_metered: Ask teachers also over a link of which every byte costs money.
        priorities: What is served first of what there is; all three, in your order.
    """

    deadline_s: Annotated[float, Meta(ge=0, le=60)] = 0.0
    miss_frac: Annotated[float, Meta(gt=0, le=1)] = 0.001
    min_return_frac: Annotated[float, Meta(ge=0, le=2)] = 0.0
    last_until: Annotated[str, Meta(pattern=UNTIL, title='a time such as "18:00", or hours such as "6.5 h"')] | None = (
        None
    )
    max_power_w: Annotated[float, Meta(gt=0, le=1000)] | None = None
    least_energy: bool = False
    memory_max_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    bytes_per_day: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    use_metered: bool = False
    priorities: tuple[Priority, ...] = ("return", "training", "link")


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """Events that wait on disk until a collector has them: a stream each for three kinds, with bounds of their own.

    Attributes:
        max_bytes: Bytes to keep of events.
        max_age_s: Seconds after which an event goes; what was written under a clock that was not set does not age.
        when_full: What gives way when there is no room: the oldest event, or the one that comes.
        uploads_max_bytes: Bytes to keep of what jobs of kind upload bring; by default one without room fails.
        uploads_max_age_s: Seconds after which one of them goes.
        uploads_when_full: What gives way among them.
        notices_max_bytes: Bytes to keep of limits that flutter and of commands that were refused.
        notices_max_age_s: Seconds after which one of them goes.
        notices_when_full: What gives way among them.
    """

    max_bytes: SpoolBytes = 4 << 20
    max_age_s: SpoolAge = 30 * 86_400.0
    when_full: WhenFull = "drop-oldest"
    uploads_max_bytes: SpoolBytes = 1 << 20
    uploads_max_age_s: SpoolAge = 30 * 86_400.0
    uploads_when_full: WhenFull = "reject-newest"
    notices_max_bytes: SpoolBytes = 256 << 10
    notices_max_age_s: SpoolAge = 7 * 86_400.0
    notices_when_full: WhenFull = "drop-oldest"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole, checked configuration; one attribute a section of the file.

    Attributes:
        device, broker, trust, policy, plant, learn, teacher, govern, goals, board, battery, limits, placement,
            offload, spool: the sections; `parse` has filled in what one key takes from another (`plant.socket`,
            `offload.socket`).
    """

    device: Device
    policy: Policy
    broker: Broker = Broker()
    trust: Trust = Trust()
    plant: Plant = Plant()
    learn: Learn = Learn()
    teacher: Teacher = Teacher()
    govern: Govern = Govern()
    goals: Goals = Goals()
    board: Board = Board()
    battery: Battery = Battery()
    placement: Placement = Placement()
    offload: Offload = Offload()
    limits: Limits = Limits()
    spool: Spool = Spool()


class Address(NamedTuple):
    """Where the broker listens."""

    host: str
    port: int
    tls: bool


_SECTIONS: dict[str, Any] = {
    "device": Device,
    "broker": Broker,
    "trust": Trust,
    "policy": Policy,
    "plant": Plant,
    "learn": Learn,
    "teacher": Teacher,
    "govern": Govern,
    "goals": Goals,
    "board": Board,
    "battery": Battery,
    "limits": Limits,
    "placement": Placement,
    "offload": Offload,
    "spool": Spool,
}

_EXAMPLES = {
    "device.robot": "arm-6",
    "trust.keys_file": "/etc/edgert/keys.cbor",
    "broker.username": "edgert",
    "broker.password_file": "/etc/edgert/password",
    "broker.ca_file": "/etc/edgert/ca.pem",
    "broker.cert_file": "/etc/edgert/device.pem",
    "broker.key_file": "/etc/edgert/device.key",
    "policy.thresholds": [0.8, 0.9],
    "plant.env": "MinAtar/Breakout-v1",
    "learn.taught_learning_rate": 0.001,
    "goals.last_until": "18:00",
    "goals.max_power_w": 3.0,
    "board.model": "raspberry-pi-4",
    "board.thermal_zone": "cpu-thermal",
    "board.metered": False,
    "board.idle_w": 3.1,
    "board.busy_w": 3.1,
    "board.scenario": "heatwave",
    "offload.variants.bundle": "/var/lib/edgert/models/digits-1-int8.edgert",
    "board.gauges.kind": "ina219",
    "board.gauges.address": 64,
    "placement.bundle": "/var/lib/edgert/placer.edgert",
    "placement.head": "device-1",
    "placement.regions.name": "hall-1",
    "placement.regions.members": ["device-1", "device-2"],
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
    document = tables.document(text, source)
    faults: list[str] = []
    # A board's file is a configuration as well; what it says of the board is `hardware.parse_board`'s.
    for name in sorted(document.keys() - _SECTIONS.keys() - {"hardware"}):
        faults.append(f"{name}: unknown section{tables.did_you_mean(name, _SECTIONS, document[name], _SECTIONS)}")
    sections = {
        name: tables.read(name, cls, document.get(name, {}), faults, _SECTIONS) for name, cls in _SECTIONS.items()
    }
    _relations(sections, faults)
    if faults:
        raise ConfigError("\n".join(f"{source}: {fault}" for fault in sorted(faults, key=_file_order)))
    plant = sections["plant"]
    if not plant["socket"]:
        plant["socket"] = f"{sections['device']['run_dir'].rstrip('/')}/policy.sock"
    if not sections["offload"]["socket"]:
        sections["offload"]["socket"] = f"{sections['device']['run_dir'].rstrip('/')}/infer.sock"
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
        lines += [f"# {tables.docs(cls)['']}", f"[{name}]", *_commented(name, cls, settings), ""]
    text = "\n".join(lines)
    try:
        parse(text, "settings")
    except ConfigError as error:
        raise UsageError(str(error)) from error
    return text


def _commented(path: str, cls: Any, settings: Mapping[str, object]) -> list[str]:
    """The lines of one section; those of its tables come last, as a key after them would be theirs."""
    docs, hints = tables.docs(cls), typing.get_type_hints(cls, include_extras=True)
    lines, last = [], []
    for field in msgspec.structs.fields(cls):
        key = f"{path}.{field.name}"
        inner, _ = tables.nested(hints[field.name])
        if inner is not None:
            last += [f"# {docs[field.name]}", *_commented_table(key, inner)]
            continue
        lines.append(f"# {docs[field.name]} [{tables.wanted(hints[field.name])}]")
        if key in settings:
            lines.append(f"{field.name} = {tables.toml(settings[key])}")
        elif field.default is None:
            lines.append(f"#{field.name} = {tables.toml(_EXAMPLES[key])}  # an example; unset by default")
        elif field.default is not msgspec.NODEFAULT:
            lines.append(f"#{field.name} = {tables.toml(field.default)}")
    return lines + last


def _commented_table(path: str, cls: Any) -> list[str]:
    """The lines of one table of an array, all of them an example: there is none by default."""
    docs, hints = tables.docs(cls), typing.get_type_hints(cls, include_extras=True)
    lines = [f"#[[{path}]]"]
    for field in msgspec.structs.fields(cls):
        bare = field.default is None or field.default is msgspec.NODEFAULT
        value = _EXAMPLES[f"{path}.{field.name}"] if bare else field.default
        said = "  # required." if field.default is msgspec.NODEFAULT else "  # an example." if bare else "  #"
        lines.append(
            f"#  {field.name} = {tables.toml(value)}{said} {docs[field.name]} [{tables.wanted(hints[field.name])}]"
        )
    return lines


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
    if sorted(sections["goals"]["priorities"]) != sorted(typing.get_args(Priority)):
        faults.append(f"goals.priorities: must be {tables.shown(list(typing.get_args(Priority)))} in your order")
    _fits_socket("device.run_dir", device["run_dir"].rstrip("/") + "/knowledge.sock", faults)
    for name in ("plant", "offload"):
        path = sections[name]["socket"]
        if path and not path.startswith("/"):
            faults.append(f"{name}.socket: is {tables.shown(path)}; must be an absolute path")
        if path:
            _fits_socket(f"{name}.socket", path, faults)
    offload = sections["offload"]
    if offload["enabled"] and not any(each.local for each in offload["variants"]):
        faults.append("offload.variants: none is local; one at least must answer when nobody else does")
    _fits_socket("limits.socket", sections["limits"]["socket"], faults)
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
    trust = sections["trust"]
    if trust["require_signed"] and trust["keys_file"] is None:
        faults.append("trust.keys_file: missing; trust.require_signed needs keys that can vouch for a policy")
    task = sections["teacher"]["task"]
    if task and (task in ("-",) or task[0] == "$" or any(c in "/+#\0" for c in task)):
        faults.append(
            f"teacher.task: is {tables.shown(task)}; must be free of '/', '+', '#', and neither '-' nor begin with '$'"
        )
    if sections["battery"]["kind"] == "linux" and sections["board"]["kind"] == "fake":
        faults.append('battery.kind: is "linux"; a fake board has "none" or "simulated"')
    if sections["battery"]["kind"] == "gauge" and not any(
        gauge.measures == "battery" for gauge in sections["board"]["gauges"]
    ):
        faults.append('battery.kind: is "gauge"; needs [[board.gauges]] with measures = "battery"')


def _fits_socket(key: str, path: str, faults: list[str]) -> None:
    size = len(path.encode())
    if size > SOCKET_PATH_BYTES:
        faults.append(f"{key}: {path!r} is {size} bytes; a Unix socket's path must be at most {SOCKET_PATH_BYTES}")


def _file_order(fault: str) -> int:
    section = fault.partition(":")[0].partition(".")[0]
    return list(_SECTIONS).index(section) if section in _SECTIONS else -1
