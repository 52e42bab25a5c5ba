"""A device that obeys only those whom it believes, and takes up the policies that they offer. Pure.

`step(guard, input, now_s) -> (guard, effects)`, round `device.step`: what comes over the link is unwrapped here before
anything of it is heard inside, and a policy from the fleet goes the way that one of the trainer's goes: as a candidate,
on trial, put out again if it does harm.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgert import bus, control, device, placing, wire
from edgert.config import Config
from edgert.device import Device
from edgert.errors import MessageError
from edgert.fleet import fetch, policies, presence, trust, update
from edgert.fleet.kinds import Kind
from edgert.fleet.ledger import State
from edgert.fleet.policies import Policies
from edgert.govern.trial import Networks
from edgert.offers import KeysNote
from edgert.values import Candidate, Outcome, Stop

CHANGING = ("cmd", "twin", "job")
"""Channels whose messages change the device, but for acknowledgements of events, which only make it forget."""
NOISY = frozenset({"bad-command", "command-refused", "offer-refused", "keys-refused"})
NOISY_MAX, NOISY_S = 20, 600.0
"""Events about what was not believed, in so long: each is written to the disk, where it takes the place of others."""
ON_TRIAL = "a policy from the fleet is on trial"


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """The whole memory of a supervisor.

    Attributes:
        device: behind the guard.
        policies: whom it believes, and which policy it takes up.
        verify: a signature.
        herald: says that the device is there; None: nobody does.
        noisy: events of `NOISY` since `noisy_s`, also those that were left out.
        noisy_s: monotonic.
    """

    device: Device
    policies: Policies
    verify: trust.Verify
    herald: presence.Herald | None = None
    noisy: int = 0
    noisy_s: float = 0.0


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


def status_topic(config: Config) -> str:
    """Where a device says that it is there, and listens to itself: at QoS 0, as what is late says nothing.

    Args:
        config: checked.

    Returns:
        The topic.

    Raises:
        nothing.
    Source:
        ours.
    """
    return str(wire.Topic(config.device.fleet, config.device.id, "status", "device"))


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
    guard, effects = _step(guard, event, now_s)
    if any(isinstance(effect, bus.Record) and effect.name in NOISY for effect in effects):
        return _hushed(guard, effects, now_s)
    return guard, effects


def _hushed(guard: Guard, effects: list[bus.Effect], now_s: float) -> tuple[Guard, list[bus.Effect]]:
    """Whoever says nonsense without end is counted without end, and told of now and then."""
    noisy, since_s = guard.noisy, guard.noisy_s
    kept: list[bus.Effect] = []
    for effect in effects:
        if not isinstance(effect, bus.Record) or effect.name not in NOISY:
            kept.append(effect)
            continue
        if now_s - since_s >= NOISY_S:
            left_out = max(0, noisy - NOISY_MAX)
            noisy, since_s = 0, now_s
            if left_out:
                effect = bus.Record(effect.name, {**effect.detail, "left_out_before": left_out})
        noisy += 1
        if noisy <= NOISY_MAX:
            kept.append(effect)
    return msgspec.structs.replace(guard, noisy=noisy, noisy_s=since_s), kept


def _step(
    guard: Guard, event: bus.Input | bus.FleetInput | bus.PolicyTold, now_s: float
) -> tuple[Guard, list[bus.Effect]]:
    effects: list[bus.Effect] = []
    if isinstance(event, bus.PolicyTold):
        guard = _look(_policies(guard, event.told, now_s, effects), now_s, effects)
        return _ended(guard, now_s, effects), effects
    if isinstance(event, bus.Received):
        guard, inside = _admitted(guard, event, now_s, effects)
        if inside is None:
            return _look(guard, now_s, effects), effects
        event = inside
    generation = guard.policies.updates.on_trial
    if isinstance(event, bus.Heard) and isinstance(event.told, Candidate) and event.told.path and generation:
        effects += _not_now(guard, event.told)
        return guard, effects
    if isinstance(event, bus.LinkUp):  # before anything else that is said over it
        guard = _herald(guard, presence.Up(), now_s, effects)
    labels = guard.device.duties.twin.wishes.labels
    inner, more = device.step(guard.device, event, now_s)
    guard = msgspec.structs.replace(guard, device=inner)
    for effect in more:
        match effect:
            case bus.DoJob(id_, Kind.UPDATE.value, args):
                guard = _update(guard, id_, args, now_s, effects)
            case bus.StopJob(id_) if policies.withdrawn_with(guard.policies, id_):
                guard = _policies(guard, update.Withdrawn(), now_s, effects)
            case _:
                effects.append(_for_trainer(effect))
    if inner.duties.twin.wishes.labels != labels:
        effects.append(_report(guard))
    match event:
        case bus.LinkUp():
            guard = _policies(guard, update.LinkUp(), now_s, effects)
        case bus.LinkDown():
            guard = _herald(guard, presence.Down(), now_s, effects)
            guard = _policies(guard, update.LinkDown(), now_s, effects)
        case bus.Tick():
            guard = _herald(guard, presence.Tick(), now_s, effects)
            guard = _policies(guard, fetch.Tick(), now_s, effects)
        case _:
            pass
    return _ended(_look(guard, now_s, effects), now_s, effects), effects


def _update(guard: Guard, id_: str, args: Mapping[str, object], now_s: float, effects: list[bus.Effect]) -> Guard:
    """Begin a job of kind `update`, or go on with it."""
    offer = policies.offer_of(id_, args)
    if isinstance(offer, trust.Refusal):
        guard, more = _step(guard, bus.JobDone(id_, f"{offer.code}: {offer.why}"), now_s)
        effects += more
        return guard
    return _policies(guard, update.Offered(offer), now_s, effects)


def _ended(guard: Guard, now_s: float, effects: list[bus.Effect]) -> Guard:
    """Jobs whose policy has its verdict."""
    for entry in guard.device.duties.ledger.open.values():
        job = entry.job
        if job.order.kind != Kind.UPDATE.value or job.state is not State.RUNNING or entry.outcome is not None:
            continue
        why = policies.job_outcome(guard.policies, job.order.id)
        if why is None or (why and entry.interrupted):  # it is about to be begun again
            continue
        report = update.report(guard.policies.updates)
        result: dict[str, object] = {"stage": report.stage, "sha256": report.sha256, "spent_bytes": report.spent_bytes}
        guard, more = _step(guard, bus.JobDone(job.order.id, why, result), now_s)
        effects += more
    return guard


def _admitted(
    guard: Guard, message: bus.Received, now_s: float, effects: list[bus.Effect]
) -> tuple[Guard, bus.Received | None]:
    """What the inside may hear of a message; None where that is nothing."""
    try:
        topic = wire.parse_topic(message.topic)
        if topic.channel == "policy":
            return _on_policy(guard, topic, message, now_s, effects), None
        if topic.channel == "status":
            return _on_status(guard, message, now_s, effects), None
        if (topic.channel, topic.type) == ("cmd", "rebirth"):
            wire.decode(message.payload, wire.Rebirth)
            return _herald(guard, presence.Wanted(), now_s, effects), None
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
        if (topic.channel, topic.type) == ("cmd", "logs"):
            return _show_log(guard, told.payload, effects), None
        return guard, msgspec.structs.replace(message, payload=told.payload)
    where = f"{topic.channel}/{topic.type}/{topic.id}"
    detail: dict[str, object] = {"command": where, "code": told.refusal.code, "why": told.refusal.why[:500]}
    effects.append(bus.Record("command-refused", detail))
    return _counted(guard, "command-refused"), None


def _on_status(guard: Guard, message: bus.Received, now_s: float, effects: list[bus.Effect]) -> Guard:
    try:
        status, _ = wire.decode(message.payload, wire.Status)
    except MessageError:  # counted, but no event: it is about nothing that anybody wants done
        return _counted(guard, "malformed-messages")
    return _herald(guard, presence.Heard(status, message.retained), now_s, effects)


def _show_log(guard: Guard, payload: bytes, effects: list[bus.Effect]) -> Guard:
    try:
        told, _ = wire.decode(payload, wire.LogsCommand)
    except MessageError as error:
        effects.append(bus.Record("bad-command", {"command": "cmd/logs", "why": str(error)[:500]}))
        return _counted(guard, "malformed-messages")
    if not wire.is_name(told.id):
        return _counted(guard, "malformed-messages")
    effects.append(bus.ShowLog(told.id, told.lines))
    return guard


def _herald(guard: Guard, event: presence.Event, now_s: float, effects: list[bus.Effect]) -> Guard:
    if guard.herald is None:
        return guard
    herald, wanted = presence.step(guard.herald, event, now_s)
    guard = msgspec.structs.replace(guard, herald=herald)
    for effect in wanted:
        match effect:
            case presence.Say(status):
                topic = status_topic(guard.device.config)
                effects.append(bus.Publish(topic, wire.encode(status), qos=1, retain=True))
            case presence.SayAll():
                inner, more = device.again(guard.device)
                guard = msgspec.structs.replace(guard, device=inner)
                effects += [*more, _report(guard)]
            case presence.Reconnect(why):
                effects += [bus.Record("link-deaf", {"why": why}), bus.Reconnect(why)]
                guard = _counted(guard, "link-deaf")
            case presence.Cloned(session):
                effects.append(bus.Record("duplicate-identity", {"session": session[:80]}))
                guard = _counted(guard, "duplicate-identity")
    return guard


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
        case bus.Tell("trainer", Outcome(acting, generation)) if generation >= placing.GENERATIONS:
            return bus.Tell("trainer", Outcome(acting))
        case _:
            return effect


def _counted(guard: Guard, name: str) -> Guard:
    replace, world = msgspec.structs.replace, guard.device.world
    world = replace(world, counters={**world.counters, name: world.counters.get(name, 0) + 1})
    return replace(guard, device=replace(guard.device, world=world))
