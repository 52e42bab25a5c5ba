"""The network shapes that the shipped bundles use, by name."""

from __future__ import annotations

from edgert.nets import Conv, Dense, MaxPool, NetSpec, Relu


def student(input_shape: tuple[int, int, int], n_actions: int) -> NetSpec:
    """Three exits over two small convolutions and 64 units: about a quarter of the teacher's parameters."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Conv(16, 3), Relu()), (Conv(16, 3), Relu()), (Dense(64), Relu())),
        heads=((MaxPool(2, 2),), (MaxPool(2, 2),), ()),
    )


def teacher(input_shape: tuple[int, int, int], n_actions: int) -> NetSpec:
    """The MinAtar paper's network (Young & Tian 2019, section 4): 16 3x3 filters, 128 units, one exit."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Conv(16, 3), Relu(), Dense(128), Relu()),),
        heads=((),),
    )


NETS = {"student": student, "teacher": teacher}
