"""The shield of a region as one of its members carries it: who judges, what it knows, and what it has asked nodes for.

Every member runs this. The first in rank that is alive judges; the next one takes over when it falls silent, with an
epoch that nobody else can have. Two that believe it at once do no harm: nodes listen to the higher epoch, and each
keeps its own books (`keeper`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from edgert.placement import jobs, shield
from edgert.placement.jobs import Proposal, Reason, Verdict
from edgert.placement.load import Load, Resources, total
from edgert.placement.protocol import (
    Alive,
    Judged,
    Propose,
    Region,
    Release,
    Report,
    Reserve,
    Send,
    Tick,
    Times,
    Vote,
)
from edgert.placement.shield import Room

PENDING_MAX = 256
"""Proposals and reservations that a shield has under way at most; what is beyond it is deferred at once."""
GATHER_FRAC = 0.1
"""Of a window: so long the first proposal after a quiet one waits for others."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation under way, or one that succeeded.

    Attributes:
        proposal, verdict: what is reserved for.
        amounts: node -> (part, amount) each.
        open: nodes that did not answer yet.
        until_s: when it is given up; or, once `open` is empty, when it is forgotten.
        retry_s: when nodes are asked again.
    """

    proposal: Proposal
    verdict: Verdict
    amounts: dict[str, tuple[tuple[int, Resources], ...]]
    open: frozenset[str]
    until_s: float
    retry_s: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a member's shield; never changed, only replaced.

    Attributes:
        node, region: whose.
        epoch: the highest seen; unique to the member that has it.
        leader: who judges in it; empty while nobody is known to.
        heard_s: when that one was last heard of.
        beat_s: when the next sign of life is due, of a leader.
        since_s: when it became the leader: it judges only after it could hear from all nodes.
        loads: node -> the newest.
        pending: job -> its newest proposal, and when it is refused for good.
        judge_s: when the window closes; None while nothing is pending.
        judged_s: when the last one did: after a quiet time nobody waits for a whole window.
        asked: job -> its reservation.
        sent, received: messages so far, for those who count them.
    """

    node: str
    region: Region
    epoch: int = 0
    leader: str = ""
    heard_s: float = 0.0
    beat_s: float = 0.0
    since_s: float = 0.0
    loads: dict[str, Load] = {}
    pending: dict[str, tuple[Proposal, float]] = {}
    judge_s: float | None = None
    judged_s: float = -1e9
    asked: dict[str, Asked] = {}
    sent: int = 0
    received: int = 0


Sends: TypeAlias = list[Send]


class Stepped(NamedTuple):
    """What a step gives: the state after it, what to send, and the verdicts that were reached in it, for a record."""

    state: State
    sends: Sends
    verdicts: list[tuple[Proposal, Verdict]]


def begin(node: str, region: Region, now_s: float) -> State:
    """A member's shield at its start.

    Args:
        node: the member.
        region: of it.
        now_s: by its monotonic clock.

    Returns:
        A state in which nobody leads; the first in rank begins to after `dead_s`, unless somebody else does.

    Raises:
        Nothing.
    Source:
        ours: who was away cannot know who judges by now, and listens first.
    """
    return State(node=node, region=region, heard_s=now_s)


def step(
    state: State, event: Tick | Propose | Vote | Report | Alive, now_s: float, times: Times, *, work: int = shield.WORK
) -> Stepped:
    """Take one event.

    Args:
        state: of the member's shield.
        event: time passed, or a message that came.
        now_s: by the member's monotonic clock.
        times: of the fleet.
        work: of one judgement, see `shield.judge`.

    Returns:
        See there.

    Raises:
        Nothing: a message that fits nothing changes nothing.
    Source:
        two-phase commit: Gray 1978, section 5.8.3.3; who leads: the bully's rule (Garcia-Molina 1982) with fencing.
    """
    sends: Sends = []
    verdicts: list[tuple[Proposal, Verdict]] = []
    if not isinstance(event, Tick):
        state = msgspec.structs.replace(state, received=state.received + 1)
    match event:
        case Report(load):
            state = _heard_load(state, load, now_s)
        case Alive():
            state = _heard_alive(state, event, now_s)
        case Propose():
            state = _proposed(state, event, now_s, times, sends)
        case Vote():
            state = _voted(state, event, now_s, times, sends, verdicts)
        case Tick():
            state = _lead(state, now_s, times, sends)
            state = _chase(state, now_s, times, sends, verdicts)
            if state.judge_s is not None and now_s >= state.judge_s:
                state = _judge(state, now_s, times, work, sends, verdicts)
    return Stepped(msgspec.structs.replace(state, sent=state.sent + len(sends)), sends, verdicts)


