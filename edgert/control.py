"""The supervisor's brain: what happened goes in, what to do comes out.

`step(world, input, now_s) -> (world, effects)` is pure. It compares what should run with what runs at every wake-up
(level, not edge), so a lost message or a missed exit is mended at the next one. The shell in `programs.supervisor`
performs the effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import msgspec

from edgert import bus, wire
from edgert.children import Children, begin, bury, ensure_running, excuse, heard, open_children, roles, wake_times_s
from edgert.config import Config
from edgert.errors import MessageError
from edgert.fleet import command, session
from edgert.govern import askers, governor, trial
from edgert.govern.governor import Governor, Wish
from edgert.hardware import BoardFile
from edgert.values import (
    EXITS_ORDER_ENDED,
    ActorReport,
    Ask,
    Budget,
    Candidate,
    Carried,
    ExitsSet,
    Happened,
    Note,
    Prices,
    Role,
    ServiceReport,
    SetExits,
    Swap,
    Swapped,
    Told,
    TrainerReport,
    TrainOrder,
)

SERVICES: tuple[Role, ...] = ("placer", "offload")
"""Children that the device acts without; they have links of their own, and obey the budget."""
REPLY_EXPIRY_S = 30
OFFERED_MAX = 64
"""Orders that may wait for the answer of the actor, which answers within a tick: more are a flood, or it is gone."""

QUIET_S, QUIET_PACE = 10.0, 2.0
"""After so long without a decision and a gradient step nothing moves that would not wait twice as long. An
operator listens for `tele` a little longer than that (`edgert.cli.look`)."""


class Order(msgspec.Struct, frozen=True):
    """What the fleet wants of the exits, and until when (monotonic; None: until further notice)."""

    told: SetExits
    until_s: float | None


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory of a supervisor.

    Attributes:
        config: the user's.
        task, n_exits: of the policy; the task is also the topic segment under which teachers listen.
        children: role -> state, for the roles that should run.
        outboxes: name of a stream -> its durable events on their way to a collector; the most important first.
        started_s: monotonic.
        governor: what the budget rests on.
        budget: of the last look; None before the first.
        link_up, link_reason, link_ups: the session stands, why it does not, how many there were.
        actor, trainer: their last reports.
        services: the last word of each other child that reports.
        networks: which one acts, on what trial, and which never will again.
        last_swap: outcome of the newest.
        paused: training is, by a person's word.
        order, offered: about the exits: the one the actor obeys, and newer ones it has not answered yet. Kept in
            memory only: a supervisor that starts anew knows none, and an actor that outlived it goes on obeying.
        askers: who asks teachers, and what each has spent of the budget for it.
        ready: systemd was told so.
        busy_s: monotonic time of the newest report that told of a decision or a gradient step.
        listened_s: up to which all that was said has been heard.
        counters: name -> total.
    """

    config: Config
    task: str
    n_exits: int
    children: Children
    outboxes: dict[str, session.Outbox]
    started_s: float
    governor: Governor
    budget: Budget | None = None
    link_up: bool = False
    link_reason: str = "not connected yet"
    link_ups: int = 0
    actor: ActorReport | None = None
    trainer: TrainerReport | None = None
    services: dict[Role, ServiceReport] = {}
    networks: trial.Networks = trial.Networks(installed=Swap(0, "", ""))
    last_swap: Swapped | None = None
    paused: bool = False
    order: Order | None = None
    offered: tuple[Order, ...] = ()
    askers: askers.Askers = askers.Askers()
    ready: bool = False
    busy_s: float = 0.0
    listened_s: float = 0.0
    counters: dict[str, int] = {}


