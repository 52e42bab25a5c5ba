"""Convolution with pooling, bias and ReLU behind it, forwards and backwards, a few samples at a time.

A convolution is a matrix product over `im2col` columns, which are many times the image: made for a whole batch they
come from main memory and fill it. Here they are made for as few samples as fit the cache, and made again for the
gradient instead of being kept.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert import kernels

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

COLUMN_BYTES = 1 << 20
"""Most that is laid out at a time, about a second-level cache; one sample at least."""
SPARSE = 3
"""From so many convolution outputs on for one that pooling keeps, the gradient goes window by window."""


class Scratch:
    """Memory for what is needed only while a layer runs: taken again and again, never given back."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._flat: dict[str, F32] = {}

    def take(self, role: str, *shape: int) -> F32:
        """Memory for one purpose; what was taken for the same purpose before is overwritten.

        Args:
            role: the purpose.
            shape: of the array.

        Returns:
            An array of this shape, float32, C-contiguous, of anything.

        Raises:
            Nothing.
        Source:
            ours: a column matrix allocated anew every time costs page faults and leaves the cache.
        """
        size = math.prod(shape)
        if role not in self._flat or self._flat[role].size < size:
            self._flat[role] = np.empty(size, np.float32)
        return self._flat[role][:size].reshape(shape)


class Geometry(NamedTuple):
    """A convolution and what is behind it.

    Attributes:
        kernel: edge of its square window, pixels.
        stride: step between its windows, pixels.
        padding: zeros added on each side, pixels.
        pool: (kernel, stride) of the max pooling behind it, pixels, or None.
        relu: whether a ReLU ends it.
        scale: factor on a uint8 input, dimensionless.
    """

    kernel: int
    stride: int
    padding: int
    pool: tuple[int, int] | None
    relu: bool
    scale: float


