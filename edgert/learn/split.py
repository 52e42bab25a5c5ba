"""One training on several devices: a network cut between its stages, or its batch cut into shares.

A `Piece` is some consecutive stages with their optimiser state. Pieces in a chain pass features forwards and gradients
back; pieces that each are the whole network add up their gradients. Either way every gradient is that of the whole
network on the whole batch, and every step of Adam is the one that a single device would have taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.errors import UsageError
from edgert.learn.backprop import backward
from edgert.learn.dqn import Batch, Hyper, Learner, Lesson, Losses, exit_gradient, prepare, told_rows
from edgert.nets import F32, U8, NetSpec, Params, Tape, matrix_shape, run_layers, stages, weighted

Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


class Cut(NamedTuple):
    """Consecutive stages of a network, and where their parameters lie in its vector.

    Attributes:
        start, stop: stages, `stop` not included.
        first, last: parameters, `last` not included.
    """

    start: int
    stop: int
    first: int
    last: int


def cut(spec: NetSpec, edges: Sequence[int]) -> tuple[Cut, ...]:
    """Cut a network between its stages.

    Args:
        spec: the network.
        edges: the first stage of each piece, from 0.

    Returns:
        The pieces, in order; together they are the network.

    Raises:
        UsageError: the edges do not grow from 0 on, or there are fewer stages.
    Source:
        ours: between stages, since a head belongs to the features that it looks at.
    """
    bounds = [*edges, spec.n_exits]
    if bounds[0] != 0 or any(b <= a for a, b in itertools.pairwise(bounds)):
        raise UsageError(f"a network of {spec.n_exits} stages cannot be cut at {tuple(edges)}")
    sizes = [0] * spec.n_exits
    for placed in weighted(spec):
        rows, columns = matrix_shape(placed)
        sizes[int(placed.name[1:].partition(".")[0])] += rows * columns + columns
    offsets = [sum(sizes[:k]) for k in range(spec.n_exits + 1)]
    return tuple(Cut(a, b, offsets[a], offsets[b]) for a, b in itertools.pairwise(bounds))


def piece_spec(spec: NetSpec, of: Cut) -> NetSpec:
    """The network that a piece is by itself.

    Args:
        spec: the whole network.
        of: the piece.

    Returns:
        Its stages and heads; what comes in are features, but for the first piece.

    Raises:
        UsageError: as `nets.stages`.
    Source:
        ours.
    """
    shape = stages(spec)[of.start].trunk[0].in_shape
    rows, columns, channels = shape if len(shape) == 3 else (1, 1, math.prod(shape))
    return msgspec.structs.replace(
        spec,
        input_shape=(rows, columns, channels),
        trunk=spec.trunk[of.start : of.stop],
        heads=spec.heads[of.start : of.stop],
        gap_logits=spec.gap_logits[of.start : of.stop],
    )


class Rows(NamedTuple):
    """What is to be learned from some rows of a batch, wherever their observations are.

    Attributes:
        action: (b,) integer.
        reward: (b,) float32.
        terminated: (b,) bool.
        teacher_q: (b, A) float32.
        told: (b,) bool, the teacher is followed there.
        n, n_told: rows of the whole batch, and those of them that are told.
    """

    action: Ints
    reward: F32
    terminated: Bools
    teacher_q: F32
    told: Bools
    n: int
    n_told: int


class Passed(NamedTuple):
    """What goes from a piece to the next.

    Attributes:
        x: (b, ...) the observations, or float32 features of them.
        next_x, slow_x: float32 features of the next observations by the network and by its target; None where no value
            of theirs is needed. Into the first piece both are the next observations.
        rows: of `x`.
    """

    x: F32 | U8
    next_x: F32 | U8 | None
    slow_x: F32 | U8 | None
    rows: Rows

    @property
    def size_bytes(self) -> int:
        """Of all its arrays."""
        arrays = [self.x, self.next_x, self.slow_x, *self.rows[:5]]
        return sum(each.nbytes for each in arrays if isinstance(each, np.ndarray))


class Returned(NamedTuple):
    """What comes back from the next piece.

    Attributes:
        d_x: (b, ...) float32, the gradient by the features that went there; empty from the first piece.
        y: (b,) float32 TD targets.
        best: (b,) what the last exit would do.
        losses: sums over the exits behind; `total` is 0.
        squared: of the gradient of everything behind, the squared Euclidean norm, said with the last rows of a step.
    """

    d_x: F32
    y: F32
    best: Ints
    losses: Losses
    squared: float

    @property
    def size_bytes(self) -> int:
        """Of all its arrays."""
        return self.d_x.nbytes + self.y.nbytes + self.best.nbytes


NO_LOSSES = Losses(0.0, 0.0, 0.0, 0.0, 0.0)


def add_losses(a: Losses, b: Losses) -> Losses:
    """Add sums of losses.

    Args:
        a: some.
        b: others.

    Returns:
        Their sums.

    Raises:
        Nothing.
    Source:
        ours.
    """
    return Losses(*(x + y for x, y in zip(a, b, strict=True)))


def enter(batch: Batch, hyper: Hyper, n: int | None = None, n_told: int | None = None) -> Passed:
    """What some rows of a batch give into the first piece.

    Args:
        batch: these rows.
        hyper: weights.
        n: rows of the whole batch; all are here by default.
        n_told: those of them that are told.

    Returns:
        For `Piece.forward`.

    Raises:
        Nothing.
    Source:
        ours: next observations are looked at only where their value counts, as in `dqn.gradients`.
    """
    told = told_rows(batch, hyper)
    ahead = batch.next_obs if hyper.td_weight and not batch.terminated.all() else None
    rows = Rows(
        batch.action,
        batch.reward,
        batch.terminated,
        batch.teacher_q,
        told,
        len(batch.action) if n is None else n,
        int(np.count_nonzero(told)) if n_told is None else n_told,
    )
    return Passed(batch.obs, ahead, ahead, rows)


class _Kept(NamedTuple):
    """Of some rows, until their gradient comes back."""

    tape: Tape
    outputs: dict[int, F32]
    rows: Rows


class Piece:
    """Some consecutive stages of a network in training. Deterministic.

    Attributes:
        learner: network, target, moments and steps of this piece alone.
    """

    def __init__(self, learner: Learner, of: Cut, n_exits: int, hyper: Hyper) -> None:
        """Take up a piece.

        Args:
            learner: of `piece_spec`; adopted.
            of: which stages these are.
            n_exits: of the whole network.
            hyper: how to learn.
        """
        self.learner = learner
        self._of, self._n_exits, self._hyper = of, n_exits, hyper
        self._kept: dict[int, _Kept] = {}
        self._added = 0
        self._squared = 0.0
        self._behind = NO_LOSSES

    @property
    def is_first(self) -> bool:
        """The observations come in here."""
        return self._of.start == 0

    @property
    def is_last(self) -> bool:
        """The last exit is here."""
        return self._of.stop == self._n_exits

    def _run(self, params: Params, x: F32 | U8, tape: Tape | None, heads: Sequence[int]) -> tuple[dict[int, F32], F32]:
        outputs: dict[int, F32] = {}
        here: F32 | U8 = x.copy().reshape(len(x), *params.spec.input_shape)
        for k, stage in enumerate(stages(params.spec)):
            here = run_layers(stage.trunk, params, here, tape, self.learner.scratch)
            if k in heads:
                outputs[k] = run_layers(stage.head, params, here, tape, self.learner.scratch)
        return outputs, np.asarray(here, np.float32)

    def forward(self, micro: int, passed: Passed, n_micros: int = 1) -> Passed | Returned:
        """Run some rows of a step.

        Args:
            micro: which rows of the step these are; a step's gradient is the sum over them.
            passed: from the piece before, or of `enter`.
            n_micros: how many there are.

        Returns:
            What goes to the next piece; the last piece turns round and gives what goes to the one before.

        Raises:
            UsageError: rows that do not fit the network.
        Source:
            pipeline of micro-batches: Huang et al. 2019 (arXiv 1811.06965), section 2.
        """
        learner, last = self.learner, self._of.stop - self._of.start - 1
        if passed.x.size != len(passed.x) * math.prod(learner.params.spec.input_shape):
            raise UsageError(f"rows of shape {passed.x.shape} do not fit {learner.params.spec.input_shape}")
        tape = Tape()
        outputs, features = self._run(learner.params, passed.x, tape, range(last + 1))
        ahead: list[tuple[dict[int, F32], F32] | None] = [
            None if x is None else self._run(params, x, None, (last,) if self.is_last else ())
            for params, x in ((learner.params, passed.next_x), (learner.target, passed.slow_x))
        ]
        self._kept[micro] = _Kept(tape, outputs, passed.rows)
        if not self.is_last:
            next_x, slow_x = (None if each is None else each[1] for each in ahead)
            return Passed(features, next_x, slow_x, passed.rows)
        n_actions = learner.params.spec.n_actions
        best = outputs[last][:, :n_actions].argmax(1)
        values = np.zeros(len(best), np.float32)
        if ahead[0] is not None and ahead[1] is not None:
            following = ahead[0][0][last][:, :n_actions].argmax(1)
            values = ahead[1][0][last][np.arange(len(best)), following]
        rows = passed.rows
        ahead_y = np.float32(self._hyper.gamma) * np.where(rows.terminated, np.float32(0), values)
        y = np.asarray(rows.reward + ahead_y, np.float32)
        return self.back(micro, Returned(np.empty(0, np.float32), y, best, NO_LOSSES, 0.0), n_micros)

    def back(self, micro: int, returned: Returned, n_micros: int = 1) -> Returned:
        """Take the gradient of some rows.

        Args:
            micro: as in `forward`, which must have run.
            returned: from the next piece.
            n_micros: as in `forward`.

        Returns:
            What goes to the piece before.

        Raises:
            UsageError: these rows never went forward, or came back before.
        Source:
            as `dqn.gradients`; the targets come back from the last piece, since only there they are known.
        """
        kept = self._kept.pop(micro, None)
        if kept is None:
            raise UsageError(f"rows {micro} come back that never went forward")
        rows, learner = kept.rows, self.learner
        lesson: Lesson = prepare(
            rows.action, rows.teacher_q, rows.told, returned.y, returned.best, self._hyper, rows.n, rows.n_told
        )
        d_outputs: dict[int, F32] = {}
        losses = returned.losses
        for k, out in kept.outputs.items():
            is_last = self._of.start + k == self._n_exits - 1
            d_outputs[k], shares = exit_gradient(out, lesson, self._hyper, self._n_exits, last=is_last)
            losses = add_losses(losses, shares)
        d_x = backward(
            learner.params,
            learner.grads,
            kept.tape,
            d_outputs,
            add=self._added > 0,
            scratch=learner.scratch,
            d_features=np.array(returned.d_x, np.float32) if returned.d_x.size else None,
            wants_dx=not self.is_first,
        )
        self._added += 1
        self._squared += returned.squared
        squared = 0.0
        if self._added == n_micros:
            grad = learner.grads.flat
            squared, self._squared, self._added = self._squared + float(np.dot(grad, grad)), 0.0, 0
        return Returned(np.empty(0, np.float32) if d_x is None else d_x, returned.y, returned.best, losses, squared)

    def forget(self) -> None:
        """Give up the step under way.

        Raises:
            Nothing.
        Source:
            ours: after a resumption the step is taken anew.
        """
        self._kept.clear()
        self._added, self._squared = 0, 0.0

    def descend(self, squared: float) -> None:
        """Take the step that the gradients are for.

        Args:
            squared: Euclidean norm of the whole gradient, squared.

        Raises:
            UsageError: the gradient is not finite; the parameters are untouched.
        Source:
            as `dqn.Learner.descend`, with the norm over all pieces.
        """
        hyper, norm = self._hyper, math.sqrt(squared) if squared >= 0 else math.nan
        if not math.isfinite(norm):
            raise UsageError(f"a gradient of {norm} at step {self.learner.steps}: rewards or values are not finite")
        self.learner.move(hyper.learning_rate, min(1.0, hyper.max_grad_norm / norm) if norm > 0 else 1.0)
        if self.learner.steps % hyper.target_every == 0:
            self.learner.target.flat[:] = self.learner.params.flat


def take(learner: Learner, of: Cut) -> Learner:
    """The learner of a piece.

    Args:
        learner: of the whole network.
        of: the piece.

    Returns:
        A learner with copies of that part of every vector.

    Raises:
        UsageError: as `piece_spec`.
    Source:
        ours: all parameters lie in one vector, stage by stage.
    """
    spec = piece_spec(learner.params.spec, of)
    part = Learner(Params(spec, learner.params.flat[of.first : of.last].copy()))
    part.restore({name: array[of.first : of.last] for name, array in learner.arrays().items()}, learner.steps)
    return part


def put(learner: Learner, of: Cut, arrays: dict[str, F32], steps: int) -> None:
    """Put a piece back into the whole.

    Args:
        learner: of the whole network, overwritten there.
        of: the piece.
        arrays: as `Learner.arrays` of the piece gave them.
        steps: it has taken.

    Returns:
        Nothing: `learner` has changed.

    Raises:
        UsageError: a vector is missing or has the wrong size.
    Source:
        as `take`.
    """
    for name, own in learner.arrays().items():
        if name not in arrays or arrays[name].shape != (of.last - of.first,):
            raise UsageError(f"vector {name!r} is not that of the stages {of.start} to {of.stop - 1}")
        own[of.first : of.last] = arrays[name]
    learner.steps = steps
