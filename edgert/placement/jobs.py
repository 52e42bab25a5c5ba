"""Training jobs in parts, what a part takes of a node, and what agents and shields say to each other about them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgert.placement.load import Amount, Capacity, Count, NodeId, Resources

HOST = -1
"""As a peer: the device that has the data and gets the result."""

Outcome = Literal["granted", "moved", "deferred"]


class Flow(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that a part exchanges with one other in each step, both ways together; `peer` is a part or `HOST`."""

    peer: Annotated[int, Meta(ge=HOST)]
    bytes_per_step: Amount


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a job, which runs on one node.

    Attributes:
        compute_core_s: of one step, on the reference core, in seconds.
        cores: it keeps busy while the job runs, 0..1 a thread: a share of 1 where parts wait for one another.
        memory_bytes: resident, the interpreter included.
        flows: with whom it exchanges; a pair is named at either end or at both, and then the larger number counts.
    """

    compute_core_s: Amount
    cores: Amount = 1.0
    memory_bytes: Amount
    flows: tuple[Flow, ...] = ()


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One way to cut a job into parts.

    Attributes:
        kind: `data`: parts work at the same time, each on its share of a batch, and exchange gradients;
            `layers`: they work one after the other, each on its layers, and exchange activations.
        parts: at least one.
    """

    kind: Literal["data", "layers"]
    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=64)]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A training job.

    Attributes:
        id: unique in the fleet.
        owner: the device that has its data, places it, and gets its result.
        splits: ways to cut it, the agent chooses one; measured, never guessed.
        steps: still to go.
        ship_bytes: bundle, optimiser state and data that go to each node before it starts.
        due_s: when it should be done, by the owner's clock; None when nobody waits.
        born_s: when it came.
    """

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    owner: NodeId
    splits: Annotated[tuple[Split, ...], Meta(min_length=1, max_length=16)]
    steps: Annotated[int, Meta(ge=1)]
    ship_bytes: Count = 0
    due_s: float | None = None
    born_s: float = 0.0


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """Where an agent would put its job.

    Attributes:
        job: the job; `attempt` counts its placements, so that a late message of an older one changes nothing.
        split: index into `job.splits`.
        nodes: one for each part.
        ranked: for each part, the nodes it could go to, the agent's favourite first.
        choosy: the job rather waits than goes where it is not ranked.
        session: of the agent's daemon.
        urgency_s: jobs with a smaller one get their room first: what is left to compute, less how long it has waited.
    """

    job: Job
    attempt: Count
    split: Count = 0
    nodes: tuple[NodeId, ...]
    ranked: tuple[tuple[NodeId, ...], ...] = ()
    choosy: bool = False
    session: Count = 0
    urgency_s: float = 0.0


class Reason(msgspec.Struct, frozen=True, array_like=True):
    """Why a part does not go where it was proposed.

    Attributes:
        name: of `load.RESOURCES`; or `unknown_node`: nobody knows this node here; `no_room`: nowhere for all parts,
            as far as they would go there;
            `search_limit`: perhaps there is room, it was not found in the work allowed; `superseded`: a newer attempt;
            `refused`: the node itself, which knows better; `silent`: it did not answer; `stale_epoch`: it listens to
            another shield by now; `no_shield`: nobody judges at present, and alone there is no room; `lost`: a node
            that held a part fell silent or let go of it.
        part: which; None for the whole job.
        node: that was proposed.
        need: what the part takes of it and `room`: what was left; in the unit of the resource.
    """

    name: str
    part: int | None = None
    node: str = ""
    need: float = 0.0
    room: float = 0.0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a shield says.

    Attributes:
        job, attempt: of the proposal.
        outcome: `granted` as proposed, `moved` elsewhere, or `deferred`: ask again later.
        split: of the proposal.
        nodes: one for each part; empty when deferred.
        reasons: for each part that was moved, what it collided with; or why the job waits.
        region, epoch: of the shield that says so.
    """

    job: str
    attempt: Count
    outcome: Outcome
    split: Count = 0
    nodes: tuple[NodeId, ...] = ()
    reasons: tuple[Reason, ...] = ()
    region: str = ""
    epoch: Count = 0