def open_world(
    config: Config,
    *,
    task: str,
    n_exits: int,
    note: Note | None,
    streams: Mapping[str, tuple[str, int, int]],
    now_s: float,
    adopted: Mapping[Role, int] | None = None,
    paused: bool = False,
    prices: Prices | None = None,
    cores: int = 1,
    board: BoardFile | None = None,
    carried: Carried | None = None,
) -> World:
    """The world as a supervisor finds it.

    Args:
        config: checked.
        task: of the policy.
        n_exits: of the policy.
        note: which network acts, as a predecessor committed it, or None.
        streams: name -> identity, lowest event held and newest event ever given, of each stream of the event spool; the
            most important first.
        now_s: monotonic seconds.
        adopted: pids of children that outlived a predecessor.
        paused: a person paused the training.
        prices: of the installed network; None until it was read.
        cores: of the processor.
        board: what is known of the kind of board.
        carried: what the link carried lately, as a predecessor noted it.

    Returns:
        The first step starts what should run and does not.

    Raises:
        nothing.
    Source:
        ours: everything a decision depends on is in one value that can be printed, stored and replayed.
    """
    return World(
        config=config,
        task=config.teacher.task or task,
        n_exits=n_exits,
        children=open_children(roles(config), adopted or {}, now_s),
        outboxes={name: session.open_outbox(*found) for name, found in streams.items()},
        started_s=now_s,
        busy_s=now_s,
        listened_s=now_s,
        networks=trial.open_networks(note, config.policy.bundle, now_s),
        paused=paused,
        governor=governor.open_governor(
            config, n_exits=n_exits, prices=prices, cores=cores, carried=carried, board=board
        ),
    )


def subscriptions(config: Config) -> list[str]:
    """Filters a device listens on.

    Args:
        config: checked.

    Returns:
        Topic filters.

    Raises:
        nothing.
    Source:
        ours: one filter a channel, thanks to the fixed depth.
    """
    fleet, device = config.device.fleet, config.device.id
    return [str(wire.Topic(fleet, device, "know", "answer", "+")), str(wire.Topic(fleet, device, "cmd", "+", "+"))]


def step(world: World, event: bus.Input, now_s: float) -> tuple[World, list[bus.Effect]]:
    """Advance the supervisor by one event.

    Args:
        world: the state before.
        event: what happened.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do, in order.

    Raises:
        nothing: a malformed message is counted under its name, a child's nonsense too.
    Source:
        ours, after balena-supervisor's steps-as-data and openpilot's `ensure_running`.
    """
    replace = msgspec.structs.replace
    effects: list[bus.Effect] = []
    match event:
        case bus.Sensed():
            children = excuse(world.children, event.waited_s)
            sensed = governor.sensed(world.governor, event, now_s)
            world = _allot(replace(world, governor=sensed, children=children), now_s, effects)
        case bus.Priced():
            world = replace(world, governor=governor.priced(world.governor, event))
        case bus.Spawned(role, pid) if role in world.children:
            world = replace(world, children=begin(world.children, role, now_s, pid=pid, connected=False))
        case bus.Connected(role, pid):
            world = _connected(world, role, pid, now_s, effects)
        case bus.Exited():
            world = _exited(world, event, now_s, effects)
        case bus.Heard(role, told):
            world = _heard(world, role, told, now_s, effects)
        case bus.TrainOrdered(order):
            world = _train_ordered(world, order, now_s, effects)
        case bus.AskersHere(numbers):
            total = _teacher_bytes_per_s(world)
            world = replace(world, askers=askers.here(world.askers, numbers, total_bytes_per_s=total, now_s=now_s))
            _tell_budget(world, now_s, effects)
        case bus.Asked():
            world = _asked(world, event, now_s, effects)
        case bus.LinkUp():
            world = replace(world, link_up=True, link_reason="", link_ups=world.link_ups + 1)
            world = _outboxes(_allot(world, now_s, effects), session.Up(), now_s, effects)
        case bus.LinkDown(reason):
            world = replace(world, link_up=False, link_reason=reason)
            world = _outboxes(_allot(world, now_s, effects), session.Down(), now_s, effects)
        case bus.Received():
            world = _received(world, event, now_s, effects)
        case bus.Stored(stream, first, last):
            world = _outboxes(world, session.Stored(first, last), now_s, effects, of=stream)
        case bus.Refused(stream, seq):
            world = _outboxes(world, session.Refused(seq), now_s, effects, of=stream)
        case bus.Tick() | bus.Spawned():
            if isinstance(event, bus.Tick):
                world = replace(world, listened_s=now_s if event.listened_s is None else event.listened_s)
            world = _outboxes(world, session.Tick(), now_s, effects)
        case _:
            _unreachable(event)
    return _ensure_running(world, now_s, effects), effects


