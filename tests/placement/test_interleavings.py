"""Every order in which messages can come, be lost and be doubled, with a shield that may die, on the smallest case that
can go wrong: two regions that share one node with room for one part, and a job in each that wants it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from edgert.placement import keeper, owner, regions
from edgert.placement.jobs import Job, Part, Proposal, Split
from edgert.placement.keeper import Books
from edgert.placement.load import Capacity, overloads
from edgert.placement.protocol import (
    Alive,
    Commit,
    Held,
    Judged,
    Message,
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

TIMES = Times(window_s=0.5, retry_s=3, patience_s=5, lease_s=8, beat_s=1e6, dead_s=1e6)
JUMP_S = 4.0
SHARED = "x"
OWNERS = ("a", "b")
CAPACITY = Capacity(cores=1, memory_bytes=9, link_bytes_per_s=9)
REGIONS = {name: Region(name, (f"s{name}", SHARED)) for name in OWNERS}


class World(NamedTuple):
    """All machines and what is on its way; `loss`, `double`, `death`, `jumps` are how often each may still happen."""

    books: Books
    shields: tuple[regions.State, ...]
    owners: tuple[owner.State, ...]
    flying: tuple[tuple[str, Message], ...]
    now_s: float
    dead: str
    running: tuple[tuple[str, int], ...]
    over: tuple[str, ...]
    loss: int
    double: int
    death: int
    jumps: int


def proposal(name: str) -> Proposal:
    split = Split(kind="data", parts=(Part(compute_core_s=1, memory_bytes=1),))
    return Proposal(job=Job(id=name, owner=name, splits=(split,), steps=1), attempt=0, nodes=(SHARED,))


def begin(loss: int, double: int, death: int, jumps: int) -> World:
    shields, owners, flying = [], [], []
    load = keeper.report(Books(node=SHARED, session=1, capacity=CAPACITY, seq=1))
    for name in OWNERS:
        leader = f"s{name}"
        state = regions.begin(leader, REGIONS[name], 0.0)
        state = msgspec.structs.replace(state, leader=leader, epoch=1, beat_s=1e9, loads={SHARED: load}, since_s=-1e3)
        shields.append(state)
        device = owner.State(node=name, region=REGIONS[name], shield=leader, epoch=1, heard_s=0.0)
        device, done = owner.step(device, owner.Place(proposal(name)), 0.0, TIMES, CAPACITY)
        owners.append(device)
        flying += [(each.to, each.message) for each in done if isinstance(each, Send)]
    books = Books(node=SHARED, session=1, capacity=CAPACITY, seq=1)
    return World(books, tuple(shields), tuple(owners), tuple(flying), 0.0, "", (), (), loss, double, death, jumps)


def deliver(world: World, to: str, message: Message | Tick) -> World:
    """One machine takes one event; what it sends flies."""
    sent: list[tuple[str, Message]] = []
    if to == world.dead:
        return world
    if to == SHARED:
        assert isinstance(message, Reserve | Commit | Release | Tick)
        books, done = keeper.step(world.books, message, world.now_s, TIMES)
        running = dict(world.running)
        for each in done:
            if isinstance(each, keeper.Start):
                assert each.job not in running, "started twice"
                running[each.job] = each.attempt
            elif isinstance(each, keeper.Stop):
                running.pop(each.job, None)
            else:
                sent.append((each.to, each.message))
        assert not overloads(CAPACITY, keeper.used(books)), "more is promised than there is"
        assert len(running) <= 1, "both run where there is room for one"
        world = world._replace(books=books, running=tuple(sorted(running.items())))
    elif to.startswith("s"):
        assert isinstance(message, Propose | Vote | Report | Alive | Tick)
        k = OWNERS.index(to[1:])
        stepped = regions.step(world.shields[k], message, world.now_s, TIMES)
        sent = [(each.to, each.message) for each in stepped.sends]
        world = world._replace(shields=(*world.shields[:k], stepped.state, *world.shields[k + 1 :]))
    else:
        assert isinstance(message, Judged | Held | Vote | Alive | Tick)
        k = OWNERS.index(to)
        state, done_there = owner.step(world.owners[k], message, world.now_s, TIMES, CAPACITY)
        over = [*world.over]
        for what in done_there:
            if isinstance(what, Send):
                sent.append((what.to, what.message))
            elif isinstance(what, owner.Failed):
                over.append(what.job)
        owners = (*world.owners[:k], state, *world.owners[k + 1 :])
        world = world._replace(owners=owners, over=tuple(sorted(over)))
    return world._replace(flying=tuple(sorted((*world.flying, *sent), key=repr)))


def jump(world: World) -> World:
    """Time passes for all."""
    world = world._replace(now_s=world.now_s + JUMP_S)
    for name in (SHARED, "sa", "sb", "a", "b"):
        world = deliver(world, name, Tick())
    return world


def after(world: World) -> list[World]:
    """Every world that can come next."""
    found = []
    for i in range(len(world.flying)):
        if world.flying[i] in world.flying[:i]:
            continue
        to, message = world.flying[i]
        rest = world._replace(flying=world.flying[:i] + world.flying[i + 1 :])
        found.append(deliver(rest, to, message))
        if world.loss:
            found.append(rest._replace(loss=world.loss - 1))
        if world.double:
            found.append(deliver(world._replace(double=world.double - 1), to, message))
    if world.death and not world.dead:
        found.append(world._replace(death=0, dead="sa"))
    if world.jumps:
        found.append(jump(world._replace(jumps=world.jumps - 1)))
    return found


def settle(world: World) -> World:
    """From now on the network is good, and nobody dies: where does it end?"""
    for _ in range(16):
        while world.flying:
            to, message = world.flying[0]
            world = deliver(world._replace(flying=world.flying[1:]), to, message)
        world = jump(world)
    return world


def key(world: World) -> bytes:
    return msgspec.msgpack.encode(
        [msgspec.to_builtins(each, enc_hook=sorted) for each in world._replace(flying=())]
        + [sorted(msgspec.json.encode([to, message], enc_hook=sorted) for to, message in world.flying)]
    )


@pytest.mark.parametrize(
    ("loss", "double", "death", "jumps"), [(0, 0, 0, 6), (1, 1, 0, 4), (2, 0, 1, 4), (0, 2, 1, 3), (1, 1, 1, 3)]
)
def test_whatever_comes_in_whatever_order_nothing_is_promised_twice_and_all_comes_to_an_end(
    loss: int, double: int, death: int, jumps: int
) -> None:
    first = jump(begin(loss, double, death, jumps))
    seen, todo, ends = {key(first)}, [first], 0
    while todo and len(seen) < 30_000:
        world = todo.pop()
        following = after(world)
        for each in following:
            if (name := key(each)) not in seen:
                seen.add(name)
                todo.append(each)
        if not following or len(seen) % 31 == 0:
            ends += 1
            last = settle(world)
            assert not last.flying
            for device in last.owners:
                for placing in device.placing.values():
                    assert placing.phase == "running", "a job hangs between two phases"
            assert {job for job, _ in last.running} == {job for device in last.owners for job in device.placing}, (
                "a part runs that nobody wants, or the other way round"
            )
            assert set(last.books.holds) == {job for job, _ in last.running}, "a reservation outlives its owner's wish"
    assert not todo, "too many worlds to look at all of them"
    assert ends > 20 and len(seen) > 1000