def pairs(split: Split) -> dict[tuple[int, int], float]:
    """Who exchanges how much with whom.

    Args:
        split: of a job.

    Returns:
        (smaller, larger) -> bytes of a step, `HOST` being the smallest; pairs that exchange nothing are left out.

    Raises:
        Nothing.
    Source:
        ours: a pair is named once, whichever end named it.
    """
    found: dict[tuple[int, int], float] = {}
    for k, part in enumerate(split.parts):
        for flow in part.flows:
            if flow.bytes_per_step > 0 and flow.peer != k and flow.peer < len(split.parts):
                key = (min(k, flow.peer), max(k, flow.peer))
                found[key] = max(found.get(key, 0.0), flow.bytes_per_step)
    return found


def needs(job: Job, part: Part, capacity: Capacity) -> Resources:
    """What a part takes of a node, its traffic aside: that depends on where the others are.

    Args:
        job: the part is of.
        part: the part.
        capacity: of the node.

    Returns:
        The amount, with `link_bytes_per_s` 0.

    Raises:
        Nothing.
    Source:
        ours: a busy core draws what the board's file says, for as long as the part computes.
    """
    busy_s = part.compute_core_s / capacity.speed * job.steps
    return Resources(
        part.cores, part.memory_bytes, 0.0, capacity.watts_per_core * busy_s, capacity.watts_per_core * part.cores
    )


def traffic(split: Split, one: int, other: int, step_bytes: float, speeds: tuple[float, float]) -> float:
    """How much a pair of parts on two nodes moves, at most, in the mean over a step.

    Args:
        split: the parts are of.
        one: a part, or `HOST`.
        other: the other part.
        step_bytes: between them.
        speeds: of the cores that the two run on; a host's does not matter.

    Returns:
        Bytes a second: a step takes at least as long as these two compute, one after the other where they are layers.

    Raises:
        Nothing.
    Source:
        ours: an upper bound that needs to know nothing of the rest of the job.
    """
    times = [split.parts[k].compute_core_s / speed for k, speed in zip((one, other), speeds, strict=True) if k != HOST]
    least_s = sum(times) if split.kind == "layers" else max(times)
    return step_bytes / least_s if least_s > 0 else float("inf")


def footprint(
    proposal: Proposal, nodes: tuple[str, ...], capacities: dict[str, Capacity]
) -> dict[str, list[tuple[int, Resources]]]:
    """What a placed job takes of every node.

    Args:
        proposal: of the job.
        nodes: one for each part.
        capacities: of all nodes that are named, and of the owner where parts exchange with it.

    Returns:
        node -> (part, amount) of each part there. Traffic counts at both ends; at the owner's end, where it hosts the
        data only, it comes under the part number `HOST`. Nothing is counted at an owner whose
        capacity is unknown.

    Raises:
        KeyError: a node without a capacity. A caller's bug.
    Source:
        ours: the same arithmetic for the shield that plans and the node that keeps the books.
    """
    split = proposal.job.splits[proposal.split]
    amounts = [needs(proposal.job, part, capacities[node]) for part, node in zip(split.parts, nodes, strict=True)]
    link = dict.fromkeys(range(HOST, len(nodes)), 0.0)
    for (one, other), size in pairs(split).items():
        here = proposal.job.owner if one == HOST else nodes[one]
        if here != nodes[other]:
            speed = 1.0 if one == HOST else capacities[here].speed
            moved = traffic(split, one, other, size, (speed, capacities[nodes[other]].speed))
            link[one] += moved
            link[other] += moved
    found: dict[str, list[tuple[int, Resources]]] = {}
    for k, (node, amount) in enumerate(zip(nodes, amounts, strict=True)):
        found.setdefault(node, []).append((k, msgspec.structs.replace(amount, link_bytes_per_s=link[k])))
    if link[HOST] > 0 and proposal.job.owner in capacities:
        found.setdefault(proposal.job.owner, []).append((HOST, Resources(link_bytes_per_s=link[HOST])))
    return found


def urgency(job: Job, split: int, now_s: float) -> float:
    """Whose turn it is when not all have room: the shortest first, but who has waited grows shorter.

    Args:
        job: the job.
        split: of it.
        now_s: by the clock of `job.born_s`.

    Returns:
        Core-seconds of the reference core that are to do, less the seconds since it came.

    Raises:
        Nothing.
    Source:
        shortest remaining processing time, which is best for the mean on one machine (Schrage 1968), with ageing.
    """
    return sum(part.compute_core_s for part in job.splits[split].parts) * job.steps - (now_s - job.born_s)
