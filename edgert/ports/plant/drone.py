"""A drone that flies through rooms and corridors by its forward camera: gymnasium's `edgert/Drone-v0`.

`edgert/DroneTest-v0` is for evaluation: it begins at other places of the same map, and its returns are metres.

The task is that of PEDRA (github.com/aqeelanwar/PEDRA), on which drone navigation by early-exit networks was published,
in an engine that anybody can install: ViZDoom draws the view and its depth buffer, and its physics decide what the
drone touches. An action is one of 25 cells, 5 rows of climb times 5 columns of yaw. The drone turns to the middle of
the cell's column, give or take a sixth of a cell, and flies one step that way, level or along the climb of the row. The
camera stays level. The reward is how far the view ahead is clear; an episode ends with -1 when the way ahead is closer
than `CRASH_M`, or the flight was blocked.

As in PEDRA: the 25 cells, their angles and their noise; steps of 0.4 m over the ground, and the level camera; the
reward from the nearest 5 % of the depths in a window in the middle, and -1 at the end; mean safe flight as the metric.

Otherwise than in PEDRA:
    The world is a map of Freedoom, not one of Unreal Engine's houses, and a lamp on the drone lights it.
    The picture is 60x80, not 103x103. It shows 80 by 64 degrees, where PEDRA's cells are made for 80 by 45.
    The reward is clipped and divided by `CLEAR_M`, so that it lies within 0..1; PEDRA pays metres.
    The way counts as too close below `CRASH_M`; PEDRA has a threshold for each house, 1.3 in many.
    A flight is cut after `MAX_STEPS`, 300 m.
    The drone is a cylinder 0.75 m across and 0.5 m high, and bobs by 5 cm while it hovers.
    Depth is measured along the camera's axis, in levels of 0.27 m. What climbs is seen with the height before the step.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt

from edgert.errors import BoardError, ConfigError, UsageError

ENV_ID, TEST_ENV_ID = "edgert/Drone-v0", "edgert/DroneTest-v0"

UNITS_PER_M = 32.0
"""Doom's units; a door is 4 m high then and a player 1.75 m."""
STEP_M = 0.4
"""Over the ground, whatever the climb."""
GRID = 5
"""Columns and rows of cells: 25 actions."""
YAW_CELL_DEG, CLIMB_CELL_DEG = 80 / 1.5 / GRID, 45 / 1.5 / GRID
NOISE_CELLS = 1 / 6
CRASH_M = 0.7
"""What is closer than this is hit within a step: the drone itself is 0.375 m deep."""
CLEAR_M = 5.0
"""From here on the way is as clear as can be."""
NEAREST_FRAC = 0.05
MAX_STEPS = 750

HEIGHT, WIDTH = 60, 80
"""Of the observation; drawn at twice that and averaged."""
MAP = "MAP02"
FOV_DEG = 80
DEPTH_LEVEL_M = 8.7 / UNITS_PER_M
"""One grey level of the depth buffer at this resolution and field of view, by flying towards a wall."""
_WINDOW = np.s_[46:74, 56:104]  # 20 by 28 degrees in the middle of the depth buffer

_STEP_UNITS = STEP_M * UNITS_PER_M  # in one tic of the engine; nothing thinner than the drone is jumped over
_THRUST = 50  # the most the engine takes
_LIFT_PER_UNIT = 128  # of the up and down control, for one unit a tic
_FROZEN_TICS = 10  # at the beginning of a map the engine lets nobody move
_START_UNITS, _CLIMB_TICS = 48, 10  # above the floor; the engine climbs 6 units a tic at most
_BLOCKED_UNITS = 0.5  # a wall takes more than this from a step, rounding less
_HOVER_UNITS = 0.5  # the engine lets what hovers bob by up to an eighth of a unit a tic
_REDRAWS = 16
_LAMP = 30  # the drone's; 8 is what the engine gives a player

