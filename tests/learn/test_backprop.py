"""Gradients against PyTorch, the bigger oracle."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.learn import backprop
from edgert.learn.dqn import Batch, Hyper, gradients, td_targets
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, Tape, forward, initialise, stages, weighted
from tools.bench.train import NETS

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
    "any-order": NetSpec(
        (9, 9, 2), 3,
        trunk=((Conv(4, 3),), (Relu(), Conv(5, 3), MaxPool(2, 2), Relu(), MaxPool(2, 1), Dense(8), Relu(), Relu())),
        heads=((MaxPool(3, 2), Relu(), Dense(6), Relu()), (Dense(4),)),
    ),
}  # fmt: skip


FULL_SIZE_SEEDS = {"minatar": 0, "nature": 0, "drone": 0}
"""Seeds for which no two numbers of a pooling window are so near that float32 orders them otherwise than float64."""


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
    for name, layer, in_shape, *_ in layers:
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


def assert_as_autograd(spec: NetSpec, n: int, seed: int, micro_batch: int | None) -> None:
    rng = np.random.default_rng(seed)
    params, target = initialise(spec, rng), initialise(spec, rng)
    for network in (params, target):  # biases are drawn too: zeros would hide a wrong bias gradient
        network.flat += rng.normal(scale=0.05, size=network.flat.shape).astype(np.float32)
    batch, hyper = (
        random_batch(spec, n, seed),
        Hyper(td_weight=0.7, distill_weight=0.9, match_weight=1.3, confidence_weight=0.6, micro_batch=micro_batch),
    )
    grads = Params(spec)
    losses = gradients(params, target, batch, hyper, grads)
    loss, wanted = oracle_loss(params, td_targets(params, target, batch, hyper.gamma), batch, hyper, torch.float64)
    assert losses.total == pytest.approx(loss, rel=1e-5)
    reference = Params(spec, wanted.astype(np.float32))
    for view, grad in grads.views.items():
        scale = np.abs(reference.views[view]).max()
        assert np.abs(grad - reference.views[view]).max() <= 1e-5 * max(scale, 1e-6), view


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_gradients_match_autograd(name: str, seed: int, micro_batch: int | None) -> None:
    assert_as_autograd(SPECS[name], 32, seed, micro_batch)


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_networks_of_full_size_match_autograd(name: str) -> None:
    assert_as_autograd(NETS[name], 6, FULL_SIZE_SEEDS[name], None)


@pytest.mark.parametrize("micro_batch", [1, 3, 32])
def test_the_micro_batch_changes_nothing_but_rounding(micro_batch: int) -> None:
    spec = SPECS["strides-padding-hidden-heads"]
    params, target = (initialise(spec, np.random.default_rng(seed)) for seed in (0, 1))
    batch, whole, parted = random_batch(spec, 32, 0), Params(spec), Params(spec)
    parted.flat[:] = np.nan
    wanted = gradients(params, target, batch, Hyper(match_weight=0.3), whole)
    found = gradients(params, target, batch, Hyper(match_weight=0.3, micro_batch=micro_batch), parted)
    assert found == pytest.approx(wanted, rel=1e-5)
    np.testing.assert_allclose(parted.flat, whole.flat, rtol=0, atol=1e-5 * np.abs(whole.flat).max())


def test_any_loss_is_accumulated_over_parts_in_order() -> None:
    spec, obs = SPECS["student"], random_batch(SPECS["student"], 10, 0).obs
    params = initialise(spec, np.random.default_rng(0))
    seen: list[slice] = []

    def first_output(outputs, part):
        seen.append(part)
        return {k: np.eye(1, out.shape[1], dtype=np.float32).repeat(len(out), 0) for k, out in outputs.items()}

    grads = Params(spec)
    backprop.accumulate(params, obs, first_output, grads, micro_batch=4)
    assert [i for part in seen for i in range(part.start, part.stop)] == list(range(10)) and len(seen) == 3
    # The last bias moves its output by itself: the derivative of the sum over the batch is its size.
    assert grads.views["h2.out.b"].tolist() == [10, 0, 0, 0]
    step = np.float32(1e-2)
    params.views["h0.out.w"][:, 0] += step
    after = forward(params, obs)[0][:, 0].sum(dtype=np.float64)
    params.views["h0.out.w"][:, 0] -= step
    before = forward(params, obs)[0][:, 0].sum(dtype=np.float64)
    assert (after - before) / step == pytest.approx(grads.views["h0.out.w"][:, 0].sum(), rel=1e-3)


@pytest.mark.parametrize("shaping", [None, (4, 3, 3), (3, 3, 4)])
def test_only_shaping_columns_form_the_features(shaping: tuple[int, ...] | None) -> None:
    spec, obs = SPECS["student"], random_batch(SPECS["student"], 4, 0).obs
    params, grads, tape = initialise(spec, np.random.default_rng(0)), Params(spec), Tape()
    outputs = forward(params, obs, tape=tape)
    d_outputs = {k: np.zeros_like(out) for k, out in outputs.items()}
    for d_out in d_outputs.values():
        d_out[:, -1] = 1
    backprop.backward(params, grads, tape, d_outputs, shaping=shaping)
    assert grads.views["h0.out.w"][:, -1].any()
    assert grads.views["t0.0.w"].any() == (shaping is not None)
    assert grads.views["t2.0.w"].any() == (shaping == (3, 3, 4))


@pytest.mark.parametrize("name", NETS)
def test_a_batch_of_any_size_goes_in_parts_of_bounded_memory(name: str) -> None:
    spec = NETS[name]
    of_one = backprop.tape_bytes(spec)
    obs = random_batch(spec, 2, 0).obs
    tape = Tape()
    forward(initialise(spec, np.random.default_rng(0)), obs, tape=tape)
    held = sum(saved.y.nbytes + (0 if saved.argmax is None else saved.argmax.nbytes) for saved in tape.saved.values())
    assert held <= 2 * of_one
    for part in backprop.parts(spec, 4096, None):
        assert (part.stop - part.start) * of_one <= backprop.TAPE_BYTES
    assert len(backprop.parts(spec, 32, None)) == 1


def test_observations_of_another_network_are_refused() -> None:
    params = initialise(SPECS["student"], np.random.default_rng(0))
    with pytest.raises(UsageError, match="observations"):
        backprop.accumulate(params, np.zeros((2, 9, 9, 4), np.uint8), lambda outputs, _: outputs, Params(params.spec))


def test_a_batch_without_a_teacher_has_no_teacher_loss() -> None:
    spec = SPECS["student"]
    params = initialise(spec, np.random.default_rng(0))
    batch = random_batch(spec, 8, 0)._replace(taught=np.zeros(8, bool))
    losses = gradients(params, params.copy(), batch, Hyper(), Params(spec))
    assert losses.distill == losses.match == 0 and losses.td > 0
