"""Jobs of a device, each with an id that is carried out once: the states as a table, and the machine that walks it.

Three rules keep one id at one effect and one end, wherever the power is cut:

- The next state is on the disk before what it brings about: `step` asks for a `Write`, and only `Written` makes it so.
- Nothing is remembered that is not written. What else counts (a cancel, an outcome, time) is a fact that is looked at
  again at every event, so a write that failed is simply tried again.
- Whoever carries out a `Do` leaves evidence under the job's id together with the effect. A ledger that is opened anew
  is given that evidence, and begins a running job again only where there is none.

Ended jobs are remembered up to ENDED_MAX. The horizon says which forgotten ones there were: a command that was issued
before it might be one of them, and is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from edgert.fleet.kinds import RULES, Kind, Lane, read_args
from edgert.fleet.when import Facts, When, unmet

OPEN_MAX, ENDED_MAX = 32, 256
RECEIVED_S = 60.0  # judging takes no time: what stays received so long cannot be written
VALID_S = 86_400.0
HOLD_S = 5.0
"""After a write that failed; a full disk is not mended sooner by asking more often."""
OPENINGS_MAX = 64
"""A device that goes down more often than a job may wait would otherwise keep it for ever."""
EARLY_S = 86_400.0
"""A clock that is wrong by more than this at the sender's end could silence all others by way of the horizon."""


class State(enum.Enum):
    """Where a job stands; the last five are the end."""

    RECEIVED = "received"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


class Cause(enum.Enum):
    """What moves a job on."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    STARTED = "started"
    FINISHED = "finished"
    FAULT = "fault"
    INTERRUPTED = "interrupted"
    CANCEL = "cancel"
    EXPIRY = "expiry"
    TIMEOUT = "timeout"


TABLE: Mapping[tuple[State, Cause], State] = {
    (State.RECEIVED, Cause.ACCEPTED): State.SCHEDULED,
    (State.RECEIVED, Cause.REFUSED): State.REFUSED,
    (State.RECEIVED, Cause.CANCEL): State.CANCELLED,
    (State.RECEIVED, Cause.EXPIRY): State.EXPIRED,
    (State.RECEIVED, Cause.TIMEOUT): State.FAILED,
    (State.SCHEDULED, Cause.STARTED): State.RUNNING,
    (State.SCHEDULED, Cause.REFUSED): State.REFUSED,
    (State.SCHEDULED, Cause.CANCEL): State.CANCELLED,
    (State.SCHEDULED, Cause.EXPIRY): State.EXPIRED,
    (State.SCHEDULED, Cause.TIMEOUT): State.EXPIRED,
    (State.RUNNING, Cause.INTERRUPTED): State.RUNNING,
    (State.RUNNING, Cause.FINISHED): State.DONE,
    (State.RUNNING, Cause.FAULT): State.FAILED,
    (State.RUNNING, Cause.CANCEL): State.CANCELLED,
    (State.RUNNING, Cause.TIMEOUT): State.FAILED,
}
"""(state, cause) -> state after. What is not here moves nothing: an end is the end."""

ENDS = frozenset(State) - {state for state, _ in TABLE}


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants done.

    Attributes:
        id: its name for ever, and the key under which it is done once.
        kind: what it is, as told; an unknown one is refused by name.
        args: as told.
        issued_s: seconds since the Unix epoch, by the sender's clock.
        not_after_s: not to be started later than this, likewise; None where it does not matter.
        valid_s: how long it may wait from its arrival on, by a clock that nobody sets; None is a day.
        timeout_s: patience with it once it runs; None is the kind's own.
        when: what must hold before it starts.
        origin: the schedule it comes from; empty for a command.
    """

    id: str
    kind: str
    args: dict[str, object] = {}
    issued_s: float = 0.0
    not_after_s: float | None = None
    valid_s: float | None = None
    timeout_s: float | None = None
    when: When = When()
    origin: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job, as it is written down.

    Attributes:
        order: what is wanted; a cancel that came before its job leaves one without a kind.
        number: counts arrivals; jobs start in this order.
        state: where it stands.
        attempt: how often it was begun.
        openings: how often it was found unfinished by a supervisor that started.
        why: of the state, in words; empty where the state says it all.
        result: what came of it.
        told: its end was put among the events that are not lost.
    """

    order: Order
    number: int
    state: State = State.RECEIVED
    attempt: int = 0
    openings: int = 0
    why: str = ""
    result: dict[str, object] = {}
    told: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """What came of an effect: `why` empty for success."""

    why: str = ""
    result: dict[str, object] = {}


class Submit(msgspec.Struct, frozen=True):
    """A command arrived, perhaps again; or a schedule is due, and then its name and mark are written too."""

    order: Order
    mark: tuple[str, bytes] | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Somebody wants this job not to be, perhaps before it has arrived."""

    id: str
    issued_s: float = 0.0


