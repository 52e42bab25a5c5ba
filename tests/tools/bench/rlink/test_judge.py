from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgert.errors import StoreError
from tools.bench.rlink import judge
from tools.bench.rlink.live import Copy, Run


def copies(n: int) -> list[Copy]:
    return [Copy(100 * i, float(i), i, f"{i}") for i in range(n)]


@pytest.mark.parametrize(("n", "at_most"), [(1, 5), (5, 5), (200, 7), (41, 40)])
def test_networks_are_picked_with_both_ends_and_more_of_the_young_ones(n: int, at_most: int) -> None:
    picked = [copy.transitions for copy in judge.picked(copies(n), at_most)]
    assert min(n, at_most) // 2 <= len(picked) <= at_most
    assert picked[0] == 0 and picked[-1] == 100 * (n - 1)
    gaps = [b - a for a, b in itertools.pairwise(picked)]
    assert all(a <= b + 100 for a, b in itertools.pairwise(gaps))


def test_what_was_judged_is_kept_and_found_again(tmp_path: Path) -> None:
    run = Run(10, 1.0, 0.5, [(0.0, 0)], [(3, 1.5)], copies(2), {"up_bytes": 3}, {"trainer": {"steps": 1}})
    judged = judge.Judged(run, [judge.Point(0, 0.0, 0, 1.5)], 20)
    path = tmp_path / "judged.json"
    assert judge.kept(path) is None
    judge.keep(judged, path)
    assert judge.kept(path) == judged
    path.write_text("{")
    with pytest.raises(StoreError, match=r"judged\.json"):
        judge.kept(path)
