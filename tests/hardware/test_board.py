"""On a real board: what no recorded tree and no emulator can show. Elsewhere skipped, with the reason."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgert import kernels
from edgert.kernels import codec
from edgert.policy import artifact
from edgert.ports import boardfile
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.runtime.choice import candidates
from edgert.programs.boardbench import heat, jitter
from edgert.programs.policy_bench import line_up

FILE, WHY = boardfile.load(None)
IS_BOARD = FILE is not None and not FILE.name.startswith("generic-")
MODELS = Path(__file__).parents[2] / "models"

pytestmark = [
    pytest.mark.board,
    pytest.mark.skipif(
        not IS_BOARD, reason=f"no board that edgert knows ({WHY}): run these on a Raspberry Pi or a Jetson"
    ),
]


def test_temperature_and_clock_are_read() -> None:
    board = LinuxBoard()
    board.read(time.monotonic())
    time.sleep(0.5)
    readings = board.read(time.monotonic())
    assert readings.temp_c.value is not None and 5 < readings.temp_c.value < 110
    assert readings.freq_frac.value is not None and 0 < readings.freq_frac.value <= 1
    assert readings.load_frac.value is not None


def test_the_c_kernels_serve() -> None:
    assert kernels.NATIVE and codec.NATIVE


@pytest.mark.parametrize("game", ["breakout", "drone", "pong", "space_invaders"])
def test_every_runtime_gives_the_golden_answers(game: str) -> None:
    policy = artifact.load((MODELS / f"{game}.edgert").read_bytes())
    runners = line_up(policy, candidates(policy))
    assert {runner.name: runner.why for runner in runners if runner.why} == {}


def test_full_load_warms_the_processor_up() -> None:
    board = LinuxBoard()
    board.read(time.monotonic())
    found = heat(60.0, lambda: board.read(time.monotonic()))
    assert found["series"][-1]["temp_c"] > found["idle"]["temp_c"]


def test_a_tick_is_late_by_less_than_its_period() -> None:
    assert jitter(10.0)["p99_s"] < 0.05
