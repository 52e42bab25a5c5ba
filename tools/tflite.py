"""Write an int8 network as one `.tflite` file a stage, straight from its integers: no converter, no calibration.

Stage k's inputs: `x`, int8 (1, ...): the observation with 128 taken off every value, or what stage k - 1 gave. Its
outputs: `head` float32 (1, n_actions + 1), then, but for the last stage, the features that stage k + 1 wants.

The operators are those that XNNPACK takes whole; what they hold and why is `policy.artifact.tflite_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from edgert import quant
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Placed, Relu
from edgert.policy.artifact import tflite_tensors

_ALIGNMENT = 16  # of a constant, as schema.fbs forces it: kernels may load vectors from it
_DTYPES = {
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
}
_VERSIONS = {  # the oldest that means int8, or float32 for the last four
    "CONV_2D": 3,
    "FULLY_CONNECTED": 4,
    "MAX_POOL_2D": 2,
    "PAD": 2,
    "RELU": 2,
    "DEQUANTIZE": 2,
    "MUL": 1,
}


class _Buffer(schema.BufferT):  # type: ignore[misc]  # generated code, which has no types
    """A constant; the generated class forgets the alignment that the schema asks for."""

    def Pack(self, builder: flatbuffers.Builder) -> int:  # noqa: N802 - overrides generated code
        if self.data:
            builder.Prep(_ALIGNMENT, len(self.data))
            data = builder.CreateByteVector(self.data)
        schema.BufferStart(builder)
        if self.data:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))


class _Graph:
    """The tensors and operators of one stage."""

    def __init__(self, held: Mapping[str, npt.NDArray[Any]]) -> None:
        self.held = held
        self.buffers = [_Buffer()]  # number 0 means none
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[str] = []

    def _tensor(self, name: str, dtype: Any, shape: Sequence[int]) -> Any:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), _DTYPES[np.dtype(dtype)], 0
        self.tensors.append(tensor)
        return tensor

    @staticmethod
    def _quantization(scale: Any, zero_point: Any) -> Any:
        quantization = schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = np.asarray(scale, np.float32), np.asarray(zero_point, np.int64)
        return quantization

    def counted(self, name: str, shape: Sequence[int]) -> int:
        """An int8 activation in steps of its own quantization."""
        tensor = self._tensor(name, np.int8, (1, *shape))
        tensor.quantization = self._quantization([1], self.held[f"{name}.zp"])
        return len(self.tensors) - 1

    def measured(self, name: str, shape: Sequence[int]) -> int:
        """A float32 activation."""
        self._tensor(name, np.float32, (1, *shape))
        return len(self.tensors) - 1

    def constant(self, name: str, value: npt.NDArray[Any] | None = None) -> int:
        """A constant, one scale an output channel where it has scales; `held` knows its value unless it is given."""
        value = self.held[name] if value is None else value
        tensor = self._tensor(name, value.dtype, value.shape)
        tensor.buffer = len(self.buffers)
        buffer = _Buffer()
        buffer.data = np.asarray(value, value.dtype.newbyteorder("<")).tobytes()
        self.buffers.append(buffer)
        scale = self.held.get(f"{name}.scale")
        if scale is not None:
            tensor.quantization = self._quantization(scale, np.zeros(len(scale)))
        return len(self.tensors) - 1

    def operator(self, code: str, inputs: Sequence[int], output: int, options: Any = None) -> int:
        operator = schema.OperatorT()
        if code not in self.codes:
            self.codes.append(code)
        operator.opcodeIndex, operator.inputs, operator.outputs = self.codes.index(code), list(inputs), [output]
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self.operators.append(operator)
        return output

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "stage", self.tensors, self.operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = schema.ModelT()
        model.version, model.description, model.subgraphs, model.buffers = 3, "edgert", [graph], self.buffers
        model.operatorCodes = []
        for name in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
            code.version = _VERSIONS[name]
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _conv(graph: _Graph, placed: Placed, layer: Conv, x: int) -> int:
    name, _, (height, width, channels), out_shape, _ = placed
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = layer.stride
    options.dilationHFactor = options.dilationWFactor = 1
    options.padding = schema.Padding.VALID
    if f"{name}.padded.zp" in graph.held:
        pads = np.zeros((4, 2), np.int32)
        pads[1:3] = layer.padding
        grown = (height + 2 * layer.padding, width + 2 * layer.padding, channels)
        padded = graph.counted(f"{name}.padded", grown)
        x = graph.operator("PAD", [x, graph.constant(f"{name}.pads", pads)], padded, schema.PadOptionsT())
    elif layer.padding:
        options.padding = schema.Padding.SAME
    operands = [x, graph.constant(f"{name}.w"), graph.constant(f"{name}.b")]
    return graph.operator("CONV_2D", operands, graph.counted(f"{name}.y", out_shape), options)


def _output(graph: _Graph, placed: Placed, x: int) -> int:
    """An output layer: exact sums of whole numbers, then one product."""
    name, _, in_shape, out_shape, _ = placed
    x = graph.operator("DEQUANTIZE", [x], graph.measured(f"{name}.x", in_shape), schema.DequantizeOptionsT())
    operands = [x, graph.constant(f"{name}.w"), graph.constant(f"{name}.b")]
    sums = graph.measured(f"{name}.sums", out_shape)
    graph.operator("FULLY_CONNECTED", operands, sums, schema.FullyConnectedOptionsT())
    head = graph.measured("head", out_shape)
    return graph.operator("MUL", [sums, graph.constant(f"{name}.unit")], head, schema.MulOptionsT())


def _layer(graph: _Graph, step: quant.Step, x: int) -> int:
    name, layer, _, out_shape, _ = step.placed
    match layer:
        case Conv():
            return _conv(graph, step.placed, layer, x)
        case Dense() if step.is_output:
            return _output(graph, step.placed, x)
        case Dense():
            operands = [x, graph.constant(f"{name}.w"), graph.constant(f"{name}.b")]
            y = graph.counted(f"{name}.y", out_shape)
            return graph.operator("FULLY_CONNECTED", operands, y, schema.FullyConnectedOptionsT())
        case MaxPool(kernel, stride):
            options = schema.Pool2DOptionsT()
            options.padding = schema.Padding.VALID
            options.strideH = options.strideW = stride
            options.filterHeight = options.filterWidth = kernel
            return graph.operator("MAX_POOL_2D", [x], graph.counted(f"{name}.y", out_shape), options)
        case Relu():
            return graph.operator("RELU", [x], graph.counted(f"{name}.y", out_shape))


def build(spec: NetSpec, tensors: quant.Tensors) -> list[bytes]:
    """Write every stage.

    Args:
        spec: the network.
        tensors: of `quant.quantize`.

    Returns:
        One serialized tflite.Model a stage, shallow to deep.
    """
    files: list[bytes] = []
    for stage, held in zip(quant.steps(spec), tflite_tensors(spec, tensors), strict=True):
        graph = _Graph(held)
        features = first = graph.counted("x", stage.trunk[0].placed.in_shape)
        for step in stage.trunk:
            features = _layer(graph, step, features)
        head = features
        for step in stage.head:
            head = _layer(graph, step, head)
        files.append(graph.finish([first], [head] if len(files) == spec.n_exits - 1 else [head, features]))
    return files
