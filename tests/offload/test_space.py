from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.offload import space
from edgert.offload.space import Choice, Floor, Load, Outcome, State, Variant

ROWS = [("a", 0.9, 500, True), ("b", 0.8, 100, True), ("c", 0.95, 900, False)]
VARIANTS = [Variant(name=n, accuracy_frac=a, macs=m, input_bytes=100, local=here) for n, a, m, here in ROWS]


def test_the_full_space_is_every_variant_wherever_it_may_run() -> None:
    found = space.full_space(VARIANTS, 2)
    assert found.choices[:3] == (Choice(0, "device"), Choice(1, "device"), Choice(0, "edge"))
    assert len(found.choices) == 2 + 3 + 3


def test_the_papers_space_sends_only_the_most_accurate_one_away() -> None:
    assert space.paper_space(VARIANTS, 1).choices[-2:] == (Choice(2, "edge"), Choice(2, "cloud"))


@pytest.mark.parametrize(("users", "variants"), [(0, VARIANTS), (1, [])])
def test_nothing_to_decide_is_refused(users: int, variants: list[Variant]) -> None:
    with pytest.raises(UsageError):
        space.full_space(variants, users)


def test_points_are_not_fractions() -> None:
    with pytest.raises(UsageError, match="fractions"):
        space.full_space([msgspec.structs.replace(VARIANTS[0], accuracy_frac=90.0)], 1)


@given(
    st.floats(0, 1),
    st.lists(st.sampled_from([frozenset({"device"}), frozenset({"edge"}), frozenset()]), min_size=2, max_size=2),
)
def test_the_floor_per_user_holds_whatever_is_down(floor: float, places: list[frozenset[space.Place]]) -> None:
    whole = space.full_space(VARIANTS, 2)
    wanted = Floor(floor)
    mask = space.allowed(whole, wanted, places=places, bytes_left=[50, None])
    for user, row in enumerate(mask):
        assert any(row)
        for index, fine in enumerate(row):
            if fine:
                action = tuple(index if each == user else 7 for each in range(2))
                assert space.meets(whole, wanted, action)


def test_what_may_not_be_sent_is_done_at_home() -> None:
    whole = space.full_space(VARIANTS, 1)
    mask = space.allowed(whole, Floor(), bytes_left=[99])
    assert {whole.choices[i].place for i, fine in enumerate(mask[0]) if fine} == {"device"}


def test_lists_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(UsageError):
        space.allowed(space.full_space(VARIANTS, 2), Floor(), bytes_left=[1])


def test_an_average_floor_is_met_by_the_mean() -> None:
    whole = space.full_space(VARIANTS, 2)
    assert space.meets(whole, Floor(0.85, "average"), (0, 1))
    assert not space.meets(whole, Floor(0.86, "average"), (0, 1))
    assert not space.meets(whole, Floor(0.85), (0, 1))


def test_a_floor_that_nobody_reaches_is_the_best_there_is() -> None:
    assert space.reachable(space.full_space(VARIANTS, 1), Floor(1.0)) == 0.95


def test_levels_take_the_unknown_for_busy() -> None:
    state = State(users=(Load(cpu_frac=0.1, rtt_s=0.05),), edge=Load(cpu_frac=0.9, memory_frac=0.9))
    assert space.levels(state) == (4, 3, 1)


def test_waiting_in_vain_is_waiting() -> None:
    assert space.cost(Outcome(response_s=None, failed_s=2.0), "response") == 2.0
    assert space.cost(Outcome(response_s=1.0, failed_s=2.0), "response") == 3.0
    assert space.cost(Outcome(response_s=1.0), "energy") is None
