"""The training step itself; its gradients are checked in test_backprop."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.learn.dqn import Batch, Hyper, Learner, td_targets
from edgert.nets import Dense, NetSpec, Params, Relu, forward, initialise

SPEC = NetSpec((2, 2, 1), 2, trunk=((Dense(8), Relu()), (Dense(8), Relu())), heads=((), ()))


def batch(n: int = 16, seed: int = 0, **changes: object) -> Batch:
    rng = np.random.default_rng(seed)
    made = Batch(
        obs=rng.integers(0, 2, (n, 2, 2, 1)).astype(np.uint8),
        action=rng.integers(0, 2, n),
        reward=rng.random(n).astype(np.float32),
        next_obs=rng.integers(0, 2, (n, 2, 2, 1)).astype(np.uint8),
        terminated=np.zeros(n, bool),
        teacher_q=rng.random((n, 2)).astype(np.float32),
        taught=np.ones(n, bool),
    )
    return made._replace(**changes)


def test_targets_are_double_q_of_the_last_exit() -> None:
    params, target = (initialise(SPEC, np.random.default_rng(seed)) for seed in (1, 2))
    b = batch(terminated=np.arange(16) % 4 == 0)
    online, slow = forward(params, b.next_obs)[1][:, :2], forward(target, b.next_obs)[1][:, :2]
    for i, y in enumerate(td_targets(params, target, b, 0.9)):
        wanted = b.reward[i] + (0 if i % 4 == 0 else 0.9 * slow[i, online[i].argmax()])
        assert y == pytest.approx(wanted, rel=1e-6)


def test_it_learns_what_the_teacher_says_and_the_confidence_learns_to_agree() -> None:
    learner, hyper = (
        Learner(initialise(SPEC, np.random.default_rng(0))),
        Hyper(learning_rate=3e-3, td_weight=0.0, match_weight=1.0),
    )
    every = np.unpackbits(np.arange(16, dtype=np.uint8)[:, None], axis=1)[:, 4:].reshape(16, 2, 2, 1)
    b = batch(obs=every)
    first = learner.step(b, hyper)
    for _ in range(1500):
        last = learner.step(b, hyper)
    assert last.match < 0.2 * first.match and last.distill < 0.2 * first.distill
    heads = forward(learner.params, every)
    agrees = heads[0][:, :2].argmax(1) == heads[1][:, :2].argmax(1)
    assert ((heads[0][:, 2] > 0) == agrees).mean() >= 0.9


def test_the_target_moves_only_when_due() -> None:
    learner = Learner(initialise(SPEC, np.random.default_rng(0)))
    for step in range(1, 11):
        before = learner.target.flat.copy()
        learner.step(batch(), Hyper(target_every=5))
        assert (learner.target.flat == before).all() == (step % 5 != 0)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(poison: float) -> None:
    learner = Learner(initialise(SPEC, np.random.default_rng(0)))
    before = learner.params.flat.copy(), learner.m.copy(), learner.v.copy()
    with pytest.raises(UsageError, match="not finite"):
        learner.step(batch(reward=np.full(16, poison, np.float32)), Hyper())
    assert learner.steps == 0
    assert all(
        (now == then).all() for now, then in zip((learner.params.flat, learner.m, learner.v), before, strict=True)
    )


def test_the_gradient_norm_is_bounded() -> None:
    learner = Learner(Params(SPEC, initialise(SPEC, np.random.default_rng(0)).flat * 100))
    learner.step(batch(teacher_q=np.full((16, 2), 1e6, np.float32)), Hyper(max_grad_norm=1.0))
    assert np.isfinite(learner.params.flat).all()
    # Adam's first moment after one step is a tenth of the gradient.
    assert np.linalg.norm(learner.m) <= 0.1 * 1.0 * (1 + 1e-5)


def test_a_teacher_without_weight_is_not_looked_at() -> None:
    values = batch().teacher_q
    values[3] = [3e38, -3e38]
    with_it, without = (Learner(initialise(SPEC, np.random.default_rng(0))) for _ in range(2))
    hyper = Hyper(td_weight=1.0, distill_weight=0.0)
    told = with_it.step(batch(teacher_q=values), hyper)
    alone = without.step(batch(taught=np.zeros(16, bool)), hyper)
    assert told == alone and np.array_equal(with_it.params.flat, without.params.flat)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_gradient_that_is_no_number_changes_nothing(poison: float) -> None:
    learner = Learner(initialise(SPEC, np.random.default_rng(0)))
    learner.grads.flat[:] = 0
    learner.grads.flat[2] = poison
    before = learner.params.flat.copy()
    with pytest.raises(UsageError, match="not finite"):
        learner.descend(1.0, 1e-3, 10.0)
    assert np.array_equal(learner.params.flat, before) and learner.steps == 0 and not learner.m.any()
