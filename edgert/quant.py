"""The int8 form of a network: one scheme for the exporter, for re-quantizing on the board and for the numpy runtime.

Activations are uint8 with one scale and zero point a tensor; where a ReLU follows, the zero point is 0 and the unsigned
range's lower end is the ReLU. Weights are int8, symmetric, one scale an output channel; biases are int32 in units of
input scale times weight scale. Output layers stay in float: their int32 sums are scaled, not rounded.

Tensors are named after their layer: `<layer>.w`, `.w.scale`, `.b`, `.b.scale`, `.x.scale`, `.x.zp` (its input) and
`.y.scale`, `.y.zp` (its output, absent in output layers). Every layer owns a copy of its input's scale, so that a
branch of the ONNX graph needs nothing from the graph round it. Shapes are those of the ONNX graph: convolutions (out,
in, row, column), dense (in, out).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from edgert import kernels, nets
from edgert.errors import ArtifactError, UsageError
from edgert.kernels import conv
from edgert.kernels.gap import add_gap
from edgert.nets import F32, U8, Conv, Dense, MaxPool, NetSpec, Params, Placed, Relu, matrix_shape, run_layers, stages

Ranges: TypeAlias = dict[str, tuple[float, float]]
Tensors: TypeAlias = Mapping[str, npt.NDArray[Any]]

_NARROWEST = 1e-6  # of a range: keeps every product of scales a normal float32
_BIAS_MAX = 2.0**30  # of an int32 bias: leaves as much again for the products
_COLUMN_BYTES = 4 << 20
_SCALE_MAX = 1e28  # of a product of scales: any int32 times this is a float32


class Step(NamedTuple):
    """One layer as integers see it.

    Attributes:
        placed: the layer.
        source: whose quantization its input has: a layer with weights, or "obs".
        clipped: a ReLU follows at once, so the output's zero point is 0 and the ReLU is no step of its own.
    """

    placed: Placed
    source: str
    clipped: bool

    @property
    def weighted(self) -> bool:
        """Whether the layer has weights."""
        return isinstance(self.placed.layer, Conv | Dense)

    @property
    def is_output(self) -> bool:
        """Whether the layer ends a head and gives float."""
        return self.placed.name.endswith(".out")


class IntStage(NamedTuple):
    """The steps of one stage."""

    trunk: tuple[Step, ...]
    head: tuple[Step, ...]


@functools.lru_cache(maxsize=64)
def steps(spec: NetSpec) -> tuple[IntStage, ...]:
    """Lay a network out as integer steps.

    Args:
        spec: the network.

    Returns:
        One IntStage an exit, without the ReLUs that an unsigned output already is.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours: the exporter, the quantizer and the integer reference must agree on where each scale lives.
    """
    source, unsigned = "obs", True

    def lay(layers: list[Placed]) -> tuple[Step, ...]:
        nonlocal source, unsigned
        found: list[Step] = []
        for i, placed in enumerate(layers):
            if isinstance(placed.layer, Conv | Dense):
                clipped = i + 1 < len(layers) and isinstance(layers[i + 1].layer, Relu)
                found.append(Step(placed, source, clipped))
                source, unsigned = placed.name, clipped
            elif not (isinstance(placed.layer, Relu) and unsigned):
                found.append(Step(placed, source, False))
        return tuple(found)

    laid = []
    for stage in stages(spec):
        trunk = lay(stage.trunk)
        at_the_cut = source, unsigned
        laid.append(IntStage(trunk, lay(stage.head)))
        source, unsigned = at_the_cut
    return tuple(laid)


@functools.lru_cache(maxsize=64)
def layout(spec: NetSpec) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Name, type and shape of every tensor of a quantized network.

    Args:
        spec: the network.

    Returns:
        name -> (dtype, shape). Do not change it: it is shared.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours: fixed by the spec alone, so new weights fit into old bytes.
    """
    found: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def add(name: str, dtype: Any, *shape: int) -> None:
        found[name] = (np.dtype(dtype), shape)

    for step in (step for stage in steps(spec) for step in (*stage.trunk, *stage.head)):
        name, layer, in_shape, *_ = step.placed
        if isinstance(layer, Relu):
            add(f"{name}.floor", np.uint8)
        if not step.weighted:
            continue
        rows, columns = matrix_shape(step.placed)
        if isinstance(layer, Conv):
            add(f"{name}.w", np.int8, columns, in_shape[-1], layer.kernel, layer.kernel)
        else:
            add(f"{name}.w", np.int8, rows, columns)
        add(f"{name}.w.scale", np.float32, columns)
        add(f"{name}.b", np.int32, columns)
        add(f"{name}.b.scale", np.float32, columns)
        add(f"{name}.x.scale", np.float32)
        add(f"{name}.x.zp", np.uint8)
        if not step.is_output:
            add(f"{name}.y.scale", np.float32)
            add(f"{name}.y.zp", np.uint8)
    return found