class Written(msgspec.Struct, frozen=True):
    """The disk has what the last `Write` of this job said."""

    id: str


class NotWritten(msgspec.Struct, frozen=True):
    """It has not."""

    id: str
    why: str


class Did(msgspec.Struct, frozen=True):
    """An effect came to its end."""

    id: str
    outcome: Outcome


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time, or the facts changed."""


Event = Submit | Cancel | Written | NotWritten | Did | Tick


class Write(msgspec.Struct, frozen=True):
    """Effect: put this on the disk, whole or not at all, then say `Written` or `NotWritten`."""

    job: Job
    mark: tuple[str, bytes] | None = None


class Do(msgspec.Struct, frozen=True):
    """Effect: carry out this job, or go on with it, and say `Did`; evidence is left together with the effect."""

    job: Job


class Stop(msgspec.Struct, frozen=True):
    """Effect: whatever is being done under this id is not wanted any more."""

    id: str


class Say(msgspec.Struct, frozen=True):
    """Effect: tell the fleet where this job stands.

    Attributes:
        job: as on the disk.
        stored: False: it was turned away, and nothing is remembered.
        news: it has ended, and no event that is kept until it was collected says so yet. The `Write` that follows notes
            that one does: a power cut between the two tells it twice, and the same both times.
    """

    job: Job
    stored: bool = True
    news: bool = False


class Forget(msgspec.Struct, frozen=True):
    """Effect: these ended jobs need not be kept any more; `horizon_s` is written in the same stroke."""

    ids: tuple[str, ...]
    horizon_s: float | None


Effect = Write | Do | Stop | Say | Forget


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has not ended, with the facts that no disk needs to know.

    Attributes:
        job: as on the disk.
        since_s: monotonic, of its state.
        written: the disk knows it at all.
        wanted: what is being written; None when nothing is.
        mark: of the schedule, to be written with it.
        hold_s: after a failed write, when to try again.
        cancel: somebody wants it away.
        outcome: of its effect.
        interrupted: it was running when the supervisor went down, and nobody knows of it any more.
        blocked: why it has not started.
    """

    job: Job
    since_s: float
    written: bool = True
    wanted: Job | None = None
    mark: tuple[str, bytes] | None = None
    hold_s: float | None = None
    cancel: bool = False
    outcome: Outcome | None = None
    interrupted: bool = False
    blocked: tuple[str, ...] = ()


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """All jobs of a device.

    Attributes:
        open: id -> those that have not ended, by arrival.
        ended: id -> the newest that have, by the time they were issued when they are forgotten.
        horizon_s: every command that was forgotten had been issued by then; None while none was.
        number: of the newest.
    """

    open: dict[str, Entry] = {}
    ended: dict[str, Job] = {}
    horizon_s: float | None = None
    number: int = 0


class Found(msgspec.Struct, frozen=True):
    """What a new supervisor finds of a running job: its evidence, or that somebody is still at it."""

    outcome: Outcome | None = None
    alive: bool = False


_replace = msgspec.structs.replace


def open_ledger(
    jobs: Iterable[Job], horizon_s: float | None, found: Mapping[str, Found], now_s: float
) -> tuple[Ledger, list[Effect]]:
    """The ledger as a supervisor finds it on its disk.

    Args:
        jobs: all that are written.
        horizon_s: as written.
        found: id -> evidence, for the running ones that left any.
        now_s: monotonic seconds.

    Returns:
        The ledger; and what to do: count this start where a job still waits, and stop what is at work for one that
        has ended. The first `Tick` moves every unfinished job on.

    Raises:
        nothing.
    Source:
        ours, after the boot reconciliation of thin-edge.io's workflows: every job that has not ended gets an end.
    """
    opened: dict[str, Entry] = {}
    ended: dict[str, Job] = {}
    effects: list[Effect] = []
    number = 0
    for job in sorted(jobs, key=lambda job: job.number):
        number = max(number, job.number)
        evidence = found.get(job.order.id, Found())
        if job.state in ENDS:
            ended[job.order.id] = _told(job, effects) if not job.told else job
            if evidence.alive:
                effects.append(Stop(job.order.id))
            continue
        if job.state is State.RUNNING:
            interrupted = evidence.outcome is None and not evidence.alive
            entry = Entry(job=job, since_s=now_s, outcome=evidence.outcome, interrupted=interrupted)
        else:
            counted = _replace(job, openings=job.openings + 1)
            effects.append(Write(counted))
            entry = Entry(job=job, since_s=now_s, wanted=counted)
        opened[job.order.id] = entry
    return Ledger(open=opened, ended=ended, horizon_s=horizon_s, number=number), effects


