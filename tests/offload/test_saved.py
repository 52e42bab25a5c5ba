from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ArtifactError
from edgert.offload import saved
from edgert.offload.space import Floor, Variant, full_space

SPACE = full_space([Variant(name="a", accuracy_frac=0.5, macs=1)], 1)


def test_what_goes_in_comes_out() -> None:
    known = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": [1, "x", None], "c": {"d": np.float64(2.5)}}
    found = saved.unpack("k", SPACE, Floor(), saved.pack("k", SPACE, Floor(), known))
    assert found["a"].dtype == np.float32 and (found["a"] == known["a"]).all()
    found["a"][0, 0] = 7  # a copy of one's own
    assert (found["b"], found["c"]) == ([1, "x", None], {"d": 2.5})


@pytest.mark.parametrize(
    ("kind", "space", "floor"),
    [("l", SPACE, Floor()), ("k", msgspec.structs.replace(SPACE, users=2), Floor()), ("k", SPACE, Floor(0.5))],
)
def test_what_is_of_something_else_is_refused(kind: str, space: saved.Space, floor: Floor) -> None:
    with pytest.raises(ArtifactError, match="delete"):
        saved.unpack(kind, space, floor, saved.pack("k", SPACE, Floor(), {}))


@given(st.binary(max_size=60))
def test_torn_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        saved.unpack("k", SPACE, Floor(), data)


@pytest.mark.parametrize("data", [b"\xc1\xfb\x7f" + b"\x00" * 7, b"\x81" * 100_000], ids=["no-date", "too-deep"])
def test_bytes_that_the_library_chokes_on_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError):
        saved.unpack("k", SPACE, Floor(), data)


@given(st.integers(0, 200))
def test_every_beginning_is_refused(length: int) -> None:
    whole = saved.pack("k", SPACE, Floor(), {"a": np.zeros(3)})
    if length < len(whole):
        with pytest.raises(ArtifactError):
            saved.unpack("k", SPACE, Floor(), whole[:length])
