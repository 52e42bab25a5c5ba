"""A device that obeys only those whom it believes, and takes up the policies that they offer. Pure.

`step(guard, input, now_s) -> (guard, effects)`, round `device.step`: what comes over the link is unwrapped here before
anything of it is heard inside, and a policy from the fleet goes the way that one of the trainer's goes: as a candidate,
on trial, put out again if it does harm.
"""

from __future__ import annotations

import msgspec

from edgert import bus, control, device, wire
from edgert.config import Config
from edgert.device import Device
from edgert.errors import MessageError
from edgert.fleet import fetch, policies, trust, update
from edgert.fleet.policies import Policies
from edgert.govern.trial import Networks
from edgert.offers import KeysNote
from edgert.values import Candidate, Outcome, Stop

CHANGING = ("cmd", "twin", "job")
"""Channels whose messages change the device, but for acknowledgements of events, which only make it forget."""
ON_TRIAL = "a policy from the fleet is on trial"


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory of a supervisor.

    Attributes:
        device: behind the guard.
        policies: whom it believes, and which policy it takes up.
        verify: a signature.
    """

    device: Device
    policies: Policies
    verify: trust.Verify


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
    return [*device.subscriptions(config), *policies.subscriptions(config)]


def step(
    guard: Guard, event: bus.Input | bus.FleetInput | bus.PolicyTold, now_s: float
) -> tuple[Guard, list[bus.Effect]]:
    """Advance the device by one event.

    Args:
        guard: the state before.
        event: what happened.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do, in order.

    Raises:
        nothing: what is malformed or not believed is counted and recorded.
    Source:
        ours: one gate for every channel, so that none can be forgotten.
    """
    effects: list[bus.Effect] = []
    if isinstance(event, bus.PolicyTold):
        return _look(_policies(guard, event.told, now_s, effects), now_s, effects), effects
    if isinstance(event, bus.Received):
        guard, inside = _admitted(guard, event, now_s, effects)
        if inside is None:
            return _look(guard, now_s, effects), effects
        event = inside
    generation = guard.policies.updates.on_trial
    if isinstance(event, bus.Heard) and isinstance(event.told, Candidate) and event.told.path and generation:
        effects += _not_now(guard, event.told)
        return guard, effects
    labels = guard.device.duties.twin.wishes.labels
    inner, more = device.step(guard.device, event, now_s)
    effects += [_for_trainer(effect) for effect in more]
    guard = msgspec.structs.replace(guard, device=inner)
    if inner.duties.twin.wishes.labels != labels:
        effects.append(_report(guard))
    match event:
        case bus.LinkUp():
            guard = _policies(guard, update.LinkUp(), now_s, effects)
        case bus.LinkDown():
            guard = _policies(guard, update.LinkDown(), now_s, effects)
        case bus.Tick():
            guard = _policies(guard, fetch.Tick(), now_s, effects)
        case _:
            pass
    return _look(guard, now_s, effects), effects


def _admitted(
    guard: Guard, message: bus.Received, now_s: float, effects: list[bus.Effect]
) -> tuple[Guard, bus.Received | None]:
    """What the inside may hear of a message; None where that is nothing."""
    try:
        topic = wire.parse_topic(message.topic)
        if topic.channel == "policy":
            return _on_policy(guard, topic, message, now_s, effects), None
    except MessageError as error:
        effects.append(bus.Record("bad-command", {"command": message.topic[:200], "why": str(error)[:500]}))
        return _counted(guard, "malformed-messages"), None
    if topic.channel not in CHANGING or (topic.channel, topic.type) == ("cmd", "ack") or not message.payload:
        return guard, message
    state, told, notes = policies.believe(
        guard.policies,
        message.payload,
        kept=topic.channel == "twin",
        wall_s=guard.device.duties.wall_s,
        verify=guard.verify,
    )
    guard = msgspec.structs.replace(guard, policies=state)
    effects += [bus.PolicyDo(note) for note in notes]
    if told.refusal is None:
        return guard, msgspec.structs.replace(message, payload=told.payload)
    where = f"{topic.channel}/{topic.type}/{topic.id}"
    detail: dict[str, object] = {"command": where, "code": told.refusal.code, "why": told.refusal.why[:500]}
    effects.append(bus.Record("command-refused", detail))
    return _counted(guard, "command-refused"), None


def _on_policy(
    guard: Guard, topic: wire.Topic, message: bus.Received, now_s: float, effects: list[bus.Effect]
) -> Guard:
    state, wanted = policies.received(
        guard.policies,
        topic,
        message.payload,
        now_s=now_s,
        wall_s=guard.device.duties.wall_s,
        verify=guard.verify,
    )
    return _perform(msgspec.structs.replace(guard, policies=state), wanted, now_s, effects)


def _policies(guard: Guard, event: update.Event, now_s: float, effects: list[bus.Effect]) -> Guard:
    state, wanted = policies.stepped(guard.policies, event, now_s)
    return _perform(msgspec.structs.replace(guard, policies=state), wanted, now_s, effects)


def _perform(guard: Guard, wanted: list[update.Effect | KeysNote], now_s: float, effects: list[bus.Effect]) -> Guard:
    for effect in wanted:
        match effect:
            case update.Say(name, detail):
                effects.append(bus.Record(name, detail))
                guard = _counted(guard, name)
                if name == "update-kept":
                    effects.append(bus.Tell("trainer", Stop()))  # it is started anew, and begins from this one
            case update.Report():
                effects.append(_report(guard))
            case update.Activate(generation, path, sha256):
                offered = Candidate(generation, path, sha256, {"fleet": True}, {})
                world, more = control.step(guard.device.world, bus.Heard("trainer", offered), now_s)
                guard = msgspec.structs.replace(guard, device=msgspec.structs.replace(guard.device, world=world))
                effects += [_for_trainer(each) for each in more]
            case _:
                effects.append(bus.PolicyDo(effect))
    return guard


def _report(guard: Guard) -> bus.Effect:
    """Where the device stands; its labels are those of its configuration, and `name=value` of those it was given."""
    state, given = guard.policies, guard.device.duties.twin.wishes.labels
    told = policies.report(state)
    labels = (*told.labels, *(f"{name}={value}" for name, value in sorted(given.items())))
    payload = wire.encode(msgspec.structs.replace(told, labels=labels))
    return bus.Publish(policies.report_topic(state), payload, qos=1, retain=True)


def _look(guard: Guard, now_s: float, effects: list[bus.Effect]) -> Guard:
    """What the trial says of the policy that is on it: looked at, not listened for, so that no verdict is missed."""
    updates = guard.policies.updates
    if updates.on_trial is None or not updates.begun or updates.verdict is not None:
        return guard
    verdict = verdict_of(guard.device.world.networks, updates.on_trial, _said(guard, updates.on_trial, effects))
    return guard if verdict is None else _policies(guard, verdict, now_s, effects)


def _said(guard: Guard, generation: int, effects: list[bus.Effect]) -> str:
    """What was said about a network just now, or when the actor last answered."""
    for effect in effects:
        if isinstance(effect, bus.Record) and effect.detail.get("generation") == generation and "why" in effect.detail:
            return str(effect.detail["why"])
    last = guard.device.world.last_swap
    return last.why if last is not None and last.generation == generation else ""


def verdict_of(networks: Networks, generation: int, said: str) -> update.Verdict | None:
    """What became of a network, as far as it shows.

    Args:
        networks: as they stand.
        generation: of the network; it was offered for acting.
        said: about it, in words.

    Returns:
        The verdict; None while there is none.

    Raises:
        nothing.
    Source:
        ours: level, not edge; a supervisor that starts anew sees the same.
    """
    if any(bad.generation == generation for bad in networks.refused):
        return update.Verdict(generation, "rolled-back", said)
    acting, best = networks.acting.swap, networks.best
    if acting is not None and acting.generation == generation:
        return update.Verdict(generation, "kept", said or "it stood its trial") if best is None else None
    if any(swap is not None and swap.generation == generation for swap in (networks.pending, networks.waiting)):
        return None
    return update.Verdict(generation, "refused", said or "the actor did not take it")


def _not_now(guard: Guard, told: Candidate) -> list[bus.Effect]:
    """A candidate of the trainer's would take the place of the policy on trial before there is a verdict."""
    acting = guard.device.world.networks.acting.swap
    return [
        bus.Record("swap-refused", {"generation": told.generation, "why": ON_TRIAL}),
        bus.Tell("trainer", Outcome(acting, told.generation, "refused", ON_TRIAL)),
    ]


def _for_trainer(effect: bus.Effect) -> bus.Effect:
    """The trainer hears which network acts, but not the fate of one that it did not make: it would learn from it."""
    match effect:
        case bus.Tell("trainer", Outcome(acting, generation)) if generation >= update.GENERATIONS:
            return bus.Tell("trainer", Outcome(acting))
        case _:
            return effect


def _counted(guard: Guard, name: str) -> Guard:
    replace, world = msgspec.structs.replace, guard.device.world
    world = replace(world, counters={**world.counters, name: world.counters.get(name, 0) + 1})
    return replace(guard, device=replace(guard.device, world=world))
