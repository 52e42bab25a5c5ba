"""The twin: what the fleet wants of a device and what the device is, each one whole document that the broker keeps.

Documents are ordered by epoch, version and digest, and only a greater one is taken, so any number of losses, repeats,
reorderings and restarts ends where the greatest desired document is. Each setting is judged by itself: a bad one is
refused by name and keeps no other from being obeyed. What the twin wishes goes before the configuration's file; a goal
that a command (`cmd/goals`) names goes before the twin's, as long as the command holds (`govern.governor.setup`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from edgert import wire
from edgert.config import Config, Goals, Learn, Teacher
from edgert.fleet import schedule
from edgert.fleet.command import named_goals
from edgert.fleet.schedule import Schedule
from edgert.values import Operating, SetExits

GOALS, EXITS, PAUSED, STEPS, TEACHER, LABELS, SCHEDULES, DRAINED = (
    "goals",
    "exits",
    "learn.paused",
    "learn.train_steps_hz",
    "teacher.max_bytes_per_s",
    "labels",
    "schedules",
    "drained",
)
KEYS = (GOALS, EXITS, PAUSED, STEPS, TEACHER, LABELS, SCHEDULES, DRAINED)
LABELS_MAX, LABEL_LETTERS = 32, 64
WHY_LETTERS = 500
REFUSED_MAX = 32
"""Names that mean nothing: no more of them are told, as what is told must fit into a message."""
EXITS_ID = "twin"
VERSION_MAX = (1 << 63) - 1


class Exits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the exits are to be set, see `wire.ExitsCommand`."""

    thresholds: tuple[float, ...] | None = None
    repeat: int = 1
    hold_threshold: float = 1.0
    point: Annotated[int, Meta(ge=0)] | None = None
    max_ops_frac: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What of a desired document is obeyed; None is as configured.

    Attributes:
        goals: the configuration's, with what is wished in their place.
        exits: for the actor.
        paused: training is; None leaves it as it is.
        train_steps_hz, teacher_bytes_per_s: instead of the configuration's.
        labels: for picking devices out of a fleet.
        schedules: name -> schedule, without fault.
        drained: no job may start.
    """

    goals: Goals | None = None
    exits: SetExits | None = None
    paused: bool | None = None
    train_steps_hz: float | None = None
    teacher_bytes_per_s: float | None = None
    labels: dict[str, str] = {}
    schedules: dict[str, Schedule] = {}
    drained: bool = False


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """What a device knows of the fleet's wishes.

    Attributes:
        desired: the greatest document that was seen; None before the first.
        digest: of it.
        wishes: what of it is obeyed.
        refused: what is not, and why.
    """

    desired: wire.TwinDesired | None = None
    digest: str = ""
    wishes: Wishes = Wishes()
    refused: dict[str, str] = {}

    @property
    def rank(self) -> tuple[int, int, str]:
        """Of the document; a greater one takes its place."""
        return (0, 0, "") if self.desired is None else (self.desired.epoch, self.desired.version, self.digest)


def digest(desired: wire.TwinDesired) -> str:
    """Tell two documents apart that call themselves the same version.

    Args:
        desired: a document.

    Returns:
        16 hex digits.

    Raises:
        nothing.
    Source:
        ours: two operators that write at once both count one up; this makes one of them right, everywhere the same.
    """
    said = msgspec.json.encode(desired.settings, order="sorted")
    return hashlib.sha256(said).hexdigest()[:16]


def receive(twin: Twin, desired: wire.TwinDesired, config: Config, n_exits: int) -> Twin:
    """Take a desired document, unless a greater one was seen.

    Args:
        twin: the state before.
        desired: as received, perhaps late, twice or out of order.
        config: of the device.
        n_exits: of its network.

    Returns:
        The state after; the very same object when nothing changed.

    Raises:
        nothing.
    Source:
        ours, after the shadows of AWS IoT; the join of a total order is what makes every interleaving end alike.
    """
    mark = digest(desired)
    if twin.desired is not None and (desired.epoch, desired.version, mark) <= twin.rank:
        return twin
    wishes, refused = judge(desired.settings, config, n_exits)
    return Twin(desired=desired, digest=mark, wishes=wishes, refused=refused)


def judge(settings: Mapping[str, object], config: Config, n_exits: int) -> tuple[Wishes, dict[str, str]]:
    """Which wishes can be obeyed.

    Args:
        settings: name -> value.
        config: of the device.
        n_exits: of its network.

    Returns:
        What is obeyed; and name -> why not, for the rest.

    Raises:
        nothing.
    Source:
        ours: what a configuration file may say, a wish may say, and the same types check both.
    """
    obeyed: dict[str, object] = {}
    refused: dict[str, str] = {}
    for key, value in settings.items():
        read = _READ.get(key)
        if read is None:
            if len(refused) < REFUSED_MAX:
                refused[key[:80]] = f"cannot be set from afar; there is {', '.join(KEYS)}"
            continue
        try:
            field, wish = read(value, config, n_exits)
        except _NoError as error:
            refused[key] = str(error)[:WHY_LETTERS]
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            refused[key] = f"{type(error).__name__}: {error}"[:WHY_LETTERS]
        else:
            obeyed[field] = wish
    if SCHEDULES in settings and isinstance(obeyed.get("schedules"), dict):
        schedules, faults = _sorted_out(obeyed["schedules"])
        obeyed["schedules"] = schedules
        refused.update({f"{SCHEDULES}.{name}"[:80]: why[:WHY_LETTERS] for name, why in faults.items()})
    return msgspec.structs.replace(Wishes(), **obeyed), refused


def configured(config: Config, wishes: Wishes) -> Config:
    """The configuration with the wishes in it.

    Args:
        config: the user's.
        wishes: what is obeyed.

    Returns:
        What is in force.

    Raises:
        nothing.
    Source:
        ours: whoever decides by the configuration need not know of the twin.
    """
    replace = msgspec.structs.replace
    if wishes.goals is not None:
        config = replace(config, goals=wishes.goals)
    if wishes.train_steps_hz is not None:
        config = replace(config, learn=replace(config.learn, train_steps_hz=wishes.train_steps_hz))
    if wishes.teacher_bytes_per_s is not None:
        config = replace(config, teacher=replace(config.teacher, max_bytes_per_s=wishes.teacher_bytes_per_s))
    return config


def report(twin: Twin, config: Config, *, paused: bool, exits_refused: str = "") -> wire.TwinReported:
    """What the device is, for the fleet.

    Args:
        twin: with the wishes.
        config: in force (`configured`).
        paused: training is.
        exits_refused: why the actor does not run the exits as wished; empty when it does.

    Returns:
        The document to keep at the broker.

    Raises:
        nothing.
    Source:
        ours: a document that is whole needs no history to be understood.
    """
    wishes, refused = twin.wishes, dict(twin.refused)
    if exits_refused and wishes.exits is not None:
        refused[EXITS] = exits_refused[:WHY_LETTERS]
    settings: dict[str, object] = {
        GOALS: msgspec.to_builtins(config.goals),
        PAUSED: paused,
        STEPS: config.learn.train_steps_hz,
        TEACHER: config.teacher.max_bytes_per_s,
        LABELS: dict(wishes.labels),
        SCHEDULES: {name: sparse(each) for name, each in wishes.schedules.items()},
        DRAINED: wishes.drained,
    }
    if EXITS not in refused and wishes.exits is not None and twin.desired is not None:
        settings[EXITS] = twin.desired.settings[EXITS]
    epoch, version, _ = twin.rank
    return wire.TwinReported(epoch=epoch, version=version, digest=twin.digest, settings=settings, refused=refused)


def sparse(each: Schedule) -> dict[str, object]:
    """A schedule as a person would write it.

    Args:
        each: a schedule.

    Returns:
        Its fields that are not at their defaults.

    Raises:
        nothing.
    Source:
        ours: links are paid by the byte.
    """
    plain, default = msgspec.to_builtins(each), msgspec.to_builtins(Schedule(kind=""))
    return {key: value for key, value in plain.items() if value != default[key]}


def edit(
    desired: wire.TwinDesired | None,
    reported: wire.TwinReported | None,
    change: Callable[[dict[str, object]], Mapping[str, object]],
    wall_s: float,
) -> wire.TwinDesired:
    """The document with which an operator changes something.

    Args:
        desired: the one at the broker, or None.
        reported: what the device says, or None; it may answer a greater one than the broker still has.
        change: the former settings -> the new ones.
        wall_s: seconds since the Unix epoch: the epoch of a first document.

    Returns:
        Greater than both.

    Raises:
        nothing.
    Source:
        ours: a broker that lost its memory must not leave a device where nobody can reach it.
    """
    ranks = [(each.epoch, each.version) for each in (desired, reported) if each is not None]
    epoch, version = max(ranks, default=(0, 0))
    if desired is None and epoch == 0:
        epoch, version = max(1, math.floor(wall_s)), 0
    if version >= VERSION_MAX:
        epoch, version = epoch + 1, 0
    settings = {} if desired is None else dict(desired.settings)
    return wire.TwinDesired(epoch=epoch, version=version + 1, settings=dict(change(settings)))


def settled(desired: wire.TwinDesired, reported: wire.TwinReported | None) -> bool | None:
    """Has the device taken a document?

    Args:
        desired: the document.
        reported: what the device says, or None.

    Returns:
        True: that very one. False: a greater one, so that this one never counts. None: not yet.

    Raises:
        nothing.
    Source:
        ours.
    """
    if reported is None:
        return None
    mark = (desired.epoch, desired.version, digest(desired))
    told = (reported.epoch, reported.version, reported.digest)
    return True if told == mark else False if told > mark else None


class _NoError(Exception):
    """A wish that is refused, with the reason."""


def _goals(value: object, config: Config, _: int) -> tuple[str, object]:
    told = msgspec.convert(value, dict[str, object])
    goals = named_goals(told, config.goals)
    if isinstance(goals, str):
        raise _NoError(goals)
    return "goals", goals


def _exits(value: object, config: Config, n_exits: int) -> tuple[str, object]:
    told = msgspec.convert(value, Exits)
    if config.policy.thresholds is not None:
        raise _NoError("policy.thresholds of the configuration pins them")
    operating = None
    if told.thresholds is not None:
        if told.point is not None:
            raise _NoError("thresholds and point: only one of them can be obeyed")
        operating = Operating(told.thresholds, told.repeat, told.hold_threshold)
        if why := operating.fault(n_exits):
            raise _NoError(why)
    elif told.repeat != 1 or told.hold_threshold != 1:
        raise _NoError("repeat and hold_threshold: they need thresholds beside them")
    return "exits", SetExits(id=EXITS_ID, operating=operating, point=told.point, max_ops_frac=told.max_ops_frac)


def _paused(value: object, config: Config, _: int) -> tuple[str, object]:
    if not config.learn.enabled:
        raise _NoError("learn.enabled is false in the configuration")
    return "paused", msgspec.convert(value, bool)


def _drained(value: object, _config: Config, _: int) -> tuple[str, object]:
    return "drained", msgspec.convert(value, bool)


def _of(section: type[Learn | Teacher], key: str, field: str) -> Callable[[object, Config, int], tuple[str, object]]:
    """A number that a section of the configuration has a range for."""

    def read(value: object, config: Config, _: int) -> tuple[str, object]:
        return field, getattr(msgspec.convert({key: value}, section), key)

    return read


def _labels(value: object, _config: Config, _: int) -> tuple[str, object]:
    labels = msgspec.convert(value, dict[str, str])
    if len(labels) > LABELS_MAX:
        raise _NoError(f"{len(labels)} labels: {LABELS_MAX} at most")
    for name, each in labels.items():
        if not wire.is_name(name) or len(each) > LABEL_LETTERS:
            raise _NoError(f"{name[:80]!r}: a name, and a value of {LABEL_LETTERS} letters at most")
    return "labels", labels


def _schedules(value: object, _config: Config, _: int) -> tuple[str, object]:
    told = msgspec.convert(value, dict[str, object])
    if len(told) > schedule.SCHEDULES_MAX:
        raise _NoError(f"{len(told)} schedules: {schedule.SCHEDULES_MAX} at most")
    return "schedules", told


def _sorted_out(told: object) -> tuple[dict[str, Schedule], dict[str, str]]:
    """Schedules are judged one by one as well: a bad one does not silence the others."""
    good: dict[str, Schedule] = {}
    faults: dict[str, str] = {}
    for name, each in msgspec.convert(told, dict[str, object]).items():
        try:
            read = msgspec.convert(each, Schedule)
        except (msgspec.ValidationError, OverflowError, RecursionError) as error:
            faults[name] = str(error)
            continue
        why = "no topic segment" if not wire.is_name(name) else schedule.fault(name, read)
        if why:
            faults[name] = why
        else:
            good[name] = read
    return good, faults


_READ: Mapping[str, Callable[[object, Config, int], tuple[str, object]]] = {
    GOALS: _goals,
    EXITS: _exits,
    PAUSED: _paused,
    STEPS: _of(Learn, "train_steps_hz", "train_steps_hz"),
    TEACHER: _of(Teacher, "max_bytes_per_s", "teacher_bytes_per_s"),
    LABELS: _labels,
    SCHEDULES: _schedules,
    DRAINED: _drained,
}
