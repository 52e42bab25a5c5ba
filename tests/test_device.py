"""A whole device: the fleet's wishes reach the brain, and what the brain hears moves the fleet's jobs."""

from __future__ import annotations

import msgspec
import pytest

from edgert import bus, config, control, device, wire
from edgert.device import Device
from edgert.fleet import twin
from edgert.fleet.ledger import Found, Outcome, State
from edgert.values import Budget, ExitsSet, Operating, Reading, Readings, SetExits, TrainOrder

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
WALL_S = 1_795_262_400.0


class Shell:
    """Feeds a device, and is its disk."""

    def __init__(self) -> None:
        self.now_s, self.jobs, self.marks, self.facts = 0.0, {}, {}, {}
        self.open({})
        self.feed(bus.LinkUp())

    def open(self, found: dict[str, Found]) -> None:
        self.seen: list[bus.Effect] = []
        world = control.open_world(
            CONFIG, task="breakout", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=self.now_s
        )
        self.device, effects = device.open_device(world, self.jobs, self.marks, self.facts, found, self.now_s)
        self.perform(effects)

    def perform(self, effects: list[bus.Effect]) -> None:
        for effect in effects:
            self.seen.append(effect)
            match effect:
                case bus.WriteJob(id_, body, mark):
                    self.jobs[id_] = body
                    self.marks.update([mark] if mark else [])
                    self.feed(bus.JobWritten(id_))
                case bus.WriteFact(name, body):
                    self.facts[name] = body

    def feed(self, event: bus.Input | bus.FleetInput) -> list[bus.Effect]:
        """What came of this event."""
        begun = len(self.seen)
        self.device, effects = device.step(self.device, event, self.now_s)
        self.perform(effects)
        return self.seen[begun:]

    def hear(self, channel: str, kind: str, message: wire.Message, id_: str = "-", *, retained: bool = False):
        topic = wire.Topic("default", "d1", channel, kind, id_)
        return self.feed(bus.Received(str(topic), wire.encode(message), None, retained))

    def wish(self, version: int, **settings: object) -> list[bus.Effect]:
        told = {key.replace("__", "."): value for key, value in settings.items()}
        message = wire.TwinDesired(epoch=1, version=version, settings=told)
        return self.hear("twin", "desired", message, retained=True)

    def order(self, id_: str, kind: str, **more: object) -> list[bus.Effect]:
        return self.hear("job", "order", wire.JobOrder(id=id_, kind=kind, issued_s=WALL_S, **more), id_)

    def states(self) -> dict[str, State]:
        ledger = self.device.duties.ledger
        jobs = [*(each.job for each in ledger.open.values()), *ledger.ended.values()]
        return {job.order.id: job.state for job in jobs}


def reported(effects: list[bus.Effect]) -> wire.TwinReported | None:
    found = [each for each in effects if isinstance(each, bus.Publish) and "/twin/reported/" in each.topic]
    return wire.decode(found[-1].payload, wire.TwinReported)[0] if found else None


def sensed(**more: object) -> bus.Sensed:
    readings = Readings(load_frac=Reading(0.1), temp_c=Reading(40.0), **more)
    return bus.Sensed(readings)


def test_the_brain_decides_by_the_wishes_and_by_the_configuration_when_they_go():
    shell = Shell()
    effects = shell.wish(1, goals={"max_power_w": 3.0}, learn__train_steps_hz=5.0)
    world = shell.device.world
    assert world.config.goals.max_power_w == world.governor.config.goals.max_power_w == 3.0
    assert world.governor.config.learn.train_steps_hz == 5.0
    assert reported(effects).settings["learn.train_steps_hz"] == 5.0
    shell.wish(2)
    assert shell.device.world.config == CONFIG


def test_exits_are_told_to_every_actor_until_they_are_not_wished_any_more():
    shell = Shell()
    effects = shell.wish(1, exits={"thresholds": [0.5, 0.9]})
    wished = SetExits(id=twin.EXITS_ID, operating=Operating((0.5, 0.9)))
    assert bus.Tell("actor", wished) in effects
    assert bus.Tell("actor", wished) in shell.feed(bus.Connected("actor", 9))
    effects = shell.feed(bus.Heard("actor", ExitsSet(id=twin.EXITS_ID, why="", operating=wished.operating, point=None)))
    assert reported(effects) is None, "it was reported so already"
    assert shell.device.world.order.told == wished
    shell.open({})
    assert bus.Tell("actor", wished) in shell.feed(bus.Connected("actor", 10))
    assert bus.Tell("actor", SetExits(id=twin.EXITS_ID)) in shell.wish(2)


