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


@pytest.mark.usefixtures("half")
def test_bias_and_relu_of_known_rows():
    y = np.array([[-3, -0.0, 1], [np.nan, 2, -1]], np.float32)
    plain = y.copy()
    kernels.add_bias(plain, np.array([1, 0, -1], np.float32), relu=False)
    np.testing.assert_array_equal(plain, [[-2, 0, 0], [np.nan, 2, -2]])
    kernels.add_bias(y, np.array([1, 0, 1], np.float32), relu=True)
    np.testing.assert_array_equal(y, [[0, 0, 2], [np.nan, 2, 0]])
    assert not np.signbit(y).any()
    dy = np.full((2, 3), 7, np.float32)
    kernels.relu_backward(dy, y)
    np.testing.assert_array_equal(dy, [[0, 0, 7], [0, 7, 0]])


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
