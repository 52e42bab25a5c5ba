"""A node's own books: what it holds for whom. They alone decide what may start here; shields only ask.

So no two shields can promise the same room twice, whatever was lost, doubled, overtaken or dead on the way.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from edgert.placement.load import Capacity, Count, Load, NodeId, Resources, overloads, total
from edgert.placement.protocol import Commit, Held, Release, Report, Reserve, Send, Tick, Times, Vote

MEMORY_LEASES = 8
"""Attempts are remembered for so many leases after their end: a message that comes later than that starts nothing
either, because nothing is reserved for it."""


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """What a node keeps for one job.

    Attributes:
        attempt: of the job.
        epoch: of the shield that reserved; what another shield found for the same attempt may be other parts.
        owner: of the job.
        parts: (part, amount) each.
        until_s: when it lapses.
        committed: the parts may run.
    """

    attempt: Count
    epoch: Count
    owner: NodeId
    parts: tuple[tuple[int, Resources], ...]
    until_s: float
    committed: bool


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a keeper; never changed, only replaced.

    Attributes:
        node, session: whose, and of which start of its daemon.
        capacity: now; it may shrink below what is held, and then nothing more is taken in.
        holds: job -> what is kept for it.
        ended: job -> (newest attempt that is over, until when that is remembered).
        epochs: region -> highest epoch of its shield seen.
        seq: of the last report.
        report_s: when the next one is due.
    """

    node: str
    session: int
    capacity: Capacity
    holds: dict[str, Hold] = {}
    ended: dict[str, tuple[int, float]] = {}
    epochs: dict[str, int] = {}
    seq: int = 0
    report_s: float = 0.0


class Start(msgspec.Struct, frozen=True):
    """To the daemon: these parts may run from now on."""

    job: str
    attempt: int
    owner: str
    parts: tuple[int, ...]


class Stop(msgspec.Struct, frozen=True):
    """To the daemon: nothing of this attempt may run any more."""

    job: str
    attempt: int


Done: TypeAlias = list[Send | Start | Stop]


def used(books: Books) -> Resources:
    """What is taken, reserved or running.

    Args:
        books: of the node.

    Returns:
        The sum of all holds.

    Raises:
        Nothing.
    Source:
        ours: a reservation counts in full; a vote is a promise.
    """
    return total([amount for hold in books.holds.values() for _, amount in hold.parts])


