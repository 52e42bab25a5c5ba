"""What the kernels refuse before they touch memory: the C half checks nothing by itself."""

from __future__ import annotations

import numpy as np
import pytest

from edgert import kernels
from edgert.errors import UsageError


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
    call = {**vectors, "step": 1, "lr": 1e-3, **change}
    with pytest.raises(UsageError, match=words):
        kernels.adam(call.pop("params"), call.pop("grads"), call.pop("m"), call.pop("v"), **call)
    assert all((vector == 0.5).all() for vector in vectors.values())


@pytest.mark.usefixtures("half")
def test_a_read_only_input_is_fine():
    x, grads = readonly(np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)), readonly(np.arange(8, dtype=np.float32))
    cols = readonly(kernels.im2col(x, 2, 2, 0))
    np.testing.assert_array_equal(kernels.col2im(cols, x.shape, 2, 2, 0), x)
    kernels.maxpool(x, 2, 2)
    kernels.adam(*(a.copy() if a is not grads else a for a in (grads * 2, grads, grads * 0, grads * 0)), step=1, lr=0.1)


@pytest.mark.usefixtures("half")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": IMAGE.astype(np.uint8)}, "x has dtype"),
        ({"weight": np.zeros((3, 26), np.float32)}, "weight has shape"),
        ({"weight": np.zeros((27, 3), np.float32).T}, "weight is not C-contiguous"),
        ({"dy": DY[:1]}, "same batch size"),
        ({"dy": DY[..., :0]}, "some channels"),
        ({"argmax": ARGMAX[..., :2]}, "argmax has shape"),
        ({"argmax": with_last(-1)}, "argmax points outside"),
        ({"argmax": with_last(4 * 4 * 3)}, "argmax points outside"),
        ({"kernel": 7}, "kernel is 7"),
        ({"padding": 3}, "padding is 3"),
    ],
)
def test_pooled_conv_backward_refuses(change, words):
    call = {"x": IMAGE, "weight": np.zeros((3, 27), np.float32), "dy": DY, "argmax": ARGMAX}
    with pytest.raises(UsageError, match=words):
        kernels.pooled_conv_backward(**{**call, "kernel": 3, "stride": 1, "padding": 0, **change})


@pytest.mark.usefixtures("half")
def test_add_bias_and_relu_backward_refuse():
    y, bias = np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
    frozen = y.copy()
    frozen.flags.writeable = False
    for one, other, words in [
        (y[0], bias, "y has shape"),
        (y.astype(np.float64), bias, "y has dtype"),
        (frozen, bias, "y is read-only"),
        (y, bias[:2], "bias has shape"),
        (y, y[1], "y and bias share"),
    ]:
        with pytest.raises(UsageError, match=words):
            kernels.add_bias(one, other, relu=True)
    for one, other, words in [
        (y, y[:1], "y has shape"),
        (y[:, ::2], y[:, ::2], "dy is not C-contiguous"),
        (y, y, "dy and y share"),
        (y, y.astype(np.float16), "y has dtype"),
    ]:
        with pytest.raises(UsageError, match=words):
            kernels.relu_backward(one, other)
