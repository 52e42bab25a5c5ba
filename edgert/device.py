"""A whole device, pure: what keeps it running (`control`), and what it does for its fleet (`fleet.duties`).

`step(device, input, now_s) -> (device, effects)`, as everywhere. The fleet's wishes reach `control` as what it knows
anyway: another configuration, an order about the exits, a word about the training.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgert import bus, control, wire
from edgert.config import Config
from edgert.control import Order, World
from edgert.errors import MessageError
from edgert.fleet import duties as fleet
from edgert.fleet import twin
from edgert.fleet.duties import Context, Duties
from edgert.fleet.ledger import Found
from edgert.fleet.when import Facts
from edgert.values import ActorReport, ExitsSet, SetExits, TrainerReport, TrainOrder

IDLE_FRAC = 0.3
"""A processor with less load has room: one core of four may be busy with acting."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory of a supervisor.

    Attributes:
        config: the user's, without the fleet's wishes.
        world: what keeps the device running.
        duties: what the fleet wants of it.
    """

    config: Config
    world: World
    duties: Duties


def open_device(
    world: World,
    jobs: Mapping[str, bytes],
    marks: Mapping[str, bytes],
    facts: Mapping[str, bytes],
    found: Mapping[str, Found],
    now_s: float,
) -> tuple[Device, list[bus.Effect]]:
    """The device as a supervisor finds it.

    Args:
        world: as found, with the user's configuration.
        jobs: id -> record.
        marks: name -> record of a schedule.
        facts: name -> record of anything else.
        found: id -> evidence of jobs that ran.
        now_s: monotonic seconds.

    Returns:
        The device, and what to do about what was found.

    Raises:
        nothing.
    Source:
        ours.
    """
    duties, effects = fleet.open_duties(jobs, marks, facts, found, _context(world, world.config), now_s)
    device = Device(config=world.config, world=world, duties=duties)
    # The actor is told when it connects; whether training is paused was noted by itself.
    return _in_force(device, _offered(world, duties.twin.wishes.exits)), effects


def subscriptions(config: Config) -> list[str]:
    """Filters a device listens on.

    Args:
        config: checked.

    Returns:
        Topic filters.

    Raises:
        nothing.
    Source:
        ours.
    """
    return [*control.subscriptions(config), *fleet.subscriptions(config)]


def step(device: Device, event: bus.Input | bus.FleetInput, now_s: float) -> tuple[Device, list[bus.Effect]]:
    """Advance the device by one event.

    Args:
        device: the state before.
        event: what happened.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do, in order.

    Raises:
        nothing: a malformed message is counted.
    Source:
        ours.
    """
    world, duties, before = device.world, device.duties, device.duties
    effects: list[bus.Effect] = []
    more: list[bus.Effect] = []
    if isinstance(event, bus.Timed | bus.JobWritten | bus.JobDone):
        context = _context(world, device.config)
        match event:
            case bus.Timed():
                duties, more = fleet.tick(duties, event, context, now_s)
            case bus.JobWritten():
                duties, more = fleet.written(duties, event, context, now_s)
            case bus.JobDone():
                duties, more = fleet.done(duties, event, context, now_s)
    elif isinstance(event, bus.Received) and (topic := _ours(event)) is not None:
        try:
            duties, more = fleet.receive(duties, topic, event, _context(world, device.config), now_s)
        except MessageError:
            counters = {**world.counters, "malformed-messages": world.counters.get("malformed-messages", 0) + 1}
            world = msgspec.structs.replace(world, counters=counters)
    else:
        world, effects = control.step(world, event, now_s)
        duties, more = _after(duties, event, _context(world, device.config), now_s)
    device = msgspec.structs.replace(device, world=world, duties=duties)
    effects += more
    if duties.twin is not before.twin or duties.fetching != before.fetching:
        device = _wish(device, before, now_s, effects)
    return device, effects


def again(device: Device) -> tuple[Device, list[bus.Effect]]:
    """Somebody lost sight of the device: everything that the broker keeps of it is said anew.

    Args:
        device: the state before.

    Returns:
        The state after, and what to publish.

    Raises:
        nothing.
    Source:
        ours: what a new connection says anyway.
    """
    duties, effects = fleet.link_up(device.duties, _context(device.world, device.config))
    return msgspec.structs.replace(device, duties=duties), effects


def _ours(message: bus.Received) -> wire.Topic | None:
    try:
        topic = wire.parse_topic(message.topic)
    except MessageError:
        return None
    return topic if topic.channel in ("twin", "job") else None


def _after(duties: Duties, event: bus.Input, context: Context, now_s: float) -> tuple[Duties, list[bus.Effect]]:
    """What an event means for the fleet's duties, once the brain has taken it in."""
    match event:
        case bus.Heard(_, (ActorReport() | TrainerReport()) as report):
            return fleet.heard(duties, report, context, now_s)
        case bus.Heard(_, ExitsSet(id=twin.EXITS_ID, why=why)):
            return fleet.exits_answered(duties, why, context)
        case bus.Connected("trainer"):
            return duties, fleet.trainer_here(duties)
        case bus.LinkUp():
            return fleet.link_up(duties, context)
        case bus.LinkDown() | bus.TrainOrdered():
            return fleet.tick(duties, None, context, now_s)
        case _:
            return duties, []