def report(books: Books) -> Load:
    """What the node says of itself.

    Args:
        books: of the node.

    Returns:
        The load, with the number of the last report.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return Load(
        node=books.node,
        session=books.session,
        seq=books.seq,
        capacity=books.capacity,
        used=used(books),
        holds=tuple((job, hold.attempt) for job, hold in books.holds.items()),
    )


def step(
    books: Books, event: Tick | Reserve | Commit | Release, now_s: float, times: Times, listeners: tuple[str, ...] = ()
) -> tuple[Books, Done]:
    """Take one event.

    Args:
        books: of the node.
        event: time passed, or a message that came.
        now_s: by the node's monotonic clock.
        times: of the fleet.
        listeners: to whom reports go.

    Returns:
        The books after it, and what to send, start and stop.

    Raises:
        Nothing: a message that fits nothing changes nothing.
    Source:
        two-phase commit with presumed abort: Mohan, Lindsay & Obermarck 1986; leases: Gray & Cheriton 1989; fencing by
        epoch and attempt: ours.
    """
    books, done = _lapse(books, now_s)
    if isinstance(event, Reserve):
        books, more = _reserve(books, event, now_s, times)
    elif isinstance(event, Commit):
        books, more = _commit(books, event, now_s, times)
    elif isinstance(event, Release):
        books, more = _end(books, event.job, event.attempt, now_s + MEMORY_LEASES * times.lease_s)
    else:
        more = []
        if now_s >= books.report_s and listeners:
            books = msgspec.structs.replace(books, seq=books.seq + 1, report_s=now_s + times.beat_s)
            more = [Send(each, Report(report(books))) for each in listeners]
    return books, done + more


def _lapse(books: Books, now_s: float) -> tuple[Books, Done]:
    over = [(job, hold) for job, hold in books.holds.items() if hold.until_s <= now_s]
    forgotten = [job for job, (_, until_s) in books.ended.items() if until_s <= now_s]
    if not over and not forgotten:
        return books, []
    holds = {job: hold for job, hold in books.holds.items() if hold.until_s > now_s}
    ended = {job: each for job, each in books.ended.items() if job not in forgotten}
    done: Done = [Stop(job, hold.attempt) for job, hold in over if hold.committed]
    return msgspec.structs.replace(books, holds=holds, ended=ended), done


def _end(books: Books, job: str, attempt: int, until_s: float) -> tuple[Books, Done]:
    known = books.ended.get(job, (-1, 0.0))
    ended = {**books.ended, job: (max(attempt, known[0]), max(until_s, known[1]))}
    hold = books.holds.get(job)
    if hold is None or hold.attempt > attempt:
        return msgspec.structs.replace(books, ended=ended), []
    holds = {name: each for name, each in books.holds.items() if name != job}
    done: Done = [Stop(job, hold.attempt)] if hold.committed else []
    return msgspec.structs.replace(books, holds=holds, ended=ended), done


def _reserve(books: Books, asked: Reserve, now_s: float, times: Times) -> tuple[Books, Done]:
    done: Done = []
    lacks: tuple[str, ...] = ()
    hold = books.holds.get(asked.job)
    if asked.epoch < books.epochs.get(asked.region, 0):
        lacks = ("stale_epoch",)
    elif asked.attempt <= books.ended.get(asked.job, (-1, 0.0))[0] or (hold and hold.attempt > asked.attempt):
        lacks = ("superseded",)
    elif hold is not None and hold.attempt == asked.attempt and (hold.committed or hold.epoch >= asked.epoch):
        # Asked again, because the answer was lost: it is kept already, and its time runs on.
        lacks = () if hold.epoch == asked.epoch else ("superseded",)
    else:
        if hold is not None and hold.attempt == asked.attempt:  # by a shield that was replaced
            books = msgspec.structs.replace(
                books, holds={name: each for name, each in books.holds.items() if name != asked.job}
            )
        elif hold is not None:  # the owner has given the older attempt up, or it would not ask for another
            books, done = _end(books, asked.job, hold.attempt, now_s + MEMORY_LEASES * times.lease_s)
        amount = total([used(books), *(each for _, each in asked.parts)])
        lacks = overloads(books.capacity, amount)
        if not lacks:
            new = Hold(asked.attempt, asked.epoch, asked.owner, asked.parts, now_s + times.lease_s, False)
            books = msgspec.structs.replace(books, holds={**books.holds, asked.job: new})
    if "stale_epoch" not in lacks:
        books = msgspec.structs.replace(books, epochs={**books.epochs, asked.region: asked.epoch})
    books = msgspec.structs.replace(books, seq=books.seq + 1)
    vote = Vote(
        region=asked.region,
        epoch=asked.epoch,
        job=asked.job,
        attempt=asked.attempt,
        ok=not lacks,
        lacks=lacks,
        load=report(books),
    )
    return books, [*done, Send(asked.shield, vote)]


def _commit(books: Books, asked: Commit, now_s: float, times: Times) -> tuple[Books, Done]:
    hold = books.holds.get(asked.job)
    ok = hold is not None and (hold.attempt, hold.epoch, hold.owner) == (asked.attempt, asked.epoch, asked.owner)
    done: Done = [Send(asked.owner, Held(node=books.node, job=asked.job, attempt=asked.attempt, ok=ok))]
    if ok and hold is not None:
        if not hold.committed:
            parts = tuple(part for part, _ in hold.parts if part >= 0)
            if parts:
                done.append(Start(asked.job, asked.attempt, asked.owner, parts))
        new = msgspec.structs.replace(hold, until_s=now_s + times.lease_s, committed=True)
        books = msgspec.structs.replace(books, holds={**books.holds, asked.job: new})
    return books, done
