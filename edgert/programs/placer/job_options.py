"""What a submitted job says of itself, checked: how to learn, and how it may be cut."""

from __future__ import annotations

import itertools

import msgspec

from edgert.errors import UsageError
from edgert.learn.dqn import Hyper
from edgert.placement.jobs import Split


def read_cuts(
    said: tuple[dict[str, object], ...], n_exits: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[Split, ...]]:
    """Ways to cut a job, as first stages of the parts and as what the parts take.

    Raises:
        UsageError: they are none, or not of such a network.
    """
    try:
        cuts = msgspec.convert([each.get("edges") for each in said], tuple[tuple[int, ...], ...])
        known = ("kind", "parts")
        measured = msgspec.convert([{name: each.get(name) for name in known} for each in said], tuple[Split, ...])
    except msgspec.ValidationError as error:
        raise UsageError(f"cuts: {error}") from error
    for edges, split in zip(cuts, measured, strict=True):
        grows = all(a < b for a, b in itertools.pairwise(edges))
        parts = len(edges) if split.kind == "layers" else len(split.parts)
        if not edges or edges[0] != 0 or edges[-1] >= n_exits or not grows or parts != len(split.parts):
            raise UsageError(f"cuts: no network of {n_exits} stages is cut at {edges} into {len(split.parts)} parts")
    return cuts, measured


def read_hyper(changes: dict[str, float]) -> Hyper:
    """How to learn.

    Raises:
        UsageError: a name that is not there, or a value that makes no sense.
    """
    allowed = {
        "learning_rate",
        "gamma",
        "td_weight",
        "distill_weight",
        "match_weight",
        "confidence_weight",
        "temperature",
    }
    allowed |= {"target_every", "max_grad_norm"}
    if strange := sorted(set(changes) - allowed):
        raise UsageError(f"{', '.join(strange)}: no such setting; there are {', '.join(sorted(allowed))}")
    said = {name: int(value) if name == "target_every" else float(value) for name, value in changes.items()}
    if any(not 0 <= value < 1e9 for value in said.values()) or said.get("target_every", 1) < 1:
        raise UsageError("settings of the training must be 0 or more")
    if not said.get("temperature", 1.0):
        raise UsageError("temperature must be above 0")
    return msgspec.convert(said, Hyper)
