"""What the supervisor's brain hears and what it wants: the two unions, `Input` and `Effect`, are the whole bus."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgert import offers
from edgert.values import (
    Answer,
    Ask,
    Budget,
    Carried,
    Clock,
    Note,
    Prices,
    Readings,
    Role,
    Swap,
    Told,
    TrainOrder,
)


class Sensed(msgspec.Struct, frozen=True):
    """One look at the board.

    Attributes:
        readings: of it.
        clock: on the wall; None while it is not set.
        carried_bytes: over the link so far.
        own_bytes: resident, of the supervisor.
        waited_s: role -> seconds that a child which is silent has waited for a processor in all its life.
    """

    readings: Readings
    clock: Clock | None = None
    carried_bytes: int | None = None
    own_bytes: int = 0
    waited_s: Mapping[Role, float] = {}


class Priced(msgspec.Struct, frozen=True):
    """What a network can be run as, from its bundle; None when that cannot be read."""

    network: Swap
    prices: Prices | None


class Spawned(msgspec.Struct, frozen=True):
    """The shell started a child."""

    role: Role
    pid: int


class Exited(msgspec.Struct, frozen=True):
    """A child is gone; `code` is negative for a signal, None when it was not ours to wait for."""

    role: Role
    pid: int
    code: int | None


class Connected(msgspec.Struct, frozen=True):
    """A child said hello: one that we started, or one that outlived our predecessor."""

    role: Role
    pid: int


class Heard(msgspec.Struct, frozen=True):
    """A child told us something."""

    role: Role
    told: Told


class TrainOrdered(msgspec.Struct, frozen=True):
    """A person said what is to become of the training."""

    order: TrainOrder


class AskersHere(msgspec.Struct, frozen=True):
    """Which programs of the user's may ask teachers: all that are connected, by number."""

    numbers: tuple[int, ...]


class Asked(msgspec.Struct, frozen=True):
    """Such a program asked something."""

    number: int
    ask: Ask


class LinkUp(msgspec.Struct, frozen=True):
    """The session with the broker stands."""


class LinkDown(msgspec.Struct, frozen=True):
    """The session with the broker ended, with a named reason."""

    reason: str


class Received(msgspec.Struct, frozen=True):
    """The broker delivered something."""

    topic: str
    payload: bytes
    correlation: bytes | None
    retained: bool = False  # it was published before we subscribed


class Stored(msgspec.Struct, frozen=True):
    """A stream of the spool, by its name, may have changed: its lowest and its newest sequence number."""

    stream: str
    first: int
    last: int


class Refused(msgspec.Struct, frozen=True):
    """The link took no event of a stream from `seq` on."""

    stream: str
    seq: int


class Timed(msgspec.Struct, frozen=True):
    """What the clocks say: Unix time, None while it cannot be trusted; and which start of the machine this is."""

    wall_s: float | None
    boot: str


class JobWritten(msgspec.Struct, frozen=True):
    """The disk answered about the last `WriteJob` of this job; `why` is empty when it has it."""

    id: str
    why: str = ""


class JobDone(msgspec.Struct, frozen=True):
    """What came of a `DoJob`; `why` is empty for success."""

    id: str
    why: str = ""
    result: dict[str, object] = {}


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time.

    Attributes:
        listened_s: monotonic time up to which all that was said has been heard before this; None means now.
    """

    listened_s: float | None = None


Input = (
    Sensed
    | Priced
    | Spawned
    | Exited
    | Connected
    | Heard
    | TrainOrdered
    | AskersHere
    | Asked
    | LinkUp
    | LinkDown
    | Received
    | Stored
    | Refused
    | Tick
)


class PolicyTold(msgspec.Struct, frozen=True):
    """What became of a policy on its way, see `guard`."""

    told: offers.Told


FleetInput = Timed | JobWritten | JobDone
"""What only the fleet's duties hear, see `device`."""


