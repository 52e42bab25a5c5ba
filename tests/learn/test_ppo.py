"""PPO's gradients against PyTorch, its estimates against their definition, and that it learns."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.kernels.conv import Scratch
from edgert.learn import ppo
from edgert.learn.dqn import Learner, softmax
from edgert.learn.ppo import Batch, Course, Hyper, estimate, gradients
from edgert.learn.replay import Rollout
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, forward, initialise, stages

SPECS = {
    "three-exits": NetSpec(
        (6, 6, 3), 4,
        trunk=((Conv(5, 3), Relu()), (Conv(6, 2), Relu()), (Dense(16), Relu())),
        heads=((MaxPool(2, 2),), (Dense(7), Relu()), ()),
    ),
    "one-exit": NetSpec(
        (1, 4, 5), 2, trunk=((Dense(16), Relu(), Dense(12), Relu()),), heads=((),), input_scale=1 / 255
    ),
}  # fmt: skip


def network(spec: NetSpec, seed: int) -> Params:
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    params.flat += rng.normal(scale=0.1, size=params.flat.shape).astype(np.float32)
    return params


def samples(spec: NetSpec, n: int, seed: int) -> Batch:
    """Some practised, some taught, some both; the policy has moved on both sides of the clip."""
    rng = np.random.default_rng(seed)
    high = 2 if spec.input_scale == 1 else 256
    return Batch(
        obs=rng.integers(0, high, (n, *spec.input_shape)).astype(np.uint8),
        action=rng.integers(0, spec.n_actions, n),
        log_prob=(-np.log(spec.n_actions) + rng.normal(scale=0.3, size=n)).astype(np.float32),
        weight=rng.uniform(0, 2, n).astype(np.float32),
        advantage=rng.normal(size=n).astype(np.float32),
        value=rng.normal(scale=3, size=n).astype(np.float32),
        practised=rng.random(n) < 0.7,
        teacher_q=rng.normal(size=(n, spec.n_actions)).astype(np.float32),
        taught=rng.random(n) < 0.5,
    )


def oracle(params: Params, batch: Batch, hyper: Hyper, value_scale: float):  # type: ignore[no-untyped-def]  # of torch
    """The loss as `gradients` has it in its docstring, in float64."""
    torch = pytest.importorskip("torch", reason="torch is the gradients' oracle")
    functional, spec, weights = torch.nn.functional, params.spec, {}
    for name, view in params.views.items():
        weights[name] = torch.tensor(view, dtype=torch.float64, requires_grad=True)

    def run(layers, x):  # type: ignore[no-untyped-def]
        for name, layer, in_shape, *_ in layers:
            match layer:
                case Conv(channels, kernel, stride, padding):
                    kernels = weights[f"{name}.w"].reshape(kernel, kernel, in_shape[-1], channels).permute(3, 2, 0, 1)
                    x = functional.conv2d(x.permute(0, 3, 1, 2), kernels, weights[f"{name}.b"], stride, padding)
                    x = x.permute(0, 2, 3, 1)
                case MaxPool(kernel, stride):
                    x = functional.max_pool2d(x.permute(0, 3, 1, 2), kernel, stride).permute(0, 2, 3, 1)
                case Dense():
                    x = x.reshape(len(x), -1) @ weights[f"{name}.w"] + weights[f"{name}.b"]
                case Relu():
                    x = x.relu()
        return x.reshape(len(x), -1)

    x = torch.tensor(batch.obs.astype(np.float64) * np.float32(spec.input_scale))
    x = x.reshape(len(x), *spec.input_shape)
    outs = []
    for k, stage in enumerate(stages(spec)):
        for each in stage.trunk:
            shape = each.out_shape
            x = run([each], x.reshape(len(x), *each.in_shape)).reshape(len(x), *shape)
        features = run(stage.head[:-1], x)
        detached = features if k == spec.n_exits - 1 else features.detach()
        out = stage.head[-1].name
        w, b = weights[f"{out}.w"], weights[f"{out}.b"]
        outs.append((features @ w[:, :-1] + b[:-1], detached @ w[:, -1] + b[-1]))
    tensor = {name: torch.tensor(column) for name, column in batch._asdict().items()}
    p, t, logits, value = tensor["practised"], tensor["taught"], *outs[-1]
    log = logits.log_softmax(1)
    ratio = (log.gather(1, tensor["action"][:, None])[:, 0] - tensor["log_prob"]).exp()[p]
    a = tensor["advantage"][p]
    surrogate = torch.minimum(ratio * a, ratio.clip(1 - hyper.clip, 1 + hyper.clip) * a)
    loss = -(tensor["weight"][p] * surrogate).mean()
    target = tensor["value"][p].to(torch.float64)
    loss = loss + hyper.value_weight * functional.huber_loss(value[p] / value_scale, target / value_scale)
    loss = loss + hyper.entropy_weight * (log.exp() * log).sum(1)[p].mean()
    wanted = (tensor["teacher_q"][t].to(torch.float64) / hyper.temperature).softmax(1)
    loss = loss - hyper.distill_weight * (wanted * log[t]).sum(1).mean()
    for early, confidence in outs[:-1]:
        shown = early.log_softmax(1)
        apart = functional.kl_div(shown, log.exp().detach(), reduction="batchmean")
        agrees = (early.argmax(1) == logits.argmax(1)).to(torch.float64)
        doubt = functional.binary_cross_entropy_with_logits(confidence, agrees)
        loss = loss + (hyper.imitation_weight * apart + hyper.confidence_weight * doubt) / (spec.n_exits - 1)
    loss.backward()
    return float(loss.detach()), {name: weight.grad.numpy() for name, weight in weights.items()}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("micro_batch", [None, 7])
def test_gradients_match_autograd(name: str, seed: int, micro_batch: int | None) -> None:
    params, batch = network(SPECS[name], seed), samples(SPECS[name], 40, seed)
    hyper = Hyper(
        value_weight=0.7, entropy_weight=0.3, imitation_weight=0.8, confidence_weight=0.6, distill_weight=0.9,
        temperature=0.5, micro_batch=micro_batch,
    )  # fmt: skip
    grads = Params(params.spec)
    losses = gradients(params, batch, hyper, grads, scale=1.7)
    loss, wanted = oracle(params, batch, hyper, 1.7)
    assert losses.total == pytest.approx(loss, rel=1e-5)
    for view, grad in grads.views.items():
        assert np.abs(grad - wanted[view]).max() <= 1e-5 * max(np.abs(wanted[view]).max(), 1e-6), view


def test_no_teacher_and_nothing_practised_leave_their_parts_out() -> None:
    params, batch = network(SPECS["three-exits"], 0), samples(SPECS["three-exits"], 16, 0)
    nobody = np.zeros(16, bool)
    told = gradients(params, batch._replace(practised=nobody), Hyper(distill_weight=1.0), Params(params.spec))
    assert told.policy == told.value == told.entropy == 0 < told.distill
    done = gradients(params, batch._replace(taught=nobody), Hyper(distill_weight=1.0), Params(params.spec))
    assert done.distill == 0 < done.entropy


def test_an_action_beyond_the_clip_has_no_gradient_in_its_direction() -> None:
    spec = SPECS["one-exit"]
    params, batch = network(spec, 0), samples(spec, 8, 0)._replace(practised=np.ones(8, bool))
    log = softmax(forward(params, batch.obs)[0][:, :2])[1][np.arange(8), batch.action]
    hyper, grads = Hyper(value_weight=0, entropy_weight=0), Params(spec)
    for moved, advantage, stops in ((0.3, 1, True), (-0.3, 1, False), (0.3, -1, False), (-0.3, -1, True)):
        column = np.full(8, advantage, np.float32)
        gradients(params, batch._replace(log_prob=log - np.float32(moved), advantage=column), hyper, grads)
        assert (not grads.flat.any()) == stops


def rollout(n: int, seed: int = 0, **changes: object) -> Rollout:
    rng = np.random.default_rng(seed)
    made = Rollout(
        seq=np.arange(1, n + 1),
        obs=rng.integers(0, 256, (n, 1, 4, 5)).astype(np.uint8),
        action=rng.integers(0, 2, n),
        reward=rng.normal(size=n).astype(np.float32),
        terminated=np.zeros(n, bool),
        follows=np.arange(n) < n - 1,
        log_prob=np.full(n, -0.7, np.float32),
        held_out=np.zeros(n, bool),
    )
    return made._replace(**changes)


@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_the_sum_that_defines_them(seed: int) -> None:
    rng, n, gamma, decay = np.random.default_rng(seed), 30, 0.9, 0.8
    terminated = rng.random(n) < 0.15
    follows = (rng.random(n) < 0.85) & ~terminated & (np.arange(n) < n - 1)
    log_prob = np.where(rng.random(n) < 0.1, np.nan, rng.normal(-0.7, 0.3, n)).astype(np.float32)
    lived = rollout(n, seed, terminated=terminated, follows=follows, log_prob=log_prob)
    value = rng.normal(size=n).astype(np.float32)
    now = np.full(n, -0.6, np.float32)
    found = estimate(lived, value, now, gamma, decay)
    usable = np.isfinite(log_prob) & (terminated | follows)
    assert (found.usable == usable).all()
    ratio = np.exp(now - log_prob)
    for t in range(n):
        if not usable[t]:
            assert found.weight[t] == found.advantage[t] == found.value[t] == 0
            continue
        total, share, s = 0.0, 1.0, t
        while True:
            total += share * (lived.reward[s] + (gamma * value[s + 1] if follows[s] else 0) - value[s])
            if not follows[s] or not usable[s + 1]:
                break
            s += 1
            share *= gamma * decay * min(1, ratio[s])
        assert found.advantage[t] == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert found.value[t] == pytest.approx(value[t] + min(1, ratio[t]) * total, rel=1e-4, abs=1e-5)
        assert found.weight[t] == pytest.approx(min(ppo.WEIGHT_MAX, ratio[t]), rel=1e-4)


def test_plain_gae_is_what_is_left_where_the_behaviour_is_the_policy() -> None:
    lived = rollout(6, terminated=np.array([0, 0, 0, 0, 0, 1], bool))
    lived = lived._replace(reward=np.array([0, 0, 0, 0, 0, 1], np.float32))
    found = estimate(lived, np.zeros(6, np.float32), lived.log_prob, 0.5, 1.0)
    assert found.advantage.tolist() == found.value.tolist() == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def test_what_nobody_would_do_any_more_counts_for_nothing_and_nothing_counts_for_much() -> None:
    lived = rollout(3, log_prob=np.array([0, -200, -0.7], np.float32))
    found = estimate(lived, np.zeros(3, np.float32), np.array([-200, 0, -0.7], np.float32), 0.9, 0.9)
    assert found.weight[0] < 1e-6 and found.weight[1] == ppo.WEIGHT_MAX
    assert np.isfinite(found.advantage).all() and np.isfinite(found.value).all()


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(UsageError, match="3 transitions"):
        estimate(rollout(3), np.zeros(2, np.float32), np.zeros(3, np.float32), 0.9, 0.9)


def begin(lived: Rollout, batch: int = 8, **changes: object) -> tuple[Learner, Course]:
    learner = Learner(network(SPECS["one-exit"], 0))
    hyper = msgspec.structs.replace(Hyper(), **changes)
    return learner, Course(learner.params, lived, hyper, batch, Scratch())


def untold(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((len(rows), 2), np.float32), np.zeros(len(rows), bool)


def test_a_course_goes_through_the_usable_part_of_a_rollout_as_often_as_told() -> None:
    held_out = np.arange(50) % 5 == 0
    learner, course = begin(rollout(50, held_out=held_out), epochs=3, max_divergence=np.inf)
    rng, seen = np.random.default_rng(0), []
    assert course.left == 3 * 5
    while course.left:
        seen.append(course.draw(rng))
        course.step(learner, seen[-1], untold(seen[-1]))
    wanted = [row for row in range(49) if not held_out[row]]  # the last has no successor
    for epoch in range(3):
        assert sorted(np.concatenate(seen[5 * epoch : 5 * epoch + 5]).tolist()) == wanted
    assert learner.steps == 15
    assert course.judged.tolist() == [row for row in range(49) if held_out[row]]
    with pytest.raises(UsageError, match="gone through"):
        course.draw(rng)


def test_a_course_ends_when_the_policy_has_gone_too_far() -> None:
    learner, course = begin(rollout(64), epochs=50, learning_rate=0.05, max_divergence=0.01)
    rng = np.random.default_rng(0)
    while course.left:
        rows = course.draw(rng)
        course.step(learner, rows, untold(rows))
    assert learner.steps < 40 and learner.steps % 8 == 0


def test_a_rollout_without_anything_to_practise_takes_no_step() -> None:
    _, course = begin(rollout(10, log_prob=np.full(10, np.nan, np.float32)))
    assert course.left == 0 and not len(course.judged)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    reward = np.full(20, np.nan, np.float32)
    learner, course = begin(rollout(20, reward=reward))
    before, rows = learner.params.flat.copy(), course.draw(np.random.default_rng(0))
    with pytest.raises(UsageError, match="not finite"):
        course.step(learner, rows, untold(rows))
    assert (learner.params.flat == before).all() and learner.steps == 0


def test_lessons_teach_beside_the_rollout_only_with_trust() -> None:
    lived = rollout(32)
    lessons = lived.obs[:16], np.tile(np.array([1, 0], np.float32), (16, 1))
    for weight in (0.0, 1.0):
        learner, course = begin(lived, epochs=200, max_divergence=np.inf, learning_rate=5e-3)
        rng = np.random.default_rng(0)
        before = softmax(forward(learner.params, lived.obs[:16])[0][:, :2])[0][:, 0].mean()
        for _ in range(60):
            rows = course.draw(rng)
            losses = course.step(learner, rows, untold(rows), lessons, distill_weight=weight, temperature=0.1)
        after = softmax(forward(learner.params, lived.obs[:16])[0][:, :2])[0][:, 0].mean()
        assert (losses.distill > 0) == (weight > 0)
        assert (after > 0.9 > before) == (weight > 0)


def test_the_gain_has_the_sign_of_what_the_candidate_does_more_often() -> None:
    n = 400
    lived = rollout(n, held_out=np.arange(n) % 2 == 0, terminated=np.ones(n, bool), follows=np.zeros(n, bool))
    lived = lived._replace(reward=lived.action.astype(np.float32), log_prob=np.full(n, -np.log(2), np.float32))
    _, course = begin(lived)
    even = np.zeros((len(course.judged), 2), np.float32)
    better, worse, far = (even + np.float32(each) for each in ([0, 1], [1, 0], [9, 0]))
    assert (found := course.gain(even, better)).gain is not None and found.gain > 2 * found.error
    assert course.gain(even, even).gain == 0
    assert course.gain(even, worse).harmful and not course.gain(even, better).harmful
    assert course.gain(even, far).gain is None and "apart" in course.gain(even, far).why
    with pytest.raises(UsageError, match="rows of logits"):
        course.gain(even, better[1:])


def test_too_little_was_held_out_to_say_anything() -> None:
    _, course = begin(rollout(40, held_out=np.arange(40) % 10 == 0))
    logits = np.zeros((len(course.judged), 2), np.float32)
    assert course.gain(logits, logits).gain is None and not course.gain(logits, logits).harmful


def right(obs: np.ndarray) -> np.ndarray:
    """The better action shows in one cell."""
    return (obs[:, 0, 0, 0] > 127).astype(np.int64)


def one_step_episodes(params: Params, n: int, rng: np.random.Generator) -> Rollout:
    """Episodes of one decision, chosen by the policy itself."""
    obs = rng.integers(0, 256, (n, 1, 4, 5)).astype(np.uint8)
    _, log = softmax(forward(params, obs)[params.spec.n_exits - 1][:, :2])
    action = (rng.random(n) < np.exp(log[:, 1])).astype(np.int64)
    return rollout(
        n,
        obs=obs,
        action=action,
        reward=(action == right(obs)).astype(np.float32),
        terminated=np.ones(n, bool),
        follows=np.zeros(n, bool),
        log_prob=log[np.arange(n), action],
    )


def test_it_learns_what_pays_and_its_early_exit_follows() -> None:
    spec = NetSpec((1, 4, 5), 2, trunk=((Dense(16), Relu()), (Dense(16), Relu())), heads=((), ()), input_scale=1 / 255)
    rng = np.random.default_rng(1)
    learner = Learner(initialise(spec, rng))
    for _ in range(25):
        played = one_step_episodes(learner.params, 256, rng)
        course = Course(learner.params, played, Hyper(learning_rate=3e-3), 32, Scratch())
        while course.left:
            rows = course.draw(rng)
            course.step(learner, rows, untold(rows))
    obs = rng.integers(0, 256, (500, 1, 4, 5)).astype(np.uint8)
    heads = forward(learner.params, obs)
    assert (heads[1][:, :2].argmax(1) == right(obs)).mean() > 0.9
    assert (heads[0][:, :2].argmax(1) == heads[1][:, :2].argmax(1)).mean() > 0.9
    assert heads[1][:, 2].mean() == pytest.approx(0.9, abs=0.2)
