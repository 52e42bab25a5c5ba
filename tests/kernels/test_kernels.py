from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgert import kernels
from edgert.errors import UsageError
from edgert.kernels import _twin

needs_native = pytest.mark.skipif(not kernels.NATIVE, reason="the C extension is not in use: nothing to compare")

SCALARS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


@st.composite
def windows(draw, padded=True):
    """(shape, kernel, stride, padding) of a window that fits."""
    kernel = draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel - 1)) if padded else 0
    low = max(1, kernel - 2 * padding)
    b, h, w, c = (draw(st.integers(a, z)) for a, z in ((0, 3), (low, 11), (low, 11), (1, 9)))
    return (b, h, w, c), kernel, draw(st.integers(1, 6)), padding


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def edges(shape, kernel, stride, padding):
    return tuple((edge + 2 * padding - kernel) // stride + 1 for edge in shape[1:3])


def same_bits(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


# The C half against its twin


@needs_native
@settings(max_examples=150, deadline=None)
@given(windows(), st.integers(0, 2**32 - 1))
def test_im2col_equals_twin(window, seed):
    shape, kernel, stride, padding = window
    x = normal(shape, seed)
    got = kernels.im2col(x, kernel, stride, padding, np.full_like(kernels.im2col(x, kernel, stride, padding), np.nan))
    want = np.full_like(got, np.nan)
    _twin.im2col(want, x, 1.0, kernel, stride, padding, *edges(shape, kernel, stride, padding))
    same_bits(got, want)


@needs_native
@settings(max_examples=150, deadline=None)
@given(windows(), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 1 / 255, 0.3]))
def test_im2col_of_bytes_equals_twin(window, seed, scale):
    shape, kernel, stride, padding = window
    x = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    got = kernels.im2col(x, kernel, stride, padding, scale=scale)
    want = np.full_like(got, np.nan)
    _twin.im2col(want, x, scale, kernel, stride, padding, *edges(shape, kernel, stride, padding))
    same_bits(got, want)


@needs_native
@settings(max_examples=150, deadline=None)
@given(windows(), st.integers(0, 2**32 - 1))
def test_col2im_equals_twin(window, seed):
    shape, kernel, stride, padding = window
    oh, ow = edges(shape, kernel, stride, padding)
    cols = normal((shape[0] * oh * ow, kernel * kernel * shape[3]), seed)
    got = kernels.col2im(cols, shape, kernel, stride, padding, np.full(shape, np.nan, np.float32))
    want = np.full(shape, np.nan, np.float32)
    _twin.col2im(want, cols, kernel, stride, padding, oh, ow)
    same_bits(got, want)


@needs_native
@settings(max_examples=150, deadline=None)
@given(windows(padded=False), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.7]))
def test_maxpool_equals_twin(window, seed, special_frac):
    shape, kernel, stride, _ = window
    rng = np.random.default_rng(seed)
    x = np.round(normal(shape, seed))  # ties
    chosen = rng.random(shape) < special_frac
    x[chosen] = rng.choice(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32), int(chosen.sum()))
    y, argmax = kernels.maxpool(x, kernel, stride)
    want_y, want_argmax = np.zeros_like(y), np.zeros_like(argmax)
    _twin.maxpool(want_y, want_argmax, x, kernel, stride)
    same_bits(y, want_y)
    same_bits(argmax, want_argmax)

    dy = normal(y.shape, seed)
    want_dx = np.full(shape, np.nan, np.float32)
    assert _twin.maxpool_backward(want_dx, dy, argmax)
    same_bits(kernels.maxpool_backward(dy, argmax, shape), want_dx)


