"""What a device does for its fleet: the twin, the ledger and the agenda as one, in the words of the bus.

It says what to write, to do and to publish; the brain tells it what happened. What a job of a kind is, beyond its
states, is here: some are watched from here (`train`, `evaluate`, `fetch`), the others are carried out by the shell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from edgert import bus, wire
from edgert.config import Config
from edgert.errors import MessageError
from edgert.fleet import agenda as agendas
from edgert.fleet import ledger as ledgers
from edgert.fleet import records, schedule
from edgert.fleet import twin as twins
from edgert.fleet.evaluation import Watched
from edgert.fleet.kinds import Evaluate, Fetch, Kind, read_args
from edgert.fleet.ledger import Found, Job, Ledger, Order, Outcome, State
from edgert.fleet.schedule import Moment
from edgert.fleet.twin import Twin
from edgert.fleet.when import Facts, When
from edgert.values import ActorReport, TrainerReport, TrainOrder

STATE_EXPIRY_S = 30 * 86_400
ENDED_SHOWN = 4
RESAID = 32
"""Ends that are told again when the link comes up: a broker acknowledges what it may forget."""
TAUGHT_FACTOR = 4.0
ORDER_BYTES = 16 << 10
"""Hundreds of orders are remembered."""
SEEN_S = 4 * 3600.0
"""Between two notes of the time: a clock that starts at nought is never taken for one that is right."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What the brain knows and these decisions need.

    Attributes:
        config: the user's, without any wishes.
        n_exits: of the network.
        facts: for conditions.
        paused: training is.
        trainer_here: a trainer is connected.
    """

    config: Config
    n_exits: int
    facts: Facts
    paused: bool = False
    trainer_here: bool = False


class Duties(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        twin, ledger, agenda: see their modules.
        wall_s, boot: what the clocks said last; see `schedule.Moment`.
        seen_s: latest time of the wall that was written.
        watched: id of a running evaluation -> how far it is.
        fetching: id of a running fetch -> until when (monotonic), and bytes a second.
        exits_refused: why the actor does not run the exits as wished.
        reported: payload of the last reported document; None when the broker may not have it.
    """

    twin: Twin = Twin()
    ledger: Ledger = Ledger()
    agenda: agendas.Agenda = agendas.Agenda()
    wall_s: float | None = None
    boot: str = ""
    seen_s: float = 0.0
    watched: dict[str, Watched] = {}
    fetching: dict[str, tuple[float, float]] = {}
    exits_refused: str = ""
    reported: bytes | None = None


Effects = list[bus.Effect]
_replace = msgspec.structs.replace


def open_duties(
    jobs: Mapping[str, bytes],
    marks: Mapping[str, bytes],
    facts: Mapping[str, bytes],
    found: Mapping[str, Found],
    context: Context,
    now_s: float,
) -> tuple[Duties, Effects]:
    """What a device has to do, as a supervisor finds it on its disk.

    Args:
        jobs: id -> record.
        marks: name -> record of a schedule.
        facts: name -> record of anything else.
        found: id -> evidence of jobs that ran.
        context: as far as it is known yet.
        now_s: monotonic seconds.

    Returns:
        The state; and what to do about what was found.

    Raises:
        nothing.
    Source:
        ours.
    """
    effects: Effects = []
    read = [records.read_job(id_, body) for id_, body in jobs.items()]
    ledger, wanted = ledgers.open_ledger(read, records.read_time(facts.get(records.HORIZON)), found, now_s)
    agenda, broken = agendas.open_agenda(marks)
    effects += [bus.Record("mark-broken", {"schedule": name}) for name in broken]
    duties = Duties(ledger=ledger, agenda=agenda, seen_s=records.read_time(facts.get(records.SEEN)) or 0.0)
    desired = records.read_desired(facts.get(records.DESIRED))
    if desired is not None:
        duties = _adopted(duties, twins.receive(Twin(), desired, context.config, context.n_exits))
    return _carried_out(duties, wanted, context, now_s, effects), effects


