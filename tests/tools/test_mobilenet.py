from __future__ import annotations

import numpy as np
import pytest

from edgert import modelfile
from edgert.ports.runtime.model import open_model

mobilenet = pytest.importorskip("tools.mobilenet")


def test_the_smallest_has_the_published_shapes_and_says_that_nothing_was_measured():
    rng = np.random.default_rng(0)
    model, macs = mobilenet.build(0.25, rng)
    assert round(macs / 1e6) == mobilenet.PUBLISHED[0.25].mmacs == 41
    picture = rng.integers(0, 256, (1, 224, 224, 3), np.uint8)
    said = modelfile.read(mobilenet.bundled(0.25, "fp32", model, macs, picture))
    assert [each.measured for each in said.manifest.accuracy] == [False, False]
    assert (said.manifest.accuracy_frac, said.manifest.accuracy[0].metric) == (0.742, "top-5")
    assert "random" in said.manifest.provenance["weights"]
    opened = open_model(said, "onnx")
    assert opened.run(np.concatenate([picture, picture])).shape == (2, 1001)


@pytest.mark.parametrize(("width", "mmacs"), [(1.0, 569), (0.75, 325), (0.5, 149)])
def test_multiply_accumulates_are_those_of_the_paper(width, mmacs):
    assert round(mobilenet.build(width, np.random.default_rng(0))[1] / 1e6) == mmacs  # arXiv 1704.04861, table 6
