from __future__ import annotations

import msgspec
import pytest

from edgert.placement.jobs import HOST, Flow, Job, Part, Proposal, Split, footprint, needs, pairs, traffic
from edgert.placement.load import Capacity, Resources


def part(work_s: float = 2.0, *flows: Flow) -> Part:
    return Part(compute_core_s=work_s, memory_bytes=7, flows=flows)


def proposal(split: Split, *nodes: str) -> Proposal:
    return Proposal(job=Job(id="j", owner="o", splits=(split,), steps=10), attempt=0, nodes=nodes)


def capacity(speed: float = 1.0, watts: float = 0.0) -> Capacity:
    return Capacity(cores=4, memory_bytes=100, link_bytes_per_s=100, speed=speed, watts_per_core=watts)


def test_a_pair_counts_once_whichever_end_named_it() -> None:
    split = Split(kind="data", parts=(part(1, Flow(1, 5.0), Flow(HOST, 2.0)), part(1, Flow(0, 8.0), Flow(0, 1.0))))
    assert pairs(split) == {(0, 1): 8.0, (HOST, 0): 2.0}


def test_flows_to_nobody_are_left_out() -> None:
    assert pairs(Split(kind="data", parts=(part(1, Flow(0, 5.0), Flow(9, 5.0), Flow(HOST, 0.0)),))) == {}


def test_a_slower_core_is_busy_for_longer_and_spends_more() -> None:
    job = Job(id="j", owner="o", splits=(Split(kind="data", parts=(part(),)),), steps=10)
    assert needs(job, part(), capacity(watts=2)) == Resources(1, 7, 0, 40, 2)
    assert needs(job, part(), capacity(0.5, watts=2)).energy_j == 80


@pytest.mark.parametrize(("kind", "rate"), [("data", 10 / 4), ("layers", 10 / (2 + 4))])
def test_traffic_is_what_a_step_cannot_be_shorter_than(kind: str, rate: float) -> None:
    split = msgspec.convert({"kind": kind, "parts": [part(), part()]}, Split)
    assert traffic(split, 0, 1, 10.0, (1.0, 0.5)) == pytest.approx(rate)
    assert traffic(split, HOST, 1, 10.0, (1.0, 0.5)) == pytest.approx(10 / 4)


def test_what_is_together_needs_no_link_and_the_host_pays_for_its_end() -> None:
    split = Split(kind="data", parts=(part(2, Flow(HOST, 4.0), Flow(1, 6.0)), part(2, Flow(HOST, 4.0))))
    nodes = {name: capacity() for name in "oab"}
    together = footprint(proposal(split, "o", "o"), ("o", "o"), nodes)
    assert set(together) == {"o"} and all(each.link_bytes_per_s == 0 for _, each in together["o"])
    apart = footprint(proposal(split, "a", "b"), ("a", "b"), nodes)
    assert [(k, each.link_bytes_per_s) for k, each in apart["o"]] == [(HOST, 4.0)]
    assert [each.link_bytes_per_s for name in "ab" for _, each in apart[name]] == [5.0, 5.0]
    assert "o" not in footprint(proposal(split, "a", "b"), ("a", "b"), {name: capacity() for name in "ab"})


def test_structs_survive_the_wire() -> None:
    made = proposal(Split(kind="layers", parts=(part(1, Flow(HOST, 1.0)),)), "a")
    assert msgspec.convert(msgspec.to_builtins(made), Proposal) == made
