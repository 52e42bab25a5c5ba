from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import UsageError
from tools.bench.offload import fit
from tools.bench.offload.world import FAMILY, SETUP, Setup


def test_it_finds_the_set_up_that_made_the_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    true = Setup(core_s=tuple(1.4 * each for each in SETUP.core_s), speed=(0.1, 0.25, 0.5), weak_rtt_s=0.06)
    runs = []
    for _ in range(300):
        users = int(rng.integers(1, 6))
        action = [
            [FAMILY[int(rng.integers(8))][0], ("device", "edge", "cloud")[int(rng.integers(3))]] for _ in range(users)
        ]
        runs.append(
            {"users": users, "links": "C", "weak": [True] * users, "action": action, "response_s": [0.1] * users}
        )
    took = fit.Arrays(runs).predict(true)
    for run, row in zip(runs, took.tolist(), strict=True):
        run["response_s"] = [each * float(rng.uniform(0.97, 1.03)) for each in row if not np.isnan(each)]
    file = tmp_path / "real.json"
    file.write_text(json.dumps({"runs": runs}))
    found = fit.fit(file)
    assert found["mape"] < 0.05
    assert found["setup"]["core_s"] == pytest.approx(true.core_s, rel=0.1)
    assert found["setup"]["speed"][1:] == pytest.approx([0.25, 0.5], rel=0.15)


def test_without_a_measurement_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measure"):
        fit.fit(tmp_path / "none.json")
