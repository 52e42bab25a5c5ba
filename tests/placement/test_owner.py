from __future__ import annotations

import msgspec
import pytest

from edgert.placement import owner
from edgert.placement.jobs import HOST, Flow, Job, Part, Proposal, Reason, Split, Verdict
from edgert.placement.load import Capacity, Load
from edgert.placement.owner import Begin, End, Failed, Place, State
from edgert.placement.protocol import (
    Alive,
    Commit,
    Held,
    Judged,
    Propose,
    Region,
    Release,
    Reserve,
    Send,
    Tick,
    Times,
    Vote,
)

TIMES = Times(window_s=1, retry_s=1, patience_s=4, lease_s=12, dead_s=7)
CAPACITY = Capacity(cores=2, memory_bytes=10, link_bytes_per_s=10)
REGION = Region("r", ("s", "o", "a", "b"))
ALIVE = Alive(region="r", epoch=4, shield="s")


def wish(attempt: int = 0, flow: float = 0.0) -> Proposal:
    parts = (Part(compute_core_s=1, memory_bytes=1, flows=(Flow(HOST, flow),) if flow else ()),) * 2
    job = Job(id="j", owner="o", splits=(Split(kind="data", parts=parts),), steps=1)
    return Proposal(job=job, attempt=attempt, nodes=("a", "b"))


class Device:
    def __init__(self) -> None:
        self.state = State(node="o", region=REGION)
        self.done: owner.Done = []

    def at(self, now_s: float, event: Tick | Place | End | Alive | Judged | Vote | Held) -> list[object]:
        self.state, self.done = owner.step(self.state, event, now_s, TIMES, CAPACITY)
        return [each.message if isinstance(each, Send) else each for each in self.done]

    @property
    def to(self) -> list[str]:
        return [each.to for each in self.done if isinstance(each, Send)]


def granted(attempt: int = 0, epoch: int = 4) -> Judged:
    return Judged(Verdict(job="j", attempt=attempt, outcome="granted", nodes=("a", "b"), region="r", epoch=epoch))


def deferred() -> Judged:
    return Judged(Verdict(job="j", attempt=0, outcome="deferred", reasons=(Reason("no_room"),)))


def held(node: str, ok: bool = True, attempt: int = 0) -> Held:
    return Held(node=node, job="j", attempt=attempt, ok=ok)


def asking() -> Device:
    device = Device()
    device.at(0, ALIVE)
    device.at(0, Place(wish()))
    return device


def running() -> Device:
    device = asking()
    for event in (granted(), held("a"), held("b")):
        device.at(1, event)
    return device


def test_it_asks_commits_where_it_was_granted_and_begins_when_all_hold() -> None:
    device = Device()
    device.at(0, ALIVE)
    assert device.at(0, Place(wish())) == [Propose("r", wish())] and device.to == ["s"]
    commit = Commit(job="j", attempt=0, epoch=4, owner="o")
    assert device.at(1, granted()) == [commit, commit] and device.to == ["a", "b"]
    assert device.at(2, held("a")) == []
    assert device.at(2, held("b")) == [Begin("j", 0, ("a", "b"))]
    assert device.at(2, held("b")) == []


def test_its_own_end_of_the_traffic_is_committed_as_well() -> None:
    device = Device()
    device.at(0, ALIVE)
    device.at(0, Place(wish(flow=1.0)))
    device.at(1, granted())
    assert device.to == ["a", "b", "o"]


@pytest.mark.parametrize("event", [granted(attempt=1), held("a", attempt=1), held("stranger"), held("a")])
def test_what_does_not_fit_changes_nothing(event: Judged | Held) -> None:
    device = asking()
    before = device.state
    assert device.at(1, event) == [] and device.state == before


def test_questions_are_repeated_and_given_up() -> None:
    device = asking()
    assert device.at(1.5, Tick()) == []
    assert device.at(2.5, Tick()) == [Propose("r", wish())]
    device.at(5, ALIVE)
    (failed,) = [each for each in device.at(10, Tick()) if isinstance(each, Failed)]
    assert failed.reasons[0].name == "silent" and "j" not in device.state.placing


def test_a_refusal_is_passed_on() -> None:
    assert asking().at(1, deferred()) == [Failed("j", 0, (Reason("no_room"),))]


def test_a_node_that_lost_it_ends_the_attempt_everywhere() -> None:
    device = asking()
    device.at(1, granted())
    said = device.at(2, held("a", ok=False))
    assert Release(job="j", attempt=0) in said and device.to == ["a", "b"]
    assert said[-1] == Failed("j", 0, (Reason("lost", None, "a"),))


def test_without_a_shield_it_places_on_itself_under_a_new_attempt() -> None:
    device = asking()
    (failed,) = device.at(8, Tick())
    assert isinstance(failed, Failed) and failed.reasons == (Reason("no_shield"),)
    (asked,) = device.at(8, Place(wish(attempt=1)))
    assert isinstance(asked, Reserve) and device.to == ["o"] and asked.region == ""
    load = Load(node="o", session=1, seq=1, capacity=CAPACITY)
    vote = Vote(region="", epoch=0, job="j", attempt=1, ok=True, load=load)
    assert device.at(9, vote) == [Commit(job="j", attempt=1, epoch=0, owner="o")]
    assert device.at(9, held("o", attempt=1)) == [Begin("j", 1, ("o", "o"))]
    refused = msgspec.structs.replace(vote, attempt=2, ok=False, lacks=("cpu",))
    device.at(10, Place(wish(attempt=2)))
    (failed,) = [each for each in device.at(10, refused) if isinstance(each, Failed)]
    assert [each.name for each in failed.reasons] == ["no_shield", "cpu"]


def test_what_runs_is_renewed_and_lost_with_its_node() -> None:
    device = running()
    renewed = device.at(6, Tick())
    assert renewed == [Commit(job="j", attempt=0, epoch=4, owner="o")] * 2
    device.at(6, held("a"))
    (failed,) = [each for each in device.at(13.5, Tick()) if isinstance(each, Failed)]
    assert failed == Failed("j", 0, (Reason("lost", None, "b"),), ran=True)


def test_the_end_releases_every_place() -> None:
    device = running()
    assert device.at(5, End("j")) == [Release(job="j", attempt=0)] * 2
    assert device.at(5, End("j")) == []


def test_an_older_shield_is_not_believed() -> None:
    device = asking()
    device.at(1, Alive(region="r", epoch=3, shield="old"))
    assert device.state.shield == "s"
    device.at(1, Alive(region="other", epoch=9, shield="x"))
    assert device.state.shield == "s"
    assert owner.judged(device.state, 6.9, TIMES) and not owner.judged(device.state, 7.1, TIMES)