def subscriptions(config: Config) -> list[str]:
    """Filters on which orders come.

    Args:
        config: of the device.

    Returns:
        Topic filters.

    Raises:
        nothing.
    Source:
        ours.
    """
    fleet, device = config.device.fleet, config.device.id
    kinds = (("twin", "desired", "-"), ("job", "order", "+"), ("job", "cancel", "+"))
    return [str(wire.Topic(fleet, device, *kind)) for kind in kinds]


def receive(
    duties: Duties, topic: wire.Topic, message: bus.Received, context: Context, now_s: float
) -> tuple[Duties, Effects]:
    """Hear the fleet.

    Args:
        duties: before.
        topic: of the message, on a channel of `subscriptions`.
        message: from somebody who may say such things.
        context: now.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        MessageError: it says nothing that can be understood, or it is retained and must not be.
    Source:
        ours: wishes are retained, since only the newest counts; orders are not, since each of them does.
    """
    if topic.channel == "twin":
        desired, _ = wire.decode(message.payload, wire.TwinDesired)
        if duties.wall_s is not None and desired.epoch > duties.wall_s + ledgers.EARLY_S:
            raise MessageError(f"wishes of epoch {desired.epoch}, which is to come: nobody could ever change them")
        after = twins.receive(duties.twin, desired, context.config, context.n_exits)
        if after is duties.twin:
            return duties, []
        effects: Effects = [bus.WriteFact(records.DESIRED, message.payload)]
        told = {"epoch": desired.epoch, "version": desired.version, "refused": after.refused}
        effects.append(bus.Record("twin-taken", {**told}))
        return _reported(_adopted(duties, after), context, effects), effects
    if message.retained:
        raise MessageError(f"a retained {topic.type}: it would come back with every connection; send it without")
    if len(message.payload) > ORDER_BYTES:
        raise MessageError(f"a {topic.type} of {len(message.payload)} bytes, {ORDER_BYTES} at most")
    if topic.type == "cancel":
        cancel, _ = wire.decode(message.payload, wire.JobCancel)
        _finite(cancel.id, cancel.issued_s)
        _named(cancel.id, topic)
        return _step(duties, ledgers.Cancel(cancel.id, cancel.issued_s), context, now_s)
    told_order, _ = wire.decode(message.payload, wire.JobOrder)
    _named(told_order.id, topic)
    try:
        order = _order(told_order)
    except MessageError as error:
        refused = Order(id=told_order.id, kind=told_order.kind)
        job = Job(order=refused, number=0, state=State.REFUSED, why=str(error)[:500])
        return duties, [_state(job, context.config, kept=False)]
    return _step(duties, ledgers.Submit(order), context, now_s)


def _named(id_: str, topic: wire.Topic) -> None:
    if id_ != topic.id or not wire.is_name(id_):
        raise MessageError(f"{topic.type} {id_[:80]!r} came as {topic.id!r}: the id is the last segment of its topic")


def _order(told: wire.JobOrder) -> Order:
    _finite(told.id, told.issued_s, told.not_after_s)
    try:
        when = msgspec.convert(told.when, When)
    except (msgspec.ValidationError, OverflowError) as error:
        raise MessageError(f"job {told.id}: when: {error}") from error
    return Order(
        id=told.id,
        kind=told.kind,
        args=told.args,
        issued_s=told.issued_s,
        not_after_s=told.not_after_s,
        valid_s=told.valid_s,
        timeout_s=told.timeout_s,
        when=when,
    )


def _finite(id_: str, *times_s: float | None) -> None:
    if not all(time_s is None or math.isfinite(time_s) for time_s in times_s):
        raise MessageError(f"job {id_[:80]}: times are seconds since 1970")


