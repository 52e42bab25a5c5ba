"""The losses against numbers worked out by hand or by edgert's own learner."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgert.learn.dqn import Batch, Hyper, gradients  # noqa: E402
from edgert.nets import Params, initialise  # noqa: E402
from tools.nets import NETS  # noqa: E402
from tools.train import losses  # noqa: E402
from tools.train.torchnet import Net  # noqa: E402


def test_double_dqn_target():
    online, slow = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    found = losses.targets(online, slow, torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.0]))
    assert found.tolist() == [1 + 0.5 * 20, -1]


def test_huber_and_agreement_equal_the_learner_on_the_board():
    """The same batch through `edgert.learn.dqn`, which has a gradient check of its own."""
    rng = np.random.default_rng(0)
    params = initialise(NETS["student"]((10, 10, 4), 3), rng)
    n = 16
    obs, following = (rng.integers(2, size=(n, 10, 10, 4)).astype(np.uint8) for _ in range(2))
    action, reward = rng.integers(3, size=n), rng.normal(size=n).astype(np.float32)
    ended = rng.random(n) < 0.3
    batch = Batch(obs, action, reward, following, ended, np.zeros((n, 3), np.float32), np.zeros(n, bool))
    theirs = gradients(params, params, batch, Hyper(td_weight=1), Params(params.spec))
    net = Net(params).requires_grad_(False)
    heads, next_q = net(torch.from_numpy(obs)), net(torch.from_numpy(following))[2][:, :-1]
    discount = torch.tensor(np.where(ended, 0, 0.99).astype(np.float32))
    wanted = losses.targets(next_q, next_q, torch.from_numpy(reward), discount)
    td = losses.temporal_difference(heads, torch.from_numpy(action), wanted)
    sure = losses.confidence({k: heads[k] for k in (0, 1)}, heads[2][:, :-1], "agreement", 1.0)
    assert float(sum(td.values()) / 3) == pytest.approx(theirs.td, rel=1e-4)
    assert float(sum(sure.values()) / 3) == pytest.approx(theirs.confidence, rel=1e-4)


def test_distillation_is_zero_only_for_the_same_values():
    teacher = torch.tensor([[1.0, 2.0, 4.0]])
    same, other = torch.cat((teacher, torch.zeros(1, 1)), 1), torch.tensor([[4.0, 2.0, 1.0, 0.0]])
    found = losses.distillation({0: same, 1: other}, teacher, 0.5, 1.0)
    assert float(found[0]) == pytest.approx(0, abs=1e-6)
    preferred = torch.softmax(teacher / 0.5, 1)
    kl = (preferred * (torch.log_softmax(teacher / 0.5, 1) - torch.log_softmax(other[:, :3] / 0.5, 1))).sum()
    huber = (2.5 + 0 + 2.5) / 3
    assert float(found[1]) == pytest.approx(float(kl) + huber, rel=1e-5)
    light = losses.distillation({1: other}, teacher, 0.5, 1.0, 0.1)
    assert float(light[1]) == pytest.approx(float(kl) + 0.1 * huber, rel=1e-5)


@pytest.mark.parametrize(
    ("meaning", "wanted"), [("agreement", [1, 0]), ("regret", [1, math.exp(-0.1 / (losses.REGRET_FRAC * 2))])]
)
def test_confidence_labels(meaning, wanted):
    final = torch.tensor([[0.0, 1.0, -1.0], [0.9, 1.0, -1.0]])
    q = torch.tensor([[0.0, 5.0, 1.0], [1.0, 0.0, 0.0]])  # the best action, and one that gives 0.1 away
    assert losses.confidence_labels(q, final, meaning, 2.0).tolist() == pytest.approx(wanted, rel=1e-5)


def test_spread():
    assert float(losses.spread(torch.tensor([[0.0, 1.0], [5.0, 2.0]]))) == 2