@needs_native
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300) | st.sampled_from([16383, 16384, 16385, 40000]),
    st.integers(0, 2**32 - 1),
    st.floats(-42, 15),
    st.integers(1, 10**6),
    st.sampled_from([1.0, 0.37]),
)
def test_adam_equals_twin(n, seed, magnitude, first, scale):
    rng = np.random.default_rng(seed)
    # From subnormal squares to overflowing ones: where a flush to zero or a fused operation would show.
    grads = [(rng.standard_normal(n) * 10.0 ** (magnitude + rng.uniform(-5, 5))).astype(np.float32) for _ in range(3)]
    got = [normal(n, seed), np.zeros(n, np.float32), np.zeros(n, np.float32)]
    want = [a.copy() for a in got]
    for i, g in enumerate(grads):
        kernels.adam(got[0], g, got[1], got[2], step=first + i, scale=scale, **SCALARS)
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(kernels, "_native", None)
            kernels.adam(want[0], g, want[1], want[2], step=first + i, scale=scale, **SCALARS)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.array_equal(np.signbit(one), np.signbit(other)) or np.isnan(one).any()


@st.composite
def pooled_convs(draw):
    """A convolution with pooling behind it: (x, weight, dy, argmax), (kernel, stride, padding)."""
    (b, h, w, c), kernel, stride, padding = draw(windows())
    n, seed = draw(st.integers(1, 20)), draw(st.integers(0, 2**32 - 1))
    oh, ow = edges((b, h, w, c), kernel, stride, padding)
    x, weight = normal((b, h, w, c), seed), normal((n, kernel * kernel * c), seed + 1)
    sums = (kernels.im2col(x, kernel, stride, padding) @ weight.T).reshape(b, oh, ow, n)
    y, argmax = kernels.maxpool(sums, draw(st.integers(1, min(oh, ow, 3))), draw(st.integers(1, 3)))
    dy = normal(y.shape, seed + 2)
    dy[np.random.default_rng(seed).random(dy.shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0
    return (x, weight, dy, argmax), (kernel, stride, padding)


@needs_native
@settings(max_examples=80, deadline=None)
@given(pooled_convs())
def test_pooled_conv_backward_equals_twin(case):
    (x, weight, dy, argmax), window = case
    dw, dx = kernels.pooled_conv_backward(x, weight, dy, argmax, *window)
    want_dw, want_dx = np.full_like(dw, np.nan), np.full_like(dx, np.nan)
    places = edges(x.shape, *window)
    assert _twin.pooled_conv_backward(want_dw, want_dx, x, weight, dy, argmax, *window, *places)
    same_bits(dw, want_dw)
    same_bits(dx, want_dx)


@needs_native
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 9), st.integers(1, 70), st.integers(0, 2**32 - 1), st.booleans())
def test_add_bias_and_relu_backward_equal_twin(rows, n, seed, relu):
    rng = np.random.default_rng(seed)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
    y, bias, dy = normal((rows, n), seed), normal(n, seed + 1), normal((rows, n), seed + 2)
    for array in (y, bias, dy):
        chosen = rng.random(array.shape) < 0.3
        array[chosen] = rng.choice(special, int(chosen.sum()))
    want, want_dy = y.copy(), dy.copy()
    with np.errstate(invalid="ignore"):
        _twin.add_bias(want, bias, relu)
        _twin.relu_backward(want_dy, want)
    kernels.add_bias(y, bias, relu=relu)
    kernels.relu_backward(dy, y)
    np.testing.assert_array_equal(y, want)  # which NaN a sum of two is, nobody promises
    assert (np.signbit(y) == np.signbit(want))[~np.isnan(want)].all()
    np.testing.assert_array_equal(dy, want_dy)
    assert (np.signbit(dy) == np.signbit(want_dy))[~np.isnan(want_dy)].all()


# Either half against mathematics; both halves run where both exist


@pytest.fixture(params=["native", "twin"])
def half(request, monkeypatch):
    if request.param == "twin":
        monkeypatch.setattr(kernels, "_native", None)
    elif not kernels.NATIVE:
        pytest.skip("the C extension is not in use")


