"""PyTorch's and edgert's forward pass are the same function of the same flat vector."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgert.nets import forward, initialise  # noqa: E402  # after the skip
from tools.nets import NETS  # noqa: E402
from tools.train.torchnet import Net, as_tensor  # noqa: E402

SHAPES = {
    "camera": ((84, 84, 4), 6),
    "board": ((10, 10, 4), 6),
    "student": ((10, 10, 7), 3),
    "gap": ((10, 10, 7), 3),
    "teacher": ((10, 10, 4), 5),
}


@pytest.fixture(params=SHAPES)
def params(request):
    shape, n_actions = SHAPES[request.param]
    spec = NETS["student" if request.param == "gap" else request.param](shape, n_actions)
    if request.param == "gap":
        spec = msgspec.structs.replace(spec, gap_logits=(30.0, 0.0))
    made = initialise(spec, np.random.default_rng(0))
    made.flat += np.random.default_rng(1).normal(0, 0.01, made.flat.shape).astype(np.float32)  # biases as well
    return made


def observations(params, n=3):
    top = 2 if params.spec.input_scale == 1 else 256
    return np.random.default_rng(2).integers(top, size=(n, *params.spec.input_shape)).astype(np.uint8)


def test_same_answers(params):
    obs = observations(params)
    ours, theirs = forward(params, obs), Net(params)(torch.from_numpy(obs))
    for k, head in ours.items():
        np.testing.assert_allclose(theirs[k].detach().numpy(), head, rtol=1e-4, atol=1e-5 * np.abs(head).max())


def test_parameters_come_back_bit_for_bit(params):
    np.testing.assert_array_equal(Net(params).params().flat, params.flat)


def test_half_precision_is_close(params):
    obs = observations(params)
    net = Net(params)
    full, half = net(torch.from_numpy(obs)), net(torch.from_numpy(obs), half=True)
    for k in full:
        assert half[k].dtype == torch.float32
        assert (full[k] - half[k]).abs().max() <= 0.02 * full[k].abs().max()


def test_only_wanted_exits_run(params):
    found = Net(params)(torch.from_numpy(observations(params)), (0,))
    assert list(found) == [0]


def gradient(net, heads, column):
    net.zero_grad()
    heads[0][:, column].sum().backward()
    return {name: None if p.grad is None else float(p.grad.abs().sum()) for name, p in net.weights.items()}


def test_a_detached_exit_does_not_touch_the_trunk():
    net = Net(initialise(NETS["board"]((10, 10, 4), 6), np.random.default_rng(0)))
    obs = as_tensor(np.ones((2, 10, 10, 4), np.uint8), torch.device("cpu"))
    joint, detached = gradient(net, net(obs), 0), gradient(net, net(obs, detached=True), 0)
    assert joint["t0_0_w"] and not detached["t0_0_w"]
    assert joint["h0_out_w"] and detached["h0_out_w"]


def test_judging_moves_the_head_and_never_the_trunk():
    net = Net(initialise(NETS["camera2"]((84, 84, 4), 6), np.random.default_rng(0)))
    moved = gradient(net, net(as_tensor(np.ones((2, 84, 84, 4), np.uint8), torch.device("cpu"))), -1)
    assert {name for name, size in moved.items() if size} == {"h0_0_w", "h0_0_b", "h0_out_w", "h0_out_b"}