def _context(world: World, config: Config) -> Context:
    readings, budget = world.governor.readings, world.budget
    trainer = world.children.get("trainer")
    load_frac = readings.load_frac.value
    return Context(
        config=config,
        n_exits=world.n_exits,
        paused=world.paused,
        trainer_here=trainer is not None and trainer.connected,
        facts=Facts(
            battery_frac=readings.battery_frac.value,
            mains=not readings.has_battery,
            temp_c=readings.temp_c.value,
            link_up=world.link_up,
            metered=readings.metered,
            idle=None if load_frac is None else load_frac < IDLE_FRAC,
            charging=readings.external_power,
            accept_jobs=budget is not None and budget.accept_jobs,
        ),
    )


def _wish(device: Device, before: Duties, now_s: float, effects: list[bus.Effect]) -> Device:
    """Let the brain know what is wished now."""
    world, wishes = device.world, device.duties.twin.wishes
    if device.duties.twin is not before.twin:
        exits, former = wishes.exits, before.twin.wishes.exits
        if exits is None and former is not None:
            exits = SetExits(id=twin.EXITS_ID)
        if exits is not None and exits != former:
            effects.append(bus.Tell("actor", exits))
            world = _offered(world, exits)
        if wishes.paused is not None and wishes.paused != world.paused:
            order = TrainOrder(twin.EXITS_ID, "pause" if wishes.paused else "resume")
            world, more = control.step(world, bus.TrainOrdered(order), now_s)
            effects += more
    device = _in_force(device, world)
    duties, more = fleet.tick(device.duties, None, _context(device.world, device.config), now_s)
    effects += more
    return msgspec.structs.replace(device, duties=duties)


def _offered(world: World, exits: SetExits | None) -> World:
    """An order of the fleet's for the exits: the actor is asked again whenever it connects."""
    if exits is None:
        return world
    return msgspec.structs.replace(world, offered=(*world.offered[-control.OFFERED_MAX + 1 :], Order(exits, None)))


def _in_force(device: Device, world: World) -> Device:
    """The brain decides by the user's configuration with the wishes in it."""
    replace = msgspec.structs.replace
    config = twin.configured(device.config, device.duties.twin.wishes)
    bytes_per_s = fleet.fetch_bytes_per_s(device.duties)
    if bytes_per_s is not None:
        config = replace(config, teacher=replace(config.teacher, max_bytes_per_s=bytes_per_s))
    world = replace(world, config=config, governor=replace(world.governor, config=config))
    return replace(device, world=world)
