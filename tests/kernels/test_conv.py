"""Convolution in slices against the whole matrix product, and its gradients against the adjoint's definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import kernels
from edgert.errors import UsageError
from edgert.kernels import conv

POOLS = (None, (2, 2), (3, 2), (2, 1))


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def cases(draw):
    """(geometry, x, weight, bias) of a convolution that fits, of images or of observations."""
    kernel = draw(st.integers(1, 4))
    padding = draw(st.integers(0, kernel - 1))
    b, h, w, c, n = (draw(st.integers(*bounds)) for bounds in ((1, 5), (6, 12), (6, 12), (1, 4), (1, 5)))
    stride = draw(st.integers(1, 2))
    edges = [(edge + 2 * padding - kernel) // stride + 1 for edge in (h, w)]
    pool = draw(st.sampled_from([pool for pool in POOLS if pool is None or pool[0] <= min(edges)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        x, scale = rng.integers(0, 256, (b, h, w, c)).astype(np.uint8), 1 / 255
    else:
        x, scale = rng.standard_normal((b, h, w, c)).astype(np.float32), 1.0
    weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((kernel * kernel * c, n), (n,)))
    return conv.Geometry(kernel, stride, padding, pool, draw(st.booleans()), scale), x, weight, bias


def whole(at, x, weight):
    """The convolution's output before anything behind it."""
    scale = at.scale if x.dtype == np.uint8 else 1.0
    h, w = ((edge + 2 * at.padding - at.kernel) // at.stride + 1 for edge in x.shape[1:3])
    columns = kernels.im2col(x, at.kernel, at.stride, at.padding, scale=scale)
    return columns, (columns @ weight).reshape(len(x), h, w, -1)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1, 600, 1 << 20]))
def test_forward_is_layer_after_layer_in_any_slices(case, at_once):
    at, x, weight, bias = case
    _, want = whole(at, x, weight)
    want = want + bias
    if at.relu:
        want = np.maximum(want, 0)
    if at.pool is not None:
        want, _ = kernels.maxpool(want, *at.pool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "COLUMN_BYTES", at_once)
        y, argmax = conv.forward(x, weight, bias, at, conv.Scratch())
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    assert (argmax is None) == (at.pool is None)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from([1, 600, 1 << 20]), st.booleans(), st.sampled_from([1, 10**6]))
def test_backward_is_the_adjoint_in_any_slices_and_by_either_way(case, at_once, add, sparse_from):
    at, x, weight, bias = case
    columns, sums = whole(at, x, weight)
    scratch = conv.Scratch()
    y, argmax = conv.forward(x, weight, bias, at, scratch)
    dy = normal(y.shape)
    d_sums = dy if argmax is None else kernels.maxpool_backward(dy, argmax, sums.shape)
    rows = d_sums.reshape(-1, weight.shape[1])
    d_weight = np.full_like(weight, 2.0 if add else np.nan)
    wants_dx = x.dtype == np.float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "COLUMN_BYTES", at_once)
        patch.setattr(conv, "SPARSE", sparse_from)
        dx = conv.backward(x, weight, dy, argmax, at, d_weight, scratch, add=add, wants_dx=wants_dx)
    np.testing.assert_allclose(d_weight, columns.T @ rows + (2 if add else 0), rtol=1e-4, atol=1e-4)
    if not wants_dx:
        assert dx is None
        return
    want = kernels.col2im(rows @ weight.T, x.shape, at.kernel, at.stride, at.padding)
    np.testing.assert_allclose(dx, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("pool", [None, (2, 2), (3, 3)])
def test_a_batch_of_nothing_has_no_gradient(pool, add):
    x, weight = normal((0, 9, 9, 3)), normal((27, 4))
    at = conv.Geometry(3, 1, 1, pool, True, 1.0)
    y, argmax = conv.forward(x, weight, normal(4), at, conv.Scratch())
    d_weight = np.ones_like(weight)
    dx = conv.backward(x, weight, y, argmax, at, d_weight, conv.Scratch(), add=add, wants_dx=True)
    assert dx.shape == x.shape and (d_weight == add).all()


@pytest.mark.usefixtures("half")
def test_where_pooling_keeps_little_no_columns_are_made(monkeypatch):
    x, weight = normal((2, 9, 9, 3)), normal((27, 4))
    at = conv.Geometry(3, 1, 1, (3, 3), True, 1.0)
    y, argmax = conv.forward(x, weight, normal(4), at, conv.Scratch())
    monkeypatch.setattr(kernels, "_im2col", None)  # a call of it fails
    d_weight = np.empty_like(weight)
    arguments = (x, weight, normal(y.shape), argmax, at, d_weight, conv.Scratch())
    assert conv.backward(*arguments, add=False, wants_dx=True).shape == x.shape
    with pytest.raises(TypeError):
        conv.backward(*arguments, add=False, wants_dx=False)


@pytest.mark.parametrize(
    ("x", "weight", "kernel", "words"),
    [
        (normal((1, 5, 5, 2)).astype(np.float64), normal((18, 3)), 3, "x has dtype float64"),
        (normal((1, 5, 5, 4))[..., ::2], normal((18, 3)), 3, "x is not C-contiguous"),
        (normal((5, 5, 2)), normal((18, 3)), 3, "x has shape"),
        (normal((1, 5, 5, 2)), normal((17, 3)), 3, "weight has shape"),
        (normal((1, 5, 5, 2)), normal((3, 18)).T, 3, "weight is not C-contiguous"),
        (normal((1, 5, 5, 2)), normal((72, 3)), 6, "kernel is 6, but the image is 5x5"),
    ],
)
def test_what_does_not_fit_is_refused(x, weight, kernel, words):
    with pytest.raises(UsageError, match=words):
        conv.forward(x, weight, normal(3), conv.Geometry(kernel, 1, 0, None, True, 1.0), conv.Scratch())


@given(st.integers(0, 300), st.integers(0, 50), st.integers(0, 400))
def test_slices_cover_a_batch_once_evenly_and_within_bounds(samples, of_one, at_once):
    parts = conv.slices(samples, of_one, at_once)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(samples))
    sizes = {part.stop - part.start for part in parts}
    assert not sizes or (0 not in sizes and max(sizes) - min(sizes) <= 1)
    assert all(size == 1 or size * of_one <= at_once for size in sizes)


def test_scratch_gives_the_same_memory_again_and_grows():
    scratch = conv.Scratch()
    first = scratch.take("a", 4, 5)
    assert np.shares_memory(first, scratch.take("a", 3, 2)) and not np.shares_memory(first, scratch.take("b", 4, 5))
    assert scratch.take("a", 100, 2).shape == (100, 2)


@pytest.mark.parametrize("add", [False, True])
def test_products_and_sums_are_written_or_added(add, monkeypatch):
    monkeypatch.setattr(conv, "COLUMN_BYTES", 64)
    a, b = normal((9, 4)), normal((4, 5), 1)
    out, total = np.ones((9, 5), np.float32), np.ones(4, np.float32)
    conv.product(a, b, out, conv.Scratch(), add=add)
    conv.sum_rows(a, total, add=add)
    np.testing.assert_allclose(out, a @ b + add, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, a.sum(0) + add, rtol=1e-5, atol=1e-6)