def _unreachable(event: NoReturn) -> NoReturn:
    """Makes mypy refuse a match that forgets a member of the union; `typing.assert_never` is of Python 3.11."""
    raise AssertionError(f"not an input: {event!r}")


def _count(world: World, name: str, by: int = 1) -> World:
    return msgspec.structs.replace(world, counters={**world.counters, name: world.counters.get(name, 0) + by})


def _allot(world: World, now_s: float, effects: list[bus.Effect]) -> World:
    """Look at everything again and tell everyone what they may spend."""
    after, budget = governor.allot(
        world.governor,
        actor=world.actor,
        trainer=world.trainer,
        link_up=world.link_up,
        paused=world.paused,
        now_s=now_s,
        effects=effects,
    )
    world = msgspec.structs.replace(world, governor=after, budget=budget)
    _tell_budget(world, now_s, effects)
    return world


def _tell_budget(world: World, now_s: float, effects: list[bus.Effect]) -> None:
    if world.budget is not None:
        effects += [bus.Tell("actor", world.budget), *askers.budgets(world.askers, world.budget, now_s)]
        effects += [bus.Tell(role, world.budget) for role in world.children if role in SERVICES]


def _teacher_bytes_per_s(world: World) -> float:
    return 0.0 if world.budget is None or not world.link_up else world.budget.teacher_bytes_per_s


def _asked(world: World, event: bus.Asked, now_s: float, effects: list[bus.Effect]) -> World:
    device, total = world.config.device, _teacher_bytes_per_s(world)
    kept, effect = askers.ask(
        world.askers, event, fleet=device.fleet, device=device.id, total_bytes_per_s=total, now_s=now_s
    )
    effects.append(effect)
    world = msgspec.structs.replace(world, askers=kept)
    if isinstance(effect, bus.TellAsker):
        return _count(world, "asks-over-share")
    return _count(_count(world, "asks"), "ask-bytes", len(event.ask.payload))


def _train_ordered(world: World, order: TrainOrder, now_s: float, effects: list[bus.Effect]) -> World:
    """A person's word about the training; what is so already is said again, in case a note was lost."""
    if order.verb == "now":
        effects.append(bus.Tell("trainer", order))
        return world
    paused = order.verb == "pause"
    if paused != world.paused:
        effects.append(bus.Record("training-paused" if paused else "training-resumed", {}))
    effects.append(bus.Pause(paused))
    return _allot(msgspec.structs.replace(world, paused=paused), now_s, effects)


OutboxEvent = session.Up | session.Down | session.Stored | session.Refused | session.Acked | session.Tick


def _outboxes(
    world: World, event: OutboxEvent, now_s: float, effects: list[bus.Effect], *, of: str | None = None
) -> World:
    outboxes, wanted = session.step_streams(world.outboxes, event, now_s, of=of)
    world = msgspec.structs.replace(world, outboxes=outboxes)
    for stream, effect in wanted:
        match effect:
            case session.Send(after, up_to, first):
                effects.append(bus.SendEvents(stream, after, up_to, first))
            case session.Forget(up_to):
                effects.append(bus.ForgetEvents(stream, up_to))
            case session.Fault(name):
                world = _count(world, name)
    return world


