from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from edgert.placement import keeper, owner, regions
from edgert.placement.jobs import HOST, Flow, Job, Part, Proposal, Split
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
    chain,
)

TIMES = Times(window_s=1, retry_s=1, patience_s=4, lease_s=12, beat_s=2, dead_s=7)


def job(name: str, by: str, *nodes: str, attempt: int = 0, cores: float = 1.0, flow: float = 0.0) -> Proposal:
    parts = tuple(
        Part(compute_core_s=1.0, cores=cores, memory_bytes=1.0, flows=(Flow(HOST, flow),) if flow else ())
        for _ in nodes
    )
    made = Job(id=name, owner=by, splits=(Split(kind="data", parts=parts),), steps=1)
    return Proposal(job=made, attempt=attempt, nodes=nodes)


class Fleet:
    """All machines of all nodes, a network that loses, doubles and overtakes, and a clock."""

    def __init__(self, cut: tuple[Region, ...], capacity: Capacity, seed: int = 0) -> None:
        names = sorted({name for region in cut for name in region.members})
        self.regions = cut
        self.rng = random.Random(seed)
        self.loss = self.double = self.delay_s = 0.0
        self.now_s = 0.0
        self.dead: set[str] = set()
        self.books = {name: Books(node=name, session=1, capacity=capacity) for name in names}
        self.shields = {
            (region.name, name): regions.begin(name, region, 0.0) for region in cut for name in region.members
        }
        self.home = {name: next(region for region in cut if name in region.members) for name in names}
        self.owners = {name: owner.State(node=name, region=self.home[name]) for name in names}
        self.flying: list[tuple[float, int, str, Message]] = []
        self.count = 0
        self.begun: dict[str, owner.Begin] = {}
        self.failed: list[owner.Failed] = []
        self.running: dict[tuple[str, str], int] = {}
        self.wishes: dict[str, Proposal] = {}

    def send(self, sends: list[Send]) -> None:
        for each in sends:
            for _ in range(2 if self.rng.random() < self.double else 1):
                if self.rng.random() >= self.loss:
                    self.count += 1
                    late_s = self.rng.random() * self.delay_s
                    self.flying.append((self.now_s + late_s, self.count, each.to, each.message))

    def wish(self, proposal: Proposal) -> None:
        self.wishes[proposal.job.id] = proposal
        self.tell_owner(proposal.job.owner, owner.Place(proposal))

    def tell_owner(self, name: str, event: Tick | owner.Place | owner.End | Alive | Judged | Vote | Held) -> None:
        state, done = owner.step(self.owners[name], event, self.now_s, TIMES, self.books[name].capacity)
        self.owners[name] = state
        self.send([each for each in done if isinstance(each, Send)])
        for each in done:
            if isinstance(each, owner.Begin):
                self.begun[each.job] = each
            elif isinstance(each, owner.Failed):
                self.failed.append(each)
                self.begun.pop(each.job, None)
                wish = self.wishes.get(each.job)
                if wish is not None and name not in self.dead:
                    self.wishes[each.job] = msgspec.structs.replace(wish, attempt=each.attempt + 1)

    def tell_keeper(self, name: str, event: Tick | Reserve | Commit | Release) -> None:
        mates = tuple({mate for region in self.regions if name in region.members for mate in region.members})
        self.books[name], done = keeper.step(self.books[name], event, self.now_s, TIMES, mates)
        self.send([each for each in done if isinstance(each, Send)])
        for each in done:
            if isinstance(each, keeper.Start):
                self.running[name, each.job] = each.attempt
            elif isinstance(each, keeper.Stop):
                self.running.pop((name, each.job), None)
        assert not overloads(self.books[name].capacity, keeper.used(self.books[name]))

    def tell_shields(self, name: str, event: Tick | Propose | Vote | Report | Alive) -> None:
        for key, state in list(self.shields.items()):
            if key[1] == name:
                self.shields[key], sends, _ = regions.step(state, event, self.now_s, TIMES)
                self.send(sends)

    def deliver(self, to: str, message: Message) -> None:
        if to in self.dead:
            return
        match message:
            case Reserve() | Commit() | Release():
                self.tell_keeper(to, message)
            case Propose() | Report():
                self.tell_shields(to, message)
            case Vote(region=""):
                self.tell_owner(to, message)
            case Vote():
                self.tell_shields(to, message)
            case Alive():
                self.tell_shields(to, message)
                self.tell_owner(to, message)
            case Judged() | Held():
                self.tell_owner(to, message)

    def run(self, until_s: float, tick_s: float = 0.5) -> None:
        while self.now_s < until_s:
            for name in self.books:
                if name not in self.dead:
                    self.tell_keeper(name, Tick())
                    self.tell_shields(name, Tick())
                    self.tell_owner(name, Tick())
            for wish in self.wishes.values():
                known = self.owners[wish.job.owner].placing.get(wish.job.id)
                if wish.job.owner not in self.dead and known is None:
                    self.tell_owner(wish.job.owner, owner.Place(wish))
            end_s = self.now_s + tick_s
            while due := sorted(each for each in self.flying if each[0] < end_s)[:1]:
                self.flying.remove(due[0])
                self.now_s = max(self.now_s, due[0][0])
                self.deliver(due[0][2], due[0][3])
            self.now_s = end_s

    def leaders(self, region: str) -> list[str]:
        return [
            name
            for (where, name), state in self.shields.items()
            if where == region and name not in self.dead and regions.leads(state)
        ]


