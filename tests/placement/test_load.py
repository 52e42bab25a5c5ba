from __future__ import annotations

import pytest

from edgert.placement.load import RESOURCES, Capacity, Resources, limits, overloads, total

MAINS = Capacity(cores=2, memory_bytes=10, link_bytes_per_s=5)


@pytest.mark.parametrize(
    ("used", "names"),
    [
        (Resources(), ()),
        (Resources(2, 10, 5), ()),
        (Resources(2 + 1e-12, 10, 5), ()),
        (Resources(2.001), ("cpu",)),
        (Resources(memory_bytes=11, link_bytes_per_s=6), ("memory", "link")),
        (Resources(energy_j=1e12, heat_w=1e12), ()),
    ],
)
def test_what_is_beyond_a_limit_is_named(used: Resources, names: tuple[str, ...]) -> None:
    assert overloads(MAINS, used) == names


def test_a_battery_and_heat_limit_where_they_are_said_to() -> None:
    capacity = Capacity(cores=2, memory_bytes=10, link_bytes_per_s=5, energy_j=3, heat_w=4)
    assert overloads(capacity, Resources(energy_j=4, heat_w=5)) == ("battery", "heat")
    assert limits(MAINS).energy_j == limits(MAINS).heat_w == float("inf")


def test_amounts_add_up_in_every_resource() -> None:
    assert total([Resources(1, 2, 3, 4, 5), Resources(10, 20, 30, 40, 50)]) == Resources(11, 22, 33, 44, 55)
    assert total([]) == Resources()
    assert len(RESOURCES) == len(Resources.__struct_fields__)
