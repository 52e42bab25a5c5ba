"""What is remembered of a job of this device, across restarts."""

from __future__ import annotations

from typing import Any

import msgspec

from edgert.placement.jobs import Split


class Record(msgspec.Struct, kw_only=True):
    """A job as it is written down.

    Attributes:
        id, steps, batch, checkpoint_steps, split, hyper: as submitted.
        bundle, shard: files, by their hash.
        born_at_s, due_at_s: seconds since the Unix epoch.
        state, why, attempt, step, nodes, history, result: as `wire.PlaceJob` tells.
        cuts: for each of `measured`, the first stage of its parts.
        measured: ways to cut it, and what each takes.
        failures: attempts that had begun and broke off.
        install: the result is for the actor here.
        generation: under which it was offered to it; 0 before.
    """

    id: str
    steps: int
    batch: int
    checkpoint_steps: int
    split: str = "auto"
    hyper: dict[str, float | None] = {}
    bundle: str = ""
    shard: str = ""
    born_at_s: float = 0.0
    due_at_s: float | None = None
    state: str = "waiting"
    why: str = ""
    attempt: int = 0
    step: int = 0
    nodes: tuple[str, ...] = ()
    cuts: tuple[tuple[int, ...], ...] = ()
    measured: tuple[Split, ...] = ()
    history: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    failures: int = 0
    install: bool = False
    generation: int = 0
