from __future__ import annotations

import numpy as np
import pytest

from edgert import modelfile
from edgert.nets import initialise
from edgert.ports.runtime.model import open_model

pytest.importorskip("torch")
digits = pytest.importorskip("tools.digits")


def made_up(n=700):
    rng = np.random.default_rng(0)
    said = rng.integers(0, 10, n)
    pictures = np.zeros((n, 8, 8, 1), np.uint8)
    pictures[np.arange(n), said % 8, said // 2, 0] = 16  # a dot that says which
    return digits.Data(pictures[:100], said[:100], pictures[100:], said[100:])


def test_the_interval_is_wilsons():
    low, high = digits.wilson(585, 600)  # scipy.stats.binomtest(585, 600).proportion_ci(method="wilson")
    assert (round(low, 4), round(high, 4)) == (0.9592, 0.9848)
    assert digits.wilson(600, 600)[1] == pytest.approx(1.0) and digits.wilson(0, 600)[0] == pytest.approx(0.0)


@pytest.mark.parametrize("exit_", [0, 1])
def test_an_exit_that_is_cut_out_answers_as_it_did_and_is_judged_on_what_was_held_out(exit_, monkeypatch):
    from edgert.nets import forward
    from tools import models

    known = made_up()
    params = initialise(digits.spec(0.25), np.random.default_rng(1))
    alone = models.cut(params, exit_)
    np.testing.assert_allclose(forward(alone, known.held)[0], forward(params, known.held)[exit_], atol=1e-5)
    for precision in ("fp32", "int8"):
        found = modelfile.read(digits.bundled(alone, 0.25, exit_, precision, known))
        answers = open_model(found, "onnx").run(known.held)
        right = float((answers.argmax(1) == known.held_said).mean())
        assert found.manifest.accuracy_frac == pytest.approx(right) and found.manifest.exit == exit_
        assert (modelfile.TFLITE_MEMBER in found.members) == (precision == "int8")


def test_training_learns_from_what_is_seen(monkeypatch):
    monkeypatch.setattr(digits, "EPOCHS", 10)
    known = made_up()
    from edgert.nets import forward

    heads = forward(digits.train(0.25, known, 0), known.held)
    for k in (0, 1):
        assert (heads[k][:, :10].argmax(1) == known.held_said).mean() > 0.3
