"""Any trained network as a teacher: bundles, ONNX files, files exported from PyTorch. Loaded, probed, named.

A network from elsewhere says neither how it wants its observations nor what its outputs mean. That is said with it,
`task=file.onnx?layout=nchw&scale=1/255`, or, in an ONNX file, by metadata properties `edgert.layout` and so on; what is
not said and cannot be seen is asked for. Nothing is taught before a trial run has shown that every answer is finite, of
one shape, and does not depend on what else is asked at the same time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, get_args
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from edgert import wire
from edgert.bundle import action_set
from edgert.errors import ArtifactError, ConfigError
from edgert.knowledge.codec import ObsShape
from edgert.knowledge.teaching import Kind, Model, Subject
from edgert.nets import F32, U8, forward
from edgert.policy import artifact
from edgert.ports.runtime import Graph

Array: TypeAlias = npt.NDArray[Any]

FORWARD_ROWS: Final = 256
"""Most rows of one run; more bring no speed and take memory."""
MODEL_BYTES_MAX: Final = 1 << 31
_LAYOUTS: Final = ("nhwc", "nchw", "flat")
_DTYPES: Final = ("uint8", "float16", "float32", "float64")
_TRIAL_ROWS: Final = 3
_KEYS: Final = {
    "layout": "nhwc, nchw or flat: the order of the input's dimensions",
    "scale": "what one unit of the uint8 is worth to a float input, as 1/255; one number, or one a channel",
    "offset": "added after that (0); one number, or one a channel",
    "obs_shape": "H,W,C of an observation, where the file does not say it",
    "dtype": "float32 or uint8 of the input, where the file does not say it",
    "kind": "q: Q-values; policy: logits, then the value, as two outputs or as one",
    "outputs": "names (in a PyTorch file: positions) of the outputs meant",
    "actions": "names of the actions, in order",
}


class Source(NamedTuple):
    """A model as the command line names it.

    Attributes:
        path: the file.
        task: what it teaches; empty where the file says it.
        said: how to use it, keys of `describe_keys`.
    """

    path: Path
    task: str
    said: dict[str, str]


def describe_keys() -> str:
    """What may follow the `?` of a model, for a help text."""
    return "; ".join(f"{key} ({what})" for key, what in _KEYS.items())


def parse_source(text: str) -> Source:
    """Read `[TASK=]PATH[?KEY=VALUE&...]`.

    Raises:
        ConfigError: an unknown key, or a key without a value.
    """
    head, _, query = text.partition("?")
    task, equals, path = head.partition("=")
    if not (equals and wire.is_name(task)):
        task, path = "", head
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except ValueError as error:
        raise ConfigError(f"{text}: {error}; write it as task=file.onnx?layout=nchw&scale=1/255") from error
    wrong = [key for key, value in pairs if key not in _KEYS or not value]
    if wrong or len(dict(pairs)) < len(pairs):
        raise ConfigError(f"{text}: {wrong or 'a key is said twice'}; the keys are {describe_keys()}")
    return Source(Path(path), task, dict(pairs))


def open_subject(source: Source) -> Subject:
    """Load a model, try it, and name it.

    Args:
        source: of `parse_source`.

    Returns:
        What it teaches. Its `model` raises ArtifactError where the network fails.

    Raises:
        ConfigError: no such file, it needs a library that is not here, or what is said of it is missing or wrong.
        ArtifactError: it is damaged, or its answers make no sense.

    Blocks:
        As long as loading takes; PyTorch alone takes seconds.
    """
    try:
        if source.path.stat().st_size > MODEL_BYTES_MAX:
            raise ConfigError(
                f"{source.path}: over {MODEL_BYTES_MAX >> 30} GiB: a model is one file, smaller than that"
            )
        data = source.path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source.path}: {error.strerror}; --model takes [TASK=]FILE[?KEY=VALUE&...] with a .edgert, .onnx, .pt2 "
            "or TorchScript .pt file"
        ) from error
    kinds = {".onnx": _open_onnx, ".pt2": _open_torch, ".pt": _open_torch, ".pth": _open_torch, ".ts": _open_torch}
    opener = kinds.get(source.path.suffix.lower())
    try:
        if opener is None:
            subject = _bundle_subject(data, source)
        else:
            subject = _foreign_subject(opener(source.path, data), data, source)
    except (ArtifactError, ConfigError) as error:
        raise type(error)(f"{source.path}: {error}") from error
    if not wire.is_name(subject.task):
        raise ConfigError(
            f"task {subject.task!r} of {source.path}: letters, digits, '.', '_' and '-', at most 64, the first no "
            "sign; say it as --model TASK=FILE"
        )
    return subject


def teacher_name(data: bytes) -> str:
    """What the answers of a bundle call their teacher."""
    return hashlib.sha256(data).hexdigest()[:16]


def _bundle_subject(data: bytes, source: Source) -> Subject:
    if source.said:
        raise ConfigError(f"a bundle says itself how it is used: remove {', '.join(source.said)}")
    policy = artifact.load(data)
    params, spec, names = policy.params, policy.spec, policy.manifest.action.names
    last, kind = spec.n_exits - 1, policy.manifest.kind
    columns = spec.n_actions + (kind == "policy")

    def model(obs: U8) -> F32:
        parts = (obs[first : first + FORWARD_ROWS] for first in range(0, len(obs), FORWARD_ROWS))
        return np.concatenate([forward(params, part, exits=(last,))[last][:, :columns] for part in parts])

    model(policy.golden_obs)
    task = source.task or policy.manifest.task
    return Subject(task, teacher_name(data), spec.input_shape, spec.n_actions, model, kind, action_set(names))


def _open_onnx(path: Path, data: bytes) -> Graph:
    try:
        from edgert.ports.runtime.onnx import open_graph
    except ImportError as error:
        raise ConfigError(f"this file needs onnxruntime: {error}; pip install edgert[onnx]") from error
    return open_graph(data, path.name)


def _open_torch(path: Path, data: bytes) -> Graph:
    try:
        from edgert.ports.torchfile import open_graph
    except ImportError as error:
        raise ConfigError(f"this file needs PyTorch: {error}; pip install torch, or export it to ONNX") from error
    return open_graph(data, exported=path.suffix.lower() == ".pt2")


def _foreign_subject(graph: Graph, data: bytes, source: Source) -> Subject:
    said = {**{key: value for key, value in graph.said.items() if key in (*_KEYS, "task")}, **source.said}
    shape, prepare = _input(graph, said)
    batch = graph.shape[0] if graph.shape else None
    probe = graph.run(prepare(np.zeros((batch or 1, *shape), np.uint8)))
    kind, choose = _output(graph.outputs or tuple(map(str, range(len(probe)))), said)
    name = hashlib.sha256(data)
    name.update(repr(sorted(said.items())).encode())  # two uses of one file answer differently
    subject = Subject(
        task=source.task or said.get("task", ""),
        teacher=name.hexdigest()[:16],
        obs_shape=shape,
        n_actions=0,
        model=_batched(lambda obs: choose(graph.run(prepare(obs)), len(obs)), batch),
        kind=kind,
    )
    n_actions = _try(subject)
    names = [name.strip() for name in said["actions"].split(",")] if "actions" in said else []
    if names and len(names) != n_actions:
        raise ConfigError(f"actions: {len(names)} names for the {n_actions} actions of the network")
    return subject._replace(n_actions=n_actions, actions=action_set(names))


def _input(graph: Graph, said: Mapping[str, str]) -> tuple[ObsShape, Callable[[U8], Array]]:
    """The shape of an observation, and how (n, H, W, C) uint8 becomes what the network takes."""
    dims = None if graph.shape is None else graph.shape[1:]
    if dims is not None and len(dims) not in (1, 3):
        raise ArtifactError(f"its input is {graph.shape}: a batch of rows or of images is what can be asked about")
    layout = said.get("layout", "flat" if dims is not None and len(dims) == 1 else "")
    if layout not in _LAYOUTS or (dims is not None and (layout == "flat") != (len(dims) == 1)):
        raise ConfigError(
            f"layout {layout!r} of an input {graph.shape}: say layout=nhwc, nchw or flat as it was trained"
        )
    shape = _obs_shape(said, dims, layout)
    height, width, channels = shape
    wanted: tuple[int, ...] = {"nhwc": shape, "nchw": (channels, height, width)}.get(layout, (math.prod(shape),))
    if dims is not None and any(has not in (None, wants) for has, wants in zip(dims, wanted, strict=True)):
        raise ConfigError(f"obs_shape {shape}, {layout}, is {wanted} a row, and the file's input takes {dims}")
    type_name = graph.dtype or said.get("dtype", "float32")
    if type_name not in _DTYPES:
        raise ConfigError(f"its input is of type {type_name}: only {', '.join(_DTYPES)} can be asked about")
    dtype = np.dtype(type_name)
    unit = _numbers(said, "scale", channels, None if dtype.kind == "f" else 1.0)
    offset = _numbers(said, "offset", channels, 0.0)
    if dtype.kind != "f" and ((unit != 1).any() or offset.any()):
        raise ConfigError(f"its input is {dtype}: a scale and an offset are for float inputs")

    def prepare(obs: U8) -> Array:
        rows: Array = (obs * unit + offset).astype(dtype) if dtype.kind == "f" else obs
        if layout == "nchw":
            rows = rows.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(rows).reshape(len(obs), *wanted)

    return shape, prepare


def _obs_shape(said: Mapping[str, str], dims: tuple[int | None, ...] | None, layout: str) -> ObsShape:
    if "obs_shape" in said:
        try:
            height, width, channels = (int(side) for side in said["obs_shape"].split(","))
        except ValueError as error:
            raise ConfigError(f"obs_shape={said['obs_shape']}: three whole numbers, as obs_shape=84,84,4") from error
        found: tuple[int | None, ...] = (height, width, channels)
    elif dims is None:
        found = (None,)
    elif layout == "flat":
        found = (1, 1, *dims)
    else:
        found = dims if layout == "nhwc" else (dims[1], dims[2], dims[0])
    if not all(isinstance(side, int) and 1 <= side <= 4096 for side in found):
        raise ConfigError(
            f"the size of an observation ({found}) is not told by the file: say obs_shape=H,W,C, 1 to 4096"
        )
    height, width, channels = (int(side or 0) for side in found)
    return height, width, channels


def _numbers(said: Mapping[str, str], key: str, channels: int, default: float | None) -> F32:
    if key not in said and default is None:
        raise ConfigError(
            f"its input is float: say what one unit of an observation is worth to it, {key}=1 or {key}=1/255, as it "
            "was trained"
        )
    try:
        values = [float(Fraction(word.strip())) for word in said[key].split(",")] if key in said else [default or 0.0]
        found = np.array(values, np.float32)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ConfigError(f"{key}={said[key]}: one number or one a channel, as 1/255 or 0.5,0.25") from error
    if len(found) not in (1, channels) or not np.isfinite(found).all():
        raise ConfigError(f"{key}={said.get(key)}: one finite number, or {channels}, one a channel")
    return found


def _output(outputs: tuple[str, ...], said: Mapping[str, str]) -> tuple[Kind, Callable[[Sequence[Array], int], F32]]:
    """What a row is, and how the network's outputs for so many rows become rows."""
    chosen = [name.strip() for name in said["outputs"].split(",")] if "outputs" in said else list(outputs)
    if not {*chosen} <= {*outputs}:
        raise ConfigError(f"outputs={said['outputs']}: it has {', '.join(outputs)}")
    if said.get("kind", "q") not in get_args(Kind) or len(chosen) > 2 or (len(chosen), said.get("kind")) == (2, "q"):
        raise ConfigError(
            f"kind={said.get('kind')} of outputs {', '.join(chosen)}: kind=q has one output, kind=policy has "
            "logits and value as two or as one; say outputs=NAME or outputs=LOGITS,VALUE"
        )
    places = [outputs.index(name) for name in chosen]
    kind: Kind = "policy" if len(chosen) == 2 or said.get("kind") == "policy" else "q"

    def choose(given: Sequence[Array], n: int) -> F32:
        found = [np.asarray(given[place]) for place in places]
        if len(found) == 2 and found[1].shape == (n,):
            found[1] = found[1][:, None]
        rows_fit = all(each.ndim == 2 and len(each) == n and each.dtype.kind == "f" for each in found)
        if not rows_fit or (len(found) == 2 and found[1].shape[1] != 1):
            raise ArtifactError(
                f"for {n} observations it gives {', '.join(f'{each.dtype} {each.shape}' for each in found)}: a teacher "
                "gives float (n, actions), or logits and then (n, 1) values; outputs= chooses among "
                f"{', '.join(outputs)}"
            )
        return np.concatenate(found, axis=1).astype(np.float32)

    return kind, choose


