from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import quant
from edgert.errors import ArtifactError, UsageError
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, forward, initialise

SMALL = NetSpec((6, 6, 2), 3, trunk=((Conv(4, 3), Relu()), (Dense(8), Relu())), heads=((MaxPool(2, 2),), ()))
# A convolution without ReLU, ReLUs after a pooling and at a stage's start, a hidden head layer, padding and stride.
ODD = NetSpec(
    (9, 7, 3),
    2,
    trunk=((Conv(4, 3, 2, 1), MaxPool(2, 1), Relu(), Conv(5, 2)), (Relu(), Conv(3, 1), Relu()), (Dense(6),)),
    heads=((Dense(7), Relu()), (), (Dense(5),)),
    input_scale=1 / 255,
)
ONE = NetSpec((1, 1, 5), 4, trunk=((Dense(6), Relu()),), heads=((),))


def make(spec: NetSpec, seed: int, n: int = 64) -> tuple[Params, np.ndarray]:
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    for name, view in params.views.items():
        if name.endswith(".b"):
            view[:] = rng.normal(0, 0.1, view.shape)
    return params, rng.integers(0, 256 if spec.input_scale < 1 else 2, (n, *spec.input_shape)).astype(np.uint8)


@pytest.mark.parametrize("spec", [SMALL, ODD, ONE])
def test_the_integer_network_follows_the_float_network(spec: NetSpec) -> None:
    params, obs = make(spec, 0)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    whole, rounded = forward(params, obs), quant.forward(spec, tensors, obs)
    assert rounded.keys() == whole.keys()
    for k, head in whole.items():
        assert rounded[k].dtype == np.float32
        assert np.abs(rounded[k] - head).max() < 0.05 * np.abs(head).max()


@pytest.mark.parametrize("spec", [SMALL, ODD, ONE])
def test_quantize_gives_exactly_the_tensors_of_the_layout(spec: NetSpec) -> None:
    params, obs = make(spec, 1)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == quant.layout(spec)


def test_calibration_covers_every_rounded_activation_and_nothing_is_negative_after_a_relu() -> None:
    params, obs = make(SMALL, 2)
    ranges = quant.calibrate(params, obs, batch=7)
    assert set(ranges) == {"t0.0", "t1.0"}
    assert all(low >= 0 for low, _ in ranges.values())
    features = np.maximum(forward_features(params, obs), 0)
    assert ranges["t0.0"] == pytest.approx((features.min(), features.max()), rel=1e-6)
    assert quant.calibrate(params, obs[:8])["t0.0"][1] <= ranges["t0.0"][1]


def forward_features(params: Params, obs: np.ndarray) -> np.ndarray:
    weight, bias = params.views["t0.0.w"].reshape(3, 3, 2, 4), params.views["t0.0.b"]
    windows = np.lib.stride_tricks.sliding_window_view(obs.astype(np.float32), (3, 3), axis=(1, 2))
    return np.asarray(np.einsum("bijckl,klco->bijo", windows, weight) + bias)


def by_hand(spec: NetSpec, tensors: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """SMALL's last exit in plain Python integers, one observation."""
    w, b = tensors["t0.0.w"].astype(int), tensors["t0.0.b"].astype(int)
    scale = tensors["t0.0.x.scale"] * tensors["t0.0.w.scale"] / tensors["t0.0.y.scale"]
    hidden = np.zeros((4, 4, 4), int)
    for i in range(4):
        for j in range(4):
            for o in range(4):
                total = int((x[i : i + 3, j : j + 3].transpose(2, 0, 1).astype(int) * w[o]).sum()) + b[o]
                hidden[i, j, o] = min(max(round(float(np.float32(total) * scale[o])), 0), 255)
    sums = hidden.reshape(-1) @ tensors["t1.0.w"].astype(int) + tensors["t1.0.b"]
    scale = tensors["t1.0.x.scale"] * tensors["t1.0.w.scale"] / tensors["t1.0.y.scale"]
    hidden = np.clip([round(float(np.float32(s) * c)) for s, c in zip(sums, scale, strict=True)], 0, 255)
    sums = hidden @ tensors["h1.out.w"].astype(int) + tensors["h1.out.b"]
    return np.asarray(sums.astype(np.float32) * (tensors["h1.out.x.scale"] * tensors["h1.out.w.scale"]))


def test_the_reference_is_integer_arithmetic_to_the_last_bit() -> None:
    params, obs = make(SMALL, 3)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    heads = quant.forward(SMALL, tensors, obs)
    for i in range(16):
        assert np.array_equal(heads[1][i], by_hand(SMALL, tensors, obs[i]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([SMALL, ODD]), st.data())
def test_one_observation_stops_where_its_confidence_first_suffices(
    seed: int, spec: NetSpec, data: st.DataObject
) -> None:
    params, obs = make(spec, seed, 4)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    heads = quant.forward(spec, tensors, obs)
    thresholds = np.array(
        [data.draw(st.sampled_from([-np.inf, np.inf, float(heads[k][0, -1])])) for k in range(spec.n_exits - 1)],
        np.float32,
    )
    net = quant.IntNet(spec, tensors)
    head, exit_ = net.first_sure(obs[:1], thresholds)
    sure = [bool(heads[k][0, -1] >= thresholds[k]) for k in range(spec.n_exits - 1)]
    assert exit_ == [*sure, True].index(True)
    assert np.array_equal(head, heads[exit_][0])
    assert net.counts == [1] * (exit_ + 1) + [0] * (spec.n_exits - 1 - exit_)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e35), st.floats(0, 1e35))
