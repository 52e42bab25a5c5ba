from __future__ import annotations

import numpy as np
import pytest

from edgert.nets import Params, initialise
from edgert.placement import agent
from edgert.placement.protocol import chain
from tools.bench.srole import boards, fluid, judge, play, policies
from tools.bench.srole.fluid import Fluid, Start


def node(name: str = "n", cores: float = 2, speed: float = 1.0, **more: float) -> boards.Node:
    made = boards.make_node(name, "raspberry-pi-4", 25.0, None)
    return made._replace(cores=cores, speed=speed, heat_w=1e9, link_bytes_per_s=10.0, **more)


def start(name: str, *nodes: int, work_s: float = 1.0, moved: float = 0.0, layers: bool = False) -> Start:
    flows = tuple((0, n, moved) for n in nodes if n and moved)
    return Start(name, layers, 10, tuple((n, work_s, 1.0, 1.0) for n in nodes), flows, 0.0)


def test_alone_a_job_takes_its_work_over_the_speed_of_its_core() -> None:
    world = Fluid([node(speed=0.5)])
    world.start(start("j", 0))
    assert world.left_s("j") == pytest.approx(20.0)
    (ended,) = world.advance(100.0)
    assert (ended.id, ended.at_s) == ("j", pytest.approx(20.0)) and world.now_s == 100.0


def test_four_on_two_cores_take_twice_as_long_and_transfers_wait_for_each_other() -> None:
    world = Fluid([node()])
    for name in "abcd":
        world.start(start(name, 0))
    assert [round(each.at_s, 3) for each in world.advance(100.0)] == [20.0] * 4
    world = Fluid([node("a"), node("b")])
    world.start(start("j", 1, moved=10.0))
    assert world.advance(100.0)[0].at_s == pytest.approx(20.0)


def test_layers_take_turns() -> None:
    for layers, took_s in ((False, 10.0), (True, 20.0)):
        world = Fluid([node("a"), node("b")])
        world.start(start("j", 0, 1, layers=layers))
        assert world.advance(100.0)[0].at_s == pytest.approx(took_s)


def test_heat_and_paging_slow_a_node_down() -> None:
    hot = node()._replace(heat_w=0.1, watts_per_core=1.0)
    full = node()._replace(memory_bytes=0.0)
    job = (((0, 1.0, 1.0, 20e6),),)
    assert fluid.speeds([node()], job) == [1.0]
    assert fluid.speeds([hot], job) == [boards.HOT_SPEED_FRAC]
    assert fluid.speeds([full], job) == [pytest.approx(0.5)]


@pytest.mark.parametrize("shield", ["none", "C", "D"])
@pytest.mark.parametrize("name", ["random", "HEFT, split", "agent"])
def test_every_job_ends_and_behind_a_shield_nothing_is_overloaded(shield: str, name: str) -> None:
    rng = np.random.default_rng(3)
    nodes = boards.cluster(6, rng)
    queue = boards.draw_jobs(nodes, 25, 1.2, rng)
    params = initialise(agent.SPEC, rng)
    decide = policies.learned(params, masked=True, explore=True) if name == "agent" else policies.rules()[name]
    cut = chain(tuple(each.name for each in nodes), 3, 1) if shield == "D" else ()
    setting = play.Setting(shield=shield, regions=cut, measured=True, charge=True)
    played = play.play(nodes, queue, decide, Fluid(nodes), setting, np.random.default_rng(1), limit_s=2e4)
    assert set(played.times_s) == {job.id for job in queue}
    assert all(took_s > 0 for took_s in played.times_s.values())
    if shield != "none":
        assert played.counts["overloads"] == played.counts["killed"] == played.counts["overload_node_s"] == 0
        assert max(played.use["memory"]) <= boards.ALPHA + 1e-9


def test_while_no_shield_lives_a_device_burdens_itself_alone_and_within_its_limits() -> None:
    rng = np.random.default_rng(3)
    nodes = boards.cluster(6, rng)
    queue = boards.draw_jobs(nodes, 25, 0.8, rng)
    played = {}
    for dies_every_s in (np.inf, 20.0):
        setting = play.Setting(shield="C", measured=True, dies_every_s=dies_every_s)
        decide = policies.learned(Params(agent.SPEC), masked=True, explore=False)
        played[dies_every_s] = play.play(nodes, queue, decide, Fluid(nodes), setting, np.random.default_rng(1))
    assert played[np.inf].counts["alone"] == 0 < played[20.0].counts["alone"]
    assert played[20.0].counts["overloads"] == 0 and len(played[20.0].times_s) == len(queue)


def test_the_same_dice_play_the_same_game() -> None:
    rng = np.random.default_rng(3)
    nodes = boards.cluster(5, rng)
    queue = boards.draw_jobs(nodes, 15, 0.8, rng)
    times = [
        play.play(
            nodes, queue, policies.rules()["random"], Fluid(nodes), play.Setting(shield="C"), np.random.default_rng(1)
        ).times_s
        for _ in range(2)
    ]
    assert times[0] == times[1]


@pytest.mark.skipif(not judge.available(), reason="python3-simgrid is not installed")
def test_the_fast_world_agrees_with_simgrid_on_the_same_placements() -> None:
    rng = np.random.default_rng(3)
    nodes = boards.cluster(5, rng)
    queue = boards.draw_jobs(nodes, 15, 0.8, rng)
    world = judge.SimGrid(nodes)
    try:
        setting = play.Setting(shield="C")
        played = play.play(nodes, queue, policies.rules()["HEFT, split"], world, setting, np.random.default_rng(1))
    finally:
        world.close()
    ends = play.replay(played.starts, Fluid(nodes))
    errors = [abs(ends[s.id] - played.spans[s.id][1]) / (played.spans[s.id][1] - at_s) for at_s, s in played.starts]
    assert len(errors) == 15 and float(np.mean(errors)) < 0.1
