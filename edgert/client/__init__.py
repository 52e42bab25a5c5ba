"""Decisions of the device's policy for any program on it, over a Unix socket.

    with Policy("/run/edgert/policy.sock") as policy:
        action = policy.act(obs)                                   # a numpy array (H, W, C) uint8
        action = policy.act(obs, reward=1.0)                       # what the last action brought
        action = policy.act(first_of_next, reward=0.0, terminated=True)

The protocol, for other languages. Connect a stream socket to the path. Each frame, in both directions, is

    4 bytes   N, the length of what follows, unsigned, big-endian; at most 16 MiB (16777216)
    N bytes   one CBOR map (RFC 8949) with text keys

Send a request, read one reply, and so on. A request has all of these keys; unknown ones are ignored:

    "obs"         byte string   H*W*C bytes: row by row, the channels of one cell side by side
    "shape"       array         [H, W, C] as integers
    "dtype"       text          "uint8"
    "reward"      number        for the previous action on this connection; finite, within float32
    "terminated"  bool          the previous action ended the episode (goal, crash)
    "truncated"   bool          the episode was cut off after the previous action (time limit)

After terminated or truncated, "obs" is already the first observation of the next episode. In the first request of a
connection the last three say nothing; send 0.0, false, false. The reply is either a decision

    "action"      integer       from 0
    "exit"        integer       the exit of the network that decided, from 0
    "confidence"  float / null  of that exit, 0..1; null when the safe action was given without a policy
    "generation"  integer       of the policy, 0 for the installed one
    "seq"         integer       number of the decision on this device

or a refusal, after which the connection can still be used:

    "error"       text          observation-shape, observation-dtype, reward-not-finite, malformed-frame, no-decision,
                                too-many-clients (this one is followed by the end of the connection)
    "detail"      text          the same for people

Several programs may be connected; requests are answered in turn, and each connection has its own episodes. A length
over the limit ends the connection.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol

import msgspec

from edgert.client.connection import Connection
from edgert.errors import LinkError, MessageError, UsageError
from edgert.ports import ipc

_OBS_BYTES = ipc.MAX_QUEUED_BYTES - 4096
"""What a channel takes at once, less what is around an observation."""


class Array(Protocol):
    """What is needed of a numpy array, so that numpy need not be installed here."""

    @property
    def dtype(self) -> object:
        """Its str() must be "uint8"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""

    def tobytes(self) -> bytes:
        """The elements in C order."""


class Decision(msgspec.Struct, frozen=True):
    """One answer of the policy.

    Attributes:
        action: from 0.
        exit: the exit that decided, from 0.
        confidence: of that exit, 0..1; None when the safe action was given without a policy.
        generation: of the policy, 0 for the installed one.
    """

    action: int
    exit: int
    confidence: float | None
    generation: int


class Policy:
    """A connection to the policy of this device; made at the first question, and again after it was lost.

    Thread: one at a time.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = 1.0) -> None:
        """Connect later.

        Args:
            path: the socket that the device's configuration names.
            timeout_s: for connecting and for each answer, together.
        """
        self._connection, self._timeout_s = Connection(path), timeout_s

    def act(
        self,
        obs: Array | bytes,
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
        *,
        shape: Sequence[int] | None = None,
    ) -> int:
        """The action of `decide`."""
        return self.decide(obs, reward, terminated, truncated, shape=shape).action

    def decide(
        self,
        obs: Array | bytes,
        reward: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
        *,
        shape: Sequence[int] | None = None,
    ) -> Decision:
        """Tell what the last action brought, show what is now, and get the next action.

        Args:
            obs: a uint8 numpy array (H, W, C), or its bytes and `shape`. After the end of an episode, the first
                observation of the next one.
            reward: for the action given last.
            terminated: that action ended the episode.
            truncated: the episode was cut off after that action.
            shape: (H, W, C); only with bytes.

        Returns:
            What the policy decided.

        Raises:
            UsageError: the observation or the reward is not what the policy takes; the message says what it takes.
            LinkError: nobody answers at the path in time. The question is withdrawn; the next call connects anew, which
                begins a new episode for the policy.
            MessageError: the answer makes no sense.
            ConfigError: the socket path is too long.

        Blocks: up to timeout_s.
        """
        request = {**_observation(obs, shape), "reward": float(reward)}
        request.update(terminated=bool(terminated), truncated=bool(truncated))
        answer = self._connection.ask(request, self._timeout_s)
        if "error" in answer:
            why = f"{answer['error']}: {answer.get('detail', '')}"
            if answer["error"] in ("observation-shape", "observation-dtype", "reward-not-finite", "malformed-frame"):
                raise UsageError(why)
            raise LinkError(f"{self._connection}: {why}")
        try:
            return msgspec.convert(answer, type=Decision)
        except msgspec.ValidationError as error:
            self.close()
            raise MessageError(f"{self._connection} answered something else than a decision: {error}") from error

    def close(self) -> None:
        """End the connection; the next question makes a new one."""
        self._connection.close()

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _observation(obs: Array | bytes, shape: Sequence[int] | None) -> dict[str, object]:
    if isinstance(obs, (bytes, bytearray, memoryview)):
        if shape is None:
            raise UsageError("an observation given as bytes needs its shape: act(obs, shape=(H, W, C))")
        data, dims, dtype = bytes(obs), [int(n) for n in shape], "uint8"
    elif hasattr(obs, "tobytes") and hasattr(obs, "shape") and hasattr(obs, "dtype"):
        if shape is not None:
            raise UsageError("shape is for observations given as bytes; an array has its own")
        data, dims, dtype = obs.tobytes(), [int(n) for n in obs.shape], str(obs.dtype)
    else:
        raise UsageError(f"an observation is a uint8 numpy array or bytes, not {type(obs).__name__}")
    if dtype != "uint8":
        raise UsageError(f"an observation is uint8, not {dtype}: convert it, e.g. obs.astype('uint8')")
    if len(data) > _OBS_BYTES:
        raise UsageError(f"an observation of {len(data)} bytes: a message carries at most {_OBS_BYTES}")
    if math.prod(dims) != len(data):
        raise UsageError(f"shape {tuple(dims)} does not fit {len(data)} bytes")
    return {"obs": data, "shape": dims, "dtype": dtype}