def fleet(*, nodes: int = 3, cores: float = 2.0, size: int = 9, overlap: int = 0, seed: int = 0) -> Fleet:
    names = tuple(f"n{n}" for n in range(nodes))
    capacity = Capacity(cores=cores, memory_bytes=100, link_bytes_per_s=100)
    return Fleet(chain(names, size, overlap), capacity, seed)


def test_a_job_is_reserved_committed_run_renewed_and_released() -> None:
    world = fleet()
    world.run(20)
    assert world.leaders("r0") == ["n0"]
    world.wish(job("j", "n1", "n1", "n2", flow=1.0))
    world.run(30)
    assert world.begun["j"].nodes == ("n1", "n2")
    assert set(world.running) == {("n1", "j"), ("n2", "j")}
    world.run(120)
    assert world.begun["j"].attempt == 0 and not world.failed
    del world.wishes["j"]
    world.tell_owner("n1", owner.End("j"))
    world.run(125)
    assert not world.running and not any(books.holds for books in world.books.values())


def test_two_that_choose_the_same_node_are_kept_apart() -> None:
    world = fleet(cores=1)
    world.run(20)
    world.wish(job("a", "n1", "n0"))
    world.wish(job("b", "n2", "n0"))
    world.run(30)
    assert {each.nodes for each in world.begun.values()} != {("n0",)} and len(world.begun) == 2


def test_a_dead_shield_is_replaced_by_the_next_in_rank_and_what_runs_goes_on() -> None:
    world = fleet()
    world.run(20)
    world.wish(job("j", "n1", "n2"))
    world.run(30)
    world.dead.add("n0")
    world.run(60)
    assert world.leaders("r0") == ["n1"]
    assert world.begun["j"].attempt == 0
    world.wish(job("k", "n2", "n1"))
    world.run(75)
    assert world.begun["k"].nodes == ("n1",)


def test_without_a_shield_a_device_burdens_only_itself() -> None:
    world = fleet()
    world.run(20)
    world.dead.update({"n0", "n1"})
    world.run(28)
    world.wish(job("j", "n2", "n0", "n1"))
    world.run(31)
    assert world.begun["j"].nodes == ("n2", "n2")


def test_a_job_whose_host_died_is_placed_anew() -> None:
    world = fleet()
    world.run(20)
    world.wish(job("j", "n1", "n2"))
    world.run(30)
    world.dead.add("n2")
    world.run(70)
    assert world.begun["j"].attempt > 0 and world.begun["j"].nodes != ("n2",)
    assert any(each.ran and each.reasons[0].name == "lost" for each in world.failed)


def test_what_an_owner_that_died_held_lapses() -> None:
    world = fleet()
    world.run(20)
    world.wish(job("j", "n1", "n2"))
    world.run(30)
    world.dead.add("n1")
    world.run(30 + TIMES.lease_s + 5)
    assert ("n2", "j") not in world.running and not world.books["n2"].holds


def test_of_two_regions_both_may_use_the_boundary_but_never_beyond_what_it_has() -> None:
    world = fleet(nodes=4, cores=1, size=2, overlap=1)
    assert [region.members for region in world.regions] == [("n0", "n1", "n2"), ("n2", "n3", "n0")]
    world.run(20)
    world.wish(job("a", "n1", "n2"))
    world.wish(job("b", "n3", "n2"))
    world.run(40)
    assert len(world.begun) == 2
    assert {each.nodes for each in world.begun.values()} != {("n2",)}


@pytest.mark.parametrize("seed", range(8))
def test_under_loss_doubling_overtaking_and_death_nothing_is_overloaded_and_all_comes_to_an_end(seed: int) -> None:
    world = fleet(nodes=6, cores=2, size=3, overlap=1, seed=seed)
    world.loss, world.double, world.delay_s = 0.2, 0.2, 2.5
    rng = random.Random(seed)
    for n in range(14):
        by = f"n{rng.randrange(6)}"
        near = list(world.home[by].members)
        world.wish(job(f"j{n}", by, *rng.choices(near, k=rng.choice([1, 2]))))
        world.run(world.now_s + rng.random() * 6)
        if n == 7:
            world.dead.add(rng.choice(["n0", "n3"]))
        for name in list(world.begun):
            if rng.random() < 0.2:
                by = world.wishes.pop(name).job.owner
                del world.begun[name]
                world.tell_owner(by, owner.End(name))
    world.loss = world.double = world.delay_s = 0.0
    alive = {name: wish for name, wish in world.wishes.items() if wish.job.owner not in world.dead}
    world.wishes = {}
    for name, wish in alive.items():
        world.tell_owner(wish.job.owner, owner.End(name))
    world.run(world.now_s + 2 * TIMES.lease_s + TIMES.patience_s)
    assert not any(world.books[name].holds for name in world.books if name not in world.dead)
    assert all(len(world.leaders(region.name)) == 1 for region in world.regions)
    world.wish(job("last", "n1", "n1"))
    world.run(world.now_s + 20)
    assert "last" in world.begun


def _messages() -> Iterator[Message]:
    world = fleet()
    seen: list[Message] = []
    keep = world.send

    def record(sends: list[Send]) -> None:
        seen.extend(each.message for each in sends)
        keep(sends)

    world.send = record  # type: ignore[method-assign]  # listens on the wire
    world.run(20)
    world.wish(job("j", "n1", "n2"))
    world.run(30)
    yield from {type(each): each for each in seen}.values()


def test_every_message_survives_its_way_over_the_wire() -> None:
    messages = list(_messages())
    assert {Propose, Judged, Reserve, Vote, Commit, Held, Report, Alive} <= {type(each) for each in messages}
    for message in messages:
        plain = msgspec.to_builtins(message)
        assert msgspec.convert(plain, Message) == message
