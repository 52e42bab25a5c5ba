"""The array loops of training and inference: windows, pooling, bias and ReLU, Adam. NHWC, float32, C-contiguous.

One small C extension does the work and releases the GIL; where it could not be built, a numpy twin gives the same bits
more slowly. `NATIVE` says which one serves. The environment variable EDGERT_KERNELS=numpy, read once at import, forces
the twin. All arguments are checked here, for both halves alike.
"""

from __future__ import annotations

import importlib
import itertools
import math
import operator
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgert.errors import ConfigError, UsageError
from edgert.kernels import _twin

__all__ = [
    "NATIVE",
    "adam",
    "add_bias",
    "col2im",
    "im2col",
    "maxpool",
    "maxpool_backward",
    "pooled_conv_backward",
    "relu_backward",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

_F32 = np.dtype(np.float32)
_I32 = np.dtype(np.int32)
_U8 = np.dtype(np.uint8)
_EDGE_MAX = 32767  # of a kernel, stride or padding: keeps every product of sizes far from overflow
_FLOAT_MIN, _FLOAT_MAX = 1e-37, 1e38  # float32 scalars inside are normal numbers


def _load() -> ModuleType | None:
    choice = os.environ.get("EDGERT_KERNELS", "")
    if choice == "numpy":
        return None
    if choice:
        raise ConfigError(f"environment variable EDGERT_KERNELS is {choice!r}: set it to 'numpy' or leave it unset")
    try:
        return importlib.import_module("edgert.kernels._kernels")
    except ImportError as error:
        warnings.warn(
            f"edgert's C kernels are missing ({error}): the numpy twin gives the same results, but learning is slower. "
            "To mend it, install a C compiler and reinstall edgert; to accept it, set EDGERT_KERNELS=numpy.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None


_native = _load()
NATIVE: bool = _native is not None
"""True when the C extension serves, False when its numpy twin does."""


def im2col(x: F32 | U8, kernel: int, stride: int, padding: int, out: F32 | None = None, *, scale: float = 1.0) -> F32:
    """Lay every convolution window out as a row, so that a convolution becomes one matrix product.

    Args:
        x: (B, H, W, C) float32 or uint8.
        kernel: edge of the square window, pixels.
        stride: step between windows, pixels.
        padding: zeros added on each side, pixels; smaller than kernel.
        out: (B*oh*ow, kernel*kernel*C) float32 to write into, or None for a new array; may not overlap x.
        scale: factor on uint8 values, positive (e.g. 1/255), dimensionless; must stay 1.0 when x is float32.

    Returns:
        (B*oh*ow, kernel*kernel*C) float32 with oh = (H + 2*padding - kernel) // stride + 1, ow alike; the columns run
        over (kh, kw, C). It is `out` where one was given.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, a number out of its range, a window larger than the
            image, an overlap of x and out.

    Source:
        Chellapilla, Puri & Simard 2006, High Performance Convolutional Neural Networks for Document Processing.
    """
    is_u8 = isinstance(x, np.ndarray) and x.dtype == _U8
    _check("x", x, _U8 if is_u8 else _F32, ndim=4)
    kernel, stride, padding = _window(kernel, stride, padding)
    factor = _real("scale", scale, _FLOAT_MIN, _FLOAT_MAX)
    if factor != 1.0 and not is_u8:
        raise UsageError(f"scale is {scale!r} but x is float32: scale converts uint8 only, multiply x yourself")
    b, h, w, c = _nhwc("x", x.shape)
    oh, ow = _out_edges(h, w, kernel, stride, padding)
    shape = (b * oh * ow, kernel * kernel * c)
    if out is None:
        out = np.empty(shape, np.float32)
    else:
        _check("out", out, _F32, shape=shape, writes=True)
        _apart(x=x, out=out)
    _im2col(out, x, factor, kernel, stride, padding, oh, ow)
    return out


def col2im(
    cols: F32, shape: tuple[int, int, int, int], kernel: int, stride: int, padding: int, out: F32 | None = None
) -> F32:
    """Add every window's row back onto the image: the adjoint of `im2col`, its gradient.

    Args:
        cols: (B*oh*ow, kernel*kernel*C) float32, columns over (kh, kw, C).
        shape: (B, H, W, C) of the image.
        kernel: edge of the square window, pixels.
        stride: step between windows, pixels.
        padding: zeros that im2col added on each side, pixels; smaller than kernel.
        out: (B, H, W, C) float32 to overwrite, or None for a new array; may not overlap cols.

    Returns:
        (B, H, W, C) float32; overlaps are summed in descending (kh, kw). It is `out` where one was given.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, a number out of its range, a window larger than the
            image, an overlap of cols and out.

    Source:
        ours: the transpose of the linear map of `im2col`.
    """
    kernel, stride, padding = _window(kernel, stride, padding)
    b, h, w, c = _nhwc("shape", shape)
    oh, ow = _out_edges(h, w, kernel, stride, padding)
    _check("cols", cols, _F32, shape=(b * oh * ow, kernel * kernel * c))
    if out is None:
        out = np.empty((b, h, w, c), np.float32)
    else:
        _check("out", out, _F32, shape=(b, h, w, c), writes=True)
        _apart(cols=cols, out=out)
    _col2im(out, cols, kernel, stride, padding, oh, ow)
    return out


def maxpool(x: F32, kernel: int, stride: int, y: F32 | None = None, argmax: I32 | None = None) -> tuple[F32, I32]:
    """Take the maximum of every window of each channel, without padding.

    Args:
        x: (B, H, W, C) float32; H*W*C below 2**31.
        kernel: edge of the square window, pixels.
        stride: step between windows, pixels.
        y: where to write the maxima, or None for a new array; may not overlap x or argmax.
        argmax: where to write their indices, or None for a new array; may not overlap x or y.

    Returns:
        y (B, oh, ow, C) float32 with oh = (H - kernel) // stride + 1, ow alike; and argmax (B, oh, ow, C) int32, the
        flat index of each maximum within its own sample (H, W, C). The first maximum in (kh, kw) wins; a NaN counts as
        the largest value.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, a number out of its range, a window larger than the
            image, an overlap.

    Source:
        PyTorch documentation, torch.nn.MaxPool2d with padding 0.
    """
    _check("x", x, _F32, ndim=4)
    kernel, stride, _ = _window(kernel, stride, 0)
    b, h, w, c = _nhwc("x", x.shape)
    oh, ow = _out_edges(h, w, kernel, stride, 0)
    _fits_int32("x", h * w * c)
    shape = (b, oh, ow, c)
    if y is None:
        y = np.empty(shape, np.float32)
    if argmax is None:
        argmax = np.empty(shape, np.int32)
    _check("y", y, _F32, shape=shape, writes=True)
    _check("argmax", argmax, _I32, shape=shape, writes=True)
    _apart(x=x, y=y, argmax=argmax)
    _maxpool(y, argmax, x, kernel, stride)
    return y, argmax


def maxpool_backward(dy: F32, argmax: I32, shape: tuple[int, int, int, int], out: F32 | None = None) -> F32:
    """Send each window's gradient to the pixel that was its maximum.

    Args:
        dy: (B, oh, ow, C) float32.
        argmax: (B, oh, ow, C) int32, as `maxpool` returned it.
        shape: (B, H, W, C) of the pooled image.
        out: (B, H, W, C) float32 to overwrite, or None for a new array; may not overlap dy or argmax.

    Returns:
        (B, H, W, C) float32; where windows share a maximum their gradients are summed in the order of dy. It is `out`
        where one was given.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, an overlap, or an index outside (H, W, C).

    Source:
        ours: the transpose of the selection that `maxpool` made.
    """
    b, h, w, c = _nhwc("shape", shape)
    _fits_int32("shape", h * w * c)
    _check("dy", dy, _F32, ndim=4)
    if dy.shape[0] != b:
        raise UsageError(f"dy has shape {dy.shape} but shape is {shape}: give both the same batch size")
    _check("argmax", argmax, _I32, shape=dy.shape)
    if out is None:
        dx = np.empty((b, h, w, c), np.float32)
    else:
        dx = out
        _check("out", dx, _F32, shape=(b, h, w, c), writes=True)
        _apart(out=dx, dy=dy, argmax=argmax)
    if _native is None:
        inside = _twin.maxpool_backward(dx, dy, argmax)
    else:
        inside = _native.maxpool_backward(
            _address(dx), _address(dy), _address(argmax), b, h * w * c, math.prod(dy.shape[1:])
        )
    if not inside:
        raise UsageError(f"argmax points outside a sample of shape {(h, w, c)}: give both as they were in maxpool")
    return dx


def pooled_conv_backward(
    x: F32, weight: F32, dy: F32, argmax: I32, kernel: int, stride: int, padding: int
) -> tuple[F32, F32]:
    """Gradients of a convolution whose output went through max pooling.

    Only the windows that were a maximum have a gradient: where pooling keeps one value in four, this takes a quarter of
    the products that the whole image would, and less where a ReLU behind the pooling has made some of them zero.

    Args:
        x: (B, H, W, C) float32, the convolution's input.
        weight: (N, kernel*kernel*C) float32, its weights transposed: one output channel a row.
        dy: (B, ph, pw, N) float32, finite: the gradient by the pooled values.
        argmax: (B, ph, pw, N) int32, as `maxpool` returned it for the convolution's output.
        kernel: edge of the convolution's square window, pixels.
        stride: step between its windows, pixels.
        padding: zeros added on each side of x, pixels; smaller than kernel.

    Returns:
        The gradient by `weight`, (N, kernel*kernel*C) float32, and by x, (B, H, W, C) float32. Terms are summed in the
        order of (B, N, ph, pw).

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, a number out of its range, a window larger than the
            image, an index outside the convolution's output.

    Source:
        ours: the product of `maxpool_backward`'s mostly zero result with `im2col`'s columns, without its zeros.
    """
    _check("x", x, _F32, ndim=4)
    b, h, w, c = _nhwc("x", x.shape)
    kernel, stride, padding = _window(kernel, stride, padding)
    oh, ow = _out_edges(h, w, kernel, stride, padding)
    _check("dy", dy, _F32, ndim=4)
    if dy.shape[0] != b or not dy.shape[3]:
        raise UsageError(f"dy has shape {dy.shape} but x has {x.shape}: give the same batch size and some channels")
    _check("argmax", argmax, _I32, shape=dy.shape)
    n, pooled = dy.shape[3], dy.shape[1] * dy.shape[2]
    _fits_int32("argmax", oh * ow * n)
    _check("weight", weight, _F32, shape=(n, kernel * kernel * c))
    dw, dx = np.empty(weight.shape, np.float32), np.empty(x.shape, np.float32)
    if _native is None:
        inside = _twin.pooled_conv_backward(dw, dx, x, weight, dy, argmax, kernel, stride, padding, oh, ow)
    else:
        addresses = map(_address, (dw, dx, x, weight, dy, argmax))
        inside = _native.pooled_conv_backward(*addresses, n, pooled, b, h, w, c, kernel, stride, padding, oh, ow)
    if not inside:
        raise UsageError(f"argmax points outside a sample of shape {(oh, ow, n)}: give it as it was in maxpool")
    return dw, dx


def add_bias(y: F32, bias: F32, *, relu: bool) -> None:
    """Add a row to every row, and rectify, in place.

    Args:
        y: (rows, n) float32, changed in place.
        bias: (n,) float32; may not overlap y.
        relu: replace what is not above 0 by +0; a NaN stays.

    Returns:
        Nothing: y has changed.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, an overlap.

    Source:
        ours: one pass over what a matrix product has just written.
    """
    _check("y", y, _F32, ndim=2, writes=True)
    _check("bias", bias, _F32, shape=y.shape[1:])
    _apart(y=y, bias=bias)
    if _native is None:
        _twin.add_bias(y, bias, relu)
    else:
        _native.add_bias(_address(y), _address(bias), *y.shape, bool(relu))


def relu_backward(dy: F32, y: F32) -> None:
    """Stop the gradient where a ReLU let nothing through, in place.

    Args:
        dy: the gradient by the ReLU's output, any shape, float32, changed in place.
        y: that output, of the same shape, float32; may not overlap dy.

    Returns:
        Nothing: dy is +0 where y is not above 0, a NaN there included.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, an overlap.

    Source:
        the derivative of max(x, 0), with 0 at 0.
    """
    _check("dy", dy, _F32, writes=True)
    _check("y", y, _F32, shape=dy.shape)
    _apart(dy=dy, y=y)
    if _native is None:
        _twin.relu_backward(dy, y)
    else:
        _native.relu_backward(_address(dy), _address(y), dy.size)


def adam(
    params: F32,
    grads: F32,
    m: F32,
    v: F32,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    scale: float = 1.0,
) -> None:
    """Make one Adam step in place.

    Args:
        params: (n,) float32, changed in place.
        grads: (n,) float32.
        m: (n,) float32, first moment, changed in place; zeros before step 1.
        v: (n,) float32, second moment, changed in place; zeros before step 1.
        step: number of this step, the first is 1.
        lr: learning rate, 0 or more, dimensionless.
        beta1: decay of m, in [0, 1), dimensionless.
        beta2: decay of v, in [0, 1), dimensionless.
        eps: added to the root of v, at least 1e-37 so that float32 does not lose it, dimensionless.
        scale: factor on the gradients, 0 or more, dimensionless: clips their norm without a pass of its own.

    Returns:
        Nothing: params, m and v have changed.

    Raises:
        UsageError: a wrong type, dtype, shape or memory layout, an overlap of two vectors, a scalar out of its range.

    Source:
        Kingma & Ba, arXiv 1412.6980, Algorithm 1, in float32, with 1/sqrt(1 - beta2**t) applied to sqrt(v_t).
    """
    _check("params", params, _F32, ndim=1, writes=True)
    _check("grads", grads, _F32, shape=params.shape)
    _check("m", m, _F32, shape=params.shape, writes=True)
    _check("v", v, _F32, shape=params.shape, writes=True)
    _apart(params=params, grads=grads, m=m, v=v)
    t = _whole("step", step, 1, None)
    rate = _real("lr", lr, 0.0, 1e30)
    b1 = _real("beta1", beta1, 0.0, 1.0 - 1e-7)
    b2 = _real("beta2", beta2, 0.0, 1.0 - 1e-7)
    tiny = _real("eps", eps, _FLOAT_MIN, _FLOAT_MAX)
    shrink = _real("scale", scale, 0.0, _FLOAT_MAX)
    scalars = (b1, 1.0 - b1, b2, 1.0 - b2, rate / (1.0 - b1**t), 1.0 / math.sqrt(1.0 - b2**t), tiny, shrink)
    if _native is None:
        _twin.adam(params, grads, m, v, *scalars)
    else:
        _native.adam(_address(params), _address(grads), _address(m), _address(v), params.size, *scalars)


# `kernels.conv` calls these three once a slice, after one look at the whole arrays: their checks took longer than they.


def _im2col(out: F32, x: F32 | U8, scale: float, kernel: int, stride: int, padding: int, oh: int, ow: int) -> None:
    if _native is None:
        _twin.im2col(out, x, scale, kernel, stride, padding, oh, ow)
    else:
        is_u8 = x.dtype == _U8
        _native.im2col(_address(out), _address(x), is_u8, *x.shape, kernel, stride, padding, oh, ow, scale)


def _col2im(x: F32, cols: F32, kernel: int, stride: int, padding: int, oh: int, ow: int) -> None:
    if _native is None:
        _twin.col2im(x, cols, kernel, stride, padding, oh, ow)
    else:
        _native.col2im(_address(x), _address(cols), *x.shape, kernel, stride, padding, oh, ow)


def _maxpool(y: F32, argmax: I32, x: F32, kernel: int, stride: int) -> None:
    if _native is None:
        _twin.maxpool(y, argmax, x, kernel, stride)
    else:
        _native.maxpool(_address(y), _address(argmax), _address(x), *x.shape, kernel, stride, 0, *y.shape[1:3])


def _address(array: npt.NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _check(
    name: str,
    array: object,
    dtype: np.dtype[Any],
    *,
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
    writes: bool = False,
) -> None:
    if not isinstance(array, np.ndarray):
        raise UsageError(f"{name} is a {type(array).__name__}: give a numpy array of {dtype}")
    if array.dtype != dtype:
        raise UsageError(f"{name} has dtype {array.dtype}: give {dtype}")
    if shape is not None and array.shape != shape:
        raise UsageError(f"{name} has shape {array.shape}: give {shape}")
    if ndim is not None and array.ndim != ndim:
        raise UsageError(f"{name} has shape {array.shape}: give {ndim} dimension(s)")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        raise UsageError(f"{name} is not C-contiguous and aligned: give numpy.ascontiguousarray({name}) or a copy")
    if writes and not flags.writeable:
        raise UsageError(f"{name} is read-only, but is written to: give a copy")


def _apart(**arrays: npt.NDArray[Any]) -> None:
    for one, other in itertools.combinations(arrays, 2):
        # It compares bounds only, which is exact here: all are contiguous.
        if np.may_share_memory(arrays[one], arrays[other]):
            raise UsageError(f"{one} and {other} share memory: give separate arrays")


def _whole(name: str, value: object, low: int, high: int | None) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # what it refuses becomes the UsageError
    except TypeError as error:
        raise UsageError(f"{name} is {value!r}: give an integer") from error
    if number < low or (high is not None and number > high):
        raise UsageError(f"{name} is {number}: give {low} or more" + (f", up to {high}" if high is not None else ""))
    return number


def _real(name: str, value: float, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} is {value!r}: give a number") from error
    if not low <= number <= high:
        raise UsageError(f"{name} is {number!r}: give a number in [{low:g}, {high:.9g}]")
    return number


def _window(kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    kernel = _whole("kernel", kernel, 1, _EDGE_MAX)
    return kernel, _whole("stride", stride, 1, _EDGE_MAX), _whole("padding", padding, 0, kernel - 1)


def _nhwc(name: str, shape: object) -> tuple[int, int, int, int]:
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise UsageError(f"{name} is {shape!r}: give (B, H, W, C)")
    b, h, w, c = (_whole(f"{name}[{i}]", edge, 0 if i == 0 else 1, None) for i, edge in enumerate(shape))
    return b, h, w, c


def _out_edges(h: int, w: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    if kernel > min(h, w) + 2 * padding:
        raise UsageError(f"kernel is {kernel}, but the image is {h}x{w} with padding {padding}: give a smaller kernel")
    return (h + 2 * padding - kernel) // stride + 1, (w + 2 * padding - kernel) // stride + 1


def _fits_int32(name: str, count: int) -> None:
    if count >= 2**31:
        raise UsageError(f"{name} has {count} values a sample: argmax is int32, give fewer than 2**31")
