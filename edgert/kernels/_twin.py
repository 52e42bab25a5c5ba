"""The numpy twin of `_kernels.c`: the same functions on checked arrays, the same bits in the results.

It serves where no compiler built the extension, and it is the extension's oracle in the tests. Sums run in the same
order as in C. The private contract of both halves: `edgert.kernels` has checked every argument and owns no state.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.float32] | npt.NDArray[np.uint8]

_ADAM_BLOCK = 16384  # seven blocks of 64 KiB stay in a second-level cache; whole vectors would stream through memory


def im2col(out: F32, x: Pixels, scale: float, kernel: int, stride: int, padding: int, oh: int, ow: int) -> None:
    b, h, w, c = x.shape
    if padding:
        padded = np.zeros((b, h + 2 * padding, w + 2 * padding, c), x.dtype)
        padded[:, padding : padding + h, padding : padding + w] = x
        x = padded
    sb, sh, sw, sc = x.strides
    windows = np.lib.stride_tricks.as_strided(
        x, (b, oh, ow, kernel, kernel, c), (sb, sh * stride, sw * stride, sh, sw, sc), writeable=False
    )
    target = out.reshape(windows.shape)
    if x.dtype == np.uint8:
        np.multiply(windows, np.float32(scale), out=target, dtype=np.float32)
    else:
        target[...] = windows


def col2im(x: F32, cols: F32, kernel: int, stride: int, padding: int, oh: int, ow: int) -> None:
    b, h, w, c = x.shape
    parts = cols.reshape(b, oh, ow, kernel, kernel, c)
    padded = np.empty((b, h + 2 * padding, w + 2 * padding, c), np.float32) if padding else x
    padded[...] = 0
    for ky in reversed(range(kernel)):  # as the pixels meet them when windows run forwards, which C does
        for kx in reversed(range(kernel)):
            padded[:, ky : ky + stride * oh : stride, kx : kx + stride * ow : stride] += parts[:, :, :, ky, kx]
    if padding:
        x[...] = padded[:, padding : padding + h, padding : padding + w]


def maxpool(y: F32, argmax: I32, x: F32, kernel: int, stride: int) -> None:
    _, oh, ow, c = y.shape
    w = x.shape[2]
    corner = (np.arange(oh)[:, None, None] * w + np.arange(ow)[:, None]) * (stride * c) + np.arange(c)
    for ky in range(kernel):
        for kx in range(kernel):
            value = x[:, ky : ky + stride * oh : stride, kx : kx + stride * ow : stride]
            at = (corner + (ky * w + kx) * c).astype(np.int32)
            if ky == kx == 0:
                y[...] = value
                argmax[...] = at
                continue
            # A NaN is the largest value and the first one stays, as in numpy.argmax.
            better = ~(value <= y) & (y == y)
            np.copyto(y, value, where=better)
            np.copyto(argmax, at, where=better)


def maxpool_backward(dx: F32, dy: F32, argmax: I32) -> bool:
    dx[...] = 0
    count = math.prod(dx.shape[1:])
    if argmax.size and (int(argmax.min()) < 0 or int(argmax.max()) >= count):
        return False
    first = np.arange(dx.shape[0])[:, None, None, None] * count
    np.add.at(dx.reshape(-1), (first + argmax).reshape(-1), dy.reshape(-1))
    return True


def add_bias(y: F32, bias: F32, relu: bool) -> None:
    y += bias
    if relu:
        y[y <= 0] = 0  # numpy.maximum may give either zero for -0


def relu_backward(dy: F32, y: F32) -> None:
    dy[~(y > 0)] = 0


def pooled_conv_backward(
    dw: F32,
    dx: F32,
    x: F32,
    weight: F32,
    dy: F32,
    argmax: I32,
    kernel: int,
    stride: int,
    padding: int,
    oh: int,
    ow: int,
) -> bool:
    b, h, w, c = x.shape
    _, ph, pw, n = dy.shape
    if argmax.size and (int(argmax.min()) < 0 or int(argmax.max()) >= oh * ow * n):
        return False
    row, column = np.divmod(argmax.reshape(b, ph * pw, n) // n, ow)
    d_pooled = dy.reshape(b, ph * pw, n)

    def windows(image: F32) -> F32:
        sb, sh, sw, sc = image.strides
        shape = (b, oh, ow, kernel, kernel, c)
        return np.lib.stride_tricks.as_strided(image, shape, (sb, sh * stride, sw * stride, sh, sw, sc))

    inside = (slice(None), slice(padding, padding + h), slice(padding, padding + w))
    around_x = np.zeros((b, h + 2 * padding, w + 2 * padding, c), np.float32)
    around_dx = np.zeros_like(around_x)
    around_x[inside] = x
    seen, d_seen, pooled = windows(around_x), windows(around_dx), range(ph * pw)
    dw[...] = 0
    taps, d_taps = (array.reshape(n, kernel, kernel, c) for array in (weight, dw))
    with np.errstate(all="ignore"):  # as in adam
        for i in range(b):
            for p in pooled:
                alive = np.flatnonzero(d_pooled[i, p])
                windows_alive = seen[i, row[i, p, alive], column[i, p, alive]]
                d_taps[alive] += d_pooled[i, p, alive, None, None, None] * windows_alive
        for o in range(n):
            for p in pooled:  # windows of different samples never overlap, so they may go together
                alive = np.flatnonzero(d_pooled[:, p, o])
                at = (alive, row[alive, p, o], column[alive, p, o])
                d_seen[at] += d_pooled[alive, p, o, None, None, None] * taps[o]
    dx[...] = around_dx[inside]
    return True


def adam(
    params: F32,
    grads: F32,
    m: F32,
    v: F32,
    beta1: float,
    rest1: float,
    beta2: float,
    rest2: float,
    rate: float,
    unbias: float,
    eps: float,
    scale: float,
) -> None:
    # float32 scalars: a Python float would make numpy 1 decide the type of a product by its value.
    scalars = (beta1, rest1, beta2, rest2, rate, unbias, eps, scale)
    b1, r1, b2, r2, step, root, tiny, shrink = (np.float32(s) for s in scalars)
    one = np.empty(min(params.size, _ADAM_BLOCK), np.float32)
    two, three = np.empty_like(one), np.empty_like(one)
    with np.errstate(all="ignore"):  # the C half is silent too; whoever trains looks at the loss
        for start in range(0, params.size, _ADAM_BLOCK):
            block = slice(start, start + _ADAM_BLOCK)
            mb, vb = m[block], v[block]
            t, u, g = one[: mb.size], two[: mb.size], three[: mb.size]
            np.multiply(grads[block], shrink, out=g)
            mb *= b1
            mb += np.multiply(g, r1, out=t)
            vb *= b2
            np.multiply(g, g, out=t)
            t *= r2
            vb += t
            np.sqrt(vb, out=t)
            t *= root
            t += tiny
            np.multiply(mb, step, out=u)
            u /= t
            params[block] -= u