def calibrate(params: Params, obs: U8, *, batch: int = 256) -> Ranges:
    """Find the range of every activation that gets rounded.

    Args:
        params: the float network.
        obs: (n, H, W, C) uint8, n >= 1: what the policy sees while it acts, not noise.
        batch: observations at a time; bounds the memory.

    Returns:
        Name of each layer with weights, output layers excepted -> (smallest, largest) value, after its ReLU if one
        follows.

    Raises:
        UsageError: no observations, or of the wrong shape or dtype.
    Source:
        min/max calibration: Nagel et al. 2021 (arXiv 2106.08295) section 3.1.
    """
    spec = params.spec
    if obs.dtype != np.uint8 or obs.shape[1:] != tuple(spec.input_shape) or not len(obs):
        raise UsageError(
            f"calibration wants uint8 (n >= 1, {', '.join(map(str, spec.input_shape))}), not {obs.dtype} {obs.shape}"
        )
    ranges: Ranges = {}

    def through(laid: tuple[Step, ...], x: F32 | U8) -> F32 | U8:
        for step in laid:
            y = run_layers([step.placed], params, x if x.dtype == np.uint8 else x.copy(), None)
            if step.clipped:
                np.maximum(y, np.float32(0), out=y)
            if step.weighted and not step.is_output:
                low, high = ranges.get(step.placed.name, (np.inf, -np.inf))
                ranges[step.placed.name] = (float(np.minimum(low, y.min())), float(np.maximum(high, y.max())))
            x = y
        return x

    # A network that overflows gives ranges that are not finite, and `quantize` refuses those by name.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(obs), batch):
            x: F32 | U8 = np.ascontiguousarray(obs[start : start + batch])
            for stage in steps(spec):
                x = through(stage.trunk, x)
                through(stage.head, x)
    return ranges


