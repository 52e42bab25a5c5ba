from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import quant
from edgert.nets import F32, NetSpec, Params, forward, initialise, ops, without_exits
from edgert.policy.exits import answer, confidence, effective_thresholds
from edgert.policy.frontier import full_ops
from edgert.values import Operating

pytest.importorskip("gymnasium")
from tools.bench.rapidrl import policies
from tools.bench.rapidrl.plan import TASKS
from tools.bench.rapidrl.policies import Only, Policy, Trial
from tools.nets import board, student

SPEC = student((10, 10, 4), 3)


def made(seed: int = 0) -> tuple[Params, dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    params = initialise(SPEC, rng)
    params.flat += rng.normal(0, 0.05, params.flat.shape).astype(np.float32)
    obs = rng.integers(0, 2, (64, *SPEC.input_shape)).astype(np.uint8)
    return params, dict(quant.fit(params, obs).tensors), obs


def head_of(*rows: list[float]) -> F32:
    return np.array(rows, np.float32)


def test_gap_and_entropy_are_surer_where_one_action_stands_out() -> None:
    clear, close = [5.0, 0.0, 0.0, 9.0], [1.0, 0.9, 0.0, 9.0]
    rng = np.random.default_rng(0)
    for gate in ("gap", "entropy"):
        scores = policies.judged(head_of(clear, close), gate, 1.0, rng)[:, -1]
        assert scores[0] > scores[1]
    gaps = policies.judged(head_of(clear, close), "gap", 2.0, rng)[:, -1]
    assert gaps == pytest.approx([2.5, 0.05], abs=1e-6)
    even = policies.judged(head_of([2.0, 2.0, 2.0, 0.0]), "entropy", 1.0, rng)[:, -1]
    assert even == pytest.approx([-np.log(3)], abs=1e-6)


@pytest.mark.parametrize("gate", ["confidence", "gap", "entropy", "chance"])
def test_no_gate_touches_the_values(gate: policies.Gate) -> None:
    head = np.random.default_rng(1).normal(size=(20, 5)).astype(np.float32)
    found = policies.judged(head, gate, 0.7, np.random.default_rng(0))
    assert found.dtype == np.float32
    assert np.array_equal(found[:, :-1], head[:, :-1])
    assert np.isfinite(found).all()
    assert np.array_equal(found, head) == (gate == "confidence")


@given(shares=st.lists(st.floats(0.02, 1), min_size=3, max_size=3))
def test_chance_takes_exits_as_often_as_asked(shares: list[float]) -> None:
    wanted = np.array(shares) / sum(shares)
    thresholds = policies.by_chance(wanted.tolist()).thresholds
    left, found = 1.0, []
    for threshold in thresholds:
        found.append(left * (1 - threshold))
        left -= found[-1]
    assert [*found, left] == pytest.approx(wanted.tolist(), abs=1e-9)


def test_chance_does_it_in_the_graph_as_well() -> None:
    _, tensors, obs = made()
    operating = policies.by_chance([0.5, 0.3, 0.2])
    gated = policies.Gated(quant.IntNet(SPEC, tensors), "chance", 1.0, np.random.default_rng(0))
    bars = effective_thresholds(operating.thresholds, 2)
    _, exits = answer(gated, np.repeat(obs, 40, 0), bars)
    assert np.bincount(exits, minlength=3) / len(exits) == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_a_network_that_ends_at_an_exit_answers_as_that_exit_and_costs_no_other_head() -> None:
    params, tensors, obs = made()
    for net, heads in (
        (quant.IntNet(SPEC, tensors), quant.forward(SPEC, tensors, obs)),
        (policies.FloatNet(params), forward(params, obs)),
    ):
        for k in range(3):
            only = Only(net, k)
            assert np.allclose(only.head(0, only.trunk(0, obs)), heads[k], atol=1e-5)
    assert ops(without_exits(SPEC, 2)) == [full_ops(SPEC)]
    assert ops(without_exits(SPEC, 0))[0] < ops(SPEC)[0], "nobody asks whether it is sure"
    assert policies.costs(Policy(role="x", only=1), SPEC)[0] < ops(SPEC)[1]
    assert policies.costs(Policy(role="x"), SPEC) == ops(SPEC)


def test_float_and_int8_trials_play_what_their_networks_say() -> None:
    pytest.importorskip("minatar")
    params, tensors, _ = made()
    spec = board((10, 10, 4), 3)
    assert isinstance(spec, NetSpec)
    task = TASKS["breakout"]._replace(parallel=3)
    seeds = range(5, 9)

    def play(policy: Policy, **more: int) -> policies.Played:
        return policies.play(Trial(task, policy, SPEC, params.flat, tensors, seeds, max_steps=40, **more))

    first = play(Policy(role="a", operating=Operating((0.0, 0.0))), keep=10)
    assert np.array_equal(first.returns, play(Policy(role="a", only=0)).returns)
    assert first.exit_ticks[:, 1:].sum() == 0
    assert first.held_ticks.sum() == 0
    assert first.met.shape[1:] == SPEC.input_shape
    assert 0 < len(first.met) <= 20
    deep = play(Policy(role="a", operating=Operating((1.0, 1.0))))
    assert deep.exit_ticks[:, :2].sum() == 0
    held = play(Policy(role="a", operating=Operating((0.0, 0.0), 4, 0.0)))
    assert held.held_ticks.sum() > held.exit_ticks.sum()
    whole = play(Policy(role="a", precision="fp32", only=2))
    assert whole.exit_ticks.shape == (4, 1)
    random = play(Policy(role=""))
    assert np.array_equal(random.returns, play(Policy(role="")).returns)
    assert random.exit_ticks.sum() > 0


def test_thresholds_are_confidences_for_every_gate() -> None:
    head = head_of([3.0, 1.0, 0.0, 0.0])
    score = float(policies.judged(head, "gap", 1.0, np.random.default_rng(0))[0, -1])
    assert effective_thresholds((confidence(score),), 1)[0] == pytest.approx(score, rel=1e-6)