class Publish(msgspec.Struct, frozen=True):
    """Send now or never; what must not be lost is `Record`ed instead."""

    topic: str
    payload: bytes
    qos: int = 0
    expiry_s: int | None = None
    correlation: bytes | None = None
    response_topic: str | None = None
    retain: bool = False


class SendEvents(msgspec.Struct, frozen=True):
    """Publish the spooled events `after < seq <= up_to` of a stream, each saying `first`."""

    stream: str
    after: int
    up_to: int
    first: int


class ForgetEvents(msgspec.Struct, frozen=True):
    """Drop spooled events of a stream up to and including this one."""

    stream: str
    up_to: int


class Record(msgspec.Struct, frozen=True):
    """Append an event to its stream of the spool, then say `Stored`."""

    name: str
    detail: dict[str, object]


class Start(msgspec.Struct, frozen=True):
    """Start a child."""

    role: Role


class Kill(msgspec.Struct, frozen=True):
    """Kill a child that hangs."""

    role: Role
    pid: int


class Tell(msgspec.Struct, frozen=True):
    """Tell a child something; lost when it is not there."""

    role: Role
    told: Told


class TellAsker(msgspec.Struct, frozen=True):
    """Tell a program of the user's something; lost when it is not there."""

    number: int
    told: Answer | Budget


class Commit(msgspec.Struct, frozen=True):
    """Note durably which network acts, so that a restarted actor begins with it."""

    note: Note


class Pause(msgspec.Struct, frozen=True):
    """Note durably that training is paused, or that it no longer is."""

    paused: bool


class Price(msgspec.Struct, frozen=True):
    """Read what a network can be run as, then say `Priced`."""

    network: Swap


class Carry(msgspec.Struct, frozen=True):
    """Note durably what the link carried today, for a successor."""

    carried: Carried


class WriteJob(msgspec.Struct, frozen=True):
    """Put a job's record on the disk, and the mark (name, record) of the schedule it comes from; say `JobWritten`."""

    id: str
    body: bytes
    mark: tuple[str, bytes] | None = None


class ForgetJobs(msgspec.Struct, frozen=True):
    """Drop the records of these jobs, and note `fact` (name, record) in the same stroke."""

    ids: tuple[str, ...]
    fact: tuple[str, bytes]


class WriteMark(msgspec.Struct, frozen=True):
    """Put the mark of a schedule on the disk, when that can be done."""

    name: str
    body: bytes


class WriteFact(msgspec.Struct, frozen=True):
    """Put a fact beside the jobs on the disk, when that can be done."""

    name: str
    body: bytes


class DoJob(msgspec.Struct, frozen=True):
    """Carry out a job, or go on with it, and say `JobDone`. Evidence is left under its id together with the effect."""

    id: str
    kind: str
    args: dict[str, object]


class StopJob(msgspec.Struct, frozen=True):
    """Whatever is being done under this id is not wanted any more."""

    id: str


class Notify(msgspec.Struct, frozen=True):
    """Tell systemd: ready, alive, and one line of status."""

    ready: bool
    alive: bool
    status: str


class PolicyDo(msgspec.Struct, frozen=True):
    """Do something about a policy on its way, then say `PolicyTold` where that is expected."""

    do: offers.Do


class Reconnect(msgspec.Struct, frozen=True):
    """Give the connection to the broker up, and make another."""

    why: str


class ShowLog(msgspec.Struct, frozen=True):
    """Publish the last lines of the log as the reply to the command of this id."""

    id: str
    lines: int


FleetEffect = WriteJob | ForgetJobs | WriteMark | WriteFact | DoJob | StopJob
Effect = (
    FleetEffect
    | PolicyDo
    | Publish
    | SendEvents
    | ForgetEvents
    | Record
    | Start
    | Kill
    | Tell
    | TellAsker
    | Commit
    | Pause
    | Price
    | Carry
    | Notify
    | Reconnect
    | ShowLog
)
