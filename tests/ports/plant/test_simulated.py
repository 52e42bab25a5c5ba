from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import ConfigError
from edgert.ports import ipc
from edgert.ports.plant import Observation, Plant
from edgert.ports.plant.simulated import SimulatedPlant
from edgert.programs.world import World

SHAPE = (2, 3, 2)
WAIT_S = 10.0  # generous: passed only when something is broken


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    yield directory / "s"
    shutil.rmtree(directory)


def request(value: int = 0, **changes: object) -> dict[str, object]:
    frame = {"obs": bytes([value]) * 12, "shape": list(SHAPE), "dtype": "uint8", "reward": 0.5}
    return {**frame, "terminated": False, "truncated": False, **changes}


FAULTY = [
    ({"shape": [2, 3, 3]}, "observation-shape"),
    ({"dtype": "float32"}, "observation-dtype"),
    ({"reward": math.nan}, "reward-not-finite"),
    ({"obs": "text"}, "malformed-frame"),
    ({"episode": "one"}, "malformed-frame"),
    ({"episode": 10**5000}, "malformed-frame"),
    ({"seq": 1 << 40}, "malformed-frame"),
    ({"world": 10**5000}, "malformed-frame"),
    ({"action": -(10**5000)}, "malformed-frame"),
    ({"shape": [10**5000]}, "observation-shape"),
    ({"error": "no"}, "malformed-frame"),
    ({"error": 10**5000}, "malformed-frame"),
]


class ScriptedWorld:
    """The other end of a SimulatedPlant, played by hand."""

    def __init__(self, path: Path, number: int = 1) -> None:
        self.listener = ipc.listen(path)
        self.number = number
        self.channel: ipc.Channel | None = None

    def show(self, episode: int = 1, seq: int = 1, action: int | None = None, **changes: object) -> None:
        if self.channel is None:
            self.channel = ipc.accept(self.listener)
        assert self.channel is not None
        place = {"episode": episode, "seq": seq, "world": self.number, "action": action}
        assert self.channel.send_map({**request(seq % 256), **place, **changes})

    def told(self) -> list[object]:
        assert self.channel is not None
        return [message["action"] for message in self.channel.receive_maps()]

    def close(self) -> None:
        self.listener.close()
        if self.channel is not None:
            self.channel.close()


@pytest.fixture
def world(path: Path) -> Iterator[ScriptedWorld]:
    world = ScriptedWorld(path)
    yield world
    world.close()


@pytest.fixture
def simulated(path: Path) -> Iterator[SimulatedPlant]:
    plant = SimulatedPlant(path, SHAPE)
    yield plant
    plant.close()


def act(plant: Plant, action: int) -> None:
    plant.apply(action, exit=0, confidence=0.9, generation=0)


def observed(plant: Plant) -> Observation:
    observation = plant.observe(WAIT_S)
    assert observation is not None, plant.last_fault
    return observation


def test_the_simulated_plant_moves_in_lockstep(world: ScriptedWorld, simulated: SimulatedPlant) -> None:
    assert simulated.observe(0.0) is None and simulated.faults == {}
    world.show(reward=0.0)
    first = observed(simulated)
    assert (first.seq, first.episode, first.action, first.reward) == (1, 1, None, 0.0)
    assert first.obs.shape == SHAPE and first.obs.dtype == np.uint8 and not first.obs.flags.writeable
    act(simulated, 2)
    act(simulated, 1)  # the world still owes the answer to the first
    assert world.told() == [2]
    assert simulated.observe(0.0) is None
    world.show(seq=2, episode=2, action=2, reward=1.5, terminated=True)
    second = observed(simulated)
    assert (second.action, second.reward, second.terminated, second.truncated) == (2, 1.5, True, False)
    assert second.episode == 2
    act(simulated, 0)
    assert world.told() == [0]
    assert simulated.faults == {}


