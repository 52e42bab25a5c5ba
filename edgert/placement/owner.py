"""A device's own jobs on their way to their places: ask, wait, commit, renew, release; alone when nobody judges.

The agent chooses (`agent`), this carries it out. It only ever starts a job where every node that it needs holds a
reservation for it, made by a shield, or by itself in its own books while there is no shield.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from edgert.placement import jobs
from edgert.placement.jobs import Proposal, Reason
from edgert.placement.load import Capacity, Resources
from edgert.placement.protocol import (
    Alive,
    Commit,
    Held,
    Judged,
    Propose,
    Region,
    Release,
    Reserve,
    Send,
    Tick,
    Times,
    Vote,
)

Phase = Literal["asking", "alone", "committing", "running"]
RENEWALS = 3
"""Commits in a lease: two may be lost."""


class Place(msgspec.Struct, frozen=True):
    """From the daemon: the agent proposes this, with an attempt that is newer than any before."""

    proposal: Proposal


class End(msgspec.Struct, frozen=True):
    """From the daemon: the job is over, or is to be placed anew."""

    job: str


class Begin(msgspec.Struct, frozen=True):
    """To the daemon: all parts are held, run the job."""

    job: str
    attempt: int
    nodes: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True):
    """To the daemon: this attempt is over, ask the agent for another. `ran`: it had begun."""

    job: str
    attempt: int
    reasons: tuple[Reason, ...]
    ran: bool = False


class Placing(msgspec.Struct, frozen=True, kw_only=True):
    """One job.

    Attributes:
        proposal: of the attempt under way.
        phase: `asking` a shield, `alone` asking its own node, `committing` what was reserved, `running`.
        epoch: of the shield that reserved; 0 alone.
        nodes: one for each part, once known.
        places: every node that holds something for it.
        heard_s: node -> when it last said that it holds it.
        open: nodes that did not say so yet.
        until_s: when the phase is given up; of a running job, never.
        retry_s: when to say again what was said last.
    """

    proposal: Proposal
    phase: Phase
    epoch: int = 0
    nodes: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    heard_s: dict[str, float] = {}
    open: frozenset[str] = frozenset()
    until_s: float = 0.0
    retry_s: float = 0.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an owner; never changed, only replaced.

    Attributes:
        node, region: whose, and where it asks.
        shield, epoch, heard_s: who judges there, and when it was last heard of; None never.
        placing: job -> where it stands.
    """

    node: str
    region: Region
    shield: str = ""
    epoch: int = 0
    heard_s: float | None = None
    placing: dict[str, Placing] = {}


Done: TypeAlias = list[Send | Begin | Failed]