def _connected(world: World, role: Role, pid: int, now_s: float, effects: list[bus.Effect]) -> World:
    if role not in world.children:
        return world
    started = begin(world.children, role, now_s, pid=pid, connected=True, heard_s=now_s)
    world = msgspec.structs.replace(world, children=started)
    if role != "world":
        _tell_budget(world, now_s, effects)
    if role == "trainer":
        effects.append(bus.Tell("trainer", trial.standing(world.networks)))
    if role == "actor":
        if world.networks.pending is not None:
            effects.append(bus.Tell("actor", world.networks.pending))
        world = msgspec.structs.replace(world, offered=_unexpired(world.offered, now_s))
        former = () if world.order is None else (world.order,)
        for order in (*_unexpired(former, now_s), *world.offered):
            left_s = None if order.until_s is None else order.until_s - now_s
            effects.append(bus.Tell("actor", msgspec.structs.replace(order.told, left_s=left_s)))
    return world


def _exited(world: World, event: bus.Exited, now_s: float, effects: list[bus.Effect]) -> World:
    left = bury(world.children, event, now_s, effects)
    if left is None:
        return world
    world = _count(msgspec.structs.replace(world, children=left), f"{event.role}-exits")
    if event.role == "actor":
        failures = left["actor"].failures
        world = _networks(world, trial.died(world.networks, failures, now_s, effects), effects)
        unsaid = trial.given_up(world.networks)
        if unsaid is not None:
            world = _swapped(world, unsaid, now_s, effects)
    return world


def _heard(world: World, role: Role, told: Told, now_s: float, effects: list[bus.Effect]) -> World:
    replace = msgspec.structs.replace
    if role in world.children and isinstance(told, ActorReport | TrainerReport | ServiceReport):
        world = replace(world, children=heard(world.children, role, now_s))
    match told:
        case ActorReport():
            previous = world.actor
            known = governor.acting(world.governor, told.network, effects)
            world = replace(world, actor=told, governor=known)
            # Of a socket nobody need ask; there the report itself shows that the loop turns.
            on_demand = world.config.plant.kind == "socket"
            max_exit = None if world.budget is None else world.budget.max_exit
            world = _networks(world, trial.heard(world.networks, previous, told, max_exit, now_s, effects), effects)
            ready = world.ready or (told.acting and (on_demand or told.first_action_s is not None))
            progressed = on_demand or previous is None or previous.pid != told.pid or told.ticks > previous.ticks
            effects.append(bus.Notify(ready and not world.ready, progressed, _status_line(world)))
            busy = previous is None or previous.ticks != told.ticks
            return replace(world, ready=ready, busy_s=now_s if busy else world.busy_s)
        case TrainerReport():
            busy = world.trainer is None or world.trainer.steps != told.steps
            return replace(world, trainer=told, busy_s=now_s if busy else world.busy_s)
        case ServiceReport():
            return replace(world, services={**world.services, role: told})
        case Ask(ask_id, payload):
            if not world.link_up:
                return _count(world, "asks-offline")
            device = world.config.device
            effects.append(askers.publish(device.fleet, device.id, world.task, payload, ask_id.to_bytes(8, "big")))
            world = replace(world, askers=askers.asked(world.askers, askers.TRAINER, now_s))
            return _count(_count(world, "asks"), "ask-bytes", len(payload))
        case Candidate():
            if not told.path:
                effects.append(
                    bus.Record("network-refused", {"generation": told.generation, **told.checks, **told.detail})
                )
                return _count(world, "networks-refused")
            effects.append(
                bus.Record("network-accepted", {"generation": told.generation, **told.checks, **told.detail})
            )
            swap = Swap(told.generation, told.path, told.sha256)
            world = _networks(world, trial.offered(world.networks, swap, now_s, effects), effects)
            return _count(world, "networks-accepted")
        case Swapped():
            return _swapped(world, told, now_s, effects)
        case ExitsSet():
            return _exits_set(world, told, effects)
        case Happened(name, detail):
            if name == EXITS_ORDER_ENDED:
                world = replace(world, order=None)
            effects.append(bus.Record(name, {"role": role, **detail}))
            return _count(world, name)
        case _:
            return _count(world, f"nonsense-from-{role}")


