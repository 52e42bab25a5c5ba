from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgert.ports import ipc
from edgert.ports.plant.simulated import SimulatedPlant
from edgert.programs import world

WAIT_S = 60.0

# Shows how many steps it made, in this episode and in all; an episode ends by itself after 5, action 2 ends it at once.
TINY = """
import gymnasium
import numpy as np

class Tiny(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (2, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=10)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.here = 0
        return self.show(), {}

    def step(self, action):
        assert action in (10, 11, 12)
        self.here += 1
        Tiny.steps += 1
        return self.show(), action / 2, action == 12, self.here == 5, {}

    def show(self):
        return np.array([[self.here, Tiny.steps, 0], [0, 0, self.np_random.integers(256)]], np.uint8)

class Wide(Tiny):
    observation_space = gymnasium.spaces.Box(0, 1, (3, 2), np.float32)

class Steered(Tiny):
    action_space = gymnasium.spaces.Box(0, 1, (3,), np.float32)

gymnasium.register("Tiny-v0", Tiny)
gymnasium.register("Wide-v0", Wide)
gymnasium.register("Steered-v0", Steered)
"""
SHAPE = (2, 3, 1)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    (path / "tinyworld.py").write_text(TINY)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[str]] = []

    def start(env_id: str = "tinyworld:Tiny-v0", seed: int = 1, socket: str = "s") -> subprocess.Popen[str]:
        search = os.pathsep.join([str(directory), *filter(None, sys.path)])
        command = [sys.executable, "-m", "edgert.programs.world", "--env", env_id, "--seed", str(seed)]
        command += ["--socket", str(directory / socket), "--lock", str(directory / f"{socket}.lock")]
        environ = {**os.environ, "PYTHONPATH": search}
        running.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def act(plant: SimulatedPlant, action: int) -> None:
    plant.apply(action, exit=0, confidence=None, generation=0)


def state(plant: SimulatedPlant) -> tuple[int, int, float, bool, bool, int, int, int | None]:
    seen = plant.observe(WAIT_S)
    assert seen is not None, plant.last_fault
    here, steps = int(seen.obs[0, 0, 0]), int(seen.obs[0, 1, 0])
    return here, steps, seen.reward, seen.terminated, seen.truncated, seen.episode, seen.seq, seen.action


@pytest.mark.system
def test_it_steps_once_an_action_and_episodes_go_on(directory: Path, start: Start) -> None:
    start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    assert state(plant) == (0, 0, 0.0, False, False, 1, 1, None)
    act(plant, 1)
    assert state(plant) == (1, 1, 5.5, False, False, 1, 2, 1)
    act(plant, 2)
    assert state(plant) == (0, 2, 6.0, True, False, 2, 3, 2)
    for step in range(1, 5):
        act(plant, 0)
        assert state(plant) == (step, 2 + step, 5.0, False, False, 2, 3 + step, 0)
    act(plant, 0)
    assert state(plant) == (0, 7, 5.0, False, True, 3, 8, 0)
    assert plant.faults == {}
    plant.close()


@pytest.mark.system
def test_it_holds_still_without_an_actor_and_shows_the_next_one_where_it_is(directory: Path, start: Start) -> None:
    start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    state(plant)
    act(plant, 0)
    before = state(plant)
    plant.close()
    later = SimulatedPlant(directory / "s", SHAPE)
    here, steps, reward, _, _, episode, seq, action = state(later)
    assert (here, steps, episode, seq) == (before[0], before[1], before[5], before[6])
    assert (reward, action) == (0.0, None)  # what the former actor did is not this one's merit
    later.close()


@pytest.mark.system
def test_a_newcomer_takes_the_place_of_the_one_who_is_there(directory: Path, start: Start) -> None:
    start()
    old = SimulatedPlant(directory / "s", SHAPE)
    state(old)
    new = ipc.connect(directory / "s")
    assert new is not None and new.wait(WAIT_S)
    (shown,) = new.receive_maps()
    assert shown["seq"] == 1
    act(old, 1)
    new.send_map({"action": 0})
    assert new.wait(WAIT_S)
    (shown,) = new.receive_maps()
    assert (shown["seq"], shown["action"]) == (2, 0)
    old.close()
    new.close()


