"""The comparison runs, and the device in it goes through all of a device's life."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.policy import artifact
from tools.bench.rlink import ppo
from tools.nets import NETS

QUICK = {**ppo.SETTINGS, "learn.rollout_transitions": 256, "learn.epochs": 2}


def test_an_untrained_policy_is_a_bundle_that_prefers_nothing_much() -> None:
    policy = artifact.load(ppo.untrained(NETS["values"]((1, 4, 16), 2), "CartPole-v1", 0))
    assert policy.manifest.kind == "policy" and policy.manifest.thresholds == (1.0,)
    assert np.ptp(policy.golden_head[:, :, :2], axis=2).max() < 0.5


def test_a_device_plays_learns_and_acts_by_what_it_learned() -> None:
    found = ppo.ours("CartPole-v1", "values", 1100, 0, QUICK)
    assert 2 <= found["accepted"] <= found["candidates"] <= 4 and not found["faults"]  # at first too little to judge by
    assert found["steps"] <= 4 * 2 * 4 and sum(value for _, value in found["returns"]) > 900
    assert found["bytes"] == 0 and sum(found["exits"]) == pytest.approx(1, abs=0.01)


def test_a_device_with_a_teacher_asks_it() -> None:
    def values(obs: np.ndarray) -> np.ndarray:
        return np.zeros((len(obs), 2), np.float32)

    found = ppo.ours("CartPole-v1", "values", 600, 0, QUICK, values)
    assert found["bytes"] > 1000


def test_the_other_side_takes_as_many_steps_on_as_many_transitions() -> None:
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is the other side")
    found = ppo.theirs("CartPole-v1", 512, 0, QUICK)
    assert found["steps"] == 2 * 2 * 256 // 64 and found["returns"]
