"""What a device does for its fleet, with a disk and a shell that are a few lines each."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import msgspec
import pytest

from edgert import bus, wire
from edgert.config import Config, Device, Learn, Policy, Teacher
from edgert.errors import MessageError
from edgert.fleet import duties as dutieses
from edgert.fleet import records
from edgert.fleet.duties import Context, Duties
from edgert.fleet.ledger import Found, Outcome
from edgert.fleet.when import Facts
from edgert.values import ActorReport, TrainerReport, TrainOrder

CONFIG = Config(device=Device(id="d", fleet="f"), policy=Policy(bundle="b"))
UP = Facts(mains=True, link_up=True, metered=False, idle=True)
CONTEXT = Context(config=CONFIG, n_exits=3, facts=UP, trainer_here=True)
WALL_S = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc).timestamp()


class Shell:
    """Performs effects; `jobs`, `marks` and `facts` are the disk."""

    def __init__(self, context: Context = CONTEXT) -> None:
        self.context, self.now_s, self.wall_s = context, 0.0, WALL_S
        self.jobs, self.marks, self.facts = {}, {}, {}
        self.full = False
        self.opened({})

    def opened(self, found: dict[str, Found]) -> None:
        self.seen: list[bus.Effect] = []
        self.duties, effects = dutieses.open_duties(self.jobs, self.marks, self.facts, found, self.context, self.now_s)
        self.perform(effects)

    def perform(self, effects: list[bus.Effect]) -> None:
        for effect in effects:
            self.seen.append(effect)
            match effect:
                case bus.WriteJob(id_, body, mark):
                    if not self.full:
                        self.jobs[id_] = body
                        self.marks.update([mark] if mark else [])
                    self.feed(dutieses.written, bus.JobWritten(id_, "full" if self.full else ""))
                case bus.WriteMark(name, body):
                    self.marks[name] = body
                case bus.WriteFact(name, body):
                    self.facts[name] = body
                case bus.ForgetJobs(ids, (name, body)):
                    self.jobs = {id_: kept for id_, kept in self.jobs.items() if id_ not in ids}
                    self.facts[name] = body

    def feed(self, function, event) -> None:
        self.duties, effects = function(self.duties, event, self.context, self.now_s)
        self.perform(effects)

    def tick(self, seconds: float = 1.0) -> None:
        self.now_s += seconds
        self.wall_s += seconds
        self.feed(dutieses.tick, bus.Timed(self.wall_s, "b"))

    def hear(self, channel: str, kind: str, message: wire.Message, id_: str = "-", *, retained: bool = False) -> None:
        topic = wire.Topic("f", "d", channel, kind, id_)
        received = bus.Received(str(topic), wire.encode(message), None, retained)
        self.duties, effects = dutieses.receive(self.duties, topic, received, self.context, self.now_s)
        self.perform(effects)

    def order(self, id_: str, kind: str, **more) -> None:
        self.hear("job", "order", wire.JobOrder(id=id_, kind=kind, issued_s=self.wall_s, **more), id_)

    def states(self, id_: str) -> list[str]:
        return [
            wire.decode(effect.payload, wire.JobState)[0].state
            for effect in self.seen
            if isinstance(effect, bus.Publish) and effect.topic.endswith(f"/job/state/{id_}")
        ]

    def all(self, kind: type) -> list:
        return [effect for effect in self.seen if isinstance(effect, kind)]


def test_a_job_is_written_done_told_and_recorded():
    shell = Shell()
    shell.order("j", "bench", args={"for_s": 9})
    kinds = [type(effect).__name__ for effect in shell.seen]
    assert kinds == ["WriteJob", "Publish", "WriteJob", "Publish", "WriteJob", "Publish", "DoJob"]
    assert shell.seen[-1] == bus.DoJob("j", "bench", {"for_s": 9})
    shell.feed(dutieses.done, bus.JobDone("j", "", {"fastest": "onnx"}))
    assert shell.states("j") == ["received", "scheduled", "running", "done"]
    (event,) = shell.all(bus.Record)
    assert (event.name, event.detail["state"], event.detail["result"]) == ("job-ended", "done", {"fastest": "onnx"})
    last = [effect for effect in shell.all(bus.Publish) if effect.retain][-1]
    assert wire.decode(last.payload, wire.JobState)[0].result == {"fastest": "onnx"}
    # The same order again: the same answer, and no second effect.
    shell.order("j", "bench", args={"for_s": 9})
    assert shell.states("j")[-1] == "done"
    assert len(shell.all(bus.DoJob)) == 1
    assert len(shell.all(bus.Record)) == 1


@pytest.mark.parametrize(
    ("code", "state"),
    [("done", "done"), ("nothing-to-do", "done"), ("too-early", "failed"), ("checkpoint-not-written", "failed")],
)
def test_training_is_told_until_the_trainer_says_that_it_did_it(code, state):
    shell = Shell(msgspec.structs.replace(CONTEXT, trainer_here=False))
    shell.order("j", "train")
    assert shell.all(bus.Tell) == []
    assert dutieses.trainer_here(shell.duties) == [bus.Tell("trainer", TrainOrder("j", "now"))]
    report = TrainerReport(
        pid=1, steps=0, loss=None, transitions=0, asked=0, answered=0, joined=0, candidates=0, accepted=0, generation=0,
        checkpoint=0, faults={}, cpu_s=0.0, rss_bytes=0, order="other", order_told="x", order_code="done",
    )  # fmt: skip
    shell.feed(dutieses.heard, report)
    assert shell.states("j")[-1] == "running"
    shell.feed(dutieses.heard, msgspec.structs.replace(report, order="j", order_code=code))
    assert shell.states("j")[-1] == state
    assert dutieses.trainer_here(shell.duties) == []


def actor(pid: int, episodes: int, returns: list[float], **more) -> ActorReport:
    given = {"ticks": 0, "missed": 0, "reward": 0.0, "rewarded": 0, **more}
    return ActorReport(
        pid=pid, safe=0, exits=[], latency_p50_s=0.0, latency_p99_s=0.0, latency_max_s=0.0, episodes=episodes,
        returns=returns, faults={}, generation=4, acting=True, first_action_s=None, cpu_s=0.0, rss_bytes=0, **given,
    )  # fmt: skip


def test_an_evaluation_counts_the_episodes_from_now_on_over_a_restart_of_the_actor():
    shell = Shell()
    shell.order("j", "evaluate", args={"episodes": 3})
    for report in (
        actor(1, 7, [9.0, 9.0], ticks=100, missed=50),
        actor(1, 8, [9.0, 9.0, 1.0], ticks=200, missed=50),
        actor(2, 1, [5.0], ticks=10),
        actor(2, 3, [5.0, 2.0, 3.0], ticks=110, missed=10),
    ):
        shell.feed(dutieses.heard, report)
    (event,) = shell.all(bus.Record)
    assert event.detail["result"] == {
        "mean": 2.0, "of": "returns", "n": 3, "missed_frac": 10 / 200, "generation": 4,
    }  # fmt: skip
    assert shell.duties.watched == {}


def test_without_episodes_windows_are_counted():
    shell = Shell()
    shell.order("j", "evaluate", args={"windows": 2})
    for rewarded, reward in ((0, 0.0), (10, 5.0), (10, 5.0), (30, 25.0)):
        shell.feed(dutieses.heard, actor(1, 0, [], reward=reward, rewarded=rewarded))
    (event,) = shell.all(bus.Record)
    assert (event.detail["result"]["of"], event.detail["result"]["mean"]) == ("rewards a step", 0.75)


@pytest.mark.parametrize("kind", ["train", "fetch"])
def test_what_the_configuration_rules_out_is_left_to_the_shell_to_refuse(kind):
    config = msgspec.structs.replace(CONFIG, learn=Learn(enabled=False), teacher=Teacher(enabled=False))
    shell = Shell(msgspec.structs.replace(CONTEXT, config=config))
    shell.order("j", kind)
    assert shell.all(bus.DoJob) == [bus.DoJob("j", kind, {})]
    assert (shell.all(bus.Tell), shell.duties.fetching) == ([], {})


def test_knowledge_is_fetched_for_a_while():
    shell = Shell()
    shell.order("j", "fetch", args={"for_s": 60.0, "bytes_per_s": 123.0})
    assert dutieses.fetch_bytes_per_s(shell.duties) == 123.0
    shell.tick(59.0)
    assert shell.states("j")[-1] == "running"
    shell.tick(2.0)
    assert shell.states("j")[-1] == "done"
    assert dutieses.fetch_bytes_per_s(shell.duties) is None


@pytest.mark.parametrize("kind", ["evaluate", "fetch", "bench"])
def test_a_running_job_can_be_stopped(kind):
    shell = Shell()
    shell.order("j", kind)
    shell.hear("job", "cancel", wire.JobCancel(id="j", issued_s=WALL_S), "j")
    assert shell.states("j")[-1] == "cancelled"
    assert shell.all(bus.StopJob) == [bus.StopJob("j")]
    assert (shell.duties.watched, shell.duties.fetching) == ({}, {})


def test_a_successor_goes_on_with_what_it_finds():
    shell = Shell()
    shell.order("j", "bench")
    shell.opened({"j": Found(Outcome(result={"fastest": "numpy"}))})
    shell.tick()
    assert shell.states("j") == ["done"]
    assert shell.all(bus.DoJob) == []
    shell.order("k", "bench")
    shell.opened({})
    shell.tick()
    assert [effect.id for effect in shell.all(bus.DoJob)] == ["k"]
    assert records.read_job("k", shell.jobs["k"]).attempt == 2
    shell.opened({"k": Found(alive=True)})
    shell.tick()
    assert shell.all(bus.DoJob) == []


def test_an_end_of_which_nobody_was_told_is_told_by_the_successor():
    shell = Shell()
    shell.order("j", "bench")
    shell.feed(dutieses.done, bus.JobDone("j"))
    told = records.read_job("j", shell.jobs["j"])
    assert told.told
    shell.jobs["j"] = records.job_bytes(msgspec.structs.replace(told, told=False))  # the power went before the event
    shell.opened({})
    assert [event.name for event in shell.all(bus.Record)] == ["job-ended"]
    shell.opened({})
    assert shell.all(bus.Record) == []


def test_a_full_disk_accepts_nothing_and_says_so():
    shell = Shell()
    shell.full = True
    shell.order("j", "bench")
    assert shell.states("j") == ["refused"]
    (publish,) = shell.all(bus.Publish)
    assert not publish.retain, "nothing remembers it"
    assert shell.all(bus.DoJob) == []


DESIRED = wire.TwinDesired(
    epoch=1,
    version=1,
    settings={
        "labels": {"site": "north"},
        "goals": {"max_power_w": -1},
        "schedules": {"noon": {"kind": "bench", "cron": "30 12 * * *"}},
    },
)


def reported(shell: Shell) -> list[wire.TwinReported]:
    return [
        wire.decode(effect.payload, wire.TwinReported)[0]
        for effect in shell.all(bus.Publish)
        if effect.topic == "edgert/v1/f/d/twin/reported/-" and effect.retain
    ]


def test_wishes_are_written_obeyed_reported_and_found_again():
    shell = Shell()
    shell.hear("twin", "desired", DESIRED, retained=True)
    (told,) = reported(shell)
    assert (told.version, told.settings["labels"], set(told.refused)) == (1, {"site": "north"}, {"goals"})
    shell.hear("twin", "desired", DESIRED, retained=True)
    assert len(reported(shell)) == 1
    shell.opened({})
    assert shell.duties.twin.wishes.labels == {"site": "north"}
    assert set(shell.duties.agenda.schedules) == {"noon"}
    shell.hear("twin", "desired", msgspec.structs.replace(DESIRED, version=0, settings={}), retained=True)
    assert shell.duties.twin.wishes.labels == {"site": "north"}


def test_wishes_of_the_future_are_not_taken_because_they_could_never_be_changed():
    shell = Shell()
    shell.tick()
    late = wire.TwinDesired(epoch=int(WALL_S) + 2 * 86_400, version=1)
    with pytest.raises(MessageError, match="to come"):
        shell.hear("twin", "desired", late, retained=True)
    shell.hear("twin", "desired", msgspec.structs.replace(late, epoch=int(WALL_S)), retained=True)
    assert shell.duties.twin.rank[0] == int(WALL_S)


def test_what_the_actor_says_of_the_exits_is_reported():
    shell = Shell()
    shell.hear("twin", "desired", wire.TwinDesired(epoch=1, version=1, settings={"exits": {"point": 9}}), retained=True)
    assert reported(shell)[-1].settings["exits"] == {"point": 9}
    shell.duties, effects = dutieses.exits_answered(shell.duties, "there is no point 9", shell.context)
    shell.perform(effects)
    assert reported(shell)[-1].refused == {"exits": "there is no point 9"}


def test_a_broker_that_forgot_is_told_again():
    shell = Shell()
    shell.hear("twin", "desired", DESIRED, retained=True)
    shell.order("j", "bench")
    shell.seen.clear()
    shell.tick()
    assert shell.all(bus.Publish) == []
    shell.duties, effects = dutieses.link_up(shell.duties, shell.context)
    shell.perform(effects)
    assert shell.states("j") == ["running"]
    assert len(reported(shell)) == 1


def test_without_a_link_nothing_is_published_and_nothing_is_lost():
    shell = Shell(msgspec.structs.replace(CONTEXT, facts=Facts(mains=True)))
    shell.hear("twin", "desired", DESIRED, retained=True)
    shell.order("j", "bench")
    assert shell.all(bus.Publish) == []
    shell.duties, effects = dutieses.link_up(shell.duties, CONTEXT)
    assert len(effects) == 2


def test_a_schedule_of_the_twin_becomes_a_job_with_its_mark():
    shell = Shell()
    shell.tick()
    shell.hear("twin", "desired", DESIRED, retained=True)
    shell.tick()
    assert set(shell.marks) == {"noon"}
    shell.tick(1800.0)
    id_ = f"noon.{int(WALL_S + 1800)}"
    assert [effect.id for effect in shell.all(bus.DoJob)] == [id_]
    assert set(shell.states("noon")) == {"received", "scheduled", "running"}
    assert shell.all(bus.WriteJob)[0].mark[0] == "noon"
    shell.feed(dutieses.done, bus.JobDone(id_))
    # Its power goes, and its clock stands a day before.
    shell.wall_s -= 86_400.0
    shell.opened({})
    for _ in range(50):
        shell.tick(3600.0)
    assert [effect.id for effect in shell.all(bus.DoJob)] == [f"noon.{int(WALL_S + 1800 + 86_400)}"]


def test_the_time_is_noted_once_an_hour_and_when_it_was_wrong():
    shell = Shell()
    for _ in range(10):
        shell.tick(dutieses.SEEN_S / 2)
    assert len([each for each in shell.all(bus.WriteFact) if each.name == records.SEEN]) == 5
    shell.wall_s -= 86_400.0
    shell.tick()
    assert records.read_time(shell.facts[records.SEEN]) == shell.wall_s


@pytest.mark.parametrize(
    ("kind", "message", "topic_id", "retained", "why"),
    [
        ("order", wire.JobOrder(id="j", kind="bench", issued_s=1.0), "j", True, "retained"),
        ("order", wire.JobOrder(id="j", kind="bench", issued_s=1.0), "k", False, "last segment"),
        ("order", wire.JobOrder(id="a/b", kind="bench", issued_s=1.0), "a/b", False, "last segment"),
        ("order", wire.JobOrder(id="j", kind="bench", issued_s=1.0, args={"x": "y" * 20_000}), "j", False, "bytes"),
        ("cancel", wire.JobCancel(id="j", issued_s=float("inf")), "j", False, "1970"),
        ("cancel", wire.JobOrder(id="j", kind="bench", issued_s=1.0), "j", False, "schema"),
    ],
)
def test_what_cannot_be_is_a_message_error(kind, message, topic_id, retained, why):
    shell = Shell()
    with pytest.raises(MessageError, match=why):
        shell.hear("job", kind, message, topic_id, retained=retained)
    assert shell.seen == []


@pytest.mark.parametrize(
    "wrong", [{"issued_s": float("nan")}, {"issued_s": 1.0, "when": {"x": 1}}, {"issued_s": 1.0, "not_after_s": 1e999}]
)
def test_an_order_that_makes_no_sense_is_refused_to_its_sender_and_not_remembered(wrong):
    shell = Shell()
    shell.hear("job", "order", wire.JobOrder(id="j", kind="bench", **wrong), "j")
    assert shell.states("j") == ["refused"]
    assert shell.jobs == {}


def test_people_see_what_there_is():
    shell = Shell()
    shell.tick()
    shell.hear("twin", "desired", DESIRED, retained=True)
    shell.order("j", "bench", when={"battery_below_frac": 0.1})
    shell.tick()
    shown = dutieses.shown(shell.duties, shell.now_s, "d")
    assert shown["jobs"] == [
        {"id": "j", "kind": "bench", "state": "scheduled", "why": "battery_below_frac 0.1, is unknown"}
    ]
    assert 0 < shown["schedules"]["noon"]["next_s"] < 1800
    json.dumps(shown)


def test_it_subscribes_to_what_it_understands():
    topics = [wire.parse_topic(each.replace("+", "x")) for each in dutieses.subscriptions(CONFIG)]
    assert [(topic.channel, topic.type) for topic in topics] == [
        ("twin", "desired"),
        ("job", "order"),
        ("job", "cancel"),
    ]


def test_a_mark_that_cannot_be_read_is_recorded():
    _, effects = dutieses.open_duties({}, {"noon": b"\xff"}, {}, {}, CONTEXT, 0.0)
    assert effects == [bus.Record("mark-broken", {"schedule": "noon"})]
    assert Duties().twin.rank == (0, 0, "")


class PowerCutError(Exception):
    """Now."""


class Plug(Shell):
    """A shell whose plug is pulled before or after one effect; jobs are done at once and leave evidence."""

    def __init__(self, cut: int) -> None:
        self.cut, self.points = cut, 0
        self.done: dict[str, int] = {}
        self.events: list[tuple[str, str]] = []
        self.found: dict[str, Found] = {}
        super().__init__()

    def point(self) -> None:
        self.points += 1
        if self.points == self.cut:
            raise PowerCutError

    def perform(self, effects: list[bus.Effect]) -> None:
        for effect in effects:
            self.point()
            super().perform([effect])
            match effect:
                case bus.DoJob(id_, _, _) if id_ not in self.done:
                    self.done[id_] = 1
                    self.found[id_] = Found(Outcome())
                    self.point()
                    self.feed(dutieses.done, bus.JobDone(id_))
                case bus.DoJob(id_, _, _):
                    self.done[id_] += 1
                case bus.Record("job-ended", detail):
                    self.events.append((detail["id"], detail["state"]))
            self.point()


def lived(cut: int) -> Plug:
    """A day with a schedule: it is wished, becomes due, and its job is done."""
    shell = Plug(0)
    shell.cut = cut
    begun = False
    while True:
        try:
            if begun:
                shell.opened(shell.found)
            begun = True
            while shell.wall_s < WALL_S + 2400:
                if shell.wall_s < WALL_S + 300:
                    shell.hear("twin", "desired", DESIRED, retained=True)
                shell.tick(60.0)
            return shell
        except PowerCutError:
            continue


def test_a_power_cut_anywhere_between_a_wish_and_its_end_changes_nothing_of_what_is_done():
    whole = lived(0)
    id_ = f"noon.{int(WALL_S + 1800)}"
    assert whole.points > 30
    for cut in range(whole.points + 1):
        shell = lived(cut)
        assert shell.done == {id_: 1}, f"cut at {cut}"
        assert set(shell.events) == {(id_, "done")}, f"cut at {cut}"
        assert shell.duties.twin.rank == whole.duties.twin.rank
        assert set(shell.duties.ledger.ended) == {id_}