def test_a_world_that_is_still_starting_is_no_fault_one_that_left_is(path: Path, simulated: SimulatedPlant) -> None:
    assert simulated.observe(0.0) is None and simulated.faults == {}
    world = ScriptedWorld(path)
    assert simulated.observe(0.0) is None and simulated.faults == {}
    world.show()
    assert observed(simulated).seq == 1
    world.close()
    assert simulated.observe(0.0) is None
    assert simulated.faults == {"plant-gone": 1} and str(path) in simulated.last_fault


def test_a_new_world_cuts_the_episode_and_numbers_go_on(path: Path, simulated: SimulatedPlant) -> None:
    world = ScriptedWorld(path, number=1)
    simulated.observe(0.0)
    world.show(episode=4, seq=70)
    assert not observed(simulated).truncated
    act(simulated, 1)
    world.close()
    assert simulated.observe(0.0) is None and simulated.faults == {"plant-gone": 1}
    world = ScriptedWorld(path, number=2)
    simulated.observe(0.0)
    world.show(episode=1, seq=1, reward=9.0)
    cut = observed(simulated)
    assert (cut.truncated, cut.terminated, cut.reward, cut.action) == (True, False, 0.0, None)
    assert (cut.episode, cut.seq) == (5, 71)
    act(simulated, 2)
    assert world.told() == [2]  # what the old world owed is forgotten
    world.show(episode=2, seq=2, action=2, reward=1.0, terminated=True)
    after = observed(simulated)
    assert (after.truncated, after.terminated, after.reward, after.episode, after.seq) == (False, True, 1.0, 6, 72)
    world.close()


def test_reconnecting_to_the_same_world_goes_on_or_cuts_what_ended_unseen(
    world: ScriptedWorld, simulated: SimulatedPlant
) -> None:
    simulated.observe(0.0)
    world.show(episode=1, seq=5)
    observed(simulated)
    for episode, cut in ((1, False), (2, True)):
        assert world.channel is not None
        world.channel.close()
        world.channel = None
        assert simulated.observe(0.0) is None  # finds that the connection is lost
        assert simulated.observe(0.0) is None  # makes a new one
        world.show(episode=episode, seq=6, reward=0.0)
        again = observed(simulated)
        assert (again.episode, again.truncated, again.action) == (episode, cut, None)


@pytest.mark.parametrize(("changes", "name"), FAULTY)
def test_a_faulty_frame_of_the_world_is_counted_and_the_next_is_fine(
    world: ScriptedWorld, simulated: SimulatedPlant, changes: dict[str, object], name: str
) -> None:
    simulated.observe(0.0)
    world.show(**changes)
    assert simulated.observe(WAIT_S) is None
    assert simulated.faults == {name: 1} and simulated.last_fault
    act(simulated, 0)
    assert world.told() == [0]
    world.show(seq=2)
    assert observed(simulated).seq == 2


def test_garbage_from_the_world_is_counted(world: ScriptedWorld, simulated: SimulatedPlant) -> None:
    simulated.observe(0.0)
    world.show()
    observed(simulated)
    act(simulated, 0)
    assert world.channel is not None
    world.channel._socket.send(struct.pack(">I", 1) + b"\xff")
    assert simulated.observe(WAIT_S) is None
    assert simulated.faults == {"malformed-frame": 1}
    act(simulated, 1)
    assert world.told() == [0, 1]


def test_a_path_that_is_too_long_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 107"):
        SimulatedPlant(path.with_name("x" * 120), SHAPE).observe(0.0)


NO_ACTIONS = [10**5000, -(10**5000), [10**5000], True, None, "1", -1, 3]


@pytest.mark.parametrize("action", NO_ACTIONS, ids=range(len(NO_ACTIONS)))  # pytest cannot put the first into words
def test_a_world_told_what_is_no_action_says_so_whatever_it_was(action: object) -> None:
    world = World.__new__(World)  # no environment: none is stepped
    world.n_actions = 3
    assert str(world.step(action)["error"]).endswith("is not one of 0..2")