def judged(state: State, now_s: float, times: Times) -> bool:
    """Whether somebody judges in the region.

    Args:
        state: of the owner.
        now_s: by its clock.
        times: of the fleet.

    Returns:
        True while the shield was heard of within `dead_s`.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return state.heard_s is not None and now_s - state.heard_s < times.dead_s


def step(
    state: State,
    event: Tick | Place | End | Alive | Judged | Vote | Held,
    now_s: float,
    times: Times,
    capacity: Capacity,
) -> tuple[State, Done]:
    """Take one event.

    Args:
        state: of the owner.
        event: time passed, a wish of the daemon, or a message that came.
        now_s: by the device's monotonic clock.
        times: of the fleet.
        capacity: of the device itself, for when it is alone.

    Returns:
        The state after it, and what to send, begin and give up.

    Raises:
        Nothing: a message that fits nothing changes nothing.
    Source:
        ours: an agent that has no shield may only burden itself, after SROLE's safe action (arXiv 2206.00774).
    """
    done: Done = []
    match event:
        case Alive():
            if event.region == state.region.name and event.epoch >= state.epoch:
                state = msgspec.structs.replace(state, shield=event.shield, epoch=event.epoch, heard_s=now_s)
        case Place(proposal):
            known = state.placing.get(proposal.job.id)
            if known is None or known.proposal.attempt < proposal.attempt:
                if known is not None:
                    state = _drop(state, known, done)
                state = _ask(state, proposal, now_s, times, capacity, done)
        case End(job):
            if job in state.placing:
                state = _drop(state, state.placing[job], done)
        case Judged(verdict):
            placing = state.placing.get(verdict.job)
            if placing is not None and placing.phase == "asking" and placing.proposal.attempt == verdict.attempt:
                if verdict.nodes:
                    placing = msgspec.structs.replace(placing, epoch=verdict.epoch, nodes=verdict.nodes)
                    state = _commit(state, placing, now_s, times, done)
                else:
                    state = _fail(state, placing, verdict.reasons, done)
        case Vote():
            placing = state.placing.get(event.job)
            if placing is not None and placing.phase == "alone" and placing.proposal.attempt == event.attempt:
                if event.ok:
                    state = _commit(state, placing, now_s, times, done)
                else:
                    state = _fail(state, placing, (Reason("no_shield"), *map(Reason, event.lacks)), done)
        case Held():
            state = _held(state, event, now_s, times, done)
        case Tick():
            for placing in list(state.placing.values()):
                state = _chase(state, placing, now_s, times, capacity, done)
    return state, done


def _with(state: State, placing: Placing) -> State:
    return msgspec.structs.replace(state, placing={**state.placing, placing.proposal.job.id: placing})


def _drop(state: State, placing: Placing, done: Done) -> State:
    """Forget a job, and release what any node may hold for it."""
    job = placing.proposal.job.id
    done.extend(Send(node, Release(job=job, attempt=placing.proposal.attempt)) for node in placing.places)
    return msgspec.structs.replace(state, placing={name: each for name, each in state.placing.items() if name != job})


def _fail(state: State, placing: Placing, reasons: tuple[Reason, ...], done: Done) -> State:
    state = _drop(state, placing, done)
    ran = placing.phase == "running"
    done.append(Failed(placing.proposal.job.id, placing.proposal.attempt, reasons, ran))
    return state


def _ask(state: State, proposal: Proposal, now_s: float, times: Times, capacity: Capacity, done: Done) -> State:
    if judged(state, now_s, times):
        done.append(Send(state.shield, Propose(state.region.name, proposal)))
        wait_s = times.window_s + 2 * times.patience_s
        placing = Placing(
            proposal=proposal, phase="asking", until_s=now_s + wait_s, retry_s=now_s + times.window_s + times.retry_s
        )
        return _with(state, placing)
    return _alone(state, proposal, now_s, times, capacity, done)


def _alone(state: State, proposal: Proposal, now_s: float, times: Times, capacity: Capacity, done: Done) -> State:
    nodes = (state.node,) * len(proposal.job.splits[proposal.split].parts)
    placing = Placing(
        proposal=proposal,
        phase="alone",
        nodes=nodes,
        places=(state.node,),
        until_s=now_s + times.patience_s,
        retry_s=now_s + times.retry_s,
    )
    done.append(_reserve_here(state, placing, capacity))
    return _with(state, placing)


def _reserve_here(state: State, placing: Placing, capacity: Capacity) -> Send:
    parts: list[tuple[int, Resources]] = jobs.footprint(placing.proposal, placing.nodes, {state.node: capacity})[
        state.node
    ]
    asked = Reserve(
        region="",  # no region's epoch rules over a device's own books
        epoch=0,
        shield=state.node,
        job=placing.proposal.job.id,
        attempt=placing.proposal.attempt,
        owner=state.node,
        parts=tuple(parts),
    )
    return Send(state.node, asked)


def _commit(state: State, placing: Placing, now_s: float, times: Times, done: Done) -> State:
    nodes = placing.nodes
    split = placing.proposal.job.splits[placing.proposal.split]
    hosted = any(one == jobs.HOST for one, _ in jobs.pairs(split)) and set(nodes) != {state.node}
    places = tuple(dict.fromkeys((*nodes, state.node) if hosted else nodes))
    placing = msgspec.structs.replace(
        placing,
        phase="committing",
        places=places,
        open=frozenset(places),
        until_s=now_s + times.patience_s,
        retry_s=now_s + times.retry_s,
    )
    done.extend(_commits(placing, state.node))
    return _with(state, placing)


def _commits(placing: Placing, owner: str) -> list[Send]:
    job, attempt = placing.proposal.job.id, placing.proposal.attempt
    commit = Commit(job=job, attempt=attempt, epoch=placing.epoch, owner=owner)
    return [Send(node, commit) for node in placing.places]


def _held(state: State, held: Held, now_s: float, times: Times, done: Done) -> State:
    placing = state.placing.get(held.job)
    if (
        placing is None
        or placing.phase not in ("committing", "running")
        or placing.proposal.attempt != held.attempt
        or held.node not in placing.places
    ):
        return state
    if not held.ok:
        return _fail(state, placing, (Reason("lost", None, held.node),), done)
    left = placing.open - {held.node}
    placing = msgspec.structs.replace(placing, open=left, heard_s={**placing.heard_s, held.node: now_s})
    if placing.phase == "committing" and not left:
        placing = msgspec.structs.replace(placing, phase="running", retry_s=now_s + times.lease_s / RENEWALS)
        done.append(Begin(held.job, held.attempt, placing.nodes))
    return _with(state, placing)


def _chase(state: State, placing: Placing, now_s: float, times: Times, capacity: Capacity, done: Done) -> State:
    if placing.phase == "running":
        silent = [node for node in placing.places if now_s - placing.heard_s[node] >= times.lease_s]
        if silent:
            return _fail(state, placing, tuple(Reason("lost", None, node) for node in silent), done)
        if now_s < placing.retry_s:
            return state
        done.extend(_commits(placing, state.node))
        return _with(state, msgspec.structs.replace(placing, retry_s=now_s + times.lease_s / RENEWALS))
    if placing.phase == "asking" and not judged(state, now_s, times):
        # With a new attempt the device is alone. A verdict on this one may still come; what was reserved for it lapses.
        return _fail(state, placing, (Reason("no_shield"),), done)
    if now_s >= placing.until_s:
        silent = sorted(placing.open) or [state.shield if placing.phase == "asking" else state.node]
        return _fail(state, placing, tuple(Reason("silent", None, node) for node in silent), done)
    if now_s >= placing.retry_s:
        placing = msgspec.structs.replace(placing, retry_s=now_s + times.retry_s)
        state = _with(state, placing)
        if placing.phase == "asking":
            done.append(Send(state.shield, Propose(state.region.name, placing.proposal)))
        elif placing.phase == "alone":
            done.append(_reserve_here(state, placing, capacity))
        else:
            done.extend(_commits(placing, state.node))
    return state
