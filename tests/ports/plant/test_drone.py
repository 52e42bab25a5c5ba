from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("gymnasium", reason="NOT TESTED: gymnasium is not installed (extra `drone`)")
pytest.importorskip("vizdoom", reason="NOT TESTED: ViZDoom is not installed (extra `drone`)")

from edgert.errors import BoardError, UsageError
from edgert.ports.plant import drone, worlds

STRAIGHT = 12


@pytest.fixture(scope="module")
def shared() -> Iterator[drone.Drone]:
    env = drone.Drone()
    yield env
    env.close()


def engines(parent: int | None = None) -> list[int]:
    """Engine processes that `parent` has started; this process by default."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            ppid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            program = (folder / "cmdline").read_bytes().split(b"\0")[0]
            if ppid == (parent or os.getpid()) and Path(os.fsdecode(program)).name == "vizdoom":
                found.append(int(folder.name))
    return found


def fly(env: drone.Drone, choose: Callable[[drone.Drone], int], seed: int) -> tuple[float, float, bool]:
    """Metres, return, and whether it crashed."""
    env.reset(seed=seed)
    total = 0.0
    while True:
        _, reward, crashed, cut, info = env.step(np.int64(choose(env)))
        total += reward
        if crashed or cut:
            return info["safe_flight_m"], total, crashed


def pilot() -> Callable[[drone.Drone], int]:
    """Flies by the depth buffer: towards what is far, and away from a wall to one side, and that one only, in time."""
    turning = 0

    def choose(env: drone.Drone) -> int:
        nonlocal turning
        depth_m = env.depth_m
        columns = np.percentile(depth_m[46:74], 10, axis=0)
        above, ahead, below = (
            np.percentile(depth_m[rows, 50:110], 5) for rows in (np.s_[30:50], np.s_[46:74], np.s_[70:90])
        )
        if ahead < 5.0:
            turning = turning or (-1 if columns[:80].mean() > columns[80:].mean() else 1)
            column = 2 + 2 * turning
        else:
            turning = 0
            far = np.minimum([columns[i : i + 32].min() for i in range(0, 160, 32)], 10.0)
            far[2] += 0.5
            column = int(np.clip(far.argmax(), 1, 3))
        row = 3 if above < 1.2 and below > above else 1 if below < 1.2 and above > below else 2
        return 5 * row + column

    return choose


def test_it_shows_and_takes_what_its_spaces_say(shared: drone.Drone) -> None:
    obs, info = shared.reset(seed=1)
    assert shared.observation_space.contains(obs) and obs.shape == (60, 80, 3)
    assert shared.action_space.n == 25
    assert info["safe_flight_m"] == 0.0 and info["clear_m"] > drone.CRASH_M
    assert obs.std() > 5  # not one grey
    for action in (-1, 25):
        with pytest.raises(UsageError, match=r"0\.\.24"):
            shared.step(np.int64(action))


def test_what_is_shown_is_the_mean_of_what_was_drawn() -> None:
    env = drone.Drone(render_mode="rgb_array")
    obs, _ = env.reset(seed=3)
    drawn = env.render()
    assert drawn is not None and drawn.shape == (120, 160, 3)
    means = drawn.reshape(60, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(means - obs).max() <= 0.5
    env.close()


@pytest.mark.parametrize("action", [0, 4, 10, STRAIGHT, 14, 20, 24])
def test_it_really_flies_where_the_cell_points(shared: drone.Drone, action: int) -> None:
    moves = []
    for seed in range(12):
        shared.reset(seed=seed)
        headings = []
        for each in (STRAIGHT, action):
            before = shared._place
            _, _, crashed, _, _ = shared.step(np.int64(each))
            if crashed:
                break
            dx, dy, dz = shared._place - before
            headings.append((np.degrees(np.arctan2(dy, dx)), np.hypot(dx, dy), dz))
        else:
            (was, _, _), (heading, way, rise) = headings
            moves.append(((was - heading + 180) % 360 - 180, way, rise))
    assert len(moves) > 3
    turn, way, rise = np.array(moves).T
    row, column = divmod(action, 5)
    # Of the first step's straight ahead only the noise of the second counts: its heading is that of the drone.
    assert np.abs(turn - drone.YAW_CELL_DEG * (column - 2)).max() <= drone.YAW_CELL_DEG * drone.NOISE_CELLS + 0.1
    assert np.abs(way / drone.UNITS_PER_M - drone.STEP_M).max() < 0.01
    climb = np.degrees(np.arcsin((rise / drone.UNITS_PER_M) / drone.STEP_M))
    hovering = np.degrees(0.2 / (drone.STEP_M * drone.UNITS_PER_M))
    assert np.abs(climb - drone.CLIMB_CELL_DEG * (2 - row)).max() <= drone.CLIMB_CELL_DEG * drone.NOISE_CELLS + hovering
    assert np.ptp(turn) > 0.1  # the noise is there


def test_straight_on_it_comes_to_a_wall_and_the_flight_ends(shared: drone.Drone) -> None:
    for seed in range(4):
        way_m, total, crashed = fly(shared, lambda _: STRAIGHT, seed)
        assert crashed and 0 < way_m < 60
        assert -1 <= total < way_m / drone.STEP_M
        assert shared.depth_m.min() < drone.CRASH_M + drone.STEP_M  # something is there, ahead or beside
        with pytest.raises(UsageError, match="reset"):
            shared.step(np.int64(STRAIGHT))


def test_blocked_from_the_side_or_above_is_a_crash_whatever_the_view(
    shared: drone.Drone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drone, "CRASH_M", -1.0)
    for climb in (2, 22):
        shared.reset(seed=0)
        for _ in range(drone.MAX_STEPS):
            before = shared._place
            _, reward, crashed, cut, _ = shared.step(np.int64(climb))
            if crashed or cut:
                break
        assert crashed and reward == -1.0
        rise = abs(shared._place[2] - before[2]) / drone.UNITS_PER_M
        way = np.hypot(*(shared._place - before)[:2]) / drone.UNITS_PER_M
        assert way < drone.STEP_M - 0.01 or rise < 0.05


def test_depth_falls_as_the_way_to_a_wall_does(shared: drone.Drone) -> None:
    shared.reset(seed=2)
    depths, places = [], []
    while True:
        _, _, crashed, _, _ = shared.step(np.int64(STRAIGHT))
        if crashed:
            break
        depths.append(float(np.median(shared.depth_m[56:64, 76:84])))
        places.append(shared._place[:2])
    way_m = np.hypot(*(np.array(places) - places[0]).T) / drone.UNITS_PER_M
    near = np.array(depths) < 8
    assert near.sum() >= 5
    slope = np.polyfit(way_m[near], np.array(depths)[near], 1)[0]
    assert -1.25 < slope < -0.8  # metres of depth a metre flown; the noise turns the view meanwhile


def test_a_seed_decides_the_flight_and_splits_begin_elsewhere(shared: drone.Drone) -> None:
    def flight(env: drone.Drone, seed: int) -> npt.NDArray[np.uint8]:
        shown = [env.reset(seed=seed)[0]]
        for step in range(20):
            obs, _, crashed, cut, _ = env.step(np.int64(step % 25))
            shown.append(obs)
            if crashed or cut:
                shown.append(env.reset()[0])
        return np.stack(shown[:20])

    other = drone.Drone()
    assert np.array_equal(flight(shared, 5), flight(other, 5))
    assert not np.array_equal(flight(shared, 5), flight(other, 6))
    other.close()
    assert not set(drone._SPAWNS["train"]) & set(drone._SPAWNS["test"])
    with pytest.raises(UsageError, match="metres"):
        drone.Drone("train", "nothing")  # type: ignore[arg-type]  # what a user may do
    with pytest.raises(UsageError, match="train, test"):
        drone.Drone("both")  # type: ignore[arg-type]  # what a user may do


def test_every_place_is_free_and_lets_one_fly(shared: drone.Drone, monkeypatch: pytest.MonkeyPatch) -> None:
    for places in drone._SPAWNS.values():
        for place in places:
            monkeypatch.setattr(shared, "_spawns", (place,))
            _, info = shared.reset(seed=0)
            x, y, _ = shared._place
            assert (x, y) == place and info["clear_m"] > 2 * drone.CRASH_M
            assert not shared.step(np.int64(STRAIGHT))[2]


def test_a_pilot_who_looks_flies_several_times_as_far_as_chance(shared: drone.Drone) -> None:
    rng = np.random.default_rng(0)
    chance = np.mean([fly(shared, lambda _: int(rng.integers(25)), seed)[0] for seed in range(20)])
    piloted = np.mean([fly(shared, pilot(), seed)[0] for seed in range(6)])
    assert 3 < chance < 20
    assert piloted > 4 * chance


def test_a_flight_is_cut_in_the_end_and_may_be_paid_in_metres(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drone, "MAX_STEPS", 3)
    env = worlds.make(drone.TEST_ENV_ID)
    env.reset(seed=0)
    told = [env.step(STRAIGHT)[1:4] for _ in range(3)]
    assert told == [(drone.STEP_M, False, False), (drone.STEP_M, False, False), (drone.STEP_M, False, True)]
    env.close()


def test_many_live_together_leave_nothing_behind_and_end_when_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(engines())
    envs = worlds.vector(drone.ENV_ID, 16)
    mine = set(engines()) - before
    assert len(mine) == 16
    mapped = " ".join(Path(f"/proc/{pid}/maps").read_text() for pid in mine)
    shared_memory = {Path(word) for word in mapped.split() if word.startswith("/dev/shm/ViZDoom")}
    assert shared_memory
    obs, _ = envs.reset(seed=0)
    assert len({each.tobytes() for each in obs}) > 10
    for _ in range(5):
        obs, reward, _, _, _ = envs.step(np.full(16, STRAIGHT))
    assert obs.shape == (16, 60, 80, 3) and reward.max() > 0
    envs.close()
    assert set(engines()) <= before
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in shared_memory if path.exists()]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_its_engine_ends_with_the_process_and_the_processs_signals_stay_its_own(
    until: Callable[..., None], sent: signal.Signals
) -> None:
    code = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
from edgert.ports.plant import worlds
env = worlds.make("edgert/Drone-v0")
env.reset(seed=0)
print("flying", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "flying\n"
    (engine,) = engines(process.pid)
    process.send_signal(sent)
    assert process.wait(30) == (7 if sent == signal.SIGTERM else -signal.SIGKILL)
    process.stdout.close()
    until(lambda: not Path(f"/proc/{engine}").exists(), "the engine's end")


def test_a_dead_engine_is_told(until: Callable[..., None]) -> None:
    before = set(engines())
    env = drone.Drone()
    env.reset(seed=0)
    (engine,) = set(engines()) - before
    os.kill(engine, signal.SIGKILL)
    until(lambda: engine not in engines(), "the engine's end")
    with pytest.raises(BoardError, match="died"):
        env.step(np.int64(STRAIGHT))
    with pytest.raises(UsageError, match="make it anew"):
        env.reset()
    env.close()
    env.close()