def step(ledger: Ledger, event: Event, facts: Facts, now_s: float, wall_s: float | None) -> tuple[Ledger, list[Effect]]:
    """Move the jobs on by one event.

    Args:
        ledger: the state before.
        event: what happened.
        facts: of the board and the link, for the conditions.
        now_s: monotonic seconds.
        wall_s: seconds since the Unix epoch; None while the clock cannot be trusted.

    Returns:
        The state after, and what to do, in order.

    Raises:
        nothing.
    Source:
        ours: the workflow engine of thin-edge.io persists before it launches; here nothing else is possible.
    """
    effects: list[Effect] = []
    match event:
        case Submit():
            ledger = _submit(ledger, event, now_s, wall_s, effects)
        case Cancel():
            ledger = _cancel(ledger, event, now_s, effects)
        case Written(id_) if id_ in ledger.open:
            ledger = _written(ledger, ledger.open[id_], now_s, effects)
        case NotWritten(id_, why) if id_ in ledger.open:
            ledger = _not_written(ledger, ledger.open[id_], why, now_s, effects)
        case Did(id_, outcome) if id_ in ledger.open:
            entry = ledger.open[id_]
            if entry.job.state is State.RUNNING and entry.outcome is None:
                ledger = _put(ledger, _replace(entry, outcome=outcome))
    busy = {_lane(entry.job) for entry in ledger.open.values() if State.RUNNING in (entry.job.state, _state(entry))}
    for entry in ledger.open.values():
        ledger = _advance(ledger, entry, busy, facts, now_s, wall_s, effects)
    return ledger, effects


def _submit(ledger: Ledger, event: Submit, now_s: float, wall_s: float | None, effects: list[Effect]) -> Ledger:
    order = event.order
    known = ledger.open.get(order.id)
    if known is not None:
        if event.mark is not None:
            effects.append(Write(known.wanted or known.job, event.mark))
        return _said(ledger, known, effects)
    if order.id in ledger.ended:
        job = ledger.ended[order.id]
        effects.append(Say(job) if event.mark is None else Write(job, event.mark))
        return ledger
    if not order.origin and _forgotten(ledger, order.issued_s):
        return _turned_away(ledger, order, "too old to know whether it was done before: use a new id", effects)
    if len(ledger.open) >= OPEN_MAX:
        return _turned_away(ledger, order, f"{OPEN_MAX} jobs wait or run: send it again later", effects)
    if wall_s is not None and order.issued_s > wall_s + EARLY_S:
        return _turned_away(ledger, order, "issued in the future: the sender's clock or this one is wrong", effects)
    number = ledger.number + 1
    job = Job(order=order, number=number)
    effects.append(Write(job, event.mark))
    entry = Entry(job=job, since_s=now_s, written=False, wanted=job, mark=event.mark)
    return _put(_replace(ledger, number=number), entry)


def _said(ledger: Ledger, entry: Entry, effects: list[Effect]) -> Ledger:
    effects += [Say(entry.job)] if entry.written else []
    return ledger


def _forgotten(ledger: Ledger, issued_s: float) -> bool:
    """Might this be a command that was done and forgotten?"""
    return ledger.horizon_s is not None and issued_s <= ledger.horizon_s


def _turned_away(ledger: Ledger, order: Order, why: str, effects: list[Effect]) -> Ledger:
    effects.append(Say(Job(order=order, number=0, state=State.REFUSED, why=why), stored=False))
    return ledger