def _batched(run: Model, batch: int | None) -> Model:
    """Run in parts; a network exported for one size of batch gets that size, padded."""
    step = batch or FORWARD_ROWS

    def model(obs: U8) -> F32:
        found = []
        for first in range(0, len(obs), step):
            part = obs[first : first + step]
            short = batch - len(part) if batch else 0
            padded = np.concatenate([part, np.zeros((short, *part.shape[1:]), np.uint8)]) if short else part
            found.append(run(padded)[: len(part)])
        return np.concatenate(found)

    return model


def _try(subject: Subject) -> int:
    """Trial run; the number of actions that it knows."""
    obs = np.random.default_rng(0).integers(0, 256, (_TRIAL_ROWS, *subject.obs_shape), np.uint8)
    obs[0] = 0
    together = subject.model(obs)
    alone = np.concatenate([subject.model(row[None]) for row in obs])
    if not np.isfinite(together).all():
        raise ArtifactError("it gives values that are not finite for a trial observation")
    n_actions = int(together.shape[1]) - (subject.kind == "policy")
    if n_actions < 1:
        raise ArtifactError(f"it gives {together.shape[1]} columns, of kind {subject.kind}: that is no action at all")
    if not np.allclose(alone, together, rtol=1e-3, atol=1e-3 * float(np.abs(together).max())):
        raise ArtifactError(
            "its answer to one observation depends on what else is asked or on chance: export it in evaluation mode"
        )
    return n_actions