# A body for the engine: it has no weight, and forgets its velocity in each tic, so that a tic's flight is what that tic
# was told and not the sum of all before. 1.5625 units are what full thrust gives in a tic, before this factor.
_BODY = f"""
ACTOR Drone : PlayerPawn
{{
  Player.DisplayName "Drone"
  Player.ViewHeight 8
  Player.ForwardMove {_STEP_UNITS / 1.5625}, {_STEP_UNITS / 1.5625}
  Radius 12
  Height 16
  MaxStepHeight 0
  +NOGRAVITY
  +NODAMAGE
  +NOTELEPORT
  -PICKUP
  -TELESTOMP
  States
  {{
  Spawn:
    TNT1 A 1 A_Stop
    Loop
  }}
}}
"""
_SPAWNS: dict[str, tuple[tuple[int, int], ...]] = {
    "train": (
        (-896, -320), (-768, -576), (-512, -320), (-256, -1088), (-256, -192), (-192, -512),
        (-64, -896), (-64, -320), (192, -1216), (256, 128), (384, -640), (448, -128),
        (512, -384), (576, 128), (640, -576), (640, -64), (704, -256), (832, -1344),
        (832, -1088), (832, -512), (832, 128), (896, -768), (960, -1536), (960, -320),
    ),
    "test": (
        (-768, -896), (-704, -192), (-512, -960), (-512, -64), (-64, 0), (320, -1408),
        (320, -832), (320, -448), (576, -1216), (640, -1472), (640, -896), (1216, -832),
    ),
}  # fmt: skip
"""Where flights begin, in units: places of the map that are 5 m from each other and clear on all sides."""

Split = Literal["train", "test"]
Pay = Literal["clear", "metres"]


