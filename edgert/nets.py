"""Early-exit value networks: their description, their float forward pass and their cost.

A network is a trunk cut into stages. After stage k a head looks at the trunk's features and gives `n_actions` Q-values
and one confidence logit, in one matrix product: column `n_actions` of `h<k>.out`, to which the gap between its two best
Q-values may be added. The last head is the full network.

Arrays are NHWC inside, weights are matrices (convolution: rows ordered kernel row, kernel column, input channel), and
all parameters of a network lie in one flat float32 vector: an optimiser step, a checkpoint and a hash see one array.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import kernels
from edgert.errors import UsageError
from edgert.kernels import conv
from edgert.kernels.conv import Scratch
from edgert.kernels.gap import add_gap

F32: TypeAlias = npt.NDArray[np.float32]
I32: TypeAlias = npt.NDArray[np.int32]
U8: TypeAlias = npt.NDArray[np.uint8]


class Conv(msgspec.Struct, frozen=True, tag="conv"):
    """2-D convolution with a bias, same stride and padding both ways."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


class MaxPool(msgspec.Struct, frozen=True, tag="maxpool"):
    """2-D max pooling without padding."""

    kernel: int
    stride: int


class Dense(msgspec.Struct, frozen=True, tag="dense"):
    """Fully connected layer with a bias; flattens whatever comes in (order: row, column, channel)."""

    units: int


class Relu(msgspec.Struct, frozen=True, tag="relu"):
    """max(x, 0)."""


Layer = Conv | MaxPool | Dense | Relu


class NetSpec(msgspec.Struct, frozen=True):
    """What a network looks like.

    Attributes:
        input_shape: (height, width, channels) of the uint8 observation.
        n_actions: size of the discrete action set.
        trunk: the layers of each stage.
        heads: hidden layers of each stage's head; the output layer is implied. Same length as `trunk`.
        input_scale: what one unit of the uint8 observation is worth (1 for booleans, 1/255 for images).
        gap_logits: of every exit but the last, what a unit of Q-value between its best and its second action adds to
            its confidence logit; a piece of a network may have one of its last exit, too; empty is 0.
    """

    input_shape: tuple[int, int, int]
    n_actions: int
    trunk: tuple[tuple[Layer, ...], ...]
    heads: tuple[tuple[Layer, ...], ...]
    input_scale: float = 1.0
    gap_logits: tuple[float, ...] = ()

    @property
    def n_exits(self) -> int:
        """Number of exits; the last is the full network."""
        return len(self.trunk)


class Placed(NamedTuple):
    """A layer in its place.

    Attributes:
        name: `t<stage>.<i>` in the trunk, `h<exit>.<i>` in a head, `h<exit>.out` for the implied output layer.
        layer: the layer.
        in_shape: without the batch axis.
        out_shape: without the batch axis.
        gap_logits: of an output layer: the exit's, as in `NetSpec`.
    """

    name: str
    layer: Layer
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    gap_logits: float = 0.0