@pytest.mark.system
@pytest.mark.parametrize("action", [-1, 3, 1.0, True, None, "1"])
def test_what_is_no_action_is_answered_by_an_error_and_nothing_moves(
    directory: Path, start: Start, action: object
) -> None:
    start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    state(plant)
    assert plant._channel is not None
    plant._channel.send_map({"action": action})
    assert plant.observe(WAIT_S) is None
    assert plant.faults == {"malformed-frame": 1} and "not one of 0..2" in plant.last_fault
    act(plant, 0)
    assert state(plant)[1] == 1
    plant.close()


@pytest.mark.system
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_quietly(directory: Path, start: Start, sent: signal.Signals) -> None:
    process = start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    state(plant)
    process.send_signal(sent)
    _, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and told == ""
    plant.close()


@pytest.mark.system
def test_killed_and_restarted_it_begins_a_new_episode(directory: Path, start: Start) -> None:
    process = start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    state(plant)
    act(plant, 2)
    assert state(plant)[5] == 2
    process.kill()
    process.wait()
    start()
    assert state(plant) == (0, 0, 0.0, False, True, 3, 3, None)
    plant.close()


@pytest.mark.system
@pytest.mark.parametrize(
    ("env_id", "what"),
    [
        ("NoSuch/Thing-v1", "NoSuch"),
        ("MinAtar/NoSuch-v1", "NoSuch"),
        ("nosuchpackage:Thing-v1", "nosuchpackage"),
        ("tinyworld:Tiny-v7", "Tiny"),
        ("tinyworld:Wide-v0", "one row of numbers"),
        ("tinyworld:Steered-v0", "Discrete"),
    ],
)
def test_an_environment_it_cannot_host_is_told_with_exit_code_78(start: Start, env_id: str, what: str) -> None:
    process = start(env_id)
    _, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 78
    assert env_id in told and what in told and "Traceback" not in told


@pytest.mark.system
def test_other_errors_are_told_too(directory: Path, start: Start) -> None:
    first = start()
    plant = SimulatedPlant(directory / "s", SHAPE)
    state(plant)
    second = start()
    _, told = second.communicate(timeout=WAIT_S)
    assert second.returncode == 1 and f"held by process {first.pid}" in told
    third = start(socket="x" * 120)
    _, told = third.communicate(timeout=WAIT_S)
    assert third.returncode == 78 and "at most 107" in told
    plant.close()


@pytest.mark.system
def test_minatar_is_loaded_by_its_id_alone_and_the_seed_decides(directory: Path, start: Start) -> None:
    pytest.importorskip("minatar", reason="NOT TESTED: MinAtar is not installed (extra `sim`)")
    for number, seed in enumerate((3, 3, 4)):
        start("MinAtar/Breakout-v1", seed, f"m{number}")
    plants = [SimulatedPlant(directory / f"m{number}", (10, 10, 4)) for number in range(3)]
    histories = []
    for plant in plants:
        until_s = time.monotonic() + WAIT_S
        while (seen := plant.observe(0.1)) is None:
            assert time.monotonic() < until_s
        history = [seen.obs.tobytes()]
        assert set(history[0]) == {0, 1}
        for n in range(200):
            act(plant, n % 3)
            seen = plant.observe(WAIT_S)
            assert seen is not None
            history.append(seen.obs.tobytes())
        assert seen.episode > 1
        histories.append(history)
        plant.close()
    assert histories[0] == histories[1] != histories[2]


def test_a_world_nobody_comes_to_ends_by_itself(directory: Path) -> None:
    pytest.importorskip("minatar")
    hosted = world.World("MinAtar/Breakout-v1", seed=0)
    with ipc.listen(directory / "lonely") as listener:
        world.serve(hosted, listener, lonely_s=0.05)
        visitor = ipc.connect(directory / "lonely")
        assert visitor is not None
        visitor.close()
        world.serve(hosted, listener, lonely_s=0.05)
    hosted.close()


def test_without_gymnasium_it_says_what_to_install(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "edgert.ports.plant.worlds", raising=False)
    monkeypatch.delattr("edgert.ports.plant.worlds", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    told = ["--env", "MinAtar/Breakout-v1", "--socket", str(directory / "s"), "--lock", str(directory / "s.lock")]
    assert world.main(told) == 78
    assert "pip install 'edgert[sim]'" in capsys.readouterr().err