def written(duties: Duties, event: bus.JobWritten, context: Context, now_s: float) -> tuple[Duties, Effects]:
    """The disk has answered about a job.

    Args:
        duties: before.
        event: the answer.
        context: now.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        nothing.
    Source:
        ours.
    """
    kept = not event.why
    duties = _replace(duties, agenda=agendas.settled(duties.agenda, event.id, written=kept))
    answer = ledgers.Written(event.id) if kept else ledgers.NotWritten(event.id, event.why)
    return _step(duties, answer, context, now_s)


def done(duties: Duties, event: bus.JobDone, context: Context, now_s: float) -> tuple[Duties, Effects]:
    """The shell has carried out a job.

    Args:
        duties: before.
        event: what came of it.
        context: now.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        nothing.
    Source:
        ours.
    """
    return _step(duties, ledgers.Did(event.id, Outcome(event.why, event.result)), context, now_s)


def tick(duties: Duties, event: bus.Timed | None, context: Context, now_s: float) -> tuple[Duties, Effects]:
    """Time went on, or something that conditions look at changed.

    Args:
        duties: before.
        event: what the clocks say; None where nobody asked them.
        context: now.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        nothing.
    Source:
        ours.
    """
    effects: Effects = []
    if event is not None:
        duties = _replace(duties, wall_s=event.wall_s, boot=event.boot)
        if event.wall_s is not None and not duties.seen_s <= event.wall_s < duties.seen_s + SEEN_S:
            effects.append(bus.WriteFact(records.SEEN, records.time_bytes(event.wall_s)))
            duties = _replace(duties, seen_s=event.wall_s)
        # With no room in the ledger an occurrence stays due, for as long as it is open.
        if len(duties.ledger.open) < ledgers.OPEN_MAX - schedule.SCHEDULES_MAX // 4:
            moment = Moment(now_s=now_s, wall_s=event.wall_s, boot=event.boot)
            agenda, submits, firsts = agendas.look(duties.agenda, moment, context.config.device.id)
            duties = _replace(duties, agenda=agenda)
            effects += [bus.WriteMark(name, body) for name, body in firsts.items()]
            for submit in submits:
                duties, more = _step(duties, submit, context, now_s)
                effects += more
    for id_, (until_s, _) in duties.fetching.items():
        if now_s >= until_s:
            duties, more = _step(duties, ledgers.Did(id_, Outcome()), context, now_s)
            effects += more
    duties, more = _step(duties, ledgers.Tick(), context, now_s)
    effects += more
    return _reported(duties, context, effects), effects


def heard(
    duties: Duties, report: ActorReport | TrainerReport, context: Context, now_s: float
) -> tuple[Duties, Effects]:
    """A child told how it is: some jobs wait for that.

    Args:
        duties: before.
        report: of the actor or the trainer.
        context: now.
        now_s: monotonic seconds.

    Returns:
        The state after, and what to do.

    Raises:
        nothing.
    Source:
        ours.
    """
    effects: Effects = []
    if isinstance(report, TrainerReport):
        entry = duties.ledger.open.get(report.order)
        if entry is None or entry.job.order.kind != Kind.TRAIN.value:
            return duties, []
        why = "" if report.order_code in ("done", "nothing-to-do") else f"{report.order_code}: {report.order_told}"
        outcome = Outcome(why, {"code": report.order_code, "told": report.order_told})
        return _step(duties, ledgers.Did(report.order, outcome), context, now_s)
    for id_, watched in duties.watched.items():
        after = watched.seen(report)
        duties = _replace(duties, watched={**duties.watched, id_: after})
        result = after.result()
        if result is not None:
            duties, more = _step(duties, ledgers.Did(id_, Outcome(result=result)), context, now_s)
            effects += more
    return duties, effects


def trainer_here(duties: Duties) -> Effects:
    """A trainer connected: it may not know what was ordered of its predecessor.

    Args:
        duties: now.

    Returns:
        The orders; a trainer that has carried one out already does not do so again.

    Raises:
        nothing.
    Source:
        ours.
    """
    running = [each.job.order for each in duties.ledger.open.values() if each.job.state is State.RUNNING]
    return [bus.Tell("trainer", TrainOrder(order.id, "now")) for order in running if order.kind == Kind.TRAIN.value]