@pytest.mark.usefixtures("half")
def test_im2col_of_a_known_image():
    x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    assert kernels.im2col(x, 2, 1, 0).tolist() == [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    assert kernels.im2col(x, 2, 2, 1).tolist() == [[0, 0, 0, 0], [0, 0, 1, 2], [0, 3, 0, 6], [4, 5, 7, 8]]
    np.testing.assert_array_equal(
        kernels.im2col(x.astype(np.uint8), 2, 1, 0, scale=0.5), kernels.im2col(x, 2, 1, 0) / 2
    )


@pytest.mark.usefixtures("half")
def test_results_are_written_into_out():
    x = normal((2, 5, 5, 3))
    cols = np.empty((2 * 9, 27), np.float32)
    assert kernels.im2col(x, 3, 1, 0, cols) is cols
    image = np.full(x.shape, np.nan, np.float32)
    assert kernels.col2im(cols, x.shape, 3, 1, 0, image) is image
    y, argmax = np.full((2, 2, 2, 3), np.nan, np.float32), np.full((2, 2, 2, 3), -1, np.int32)
    found = kernels.maxpool(x, 2, 2, y, argmax)
    assert found[0] is y and found[1] is argmax
    back = np.full(x.shape, np.nan, np.float32)
    assert kernels.maxpool_backward(y, argmax, x.shape, back) is back
    assert np.isclose(back.sum(), y.sum(), rtol=1e-4)
    covers = kernels.col2im(np.ones_like(cols), x.shape, 3, 1, 0)
    np.testing.assert_allclose(image, x * covers, rtol=1e-6)


@pytest.mark.parametrize("native", [True, False])
@settings(max_examples=80, deadline=None)
@given(window=windows(), seed=st.integers(0, 2**32 - 1))
def test_col2im_is_the_adjoint_of_im2col(native, window, seed):
    if native and not kernels.NATIVE:
        pytest.skip("the C extension is not in use")
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr(kernels, "_native", None)
        shape, kernel, stride, padding = window
        x = normal(shape, seed)
        cols = kernels.im2col(x, kernel, stride, padding)
        y = normal(cols.shape, seed + 1)
        image = kernels.col2im(y, shape, kernel, stride, padding)
    left = np.sum(cols.astype(np.float64) * y)
    right = np.sum(x.astype(np.float64) * image)
    bound = 1e-5 * (1 + np.sum(np.abs(cols.astype(np.float64) * y)))
    assert abs(left - right) <= bound


@pytest.mark.usefixtures("half")
def test_first_maximum_wins_and_backward_returns_to_it():
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, 1, 0, 0] = x[0, 1, 1, 0] = 3
    y, argmax = kernels.maxpool(x, 2, 2)
    assert y.ravel().tolist() == [3, 0]
    assert argmax.ravel().tolist() == [4, 2]
    dx = kernels.maxpool_backward(np.array([5, 7], np.float32).reshape(1, 1, 2, 1), argmax, (1, 2, 4, 1))
    assert dx.ravel().tolist() == [0, 0, 7, 0, 5, 0, 0, 0]


@pytest.mark.usefixtures("half")
def test_maxpool_backward_sums_shared_maxima():
    x = np.zeros((2, 3, 3, 2), np.float32)
    x[:, 1, 1] = 1
    y, argmax = kernels.maxpool(x, 2, 1)
    dx = kernels.maxpool_backward(np.ones_like(y), argmax, x.shape)
    np.testing.assert_array_equal(dx, 4 * x)


