"""Gradients of early-exit networks: the reverse of `nets.forward`, and a batch in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from edgert import kernels
from edgert.kernels import conv
from edgert.kernels.conv import Scratch
from edgert.nets import (
    F32,
    U8,
    Block,
    Conv,
    MaxPool,
    NetSpec,
    Params,
    Placed,
    Tape,
    blocks,
    conv_geometry,
    forward,
    stages,
)

LossGradient: TypeAlias = Callable[[dict[int, F32], slice], Mapping[int, F32]]
"""A loss, as its gradient: takes exit -> outputs (part, n_actions + 1) and which samples of the batch they are of, and
gives exit -> gradient by these outputs. A mean divides by the size of the whole batch, because parts are summed."""

TAPE_BYTES = 8 << 20
"""Most that a tape holds, where the caller does not say how many samples go at a time."""


def _back_layers(
    layers: list[Placed],
    params: Params,
    grads: Params,
    tape: Tape,
    dy: F32,
    scratch: Scratch,
    *,
    add: bool,
    wants_dx: bool,
) -> F32:
    """Run consecutive layers backwards; `dy` is overwritten. Without `wants_dx` the result is meaningless."""
    backwards = blocks(layers)[::-1]
    for block in backwards:
        x, argmax, y = tape.saved[block.name]
        needs_dx = wants_dx or block is not backwards[-1]
        dy = dy.reshape(y.shape)
        if block.relu:
            kernels.relu_backward(dy, y)
        if block.product is not None:
            dy = _back_product(block, block.product, params, grads, tape, dy, scratch, add=add, wants_dx=needs_dx)
        elif argmax is not None:
            batch, height, width, channels = x.shape
            dy = kernels.maxpool_backward(dy, argmax, (batch, height, width, channels))
    return dy


def _back_product(
    block: Block,
    placed: Placed,
    params: Params,
    grads: Params,
    tape: Tape,
    dy: F32,
    scratch: Scratch,
    *,
    add: bool,
    wants_dx: bool,
) -> F32:
    """A convolution or dense layer backwards; without `wants_dx` the result is meaningless."""
    x, argmax, _ = tape.saved[block.name]
    weight, d_weight = params.views[f"{placed.name}.w"], grads.views[f"{placed.name}.w"]
    conv.sum_rows(dy.reshape(-1, dy.shape[-1]), grads.views[f"{placed.name}.b"], add=add)
    if isinstance(placed.layer, Conv):
        at = conv_geometry(block, params.spec)
        dx = conv.backward(x, weight, dy, argmax, at, d_weight, scratch, add=add, wants_dx=wants_dx)
        return dy if dx is None else dx
    conv.product(np.asarray(x, np.float32).T, dy, d_weight, scratch, add=add)
    return np.matmul(dy, weight.T) if wants_dx else dy


def backward(
    params: Params,
    grads: Params,
    tape: Tape,
    d_outputs: Mapping[int, F32],
    *,
    add: bool = False,
    shaping: Sequence[int] | None = None,
    scratch: Scratch | None = None,
    d_features: F32 | None = None,
    wants_dx: bool = False,
) -> F32 | None:
    """Turn the gradient of the loss by every exit's outputs into the gradient by every parameter.

    A column of the outputs that is not shaping learns on features it does not form: its gradient reaches its column of
    the head's output layer and stops there. So judging, by the confidence, never costs acting.

    Args:
        params: the network that ran forward.
        grads: overwritten, or added to; same spec.
        tape: filled by `nets.forward` on this batch with every exit.
        d_outputs: exit -> (batch, n_actions + 1) float32, one entry an exit.
        add: add to `grads` instead of overwriting it.
        shaping: for each exit, how many leading columns of its outputs form the features; None means the actions' but
            not the last.
        scratch: memory to work in, or None for some of its own.
        d_features: gradient by what the last stage's trunk gives, where more follows behind it; overwritten.
        wants_dx: the gradient by what came in is wanted, too; that must have been float32.

    Returns:
        (batch, ...) float32, the gradient by what came in, or None.

    Raises:
        KeyError: an exit is missing from `d_outputs`, or the forward pass was run without this tape. A caller's bug.
    Source:
        Rumelhart et al. 1986; detached confidence: ours, after RAPID-RL's separate training of actions and confidences
        (arXiv 2109.08231, abstract).
    """
    shaping = [params.spec.n_actions] * params.spec.n_exits if shaping is None else shaping
    scratch = scratch or Scratch()
    d_trunk = d_features
    for k, stage in reversed(list(enumerate(stages(params.spec)))):
        d_out = d_outputs[k]
        out = stage.head[-1].name
        features = np.asarray(tape.saved[out].x, np.float32)
        conv.product(features.T, d_out, grads.views[f"{out}.w"], scratch, add=add)
        conv.sum_rows(d_out, grads.views[f"{out}.b"], add=add)
        dy = d_out[:, : shaping[k]] @ params.views[f"{out}.w"][:, : shaping[k]].T
        dy = _back_layers(stage.head[:-1], params, grads, tape, dy, scratch, add=add, wants_dx=True)
        if d_trunk is None:
            d_trunk = dy
        else:
            d_trunk += dy.reshape(d_trunk.shape)
        d_trunk = _back_layers(stage.trunk, params, grads, tape, d_trunk, scratch, add=add, wants_dx=wants_dx or k > 0)
    return d_trunk if wants_dx else None


def tape_bytes(spec: NetSpec) -> int:
    """What one sample leaves on a tape.

    Args:
        spec: the network.

    Returns:
        Bytes of what each block gives and of its argmax. What a gradient needs beside it is of the same order.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours.
    """
    placed = (
        block.pool or block.product
        for stage in stages(spec)
        for layers in (stage.trunk, stage.head)
        for block in blocks(layers)
    )
    sizes = (int(np.prod(each.out_shape)) * (8 if isinstance(each.layer, MaxPool) else 4) for each in placed if each)
    return sum(sizes)


def parts(spec: NetSpec, samples: int, micro_batch: int | None) -> list[slice]:
    """Cut a batch into what goes through the network at a time.

    Args:
        spec: the network.
        samples: in the batch.
        micro_batch: most samples of a part, or None for as many as `TAPE_BYTES` hold.

    Returns:
        Parts whose sizes differ by one sample at most, in order.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours: columns are cut finer than this already, so a part is large, and dense layers like it so.
    """
    if micro_batch is not None:
        return conv.slices(samples, 1, micro_batch)
    return conv.slices(samples, tape_bytes(spec), TAPE_BYTES)


def accumulate(
    params: Params,
    obs: U8,
    loss_gradient: LossGradient,
    grads: Params,
    *,
    micro_batch: int | None = None,
    shaping: Sequence[int] | None = None,
    scratch: Scratch | None = None,
) -> None:
    """The gradient of any loss of the outputs, with a batch of any size in bounded memory.

    Args:
        params: differentiated.
        obs: (batch, H, W, C) uint8, not empty.
        loss_gradient: called once a part, in order; see `LossGradient`.
        grads: overwritten with the sum over the parts; same spec.
        micro_batch: most samples that go through the network at a time; None lets the network's size decide.
        shaping: as in `backward`.
        scratch: memory to work in, or None for some of its own.

    Returns:
        Nothing: `grads` has changed.

    Raises:
        UsageError: wrong shape or dtype of the observations.
    Source:
        gradient accumulation: the gradient of a sum is the sum of the gradients.
    """
    scratch = scratch or Scratch()
    for part in parts(params.spec, len(obs), micro_batch):
        tape = Tape()
        outputs = forward(params, obs[part], tape=tape, scratch=scratch)
        d_outputs = loss_gradient(outputs, part)
        backward(params, grads, tape, d_outputs, add=part.start > 0, shaping=shaping, scratch=scratch)
