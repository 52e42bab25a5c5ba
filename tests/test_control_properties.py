"""The supervisor's brain under any events in any order: whatever comes, its promises hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import bus, config, control, wire
from edgert.bus import Input
from edgert.govern.cost import unknown
from edgert.status import document
from edgert.values import (
    ActorReport,
    Ask,
    Budget,
    Candidate,
    Clock,
    ExitsSet,
    Happened,
    Operating,
    Readings,
    Swap,
    Swapped,
    Told,
    TrainerReport,
    TrainOrder,
)

CONFIG = config.parse(
    """
    [device]
    id = "d1"
    [policy]
    bundle = "/p.edgert"
    [plant]
    kind = "simulated"
    env = "MinAtar/Breakout-v1"
    """,
    "test",
)

topics = st.sampled_from(
    [
        "",
        "x",
        "edgert/v1/default/d1/know/answer/breakout",
        "edgert/v1/default/d1/cmd/ack/-",
        "edgert/v1/a/b/c/d/e",
        "edgert/v1/default/d1/cmd/zz/-",
        "edgert/v1/default/d1/cmd/goals/-",
    ]
)
told: st.SearchStrategy[Told] = st.one_of(
    st.builds(Ask, ask_id=st.integers(0, 2**63 - 1), payload=st.binary(max_size=9)),
    st.builds(
        Candidate,
        generation=st.integers(0, 3),
        path=st.sampled_from(["", "/g"]),
        sha256=st.just("a"),
        checks=st.just({}),
        detail=st.just({}),
    ),
    st.builds(
        Swapped,
        generation=st.integers(0, 3),
        ok=st.booleans(),
        why=st.just(""),
        tick=st.just(1),
        missed=st.just(0),
        prepare_s=st.just(0.1),
    ),
    st.builds(Happened, name=st.sampled_from(["a", "b"]), detail=st.just({})),
    st.builds(
        ActorReport,
        pid=st.just(11),
        ticks=st.integers(0, 100),
        missed=st.just(0),
        safe=st.just(0),
        exits=st.just([20, 0, 0]),
        latency_p50_s=st.just(1e-4),
        latency_p99_s=st.just(2e-4),
        latency_max_s=st.just(3e-4),
        faults=st.just({}),
        generation=st.just(0),
        acting=st.booleans(),
        first_action_s=st.just(0.5),
        cpu_s=st.just(1.0),
        rss_bytes=st.just(1),
        episodes=st.integers(0, 5),
        returns=st.just([1.0, 2.0]),
        played=st.sampled_from([[], [0, 1], [None, 2]]),
        network=st.sampled_from([None, Swap(0, "/p.edgert", ""), Swap(1, "/g", "a"), Swap(2, "/g", "b")]),
    ),
    st.builds(
        ExitsSet,
        id=st.just("c"),
        why=st.sampled_from(["", "no"]),
        operating=st.just(Operating((0.2, 0.3))),
        point=st.just(None),
    ),
    st.just(
        TrainerReport(
            pid=12,
            steps=3,
            loss=None,
            transitions=9,
            asked=1,
            answered=1,
            joined=1,
            candidates=0,
            accepted=0,
            generation=0,
            checkpoint=1,
            faults={},
            cpu_s=0.1,
            rss_bytes=5,
        )
    ),
    st.just(Budget(0, 0.0, 0.0)),
)
numbers = st.integers(0, 3)  # of programs; none is 0
question = wire.encode(wire.KnowAsk(task="t", obs_shape=(1, 1, 1), n_actions=2, count=1, codec=1, data=b"x"))
streams = st.sampled_from(["events", "notices", "unknown"])
roles = st.sampled_from(["actor", "trainer", "world", "client"])
inputs: st.SearchStrategy[Input] = st.one_of(
    st.builds(bus.Spawned, role=roles, pid=st.integers(1, 99)),
    st.builds(bus.Exited, role=roles, pid=st.integers(0, 99), code=st.one_of(st.none(), st.integers(-9, 78))),
    st.builds(bus.Connected, role=roles, pid=st.integers(1, 99)),
    st.builds(bus.Heard, role=roles, told=told),
    st.just(bus.LinkUp()),
    st.builds(bus.LinkDown, reason=st.just("gone")),
    st.builds(
        bus.Received,
        topic=topics,
        payload=st.binary(max_size=40),
        correlation=st.one_of(st.none(), st.binary(max_size=9), numbers.map(lambda n: n.to_bytes(8, "big") + bytes(8))),
        retained=st.booleans(),
    ),
    st.builds(bus.Stored, stream=streams, first=st.just(1), last=st.integers(0, 20)),
    st.builds(bus.Refused, stream=streams, seq=st.integers(0, 30)),
    st.builds(
        bus.Sensed,
        readings=st.just(Readings()),
        clock=st.sampled_from([None, Clock(1, 5.0)]),
        carried_bytes=st.one_of(st.none(), st.integers(0, 9)),
    ),
    st.builds(bus.Priced, network=st.just(Swap(0, "/p.edgert", "")), prices=st.sampled_from([None, unknown(3)])),
    st.just(bus.Tick()),
    st.builds(
        bus.TrainOrdered,
        order=st.builds(TrainOrder, id=st.just("x"), verb=st.sampled_from(["pause", "resume", "now"])),
    ),
    st.builds(bus.AskersHere, numbers=st.lists(st.integers(1, 3), unique=True).map(tuple)),
    st.builds(
        bus.Asked,
        number=numbers,
        ask=st.builds(Ask, ask_id=st.integers(-1, 2**64), payload=st.one_of(st.binary(max_size=9), st.just(question))),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 30), inputs), max_size=40))
def test_nothing_that_happens_breaks_it(history: list[tuple[float, Input]]) -> None:
    world = control.open_world(
        CONFIG, task="t", n_exits=3, note=None, streams={"events": ("s", 1, 0), "notices": ("t", 1, 3)}, now_s=0.0
    )
    now_s = 0.0
    for wait_s, event in history:
        now_s += wait_s
        world, effects = control.step(world, event, now_s)
        starts = [effect.role for effect in effects if isinstance(effect, bus.Start)]
        assert len(starts) == len(set(starts))
        assert now_s <= control.wake_s(world, now_s) <= now_s + control.QUIET_PACE
        assert set(world.children) == {"world", "actor", "trainer"}
        document(world, now_s)
