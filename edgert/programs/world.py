"""The world process: hosts a gymnasium environment for `ports.plant.simulated`, so that it weighs on no actor.

The world does not move by itself. It steps once for each action it is told, and holds still while no actor is connected
or the actor is silent; an actor that is killed finds it as it was. The frames are described in `ports.plant.simulated`.

Run as `python -m edgert.programs.world --env MinAtar/Breakout-v1 --seed 1 --socket PATH --lock PATH`. Ended by SIGTERM
or SIGINT, or by itself when no actor has come for two minutes.
Exit codes: 0 ended so, 1 error, 78 no such environment or one that edgert cannot show.
"""

from __future__ import annotations

import argparse
import secrets
import select
import signal
import socket
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgert.errors import ConfigError, EdgertError
from edgert.ports import ipc

LONELY_S = 120.0  # a device that was killed with all its processes must not leave its world behind for ever
EXIT_ERROR = 1
EXIT_CONFIG = 78


class World:
    """One environment, stepped on demand; episodes and observations are numbered from 1 and never start over."""

    def __init__(self, env_id: str, seed: int) -> None:
        """Make and reset the environment.

        Args:
            env_id: as gymnasium knows it, e.g. "MinAtar/Breakout-v1" or "package:Name-v0".
            seed: of the environment's own generator; the later resets continue it.

        Raises:
            ConfigError: no such environment, or its spaces are not uint8/bool images and discrete actions.
            BoardError: its engine does not start.
        """
        # Not at the top: what is missing for it is an error that `main` must be able to tell.
        from edgert.ports.plant import worlds

        self._env = worlds.make(env_id)
        self.n_actions = int(self._env.action_space.n)
        obs, _ = self._env.reset(seed=seed)
        start = {"reward": 0.0, "terminated": False, "truncated": False, "action": None}
        self._shown: dict[str, object] = {**_frame(obs), **start, "episode": 1, "seq": 1, "world": secrets.randbits(63)}
        self._episode = self._seq = 1

    def step(self, action: object) -> dict[str, object]:
        """Do one action and show what came of it; what is no action of this environment is answered by an error."""
        if isinstance(action, bool) or not isinstance(action, int) or not 0 <= action < self.n_actions:
            # Not shown as it is: an integer of thousands of digits cannot even be put into words.
            told = action if isinstance(action, int) and abs(action) < 1 << 63 else f"of type {type(action).__name__}"
            return {"error": f"action {told} is not one of 0..{self.n_actions - 1}"}
        obs, reward, terminated, truncated, _ = self._env.step(action)
        if terminated or truncated:
            obs, _ = self._env.reset()
            self._episode += 1
        self._seq += 1
        outcome = {"reward": float(reward), "terminated": bool(terminated), "truncated": bool(truncated)}
        place = {"episode": self._episode, "seq": self._seq, "action": action}
        self._shown = {**self._shown, **_frame(obs), **outcome, **place}
        return self._shown

    def now(self) -> dict[str, object]:
        """The current observation for one who did not see what led to it: no action, no reward."""
        return {**self._shown, "reward": 0.0, "terminated": False, "truncated": False, "action": None}

    def close(self) -> None:
        """Let the environment free what it holds."""
        self._env.close()


def _frame(obs: npt.NDArray[np.uint8]) -> dict[str, object]:
    return {"obs": obs.tobytes(), "shape": list(obs.shape), "dtype": "uint8"}


def serve(world: World, listener: socket.socket, lonely_s: float = LONELY_S) -> None:
    """Serve one actor at a time, until none has come for `lonely_s`; who connects takes the place of who was there."""
    actor: ipc.Channel | None = None
    while True:
        poller = select.poll()
        poller.register(listener.fileno(), select.POLLIN)
        if actor is not None:
            poller.register(actor.fileno(), select.POLLIN | (select.POLLOUT if actor.wants_write else 0))
        if not poller.poll(None if actor is not None else lonely_s * 1e3):
            return
        newcomer = ipc.accept(listener)
        if newcomer is not None:
            if actor is not None:
                actor.close()
            actor = newcomer
            actor.send_map(world.now())
        if actor is not None:
            actor.flush()
            for told in actor.receive_maps():
                if not actor.send_map(world.step(told.get("action"))):
                    # It told many actions and read no answer: let it connect anew.
                    actor.close()
                    break
            if actor.closed:
                actor = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the world process until a signal ends it.

    Args:
        argv: without the program's name; sys.argv when None.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="edgert-world", description="host a gymnasium environment for the actor")
    parser.add_argument("--env", required=True, help="gymnasium id, e.g. MinAtar/Breakout-v1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--socket", required=True, help="Unix socket to listen on")
    parser.add_argument("--lock", required=True, help="file that keeps a second one from starting")
    options = parser.parse_args(argv)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: sys.exit(0))
    try:
        ipc.single_instance(options.lock)
        world = World(options.env, options.seed)
        try:
            with ipc.listen(options.socket) as listener:
                serve(world, listener)
        finally:
            world.close()
    except EdgertError as error:
        print(f"edgert-world: {error}", file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
