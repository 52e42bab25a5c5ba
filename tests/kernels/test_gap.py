from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgert.kernels.gap import add_gap

HEADS = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(3, 9)), elements=st.floats(-100, 100, width=32))


@given(HEADS, st.floats(0, 50, width=32))
def test_only_the_confidence_grows_and_by_the_gap(head: np.ndarray, weight: float) -> None:
    before = head.copy()
    add_gap(head, weight)
    assert np.array_equal(head[:, :-1], before[:, :-1])
    ranked = np.sort(before[:, :-1], axis=1)
    wanted = before[:, -1] + np.float32(weight) * (ranked[:, -1] - ranked[:, -2])
    assert np.array_equal(head[:, -1], wanted)
    assert (head[:, -1] >= before[:, -1]).all()


def test_a_tie_adds_nothing() -> None:
    head = np.array([[3, 3, 1, -2]], np.float32)
    add_gap(head, 7.0)
    assert head.tolist() == [[3, 3, 1, -2]]
