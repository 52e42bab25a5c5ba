"""What runs the network of a model bundle, a batch of rows at a time, and whether it gives the golden answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import bundle, modelfile, onnxfile, quant
from edgert.errors import ArtifactError, UsageError
from edgert.modelfile import ModelBundle, ModelManifest
from edgert.nets import F32, Conv, NetSpec, Params, forward, matrix_shape, stages, weighted
from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds
from edgert.ports.runtime import PACKAGES, Kind, open_runtime

Rows = npt.NDArray[Any]
_TRIALS = 4
_DTYPES: dict[str, npt.DTypeLike] = {"uint8": np.dtype(np.uint8), "float32": np.dtype("<f4")}


class Model(NamedTuple):
    """A network that answers.

    Attributes:
        manifest: of its bundle.
        runtime: which one runs it.
        run: (n, *input.shape) of the input's dtype -> (n, *output.shape) float32, finite or not. Raises ArtifactError
            where the network fails. Thread: one at a time.
    """

    manifest: ModelManifest
    runtime: str
    run: Callable[[Rows], F32]


def rows_of(data: bytes, tensor: modelfile.Tensor, n: int) -> Rows:
    """Rows as they went over a wire.

    Args:
        data: C order, little-endian.
        tensor: of each row.
        n: how many.

    Raises:
        UsageError: another number of bytes, or a value that is not finite.
    """
    if len(data) != n * tensor.row_bytes:
        raise UsageError(f"{len(data)} bytes for {n} rows of {tensor.row_bytes}: {tensor.dtype} {tensor.shape}")
    rows = np.frombuffer(data, _DTYPES[tensor.dtype]).reshape(n, *tensor.shape)
    if not np.isfinite(rows).all():
        raise UsageError("a value is not finite")
    return rows


def _onnx(found: ModelBundle) -> Callable[[Rows], Any]:
    # Here, because the package need not be installed.
    try:
        from edgert.ports.runtime.onnx import open_graph
    except Exception as error:  # whatever a broken installation raises; another runtime may still work
        raise UsageError(f"onnxruntime cannot be used ({error}): pip install edgert[onnx]") from error
    graph = open_graph(found.members["model.onnx"], f"{found.manifest.name}, model.onnx")
    return lambda rows: graph.run(rows)[0]


def _litert(found: ModelBundle, kind: Kind) -> Callable[[Rows], Any]:
    from edgert.ports.runtime.litert import open_model

    if modelfile.TFLITE_MEMBER not in found.members:
        raise UsageError(f"bundle {found.manifest.name} has no {modelfile.TFLITE_MEMBER}: set runtime to onnx or numpy")
    run = open_model("tflite" if kind == "tflite" else "litert", found.members[modelfile.TFLITE_MEMBER])
    n = found.manifest.output.count  # the file has one more, the confidence of an exit
    return lambda rows: np.stack([run(row)[:n] for row in rows])


def _numpy(found: ModelBundle) -> Callable[[Rows], Any]:
    manifest = found.manifest
    if manifest.net is None:
        raise UsageError(f"bundle {manifest.name} says no network that numpy could run: pip install edgert[onnx]")
    try:
        spec = msgspec.convert(manifest.net, NetSpec)
        stages(spec)
        tensors = onnxfile.read(found.members["model.onnx"])
        fits = tuple(spec.input_shape) == manifest.input.shape and spec.n_exits == 1
        if not fits or (spec.n_actions,) != manifest.output.shape or manifest.input.dtype != "uint8":
            raise ArtifactError(f"bundle {manifest.name}: its net does not fit input and output")
        if manifest.precision == "int8":
            quant.IntNet(spec, tensors)
            return lambda rows: quant.forward(spec, tensors, rows)[0][:, : spec.n_actions]
        params = _params(spec, tensors)
    except (msgspec.ValidationError, UsageError, KeyError, ValueError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"bundle {manifest.name}, net: {error}") from error
    return lambda rows: forward(params, rows)[0][:, : spec.n_actions]


def _params(spec: NetSpec, tensors: dict[str, Rows]) -> Params:
    """Parameters from the float graph, whose convolutions ONNX has in another order."""
    params = Params(spec, np.zeros(sum(r * c + c for r, c in map(matrix_shape, weighted(spec))), np.float32))
    for placed in weighted(spec):
        weight = tensors[f"{placed.name}.w"]
        if isinstance(placed.layer, Conv):
            weight = weight.transpose(2, 3, 1, 0)
        params.views[f"{placed.name}.w"][...] = weight.reshape(params.views[f"{placed.name}.w"].shape)
        params.views[f"{placed.name}.b"][...] = tensors[f"{placed.name}.b"]
    return params


def _opened(found: ModelBundle, kind: Kind) -> tuple[str, Callable[[Rows], Any]]:
    if kind != "auto":
        run = _onnx(found) if kind == "onnx" else _numpy(found) if kind == "numpy" else _litert(found, kind)
        return kind, run
    for one, package in PACKAGES.items():
        if find_spec(package):
            # A package that is there and does not work must not keep a board from answering.
            with contextlib.suppress(UsageError):
                return _opened(found, one)
    raise UsageError(f"no runtime here runs bundle {found.manifest.name}: pip install edgert[onnx]")


def open_model(found: ModelBundle, kind: Kind = "auto") -> Model:
    """Make a runtime for a model and hold it against the golden answers, which leaves it warm.

    Blocks: for as long as loading takes, some hundred milliseconds for a big one.

    Args:
        found: of `modelfile.read`.
        kind: `auto` is the first that is installed and works.

    Returns:
        A model that gave every golden answer.

    Raises:
        ArtifactError: the network cannot be built, or an answer is wrong.
        UsageError: a package is asked for that is missing or does not work.
    """
    manifest = found.manifest
    name, run = _opened(found, kind)
    shape = manifest.output.shape

    def checked(rows: Rows) -> F32:
        answers = np.asarray(run(rows))
        if answers.shape != (len(rows), *shape) or answers.dtype != np.float32:
            raise ArtifactError(
                f"model {manifest.name} answers {answers.dtype} {answers.shape} to {len(rows)} rows, "
                f"not float32 {(len(rows), *shape)}"
            )
        return answers

    golden = manifest.golden
    asked = rows_of(found.members["golden.in"], manifest.input, golden.count)
    wanted = rows_of(found.members["golden.out"], manifest.output, golden.count)
    bound = max(golden.max_head_error, 0.0 if name in ("onnx", "numpy") else golden.max_rounding_error)
    for i in range(golden.count):
        answer = checked(asked[i : i + 1])[0]
        error = float(np.abs(answer - wanted[i]).max()) if np.isfinite(answer).all() else np.inf
        if error > bound:
            raise ArtifactError(
                f"model {manifest.name}, runtime {name}, golden row {i}: off by {error:g}, at most {bound:g} is "
                "allowed; the bundle or the runtime is broken"
            )
    return Model(manifest, name, checked)


def row_s(model: Model) -> float:
    """What one row takes here: the least of a few runs, as the first is cold and others may be disturbed.

    Raises:
        ArtifactError: the network fails.

    Blocks: for the runs.
    """
    rows = np.zeros((1, *model.manifest.input.shape), _DTYPES[model.manifest.input.dtype])
    took_s = []
    for _ in range(_TRIALS):
        began_s = time.perf_counter()
        model.run(rows)
        took_s.append(time.perf_counter() - began_s)
    return min(took_s)


def open_policy(data: bytes, kind: Kind = "auto") -> Model:
    """The whole network of a policy's bundle, as a model: a row is an observation, and an answer a value an action.

    Args:
        data: the bundle.
        kind: as `open_model`.

    Returns:
        A model of precision int8 and accuracy 1: floors of a policy are said in its own return, and this is all of it.

    Raises:
        ArtifactError, UsageError: as `ports.runtime.open_runtime`.
    """
    policy = artifact.load(data)
    runtime = open_runtime(policy, kind)
    last, said = policy.spec.n_exits - 1, policy.manifest
    logits = effective_thresholds([1.0] * last, last)

    def run(rows: Rows) -> F32:
        return np.stack([runtime.infer(row, logits).head[: said.action.n] for row in rows])

    return Model(policy_as_model(data), runtime.name, run)


def policy_as_model(data: bytes) -> ModelManifest:
    """What a policy's bundle would say of itself as a model.

    Raises:
        ArtifactError: it is no sound bundle.
    """
    said = bundle.read(data).manifest
    costs = tuple(
        msgspec.structs.replace(cost, exits=cost.exits[-1:]) for cost in said.costs if cost.precision == "int8"
    )
    accuracy = modelfile.Accuracy(
        metric="return, as a share of this very network's", value_frac=1.0, measured=False, source="by definition"
    )
    return ModelManifest(
        name=said.task,
        task=said.task,
        created=said.created,
        edgert=said.edgert,
        input=modelfile.Tensor(shape=said.observation.shape, dtype="uint8"),
        output=modelfile.Tensor(shape=(said.action.n,), dtype="float32", names=said.action.names),
        precision="int8",
        macs=said.exits[-1].macs,
        accuracy=(accuracy,),
        golden=said.golden,
        costs=costs,
    )
