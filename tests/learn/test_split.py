"""A training in pieces is the training of the whole."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.errors import UsageError
from edgert.learn import split
from edgert.learn.dqn import Batch, Hyper, Learner, gradients, mean_losses
from edgert.learn.split import Passed, Piece, Returned
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Relu, initialise

SPEC = NetSpec(
    (8, 8, 3),
    4,
    ((Conv(6, 3, 1, 1), Relu()), (MaxPool(2, 2), Conv(5, 3), Relu()), (Dense(16), Relu())),
    ((MaxPool(2, 2),), (Dense(9), Relu()), ()),
    1 / 255,
)
TWO = NetSpec((5, 5, 1), 2, ((Dense(8), Relu()), (Dense(6), Relu())), ((), ()))


def batch(spec: NetSpec, rng: np.random.Generator, n: int, *, ended: float = 0.3) -> Batch:
    def obs() -> np.ndarray:
        return rng.integers(0, 255, (n, *spec.input_shape), dtype=np.uint8)

    return Batch(
        obs(),
        rng.integers(0, spec.n_actions, n),
        rng.normal(size=n).astype(np.float32),
        obs(),
        rng.random(n) < ended,
        rng.normal(size=(n, spec.n_actions)).astype(np.float32),
        rng.random(n) < 0.6,
    )


def learner(spec: NetSpec, rng: np.random.Generator) -> Learner:
    made = Learner(initialise(spec, rng))
    made.target.flat[:] += rng.normal(size=made.target.flat.shape).astype(np.float32) * np.float32(0.01)
    return made


def rows(of: Batch, part: slice) -> Batch:
    return Batch._make(column[part] for column in of)


def through(pieces: list[Piece], micros: list[Passed]) -> Returned:
    """All rows of a step forwards and back; what comes out at the first piece for the last of them."""
    came = Returned(np.empty(0, np.float32), *[np.empty(0)] * 2, split.NO_LOSSES, 0.0)
    losses = split.NO_LOSSES
    for micro, passed in enumerate(micros):
        told: Passed | Returned = passed
        for piece in pieces:
            assert isinstance(told, Passed)
            told = piece.forward(micro, told, len(micros))
        for piece in reversed(pieces[:-1]):
            assert isinstance(told, Returned)
            told = piece.back(micro, told, len(micros))
        assert isinstance(told, Returned)
        came, losses = told, split.add_losses(losses, told.losses)
    return came._replace(losses=losses)


GAPS = msgspec.structs.replace(SPEC, gap_logits=(3.0, 0.5))
CUTS = [(SPEC, (0,)), (SPEC, (0, 1)), (SPEC, (0, 2)), (SPEC, (0, 1, 2)), (TWO, (0, 1))]
CUTS += [(GAPS, (0, 1)), (GAPS, (0, 2)), (GAPS, (0, 1, 2))]


@pytest.mark.parametrize(("spec", "edges"), CUTS)
@pytest.mark.parametrize("n_micros", [1, 3])
@pytest.mark.parametrize("hyper", [Hyper(), Hyper(td_weight=0.0), Hyper(distill_weight=0.0, max_grad_norm=0.01)])
def test_pieces_in_a_chain_take_the_steps_of_the_whole(
    spec: NetSpec, edges: tuple[int, ...], n_micros: int, hyper: Hyper
) -> None:
    rng = np.random.default_rng(5)
    whole = learner(spec, rng)
    pieces = [Piece(split.take(whole, of), of, spec.n_exits, hyper) for of in split.cut(spec, edges)]
    for _ in range(3):
        drawn = batch(spec, rng, 12)
        wanted = Params(spec)
        losses = gradients(whole.params, whole.target, drawn, hyper, wanted)
        n_told = int(drawn.taught.sum()) if hyper.distill_weight else 0
        parts = [rows(drawn, slice(i, None, n_micros)) for i in range(n_micros)]
        came = through(pieces, [split.enter(part, hyper, 12, n_told) for part in parts])

        found = np.concatenate([piece.learner.grads.flat for piece in pieces])
        scale = float(np.abs(wanted.flat).max())
        assert np.abs(found - wanted.flat).max() <= 1e-6 * max(1.0, scale)
        assert came.squared == pytest.approx(float(wanted.flat @ wanted.flat), rel=1e-4)
        mean = mean_losses(came.losses, hyper, spec.n_exits)
        assert mean.distill == pytest.approx(losses.distill, rel=1e-4, abs=1e-6)
        assert mean.confidence == pytest.approx(losses.confidence, rel=1e-4)
        if hyper.td_weight:
            assert mean.total == pytest.approx(losses.total, rel=1e-4)

        whole.step(drawn, hyper)
        for piece in pieces:
            piece.descend(came.squared)
        after = np.concatenate([piece.learner.params.flat for piece in pieces])
        # Adam divides by the gradient's size: where that is next to nothing, its sign is a matter of rounding.
        moved = np.abs(wanted.flat) > 1e-4 * scale
        assert np.abs(after - whole.params.flat)[moved].max() <= 1e-5
        for of, piece in zip(split.cut(spec, edges), pieces, strict=True):
            piece.learner.restore({n: a[of.first : of.last] for n, a in whole.arrays().items()}, whole.steps)


@given(seed=st.integers(0, 1000), shares=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(max_examples=20)
def test_shares_of_a_batch_add_up_to_the_gradient_of_the_batch(seed: int, shares: list[int]) -> None:
    rng, hyper, n = np.random.default_rng(seed), Hyper(), sum(shares)
    whole, drawn = learner(SPEC, rng), batch(SPEC, rng, n)
    wanted = Params(SPEC)
    gradients(whole.params, whole.target, drawn, hyper, wanted)
    (all_,) = split.cut(SPEC, (0,))
    found, first = np.zeros_like(wanted.flat), 0
    for share in shares:
        piece = Piece(split.take(whole, all_), all_, SPEC.n_exits, hyper)
        mine = rows(drawn, slice(first, first + share))
        piece.forward(0, split.enter(mine, hyper, n, int(drawn.taught.sum())))
        found, first = found + piece.learner.grads.flat, first + share
    assert np.abs(found - wanted.flat).max() <= 1e-6 * max(1.0, float(np.abs(wanted.flat).max()))


def test_pieces_put_back_are_the_whole() -> None:
    rng = np.random.default_rng(1)
    whole, other = learner(SPEC, rng), learner(SPEC, rng)
    whole.steps = 7
    for of in split.cut(SPEC, (0, 1, 2)):
        piece = split.take(whole, of)
        split.put(other, of, piece.arrays(), piece.steps)
    assert other.steps == 7
    assert all(np.array_equal(other.arrays()[name], array) for name, array in whole.arrays().items())
    with pytest.raises(UsageError, match="vector 'params'"):
        split.put(other, split.cut(SPEC, (0, 1))[0], whole.arrays(), 1)


@pytest.mark.parametrize("edges", [(1,), (0, 0), (0, 3), (0, 2, 1)])
def test_a_network_is_cut_where_it_has_stages(edges: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="cannot be cut"):
        split.cut(SPEC, edges)


def test_targets_are_copied_when_it_is_time() -> None:
    rng, hyper = np.random.default_rng(2), Hyper(target_every=2)
    (all_,) = split.cut(TWO, (0,))
    piece = Piece(split.take(learner(TWO, rng), all_), all_, 2, hyper)
    same = []
    for _ in range(4):
        told = piece.forward(0, split.enter(batch(TWO, rng, 6), hyper))
        assert isinstance(told, Returned)
        piece.descend(told.squared)
        same.append(bool(np.array_equal(piece.learner.target.flat, piece.learner.params.flat)))
    assert same == [False, True, False, True]


def test_what_came_back_does_not_come_back_again() -> None:
    rng, hyper = np.random.default_rng(3), Hyper()
    first, _ = split.cut(TWO, (0, 1))
    piece = Piece(split.take(learner(TWO, rng), first), first, 2, hyper)
    passed = piece.forward(0, split.enter(batch(TWO, rng, 4), hyper))
    assert isinstance(passed, Passed)
    assert passed.size_bytes > 4 * 8 * 4
    piece.forget()
    back = Returned(np.zeros((4, 8), np.float32), np.zeros(4, np.float32), np.zeros(4, int), split.NO_LOSSES, 0.0)
    with pytest.raises(UsageError, match="never went forward"):
        piece.back(0, back)
    with pytest.raises(UsageError, match="do not fit"):
        piece.forward(0, passed)
    with pytest.raises(UsageError, match="not finite"):
        piece.descend(float("nan"))
    assert piece.learner.steps == 0
