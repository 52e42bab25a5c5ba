"""What the supervisor's brain hears and what it wants: the two unions, `Input` and `Effect`, are the whole bus."""

from __future__ import annotations

import msgspec

from edgert.values import Answer, Ask, Budget, Note, Readings, Role, Told, TrainOrder


class Sensed(msgspec.Struct, frozen=True):
    """One look at the board and at the spool."""

    readings: Readings


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
    """The spool changed: its lowest and its newest sequence number."""

    first: int
    last: int


class Refused(msgspec.Struct, frozen=True):
    """The link took no event from `seq` on."""

    seq: int


class Tick(msgspec.Struct, frozen=True):
    """Nothing but time."""


Input = (
    Sensed
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


class Publish(msgspec.Struct, frozen=True):
    """Send now or never; what must not be lost is `Record`ed instead."""

    topic: str
    payload: bytes
    qos: int = 0
    expiry_s: int | None = None
    correlation: bytes | None = None
    response_topic: str | None = None


class SendEvents(msgspec.Struct, frozen=True):
    """Publish the spooled events `after < seq <= up_to`, each saying `first`."""

    after: int
    up_to: int
    first: int


class ForgetEvents(msgspec.Struct, frozen=True):
    """Drop spooled events up to and including this one."""

    up_to: int


class Record(msgspec.Struct, frozen=True):
    """Append an event to the spool, then say `Stored`."""

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


class Notify(msgspec.Struct, frozen=True):
    """Tell systemd: ready, alive, and one line of status."""

    ready: bool
    alive: bool
    status: str


Effect = Publish | SendEvents | ForgetEvents | Record | Start | Kill | Tell | TellAsker | Commit | Pause | Notify