def test_any_finite_network_is_quantized_to_finite_heads_or_refused(seed: int, grown: float, biased: float) -> None:
    params, obs = make(SMALL, seed, 4)
    for name, view in params.views.items():
        view *= np.float32(biased if name.endswith(".b") else grown)
    assert np.isfinite(params.flat).all()
    try:
        heads = quant.forward(SMALL, quant.quantize(params, quant.calibrate(params, obs)), obs)
    except ArtifactError:
        return
    assert all(np.isfinite(head).all() for head in heads.values())


def test_a_dead_network_quantizes_to_its_biases() -> None:
    params = Params(SMALL)
    params.views["h1.out.b"][:] = [1, -2, 3, 4]
    obs = np.zeros((3, *SMALL.input_shape), np.uint8)
    ranges = quant.calibrate(params, obs)
    assert ranges["t0.0"] == (0, 0)
    heads = quant.forward(SMALL, quant.quantize(params, ranges), obs)
    assert heads[1] == pytest.approx(np.tile([1, -2, 3, 4], (3, 1)), rel=1e-6)
    assert not heads[0].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused_by_name(poison: float) -> None:
    params, obs = make(SMALL, 4)
    ranges = quant.calibrate(params, obs)
    params.views["t1.0.w"][0, 0] = poison
    with pytest.raises(ArtifactError, match=r"t1\.0\.w"):
        quant.quantize(params, ranges)


@pytest.mark.parametrize("wrong", [(0, np.nan), (0, np.inf), (-np.inf, 1), (2, 1), None])
def test_ranges_that_are_no_ranges_are_refused_by_name(wrong: tuple[float, float] | None) -> None:
    params, obs = make(SMALL, 5)
    ranges = quant.calibrate(params, obs)
    del ranges["t0.0"]
    with pytest.raises(ArtifactError, match=r"t0\.0"):
        quant.quantize(params, ranges if wrong is None else {**ranges, "t0.0": wrong})


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    params, obs = make(SMALL, 6)
    tensors = quant.quantize(params, quant.calibrate(params, obs))
    for name in tensors:
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            quant.IntNet(SMALL, {k: v for k, v in tensors.items() if k != name})
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            quant.IntNet(SMALL, {**tensors, name: tensors[name].astype(np.float64)})
    with pytest.raises(ArtifactError, match="not a positive"):
        quant.IntNet(SMALL, {**tensors, "t0.0.y.scale": np.array(0, np.float32)})


@pytest.mark.parametrize(
    "obs", [np.zeros((2, 6, 6, 3), np.uint8), np.zeros((2, 6, 6, 2), np.float32), np.zeros((6, 6, 2), np.uint8)]
)
def test_observations_of_another_kind_are_refused(obs: np.ndarray) -> None:
    params, good = make(SMALL, 7)
    tensors = quant.quantize(params, quant.calibrate(params, good))
    with pytest.raises(UsageError):
        quant.forward(SMALL, tensors, obs)
    with pytest.raises(UsageError):
        quant.calibrate(params, obs)
    with pytest.raises(UsageError):
        quant.calibrate(params, good[:0])


@pytest.mark.parametrize("spec", [SMALL, ODD, ONE])
def test_many_observations_go_in_parts_and_give_the_same(spec: NetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    params, obs = make(spec, 5)
    network = quant.IntNet(spec, quant.fit(params, obs).tensors)
    whole = network.heads(obs)
    monkeypatch.setattr(quant, "_COLUMN_BYTES", 1)
    for k, head in network.heads(obs).items():
        assert np.array_equal(head, whole[k])


def test_fitting_takes_out_the_shift_that_rounding_adds_to_each_output() -> None:
    rng = np.random.default_rng(5)
    params = initialise(SMALL, rng)
    for name, view in params.views.items():
        if name.endswith("out.w"):
            view += 0.5  # values far from zero with small differences: what a discounted return looks like
    obs = rng.integers(0, 2, (256, *SMALL.input_shape)).astype(np.uint8)
    fitted = quant.fit(params, obs)
    assert fitted.ranges == quant.calibrate(params, obs)
    rounded = quant.quantize(params, fitted.ranges)
    wanted = forward(params, obs)
    for k, exact in wanted.items():
        shift = np.abs((exact - quant.forward(SMALL, fitted.tensors, obs)[k]).mean(0))
        before = np.abs((exact - quant.forward(SMALL, rounded, obs)[k]).mean(0))
        assert shift.max() < 0.05 * before.max() + 1e-5
    assert {name for name in rounded if not np.array_equal(rounded[name], fitted.tensors[name])} <= {
        f"h{k}.out.b" for k in wanted
    }
