from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.placement.protocol import Region, chain, regions_of


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 12))
def test_every_node_has_a_region_and_neighbours_share_their_boundary(count: int, size: int, overlap: int) -> None:
    names = tuple(f"n{n}" for n in range(count))
    if overlap > size:
        with pytest.raises(UsageError):
            chain(names, size, overlap)
        return
    cut = chain(names, size, overlap)
    assert {name for region in cut for name in region.members} == set(names)
    assert all(len(set(region.members)) == len(region.members) <= size + overlap for region in cut) or len(cut) == 1
    for one, two in itertools.pairwise(cut):
        assert len(set(one.members) & set(two.members)) >= min(overlap, len(two.members))


def test_a_node_asks_where_it_ranks_highest() -> None:
    cut = (Region("b", ("x", "y")), Region("a", ("y", "z")))
    assert [region.name for region in regions_of(cut, "y")] == ["a", "b"]
    assert regions_of(cut, "nobody") == ()
