"""Where observations come from and actions go: the Protocol both plants meet, and the check of what they are sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

MAX_DIMENSION = 65536
MAX_REWARD = float(np.finfo(np.float32).max)  # transitions keep rewards as float32


class Observation(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What the plant shows now, and what came of the previous action.

    Attributes:
        obs: (H, W, C) uint8, read-only. After terminated or truncated it is already the first of the next episode.
        reward: for the previous action of this stream.
        terminated, truncated: whether the previous action of this stream ended its episode.
        episode: number of the episode `obs` belongs to.
        seq: grows with each observation of the plant; the same again after a reconnection.
        action: what the plant did last, i.e. what the reward is for; None when there is nothing it could be for.
        stream: which peer speaks. "Previous" in the lines above always means the previous one with the same stream.
    """

    obs: npt.NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool
    episode: int
    seq: int
    action: int | None = None
    stream: int = 0


class Plant(Protocol):
    """The body the policy acts in.

    Attributes:
        paced: True when the actor's clock sets the pace, False when the peer does by asking.
        faults: named fault -> count: observation-shape, observation-dtype, reward-not-finite, malformed-frame,
            plant-gone. Never seen ones are missing.
        last_fault: the newest of them in words, empty when there was none.
    """

    paced: bool
    faults: dict[str, int]
    last_fault: str

    def observe(self, timeout_s: float) -> Observation | None:
        """The next observation; None when there is none in time or it was faulty (then `faults` has grown).

        Blocks: up to timeout_s.
        """
        ...

    def apply(self, action: int, *, exit: int, confidence: float | None, generation: int) -> None:
        """Do `action`; the rest tells the plant how it was chosen, `confidence` None when no policy chose it.

        Blocks: never.
        """
        ...

    def close(self) -> None:
        """Let the peer go."""
        ...


class Fault(NamedTuple):
    """Why a frame was refused: a name of `Plant.faults`, and the same in words."""

    name: str
    detail: str


class Shown(NamedTuple):
    """The part of an observation frame that every plant's peer sends."""

    obs: npt.NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool


def read_frame(frame: Mapping[str, object], obs_shape: tuple[int, int, int]) -> Shown | Fault:
    """Check a frame {obs, shape, dtype, reward, terminated, truncated}; other keys are ignored.

    Args:
        frame: as received.
        obs_shape: (H, W, C) the policy expects.
    """
    obs, shape, dtype, reward = (frame.get(key) for key in ("obs", "shape", "dtype", "reward"))
    terminated, truncated = frame.get("terminated"), frame.get("truncated")
    if not isinstance(obs, bytes) or not isinstance(shape, (list, tuple)) or not isinstance(dtype, str):
        return Fault("malformed-frame", "obs (bytes), shape (list) and dtype (text) are required")
    if isinstance(reward, bool) or not isinstance(reward, (int, float)):
        return Fault("malformed-frame", f"reward must be a number, not {type(reward).__name__}")
    if not isinstance(terminated, bool) or not isinstance(truncated, bool):
        return Fault("malformed-frame", "terminated and truncated must be true or false")
    if dtype != "uint8":
        return Fault("observation-dtype", f"the policy takes uint8, not {dtype[:20]}")
    # Before it is shown: an integer of thousands of digits cannot even be put into words.
    if len(shape) != 3 or not all(type(size) is int and 1 <= size <= MAX_DIMENSION for size in shape):
        wanted = f"three whole numbers within 1..{MAX_DIMENSION} are required"
        return Fault("observation-shape", f"the policy takes {list(obs_shape)}, and this is no shape: {wanted}")
    if tuple(shape) != obs_shape or len(obs) != math.prod(obs_shape):
        return Fault("observation-shape", f"the policy takes {list(obs_shape)}, not {list(shape)} in {len(obs)} bytes")
    # Written so that NaN fails as well, and an integer too large for a float is never converted.
    if not -MAX_REWARD <= reward <= MAX_REWARD:
        return Fault("reward-not-finite", "the reward must be finite and fit into 32 bits")
    return Shown(np.frombuffer(obs, np.uint8).reshape(obs_shape), float(reward), terminated, truncated)