class Drone(gymnasium.Env[npt.NDArray[np.uint8], np.int64]):
    """One drone, with an engine process of its own.

    Observations are uint8 (60, 80, 3), actions 5 * row + column, 12 straight ahead, rows from the steepest climb down,
    columns from left to right. `info` has `safe_flight_m`, the way over the ground in this episode without the step
    that crashed, and `clear_m`, how far the view ahead is clear.

    Attributes:
        depth_m: (120, 160) float32, of what the drone sees; no part of the observation.

    Blocks: while the engine draws, a fraction of a millisecond; tens of them in `reset`.
    Thread: one, and best the main one: the engine takes the process's signal handlers away, and only the main thread
    can put them back.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20, "waits": True}  # noqa: RUF012  gymnasium declares it so

    def __init__(self, split: Split = "train", pay: Pay = "clear", render_mode: str | None = None) -> None:
        """Start the engine.

        Args:
            split: whose places to begin flights at; those of `edgert/DroneTest-v0` are never trained on. Both are of
                the same map.
            pay: what a safe step is rewarded with: "clear" is the clear way ahead, as above; "metres" are the metres
                flown, and nothing for a crash, so that the return of an episode is the safe flight.
            render_mode: None or "rgb_array".

        Raises:
            ConfigError: ViZDoom is not installed.
            UsageError: no such split, or pay.
            BoardError: the engine does not start.
        """
        if split not in _SPAWNS:
            raise UsageError(f"split {split!r}: choose one of {', '.join(_SPAWNS)}")
        if pay not in ("clear", "metres"):
            raise UsageError(f"pay {pay!r}: choose one of clear, metres")
        self.observation_space = gymnasium.spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(GRID * GRID)
        self.render_mode = render_mode
        self.depth_m: npt.NDArray[np.float32] = np.zeros((2 * HEIGHT, 2 * WIDTH), np.float32)
        self._spawns = _SPAWNS[split]
        self._in_metres = pay == "metres"
        self._drawn = np.zeros((3, 2 * HEIGHT, 2 * WIDTH), np.uint8)
        self._place = np.zeros(3)
        self._clear_m = self._flown_m = 0.0
        self._steps = 0
        self._over = True
        self._engine = _Engine()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Begin a flight at a place and in a direction that the seed decides, with a clear view ahead."""
        super().reset(seed=seed)
        x, y = self._spawns[self.np_random.integers(len(self._spawns))]
        with self._engine.told() as game:
            game.set_seed(int(self.np_random.integers(1 << 31)))
            game.new_episode()
            game.send_game_command("fly")
            game.send_game_command(f"r_visibility {_LAMP}")
            game.send_game_command(f"warp {x} {y}")
            game.make_action([0, 0, 0], _FROZEN_TICS)
            game.make_action([0, 0, _START_UNITS / _CLIMB_TICS * _LIFT_PER_UNIT], _CLIMB_TICS)
            for _ in range(_REDRAWS):
                game.make_action([self.np_random.uniform(-180, 180), 0, 0], 1)
                self._look(game)
                if self._clear_m > 2 * CRASH_M:
                    break
        self._flown_m, self._steps, self._over = 0.0, 0, False
        return self._shown(), self._info()

    def step(self, action: np.int64) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Turn to the cell's column and fly one step along the climb of its row."""
        if self._over:
            raise UsageError("the flight is over: reset the drone first")
        if not 0 <= action < GRID * GRID:
            raise UsageError(f"action {action} is not one of 0..{GRID * GRID - 1}")
        row, column = divmod(int(action), GRID)
        jitter = self.np_random.uniform(-NOISE_CELLS, NOISE_CELLS, 2)
        yaw_deg = YAW_CELL_DEG * (column - (GRID - 1) / 2 + jitter[0])
        climb_rad = math.radians(CLIMB_CELL_DEG * ((GRID - 1) / 2 - row + jitter[1]))
        rise_units = _STEP_UNITS * math.sin(climb_rad)
        before = self._place
        with self._engine.told() as game:
            game.make_action([yaw_deg, _THRUST, rise_units * _LIFT_PER_UNIT], 1)
            left = game.is_episode_finished()  # through the map's exit, where there is nothing more to see
            if not left:
                self._look(game)
        moved = self._place - before
        blocked = not left and (
            abs(math.hypot(moved[0], moved[1]) - _STEP_UNITS) > _BLOCKED_UNITS
            or abs(moved[2] - rise_units) > _HOVER_UNITS
        )
        crashed = blocked or self._clear_m < CRASH_M
        self._steps += 1
        if not crashed:
            self._flown_m += STEP_M
        cut = not crashed and (left or self._steps >= MAX_STEPS)
        self._over = crashed or cut
        if self._in_metres:
            reward = 0.0 if crashed else STEP_M
        else:
            reward = -1.0 if crashed else min(self._clear_m, CLEAR_M) / CLEAR_M
        return self._shown(), reward, crashed, cut, self._info()

    def render(self) -> npt.NDArray[np.uint8] | None:
        """What the engine drew last, at its own resolution."""
        return self._drawn.transpose(1, 2, 0) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """End the engine."""
        self._engine.close()

    def _look(self, game: Any) -> None:
        state = game.get_state()
        self._drawn = state.screen_buffer
        self.depth_m = state.depth_buffer * np.float32(DEPTH_LEVEL_M)
        self._place = np.asarray(state.game_variables)
        ahead = self.depth_m[_WINDOW].ravel()
        nearest = int(NEAREST_FRAC * ahead.size)
        self._clear_m = float(np.partition(ahead, nearest - 1)[:nearest].mean())

    def _shown(self) -> npt.NDArray[np.uint8]:
        rows = self._drawn[:, ::2].astype(np.uint16) + self._drawn[:, 1::2]
        means = (rows[:, :, ::2] + rows[:, :, 1::2] + 2) >> 2
        return np.ascontiguousarray(means.transpose(1, 2, 0), dtype=np.uint8)

    def _info(self) -> dict[str, Any]:
        return {"safe_flight_m": self._flown_m, "clear_m": self._clear_m}


