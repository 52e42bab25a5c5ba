"""The network shapes that the shipped bundles use, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from edgert.nets import Conv, Dense, Layer, MaxPool, NetSpec, Relu

Shape = tuple[int, int, int]
Maker = Callable[[Shape, int], NetSpec]


def _scale(input_shape: Shape) -> float:
    """Images are 0..255, game boards 0 or 1."""
    return 1 / 255 if input_shape[0] > 32 else 1.0


def student(input_shape: Shape, n_actions: int) -> NetSpec:
    """Three exits over two small convolutions and 64 units: about a quarter of the teacher's parameters."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Conv(16, 3), Relu()), (Conv(16, 3), Relu()), (Dense(64), Relu())),
        heads=((MaxPool(2, 2),), (MaxPool(2, 2),), ()),
    )


def teacher(input_shape: Shape, n_actions: int) -> NetSpec:
    """The MinAtar paper's network (Young & Tian 2019, section 4): 16 3x3 filters, 128 units, one exit."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Conv(16, 3), Relu(), Dense(128), Relu()),),
        heads=((),),
    )


def camera(input_shape: Shape, n_actions: int) -> NetSpec:
    """For 84x84 frames: three exits over a cheap stem.

    6x6 patches instead of Nature-DQN's overlapping 8x8 windows: there the first convolution alone is 0.35 of the
    network, and no exit could be cheaper than that.
    """
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=(
            (Conv(16, 6, 6), Relu(), Conv(32, 3, 2), Relu()),
            (Conv(64, 3, 1, 1), Relu()),
            (Conv(64, 3, 1, 1), Relu(), Dense(512), Relu()),
        ),
        heads=((Dense(64), Relu()), (), ()),
        input_scale=_scale(input_shape),
    )


def camera2(input_shape: Shape, n_actions: int) -> NetSpec:
    """`camera` without its middle exit, whose `If` and head cost the full network more time than it saves."""
    three = camera(input_shape, n_actions)
    first, *rest = three.trunk
    trunk = (first, tuple(layer for stage in rest for layer in stage))
    return msgspec.structs.replace(three, trunk=trunk, heads=(three.heads[0], three.heads[-1]))


def camera2_wide(input_shape: Shape, n_actions: int) -> NetSpec:
    """`camera2` with a first exit that can tell 25 actions apart."""
    two = camera2(input_shape, n_actions)
    return msgspec.structs.replace(two, heads=((Dense(128), Relu()), two.heads[-1]))


def values(input_shape: Shape, n_actions: int) -> NetSpec:
    """For a few numbers in coarse cells, such as CartPole's: two exits over two small hidden layers."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Dense(64), Relu()), (Dense(64), Relu())),
        heads=((), ()),
        input_scale=1 / 255,
    )


def values_teacher(input_shape: Shape, n_actions: int) -> NetSpec:
    """The same for a teacher: wider, one exit."""
    trunk = (Dense(128), Relu(), Dense(128), Relu())
    return msgspec.structs.replace(one_exit(trunk, input_shape, n_actions), input_scale=1 / 255)


def one_exit(trunk: tuple[Layer, ...], input_shape: Shape, n_actions: int) -> NetSpec:
    """A network without early exits, to compare with."""
    return NetSpec(
        input_shape=input_shape, n_actions=n_actions, trunk=(trunk,), heads=((),), input_scale=_scale(input_shape)
    )


def _camera_static(convolutions: tuple[int, ...], units: int) -> Maker:
    """The stem of `camera`, 3x3 convolutions of so many channels, and a hidden layer."""
    deeper = tuple(layer for channels in convolutions for layer in (Conv(channels, 3, 1, 1), Relu()))
    return partial(one_exit, (Conv(16, 6, 6), Relu(), Conv(32, 3, 2), Relu(), *deeper, Dense(units), Relu()))


def _board_static(units: int) -> Maker:
    """One convolution and a hidden layer."""
    return partial(one_exit, (Conv(16, 3), Relu(), Dense(units), Relu()))


def board(input_shape: Shape, n_actions: int) -> NetSpec:
    """For MinAtar's 10x10 boards: two exits, the first after one convolution and with a small network of its own."""
    return NetSpec(
        input_shape=input_shape,
        n_actions=n_actions,
        trunk=((Conv(16, 3), Relu()), (Conv(32, 3), Relu(), Dense(256), Relu())),
        heads=((Conv(16, 3, 2), Relu(), Dense(64), Relu()), ()),
    )


def board2(input_shape: Shape, n_actions: int) -> NetSpec:
    """`board` with a first exit that sees every cell: a stride there costs it half of its return on Breakout."""
    small = board(input_shape, n_actions)
    return msgspec.structs.replace(small, heads=((Dense(64), Relu()), ()))


NETS: dict[str, Maker] = {
    "student": student,
    "teacher": teacher,
    "camera": camera,
    "camera2": camera2,
    "camera2-wide": camera2_wide,
    "board": board,
    "board2": board2,
    "values": values,
    "values-teacher": values_teacher,
    # Static nets at about this share of the operations of `camera` and `board`.
    "camera-20": _camera_static((), 128),
    "camera-34": _camera_static((48,), 128),
    "camera-55": _camera_static((64,), 384),
    "board-20": _board_static(64),
    "board-34": _board_static(128),
    "board-55": _board_static(240),
}