def _networks(world: World, networks: trial.Networks, effects: list[bus.Effect]) -> World:
    """Take over what the trial decided; networks that no gate judged stand no trial either."""
    if not world.config.learn.gated:
        networks = trial.waive(networks, effects)
    if networks.refused != world.networks.refused:
        world = _count(world, "networks-rolled-back")
    return msgspec.structs.replace(world, networks=networks)


def _swapped(world: World, told: Swapped, now_s: float, effects: list[bus.Effect]) -> World:
    effects.append(bus.Record("swapped" if told.ok else "swap-refused", dict(msgspec.structs.asdict(told))))
    world = _networks(world, trial.swapped(world.networks, told, now_s, effects), effects)
    return msgspec.structs.replace(_count(world, "swaps" if told.ok else "swaps-refused"), last_swap=told)


def _exits_set(world: World, told: ExitsSet, effects: list[bus.Effect]) -> World:
    """The actor answered: note what it obeys, and tell whoever wanted it."""
    in_force: dict[str, object] = {**msgspec.to_builtins(told.operating), "point": told.point}
    name = "exits-refused" if told.why else "exits-set"
    effects.append(bus.Record(name, {"id": told.id, "why": told.why, **in_force}))
    _reply(world, wire.CommandReply(id=told.id, ok=not told.why, why=told.why, detail=in_force), effects)
    world = _count(world, name)
    for i, order in enumerate(world.offered):
        if order.told.id == told.id:
            left = world.offered[:i] + world.offered[i + 1 :]
            return msgspec.structs.replace(world, order=world.order if told.why else order, offered=left)
    if told.why and world.order is not None and world.order.told.id == told.id:
        return msgspec.structs.replace(world, order=None)  # a new actor could not take it up again
    return world


def _reply(world: World, reply: wire.CommandReply, effects: list[bus.Effect]) -> None:
    topic = str(wire.Topic(world.config.device.fleet, world.config.device.id, "tele", "reply", reply.id))
    effects.append(bus.Publish(topic, wire.encode(reply), qos=1, expiry_s=REPLY_EXPIRY_S))


def _ordered(world: World, message: bus.Received, now_s: float, effects: list[bus.Effect]) -> World:
    """A command about the exits: it holds once the actor says so."""
    told = command.read_exits(message.payload, world.n_exits)
    if message.retained and not isinstance(told, command.Bad):
        told = command.Bad(told.id, "retained: it would come back with every connection; send it without")
    if isinstance(told, command.Bad):
        return _bad_command(world, "exits", told, effects)
    offered = _unexpired(world.offered, now_s)
    if len(offered) >= OFFERED_MAX:
        why = f"{len(offered)} orders wait for the actor's answer: send it again when the device acts"
        _reply(world, wire.CommandReply(id=told.id, ok=False, why=why), effects)
        return _count(world, "exits-crowded")
    effects.append(bus.Tell("actor", told))
    until_s = None if told.left_s is None else now_s + told.left_s
    return msgspec.structs.replace(world, offered=(*offered, Order(told, until_s)))


def _wished(world: World, message: bus.Received, now_s: float, effects: list[bus.Effect]) -> World:
    """A command about the goals: it holds from now on."""
    told = command.read_goals(message.payload, world.config.goals)
    if message.retained and not isinstance(told, command.Bad):
        told = command.Bad(told.id, "retained: it would come back with every connection; send it without")
    if isinstance(told, command.Bad):
        return _bad_command(world, "goals", told, effects)
    until_s = None if told.left_s is None else now_s + told.left_s
    wish = Wish(told.id, told.goals, told.named, now_s, until_s) if told.named else None
    world = msgspec.structs.replace(world, governor=msgspec.structs.replace(world.governor, wish=wish))
    in_force = {"goals": msgspec.to_builtins(told.goals)}
    effects.append(bus.Record("goals-set", {"id": told.id, **in_force}))
    _reply(world, wire.CommandReply(id=told.id, ok=True, detail=in_force), effects)
    return _allot(_count(world, "goals-set"), now_s, effects)


