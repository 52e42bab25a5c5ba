"""What the numpy runtime promises beyond the contract in test_runtimes.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgert.policy import artifact
from edgert.policy.exits import effective_thresholds
from edgert.ports.runtime.numpy import NumpyRuntime

HOUSE = Path(__file__).parents[3]


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_a_stage_that_no_exit_asked_for_does_not_run(game: str) -> None:
    made = artifact.load((HOUSE / "models" / f"{game}.edgert").read_bytes())
    n, n_exits = len(made.golden_obs), made.spec.n_exits
    for k in range(n_exits):
        runtime = NumpyRuntime(made)
        for i, obs in enumerate(made.golden_obs):
            answer = runtime.infer(obs, effective_thresholds([1.0] * (n_exits - 1), k))
            assert np.array_equal(answer.head, made.golden_head[i, k])
        assert runtime.net.counts == [n if stage <= k else 0 for stage in range(n_exits)]


def test_it_needs_nothing_but_numpy() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['onnx'] = None;"
        "from edgert.policy import artifact; from edgert.ports.runtime import open_runtime;"
        "print(open_runtime(artifact.load(open(sys.argv[1], 'rb').read()), 'numpy').name)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(HOUSE / "models" / "breakout.edgert")],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stdout == "numpy\n", said.stderr