def _cancel(ledger: Ledger, event: Cancel, now_s: float, effects: list[Effect]) -> Ledger:
    """Take note; of a job that has not come yet as well, as nothing says that messages come in their order."""
    known = ledger.open.get(event.id)
    if known is not None:
        return _put(ledger, _replace(known, cancel=True))
    if event.id in ledger.ended:
        effects.append(Say(ledger.ended[event.id]))
        return ledger
    order = Order(id=event.id, kind="", issued_s=event.issued_s)
    if _forgotten(ledger, event.issued_s):
        return _turned_away(ledger, order, "too old to know whether it was done before", effects)
    if len(ledger.open) >= OPEN_MAX:
        return _turned_away(ledger, order, f"{OPEN_MAX} jobs wait or run: send it again later", effects)
    number = ledger.number + 1
    job = Job(order=order, number=number, state=State.CANCELLED, why="cancelled before it came")
    effects.append(Write(job))
    return _put(_replace(ledger, number=number), Entry(job=job, since_s=now_s, written=False, wanted=job))


def _written(ledger: Ledger, entry: Entry, now_s: float, effects: list[Effect]) -> Ledger:
    job = entry.wanted
    if job is None:
        return ledger
    if job.state in ENDS:
        job = _told(job, effects)
        if entry.job.state is State.RUNNING:
            effects.append(Stop(job.order.id))
        others = {id_: other for id_, other in ledger.open.items() if id_ != job.order.id}
        return _bounded(_replace(ledger, open=others, ended={**ledger.ended, job.order.id: job}), effects)
    effects.append(Say(job))
    if job.state is State.RUNNING:
        effects.append(Do(job))
    entry = _replace(entry, job=job, wanted=None, written=True, mark=None, since_s=now_s)
    return _put(ledger, _replace(entry, interrupted=False, hold_s=None, blocked=()))


def _told(job: Job, effects: list[Effect]) -> Job:
    """Tell of an end, and note that it was told."""
    effects += [Say(job, news=True), Write(_replace(job, told=True))]
    return _replace(job, told=True)


def _not_written(ledger: Ledger, entry: Entry, why: str, now_s: float, effects: list[Effect]) -> Ledger:
    if not entry.written:  # it was never promised to anyone
        others = {id_: other for id_, other in ledger.open.items() if id_ != entry.job.order.id}
        why = f"it cannot be written down: {why}"
        return _turned_away(_replace(ledger, open=others), entry.job.order, why, effects)
    return _put(ledger, _replace(entry, wanted=None, hold_s=now_s + HOLD_S))


def _bounded(ledger: Ledger, effects: list[Effect]) -> Ledger:
    surplus = len(ledger.ended) - ENDED_MAX
    if surplus <= 0:
        return ledger
    # Oldest issue first, so that the horizon rises no further than it must.
    gone = sorted(ledger.ended.values(), key=lambda job: (job.order.issued_s, job.number))[:surplus]
    commands = [job.order.issued_s for job in gone if not job.order.origin]
    horizon_s = max([*commands, *([] if ledger.horizon_s is None else [ledger.horizon_s])], default=None)
    ids = tuple(job.order.id for job in gone)
    effects.append(Forget(ids, horizon_s))
    kept = {id_: job for id_, job in ledger.ended.items() if id_ not in ids}
    return _replace(ledger, ended=kept, horizon_s=horizon_s)


def _advance(
    ledger: Ledger,
    entry: Entry,
    busy: set[Lane | None],
    facts: Facts,
    now_s: float,
    wall_s: float | None,
    effects: list[Effect],
) -> Ledger:
    """Look at one job's facts, and have its next state written if they call for one."""
    if entry.wanted is not None or (entry.hold_s is not None and now_s < entry.hold_s):
        return ledger
    job, lane = entry.job, _lane(entry.job)
    moved = _cause(entry, facts, now_s, wall_s)
    if isinstance(moved, Cause):
        cause, why = moved, ""
    elif moved[0] is None:
        return _held_up(ledger, entry, moved[1], effects)
    else:
        cause, why = moved[0], "; ".join(moved[1])
    after = TABLE.get((job.state, cause))
    if after is None:
        return ledger
    attempt = job.attempt
    if after is State.RUNNING:
        if cause is Cause.STARTED and lane in busy:
            return _held_up(ledger, entry, ("another job runs",), effects)
        busy.add(lane)
        attempt += 1
    result = entry.outcome.result if entry.outcome is not None and cause in (Cause.FINISHED, Cause.FAULT) else {}
    wanted = _replace(job, state=after, why=why, attempt=attempt, result=result)
    effects.append(Write(wanted))
    return _put(ledger, _replace(entry, wanted=wanted))


