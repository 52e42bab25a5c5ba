"""A checkpoint as bytes: everything that a resumed training needs to take the very same next step."""

from __future__ import annotations

import json
from typing import Any

import cbor2
import numpy as np

from edgert import wire
from edgert.errors import ArtifactError, UsageError
from edgert.learn.dqn import Learner

FORMAT = 2


def pack(
    learner: Learner,
    rng: np.random.Generator,
    *,
    newest_seq: int,
    schema: str,
    counters: dict[str, int],
    tutor: bytes = b"",
) -> bytes:
    """Freeze a training.

    Args:
        learner: network, target, moments and step count.
        rng: the generator that samples.
        newest_seq: of the replay; transitions are in the ring, and what teachers said has its own file, too.
        schema: hash of the network's description and of the observation and action schema.
        counters: non-negative totals to carry on.
        tutor: what is thought of the teachers.

    Returns:
        CBOR bytes.

    Raises:
        Nothing.
    Source:
        ours: one generation holds weights, optimiser, chance, cursor and counters, because a resume that lacks one of
        them silently trains something else.
    """
    return cbor2.dumps(
        {
            "format": FORMAT,
            "schema": schema,
            "steps": learner.steps,
            "arrays": {name: array.tobytes() for name, array in learner.arrays().items()},
            "rng": json.dumps(rng.bit_generator.state),
            "newest_seq": newest_seq,
            "counters": counters,
            "tutor": tutor,
        }
    )


class Checkpoint:
    """An opened checkpoint.

    Attributes:
        steps: gradient steps taken.
        newest_seq: the newest transition it had seen; replay up to it.
        counters: as packed.
        tutor: as packed.
    """

    def __init__(self, data: bytes, *, schema: str) -> None:
        """Open and check.

        Args:
            data: as `pack` made it.
            schema: what the running network is.

        Raises:
            ArtifactError: not a checkpoint, of another format, or of another network.
        """
        try:
            self._document: dict[str, Any] = cbor2.loads(data)
            found = self._document["format"], self._document["schema"]
            self.steps = int(self._document["steps"])
            self.newest_seq = int(self._document["newest_seq"])
            self.counters = {str(name): int(total) for name, total in self._document["counters"].items()}
            self._arrays = {name: np.frombuffer(raw, np.float32) for name, raw in self._document["arrays"].items()}
            self.tutor = bytes(self._document["tutor"])
            self._rng = json.loads(self._document["rng"])
        except wire.UNREADABLE as error:
            raise ArtifactError(
                f"checkpoint is damaged: {type(error).__name__}: {error}; training starts from the bundle"
            ) from error
        if found != (FORMAT, schema):
            raise ArtifactError(
                f"checkpoint is of format {found[0]} for schema {found[1]}, not {FORMAT} for {schema}: "
                "it belongs to another policy"
            )

    def restore(self, learner: Learner, rng: np.random.Generator) -> None:
        """Put everything back.

        Args:
            learner: overwritten.
            rng: overwritten.

        Raises:
            ArtifactError: sizes that do not fit the network.
        Source:
            as `pack`.
        """
        try:
            learner.restore(self._arrays, self.steps)
            rng.bit_generator.state = self._rng
        except (UsageError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"checkpoint does not fit: {error}; training starts from the bundle") from error
