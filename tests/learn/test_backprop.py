"""Gradients against PyTorch, the bigger oracle."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.learn.dqn import Batch, Hyper, gradients, td_targets
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, initialise, stages, weighted

torch = pytest.importorskip("torch", reason="torch is the gradients' oracle")

SPECS = {
    "student": NetSpec(
        (10, 10, 4), 3,
        trunk=((Conv(16, 3), Relu()), (Conv(16, 3), Relu()), (Dense(64), Relu())),
        heads=((MaxPool(2, 2),), (MaxPool(2, 2),), ()),
    ),
    "one-exit": NetSpec((10, 10, 6), 4, trunk=((Conv(16, 3), Relu(), Dense(128), Relu()),), heads=((),)),
    "strides-padding-hidden-heads": NetSpec(
        (16, 12, 3), 5,
        trunk=((Conv(8, 4, 2, 1), Relu(), MaxPool(2, 1)), (Conv(6, 3, 1, 1), Relu(), Dense(20), Relu())),
        heads=((MaxPool(2, 2), Dense(12), Relu()), (Dense(9), Relu())),
        input_scale=1 / 255,
    ),
}  # fmt: skip


def random_batch(spec: NetSpec, n: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    high = 2 if spec.input_scale == 1 else 256
    return Batch(
        obs=rng.integers(0, high, (n, *spec.input_shape)).astype(np.uint8),
        action=rng.integers(0, spec.n_actions, n),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=rng.integers(0, high, (n, *spec.input_shape)).astype(np.uint8),
        terminated=rng.random(n) < 0.3,
        teacher_q=rng.normal(size=(n, spec.n_actions)).astype(np.float32),
        taught=rng.random(n) < 0.6,
    )


def oracle_run(layers, weights, x):
    functional = torch.nn.functional
    for name, layer, in_shape, _ in layers:
        match layer:
            case Conv(channels, kernel, stride, padding):
                weight = weights[f"{name}.w"].reshape(kernel, kernel, in_shape[-1], channels).permute(3, 2, 0, 1)
                x = functional.conv2d(x.permute(0, 3, 1, 2), weight, weights[f"{name}.b"], stride, padding).permute(
                    0, 2, 3, 1
                )
            case MaxPool(kernel, stride):
                x = functional.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride).permute(0, 2, 3, 1)
            case Dense():
                x = x.reshape(len(x), -1) @ weights[f"{name}.w"] + weights[f"{name}.b"]
            case Relu():
                x = x.relu()
    return x


def oracle_loss(params: Params, y, batch: Batch, hyper: Hyper, dtype):
    """The loss of `dqn.gradients`, written as its docstring has it, differentiated by autograd."""
    functional, spec = torch.nn.functional, params.spec
    flat = torch.tensor(params.flat, dtype=dtype, requires_grad=True)
    weights, offset = {}, 0
    for placed in weighted(spec):
        for suffix in (".w", ".b"):
            shape = params.views[placed.name + suffix].shape
            weights[placed.name + suffix] = flat[offset : offset + int(np.prod(shape))].reshape(shape)
            offset += int(np.prod(shape))
    x = torch.tensor(batch.obs.astype(np.float64) * np.float32(spec.input_scale), dtype=dtype)
    outputs = []
    for stage in stages(spec):
        x = oracle_run(stage.trunk, weights, x)
        features = oracle_run(stage.head[:-1], weights, x)
        features = features.reshape(len(features), -1)
        out = stage.head[-1].name
        q = (features @ weights[f"{out}.w"] + weights[f"{out}.b"])[:, : spec.n_actions]
        logit = (features.detach() @ weights[f"{out}.w"] + weights[f"{out}.b"])[:, spec.n_actions]
        outputs.append((q, logit))
    best = outputs[-1][0].argmax(1)
    y, teacher = torch.tensor(y, dtype=dtype), torch.tensor(batch.teacher_q, dtype=dtype)
    taught, action = torch.tensor(batch.taught), torch.tensor(batch.action)
    loss = torch.zeros((), dtype=dtype)
    for k, (q, logit) in enumerate(outputs):
        loss = loss + hyper.td_weight * functional.huber_loss(q.gather(1, action[:, None])[:, 0], y)
        if batch.taught.any():
            wanted = (teacher[taught] / hyper.temperature).softmax(1)
            preferred = (q[taught] / hyper.temperature).log_softmax(1)
            loss = loss + hyper.distill_weight * functional.kl_div(preferred, wanted, reduction="batchmean")
            loss = loss + hyper.match_weight * functional.mse_loss(q[taught], teacher[taught])
        if k < spec.n_exits - 1:
            agrees = (q.argmax(1) == best).to(dtype)
            loss = loss + hyper.confidence_weight * functional.binary_cross_entropy_with_logits(logit, agrees)
    loss = loss / spec.n_exits
    loss.backward()
    return float(loss.detach()), flat.grad.numpy()


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_match_autograd(name: str, seed: int) -> None:
    spec = SPECS[name]
    rng = np.random.default_rng(seed)
    params, target = initialise(spec, rng), initialise(spec, rng)
    for network in (params, target):  # biases are drawn too: zeros would hide a wrong bias gradient
        network.flat += rng.normal(scale=0.05, size=network.flat.shape).astype(np.float32)
    batch, hyper = (
        random_batch(spec, 32, seed),
        Hyper(td_weight=0.7, distill_weight=0.9, match_weight=1.3, confidence_weight=0.6),
    )
    grads = Params(spec)
    losses = gradients(params, target, batch, hyper, grads)
    loss, wanted = oracle_loss(params, td_targets(params, target, batch, hyper.gamma), batch, hyper, torch.float64)
    assert losses.total == pytest.approx(loss, rel=1e-5)
    reference = Params(spec, wanted.astype(np.float32))
    for view, grad in grads.views.items():
        scale = np.abs(reference.views[view]).max()
        assert np.abs(grad - reference.views[view]).max() <= 1e-5 * max(scale, 1e-6), view


def test_a_batch_without_a_teacher_has_no_teacher_loss() -> None:
    spec = SPECS["student"]
    params = initialise(spec, np.random.default_rng(0))
    batch = random_batch(spec, 8, 0)._replace(taught=np.zeros(8, bool))
    losses = gradients(params, params.copy(), batch, Hyper(), Params(spec))
    assert losses.distill == losses.match == 0 and losses.td > 0