def slices(samples: int, bytes_of_one: int, at_once_bytes: int) -> list[slice]:
    """Cut a batch so that no part needs more than so much memory.

    Args:
        samples: in the batch.
        bytes_of_one: what one sample needs.
        at_once_bytes: what a part may need; a sample that needs more is a part of its own.

    Returns:
        Parts whose sizes differ by one sample at most, in order.

    Raises:
        Nothing.
    Source:
        ours: equal parts, so that no product is left with a few rows.
    """
    most = max(1, at_once_bytes // max(1, bytes_of_one))
    parts = -(-samples // most)
    edges = [i * samples // parts for i in range(parts + 1)] if parts else []
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def product(a: F32, b: F32, out: F32, scratch: Scratch, *, add: bool) -> None:
    """Write a matrix product, or add it to what is there.

    Args:
        a: (m, k) float32.
        b: (k, n) float32.
        out: (m, n) float32, C-contiguous, changed in place.
        scratch: memory to work in.
        add: add instead of overwriting.

    Returns:
        Nothing: `out` has changed.

    Raises:
        Nothing.
    Source:
        ours: numpy has no product that adds.
    """
    if not add:
        np.matmul(a, b, out=out)
        return
    for part in slices(len(a), 4 * b.shape[1], COLUMN_BYTES):
        rows = out[part]
        rows += np.matmul(a[part], b, out=scratch.take("product", *rows.shape))


def sum_rows(rows: F32, out: F32, *, add: bool) -> None:
    """Write the sum over all rows, or add it to what is there.

    Args:
        rows: (m, n) float32.
        out: (n,) float32, changed in place.
        add: add instead of overwriting.

    Returns:
        Nothing: `out` has changed.

    Raises:
        Nothing.
    Source:
        ours.
    """
    total = np.ones(len(rows), np.float32) @ rows
    if add:
        out += total
    else:
        out[:] = total


class _Windows:
    """The columns of a batch, some samples at a time; what the loops rely on is checked here, once for all of them."""

    def __init__(self, x: F32 | U8, weight: F32, at: Geometry, scratch: Scratch) -> None:
        kernels._check("x", x, np.dtype(np.uint8 if x.dtype == np.uint8 else np.float32), ndim=4)
        _, h, w, c = kernels._nhwc("x", x.shape)
        self.window = kernels._window(at.kernel, at.stride, at.padding)
        self.edges = kernels._out_edges(h, w, *self.window)
        self.rows, self.taps = self.edges[0] * self.edges[1], at.kernel * at.kernel * c
        kernels._check("weight", weight, np.dtype(np.float32), shape=(self.taps, weight.shape[-1]))
        scale = kernels._real("scale", at.scale, kernels._FLOAT_MIN, kernels._FLOAT_MAX)
        self.x, self.scale, self.scratch = x, scale if x.dtype == np.uint8 else 1.0, scratch
        self.parts = slices(len(x), 4 * self.rows * self.taps, COLUMN_BYTES)

    def columns(self, part: slice) -> F32:
        """One window a row."""
        out = self.scratch.take("columns", (part.stop - part.start) * self.rows, self.taps)
        kernels._im2col(out, self.x[part], self.scale, *self.window, *self.edges)
        return out


def forward(x: F32 | U8, weight: F32, bias: F32, at: Geometry, scratch: Scratch) -> tuple[F32, I32 | None]:
    """Convolve, pool, add the bias and rectify.

    Args:
        x: (B, H, W, C) float32 or uint8.
        weight: (kernel*kernel*C, N) float32, rows ordered kernel row, kernel column, input channel.
        bias: (N,) float32.
        at: the geometry.
        scratch: memory to work in.

    Returns:
        (B, h, w, N) float32, and of the same shape the argmax of the pooling within the convolution's output, int32,
        or None without pooling.

    Raises:
        UsageError: as `kernels.im2col` and `kernels.maxpool`.
    Source:
        Chellapilla et al. 2006. Bias and ReLU behind the pooling: ours; neither changes which of two numbers is larger,
        and fewer are left.
    """
    windows, n = _Windows(x, weight, at, scratch), weight.shape[1]
    shape, argmax = (*windows.edges, n), None
    if at.pool is not None:
        pooled = kernels._out_edges(*windows.edges, *kernels._window(*at.pool, 0))
        kernels._fits_int32("the convolution's output", math.prod(shape))
        shape = (*pooled, n)
        argmax = np.empty((len(x), *shape), np.int32)
    y = np.empty((len(x), *shape), np.float32)
    for part in windows.parts:
        columns, mine = windows.columns(part), y[part]
        if at.pool is None or argmax is None:
            np.matmul(columns, weight, out=mine.reshape(-1, n))
        else:
            sums = np.matmul(columns, weight, out=scratch.take("sums", len(columns), n))
            kernels._maxpool(mine, argmax[part], sums.reshape(-1, *windows.edges, n), *at.pool)
    kernels.add_bias(y.reshape(-1, n), bias, relu=at.relu)
    return y, argmax


def backward(
    x: F32 | U8,
    weight: F32,
    dy: F32,
    argmax: I32 | None,
    at: Geometry,
    d_weight: F32,
    scratch: Scratch,
    *,
    add: bool,
    wants_dx: bool,
) -> F32 | None:
    """The gradient by the weights and by the input; the ReLU and the bias are the caller's.

    Args:
        x: as in `forward`; float32 where `wants_dx`.
        weight: as in `forward`.
        dy: (B, h, w, N) float32, the gradient by the output, already stopped at the ReLU.
        argmax: as `forward` gave it.
        at: the geometry.
        d_weight: as `weight`, changed in place.
        scratch: memory to work in.
        add: add to `d_weight` instead of overwriting it.
        wants_dx: whether the gradient by x is wanted.

    Returns:
        (B, H, W, C) float32, or None.

    Raises:
        UsageError: as the kernels.
    Source:
        the adjoint of `forward`.
    """
    windows, n = _Windows(x, weight, at, scratch), weight.shape[1]
    if argmax is not None and wants_dx and windows.rows >= SPARSE * math.prod(dy.shape[1:3]):
        by_row, dx = kernels.pooled_conv_backward(
            np.asarray(x, np.float32), np.ascontiguousarray(weight.T), dy, argmax, *windows.window
        )
        if add:
            d_weight += by_row.T
        else:
            d_weight[:] = by_row.T
        return dx
    if not (windows.parts or add):
        d_weight[:] = 0.0
    image: F32 | None = np.empty(x.shape, np.float32) if wants_dx else None
    for part in windows.parts:
        columns, d_sums = windows.columns(part), dy[part]
        if argmax is not None:
            shape = (len(d_sums), *windows.edges, n)
            d_sums = kernels.maxpool_backward(d_sums, argmax[part], shape, scratch.take("sums", *shape))
        rows: F32 = d_sums.reshape(-1, n)
        product(columns.T, rows, d_weight, scratch, add=add or part.start > 0)
        if image is not None:
            np.matmul(rows, weight.T, out=columns)
            kernels._col2im(image[part], columns, *windows.window, *windows.edges)
    return image
