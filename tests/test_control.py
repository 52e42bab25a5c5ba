"""The supervisor's brain, one event at a time: no process, no socket, no clock."""

from __future__ import annotations

import cbor2
import msgspec
import pytest

from edgert import bus, children, config, control, wire
from edgert.bus import Effect, Input
from edgert.children import Child
from edgert.control import World
from edgert.fleet import session
from edgert.govern import governor, trial
from edgert.govern.cost import unknown
from edgert.status import document
from edgert.values import (
    EXITS_ORDER_ENDED,
    ActorReport,
    Answer,
    Ask,
    Budget,
    Candidate,
    ExitsSet,
    Happened,
    Note,
    Operating,
    Outcome,
    Reading,
    Readings,
    SetExits,
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


def fresh(now_s: float = 0.0) -> World:
    return control.open_world(
        CONFIG, task="breakout", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=now_s
    )


def report(**changes: object) -> ActorReport:
    base = {
        "pid": 11,
        "ticks": 20,
        "missed": 0,
        "safe": 0,
        "exits": [20, 0, 0],
        "latency_p50_s": 1e-4,
        "latency_p99_s": 2e-4,
        "latency_max_s": 3e-4,
        "episodes": 0,
        "returns": [],
        "faults": {},
        "generation": 0,
        "acting": True,
        "first_action_s": 0.5,
        "cpu_s": 1.0,
        "rss_bytes": 1,
    }
    return ActorReport(**{**base, **changes})  # type: ignore[arg-type]  # a table of changes is not typed per field


def feed(world: World, *events: tuple[float, Input]) -> tuple[World, list[Effect]]:
    effects: list[Effect] = []
    for now_s, event in events:
        world, new = control.step(world, event, now_s)
        effects += new
    return world, effects


def started() -> World:
    """Everything runs and has said hello, the link is up."""
    events: list[tuple[float, Input]] = [(0.0, bus.Tick())]
    for pid, role in enumerate(("world", "actor", "trainer"), 10):
        events.append((0.0, bus.Spawned(role, pid)))  # type: ignore[arg-type]  # a literal in a tuple widens to str
    events += [(0.1, bus.Connected("actor", 11)), (0.1, bus.Connected("trainer", 12)), (0.2, bus.LinkUp())]
    return feed(fresh(), *events)[0]


def of(effects: list[Effect], kind: type) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def test_what_should_run_is_started_once() -> None:
    _, effects = feed(fresh(), (0.0, bus.Tick()), (0.0, bus.Tick()))
    assert [effect.role for effect in of(effects, bus.Start)] == ["world", "actor", "trainer"]


def test_a_dead_child_is_restarted_at_once_and_then_ever_more_slowly() -> None:
    world, now_s, waits, pid = started(), 1.0, [], 11
    for _ in range(10):
        world, effects = control.step(world, bus.Exited("actor", pid, -9), now_s)
        died_s = now_s
        while not of(effects, bus.Start):
            now_s = control.wake_s(world, now_s) + 1e-9
            world, effects = control.step(world, bus.Tick(), now_s)
        waits.append(round(now_s - died_s, 6))
        pid += 1
        world, _ = control.step(world, bus.Spawned("actor", pid), now_s)
    assert waits[0] == 0 and waits == sorted(waits) and waits[-1] == pytest.approx(children.RESTART_CAP_S, abs=1.1)
    now_s += children.STABLE_S
    _, effects = control.step(world, bus.Exited("actor", pid, 0), now_s)
    assert of(effects, bus.Start), "a child that lived long is forgiven"


def test_a_silent_actor_is_killed_and_a_reporting_one_never() -> None:
    world = started()
    for second in range(1, 50):
        world, effects = control.step(world, bus.Heard("actor", report(ticks=20 * second)), float(second))
        assert not of(effects, bus.Kill)
    world, effects = control.step(world, bus.Tick(), 49.0 + children.HANG_S + 0.1)
    assert of(effects, bus.Kill) == [bus.Kill("actor", 11)]
    _, effects = control.step(world, bus.Tick(), 49.0 + children.HANG_S + 0.2)
    assert not of(effects, bus.Kill), "its death is under way"


def test_a_child_that_never_says_hello_is_killed_but_the_world_need_not() -> None:
    world, _ = feed(fresh(), (0.0, bus.Tick()))
    for role, pid in (("world", 10), ("actor", 11), ("trainer", 12)):
        world, _ = control.step(world, bus.Spawned(role, pid), 0.0)  # type: ignore[arg-type]  # as above
    world, effects = control.step(world, bus.Tick(), children.START_PATIENCE_S + 0.1)
    assert {effect.pid for effect in of(effects, bus.Kill)} == {11}, "a niced child on a busy board takes longer"
    _, effects = control.step(world, bus.Tick(), children.PATIENT_HANG_S + 0.1)
    assert 12 in {effect.pid for effect in of(effects, bus.Kill)}


def test_watchdog_follows_progress_not_time() -> None:
    world, effects = control.step(started(), bus.Heard("actor", report(ticks=20)), 1.0)
    assert of(effects, bus.Notify)[0].ready
    world, effects = control.step(world, bus.Heard("actor", report(ticks=40)), 2.0)
    assert of(effects, bus.Notify)[0].alive and not of(effects, bus.Notify)[0].ready
    world, effects = control.step(world, bus.Heard("actor", report(ticks=40)), 3.0)
    assert not of(effects, bus.Notify)[0].alive


def test_an_accepted_network_is_swapped_in_committed_and_given_to_a_restarted_actor() -> None:
    told = Candidate(1, "/gen-1", "ab", {"regret": True}, {"regret_after": 0.1})
    world, effects = control.step(started(), bus.Heard("trainer", told), 5.0)
    swap = Swap(1, "/gen-1", "ab")
    assert bus.Tell("actor", swap) in effects and not of(effects, bus.Commit)
    world, effects = feed(
        world,
        (6.0, bus.Exited("actor", 11, -9)),
        (6.1, bus.Spawned("actor", 20)),
        (6.5, bus.Connected("actor", 20)),
    )
    assert bus.Tell("actor", swap) in effects, "the swap it never made"
    world, effects = control.step(world, bus.Heard("actor", Swapped(1, True, "", 100, 0, 0.1)), 7.0)
    assert [effect.note.generation for effect in of(effects, bus.Commit)] == [1]
    assert world.networks.target == swap and world.networks.pending is None


def test_a_network_that_kills_the_actor_is_not_offered_for_ever() -> None:
    world, _ = control.step(started(), bus.Heard("trainer", Candidate(1, "/gen-1", "ab", {}, {})), 5.0)
    now_s, offers = 6.0, 0
    for pid in range(11, 18):
        world, effects = control.step(world, bus.Exited("actor", pid, -11), now_s)
        refused = [effect for effect in of(effects, bus.Record) if effect.name == "swap-refused"]
        assert bool(refused) == (pid == 11 + trial.DEATHS_MAX - 1)
        now_s += children.RESTART_CAP_S
        world, effects = feed(
            world,
            (now_s, bus.Spawned("actor", pid + 1)),
            (now_s, bus.Connected("actor", pid + 1)),
        )
        offers += bus.Tell("actor", Swap(1, "/gen-1", "ab")) in effects
        now_s += 1.0
    assert offers == trial.DEATHS_MAX - 1 and world.networks.pending is None
    assert world.networks.target.generation == 0


def test_a_refused_network_changes_nothing() -> None:
    world, effects = control.step(started(), bus.Heard("trainer", Candidate(0, "", "", {"regret": False}, {})), 5.0)
    assert not of(effects, bus.Tell) and world.counters["networks-refused"] == 1
    told = Candidate(1, "/gen-1", "ab", {}, {})
    world, _ = control.step(world, bus.Heard("trainer", told), 6.0)
    world, effects = control.step(world, bus.Heard("actor", Swapped(1, False, "golden", 0, 0, 0.1)), 7.0)
    assert world.networks.target.generation == 0 and world.networks.pending is None and not of(effects, bus.Commit)
    assert of(effects, bus.Record)[0].name == "swap-refused"


def test_a_question_carries_where_its_answer_belongs_and_the_answer_finds_back() -> None:
    world, effects = control.step(started(), bus.Heard("trainer", Ask(258, b"q")), 1.0)
    sent = of(effects, bus.Publish)[0]
    assert sent.topic == "edgert/v1/default/d1/know/ask/breakout" and sent.correlation == bytes(6) + b"\x01\x02"
    answer = bus.Received(sent.response_topic, b"a", sent.correlation)
    _, effects = control.step(world, answer, 2.0)
    assert of(effects, bus.Tell) == [bus.Tell("trainer", Answer(258, b"a"))]


def test_events_are_kept_until_a_collector_has_them() -> None:
    world, effects = control.step(started(), bus.Stored("events", 1, 2), 1.0)
    assert of(effects, bus.SendEvents) == [bus.SendEvents("events", 0, 2, 1)]
    ack = bus.Received("edgert/v1/default/d1/cmd/ack/-", wire.encode(wire.EventAck(stream="s", up_to=2)), None)
    _, effects = control.step(world, ack, 2.0)
    assert of(effects, bus.ForgetEvents) == [bus.ForgetEvents("events", 2)]


def test_the_budget_reaches_both_and_its_change_is_an_event() -> None:
    cool = Readings(load_frac=Reading(0.1), temp_c=Reading(40.0), link_rtt_s=Reading(0.001))
    world, effects = control.step(started(), bus.Sensed(cool), 10.0)
    assert {effect.role for effect in of(effects, bus.Tell)} == {"actor", "trainer"}
    hot = Readings(load_frac=Reading(0.1), temp_c=Reading(140.0), link_rtt_s=Reading(0.001))
    for second in range(11, 60):
        world, effects = control.step(world, bus.Sensed(hot), float(second))
    assert world.budget is not None and world.budget.max_exit == 0 and world.budget.train_steps_hz == 0
    assert world.budget.why["max_exit"] == "temp-critical"


def test_a_trainer_report_shows_in_the_status() -> None:
    trainer = TrainerReport(
        pid=12, steps=3, loss=None, transitions=9, asked=1, answered=1, joined=1, candidates=0, accepted=0,
        generation=0, checkpoint=1, faults={}, cpu_s=0.1, rss_bytes=5,
    )  # fmt: skip
    world, _ = control.step(started(), bus.Heard("trainer", trainer), 1.0)
    told = document(world, 2.0)
    assert told["trainer"]["steps"] == 3 and told["link"]["up"]  # type: ignore[index]  # a document of plain maps


def test_an_adopted_outbox_sends_again_what_nobody_acknowledged() -> None:
    world = control.open_world(CONFIG, task="t", n_exits=1, note=None, streams={"events": ("s", 3, 5)}, now_s=0.0)
    assert world.outboxes["events"].phase is session.OutboxPhase.OFFLINE
    _, effects = control.step(world, bus.LinkUp(), 1.0)
    assert of(effects, bus.SendEvents) == [bus.SendEvents("events", 2, 5, 3)]
    assert world.children["actor"] == Child(since_s=0.0)


def test_what_outlived_a_predecessor_is_not_started_again() -> None:
    world = control.open_world(
        CONFIG,
        task="t",
        n_exits=1,
        note=None,
        streams={"events": ("s", 1, 0)},
        now_s=0.0,
        adopted={"actor": 7, "world": 5},
    )
    world, effects = control.step(world, bus.Tick(), 0.0)
    assert [effect.role for effect in of(effects, bus.Start)] == ["trainer"]
    world, effects = control.step(world, bus.Exited("actor", 99, 78), 1.0)
    assert not of(effects, bus.Start) and world.children["actor"].pid == 7, "a second instance that left again"
    world, effects = control.step(world, bus.Exited("actor", 7, None), 2.0)
    assert [effect.role for effect in of(effects, bus.Start)] == ["actor"]


def test_a_trainer_that_hangs_is_killed_and_one_that_works_on_is_not() -> None:
    world = started()
    for second in range(1, 10):
        world, _ = control.step(world, bus.Heard("actor", report(ticks=20 * second)), float(second))
    told = TrainerReport(
        pid=12, steps=3, loss=None, transitions=9, asked=1, answered=1, joined=1, candidates=0, accepted=0,
        generation=0, checkpoint=1, faults={}, cpu_s=0.1, rss_bytes=5,
    )  # fmt: skip
    world, _ = control.step(world, bus.Heard("trainer", told), 10.0)
    assert document(world, 12.5)["trainer_age_s"] == 2.5
    end_s = 10.0 + children.PATIENT_HANG_S
    world, effects = control.step(world, bus.Heard("actor", report(ticks=1000)), end_s - 0.1)
    assert not of(effects, bus.Kill)
    world, effects = control.step(world, bus.Tick(), end_s + 0.1)
    assert of(effects, bus.Kill) == [bus.Kill("trainer", 12)]
    world, _ = control.step(world, bus.Exited("trainer", 12, -9), end_s + 0.2)
    world, _ = control.step(world, bus.Spawned("trainer", 13), end_s + 0.3)
    world, effects = control.step(world, bus.Connected("trainer", 13), end_s + 0.4)
    assert not of(effects, bus.Kill), "the silence of its predecessor is not its own"


OPERATING = Operating((0.2, 0.3), 4, 0.9)


def commanded(world: World, now_s: float, **fields: object) -> tuple[World, list[Effect]]:
    payload = cbor2.dumps({"schema": "exits-command", "v": 1, "id": "c1", **fields})
    return control.step(world, bus.Received("edgert/v1/default/d1/cmd/exits/-", payload, None), now_s)


def replies(effects: list[Effect]) -> list[wire.CommandReply]:
    found = [effect for effect in of(effects, bus.Publish) if "/tele/reply/" in effect.topic]
    return [wire.decode(effect.payload, wire.CommandReply)[0] for effect in found]


def orders(effects: list[Effect]) -> list[SetExits]:
    return [effect.told for effect in of(effects, bus.Tell) if isinstance(effect.told, SetExits)]


def obeyed(world: World, now_s: float, id_: str = "c1", why: str = "") -> tuple[World, list[Effect]]:
    told = ExitsSet(id=id_, why=why, operating=OPERATING, point=3)
    return control.step(world, bus.Heard("actor", told), now_s)


def test_an_order_is_told_answered_and_told_again_to_a_new_actor() -> None:
    wanted = {"thresholds": [0.2, 0.3], "repeat": 4, "hold_threshold": 0.9, "valid_s": 60.0}
    world, effects = commanded(started(), 1.0, **wanted)
    assert orders(effects) == [SetExits(id="c1", operating=OPERATING, left_s=60.0)]
    assert not replies(effects) and document(world, 1.0)["policy"]["exits_order"] is None  # type: ignore[index]  # a document of plain maps
    world, effects = obeyed(world, 1.1)
    (reply,) = replies(effects)
    assert (reply.id, reply.ok, reply.detail["repeat"], reply.detail["point"]) == ("c1", True, 4, 3)
    assert [effect.name for effect in of(effects, bus.Record)] == ["exits-set"]
    assert document(world, 2.0)["policy"]["exits_order"] == "c1"  # type: ignore[index]  # as above
    world, _ = control.step(world, bus.Exited("actor", 11, -9), 11.0)
    world, effects = control.step(world, bus.Connected("actor", 21), 11.0)
    assert orders(effects) == [SetExits(id="c1", operating=OPERATING, left_s=50.0)]
    world, effects = control.step(world, bus.Connected("actor", 22), 62.0)
    assert not orders(effects), "its time is over"


def test_an_order_that_found_no_actor_waits_for_it() -> None:
    world, _ = control.step(started(), bus.Exited("actor", 11, -9), 1.0)
    world, _ = commanded(world, 2.0, point=2)
    world, effects = control.step(world, bus.Connected("actor", 21), 3.0)
    assert orders(effects) == [SetExits(id="c1", point=2)]


def test_a_refused_order_leaves_the_former_one() -> None:
    world, _ = commanded(started(), 1.0, point=2)
    world, _ = obeyed(world, 1.0)
    world, _ = commanded(world, 2.0, id="c2", point=99)
    world, effects = obeyed(world, 2.0, "c2", "no such point")
    assert [(reply.ok, reply.why) for reply in replies(effects)] == [(False, "no such point")]
    assert [effect.name for effect in of(effects, bus.Record)] == ["exits-refused"]
    _, effects = control.step(world, bus.Connected("actor", 21), 3.0)
    assert [order.id for order in orders(effects)] == ["c1"]


def test_an_order_that_a_new_actor_refuses_is_forgotten() -> None:
    world, _ = commanded(started(), 1.0, point=2)
    world, _ = obeyed(world, 1.0)
    world, _ = control.step(world, bus.Connected("actor", 21), 2.0)
    world, _ = obeyed(world, 2.1, why="no frontier")
    assert world.order is None


def test_an_order_that_the_actor_gave_up_is_forgotten() -> None:
    world, _ = commanded(started(), 1.0, point=2)
    world, _ = obeyed(world, 1.0)
    ended = Happened(EXITS_ORDER_ENDED, {"id": "c1", "why": "expired"})
    world, effects = control.step(world, bus.Heard("actor", ended), 2.0)
    assert [effect.name for effect in of(effects, bus.Record)] == [EXITS_ORDER_ENDED]
    _, effects = control.step(world, bus.Connected("actor", 21), 3.0)
    assert not orders(effects)


@pytest.mark.parametrize("fields", [{"thresholds": [0.5]}, {"thresholds": [0.5, float("nan")]}, {"point": -1}])
def test_a_bad_command_changes_nothing_and_is_named_counted_and_answered(fields: dict[str, object]) -> None:
    before = started()
    world, effects = commanded(before, 1.0, **fields)
    assert world.counters["bad-command"] == 1 and not orders(effects)
    assert [effect.name for effect in of(effects, bus.Record)] == ["bad-command"]
    assert [reply.ok for reply in replies(effects)] == [False]
    world, effects = commanded(world, 2.0, id="a/b")
    assert world.counters["bad-command"] == 2 and not replies(effects), "nobody could receive that"
    assert (world.order, world.offered) == (None, ())


def test_of_two_orders_under_way_the_one_that_was_obeyed_is_told_to_a_new_actor() -> None:
    world, _ = commanded(started(), 1.0, id="c1", point=2)
    world, _ = commanded(world, 1.0, id="c2", point=99)
    world, _ = obeyed(world, 1.1, "c1")
    world, _ = obeyed(world, 1.1, "c2", "no such point")
    _, effects = control.step(world, bus.Connected("actor", 21), 3.0)
    assert [order.id for order in orders(effects)] == ["c1"]


def test_a_flood_of_orders_that_nobody_answers_is_refused_until_they_expire() -> None:
    world = started()
    for i in range(control.OFFERED_MAX):
        world, _ = commanded(world, 1.0, id=f"c{i}", point=2, valid_s=10.0)
    crowded, effects = commanded(world, 2.0, id="more", point=2)
    assert [(reply.id, reply.ok) for reply in replies(effects)] == [("more", False)]
    assert not orders(effects) and crowded.offered == world.offered and crowded.counters["exits-crowded"] == 1
    world, effects = commanded(world, 12.0, id="more", point=2)
    assert [order.id for order in orders(effects)] == ["more"] and len(world.offered) == 1


def test_a_retained_order_does_not_come_back_with_every_connection() -> None:
    payload = cbor2.dumps({"schema": "exits-command", "v": 1, "id": "c1", "point": 2})
    message = bus.Received("edgert/v1/default/d1/cmd/exits/-", payload, None, retained=True)
    world, effects = control.step(started(), message, 1.0)
    assert not orders(effects) and world.offered == ()
    assert [(reply.ok, reply.why[:8]) for reply in replies(effects)] == [(False, "retained")]


def test_the_budget_asks_for_a_cheaper_setting_where_the_actor_has_one() -> None:
    hot = bus.Sensed(Readings(temp_c=Reading(80.0), load_frac=Reading(0.1)))
    for has_frontier, max_exit in ((False, 1), (True, 2)):
        world, _ = feed(started(), (1.0, bus.Heard("actor", report(has_frontier=has_frontier))), (2.0, hot))
        assert world.budget is not None
        assert (world.budget.max_exit, world.budget.max_ops_frac < 1) == (max_exit, True)


def test_programs_of_the_users_ask_through_the_same_budget() -> None:
    world, effects = feed(started(), (1.0, bus.Sensed(Readings())), (1.0, bus.AskersHere((7,))))
    assert world.budget is not None
    granted = world.budget.teacher_bytes_per_s
    assert of(effects, bus.TellAsker) == [bus.TellAsker(7, world.budget)]
    question = wire.encode(wire.KnowAsk(task="other", obs_shape=(1, 1, 1), n_actions=2, count=1, codec=1, data=b"x"))
    world, effects = control.step(world, bus.Asked(7, Ask(3, question)), 1.1)
    (sent,) = of(effects, bus.Publish)
    assert isinstance(sent, bus.Publish) and sent.topic == "edgert/v1/default/d1/know/ask/other"
    answer = bus.Received(sent.response_topic or "", b"told", sent.correlation)
    world, effects = control.step(world, answer, 1.2)
    assert of(effects, bus.TellAsker) == [bus.TellAsker(7, Answer(3, b"told"))] and not of(effects, bus.Tell)
    assert world.counters["ask-bytes"] == len(question) and world.counters["answer-bytes"] == 4
    # The trainer now shares with it, and gets all of it again when it has gone.
    cut = msgspec.structs.replace(world.budget, teacher_bytes_per_s=granted / 2)
    assert bus.Tell("trainer", cut) in control.step(world, bus.Connected("trainer", 12), 1.3)[1]
    assert bus.Tell("trainer", world.budget) in control.step(world, bus.AskersHere(()), 1.4)[1]


def test_without_a_link_programs_are_refused_and_told_when_to_ask_again() -> None:
    world, _ = feed(started(), (1.0, bus.Sensed(Readings())), (1.0, bus.AskersHere((7,))), (1.1, bus.LinkDown("x")))
    world, effects = control.step(world, bus.Asked(7, Ask(3, b"anything")), 1.2)
    (told,) = of(effects, bus.TellAsker)
    assert isinstance(told, bus.TellAsker) and isinstance(told.told, Answer) and not of(effects, bus.Publish)
    assert wire.decode(told.told.payload, wire.KnowAnswer)[0].error == "over-budget"
    assert world.counters["asks-over-share"] == 1


def trainer_told(effects: list[Effect]) -> list[Told]:
    told = [effect.told for effect in of(effects, bus.Tell) if effect.role == "trainer"]
    return [each for each in told if not isinstance(each, Budget)]


def test_the_trainer_hears_what_became_of_its_network_and_where_it_stands() -> None:
    world, _ = control.step(started(), bus.Heard("trainer", Candidate(1, "/gen-1", "ab", {}, {})), 5.0)
    world, effects = control.step(world, bus.Heard("actor", Swapped(1, True, "", 100, 0, 0.1)), 6.0)
    swap = Swap(1, "/gen-1", "ab")
    assert trainer_told(effects) == [Outcome(swap, 1, "swapped")]
    _, effects = control.step(world, bus.Connected("trainer", 33), 7.0)
    assert trainer_told(effects) == [Outcome(swap)]


def test_a_network_that_earns_less_is_rolled_back_noted_and_never_offered_again() -> None:
    world, now_s, episodes = started(), 1.0, 0
    installed, swap = Swap(0, "/p.edgert", ""), Swap(1, "/gen-1", "ab")

    def earn(world: World, network: Swap, value: float) -> tuple[World, list[Effect]]:
        nonlocal episodes, now_s
        episodes, now_s = episodes + 1, now_s + 1
        told = report(
            ticks=20 * episodes, episodes=episodes, returns=[value], played=[network.generation], network=network
        )
        return control.step(world, bus.Heard("actor", told), now_s)

    for i in range(20):
        world, _ = earn(world, installed, 10.0 + i % 3)
    world, _ = control.step(world, bus.Heard("trainer", Candidate(1, "/gen-1", "ab", {}, {})), now_s)
    world, _ = control.step(world, bus.Heard("actor", Swapped(1, True, "", 100, 0, 0.1)), now_s)
    effects: list[Effect] = []
    while not of(effects, bus.Commit):
        world, effects = earn(world, swap, 1.0)
        assert episodes < 30
    (note,) = [effect.note for effect in of(effects, bus.Commit)]
    assert note == Note(0, "", "", refused=(swap,))
    assert effects.index(bus.Commit(note)) < effects.index(bus.Tell("actor", installed)), "first it is written down"
    assert "policy-rolled-back" in [effect.name for effect in of(effects, bus.Record)]
    assert world.counters["networks-rolled-back"] == 1
    _, effects = control.step(world, bus.Heard("trainer", Candidate(2, "/gen-2", "ab", {}, {})), now_s)
    assert [told.what for told in trainer_told(effects)] == ["refused"]


def test_networks_that_no_gate_judged_stand_no_trial() -> None:
    learn = msgspec.structs.replace(CONFIG.learn, gated=False)
    world = msgspec.structs.replace(started(), config=msgspec.structs.replace(CONFIG, learn=learn))
    for episodes in range(1, 60):
        swapped = episodes > 20
        if episodes == 20:
            world, _ = control.step(world, bus.Heard("trainer", Candidate(1, "/gen-1", "ab", {}, {})), 20.5)
            world, _ = control.step(world, bus.Heard("actor", Swapped(1, True, "", 100, 0, 0.1)), 20.6)
        network = Swap(1, "/gen-1", "ab") if swapped else Swap(0, "/p.edgert", "")
        told = report(
            ticks=20 * episodes,
            episodes=episodes,
            returns=[1.0 if swapped else 10.0 + episodes % 3],
            played=[network.generation],
            network=network,
        )
        world, _ = control.step(world, bus.Heard("actor", told), 1.0 + episodes)
    assert "networks-rolled-back" not in world.counters


def test_pausing_takes_the_budget_of_training_and_outlives_a_restart() -> None:
    cool = bus.Sensed(Readings(load_frac=Reading(0.1), temp_c=Reading(40.0), link_rtt_s=Reading(0.001)))
    world, _ = control.step(started(), cool, 1.0)
    assert world.budget is not None and world.budget.train_steps_hz > 0
    world, effects = control.step(world, bus.TrainOrdered(TrainOrder("a", "pause")), 2.0)
    assert world.budget is not None and (world.budget.train_steps_hz, world.budget.teacher_bytes_per_s) == (0, 0)
    assert world.budget.why["train_steps_hz"] == governor.PAUSED and bus.Pause(True) in effects
    assert world.budget.max_exit == 2, "acting goes on"
    world, effects = control.step(world, bus.TrainOrdered(TrainOrder("b", "pause")), 3.0)
    assert not of(effects, bus.Record), "it was so already"
    world, effects = control.step(world, bus.TrainOrdered(TrainOrder("c", "resume")), 4.0)
    assert world.budget is not None and world.budget.train_steps_hz > 0 and bus.Pause(False) in effects
    again = control.open_world(
        CONFIG, task="t", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=0.0, paused=True
    )
    again, _ = control.step(again, cool, 1.0)
    assert again.budget is not None and again.budget.train_steps_hz == 0


def test_a_candidate_now_is_the_trainers_to_make() -> None:
    order = TrainOrder("a", "now")
    _, effects = control.step(started(), bus.TrainOrdered(order), 1.0)
    assert bus.Tell("trainer", order) in effects and not of(effects, bus.Pause)


def goals_told(world: World, now_s: float, **fields: object) -> tuple[World, list[Effect]]:
    payload = cbor2.dumps({"schema": "goals-command", "v": 1, "id": "g1", **fields})
    return control.step(world, bus.Received("edgert/v1/default/d1/cmd/goals/-", payload, None), now_s)


def test_goals_of_the_fleet_hold_at_once_are_answered_and_end() -> None:
    world, effects = goals_told(started(), 1.0, goals={"max_power_w": 0.1}, valid_s=10.0)
    assert [(reply.id, reply.ok, reply.detail["goals"]["max_power_w"]) for reply in replies(effects)] == [  # type: ignore[index]  # plain maps
        ("g1", True, 0.1)
    ]
    told = document(world, 1.0)
    assert told["goals"]["order"] == "g1" and told["goals"]["verdicts"]["power"]["met"] is False  # type: ignore[index]
    assert "power_w" in told["estimates"]  # type: ignore[operator]
    world, effects = feed(world, (12.0, bus.Sensed(Readings(load_frac=Reading(0.1)))))
    assert world.governor.wish is None
    assert "goals-order-ended" in {effect.name for effect in of(effects, bus.Record)}
    world, _ = goals_told(world, 13.0, goals={"bytes_per_day": 5})
    world, _ = goals_told(world, 14.0)
    assert world.governor.wish is None, "without any, the configuration's come back"


@pytest.mark.parametrize(
    "fields",
    [
        {"goals": {"max_power_w": -1.0}},
        {"goals": {"max_power_w": float("nan")}},
        {"goals": {"nonsense": 1}},
        {"goals": {"last_until": "25:00"}},
        {"goals": {"priorities": ["link", "link", "link"]}},
        {"goals": {"max_power_w": 3.0}, "valid_s": 0.0},
        {"goals": 3},
        {"id": "a/b"},
    ],
)
def test_goals_that_make_no_sense_change_nothing(fields: dict[str, object]) -> None:
    world, _ = goals_told(started(), 1.0, **fields)
    assert world.governor.wish is None and world.counters["bad-command"] == 1


def test_the_prices_of_a_new_network_are_asked_for_and_taken() -> None:
    swap = Swap(1, "/g1", "a")
    world, effects = feed(started(), (1.0, bus.Heard("actor", report(network=swap))))
    assert of(effects, bus.Price) == [bus.Price(swap)]
    world, _ = feed(world, (2.0, bus.Priced(swap, unknown(3, 7.0))))
    assert world.governor.prices.rate_hz == 7.0


def test_a_device_that_nobody_asks_looks_more_seldom_and_at_once_again_when_somebody_does() -> None:
    world = msgspec.structs.replace(started(), ready=True)
    world, _ = control.step(world, bus.Heard("actor", report(ticks=7)), 100.0)
    assert control.pace(world, 100.0 + control.QUIET_S - 0.1) == 1.0
    world, _ = control.step(world, bus.Heard("actor", report(ticks=7)), 101.0)
    assert control.pace(world, 100.0 + control.QUIET_S) == control.QUIET_PACE
    assert control.wake_s(world, 120.0) <= 120.0 + control.QUIET_PACE < 120.0 + children.HANG_S
    world, _ = control.step(world, bus.Heard("actor", report(ticks=8)), 120.0)
    assert control.pace(world, 120.0) == 1.0
    govern = msgspec.structs.replace(world.config.govern, period_s=10.0)  # no reading may become stale for it
    config = msgspec.structs.replace(world.config, govern=govern)
    assert control.pace(msgspec.structs.replace(world, config=config), 500.0) == 1.0


def test_a_supervisor_that_was_held_up_listens_before_it_kills() -> None:
    world, _ = control.step(started(), bus.Heard("actor", report()), 20.0)
    late_s = 20.0 + 10 * children.HANG_S  # a disk took so long
    for event in (bus.Sensed(Readings()), bus.Tick(20.5)):
        world, effects = control.step(world, event, late_s)
        assert of(effects, bus.Kill) == []
    _, effects = control.step(world, bus.Tick(late_s), late_s)
    assert bus.Kill("actor", 11) in of(effects, bus.Kill)
