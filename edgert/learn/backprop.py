"""Gradients of early-exit networks: the reverse of `nets.forward`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgert import kernels
from edgert.nets import F32, Conv, Dense, MaxPool, Params, Placed, Relu, Tape, stages


def _back_layers(layers: list[Placed], params: Params, grads: Params, tape: Tape, dy: F32, *, wants_dx: bool) -> F32:
    """Run consecutive layers backwards; `dy` is (batch, *out_shape). Without `wants_dx` the result is meaningless."""
    batch = dy.shape[0]
    for i in range(len(layers) - 1, -1, -1):
        name, layer, in_shape, out_shape = layers[i]
        saved = tape.saved[name]
        match layer:
            case Relu():
                dy = dy * (saved > 0)
            case MaxPool():
                dy = kernels.maxpool_backward(np.ascontiguousarray(dy), saved, (batch, *in_shape))
            case Conv() | Dense():
                rows = dy.reshape(-1, out_shape[-1])
                np.matmul(saved.T, rows, out=grads.views[f"{name}.w"])
                np.sum(rows, 0, out=grads.views[f"{name}.b"])
                if i == 0 and not wants_dx:
                    return dy
                dy = rows @ params.views[f"{name}.w"].T
                if isinstance(layer, Conv):
                    dy = kernels.col2im(dy, (batch, *in_shape), layer.kernel, layer.stride, layer.padding)
                else:
                    dy = dy.reshape(batch, *in_shape)
    return dy


def backward(params: Params, grads: Params, tape: Tape, d_outputs: Mapping[int, F32]) -> None:
    """Turn the gradient of the loss by every exit's outputs into the gradient by every parameter.

    The confidence logit learns on features it does not shape: its gradient reaches the last column of its head's output
    layer and stops there, so that judging never costs acting.

    Args:
        params: the network that ran forward.
        grads: overwritten; same spec.
        tape: filled by `nets.forward` on this batch with every exit.
        d_outputs: exit -> (batch, n_actions + 1) float32, one entry an exit.

    Raises:
        KeyError: an exit is missing from `d_outputs`, or the forward pass was run without this tape. A caller's bug.
    Source:
        Rumelhart et al. 1986; detached confidence: ours, after RAPID-RL's separate training of actions and confidences
        (arXiv 2109.08231, abstract).
    """
    n_actions = params.spec.n_actions
    d_trunk: F32 | None = None
    for k, stage in reversed(list(enumerate(stages(params.spec)))):
        d_out = d_outputs[k]
        out = stage.head[-1].name
        features = tape.saved[out]
        np.matmul(features.T, d_out, out=grads.views[f"{out}.w"])
        np.sum(d_out, 0, out=grads.views[f"{out}.b"])
        d_features = d_out[:, :n_actions] @ params.views[f"{out}.w"][:, :n_actions].T
        shape = stage.head[-1].in_shape
        dy = _back_layers(stage.head[:-1], params, grads, tape, d_features.reshape(-1, *shape), wants_dx=True)
        d_trunk = dy if d_trunk is None else d_trunk + dy
        d_trunk = _back_layers(stage.trunk, params, grads, tape, d_trunk, wants_dx=k > 0)