def _activation(name: str, ranges: Mapping[str, tuple[float, float]], clipped: bool) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of one activation."""
    if name not in ranges:
        raise ArtifactError(f"no range for activation {name}: calibrate with the spec of this network")
    low, high = ranges[name]
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ArtifactError(
            f"range of activation {name} is {low}..{high}: it must be finite and in order; calibrate again"
        )
    low, high = 0.0 if clipped else min(low, 0.0), max(high, 0.0)
    if high - low < _NARROWEST:
        # Nothing ever came through, so nothing is known about it: one unit is as good a guess as any and rounds well.
        low, high = 0.0, 1.0
    scale = np.float32((high - low) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, 255))


def quantize(params: Params, ranges: Mapping[str, tuple[float, float]]) -> dict[str, npt.NDArray[Any]]:
    """Round a network to int8.

    Args:
        params: the float network.
        ranges: of `calibrate`, perhaps an older one's.

    Returns:
        Every tensor of `layout(params.spec)`.

    Raises:
        ArtifactError: a parameter or a range is not finite, or a range is missing.
    Source:
        Jacob et al. 2018 (arXiv 1712.05877) equations 1-7; one weight scale a channel: Krishnamoorthi 2018 (arXiv
        1806.08342) section 3.1; the weight scale raised where the int32 bias would overflow: ours, an idle channel
        with a bias needs it.
    """
    if not np.isfinite(params.flat).all():
        bad = [name for name, view in params.views.items() if not np.isfinite(view).all()]
        raise ArtifactError(f"parameters of {', '.join(bad)} are not finite: this network cannot be quantized")
    found: dict[str, npt.NDArray[Any]] = {}
    known: dict[str, tuple[np.float32, np.uint8]] = {"obs": (np.float32(params.spec.input_scale), np.uint8(0))}
    for step in (step for stage in steps(params.spec) for step in (*stage.trunk, *stage.head)):
        name, layer, in_shape, *_ = step.placed
        x_scale, x_zero = known[step.source]
        if isinstance(layer, Relu):
            found[f"{name}.floor"] = np.array(x_zero)
        if not step.weighted:
            continue
        weight, bias = params.views[f"{name}.w"], params.views[f"{name}.b"].astype(np.float64)
        largest = np.abs(weight).max(0).astype(np.float64)
        needed = np.maximum(largest / 127, np.abs(bias) / (float(x_scale) * _BIAS_MAX))
        with np.errstate(over="ignore"):
            w_scale = np.maximum(needed, _NARROWEST / 127).astype(np.float32)
            b_scale = (x_scale * w_scale).astype(np.float32)
        if not (b_scale.min() > 0 and b_scale.max() <= _SCALE_MAX):
            raise ArtifactError(
                f"layer {name}: weights up to {largest.max():g} on inputs in steps of {x_scale:g} leave float32's range"
            )
        rounded = np.clip(np.rint(weight / w_scale), -127, 127).astype(np.int8)
        if isinstance(layer, Conv):
            rounded = rounded.reshape(layer.kernel, layer.kernel, in_shape[-1], -1).transpose(3, 2, 0, 1)
        found[f"{name}.w"], found[f"{name}.w.scale"] = np.ascontiguousarray(rounded), w_scale
        found[f"{name}.b"], found[f"{name}.b.scale"] = np.rint(bias / b_scale).astype(np.int32), b_scale
        found[f"{name}.x.scale"], found[f"{name}.x.zp"] = np.array(x_scale), np.array(x_zero)
        if not step.is_output:
            y_scale, y_zero = known[name] = _activation(name, ranges, step.clipped)
            found[f"{name}.y.scale"], found[f"{name}.y.zp"] = np.array(y_scale), np.array(y_zero)
    return found


class Quantized(NamedTuple):
    """A network rounded to int8.

    Attributes:
        ranges: of `calibrate`.
        tensors: of `quantize`, with the output biases corrected.
    """

    ranges: Ranges
    tensors: dict[str, npt.NDArray[Any]]


def fit(params: Params, obs: U8) -> Quantized:
    """Calibrate, round, and take out what rounding adds to every output on average.

    Rounding shifts each Q-value by an amount of its own. Where all actions are worth nearly the same, that shift alone
    decides: a network whose Q-values lie near 13 and differ by 0.04 lost its whole return to it, and got it back by
    this correction.

    Args:
        params: the float network.
        obs: (n, H, W, C) uint8, n >= 1: what the policy sees while it acts.

    Returns:
        Ranges and tensors.

    Raises:
        UsageError: no observations, or of the wrong shape or dtype.
        ArtifactError: a parameter is not finite.
    Source:
        bias correction: Nagel et al. 2019 (arXiv 1906.04721) section 4.2, here on the output layers only.
    """
    ranges = calibrate(params, obs)
    tensors = quantize(params, ranges)
    wanted, found = nets.forward(params, obs), IntNet(params.spec, tensors).heads(obs)
    for k, stage in enumerate(stages(params.spec)):
        name = stage.head[-1].name
        shift = (wanted[k].astype(np.float64) - found[k]).mean(0) / tensors[f"{name}.b.scale"]
        tensors[f"{name}.b"] = np.clip(tensors[f"{name}.b"] + np.rint(shift), -_BIAS_MAX, _BIAS_MAX).astype(np.int32)
    return Quantized(ranges, tensors)


def _max_pool(x: U8, kernel: int, stride: int) -> U8:
    """Max pooling of (B, H, W, C) uint8 without padding."""
    rows, columns = ((size - kernel) // stride * stride + 1 for size in x.shape[1:3])
    windows = [x[:, i : i + rows : stride, j : j + columns : stride] for i in range(kernel) for j in range(kernel)]
    return functools.reduce(np.maximum, windows)


class IntNet:
    """A quantized network, ready to run in numpy with the very sums that onnxruntime's integer kernels make.

    The sums are exact integers held in floats: float32 where the weights cannot reach 2^24, float64 otherwise.

    Attributes:
        spec: the network.
        counts: how often each stage's trunk has run: what an early exit saves, countable.
    """

    def __init__(self, spec: NetSpec, tensors: Tensors) -> None:
        """Check the tensors and turn weights into matrices.

        Args:
            spec: the network.
            tensors: of `quantize`, or read back from an ONNX file; more than needed is no fault.

        Raises:
            ArtifactError: a tensor is missing, has another type or shape, or a scale is not a positive number.
        """
        for name, (dtype, shape) in layout(spec).items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
                what = "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
                raise ArtifactError(f"tensor {name} of the quantized network is {what}; it should be {dtype} {shape}")
            if name.endswith(".scale") and not (np.isfinite(tensor).all() and tensor.min() > 0):
                raise ArtifactError(
                    f"tensor {name} of the quantized network holds a scale that is not a positive number"
                )
        self.spec = spec
        self.counts = [0] * spec.n_exits
        self._trunks = [[self._step(step, tensors) for step in stage.trunk] for stage in steps(spec)]
        self._heads = [[self._step(step, tensors) for step in stage.head] for stage in steps(spec)]

    @staticmethod
    def _step(step: Step, tensors: Tensors) -> Callable[[Any], Any]:
        name, layer, in_shape, out_shape, gap_logits = step.placed
        if isinstance(layer, MaxPool):
            return functools.partial(_max_pool, kernel=layer.kernel, stride=layer.stride)
        if isinstance(layer, Relu):
            return functools.partial(np.maximum, tensors[f"{name}.floor"])
        rows, columns = matrix_shape(step.placed)
        stored, x_zero = tensors[f"{name}.w"].astype(np.float64), np.float32(tensors[f"{name}.x.zp"])
        matrix = stored.transpose(2, 3, 1, 0).reshape(rows, columns) if isinstance(layer, Conv) else stored
        bias = tensors[f"{name}.b"].astype(np.float64)
        exact = np.float32 if (np.abs(matrix).sum(0) * 255 + np.abs(bias)).max() < 2**24 else np.float64
        weight: npt.NDArray[Any] = np.ascontiguousarray(matrix, exact)
        bias = bias.astype(exact)
        # The order of these float32 products is onnxruntime's: another differs in the last bit and rounds otherwise.
        with np.errstate(over="ignore", under="ignore"):
            scale = tensors[f"{name}.x.scale"] * tensors[f"{name}.w.scale"]
            if not step.is_output:
                scale = (scale / tensors[f"{name}.y.scale"]).astype(np.float32)
        if not (scale <= _SCALE_MAX).all():
            raise ArtifactError(f"layer {name} of the quantized network: its scales together leave float32's range")
        if not step.is_output:
            y_zero = np.float32(tensors[f"{name}.y.zp"])
            low, high = -y_zero, np.float32(255) - y_zero

        # Columns, and what they are converted to, are many times the image: they are made for a few samples at a time.
        bytes_of_one = rows * int(np.prod(out_shape[:-1])) * (4 + np.dtype(exact).itemsize)

        def run(x: U8) -> U8 | F32:
            if len(x) * bytes_of_one <= _COLUMN_BYTES:
                return some(x)
            found: U8 | F32 = np.concatenate(
                [some(x[part]) for part in conv.slices(len(x), bytes_of_one, _COLUMN_BYTES)]
            )
            return found

        def some(x: U8) -> U8 | F32:
            batch = len(x)
            values: npt.NDArray[Any] = x if x_zero == 0 else x.astype(np.float32) - x_zero
            if isinstance(layer, Conv):
                values = kernels.im2col(
                    np.ascontiguousarray(values).reshape(batch, *in_shape), layer.kernel, layer.stride, layer.padding
                )
            sums: npt.NDArray[Any] = values.reshape(-1, rows).astype(exact, copy=False) @ weight
            sums += bias
            y: F32 = sums.astype(np.float32, copy=False)
            y *= scale
            if step.is_output:
                if gap_logits:
                    add_gap(y, gap_logits)
                return y
            np.rint(y, out=y)
            np.maximum(y, low, out=y)
            np.minimum(y, high, out=y)
            if y_zero:
                y += y_zero
            return y.astype(np.uint8).reshape(batch, *out_shape)

        return run

    def trunk(self, k: int, x: U8) -> U8:
        """Run one stage's trunk.

        Args:
            k: the stage.
            x: (B, ...) uint8: the observation, or what stage k - 1 gave.

        Returns:
            (B, ...) uint8 features.

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            as `forward`.
        """
        self.counts[k] += 1
        for step in self._trunks[k]:
            x = step(x)
        return x

    def head(self, k: int, x: U8) -> F32:
        """Run one head.

        Args:
            k: the exit.
            x: (B, ...) uint8 features of its stage.

        Returns:
            (B, n_actions + 1) float32: Q-values, then the confidence logit.

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            as `forward`.
        """
        for step in self._heads[k]:
            x = step(x)
        return x  # type: ignore[return-value]  # the last step is an output layer, which gives float32

    def heads(self, obs: U8, deepest: int | None = None) -> dict[int, F32]:
        """Run a batch through every exit.

        Args:
            obs: (B, H, W, C) uint8.
            deepest: the last exit wanted; None means all.

        Returns:
            exit -> (B, n_actions + 1) float32.

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            as `forward`.
        """
        x, found = np.ascontiguousarray(obs), {}
        for k in range(self.spec.n_exits if deepest is None else deepest + 1):
            x = self.trunk(k, x)
            found[k] = self.head(k, x)
        return found

    def first_sure(self, obs: U8, threshold_logits: F32) -> tuple[F32, int]:
        """Run one observation up to the first exit that is sure enough.

        Args:
            obs: (1, H, W, C) uint8.
            threshold_logits: (n_exits - 1,) float32; exit k answers when its confidence logit is at least entry k.

        Returns:
            ((n_actions + 1,) float32, the exit).

        Raises:
            UsageError: never; shapes are the caller's.
        Source:
            BranchyNet (Teerapittayanon et al. 2016) Algorithm 1, with a learnt confidence instead of entropy.
        """
        x, last = obs, self.spec.n_exits - 1
        for k in range(last):
            x = self.trunk(k, x)
            head = self.head(k, x)[0]
            if head[-1] >= threshold_logits[k]:
                return head, k
        return self.head(last, self.trunk(last, x))[0], last


def forward(spec: NetSpec, tensors: Tensors, obs: U8) -> dict[int, F32]:
    """Run a batch through every exit of a quantized network: the reference that runtimes are held against.

    Args:
        spec: the network.
        tensors: of `quantize`.
        obs: (B, H, W, C) uint8.

    Returns:
        exit -> (B, n_actions + 1) float32: Q-values, then the confidence logit.

    Raises:
        ArtifactError: tensors that do not fit the spec.
        UsageError: wrong shape or dtype of the observations.
    Source:
        ONNX operator specification, QLinearConv (saturate(round(sum * x_scale * w_scale / y_scale) + y_zero_point),
        half to even).
    """
    if obs.dtype != np.uint8 or obs.shape[1:] != tuple(spec.input_shape):
        raise UsageError(
            f"observations must be uint8 (batch, {', '.join(map(str, spec.input_shape))}), not {obs.dtype} {obs.shape}"
        )
    return IntNet(spec, tensors).heads(obs)
