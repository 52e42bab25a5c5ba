from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.placement import jobs, shield
from edgert.placement.jobs import Flow, Job, Part, Proposal, Split, Verdict
from edgert.placement.load import Capacity, Resources, overloads, total
from edgert.placement.shield import Room

AMPLE = 1_000_000


def node(
    cores: float = 4,
    memory: float = 4,
    link: float = 1e9,
    *,
    speed: float = 1.0,
    energy_j: float | None = None,
    heat_w: float | None = None,
    watts: float = 0.0,
) -> Capacity:
    return Capacity(
        cores=cores,
        memory_bytes=memory,
        link_bytes_per_s=link,
        speed=speed,
        energy_j=energy_j,
        heat_w=heat_w,
        watts_per_core=watts,
    )


def ask(
    name: str,
    *nodes: str,
    cores: float = 1.0,
    memory: float = 1.0,
    flow: float = 0.0,
    kind: str = "data",
    **more: object,
) -> Proposal:
    parts = tuple(
        Part(
            compute_core_s=1.0,
            cores=cores,
            memory_bytes=memory,
            flows=(Flow(k - 1, flow),) if flow else (),
        )
        for k in range(len(nodes))
    )
    split = Split(kind=kind, parts=parts)  # type: ignore[arg-type]  # a literal, given by the tests
    job = Job(id=name, owner=str(more.pop("owner", "a")), splits=(split,), steps=1)
    return Proposal(job=job, attempt=0, nodes=nodes, **more)  # type: ignore[arg-type]  # only known fields


def used_after(proposals: list[Proposal], verdicts: list[Verdict], rooms: dict[str, Room]) -> dict[str, Resources]:
    capacities = {name: room.capacity for name, room in rooms.items()}
    amounts = {name: [room.used] for name, room in rooms.items()}
    for proposal, verdict in zip(proposals, verdicts, strict=True):
        if verdict.nodes:
            for name, held in jobs.footprint(proposal, verdict.nodes, capacities).items():
                amounts[name].extend(amount for _, amount in held)
    return {name: total(each) for name, each in amounts.items()}


def assert_safe(proposals: list[Proposal], verdicts: list[Verdict], rooms: dict[str, Room]) -> None:
    for name, used in used_after(proposals, verdicts, rooms).items():
        before = overloads(rooms[name].capacity, rooms[name].used)
        assert set(overloads(rooms[name].capacity, used)) <= set(before), name


def feasible(proposals: list[Proposal], rooms: dict[str, Room]) -> int | None:
    """By trying everything: the fewest parts that must move so that all fit, or None."""
    capacities = {name: room.capacity for name, room in rooms.items()}
    best: int | None = None
    sizes = [len(proposal.nodes) for proposal in proposals]
    for flat in itertools.product(rooms, repeat=sum(sizes)):
        at, places = 0, []
        for size in sizes:
            places.append(flat[at : at + size])
            at += size
        amounts = {name: [room.used] for name, room in rooms.items()}
        for proposal, place in zip(proposals, places, strict=True):
            for name, held in jobs.footprint(proposal, place, capacities).items():
                amounts[name].extend(amount for _, amount in held)
        if not any(overloads(capacities[name], total(each)) for name, each in amounts.items()):
            wanted = itertools.chain.from_iterable(proposal.nodes for proposal in proposals)
            moved = sum(a != b for a, b in zip(wanted, flat, strict=True))
            best = moved if best is None else min(best, moved)
    return best


def test_what_fits_together_is_left_alone() -> None:
    rooms = {name: Room(node()) for name in "ab"}
    asked = [ask("1", "a", "a"), ask("2", "b"), ask("3", "a", "b")]
    assert [(each.outcome, each.nodes) for each in shield.judge(asked, rooms)] == [
        ("granted", ("a", "a")),
        ("granted", ("b",)),
        ("granted", ("a", "b")),
    ]