@pytest.mark.usefixtures("half")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pooled_convs())
def test_pooled_conv_backward_is_the_product_with_the_scattered_gradient(case):
    (x, weight, dy, argmax), window = case
    dw, dx = kernels.pooled_conv_backward(x, weight, dy, argmax, *window)
    n = len(weight)
    rows = kernels.maxpool_backward(dy, argmax, (len(x), *edges(x.shape, *window), n)).reshape(-1, n)
    np.testing.assert_allclose(dw, rows.T @ kernels.im2col(x, *window), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, kernels.col2im(rows @ weight, x.shape, *window), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("half")
def test_adam_scales_the_gradient():
    g = normal(50)
    one, other = ([normal(50, 1), np.zeros(50, np.float32), np.zeros(50, np.float32)] for _ in range(2))
    kernels.adam(one[0], g, *one[1:], step=1, scale=0.25, **SCALARS)
    kernels.adam(other[0], g * np.float32(0.25), *other[1:], step=1, **SCALARS)
    for got, want in zip(one, other, strict=True):
        same_bits(got, want)


@pytest.mark.usefixtures("half")
def test_first_adam_step_moves_by_the_learning_rate():
    params, m, v = np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
    kernels.adam(params, np.array([-2, 0, 1e-3], np.float32), m, v, step=1, lr=0.1)
    np.testing.assert_allclose(params, [0.1, 0, -0.1], rtol=1e-4)
    np.testing.assert_allclose(m, [-0.2, 0, 1e-4], rtol=1e-6)
    np.testing.assert_allclose(v, [4e-3, 0, 1e-9], rtol=1e-4)


# PyTorch as the oracle


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("shape, kernel, stride, padding", [((2, 10, 10, 4), 3, 1, 1), ((3, 9, 12, 5), 4, 3, 0)])
def test_im2col_and_col2im_as_torch(shape, kernel, stride, padding):
    torch = pytest.importorskip("torch")
    b, h, w, c = shape
    x = normal(shape)
    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    unfolded = torch.nn.functional.unfold(nchw, kernel, padding=padding, stride=stride)  # (b, c*k*k, oh*ow)
    want = unfolded.reshape(b, c, kernel * kernel, -1).permute(0, 3, 2, 1).reshape(-1, kernel * kernel * c).numpy()
    cols = kernels.im2col(x, kernel, stride, padding)
    np.testing.assert_array_equal(cols, want)
    folded = torch.nn.functional.fold(unfolded, (h, w), kernel, padding=padding, stride=stride)
    got = kernels.col2im(cols, shape, kernel, stride, padding)
    np.testing.assert_allclose(got, folded.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize("shape, kernel, stride", [((2, 10, 10, 4), 2, 2), ((3, 9, 12, 5), 3, 2), ((1, 7, 7, 3), 2, 3)])
def test_maxpool_as_torch(shape, kernel, stride):
    torch = pytest.importorskip("torch")
    x = np.round(normal(shape))  # ties
    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    want, flat = torch.nn.functional.max_pool2d(nchw, kernel, stride, return_indices=True)
    y, argmax = kernels.maxpool(x, kernel, stride)
    np.testing.assert_array_equal(y, want.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(argmax // shape[3], flat.numpy().transpose(0, 2, 3, 1))
    dy = normal(y.shape)
    want.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    dx = kernels.maxpool_backward(dy, argmax, shape)
    np.testing.assert_allclose(dx, nchw.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("half")
def test_adam_as_torch():
    torch = pytest.importorskip("torch")
    params, m, v = normal(1000), np.zeros(1000, np.float32), np.zeros(1000, np.float32)
    tensor = torch.from_numpy(params.copy()).requires_grad_()
    optimizer = torch.optim.Adam([tensor], lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    for step in range(1, 51):
        grads = normal(1000, step)
        tensor.grad = torch.from_numpy(grads.copy())
        optimizer.step()
        kernels.adam(params, grads, m, v, step=step, **SCALARS)
    np.testing.assert_allclose(params, tensor.detach().numpy(), rtol=0, atol=1e-6)


# The contract


def readonly(array):
    array.flags.writeable = False
    return array


def misaligned(shape):
    count = int(np.prod(shape))
    array = np.zeros(4 * count + 1, np.uint8)[1:].view(np.float32).reshape(shape)
    assert not array.flags.aligned
    return array


IMAGE = np.zeros((2, 6, 6, 3), np.float32)
COLS = np.zeros((2 * 4 * 4, 27), np.float32)
SHARED = np.zeros(4096, np.float32)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    "x, kernel, stride, padding, options, words",
    [
        ([[1.0]], 3, 1, 0, {}, "x is a list"),
        (IMAGE.astype(np.float64), 3, 1, 0, {}, "x has dtype float64"),
        (IMAGE.astype(">f4"), 3, 1, 0, {}, "x has dtype >f4"),
        (IMAGE[0], 3, 1, 0, {}, "x has shape"),
        (IMAGE[:, ::2], 3, 1, 0, {}, "x is not C-contiguous"),
        (np.asfortranarray(IMAGE), 3, 1, 0, {}, "x is not C-contiguous"),
        (misaligned(IMAGE.shape), 3, 1, 0, {}, "aligned"),
        (np.zeros((1, 6, 6, 0), np.float32), 3, 1, 0, {}, r"x\[3\] is 0"),
        (IMAGE, 0, 1, 0, {}, "kernel is 0"),
        (IMAGE, 40000, 1, 0, {}, "kernel is 40000"),
        (IMAGE, 3.0, 1, 0, {}, "kernel is 3.0"),
        (IMAGE, 7, 1, 0, {}, "kernel is 7, but the image is 6x6"),
        (IMAGE, 3, 0, 0, {}, "stride is 0"),
        (IMAGE, 3, "1", 0, {}, "stride is '1'"),
        (IMAGE, 3, 1, -1, {}, "padding is -1"),
        (IMAGE, 3, 1, 3, {}, "padding is 3"),
        (IMAGE, 3, 1, 0, {"scale": 0.5}, "scale is 0.5 but x is float32"),
        (IMAGE.astype(np.uint8), 3, 1, 0, {"scale": 0.0}, "scale is 0.0"),
        (IMAGE.astype(np.uint8), 3, 1, 0, {"scale": float("nan")}, "scale is nan"),
        (IMAGE.astype(np.uint8), 3, 1, 0, {"scale": "half"}, "scale is 'half'"),
        (IMAGE, 3, 1, 0, {"out": COLS[:-1]}, "out has shape"),
        (IMAGE, 3, 1, 0, {"out": COLS.astype(np.float64)}, "out has dtype"),
        (IMAGE, 3, 1, 0, {"out": np.asfortranarray(COLS)}, "out is not C-contiguous"),
        (IMAGE, 3, 1, 0, {"out": readonly(COLS.copy())}, "out is read-only"),
        (SHARED[:216].reshape(2, 6, 6, 3), 3, 1, 0, {"out": SHARED[215:1079].reshape(32, 27)}, "x and out share"),
    ],
)
def test_im2col_refuses(x, kernel, stride, padding, options, words):
    with pytest.raises(UsageError, match=words):
        kernels.im2col(x, kernel, stride, padding, **options)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    "cols, shape, kernel, stride, padding, out, words",
    [
        (None, IMAGE.shape, 3, 1, 0, None, "cols is a NoneType"),
        (COLS.astype(np.float16), IMAGE.shape, 3, 1, 0, None, "cols has dtype"),
        (COLS[1:], IMAGE.shape, 3, 1, 0, None, "cols has shape"),
        (np.asfortranarray(COLS), IMAGE.shape, 3, 1, 0, None, "cols is not C-contiguous"),
        (misaligned(COLS.shape), IMAGE.shape, 3, 1, 0, None, "aligned"),
        (COLS, (2, 6, 6), 3, 1, 0, None, "shape is"),
        (COLS, [2, 6, 6, 3], 3, 1, 0, None, "shape is"),
        (COLS, (2, 6, 6.0, 3), 3, 1, 0, None, r"shape\[2\] is 6.0"),
        (COLS, (-2, 6, 6, 3), 3, 1, 0, None, r"shape\[0\] is -2"),
        (COLS, (2, 2, 2, 3), 3, 1, 0, None, "image is 2x2"),
        (COLS, IMAGE.shape, 0, 1, 0, None, "kernel is 0"),
        (COLS, IMAGE.shape, 3, -1, 0, None, "stride is -1"),
        (COLS, IMAGE.shape, 3, 1, 5, None, "padding is 5"),
        (COLS, IMAGE.shape, 3, 1, 0, IMAGE[:1], "out has shape"),
        (COLS, IMAGE.shape, 3, 1, 0, IMAGE.astype(np.uint8), "out has dtype"),
        (COLS, IMAGE.shape, 3, 1, 0, readonly(IMAGE.copy()), "out is read-only"),
        (SHARED[:864].reshape(32, 27), IMAGE.shape, 3, 1, 0, SHARED[863:1079].reshape(IMAGE.shape), "share memory"),
    ],
)
def test_col2im_refuses(cols, shape, kernel, stride, padding, out, words):
    with pytest.raises(UsageError, match=words):
        kernels.col2im(cols, shape, kernel, stride, padding, out)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    "x, kernel, stride, words",
    [
        (3, 2, 2, "x is a int"),
        (IMAGE.astype(np.uint8), 2, 2, "x has dtype uint8"),
        (IMAGE[0], 2, 2, "x has shape"),
        (IMAGE[..., :2], 2, 2, "x is not C-contiguous"),
        (misaligned(IMAGE.shape), 2, 2, "aligned"),
        (IMAGE, 0, 2, "kernel is 0"),
        (IMAGE, 7, 2, "kernel is 7"),
        (IMAGE, 2, 0, "stride is 0"),
        (IMAGE, 2, None, "stride is None"),
    ],
)
def test_maxpool_refuses(x, kernel, stride, words):
    with pytest.raises(UsageError, match=words):
        kernels.maxpool(x, kernel, stride)


def test_maxpool_refuses_an_image_that_int32_cannot_index():
    with pytest.raises(UsageError, match="fewer than"):
        kernels.maxpool_backward(IMAGE, IMAGE.astype(np.int32), (2, 2**16, 2**15, 1))


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": np.zeros((2, 2, 2, 3), np.float32)}, "y has shape"),
        ({"argmax": np.zeros((2, 3, 3, 3), np.int64)}, "argmax has dtype"),
        ({"y": readonly(np.zeros((2, 3, 3, 3), np.float32))}, "y is read-only"),
        ({"y": SHARED[:54].reshape(2, 3, 3, 3), "x": SHARED[:216].reshape(IMAGE.shape)}, "x and y share"),
    ],
)
def test_maxpool_checks_where_it_writes(change, words):
    call = {"x": IMAGE, "kernel": 2, "stride": 2, **change}
    with pytest.raises(UsageError, match=words):
        kernels.maxpool(**call)


DY = np.zeros((2, 3, 3, 3), np.float32)
ARGMAX = np.zeros((2, 3, 3, 3), np.int32)


def with_last(index):
    argmax = ARGMAX.copy()
    argmax[-1, -1, -1, -1] = index
    return argmax


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    "dy, argmax, shape, words",
    [
        (None, ARGMAX, IMAGE.shape, "dy is a NoneType"),
        (DY.astype(np.float64), ARGMAX, IMAGE.shape, "dy has dtype"),
        (DY[0], ARGMAX, IMAGE.shape, "dy has shape"),
        (DY[:, ::-1], ARGMAX, IMAGE.shape, "dy is not C-contiguous"),
        (DY, ARGMAX.astype(np.int64), IMAGE.shape, "argmax has dtype"),
        (DY, ARGMAX[:, :2], IMAGE.shape, "argmax has shape"),
        (DY, ARGMAX[:, ::-1], IMAGE.shape, "argmax is not C-contiguous"),
        (DY, ARGMAX, (3, 6, 6, 3), "same batch size"),
        (DY, ARGMAX, (2, 6, 6), "shape is"),
        (DY, with_last(-1), IMAGE.shape, "argmax points outside"),
        (DY, with_last(6 * 6 * 3), IMAGE.shape, "argmax points outside"),
    ],
)
def test_maxpool_backward_refuses(dy, argmax, shape, words):
    with pytest.raises(UsageError, match=words):
        kernels.maxpool_backward(dy, argmax, shape)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    "change, words",
    [
        ({"params": [0.0] * 8}, "params is a list"),
        ({"params": np.zeros((2, 4), np.float32)}, "params has shape"),
        ({"params": np.zeros(8)}, "params has dtype"),
        ({"params": readonly(np.zeros(8, np.float32))}, "params is read-only"),
        ({"params": np.zeros(16, np.float32)[::2]}, "params is not C-contiguous"),
        ({"params": misaligned(8)}, "aligned"),
        ({"grads": np.zeros(7, np.float32)}, "grads has shape"),
        ({"grads": np.zeros(8, np.int32)}, "grads has dtype"),
        ({"m": np.zeros(9, np.float32)}, "m has shape"),
        ({"m": readonly(np.zeros(8, np.float32))}, "m is read-only"),
        ({"v": np.zeros((8, 1), np.float32)}, "v has shape"),
        ({"v": readonly(np.zeros(8, np.float32))}, "v is read-only"),
        ({"m": SHARED[:8], "v": SHARED[7:15]}, "m and v share"),
        ({"params": SHARED[7:15], "grads": SHARED[:8]}, "params and grads share"),
        ({"params": SHARED[:8], "v": SHARED[:8]}, "params and v share"),
        ({"step": 0}, "step is 0"),
        ({"step": 1.0}, "step is 1.0"),
        ({"lr": -1e-3}, "lr is -0.001"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"beta1": 1.0}, "beta1 is 1.0"),
        ({"beta1": -0.1}, "beta1 is -0.1"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": None}, "eps is None"),
        ({"scale": -1.0}, "scale is -1.0"),
    ],
)
def test_adam_refuses_and_changes_nothing(change, words):
    vectors = {name: np.full(8, 0.5, np.float32) for name in ("params", "grads", "m", "v")}
    call = {**vectors, "step": 1, **SCALARS, **change}
    with pytest.raises(UsageError, match=words):
        kernels.adam(call.pop("params"), call.pop("grads"), call.pop("m"), call.pop("v"), **call)
    assert all((vector == 0.5).all() for vector in vectors.values())


