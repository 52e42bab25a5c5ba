"""The off-policy check on a history as the ring gives it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgert import quant
from edgert.learn.offpolicy import MIN_TRANSITIONS
from edgert.learn.replay import Replay
from edgert.policy import artifact
from edgert.programs import judging

POLICY = artifact.load((Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes())
NET, BARS = quant.IntNet(POLICY.spec, POLICY.tensors), POLICY.manifest.thresholds
GOOD = judging.Side(NET, BARS)


def turned_round() -> judging.Side:
    params = POLICY.params.copy()
    for name, view in params.views.items():
        if ".out." in name:
            view[..., : POLICY.spec.n_actions] *= np.float32(-1)
    return judging.Side(quant.IntNet(POLICY.spec, quant.fit(params, POLICY.golden_obs).tensors), BARS)


def history(n: int, gap: int = 0) -> Replay:
    """Doing what the network says is paid, doing anything else is not; some records are missing."""
    replay, rng = Replay(2000, POLICY.spec.input_shape, POLICY.spec.n_actions), np.random.default_rng(0)
    obs = POLICY.golden_obs[rng.integers(len(POLICY.golden_obs), size=n)].copy()
    obs.reshape(n, -1)[np.arange(n)[:, None], rng.integers(obs[0].size, size=(n, 2))] ^= 1
    best = NET.heads(obs)[POLICY.spec.n_exits - 1][:, : POLICY.spec.n_actions].argmax(1)
    action = np.where(rng.random(n) < 0.4, rng.integers(POLICY.spec.n_actions, size=n), best)
    seq = np.arange(1, n + 1) + np.where(np.arange(n) > n // 2, gap, 0)
    ended = np.arange(n) % 20 == 19
    replay.add(seq, obs, action, (action == best).astype(np.float32), ended, np.zeros(n, bool))
    return replay


def test_the_same_network_gains_nothing() -> None:
    told = judging.gain(history(600), GOOD, GOOD, 0.9)
    assert (told.gain, told.error) == (0.0, 0.0) and not told.harmful


def test_a_network_that_does_the_contrary_is_found_out_also_over_a_gap() -> None:
    for gap in (0, 7):
        told = judging.gain(history(1500, gap), GOOD, turned_round(), 0.9)
        assert told.harmful and told.gain is not None and told.gain < 0
        better = judging.gain(history(1500, gap), turned_round(), GOOD, 0.9)
        assert not better.harmful and better.gain is not None and better.gain > 0


def test_a_short_history_is_not_enough_and_costs_no_inference() -> None:
    told = judging.gain(history(MIN_TRANSITIONS // 2), GOOD, turned_round(), 0.9)
    assert told.gain is None and not told.harmful


def test_the_evidence_is_about_the_right_networks() -> None:
    bad, probe = turned_round(), history(300).newest(200).batch
    told = judging.evidence(GOOD, bad, GOOD, POLICY.params, probe, 0.9)
    assert (told.candidate == told.installed).all() and (told.candidate != told.acting).any()
    assert (told.candidate == told.candidate_float).mean() > 0.9
    agreed = probe.action == told.float_q.argmax(1)
    assert agreed.any() and not agreed.all()
    rows = np.arange(len(probe.action))
    following = bad.net.heads(probe.next_obs)[POLICY.spec.n_exits - 1][:, : POLICY.spec.n_actions].max(1)
    y = probe.reward + 0.9 * np.where(probe.terminated, 0, following)
    mine = NET.heads(probe.obs)[POLICY.spec.n_exits - 1][rows, probe.action]
    np.testing.assert_allclose(told.candidate_td, np.abs(mine - y), rtol=1e-5, atol=1e-6)
    assert 0 < told.candidate_unexplained < told.acting_unexplained < np.inf