def _out_shape(name: str, layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    match layer:
        case Conv(channels, kernel, stride, padding):
            grown = tuple(size + 2 * padding for size in shape[:2])
        case MaxPool(kernel, stride):
            channels, grown = shape[-1], shape[:2]
        case Dense(units):
            return (units,)
        case Relu():
            return shape
    if len(shape) != 3 or min(grown) < kernel:
        raise UsageError(
            f"layer {name}: a {kernel}x{kernel} window does not fit its input {shape}; shrink it or pool less before it"
        )
    return (*((size - kernel) // stride + 1 for size in grown), channels)


def _place(prefix: str, layers: tuple[Layer, ...], shape: tuple[int, ...]) -> list[Placed]:
    placed = []
    for i, layer in enumerate(layers):
        name, before = f"{prefix}.{i}", shape
        shape = _out_shape(name, layer, before)
        placed.append(Placed(name, layer, before, shape))
    return placed


class Stage(NamedTuple):
    """One stage of a network and the head that looks at it; the head ends with its output layer."""

    trunk: list[Placed]
    head: list[Placed]


@functools.lru_cache(maxsize=64)
def stages(spec: NetSpec) -> tuple[Stage, ...]:
    """Put every layer in its place.

    Args:
        spec: the network.

    Returns:
        One Stage an exit, shallow to deep.

    Raises:
        UsageError: trunk and heads differ in length, nothing is there, a window does not fit, a head starts with a ReLU
            (it would work in place on what the next stage still reads), or `gap_logits` do not fit.
    Source:
        ours: BranchyNet's shape (Teerapittayanon 2016, section III), the confidence one more output of each head.
    """
    if not spec.trunk or len(spec.trunk) != len(spec.heads) or not all(spec.trunk):
        raise UsageError(f"a network needs one head a stage, and no empty stage: {len(spec.heads)}, {len(spec.trunk)}")
    if any(isinstance(layer, Relu) for head in spec.heads for layer in head[:1]):
        raise UsageError("a head may not start with a ReLU: end the trunk's stage with it instead")
    missing = spec.n_exits - len(spec.gap_logits)
    gaps, n_fits = (*spec.gap_logits, *(0.0,) * missing), missing in (0, 1, spec.n_exits)
    if not n_fits or not all(0 <= gap < 1e6 for gap in gaps) or (spec.n_actions < 2 and any(gaps)):
        raise UsageError(f"gap_logits {spec.gap_logits}: one of 0..1e6 for each exit but the last, or none at all")
    found: list[Stage] = []
    shape: tuple[int, ...] = spec.input_shape
    for k, (trunk_layers, head_layers) in enumerate(zip(spec.trunk, spec.heads, strict=True)):
        trunk = _place(f"t{k}", trunk_layers, shape)
        shape = trunk[-1].out_shape
        head = _place(f"h{k}", head_layers, shape)
        features = head[-1].out_shape if head else shape
        head.append(Placed(f"h{k}.out", Dense(spec.n_actions + 1), features, (spec.n_actions + 1,), gaps[k]))
        found.append(Stage(trunk, head))
    return tuple(found)


def without_exits(spec: NetSpec, exit_: int | None = None) -> NetSpec:
    """The network up to one exit, without the exits before it.

    Args:
        spec: the network.
        exit_: where it ends; the last exit by default, which leaves the whole trunk.

    Returns:
        A network of one exit. Its layers with weights are those of `spec`, in the same order.

    Raises:
        UsageError: `spec` has no such exit.
    Source:
        ours: what an early-exit network must be held against, because early heads are a cost of having exits.
    """
    k = spec.n_exits - 1 if exit_ is None else exit_
    if not 0 <= k < spec.n_exits:
        raise UsageError(f"exit {k} of a network that has {spec.n_exits}")
    trunk = tuple(layer for stage in spec.trunk[: k + 1] for layer in stage)
    return msgspec.structs.replace(spec, trunk=(trunk,), heads=(spec.heads[k],), gap_logits=())


def weighted(spec: NetSpec) -> Iterator[Placed]:
    """The layers that have parameters, in the order in which the flat vector holds them.

    Args:
        spec: the network.

    Returns:
        Conv and Dense layers, stage by stage, trunk before head.

    Raises:
        UsageError: as `stages`.
    Source:
        ours: one fixed order makes a vector meaningful without names beside it.
    """
    for stage in stages(spec):
        for placed in (*stage.trunk, *stage.head):
            if isinstance(placed.layer, Conv | Dense):
                yield placed


def matrix_shape(placed: Placed) -> tuple[int, int]:
    """Shape of a layer's weight matrix.

    Args:
        placed: a Conv or Dense in its place.

    Returns:
        (inputs of one output, outputs).

    Raises:
        UsageError: the layer has no weights.
    Source:
        ours: convolution as a matrix product over `kernels.im2col` columns.
    """
    match placed.layer:
        case Conv(channels, kernel):
            return kernel * kernel * placed.in_shape[-1], channels
        case Dense(units):
            return int(np.prod(placed.in_shape)), units
    raise UsageError(f"layer {placed.name} has no weights")


class Params:
    """The parameters of one network: one flat float32 vector with a named view on each matrix and bias.

    Attributes:
        spec: the network they belong to.
        flat: (n_parameters,) float32, C-contiguous; writing to it changes every view.
        views: name -> array; `<layer>.w` (inputs, outputs) and `<layer>.b` (outputs,), both float32.
    """

    def __init__(self, spec: NetSpec, flat: F32 | None = None) -> None:
        """Wrap `flat` (not copied), or zeros.

        Args:
            spec: the network.
            flat: (n_parameters,) float32.

        Raises:
            UsageError: `flat` has the wrong size or dtype.
        """
        sizes = [(placed.name, *matrix_shape(placed)) for placed in weighted(spec)]
        n_parameters = sum(rows * columns + columns for _, rows, columns in sizes)
        if flat is None:
            flat = np.zeros(n_parameters, np.float32)
        if flat.shape != (n_parameters,) or flat.dtype != np.float32:
            raise UsageError(f"this network has {n_parameters} float32 parameters, not {flat.dtype} {flat.shape}")
        self.spec, self.flat = spec, flat
        self.views: dict[str, F32] = {}
        offset = 0
        for name, rows, columns in sizes:
            self.views[f"{name}.w"] = flat[offset : offset + rows * columns].reshape(rows, columns)
            offset += rows * columns
            self.views[f"{name}.b"] = flat[offset : offset + columns]
            offset += columns

    def copy(self) -> Params:
        """The same network again.

        Returns:
            Params with a vector of its own.

        Raises:
            Nothing.
        Source:
            ours.
        """
        return Params(self.spec, self.flat.copy())


def initialise(spec: NetSpec, rng: np.random.Generator) -> Params:
    """Draw parameters for a new network.

    Args:
        spec: the network.
        rng: where chance comes from.

    Returns:
        Weights uniform in +-sqrt(6 / fan_in) before a ReLU and +-sqrt(3 / fan_in) / 10 in output layers, biases zero.

    Raises:
        UsageError: as `stages`.
    Source:
        He et al. 2015 (arXiv 1502.01852) equation 10; small outputs so that no action starts as the favourite by
        chance.
    """
    params = Params(spec)
    for placed in weighted(spec):
        fan_in, _ = matrix_shape(placed)
        bound = np.sqrt(3.0 / fan_in) * 0.1 if placed.name.endswith(".out") else np.sqrt(6.0 / fan_in)
        weight = params.views[f"{placed.name}.w"]
        weight[:] = rng.uniform(-bound, bound, weight.shape)
    return params


def strip_exits(params: Params) -> Params:
    """The parameters of the whole trunk and the last head, as a network of its own.

    Args:
        params: of a network with any number of exits.

    Returns:
        Parameters of `without_exits(params.spec)`, copied.

    Raises:
        UsageError: as `stages`.
    Source:
        ours.
    """
    made = Params(without_exits(params.spec))
    last = f"h{params.spec.n_exits - 1}."
    kept = [placed.name for placed in weighted(params.spec) if placed.name.startswith(("t", last))]
    for name, placed in zip(kept, weighted(made.spec), strict=True):
        for part in ("w", "b"):
            made.views[f"{placed.name}.{part}"][:] = params.views[f"{name}.{part}"]
    return made


class Saved(NamedTuple):
    """What the gradient of one block needs.

    Attributes:
        x: what came in, as the block saw it.
        argmax: where its pooling found the maxima, or None if it has none.
        y: what went out.
    """

    x: F32 | U8
    argmax: I32 | None
    y: F32


class Tape:
    """What a forward pass leaves behind for the backward pass: per block name, the arrays its gradient needs.

    Columns are not among them: they are many times the image and are made again.
    """

    def __init__(self) -> None:
        """An empty tape."""
        self.saved: dict[str, Saved] = {}


class Block(NamedTuple):
    """Consecutive layers that run together, while their numbers are in the cache.

    A ReLU before a pooling runs behind it instead: the larger of two numbers is the same before and after.

    Attributes:
        name: of its first layer.
        product: a Conv or Dense, or None.
        pool: a MaxPool, or None.
        relu: whether a ReLU ends it.
    """

    name: str
    product: Placed | None
    pool: Placed | None
    relu: bool


def blocks(layers: list[Placed]) -> list[Block]:
    """Put consecutive layers together.

    Args:
        layers: in order.

    Returns:
        Blocks in order; each has a product, a pooling, a ReLU, or several of these.

    Raises:
        Nothing.
    Source:
        ours.
    """
    found: list[Block] = []
    for placed in layers:
        last = found[-1] if found else Block("", None, None, True)
        match placed.layer:
            case Conv() | Dense():
                found.append(Block(placed.name, placed, None, False))
            case MaxPool() if last.product is not None and last.pool is None:
                found[-1] = last._replace(pool=placed)
            case MaxPool():
                found.append(Block(placed.name, None, placed, False))
            case Relu() if last.relu:
                found.append(Block(placed.name, None, None, True))
            case Relu():
                found[-1] = last._replace(relu=True)
    return found


def conv_geometry(block: Block, spec: NetSpec) -> conv.Geometry:
    """A block whose product is a convolution, as `kernels.conv` wants it.

    Args:
        block: of the network.
        spec: the network.

    Returns:
        Its geometry.

    Raises:
        UsageError: its product is no convolution.
    Source:
        ours.
    """
    layer = None if block.product is None else block.product.layer
    pool = None if block.pool is None else block.pool.layer
    if not isinstance(layer, Conv):
        raise UsageError(f"layer {block.name} is no convolution")
    window = (pool.kernel, pool.stride) if isinstance(pool, MaxPool) else None
    return conv.Geometry(layer.kernel, layer.stride, layer.padding, window, block.relu, spec.input_scale)


def run_layers(
    layers: list[Placed], params: Params, x: F32 | U8, tape: Tape | None, scratch: Scratch | None = None
) -> F32:
    """Run consecutive layers.

    Args:
        layers: in order.
        params: of the network they belong to.
        x: (batch, *in_shape) float32, or the uint8 observation before a first Conv or Dense.
        tape: filled with what the backward pass needs, or None.
        scratch: memory to work in, or None for some of its own.

    Returns:
        (batch, *out_shape) float32.

    Raises:
        UsageError: the input does not fit the first layer.
    Source:
        convolution by im2col: Chellapilla et al. 2006.
    """
    batch, scratch = len(x), scratch or Scratch()
    for block in blocks(layers):
        placed, argmax = block.product, None
        if placed is None:
            y = np.asarray(x, np.float32)
            if block.pool is not None and isinstance(block.pool.layer, MaxPool):
                y, argmax = kernels.maxpool(np.ascontiguousarray(y), block.pool.layer.kernel, block.pool.layer.stride)
            if block.relu:
                y = np.maximum(y, np.float32(0))
        else:
            weight, bias = params.views[f"{placed.name}.w"], params.views[f"{placed.name}.b"]
            if isinstance(placed.layer, Conv):
                x = x.reshape(batch, *placed.in_shape)
                y, argmax = conv.forward(x, weight, bias, conv_geometry(block, params.spec), scratch)
            else:
                rows = np.asarray(x, np.float32).reshape(batch, -1)
                x = rows * np.float32(params.spec.input_scale) if x.dtype == np.uint8 else rows
                y = np.matmul(x, weight)
                kernels.add_bias(y, bias, relu=block.relu)
                if placed.gap_logits:
                    add_gap(y, placed.gap_logits)
        if tape is not None:
            tape.saved[block.name] = Saved(x, argmax, y)
        x = y
    return np.asarray(x, np.float32)


def forward(
    params: Params,
    obs: U8,
    *,
    exits: tuple[int, ...] | None = None,
    tape: Tape | None = None,
    scratch: Scratch | None = None,
) -> dict[int, F32]:
    """Run a batch through the trunk and the wanted heads, in float.

    Args:
        params: the network.
        obs: (batch, height, width, channels) uint8.
        exits: which heads to run; None means all. The trunk runs no deeper than the deepest of them.
        tape: filled for `learn.backprop.backward`, or None.
        scratch: memory to work in, or None for some of its own.

    Returns:
        exit -> (batch, n_actions + 1) float32: Q-values, then the confidence logit.

    Raises:
        UsageError: wrong shape or dtype of the observations, or an exit that is not there.
    Source:
        BranchyNet (Teerapittayanon et al. 2016), Algorithm 1, without the early return: training wants every exit.
    """
    spec = params.spec
    if obs.dtype != np.uint8 or obs.shape[1:] != tuple(spec.input_shape):
        raise UsageError(
            f"observations must be uint8 (batch, {', '.join(map(str, spec.input_shape))}), not {obs.dtype} {obs.shape}"
        )
    wanted = tuple(range(spec.n_exits)) if exits is None else exits
    if not wanted or not set(wanted) <= set(range(spec.n_exits)):
        raise UsageError(f"exits {wanted} of a network that has {spec.n_exits}")
    outputs: dict[int, F32] = {}
    scratch = scratch or Scratch()
    x: F32 | U8 = np.ascontiguousarray(obs)
    for k, stage in enumerate(stages(spec)[: max(wanted) + 1]):
        x = run_layers(stage.trunk, params, x, tape, scratch)
        if k in wanted:
            outputs[k] = run_layers(stage.head, params, x, tape, scratch)
    return outputs


def macs(spec: NetSpec) -> list[int]:
    """Multiply-accumulates of one decision that leaves at each exit.

    Args:
        spec: the network.

    Returns:
        Per exit: the trunk up to it and *every* head passed on the way, since each must be asked before going on.

    Raises:
        UsageError: as `stages`.
    Source:
        ours: heads and confidence columns counted, because leaving them out is the usual way to flatter an early exit.
    """
    totals, spent = [], 0
    for stage in stages(spec):
        for placed in (*stage.trunk, *stage.head):
            if isinstance(placed.layer, Conv | Dense):
                rows, columns = matrix_shape(placed)
                spent += rows * columns * int(np.prod(placed.out_shape[:-1]))
        totals.append(spent)
    return totals


REQUANTIZE_OPS = 5
"""Per element: multiply by the scale, round, add the zero point, and one comparison at each end of uint8."""
EXIT_TEST_OPS = 4
"""Per exit asked: gather its confidence, gather its threshold, compare, branch."""


def ops(spec: NetSpec) -> list[int]:
    """Arithmetic operations of one decision of the int8 graph that leaves at each exit, nothing left out.

    Per node:

    - convolution and dense layer: 2 a multiply-accumulate, 1 an output for the bias (in which the input's zero point is
      folded), `REQUANTIZE_OPS` an output to round to uint8; a ReLU right behind is the lower of the two comparisons;
    - output layer of a head (Q-values and confidence): the same, but 1 an output to scale to float instead of rounding,
      and for a gap that counts 2 comparisons an action, a difference, a product and a sum;
    - max-pooling: kernel^2 - 1 comparisons an output;
    - a ReLU elsewhere: 1 comparison an element, none where nothing can be negative any more;
    - every exit but the last, once it is asked: `EXIT_TEST_OPS`;
    - the observation enters as the uint8 it is; transposes and flattening move numbers and compute none.

    Args:
        spec: the network.

    Returns:
        Per exit: the trunk up to it, every head on the way, and the test of each of these heads.

    Raises:
        UsageError: as `stages`.
    Source:
        ours: as `macs`, with all the rest; the choice among Q-values is made outside the graph and not counted.
    """

    def cost(layers: list[Placed], unsigned: bool) -> tuple[int, bool]:
        """Operations of consecutive layers, and whether what they give cannot be negative."""
        spent = 0
        for i, placed in enumerate(layers):
            elements = int(np.prod(placed.out_shape))
            match placed.layer:
                case Conv() | Dense():
                    is_output = placed.name.endswith(".out")
                    spent += elements * (2 * matrix_shape(placed)[0] + 1 + (1 if is_output else REQUANTIZE_OPS))
                    spent += 2 * elements + 1 if placed.gap_logits else 0
                    unsigned = i + 1 < len(layers) and isinstance(layers[i + 1].layer, Relu)
                case MaxPool(kernel):
                    spent += elements * (kernel * kernel - 1)
                case Relu():
                    spent += 0 if unsigned else elements
        return spent, unsigned

    totals, spent, unsigned, last = [], 0, True, spec.n_exits - 1
    for k, stage in enumerate(stages(spec)):
        trunk, unsigned = cost(stage.trunk, unsigned)
        head, _ = cost(stage.head, unsigned)
        spent += trunk + head + (EXIT_TEST_OPS if k < last else 0)
        totals.append(spent)
    return totals
