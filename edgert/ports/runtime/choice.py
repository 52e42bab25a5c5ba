"""Which runtime and precision this board runs a policy with: what `edgert policy bench` measured here, kept in a file.

A choice holds for one board, one CPU, one set of installed runtimes and one network shape. Weights do not matter: a
network that went on learning here keeps its choice.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edgert import onnxfile
from edgert.bundle import FLOAT_MEMBER, Cost, Precision
from edgert.errors import ArtifactError, UsageError
from edgert.policy.artifact import Policy, as_float
from edgert.ports.board.linux import LinuxBoard
from edgert.ports.runtime import PACKAGES, Kind, Runtime, open_runtime
from edgert.ports.store import write_atomic

_UNREADABLE = (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
KEPT = 16
"""Network shapes whose choice is remembered; the oldest is forgotten."""


class Key(msgspec.Struct, frozen=True):
    """What a measurement holds for.

    Attributes:
        board: model of the device tree, or "linux".
        cpu: as /proc/cpuinfo names it.
        versions: runtime -> version of its package, those that are installed.
        model: SHA-256 of the int8 graph without its weights.
    """

    board: str
    cpu: str
    versions: dict[str, str]
    model: str


class Choice(msgspec.Struct, frozen=True):
    """The winner of one race, and what every runner needed."""

    key: Key
    runtime: Kind
    precision: Precision
    costs: tuple[Cost, ...]


class _File(msgspec.Struct, frozen=True):
    """The file; the newest choice first."""

    format: Literal[1]
    choices: list[Choice]


class Opened(NamedTuple):
    """A runtime, and why it is this one.

    Attributes:
        runtime: it gave every golden answer.
        why: in words.
        costs_s: median seconds at each exit, measured on this board; empty when nobody did.
    """

    runtime: Runtime
    why: str
    costs_s: tuple[float, ...]


def cpu_name(root: str = "/") -> str:
    """The CPU as /proc/cpuinfo names it; on ARM its implementer, part and revision, where there is no name."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in (Path(root) / "proc" / "cpuinfo").read_text(errors="replace").splitlines():
            field, _, value = line.partition(":")
            found.setdefault(field.strip(), value.strip())
    if name := found.get("model name") or found.get("Hardware"):
        return name
    parts = [found[field] for field in ("CPU implementer", "CPU part", "CPU revision") if field in found]
    return f"ARM {' '.join(parts)}" if parts else "unknown"


def versions() -> dict[Kind, str]:
    """Runtime -> version of its package, those that are installed."""
    import importlib.metadata  # here, because it is a megabyte that an actor without a measured choice does not need

    found: dict[Kind, str] = {}
    for kind, package in PACKAGES.items():
        if find_spec(package):
            found[kind] = "unknown"
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[kind] = importlib.metadata.version(package) or "unknown"
    return found


def key_of(policy: Policy, root: str = "/") -> Key:
    """What a measurement made here and now with this policy holds for.

    Raises:
        ArtifactError: the policy's graph is damaged.
    """
    model = hashlib.sha256(onnxfile.skeleton(policy.bundle.members["policy.onnx"])).hexdigest()
    return Key(LinuxBoard(root).name, cpu_name(root), {str(kind): said for kind, said in versions().items()}, model)


def candidates(policy: Policy) -> list[tuple[Kind, Precision]]:
    """What could run this policy here: every installed runtime, in every precision the bundle has something for."""
    found: list[tuple[Kind, Precision]] = []
    for kind in versions():
        if kind not in ("litert", "tflite") or policy.tflite:
            found.append((kind, "int8"))
        if kind == "numpy" or (kind == "onnx" and FLOAT_MEMBER in policy.bundle.members):
            found.append((kind, "fp32"))
    return found


def open_one(policy: Policy, kind: Kind, precision: Precision) -> Runtime:
    """`open_runtime` in either precision.

    Raises:
        ArtifactError: the network cannot be built, or an answer is wrong.
        UsageError: the runtime is missing, does not work, or does not know this precision.
    """
    if precision == "int8":
        return open_runtime(policy, kind)
    if kind not in ("onnx", "numpy"):
        raise UsageError(f"runtime {kind} runs int8 only")
    return open_runtime(as_float(policy), kind)


def remember(path: Path, choice: Choice) -> None:
    """Write a choice down; one of the same key is replaced.

    Raises:
        StoreError: it cannot be written.
    """
    kept: list[Choice] = []
    with contextlib.suppress(*_UNREADABLE):  # what nobody can read is given up
        former = msgspec.json.decode(path.read_bytes(), type=_File).choices
        kept = [one for one in former if one.key != choice.key][: KEPT - 1]
    write_atomic(path, msgspec.json.encode(_File(1, [choice, *kept])), mode=0o644)


def recall(path: Path, policy: Policy, root: str = "/") -> tuple[Choice | None, str]:
    """The choice for this policy on this board as it is now, and in words why there is none.

    Raises:
        ArtifactError: the policy's graph is damaged.
    """
    try:
        choices = msgspec.json.decode(path.read_bytes(), type=_File).choices
    except FileNotFoundError:
        return None, "never measured here"
    except _UNREADABLE as error:
        return None, f"{path} cannot be read: {error}"
    key = key_of(policy, root)
    found = next((choice for choice in choices if choice.key == key), None)
    if found is not None and any(len(cost.exits) != policy.spec.n_exits for cost in found.costs):
        return None, f"{path} has not one cost an exit"
    if found is not None:
        return found, ""
    if not any(choice.key.model == key.model for choice in choices):
        return None, "this network was never measured here"
    return None, "measured on another board or with other runtimes"


def open_chosen(policy: Policy, kind: Kind, path: Path) -> Opened:
    """Open what the configuration asks for; `auto` is what was measured to be fastest on this board.

    Blocks: as `open_runtime`; opens a second runtime when the measured one no longer works.

    Args:
        policy: of `policy.artifact.load`.
        kind: of the configuration.
        path: file of `remember`.

    Raises:
        ArtifactError, UsageError: as `open_runtime`.
    """
    choice, why = recall(path, policy)
    if kind != "auto":
        return Opened(open_runtime(policy, kind), "configured", _costs_s(choice, kind, "int8"))
    if choice is not None:
        try:
            runtime = open_one(policy, choice.runtime, choice.precision)
        except (ArtifactError, UsageError) as error:
            why = f"{choice.runtime} {choice.precision} was fastest here and fails: {error}"
        else:
            costs_s = _costs_s(choice, choice.runtime, choice.precision)
            return Opened(runtime, f"{choice.precision}, measured to be the fastest here", costs_s)
    runtime = open_runtime(policy)
    return Opened(runtime, f"first that works; {why}", _costs_s(choice, runtime.name, "int8"))


def _costs_s(choice: Choice | None, runtime: str, precision: Precision) -> tuple[float, ...]:
    """What was measured of one runner."""
    for cost in choice.costs if choice else ():
        if (cost.runtime, cost.precision) == (runtime, precision):
            return tuple(each.p50_s for each in cost.exits)
    return ()
