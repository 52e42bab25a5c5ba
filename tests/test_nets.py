from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import quant
from edgert.errors import UsageError
from edgert.nets import (
    Conv,
    Dense,
    MaxPool,
    NetSpec,
    Params,
    Relu,
    Tape,
    blocks,
    conv_geometry,
    forward,
    initialise,
    macs,
    matrix_shape,
    ops,
    stages,
    strip_exits,
    weighted,
    without_exits,
)

NET = NetSpec(
    (8, 7, 3),
    4,
    trunk=((Conv(5, 3, 2, 1), Relu()), (Conv(6, 2), Relu(), MaxPool(2, 1)), (Dense(9), Relu())),
    heads=((MaxPool(2, 2), Dense(7), Relu()), (), ()),
    input_scale=1 / 255,
)


def net(seed: int = 0) -> tuple[Params, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = initialise(NET, rng)
    params.flat += rng.normal(0, 0.05, params.flat.shape).astype(np.float32)
    return params, rng.integers(0, 256, (5, *NET.input_shape)).astype(np.uint8)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_forward_agrees_with_torch(seed: int) -> None:
    torch = pytest.importorskip("torch")
    params, obs = net(seed)
    x = torch.from_numpy(obs).permute(0, 3, 1, 2).float() * NET.input_scale

    def through(layers: list[object], x: object) -> object:
        for name, layer, in_shape, *_ in layers:
            if isinstance(layer, Conv | Dense):
                weight, bias = (torch.from_numpy(params.views[f"{name}.{part}"]) for part in "wb")
            match layer:
                case Conv(_, kernel, stride, padding):
                    weight = weight.reshape(kernel, kernel, in_shape[-1], -1).permute(3, 2, 0, 1)
                    x = torch.nn.functional.conv2d(x, weight, bias, stride, padding)
                case MaxPool(kernel, stride):
                    x = torch.nn.functional.max_pool2d(x, kernel, stride)
                case Dense():
                    x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1) @ weight + bias
                case Relu():
                    x = x.relu()
        return x

    heads = forward(params, obs)
    for k, stage in enumerate(stages(NET)):
        x = through(stage.trunk, x)
        assert heads[k] == pytest.approx(through(stage.head, x).numpy(), rel=1e-4, abs=1e-5)


def test_macs_are_those_counted_by_hand() -> None:
    # 8x7 padded and strided -> 4x4; head: pooled to 2x2x5, 20 -> 7 -> 5.
    first = 4 * 4 * 5 * 3 * 3 * 3 + 20 * 7 + 7 * 5
    # 4x4 -> 3x3, pooled to 2x2x6; head: 24 -> 5.
    second = first + 3 * 3 * 6 * 2 * 2 * 5 + 24 * 5
    third = second + 24 * 9 + 9 * 5
    assert macs(NET) == [first, second, third]


def test_ops_are_those_counted_by_hand() -> None:
    # A layer: two a MAC, a bias, and 5 to round; an output layer: two a MAC, a bias and a scale.
    first = 4 * 4 * 5 * (2 * 27 + 6)  # convolution
    first += 2 * 2 * 5 * 3 + 7 * (2 * 20 + 6) + 5 * (2 * 7 + 2) + 4  # head: 2x2 maxima, two layers, the test
    second = first + 3 * 3 * 6 * (2 * 20 + 6) + 2 * 2 * 6 * 3 + 5 * (2 * 24 + 2) + 4
    third = second + 9 * (2 * 24 + 6) + 5 * (2 * 9 + 2)
    assert ops(NET) == [first, second, third]
    assert all(2 * cost < found for cost, found in zip(macs(NET), ops(NET), strict=True))


def test_the_gap_is_added_and_counted_where_it_is_asked_for() -> None:
    params, obs = net()
    asking = msgspec.structs.replace(NET, gap_logits=(0.0, 2.0))
    plain, found = forward(params, obs), forward(Params(asking, params.flat), obs)
    ranked = np.sort(plain[1][:, :-1], axis=1)
    assert found[1][:, -1] == pytest.approx(plain[1][:, -1] + 2 * (ranked[:, -1] - ranked[:, -2]), rel=1e-5)
    for k, columns in ((0, slice(None)), (1, slice(4)), (2, slice(None))):
        assert np.array_equal(found[k][:, columns], plain[k][:, columns])
    # Two comparisons for each of four actions, a difference, a product and a sum; deeper exits pass this one.
    assert np.subtract(ops(asking), ops(NET)).tolist() == [0, 11, 11]
    assert without_exits(asking).gap_logits == ()
    for wrong in ((1.0,), (1.0, 1.0, 1.0, 1.0), (-1.0, 0.0), (float("nan"), 0.0)):
        with pytest.raises(UsageError, match="gap_logits"):
            stages(msgspec.structs.replace(NET, gap_logits=wrong))


def test_a_relu_is_counted_only_where_the_integer_graph_has_one() -> None:
    relus = (MaxPool(2, 1), Relu())
    unsigned, signed = (
        NetSpec((4, 4, 1), 2, trunk=((Conv(3, 1), *between, *relus),), heads=((),)) for between in ((Relu(),), ())
    )
    found = [
        [step.placed.layer for step in quant.steps(spec)[0].trunk if isinstance(step.placed.layer, Relu)]
        for spec in (unsigned, signed)
    ]
    assert [len(relus) for relus in found] == [0, 1]
    assert ops(signed)[0] - ops(unsigned)[0] == 3 * 3 * 3


