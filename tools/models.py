"""Networks of `edgert.nets` as model bundles: one graph for batches of any size, in fp32 or int8."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import edgert
from edgert import modelfile, onnxfile, quant
from edgert.bundle import Golden
from edgert.nets import F32, U8, Params, forward, macs, weighted, without_exits
from tools import export, tflite

GOLDEN = 8


def cut(params: Params, exit_: int) -> Params:
    """The network that ends at an exit, as one of its own, copied."""
    made = Params(without_exits(params.spec, exit_))
    parts = (*(f"t{k}." for k in range(exit_ + 1)), f"h{exit_}.")
    kept = [placed.name for placed in weighted(params.spec) if placed.name.startswith(parts)]
    for name, placed in zip(kept, weighted(made.spec), strict=True):
        for part in ("w", "b"):
            made.views[f"{placed.name}.{part}"][:] = params.views[f"{name}.{part}"]
    return made


def graph(flat: bytes, classes: int) -> bytes:
    """`tools.export`'s graph for batches of any size, without the column that is an exit's confidence."""
    model = onnx.load_from_string(flat)
    (output,) = model.graph.output
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("answer.from", 0), ("answer.to", classes), ("answer.axis", 1))
    )
    operands = [output.name, "answer.from", "answer.to", "answer.axis"]
    model.graph.node.append(helper.make_node("Slice", operands, ["answer"], name="answer"))
    output.name = "answer"
    output.type.tensor_type.shape.dim[1].dim_value = classes
    for value in (*model.graph.input, output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def built(
    params: Params, precision: Literal["fp32", "int8"], *, ranges_of: U8, asked: U8
) -> tuple[dict[str, bytes], Golden, F32]:
    """The members of a bundle.

    Args:
        params: of a network of one exit.
        precision: wanted.
        ranges_of: observations that int8 is fitted to.
        asked: observations; the first `GOLDEN` of them become golden rows.

    Returns:
        Members, what may differ from the golden rows, and the answers to all that was asked.
    """
    spec = params.spec
    tensors: Any = quant.fit(params, ranges_of).tensors
    flat = export.build(spec, tensors, "last") if precision == "int8" else export.build_float(params, "last")
    model, golden = graph(flat, spec.n_actions), asked[:GOLDEN]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    answers: F32 = session.run(None, {"obs": asked})[0]
    members = {"model.onnx": model, "golden.in": golden.tobytes()}
    members["golden.out"] = answers[: len(golden)].astype("<f4").tobytes()
    largest, rounding = float(np.abs(answers).max()), 0.0
    if precision == "int8":
        members[modelfile.TFLITE_MEMBER] = tflite.build(spec, onnxfile.read(model))[0]
        rounding = 2 * float(np.abs(answers - forward(params, asked)[0][:, : spec.n_actions]).max())
    return members, Golden(count=len(golden), max_head_error=1e-4 * largest, max_rounding_error=rounding), answers


def manifest(
    params: Params,
    precision: Literal["fp32", "int8"],
    golden: Golden,
    *,
    name: str,
    task: str,
    accuracy: Sequence[modelfile.Accuracy],
    **more: Any,
) -> modelfile.ModelManifest:
    """What a bundle of such a network says of itself; `more` are further keys of it."""
    spec = params.spec
    return modelfile.ModelManifest(
        name=name,
        task=task,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgert=edgert.__version__,
        input=modelfile.Tensor(shape=spec.input_shape, dtype="uint8"),
        output=modelfile.Tensor(shape=(spec.n_actions,), dtype="float32"),
        precision=precision,
        macs=macs(spec)[0],
        accuracy=tuple(accuracy),
        net=msgspec.to_builtins(spec),
        golden=golden,
        **more,
    )