def test_an_actor_that_refuses_is_reported():
    shell = Shell()
    shell.wish(1, exits={"point": 7})
    answer = ExitsSet(id=twin.EXITS_ID, why="no point 7", operating=Operating((0.5, 0.5)), point=None)
    told = reported(shell.feed(bus.Heard("actor", answer)))
    assert told.refused == {"exits": "no point 7"}


@pytest.mark.parametrize("paused", [True, False])
def test_training_is_paused_by_wish_and_a_person_on_the_spot_is_believed(paused):
    shell = Shell()
    if not paused:
        shell.feed(bus.TrainOrdered(TrainOrder("x", "pause")))
    effects = shell.wish(1, learn__paused=paused)
    assert bus.Pause(paused) in effects
    assert shell.device.world.paused is paused
    effects = shell.feed(bus.TrainOrdered(TrainOrder("y", "resume" if paused else "pause")))
    assert shell.device.world.paused is not paused
    assert reported(effects).settings["learn.paused"] is not paused


def test_knowledge_that_is_fetched_may_cost_more_for_a_while():
    shell = Shell()
    shell.order("j", "fetch", args={"for_s": 60.0, "bytes_per_s": 9e4})
    assert shell.device.world.governor.config.teacher.max_bytes_per_s == 9e4
    shell.now_s = 61.0
    shell.feed(bus.Timed(WALL_S, "b"))
    assert shell.states() == {"j": State.DONE}
    assert shell.device.world.governor.config == CONFIG


def test_a_job_waits_for_what_the_board_says():
    shell = Shell()
    shell.feed(sensed(has_battery=True, battery_frac=Reading(0.3)))
    shell.order("j", "upload", when={"battery_above_frac": 0.5})
    assert shell.states() == {"j": State.SCHEDULED}
    for shell.now_s in range(1, 60):
        shell.feed(sensed(has_battery=True, battery_frac=Reading(0.8)))
    shell.feed(bus.Timed(WALL_S, "b"))
    assert bus.DoJob("j", "upload", {}) in shell.seen


def test_a_governor_without_room_keeps_jobs_waiting():
    shell = Shell()
    shell.device = msgspec.structs.replace(
        shell.device, world=msgspec.structs.replace(shell.device.world, budget=Budget(0, 0.0, 0.0, accept_jobs=False))
    )
    shell.order("j", "bench")
    assert shell.device.duties.ledger.open["j"].blocked == ("the governor has no room",)


def test_training_is_told_to_a_trainer_that_comes_later():
    shell = Shell()
    shell.feed(sensed())
    shell.order("j", "train")
    assert shell.states() == {"j": State.RUNNING}
    assert bus.Tell("trainer", TrainOrder("j", "now")) in shell.feed(bus.Connected("trainer", 12))


def test_a_successor_finds_jobs_and_wishes():
    shell = Shell()
    shell.wish(3, labels={"site": "north"}, schedules={"often": {"kind": "upload", "every_s": 60}})
    shell.order("j", "upload")
    shell.open({"j": Found(Outcome())})
    shell.feed(bus.Timed(WALL_S, "b"))
    assert shell.states()["j"] is State.DONE
    assert shell.device.duties.twin.rank[:2] == (1, 3)
    assert bus.DoJob("often.1", "upload", {}) in shell.seen


@pytest.mark.parametrize("payload", [b"", b"\xff", wire.encode(wire.JobCancel(id="other", issued_s=1.0))])
@pytest.mark.parametrize("topic", ["job/order", "job/cancel", "job/dance", "twin/desired", "twin/reported"])
def test_nonsense_is_counted_and_changes_nothing(payload, topic):
    shell = Shell()
    before = shell.device.duties
    channel, kind = topic.split("/")
    shell.feed(bus.Received(str(wire.Topic("default", "d1", channel, kind, "x")), payload, None))
    assert shell.device.duties == before
    assert shell.device.world.counters["malformed-messages"] == 1


def test_everything_else_is_for_the_brain():
    shell = Shell()
    shell.feed(bus.Received("nonsense", b"", None))
    assert shell.device.world.counters["malformed-messages"] == 1
    assert isinstance(shell.device, Device)
    assert set(control.subscriptions(CONFIG)) < set(device.subscriptions(CONFIG))
