"""A plant that is simulated by the world process (programs/world.py), on its Unix socket.

The two move in lockstep: the world shows an observation, is told an action, steps, and shows the next one.

    world -> plant  {obs, shape, dtype, reward, terminated, truncated, episode, seq, action, world}
    plant -> world  {action}

`world` is a number each start of the world process draws anew, `action` the one it executed last or null. Whoever
connects is shown the current observation first.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import msgspec

from edgert.errors import LinkError
from edgert.ports import ipc
from edgert.ports.plant import Fault, Observation, read_frame

_RETRY_S = 0.01
_Count = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]  # the ring keeps episodes in 32 bits


class SimulatedPlant:
    """Client of the world process; connects by itself, and again after a loss. Meets `Plant`.

    When the world was restarted, or an episode ended while the connection was lost, the actor never sees the end of the
    episode it was in: the next observation then says `truncated`, with reward 0 and action None. Episode and sequence
    numbers go on growing across restarts of the world.

    Thread: one.
    """

    def __init__(
        self, socket_path: str | os.PathLike[str], obs_shape: tuple[int, int, int], *, paced: bool = True
    ) -> None:
        """Connects at the first `observe`.

        Args:
            socket_path: where the world listens.
            obs_shape: (H, W, C) the policy takes.
            paced: the actor's clock sets the pace, and not the world by answering.
        """
        self.paced = paced
        self.faults: dict[str, int] = {}
        self.last_fault = ""
        self._path = socket_path
        self._obs_shape = obs_shape
        self._channel: ipc.Channel | None = None
        self._absent = ""
        self._malformed = 0
        self._unanswered = False
        self._world: object = None
        self._episode_before = self._seq_before = 0
        self._newest: Observation | None = None

    def observe(self, timeout_s: float) -> Observation | None:
        """The world's next observation; see `Plant.observe`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            if self._channel is None:
                self._connect()
            if self._channel is not None:
                frames = self._channel.receive_maps()
                garbled = self._channel.malformed - self._malformed
                self._malformed += garbled
                if self._channel.closed:
                    self._channel = None
                if frames or garbled:
                    self._unanswered = False
                if garbled:
                    self._fault(Fault("malformed-frame", f"the world at {os.fspath(self._path)} sent no CBOR map"))
                    return None
                if frames:
                    return self._read(frames[-1])
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                if self._channel is None and self._newest is not None:  # a world that never was is still starting
                    self._fault(Fault("plant-gone", self._absent))
                return None
            if self._channel is None:
                time.sleep(min(remaining_s, _RETRY_S))
            else:
                self._channel.wait(remaining_s)

    def apply(self, action: int, *, exit: int, confidence: float | None, generation: int) -> None:
        """Tell the world the action; while it still owes the answer to the last one, it is not told another."""
        if self._channel is not None and not self._unanswered:
            self._unanswered = self._channel.send_map({"action": int(action)})

    def close(self) -> None:
        """Leave the world, which then holds still."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _connect(self) -> None:
        try:
            self._channel = ipc.connect(self._path)
            self._absent = f"no world listens at {os.fspath(self._path)}"
        except LinkError as error:
            self._absent = str(error)
        self._malformed = 0
        self._unanswered = False

    def _fault(self, fault: Fault) -> None:
        self.faults[fault.name] = self.faults.get(fault.name, 0) + 1
        self.last_fault = fault.detail

    def _read(self, frame: dict[str, object]) -> Observation | None:
        if "error" in frame:
            why = frame["error"]
            told = why[:200] if isinstance(why, str) else f"its reason is no text but {type(why).__name__}"
            self._fault(Fault("malformed-frame", f"the world refused our action: {told}"))
            return None
        shown = read_frame(frame, self._obs_shape)
        if isinstance(shown, Fault):
            self._fault(shown)
            return None
        try:
            place = msgspec.convert(frame, type=_Place)
        except msgspec.ValidationError as error:
            self._fault(Fault("malformed-frame", f"the world's frame: {error}"))
            return None
        cut = False
        if self._newest is not None:
            if place.world != self._world:
                self._episode_before, self._seq_before = self._newest.episode, self._newest.seq
                cut = True
            elif not shown.terminated and not shown.truncated:
                cut = self._episode_before + place.episode != self._newest.episode
        self._world = place.world
        self._newest = Observation(
            obs=shown.obs,
            reward=0.0 if cut else shown.reward,
            terminated=shown.terminated and not cut,
            truncated=shown.truncated or cut,
            episode=self._episode_before + place.episode,
            seq=self._seq_before + place.seq,
            action=None if cut else place.action,
        )
        return self._newest


class _Place(msgspec.Struct, frozen=True):
    """Where in which world an observation was made; numbers start at 1."""

    episode: _Count
    seq: _Count
    world: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    action: Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)] | None