@pytest.mark.usefixtures("half")
def test_a_read_only_input_is_fine():
    x, grads = readonly(normal((1, 4, 4, 2))), readonly(normal(8))
    cols = readonly(kernels.im2col(x, 2, 2, 0))
    np.testing.assert_array_equal(kernels.col2im(cols, x.shape, 2, 2, 0), x)
    kernels.maxpool(x, 2, 2)
    kernels.adam(*(a.copy() if a is not grads else a for a in (grads * 2, grads, grads * 0, grads * 0)), step=1, lr=0.1)


# Which half serves


def in_new_process(code, choice=None):
    environment = {name: value for name, value in os.environ.items() if name != "EDGERT_KERNELS"}
    if choice is not None:
        environment["EDGERT_KERNELS"] = choice
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


BLOCKED = """
import sys, warnings
sys.modules["edgert.kernels._kernels"] = None  # an import of it now fails
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import edgert.kernels
    import edgert.kernels
for warning in caught:
    if "edgert" in str(warning.message):
        print(warning.category.__name__, warning.message)
import numpy as np
print(edgert.kernels.NATIVE, edgert.kernels.im2col(np.ones((1, 2, 2, 1), np.float32), 2, 1, 0).sum())
"""


def test_a_missing_extension_warns_once_and_the_twin_serves():
    done = in_new_process(BLOCKED)
    assert done.returncode == 0, done.stderr
    warning, result = done.stdout.splitlines()
    assert warning.startswith("RuntimeWarning edgert's C kernels are missing")
    assert "slower" in warning
    assert "install a C compiler and reinstall" in warning
    assert result == "False 4.0"


def test_the_environment_forces_the_twin_without_a_warning():
    done = in_new_process(BLOCKED, "numpy")
    assert done.stdout.splitlines() == ["False 4.0"], done.stderr


def test_an_unknown_choice_is_a_config_error():
    done = in_new_process("import edgert.kernels", "fortran")
    assert done.returncode != 0
    assert "ConfigError: environment variable EDGERT_KERNELS is 'fortran'" in done.stderr


@pytest.mark.skipif(os.environ.get("EDGERT_KERNELS") == "numpy", reason="EDGERT_KERNELS=numpy forces the twin")
def test_native_says_whether_the_extension_is_there():
    assert (importlib.util.find_spec("edgert.kernels._kernels") is not None) == kernels.NATIVE