def test_a_collision_moves_one_part_to_what_its_agent_likes_next() -> None:
    rooms = {name: Room(node(cores=1)) for name in "abc"}
    asked = [ask("1", "a", ranked=(("a", "c", "b"),)), ask("2", "a", ranked=(("a", "c", "b"),))]
    verdicts = shield.judge(asked, rooms)
    assert sorted(each.outcome for each in verdicts) == ["granted", "moved"]
    moved = next(each for each in verdicts if each.outcome == "moved")
    assert moved.nodes == ("c",)
    assert [(each.name, each.node, each.need) for each in moved.reasons] == [("cpu", "a", 1.0)]


def test_the_fewest_parts_move_though_the_largest_is_among_them() -> None:
    rooms = {"a": Room(node(cores=4)), "b": Room(node(cores=4))}
    asked = [ask("big", "a", cores=3), ask("2", "a", cores=2), ask("3", "a", cores=2)]
    assert [each.nodes for each in shield.judge(asked, rooms)] == [("b",), ("a",), ("a",)]


def test_room_is_made_by_moving_what_did_not_collide() -> None:
    """Only b can take the large one: what sits there by choice must give way."""
    rooms = {"a": Room(node(memory=4)), "b": Room(node(memory=8))}
    asked = [ask("1", "b", memory=4), ask("2", "a", memory=6)]
    verdicts = shield.judge(asked, rooms)
    assert [each.nodes for each in verdicts] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("capacity", "name"),
    [
        (node(cores=0.5), "cpu"),
        (node(memory=0.5), "memory"),
        (node(energy_j=1, watts=2), "battery"),
        (node(heat_w=1, watts=2), "heat"),
    ],
)
def test_a_job_that_fits_nowhere_waits_and_is_told_for_want_of_what(capacity: Capacity, name: str) -> None:
    (verdict,) = shield.judge([ask("1", "a")], {"a": Room(capacity)})
    assert verdict.outcome == "deferred" and verdict.nodes == ()
    assert name in [each.name for each in verdict.reasons]


def test_a_link_too_thin_puts_parts_together() -> None:
    rooms = {"a": Room(node(link=1)), "b": Room(node(link=1))}
    (verdict,) = shield.judge([ask("1", "a", "b", flow=10.0)], rooms)
    assert verdict.outcome == "moved" and verdict.nodes == ("a", "a")


def test_when_not_all_have_room_the_urgent_are_placed() -> None:
    rooms = {"a": Room(node(cores=1))}
    asked = [ask("later", "a", urgency_s=9.0), ask("now", "a", urgency_s=1.0)]
    later, now = shield.judge(asked, rooms)
    assert now.outcome == "granted" and later.outcome == "deferred"
    assert "no_room" in [each.name for each in later.reasons]


def test_a_node_nobody_knows_is_replaced() -> None:
    (verdict,) = shield.judge([ask("1", "zz")], {"a": Room(node())})
    assert verdict.nodes == ("a",) and verdict.reasons[0].name == "unknown_node"


def test_of_two_attempts_the_newer_counts() -> None:
    rooms = {name: Room(node()) for name in "ab"}
    old, new = ask("1", "a"), ask("1", "b")
    new = Proposal(job=new.job, attempt=1, nodes=("b",))
    verdicts = shield.judge([new, old], rooms)
    assert [each.outcome for each in verdicts] == ["granted", "deferred"]
    assert verdicts[1].reasons[0].name == "superseded"


def test_nonsense_waits() -> None:
    good = ask("1", "a")
    short = Proposal(job=good.job, attempt=0, nodes=())
    beyond = Proposal(job=good.job, attempt=1, nodes=("a",), split=7)
    assert {each.outcome for each in shield.judge([short, beyond], {"a": Room(node())})} == {"deferred"}
    assert shield.judge([good], {})[0].outcome == "deferred"