def link_up(duties: Duties, context: Context) -> tuple[Duties, Effects]:
    """There is a broker again, and perhaps one that has forgotten: tell it where everything stands.

    Args:
        duties: before.
        context: now.

    Returns:
        The state after, and what to publish.

    Raises:
        nothing.
    Source:
        ours.
    """
    effects: Effects = []
    jobs = [entry.job for entry in duties.ledger.open.values() if entry.written]
    for job in [*list(duties.ledger.ended.values())[-RESAID:], *jobs]:
        effects.append(_state(job, context.config))
    return _reported(_replace(duties, reported=None), context, effects), effects


def exits_answered(duties: Duties, why: str, context: Context) -> tuple[Duties, Effects]:
    """The actor has answered about the exits that the twin wishes.

    Args:
        duties: before.
        why: it does not run them so; empty when it does.
        context: now.

    Returns:
        The state after, and what to publish.

    Raises:
        nothing.
    Source:
        ours.
    """
    effects: Effects = []
    return _reported(_replace(duties, exits_refused=why), context, effects), effects


def fetch_bytes_per_s(duties: Duties) -> float | None:
    """What teachers may cost while knowledge is fetched.

    Args:
        duties: now.

    Returns:
        Bytes a second, both ways; None while nothing is fetched.

    Raises:
        nothing.
    Source:
        ours.
    """
    return max((each for _, each in duties.fetching.values()), default=None)


def shown(duties: Duties, now_s: float, device: str) -> dict[str, object]:
    """What people and telemetry see of it.

    Args:
        duties: now.
        now_s: monotonic seconds.
        device: id of the device.

    Returns:
        `twin`, `jobs` (those that have not ended, and the newest that have) and `schedules`.

    Raises:
        nothing.
    Source:
        ours.
    """
    moment = Moment(now_s=now_s, wall_s=duties.wall_s, boot=duties.boot)
    epoch, version, _ = duties.twin.rank
    jobs = [_line(entry.job, entry.blocked) for entry in duties.ledger.open.values()]
    jobs += [_line(job) for job in list(duties.ledger.ended.values())[-ENDED_SHOWN:]]
    schedules = {
        name: {
            "kind": each.kind,
            "when": each.cron or f"every {each.every_s:g} s",
            "next_s": schedule.next_s(name, each, duties.agenda.marks.get(name), moment, device),
        }
        for name, each in duties.agenda.schedules.items()
    }
    twin = {"epoch": epoch, "version": version, "refused": duties.twin.refused, "labels": duties.twin.wishes.labels}
    return {"twin": twin, "jobs": jobs, "schedules": schedules, "clock_known": duties.wall_s is not None}


def _line(job: Job, blocked: tuple[str, ...] = ()) -> dict[str, object]:
    waits = "; ".join(blocked)
    return {"id": job.order.id, "kind": job.order.kind, "state": job.state.value, "why": job.why or waits}


def _adopted(duties: Duties, twin: Twin) -> Duties:
    agenda = agendas.planned(duties.agenda, twin.wishes.schedules)
    return _replace(duties, twin=twin, agenda=agenda, exits_refused="")


def _reported(duties: Duties, context: Context, effects: Effects) -> Duties:
    """Publish what the device is, where the broker does not have it."""
    if not context.facts.link_up:
        return _replace(duties, reported=None)
    in_force = twins.configured(context.config, duties.twin.wishes)
    told = twins.report(duties.twin, in_force, paused=context.paused, exits_refused=duties.exits_refused)
    payload = wire.encode(told)
    if payload == duties.reported:
        return duties
    device = context.config.device
    topic = str(wire.Topic(device.fleet, device.id, "twin", "reported"))
    effects.append(bus.Publish(topic, payload, qos=1, retain=True))
    return _replace(duties, reported=payload)