def _bad_command(world: World, name: str, told: command.Bad, effects: list[bus.Effect]) -> World:
    effects.append(bus.Record("bad-command", {"command": name, "id": told.id, "why": told.why[:500]}))
    if told.id is not None:
        _reply(world, wire.CommandReply(id=told.id, ok=False, why=told.why), effects)
    return _count(world, "bad-command")


def _unexpired(orders: tuple[Order, ...], now_s: float) -> tuple[Order, ...]:
    return tuple(order for order in orders if order.until_s is None or order.until_s > now_s)


def _received(world: World, message: bus.Received, now_s: float, effects: list[bus.Effect]) -> World:
    try:
        topic = wire.parse_topic(message.topic)
        if (topic.channel, topic.type) == ("know", "answer"):
            total = _teacher_bytes_per_s(world)
            kept, told = askers.answered(world.askers, message, total_bytes_per_s=total, now_s=now_s)
            world = msgspec.structs.replace(world, askers=kept)
            effects += [] if told is None else [told]
            return _count(_count(world, "answers"), "answer-bytes", len(message.payload))
        if (topic.channel, topic.type) == ("cmd", "ack"):
            ack, _ = wire.decode(message.payload, wire.EventAck)
            return _outboxes(world, session.Acked(ack.stream, ack.up_to), now_s, effects)
        if (topic.channel, topic.type) == ("cmd", "exits"):
            return _ordered(world, message, now_s, effects)
        if (topic.channel, topic.type) == ("cmd", "goals"):
            return _wished(world, message, now_s, effects)
        raise MessageError(f"no device listens on {topic.channel}/{topic.type}")
    except MessageError:
        return _count(world, "malformed-messages")


def _ensure_running(world: World, now_s: float, effects: list[bus.Effect]) -> World:
    children, hung = ensure_running(world.children, now_s, effects, world.listened_s)
    world = msgspec.structs.replace(world, children=children)
    for role in hung:
        world = _count(world, f"{role}-hung")
    return world


def pace(world: World, now_s: float) -> float:
    """How many times as long as usual may pass between two looks at the board, and between two reports of it.

    Args:
        world: the state.
        now_s: monotonic seconds.

    Returns:
        At least 1.

    Raises:
        nothing.
    Source:
        ours: on a battery a device that nobody asks should sleep; no reading may become stale for it.
    """
    govern = world.config.govern
    quiet = now_s - world.busy_s >= QUIET_S and world.ready
    return max(1.0, min(QUIET_PACE, govern.stale_s / 3 / govern.period_s)) if quiet else 1.0


def wake_s(world: World, now_s: float) -> float:
    """When `step` wants a `Tick` although nothing else happens.

    Args:
        world: the state.
        now_s: monotonic seconds.

    Returns:
        Monotonic seconds, at most one second ahead, a little more while nothing moves.

    Raises:
        nothing.
    Source:
        ours: hung children are found by looking.
    """
    due = [box.wake_s for box in world.outboxes.values() if box.wake_s is not None]
    return max(now_s, min([now_s + pace(world, now_s), *due, *wake_times_s(world.children)]))


def _status_line(world: World) -> str:
    actor = world.actor
    if actor is None:
        return "waiting for the actor"
    link = "link up" if world.link_up else f"link down ({world.link_reason})"
    acting = f"generation {actor.generation}" if actor.acting else "SAFE ACTION ONLY"
    return f"{acting}, {actor.ticks} ticks, {actor.missed} missed, {link}"
