"""What a stream of knowledge holds: agreed on before the first message, told again in every key message."""

from __future__ import annotations

import struct
from typing import Final, Literal

import msgspec
import numpy as np

from edgert.bundle import Action, Observation
from edgert.errors import MessageError, UsageError
from edgert.kernels.codec import HISTORY_MAX, Layout
from edgert.knowledge.codec import ObsShape

VERSION: Final = 1
Content = Literal["transitions", "values"]

_PACKED = struct.Struct("<BBHHHH")  # version, content and kind, height, width, channels, actions
_TRANSITIONS, _PLANES, _BOOLEAN = 1, 2, 4

TRANSITION = np.dtype([("action", "u1"), ("ended", "u1"), ("reward", ">f4")])
"""A transition's record: the action first, since the next frame depends on it."""


class Schema(msgspec.Struct, frozen=True):
    """What each message of a stream holds.

    Attributes:
        content: "transitions": observations with an action, a reward and how they ended; "values": a row of float32 an
            observation, Q-values or logits and value alike.
        obs_shape: (H, W, C) uint8; (0, 0, 0) for values.
        planes: True where each channel means something of its own, False where channels are a stack of frames.
        boolean: True where pixels are 0 or 1. This and `planes` are a promise of good compression, not of correctness:
            what does not hold to them still comes back exactly.
        columns: actions, of 256 at most in transitions; floats in a row of values.
    """

    content: Content
    obs_shape: ObsShape
    planes: bool
    boolean: bool
    columns: int

    def __post_init__(self) -> None:
        """Refuse what no message could hold."""
        edges = self.obs_shape
        if self.content == "transitions":
            fits = all(1 <= edge <= 0xFFFF for edge in edges) and 1 <= self.columns <= 256
        else:
            fits = edges == (0, 0, 0) and 1 <= self.columns <= 0xFFFF // 4 and not self.planes and not self.boolean
        if not fits:
            raise UsageError(f"no stream of {self.content} has observations of {edges} and {self.columns} columns")

    @property
    def layout(self) -> Layout:
        """How the coder lays it out."""
        height, width, channels = self.obs_shape
        record = TRANSITION.itemsize if self.content == "transitions" else 4 * self.columns
        history = 4 if self.planes else min(max(8, 2 * channels), HISTORY_MAX)
        return Layout(height, width, channels, self.planes, self.boolean, record, history)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step before coding."""
        height, width, channels = self.obs_shape
        return height * width * channels + self.layout.record

    def pack(self) -> bytes:
        """To bytes.

        Returns:
            10 bytes.

        Raises:
            Nothing.
        Source:
            ours: small enough for every key message.

        """
        kind = _TRANSITIONS * (self.content == "transitions") | _PLANES * self.planes | _BOOLEAN * self.boolean
        return _PACKED.pack(VERSION, kind, *self.obs_shape, self.columns)


PACKED_BYTES: Final = _PACKED.size


def unpack(data: bytes) -> Schema:
    """From bytes.

    Args:
        data: of `Schema.pack`.

    Returns:
        The schema.

    Raises:
        MessageError: of another version, or not a schema.
    Source:
        ours, as `Schema.pack`.

    """
    if len(data) != _PACKED.size:
        raise MessageError(f"{len(data)} bytes are no schema, which has {_PACKED.size}")
    version, kind, height, width, channels, columns = _PACKED.unpack(data)
    if version != VERSION or kind > (_TRANSITIONS | _PLANES | _BOOLEAN):
        raise MessageError(f"schema of version {version}, kind {kind}; this program reads version {VERSION}")
    content: Content = "transitions" if kind & _TRANSITIONS else "values"
    try:
        return Schema(content, (height, width, channels), bool(kind & _PLANES), bool(kind & _BOOLEAN), columns)
    except UsageError as error:
        raise MessageError(f"not a schema: {error}") from error


def transitions(observation: Observation, action: Action) -> Schema:
    """The schema of what a bundle's policy sees and does.

    Args:
        observation: of the bundle's manifest.
        action: of the bundle's manifest.

    Returns:
        One channel, or unnamed channels of grey values, are frames; named channels, and booleans (a unit is worth 1),
        are planes.

    Raises:
        UsageError: more than 256 actions.
    Source:
        ours: `Observation` says what each channel means only where they differ.

    """
    boolean = observation.scale == 1.0
    planes = observation.shape[2] > 1 and (boolean or len(observation.channels) > 0)
    return Schema("transitions", observation.shape, planes, boolean, action.n)


def values(columns: int) -> Schema:
    """The schema of rows of float32.

    Args:
        columns: floats in a row.

    Returns:
        The schema.

    Raises:
        UsageError: too many columns.
    Source:
        ours: Q-values, and logits with a value behind them, differ only in what their reader makes of them.

    """
    return Schema("values", (0, 0, 0), False, False, columns)