def _held_up(ledger: Ledger, entry: Entry, blocked: tuple[str, ...], effects: list[Effect]) -> Ledger:
    """Note what a job waits for; the fleet is told when that is something else, not when a reading is."""
    if blocked == entry.blocked:
        return ledger
    if [why.partition(",")[0] for why in blocked] != [why.partition(",")[0] for why in entry.blocked]:
        effects.append(Say(_replace(entry.job, why="waits: " + "; ".join(blocked) if blocked else entry.job.why)))
    return _put(ledger, _replace(entry, blocked=blocked))


def _cause(
    entry: Entry, facts: Facts, now_s: float, wall_s: float | None
) -> Cause | tuple[Cause | None, tuple[str, ...]]:
    """What moves a job on now and why; or (None, what holds it up)."""
    job, order = entry.job, entry.job.order
    lasted_s = now_s - entry.since_s
    if job.state is State.RUNNING:
        return _running(entry, lasted_s)
    if entry.cancel:
        return Cause.CANCEL
    if wall_s is not None and order.not_after_s is not None and wall_s > order.not_after_s:
        return Cause.EXPIRY, ("its time is over",)
    if job.openings > OPENINGS_MAX:
        return Cause.EXPIRY, (f"the device started {job.openings} times while it waited",)
    if job.state is State.RECEIVED:
        if lasted_s > RECEIVED_S:
            return Cause.TIMEOUT, ("it could not be judged",)
        why = refusal(order)
        return (Cause.REFUSED, (why,)) if why else Cause.ACCEPTED
    if lasted_s > (VALID_S if order.valid_s is None else order.valid_s):
        return Cause.TIMEOUT, ("waited too long", *entry.blocked)
    if why := refusal(order):  # written by a version that knew the kind
        return Cause.REFUSED, (why,)
    blocked = unmet(order.when, facts)
    if not facts.accept_jobs and RULES[Kind(order.kind)].heavy:
        blocked = (*blocked, "the governor has no room")
    if facts.drained:
        blocked = (*blocked, "drained")
    return (None, blocked) if blocked else Cause.STARTED


def _running(entry: Entry, lasted_s: float) -> Cause | tuple[Cause | None, tuple[str, ...]]:
    job = entry.job
    if why := refusal(job.order):  # begun by a version that knew the kind
        return Cause.FAULT, (why,)
    rules = RULES[Kind(job.order.kind)]
    timeout_s = rules.timeout_s if job.order.timeout_s is None else job.order.timeout_s
    if entry.outcome is not None:  # before a cancel: what is done cannot be undone by not wanting it
        return (Cause.FAULT, (entry.outcome.why,)) if entry.outcome.why else Cause.FINISHED
    if entry.cancel:
        return Cause.CANCEL
    if lasted_s > timeout_s:
        return Cause.TIMEOUT, (f"took more than {timeout_s:g} s",)
    if entry.interrupted:
        if job.attempt >= rules.attempts:
            return Cause.FAULT, (f"the device went down in the middle of it, {job.attempt} times",)
        return Cause.INTERRUPTED, ("begun again: the device had gone down in the middle of it",)
    return None, ()


def refusal(order: Order) -> str:
    """Why an order can never be carried out, in words.

    Args:
        order: what is wanted.

    Returns:
        Empty when it can.

    Raises:
        nothing.
    Source:
        ours: one judge for the device and for the operator's command line.
    """
    try:
        kind = Kind(order.kind)
    except ValueError:
        return f"kind {order.kind[:40]!r}: there is {', '.join(kind.value for kind in Kind)}"
    for name, value_s in (("valid_s", order.valid_s), ("timeout_s", order.timeout_s)):
        if value_s is not None and not 0 < value_s <= 366 * 86_400:
            return f"{name} {value_s}: seconds, more than 0, a year at most"
    args = read_args(kind, order.args)
    return args if isinstance(args, str) else ""


def _put(ledger: Ledger, entry: Entry) -> Ledger:
    return _replace(ledger, open={**ledger.open, entry.job.order.id: entry})


def _state(entry: Entry) -> State:
    return entry.job.state if entry.wanted is None else entry.wanted.state


def _lane(job: Job) -> Lane | None:
    try:
        return RULES[Kind(job.order.kind)].lane
    except ValueError:
        return None