def leads(state: State) -> bool:
    """Whether this member judges.

    Args:
        state: of its shield.

    Returns:
        True for the leader.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return state.leader == state.node


def _heard_load(state: State, load: Load, now_s: float) -> State:
    known = state.loads.get(load.node)
    if load.node not in state.region.members:
        return state
    if known is not None and (load.session, load.seq) <= (known.session, known.seq):
        return state
    new = msgspec.structs.replace(load, at_s=now_s)
    return msgspec.structs.replace(state, loads={**state.loads, load.node: new})


def _heard_alive(state: State, alive: Alive, now_s: float) -> State:
    if alive.region != state.region.name or alive.epoch < state.epoch:
        return state
    was_leader = leads(state)
    state = msgspec.structs.replace(state, epoch=alive.epoch, leader=alive.shield, heard_s=now_s)
    if was_leader and not leads(state):  # what it promised lapses; whoever waits asks again, and finds the new one
        state = msgspec.structs.replace(state, pending={}, asked={}, judge_s=None)
    return state


def _lead(state: State, now_s: float, times: Times, sends: Sends) -> State:
    members = state.region.members
    rank, count = members.index(state.node), len(members)
    if not leads(state) and now_s >= state.heard_s + times.dead_s + 2 * rank * times.beat_s:
        epoch = (state.epoch // count + 1) * count + rank
        state = msgspec.structs.replace(
            state, epoch=epoch, leader=state.node, since_s=now_s, beat_s=now_s, heard_s=now_s
        )
    if leads(state) and now_s >= state.beat_s:
        alive = Alive(region=state.region.name, epoch=state.epoch, shield=state.node)
        sends.extend(Send(each, alive) for each in members if each != state.node)
        state = msgspec.structs.replace(state, beat_s=now_s + times.beat_s, heard_s=now_s)
    return state


def _proposed(state: State, event: Propose, now_s: float, times: Times, sends: Sends) -> State:
    proposal = event.proposal
    job, owner = proposal.job.id, proposal.job.owner
    if event.region != state.region.name or not leads(state):
        return state
    asked, waits = state.asked.get(job), state.pending.get(job)
    if asked is not None and asked.proposal.attempt == proposal.attempt:
        if not asked.open:  # the verdict was lost
            sends.append(Send(owner, Judged(asked.verdict)))
        return state
    newest = max(
        -1 if asked is None else asked.proposal.attempt,
        -1 if waits is None else waits[0].attempt,
    )
    if proposal.attempt < newest or (waits is not None and waits[0].attempt == proposal.attempt):
        return state
    if asked is not None:
        state = _forget(state, asked, sends)
    if len(state.pending) + len(state.asked) >= PENDING_MAX:
        sends.append(Send(owner, Judged(_deferral(state, proposal, Reason("no_room")))))
        return state
    pending = {**state.pending, job: (proposal, now_s + times.patience_s)}
    soon_s = now_s + GATHER_FRAC * times.window_s  # what else is asked at the same time comes with it
    ready_s = max(soon_s, state.judged_s + times.window_s, state.since_s + times.beat_s + times.retry_s)
    return msgspec.structs.replace(state, pending=pending, judge_s=ready_s if state.judge_s is None else state.judge_s)


def _deferral(state: State, proposal: Proposal, *reasons: Reason) -> Verdict:
    return Verdict(
        job=proposal.job.id,
        attempt=proposal.attempt,
        outcome="deferred",
        split=proposal.split,
        reasons=reasons,
        region=state.region.name,
        epoch=state.epoch,
    )


def _forget(state: State, asked: Asked, sends: Sends) -> State:
    """Give a reservation up, at every node that may have heard of it."""
    release = Release(job=asked.proposal.job.id, attempt=asked.proposal.attempt)
    sends.extend(Send(node, release) for node in asked.amounts)
    return msgspec.structs.replace(state, asked={job: each for job, each in state.asked.items() if each is not asked})


def rooms(state: State, now_s: float, times: Times) -> dict[str, Room]:
    """What the shield believes of the nodes of its region.

    Args:
        state: of the shield.
        now_s: by its clock.
        times: of the fleet.

    Returns:
        Node -> room, in the order of the region; nodes that were silent for `dead_s` are left out. What a node
        was asked to keep and did not vote on counts as taken; what it voted for is in what it said with the vote.

    Raises:
        Nothing.
    Source:
        ours.
    """
    known = {
        name: state.loads[name]
        for name in state.region.members
        if name in state.loads and now_s - state.loads[name].at_s < times.dead_s
    }
    extra: dict[str, list[Resources]] = {}
    for asked in state.asked.values():
        for name in asked.open & known.keys():
            extra.setdefault(name, []).extend(amount for _, amount in asked.amounts[name])
    return {
        name: Room(load.capacity, total([load.used, *extra[name]]) if name in extra else load.used)
        for name, load in known.items()
    }


def _judge(
    state: State,
    now_s: float,
    times: Times,
    work: int,
    sends: Sends,
    verdicts: list[tuple[Proposal, Verdict]],
) -> State:
    asked_now = [proposal for proposal, _ in state.pending.values()]
    until = {job: until_s for job, (_, until_s) in state.pending.items()}
    room = rooms(state, now_s, times)
    capacities = {name: each.capacity for name, each in room.items()}
    reserving = dict(state.asked)
    for proposal, verdict in zip(asked_now, shield.judge(asked_now, room, work=work), strict=True):
        told = msgspec.structs.replace(verdict, region=state.region.name, epoch=state.epoch)
        if not verdict.nodes:
            sends.append(Send(proposal.job.owner, Judged(told, tuple(state.loads[name] for name in room))))
            verdicts.append((proposal, told))
            continue
        parts = {name: tuple(each) for name, each in jobs.footprint(proposal, verdict.nodes, capacities).items()}
        asked = Asked(
            proposal=proposal,
            verdict=told,
            amounts=parts,
            open=frozenset(parts),
            until_s=until[proposal.job.id],
            retry_s=now_s + times.retry_s,
        )
        reserving[proposal.job.id] = asked
        sends.extend(_questions(state, asked))
    return msgspec.structs.replace(state, pending={}, judge_s=None, judged_s=now_s, asked=reserving)


def _questions(state: State, asked: Asked) -> Sends:
    return [
        Send(
            node,
            Reserve(
                region=state.region.name,
                epoch=state.epoch,
                shield=state.node,
                job=asked.proposal.job.id,
                attempt=asked.proposal.attempt,
                owner=asked.proposal.job.owner,
                parts=parts,
            ),
        )
        for node, parts in asked.amounts.items()
        if node in asked.open
    ]


def _voted(
    state: State,
    vote: Vote,
    now_s: float,
    times: Times,
    sends: Sends,
    verdicts: list[tuple[Proposal, Verdict]],
) -> State:
    state = _heard_load(state, vote.load, now_s)
    asked = state.asked.get(vote.job)
    node = vote.load.node
    if (
        asked is None
        or not leads(state)
        or (vote.region, vote.epoch, vote.attempt) != (state.region.name, state.epoch, asked.proposal.attempt)
        or node not in asked.open
    ):
        return state
    if vote.ok:
        left = asked.open - {node}
        new = msgspec.structs.replace(asked, open=left, until_s=asked.until_s if left else now_s + times.lease_s)
        if not left:
            sends.append(Send(asked.proposal.job.owner, Judged(asked.verdict)))
            verdicts.append((asked.proposal, asked.verdict))
        return msgspec.structs.replace(state, asked={**state.asked, vote.job: new})
    lacks = [Reason(name, None, node) for name in vote.lacks]
    return _refuse(state, asked, [Reason("refused", None, node), *lacks], sends, verdicts)


def _refuse(
    state: State, asked: Asked, reasons: list[Reason], sends: Sends, verdicts: list[tuple[Proposal, Verdict]]
) -> State:
    """Give a reservation up, everywhere, and tell its owner, who asks again with another attempt."""
    told = _deferral(state, asked.proposal, *reasons)
    sends.append(Send(asked.proposal.job.owner, Judged(told)))
    verdicts.append((asked.proposal, told))
    return _forget(state, asked, sends)


def _chase(state: State, now_s: float, times: Times, sends: Sends, verdicts: list[tuple[Proposal, Verdict]]) -> State:
    """Ask again, give up, forget."""
    for job, asked in list(state.asked.items()):
        if not asked.open and now_s >= asked.until_s:
            left = {name: each for name, each in state.asked.items() if name != job}
            state = msgspec.structs.replace(state, asked=left)
        elif asked.open and now_s >= asked.until_s:
            silent = [Reason("silent", None, node) for node in sorted(asked.open)]
            state = _refuse(state, asked, silent, sends, verdicts)
        elif asked.open and now_s >= asked.retry_s:
            sends.extend(_questions(state, asked))
            new = msgspec.structs.replace(asked, retry_s=now_s + times.retry_s)
            state = msgspec.structs.replace(state, asked={**state.asked, job: new})
    return state