class _Engine:
    """ViZDoom's process. It leaves no file behind, and ends with ours, however that ends."""

    def __init__(self) -> None:
        try:
            import vizdoom
        except ImportError as error:
            raise ConfigError(f"environment {ENV_ID}: ViZDoom is not installed: pip install 'edgert[drone]'") from error
        self._failures = (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException)
        here = Path(vizdoom.__file__).parent
        game = vizdoom.DoomGame()
        button, variable = vizdoom.Button, vizdoom.GameVariable
        game.set_doom_game_path(str(here / "freedoom2.wad"))
        game.set_doom_map(MAP)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.CRCGCB)
        game.set_depth_buffer_enabled(True)
        for clutter in ("hud", "weapon", "crosshair", "decals", "particles", "messages", "corpses", "screen_flashes"):
            getattr(game, f"set_render_{clutter}")(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)
        controls = [button.TURN_LEFT_RIGHT_DELTA, button.MOVE_FORWARD_BACKWARD_DELTA, button.MOVE_UP_DOWN_DELTA]
        game.set_available_buttons(controls)
        game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.POSITION_Z])
        # The engine keeps its settings and the body's file open, so the folder may go as soon as it runs.
        folder = Path(tempfile.mkdtemp(prefix="edgert-drone-"))
        try:
            _write_wad(folder / "drone.wad", {"DECORATE": _BODY, "MAPINFO": 'gameinfo { playerclasses = "Drone" }\n'})
            game.set_vizdoom_path(_launcher(folder, here / "vizdoom"))
            game.add_game_args(f"-file {folder}/drone.wad -nomonsters +fov {FOV_DEG} +movebob 0 +stillbob 0")
            with _signals_kept():
                game.init()
        except Exception as error:  # ViZDoom's exceptions share no base class, and the disk may be full
            raise BoardError(f"the engine of {ENV_ID} did not start: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        # Both ends have opened the shared memory by now; without names it goes with the last of them.
        for shared in Path("/dev/shm").glob(f"ViZDoom*{game.get_instance_id()}"):
            shared.unlink(missing_ok=True)
        self._game: Any = game

    @contextlib.contextmanager
    def told(self) -> Iterator[Any]:
        """The engine, to be told something; it is closed when it fails at that."""
        if self._game is None:
            raise UsageError(f"{ENV_ID} is closed, or its engine died: make it anew")
        try:
            yield self._game
        except self._failures as error:
            self.close()
            raise BoardError(f"the engine of {ENV_ID} died: {error} Make the environment anew.") from error

    def close(self) -> None:
        game, self._game = self._game, None
        if game is not None:
            with _signals_kept():
                game.close()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Put Python's signal handlers back after the engine's library has put its own in their place."""
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in ours.items():
            if handler is not None:
                signal.signal(number, handler)


def _launcher(folder: Path, engine: Path) -> str:
    """A script that starts the engine so that it writes its settings into `folder` and is killed when we end."""
    die_with_parent = (  # 1 is PR_SET_PDEATHSIG
        "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = f"{shlex.quote(sys.executable)} -I -S -c {shlex.quote(die_with_parent)} {shlex.quote(str(engine))}"
    script = folder / "engine"
    script.write_text(f'#!/bin/sh\ncd {shlex.quote(str(folder))} && exec {command} "$@" >/dev/null 2>&1\n')
    script.chmod(0o700)
    return str(script)


def _write_wad(path: Path, lumps: dict[str, str]) -> None:
    """A file of named texts as the engine reads them."""
    contents, directory, at = b"", b"", 12
    for name, text in lumps.items():
        content = text.encode()
        directory += struct.pack("<ii8s", at, len(content), name.encode())
        contents += content
        at += len(content)
    path.write_bytes(struct.pack("<4sii", b"PWAD", len(lumps), at) + contents + directory)


def register() -> None:
    """Tell gymnasium of both environments; harmless when it knows them already."""
    for env_id, kwargs in ((ENV_ID, {}), (TEST_ENV_ID, {"split": "test", "pay": "metres"})):
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, f"{__name__}:Drone", kwargs=kwargs)
