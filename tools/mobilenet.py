"""MobileNetV1 in its published shapes with random weights, as model bundles: its cost is real, its answers are not.

`python -m tools.mobilenet --out FOLDER` writes eight of them: widths 1.0, 0.75, 0.5 and 0.25 at 224 x 224 x 3, in fp32
and in int8. How long they take does not depend on the weights. Their accuracies are quoted from the published table and
say so in the manifest; they are never measured here, and the answers of these networks mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import edgert
from edgert import modelfile
from edgert.bundle import Golden
from edgert.ports.store import write_atomic

SIDE, CLASSES = 224, 1001
OPSET, IR_VERSION = 17, 9
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Output channels at width 1.0, and stride of the depthwise convolution (arXiv 1704.04861, table 1)."""
TABLE = "tensorflow/models, research/slim/nets/mobilenet_v1.md"


class Published(NamedTuple):
    """A row of the table: millions of multiply-accumulates, top-1 and top-5, of fp32 and of the quantized network."""

    mmacs: int
    fp32: tuple[float, float]
    int8: tuple[float, float]


PUBLISHED = {
    1.0: Published(569, (0.709, 0.899), (0.697, 0.895)),
    0.75: Published(317, (0.684, 0.882), (0.679, 0.881)),
    0.5: Published(150, (0.633, 0.849), (0.622, 0.845)),
    0.25: Published(41, (0.498, 0.742), (0.482, 0.738)),
}
"""Of the quantized networks the release of 2018-02."""


def build(width: float, rng: np.random.Generator) -> tuple[bytes, int]:
    """Write the float32 graph: uint8 NHWC pictures in, logits out, the batch of any size.

    Args:
        width: multiplier of the channels.
        rng: draws the weights.

    Returns:
        A serialized ModelProto, and the multiply-accumulates of a picture.
    """
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    macs, x, side, channels = 0, "picture", SIDE, 3

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(name: str, x: str, out: int, kernel: int, stride: int, group: int) -> str:
        nonlocal macs, side, channels
        fan_in = channels // group * kernel * kernel
        weight = rng.normal(0, np.sqrt(2 / fan_in), (out, channels // group, kernel, kernel)).astype(np.float32)
        operands = [x, constant(f"{name}.w", weight), constant(f"{name}.b", np.zeros(out, np.float32))]
        # TensorFlow's SAME: with stride 2 on an even side the odd pixel is at the end.
        pads = [0] * 4 if kernel == 1 else [0, 0, 1, 1] if stride == 2 else [1] * 4
        y = node("Conv", operands, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group)
        side, channels = -(-side // stride), out
        macs += side * side * out * fan_in
        return node("Clip", [y, "zero", "six"], f"{name}.relu6")

    constant("zero", np.float32(0))
    constant("six", np.float32(6))
    x = node("Cast", [x], "float", to=TensorProto.FLOAT)
    x = node("Mul", [x, constant("scale", np.float32(1 / 127.5))], "scaled")
    x = node("Sub", [x, constant("one", np.float32(1))], "centred")
    x = node("Transpose", [x], "nchw", perm=[0, 3, 1, 2])
    x = conv("conv0", x, int(32 * width), 3, 2, 1)
    for i, (out, stride) in enumerate(BLOCKS, 1):
        x = conv(f"depthwise{i}", x, channels, 3, stride, channels)
        x = conv(f"pointwise{i}", x, int(out * width), 1, 1, 1)
    x = node("GlobalAveragePool", [x], "pooled")
    x = node("Flatten", [x], "features", axis=1)
    weight = rng.normal(0, np.sqrt(1 / channels), (channels, CLASSES)).astype(np.float32)
    node("Gemm", [x, constant("logits.w", weight), constant("logits.b", np.zeros(CLASSES, np.float32))], "logits")
    macs += channels * CLASSES
    graph = helper.make_graph(
        nodes,
        f"mobilenet-{width:g}",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgert"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True)), macs


class _Pictures(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """What activations are measured on."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._left = [rng.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8) for _ in range(2)]

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        """The next picture; None after the last."""
        return {"picture": self._left.pop()} if self._left else None


def quantized(model: bytes, rng: np.random.Generator) -> bytes:
    """The int8 graph: weights a channel each, activations uint8, as onnxruntime fuses them."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        before.write_bytes(model)
        quantize_static(
            before,
            after,
            _Pictures(rng),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return after.read_bytes()


def _accuracy(width: float, precision: str) -> tuple[modelfile.Accuracy, ...]:
    row = PUBLISHED[width]
    top1, top5 = row.fp32 if precision == "fp32" else row.int8
    return tuple(
        modelfile.Accuracy(metric=metric, value_frac=value, measured=False, source=f"ImageNet, quoted from {TABLE}")
        for metric, value in (("top-5", top5), ("top-1", top1))
    )


def bundled(width: float, precision: str, model: bytes, macs: int, picture: npt.NDArray[np.uint8]) -> bytes:
    """One variant as a bundle; its golden answer is that of onnxruntime here."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    answer = session.run(None, {"picture": picture})[0].astype("<f4")
    largest = float(np.abs(answer).max())
    manifest = modelfile.ModelManifest(
        name=f"mobilenet-{width:g}-{precision}",
        task="imagenet",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgert=edgert.__version__,
        input=modelfile.Tensor(shape=(SIDE, SIDE, 3), dtype="uint8"),
        output=modelfile.Tensor(shape=(CLASSES,), dtype="float32"),
        precision="fp32" if precision == "fp32" else "int8",
        width=width,
        macs=macs,
        accuracy=_accuracy(width, precision),
        # Kernels of other processors round otherwise, and int8 carries that through 28 layers.
        golden=Golden(count=1, max_head_error=(0.001 if precision == "fp32" else 0.25) * largest),
        provenance={
            "weights": "random: what it costs is real, what it answers means nothing",
            "published_mmacs": PUBLISHED[width].mmacs,
            "shapes": "arXiv 1704.04861, table 1",
        },
    )
    members = {"model.onnx": model, "golden.in": picture.tobytes(), "golden.out": answer.tobytes()}
    return modelfile.write(manifest, members)


def main(argv: list[str] | None = None) -> int:
    """Write the eight bundles."""
    parser = argparse.ArgumentParser(prog="python -m tools.mobilenet", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for width in PUBLISHED:
        rng = np.random.default_rng(args.seed)
        model, macs = build(width, rng)
        picture = rng.integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
        for precision, graph in (("fp32", model), ("int8", quantized(model, rng))):
            data = bundled(width, precision, graph, macs, picture)
            path = args.out / f"mobilenet-{width:g}-{precision}.edgert"
            write_atomic(path, data, 0o644)
            print(f"{path}: {len(data) / 1e6:.1f} MB, {macs / 1e6:.0f} MMAC of {PUBLISHED[width].mmacs} published")
    return 0


if __name__ == "__main__":
    sys.exit(main())