amount = st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Proposal], dict[str, Room]]:
    rooms = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        capacity = node(
            draw(amount) * 1.5,
            draw(amount) * 1.5,
            draw(st.sampled_from([1.0, 2.0, 8.0])),
            speed=draw(st.sampled_from([0.5, 1.0, 2.0])),
            energy_j=draw(st.sampled_from([None, 2.0, 6.0])),
            heat_w=draw(st.sampled_from([None, 2.0, 5.0])),
            watts=draw(st.sampled_from([0.0, 1.0])),
        )
        cores, size = draw(st.sampled_from([0.0, 0.5])), draw(st.sampled_from([0.0, 1.0]))
        used = Resources(min(cores, capacity.cores), min(size, capacity.memory_bytes))
        rooms[name] = Room(capacity, used)
    asked, parts_left = [], 5
    for j in range(draw(st.integers(1, 4))):
        count = min(draw(st.integers(1, 3)), parts_left)
        if not count:
            break
        parts_left -= count
        wanted = tuple(draw(st.sampled_from("abcz")) for _ in range(count))
        asked.append(
            ask(
                str(j),
                *wanted,
                cores=draw(amount),
                memory=draw(amount),
                flow=draw(st.sampled_from([0.0, 0.5, 2.0])),
                kind=draw(st.sampled_from(["data", "layers"])),
                owner=draw(st.sampled_from("ab")),
                urgency_s=draw(st.sampled_from([0.0, 1.0])),
            )
        )
    return asked, rooms


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_nothing_is_overloaded_and_nothing_waits_that_need_not(world: tuple[list[Proposal], dict[str, Room]]) -> None:
    asked, rooms = world
    verdicts = shield.judge(asked, rooms, work=AMPLE)
    assert_safe(asked, verdicts, rooms)
    fewest = feasible(asked, rooms)
    waits = [each for each in verdicts if each.outcome == "deferred"]
    assert bool(waits) == (fewest is None)
    assert all(each.reasons for each in verdicts if each.outcome != "granted")
    if fewest is None:
        assert not any(reason.name == "search_limit" for each in waits for reason in each.reasons)


@settings(max_examples=120, deadline=None)
@given(worlds(), st.integers(0, 40))
def test_however_little_work_is_allowed_nothing_is_overloaded(
    world: tuple[list[Proposal], dict[str, Room]], work: int
) -> None:
    asked, rooms = world
    verdicts = shield.judge(asked, rooms, work=work)
    assert len(verdicts) == len(asked)
    assert_safe(asked, verdicts, rooms)


@settings(max_examples=100, deadline=None)
@given(worlds())
def test_as_few_parts_move_as_must_where_only_those_of_the_collision_need_to(
    world: tuple[list[Proposal], dict[str, Room]],
) -> None:
    asked, rooms = world
    asked = [each for each in asked if set(each.nodes) <= set(rooms)]
    fewest = feasible(asked, rooms) if asked else None
    if fewest is None:
        return
    verdicts = shield.judge(asked, rooms, work=AMPLE)
    moved = sum(
        a != b for one, two in zip(asked, verdicts, strict=True) for a, b in zip(one.nodes, two.nodes, strict=True)
    )
    assert (moved == 0) == (fewest == 0)
    assert fewest <= moved


def test_five_and_twenty_nodes_under_every_load_stay_within_their_limits_in_the_work_allowed() -> None:
    rng = random.Random(7)
    for _ in range(60):
        rooms = {
            f"n{n}": Room(
                node(
                    rng.choice([2, 4, 6]), rng.choice([1, 2, 4]), rng.choice([5.0, 50.0]), speed=rng.choice([0.5, 1, 2])
                ),
                Resources(rng.choice([0, 1, 2]), rng.choice([0, 0.5])),
            )
            for n in range(25)
        }
        names = list(rooms)
        asked = [
            ask(
                str(j),
                *rng.choices(names, k=rng.choice([1, 2, 4])),
                memory=rng.choice([0.3, 0.6]),
                flow=rng.choice([0.0, 0.2]),
                ranked=tuple(tuple(rng.sample(names, 25)) for _ in range(4)),
                owner=rng.choice(names),
            )
            for j in range(rng.choice([3, 10, 30]))
        ]
        assert_safe(asked, shield.judge(asked, rooms), rooms)