def _step(duties: Duties, event: ledgers.Event, context: Context, now_s: float) -> tuple[Duties, Effects]:
    facts = _replace(context.facts, drained=duties.twin.wishes.drained)
    ledger, wanted = ledgers.step(duties.ledger, event, facts, now_s, duties.wall_s)
    effects: Effects = []
    return _carried_out(_replace(duties, ledger=ledger), wanted, context, now_s, effects), effects


def _carried_out(
    duties: Duties, wanted: list[ledgers.Effect], context: Context, now_s: float, effects: Effects
) -> Duties:
    device = context.config.device
    for effect in wanted:
        match effect:
            case ledgers.Write(job, mark):
                effects.append(bus.WriteJob(job.order.id, records.job_bytes(job), mark))
            case ledgers.Do(job):
                duties = _begun(duties, job, context, now_s, effects)
            case ledgers.Stop(id_):
                duties = _ended(duties, id_)
                effects.append(bus.StopJob(id_))
            case ledgers.Say(job, stored, news):
                if news:
                    told = {**_line(job), "attempt": job.attempt, "origin": job.order.origin, "result": job.result}
                    effects.append(bus.Record("job-ended", told))
                if not stored and job.order.origin:  # the occurrence stays due, and tries again while it is open
                    duties = _replace(duties, agenda=agendas.settled(duties.agenda, job.order.id, written=False))
                elif context.facts.link_up:
                    effects.append(_state(job, context.config, kept=stored))
            case ledgers.Forget(ids, horizon_s):
                fact = (records.HORIZON, records.time_bytes(horizon_s or 0.0))
                effects.append(bus.ForgetJobs(ids, fact))
                for id_ in ids:
                    topic = str(wire.Topic(device.fleet, device.id, "job", "state", id_))
                    effects.append(bus.Publish(topic, b"", qos=1, retain=True))
    return duties


def _begun(duties: Duties, job: Job, context: Context, now_s: float, effects: Effects) -> Duties:
    """Carry a job out, or have it carried out."""
    kind, id_ = Kind(job.order.kind), job.order.id
    args = read_args(kind, job.order.args)
    able = {Kind.TRAIN: context.config.learn.enabled, Kind.FETCH: context.config.teacher.enabled}
    if not able.get(kind, True):
        effects.append(bus.DoJob(id_, kind.value, {}))  # nobody can: the shell says so
        return duties
    if isinstance(args, Evaluate):
        watched = Watched(wanted=args.windows or args.episodes, windows=args.windows > 0)
        return _replace(duties, watched={**duties.watched, id_: watched})
    if isinstance(args, Fetch):
        bytes_per_s = args.bytes_per_s or TAUGHT_FACTOR * context.config.teacher.max_bytes_per_s
        return _replace(duties, fetching={**duties.fetching, id_: (now_s + args.for_s, bytes_per_s)})
    if kind is Kind.TRAIN:
        # One that is not there yet is told when it comes.
        effects += [bus.Tell("trainer", TrainOrder(id_, "now"))] if context.trainer_here else []
        return duties
    effects.append(bus.DoJob(id_, kind.value, dict(job.order.args)))
    return duties


def _ended(duties: Duties, id_: str) -> Duties:
    watched = {other: each for other, each in duties.watched.items() if other != id_}
    fetching = {other: each for other, each in duties.fetching.items() if other != id_}
    return _replace(duties, watched=watched, fetching=fetching)


def _state(job: Job, config: Config, *, kept: bool = True) -> bus.Publish:
    order = job.order
    state = wire.JobState(
        id=order.id,
        kind=order.kind,
        state=job.state.value,
        why=job.why,
        attempt=job.attempt,
        origin=order.origin,
        result=job.result,
    )
    # Under one topic for all jobs of a schedule: a broker keeps its last, and not a year of them.
    topic = str(wire.Topic(config.device.fleet, config.device.id, "job", "state", order.origin or order.id))
    return bus.Publish(topic, wire.encode(state), qos=1, retain=kept, expiry_s=STATE_EXPIRY_S)
