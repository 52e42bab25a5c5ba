from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgert.errors import UsageError
from edgert.nets import forward
from edgert.policy import artifact
from tools.bench.rlink import models

MODELS = Path(__file__).parents[4] / "models"
POLICY = artifact.load((MODELS / "breakout-teacher.edgert").read_bytes())
LAST = POLICY.spec.n_exits - 1


def test_the_adversary_thinks_best_what_the_teacher_thinks_worst() -> None:
    obs = POLICY.golden_obs
    good = forward(POLICY.params, obs, exits=(LAST,))[LAST][:, : POLICY.spec.n_actions]
    bad = forward(models.adversarial(POLICY.params), obs, exits=(LAST,))[LAST][:, : POLICY.spec.n_actions]
    np.testing.assert_allclose(bad, -good, rtol=1e-4, atol=1e-4)


def test_noise_grows_with_its_size_and_spares_the_original() -> None:
    before = POLICY.params.flat.copy()
    little, much = (models.noisy(POLICY.params, size, np.random.default_rng(0)) for size in (0.1, 1.0))
    assert (POLICY.params.flat == before).all()
    assert 0 < np.abs(little.flat - before).mean() < np.abs(much.flat - before).mean()


def test_noise_is_searched_for_until_a_third_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def level(params: object, env: str, seed: int = 0) -> float:
        moved = float(np.abs(params.flat - POLICY.params.flat).mean())  # type: ignore[attr-defined]  # it is Params
        return 100.0 - 900 * moved

    monkeypatch.setattr(models, "level", level)
    monkeypatch.setattr(models, "chance", lambda *_: 0.0)
    spoilt, share = models.third(POLICY.params, "any", np.random.default_rng(0))
    assert share == pytest.approx(models.WANTED_FRAC, abs=models.TOLERANCE_FRAC)
    assert level(spoilt, "any") == pytest.approx(100 * share)
    monkeypatch.setattr(models, "chance", lambda *_: 200.0)
    with pytest.raises(UsageError, match="chance"):
        models.third(POLICY.params, "any", np.random.default_rng(0))