def test_exits_can_be_asked_alone_and_give_the_same() -> None:
    params, obs = net()
    whole = forward(params, obs)
    for k in range(3):
        alone = forward(params, obs, exits=(k,))
        assert alone.keys() == {k}
        assert np.array_equal(alone[k], whole[k])
    taped = forward(params, obs, tape=Tape())
    assert all(np.array_equal(taped[k], whole[k]) for k in whole)


def test_layers_that_run_together_are_found_in_any_order() -> None:
    conv, pool, relu, dense = Conv(3, 2), MaxPool(2, 1), Relu(), Dense(4)
    orders: dict[tuple[object, ...], list[tuple[bool, bool, bool]]] = {
        (conv, relu, pool): [(True, True, True)],
        (conv, pool, relu): [(True, True, True)],
        (conv, pool, pool, relu): [(True, True, False), (False, True, True)],
        (relu, conv, relu, relu): [(False, False, True), (True, False, True), (False, False, True)],
        (pool, relu, conv, dense, relu): [(False, True, True), (True, False, False), (True, False, True)],
    }
    for layers, wanted in orders.items():
        placed = stages(NetSpec((8, 8, 2), 2, trunk=(layers,), heads=((),)))[0].trunk
        found = [(block.product is not None, block.pool is not None, block.relu) for block in blocks(placed)]
        assert found == wanted


def test_a_block_without_a_convolution_has_no_geometry_of_one() -> None:
    (dense,) = blocks(stages(NET)[2].trunk)
    with pytest.raises(UsageError, match=r"t2\.0 is no convolution"):
        conv_geometry(dense, NET)


def test_a_relu_leaves_what_an_earlier_exit_saw() -> None:
    spec = NetSpec((6, 6, 2), 2, trunk=((Conv(3, 3),), (Relu(), Dense(4))), heads=((), ()))
    params, tape = initialise(spec, np.random.default_rng(0)), Tape()
    obs = np.random.default_rng(1).integers(0, 2, (4, 6, 6, 2)).astype(np.uint8)
    alone = forward(params, obs, exits=(0,))[0]
    forward(params, obs, tape=tape)
    seen = tape.saved["h0.out"].x
    assert (seen < 0).any()
    np.testing.assert_allclose(seen @ params.views["h0.out.w"] + params.views["h0.out.b"], alone, rtol=1e-5, atol=1e-6)


def test_the_observation_is_not_changed() -> None:
    params, obs = net()
    before = obs.copy()
    forward(params, obs)
    assert np.array_equal(obs, before)


def test_views_share_the_flat_vector_and_cover_it_exactly_once() -> None:
    params = Params(NET)
    assert sum(view.size for view in params.views.values()) == params.flat.size
    for view in params.views.values():
        view += 1
    assert (params.flat == 1).all()
    for placed in weighted(NET):
        assert params.views[f"{placed.name}.w"].shape == matrix_shape(placed)
    other = params.copy()
    other.flat[:] = 7
    assert (params.flat == 1).all()


@pytest.mark.parametrize(
    "flat", [np.zeros(3, np.float32), np.zeros(Params(NET).flat.size), np.zeros((1, Params(NET).flat.size), np.float32)]
)
def test_a_vector_of_another_network_is_refused(flat: np.ndarray) -> None:
    with pytest.raises(UsageError, match="float32 parameters"):
        Params(NET, flat)


@pytest.mark.parametrize(
    ("trunk", "heads"),
    [
        ((), ()),
        (((Dense(3),),), ()),
        (((),), ((),)),
        (((Dense(3),),), ((Relu(),),)),
        (((Conv(3, 9),),), ((),)),
        (((Dense(3), Conv(3, 1)),), ((),)),
        (((MaxPool(8, 1),),), ((),)),
    ],
)
def test_a_network_that_cannot_be_laid_out_is_refused(trunk: tuple[object, ...], heads: tuple[object, ...]) -> None:
    with pytest.raises(UsageError):
        stages(NetSpec((8, 7, 3), 2, trunk=trunk, heads=heads))


@pytest.mark.parametrize(
    "obs", [np.zeros((2, 7, 8, 3), np.uint8), np.zeros((2, 8, 7, 3), np.float32), np.zeros((8, 7, 3), np.uint8)]
)
def test_observations_of_another_kind_are_refused(obs: np.ndarray) -> None:
    with pytest.raises(UsageError):
        forward(Params(NET), obs)


@pytest.mark.parametrize("exits", [(), (3,), (-1,), (0, 5)])
def test_exits_that_are_not_there_are_refused(exits: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="exits"):
        forward(Params(NET), np.zeros((1, 8, 7, 3), np.uint8), exits=exits)


def test_initialise_is_seeded_and_starts_without_a_favourite() -> None:
    one, two = (initialise(NET, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one.flat, two.flat)
    assert np.abs(one.views["h2.out.w"]).max() <= 0.1 * np.sqrt(3 / 9) + 1e-7
    assert not any(view.any() for name, view in one.views.items() if name.endswith(".b"))


def test_without_exits_the_network_says_the_same_and_costs_less() -> None:
    params, obs = net()
    alone = strip_exits(params)
    assert alone.spec == without_exits(NET)
    np.testing.assert_array_equal(forward(alone, obs)[0], forward(params, obs)[2])
    assert ops(alone.spec)[0] < ops(NET)[2]
    assert macs(without_exits(NET, 0)) == macs(NET)[:1]
    with pytest.raises(UsageError, match="exit 3"):
        without_exits(NET, 3)
