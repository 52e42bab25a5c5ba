"""What devices say to each other to place jobs, which regions there are, and how long anybody waits for anything.

A job is placed in two phases. The shield *reserves* at every node that the job needs; a node that several regions share
belongs to no shield: it keeps its own books, and they alone count. When all nodes have voted for it the shield tells
the job's owner, and the owner *commits* at each node, renews what it holds there, and releases it in the end. Whatever
is not committed or renewed in time lapses by itself, whoever died.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgert.errors import UsageError
from edgert.placement.jobs import Proposal, Verdict
from edgert.placement.load import Count, Load, NodeId, Resources

Seconds = Annotated[float, Meta(gt=0)]


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """How long things take at most; all in seconds.

    Attributes:
        window_s: between two judgements of a shield; proposals that come meanwhile are judged together.
        retry_s: before a question is asked again.
        patience_s: for an answer, before it is given up.
        lease_s: a hold lives so long after it was reserved, committed or renewed.
        beat_s: between two signs of life of a shield, and between two reports of a node.
        dead_s: of silence, after which a shield is taken to be dead, and what a node last said to be unknown.
    """

    window_s: Seconds = 1.0
    retry_s: Seconds = 1.0
    patience_s: Seconds = 4.0
    lease_s: Seconds = 15.0
    beat_s: Seconds = 2.0
    dead_s: Seconds = 7.0


class Region(msgspec.Struct, frozen=True):
    """Nodes that one shield looks after: the first of them that is alive. A boundary node is in several regions."""

    name: str
    members: Annotated[tuple[NodeId, ...], Meta(min_length=1, max_length=1024)]


class Propose(msgspec.Struct, frozen=True, tag="propose"):
    """Agent to shield: judge this."""

    region: str
    proposal: Proposal


class Judged(msgspec.Struct, frozen=True, tag="verdict"):
    """Shield to the agent that asked: the verdict; of one that defers, with what the shield knows of the region.

    So the agent's next proposal is not made with what misled it in this one.
    """

    verdict: Verdict
    loads: tuple[Load, ...] = ()


class Reserve(msgspec.Struct, frozen=True, kw_only=True, tag="reserve"):
    """Shield to node: keep room.

    Attributes:
        region, epoch, shield: who asks; of a region, only the highest epoch seen is listened to.
        job, attempt, owner: for what and for whom.
        parts: (part, amount) each; `jobs.HOST` is the owner's own end of the traffic.
    """

    region: str
    epoch: Count
    shield: NodeId
    job: str
    attempt: Count
    owner: NodeId
    parts: tuple[tuple[int, Resources], ...]


class Vote(msgspec.Struct, frozen=True, kw_only=True, tag="vote"):
    """Node to shield: whether room is kept, and if not, for want of what; and what is so there now."""

    region: str
    epoch: Count
    job: str
    attempt: Count
    ok: bool
    lacks: tuple[str, ...] = ()
    load: Load


class Commit(msgspec.Struct, frozen=True, kw_only=True, tag="commit"):
    """Owner to node: what was reserved in this epoch starts, or goes on. Sent again and again, it renews."""

    job: str
    attempt: Count
    epoch: Count
    owner: NodeId


class Held(msgspec.Struct, frozen=True, kw_only=True, tag="held"):
    """Node to owner: whether it holds what was committed."""

    node: NodeId
    job: str
    attempt: Count
    ok: bool


class Release(msgspec.Struct, frozen=True, kw_only=True, tag="release"):
    """Owner or shield to node: it is not needed any more; `attempt` and older ones."""

    job: str
    attempt: Count


class Report(msgspec.Struct, frozen=True, tag="load"):
    """Node to shields and agents of its regions: how it is."""

    load: Load


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag="alive"):
    """Shield to the members of its region: I judge here."""

    region: str
    epoch: Count
    shield: NodeId


Message = Propose | Judged | Reserve | Vote | Commit | Held | Release | Report | Alive


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """Time has passed; to be fed at least every `retry_s`."""


class Send(msgspec.Struct, frozen=True):
    """A message to a node; it may be lost, doubled, and overtaken."""

    to: str
    message: Message


def regions_of(regions: tuple[Region, ...], node: str) -> tuple[Region, ...]:
    """Where a node belongs.

    Args:
        regions: all.
        node: the node.

    Returns:
        Its regions, its own first: the one in whose order it ranks highest, by name where it is the same in two.

    Raises:
        Nothing.
    Source:
        ours.
    """
    mine = [region for region in regions if node in region.members]
    return tuple(sorted(mine, key=lambda region: (region.members.index(node), region.name)))


def chain(nodes: tuple[str, ...], size: int, overlap: int) -> tuple[Region, ...]:
    """Cut a line of nodes, closed to a ring, into regions of which neighbours share their boundary.

    Args:
        nodes: so ordered that neighbours in the list are near each other.
        size: nodes of a region that are its own.
        overlap: nodes at its end that it shares with the next region.

    Returns:
        `r0`, `r1`, ...; one region without a boundary when `size` is not less than the number of nodes.

    Raises:
        UsageError: `size` is below 1, or `overlap` is not between 0 and `size`.
    Source:
        SROLE (arXiv 2206.00774), abstract: regions with boundaries that are agreed upon; the ring is ours.
    """
    if size < 1 or not 0 <= overlap <= size:
        raise UsageError(f"regions of {size} nodes of which {overlap} are shared")
    if size >= len(nodes):
        return (Region("r0", nodes),)
    starts = range(0, len(nodes), size)
    return tuple(
        Region(f"r{i}", tuple(nodes[(start + k) % len(nodes)] for k in range(min(size + overlap, len(nodes)))))
        for i, start in enumerate(starts)
    )
