"""One part of a training job that was placed here: a process of its own, which may be killed at any instant.

It talks to the placer alone, over the socket that it was started with, and leaves when that is closed. It knows its
files, its part and its step; who the others are and how they are reached is the placer's to know.
"""

from __future__ import annotations

import os

from edgert.programs import blas

os.environ.update(blas.environment(os.environ))  # before numpy

import argparse
import contextlib
import logging
import socket
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edgert import quant
from edgert.errors import ArtifactError, EdgertError, MessageError, UsageError
from edgert.learn import split
from edgert.learn.accept import Limits, judge
from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.learn.split import Passed, Piece, Returned
from edgert.nets import F32, Params
from edgert.policy import artifact, exits
from edgert.ports import ipc, shards
from edgert.ports.process import INSTALLED, Stopping, identity, run_program, usage
from edgert.ports.shards import Parcel, Whole
from edgert.ports.store import write_atomic
from edgert.programs import judging
from edgert.programs.judging import Side

REPORT_S = 0.5
OWNER = -1
WORKERS = (2, 4)
WARM, MEASURED = 1, 4
"""Steps that are taken to see what a part takes."""
ROOT = 0
"""The part that the observations come in at, or that adds up the gradients."""

log = logging.getLogger("edgert.placer.worker")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a part has to do.

    Attributes:
        job: its name, for people.
        kind: `layers`: parts are stages in a chain; `data`: each is the whole network, on its share of a batch;
            `measure`: train nothing, see what each part takes; `judge`: nor here, judge what came of it.
        part, parts: which of how many.
        edges: first stage of each part, for `layers`.
        bundle: the file of the network to begin with.
        shard: what to train on, where observations come in here; `judge`: what to judge by.
        state: optimiser state to go on from, of the whole network; empty for a new training.
        hyper: how to learn.
        batch: rows of a step, over all parts.
        micros: parts of a batch that are under way at once in a chain.
        steps: to have been taken in the end.
        checkpoint_steps: between two states that the owner is sent.
        seed: of the drawing.
        rows: usable rows at each part, for `data`: everybody draws for all, so that all know the whole batch.
        told: which of them a teacher answered, a byte a row, one entry a part.
        result: file of the bundle that `judge` makes.
        acting: file of the network that the result is to take the place of; empty for the one that training began from.
        split: which ways to cut the job `measure` looks at.
    """

    job: str
    kind: Literal["layers", "data", "measure", "judge"]
    part: int = 0
    parts: int = 1
    edges: tuple[int, ...] = (0,)
    bundle: str
    shard: str = ""
    state: str = ""
    hyper: Hyper = Hyper()
    batch: int = 32
    micros: int = 1
    steps: int = 1
    checkpoint_steps: int = 100
    seed: int = 0
    rows: tuple[int, ...] = ()
    told: tuple[bytes, ...] = ()
    result: str = ""
    acting: str = ""
    split: Literal["auto", "one", "data", "layers"] = "auto"


class Worker:
    """A part at work. Deterministic given its order and what the others say."""

    def __init__(self, order: Order, channel: ipc.Channel, stopping: Stopping) -> None:
        """Load what the order names.

        Raises:
            ArtifactError, StoreError, UsageError: it cannot be done with these files.
        """
        self.order, self.channel, self.stopping = order, channel, stopping
        (bundle,) = shards.read_files([Path(order.bundle)])
        policy = artifact.load(bundle)
        self.spec = policy.spec
        whole = Learner(policy.params.copy())
        if order.state:
            (state,) = shards.read_files([Path(order.state)])
            whole.restore(*shards.unpack_state(state))
        cuts = split.cut(self.spec, order.edges if order.kind == "layers" else (0,))
        of = cuts[order.part] if order.kind == "layers" else cuts[0]
        self.piece = Piece(split.take(whole, of), of, self.spec.n_exits, order.hyper)
        self.shard: Batch | None = None
        if order.shard:
            (shard,) = shards.read_files([Path(order.shard)])
            self.shard = shards.unpack_shard(shard)
            if self.shard.obs.shape[1:] != tuple(self.spec.input_shape):
                raise ArtifactError(
                    f"the shard's observations are {self.shard.obs.shape[1:]}, not {self.spec.input_shape}"
                )
        self.inbox: deque[dict[str, object]] = deque()
        self.unpacking = shards.Unpacking()
        self.going = False
        self.asked_to_stop = False
        self.losses = split.NO_LOSSES
        self.loss: float | None = None
        self.back = 0  # micro-batches of the step that came back
        self.sums: dict[int, F32] = {}  # by part, of the step under way
        self.taken: set[tuple[str, int, int]] = set()  # kind, part and micro-batch of what came for it
        self.began_cpu_s = 0.0
        self.reported_s = 0.0

    @property
    def steps(self) -> int:
        """Taken so far."""
        return self.piece.learner.steps

    @property
    def done(self) -> bool:
        """Everything is learned."""
        return self.steps >= self.order.steps

    def tell(self, message: dict[str, object]) -> None:
        """Say something to the placer, and wait for room."""
        while self.channel.wants_write and not self.channel.closed and not self.stopping:
            self.channel.wait(0.05)
            self.inbox.extend(self.channel.receive_maps())
        self.channel.send_map(message)

    def say(self, kind: str, to: int, data: bytes, *, step: int, micro: int = 0) -> None:
        """Send something to another part, or to the owner."""
        for parcel in shards.parcels(kind, self.order.part, to, step, data, micro=micro):
            self.tell({"t": "parcel", "parcel": msgspec.to_builtins(parcel, builtin_types=(bytes,))})

    def report(self, now_s: float) -> None:
        """Progress, now and then."""
        if now_s < self.reported_s:
            return
        self.reported_s = now_s + REPORT_S
        _, rss_bytes = usage()
        cpu_s = time.process_time() - self.began_cpu_s if self.going else 0.0
        self.tell({"t": "state", "step": self.steps, "loss": self.loss, "rss_bytes": rss_bytes, "cpu_s": cpu_s})

    def run(self) -> int:
        """Work until the steps are taken, or the placer says stop or is gone."""
        self.tell({"t": "ready"})
        while not (self.channel.closed or self.asked_to_stop or self.stopping):
            if not self.inbox:
                self.channel.wait(REPORT_S)
                self.inbox.extend(self.channel.receive_maps())
            while self.inbox:
                self._hear(self.inbox.popleft())
            self.report(time.monotonic())
        return 0

    def _hear(self, message: dict[str, object]) -> None:
        match message.get("t"):
            case "go" if not self.going:
                self.going, self.began_cpu_s = True, time.process_time()
                self._begin()
            case "stop":
                self.asked_to_stop = True
            case "parcel":
                whole = self.unpacking.add(msgspec.convert(message.get("parcel"), Parcel, builtin_types=(bytes,)))
                if whole is not None:
                    self._take(whole)
            case _:
                pass

    def _rows(self, step: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        """The rows of a step, for each part that has some."""
        order = self.order
        sizes = order.rows or (len(self.shard.action) if self.shard is not None else 0,)
        each = [len(range(k, order.batch, len(sizes))) for k in range(len(sizes))]
        return [
            np.random.default_rng([order.seed, step, k]).integers(0, max(1, size), n)
            for k, (size, n) in enumerate(zip(sizes, each, strict=True))
        ]

    def _begin(self) -> None:
        """The first move of a step, where it is this part's to make."""
        while not self.done and self.going:
            if self.order.kind == "data":
                self._share()
            elif self.order.part == ROOT:
                self._feed()
            if self.order.parts != 1:
                return
            self.report(time.monotonic())
            self.inbox.extend(self.channel.receive_maps())
            if self.channel.closed or self.stopping or any(each.get("t") == "stop" for each in self.inbox):
                return

    def _feed(self) -> None:
        """A chain begins: all rows of the step go ahead, and come back when they do."""
        order, step = self.order, self.steps
        assert self.shard is not None
        batch = shards.pick(self.shard, self._rows(step)[0])
        n_told = int(np.count_nonzero(batch.taught)) if order.hyper.distill_weight or order.hyper.match_weight else 0
        self.back, self.losses = 0, split.NO_LOSSES
        for micro in range(order.micros):
            part = shards.pick(batch, slice(micro, None, order.micros))
            passed = split.enter(part, order.hyper, order.batch, n_told)
            self._forward(step, micro, passed)

    def _forward(self, step: int, micro: int, passed: Passed) -> None:
        told = self.piece.forward(micro, passed, self.order.micros)
        if isinstance(told, Passed):
            self.say("ahead", self.order.part + 1, shards.pack_said(told), step=step, micro=micro)
        else:
            self._returned(step, micro, told)

    def _returned(self, step: int, micro: int, told: Returned) -> None:
        """Rows have come back as far as this part."""
        if self.order.part != ROOT:
            self.say("back", self.order.part - 1, shards.pack_said(told), step=step, micro=micro)
            return
        self.back += 1
        self.losses = split.add_losses(self.losses, told.losses)
        if self.back == self.order.micros:
            self._descend(step, told.squared, self.losses.td + self.losses.distill + self.losses.confidence)

    def _share(self) -> None:
        """This part's share of a step's gradient."""
        order, step = self.order, self.steps
        drawn = self._rows(step)
        follows = bool(order.hyper.distill_weight or order.hyper.match_weight)
        flags = [np.frombuffer(told, np.uint8) for told in order.told]
        assert self.shard is not None
        flags = flags or [self.shard.taught.astype(np.uint8)]
        n_told = sum(int(told[rows].sum()) for told, rows in zip(flags, drawn, strict=True)) if follows else 0
        batch = shards.pick(self.shard, drawn[order.part])
        told = self.piece.forward(0, split.enter(batch, order.hyper, order.batch, n_told))
        assert isinstance(told, Returned)
        self.losses = told.losses
        grads = self.piece.learner.grads.flat
        if order.part == ROOT:
            self._add(step, ROOT, grads.copy())
        else:
            self.say("sum", ROOT, shards.pack_said(grads), step=step)

    def _add(self, step: int, of: int, grads: F32) -> None:
        """The root adds up; the order of the parts is always the same, so that replays are exact."""
        if step != self.steps:
            return
        self.sums[of] = grads
        if len(self.sums) < self.order.parts:
            return
        total = self.sums[0]
        for k in range(1, self.order.parts):
            total = total + self.sums[k]
        self.sums = {}
        for k in range(1, self.order.parts):
            self.say("sum", k, shards.pack_said(total), step=step)
        self._follow(step, total)

    def _follow(self, step: int, total: F32) -> None:
        self.piece.learner.grads.flat[:] = total
        self._descend(step, float(np.dot(total, total)), self.losses.td + self.losses.distill + self.losses.confidence)

    def _descend(self, step: int, squared: float, loss: float) -> None:
        """Take the step, tell those behind in the chain, and go on."""
        order = self.order
        self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.piece.descend(squared)
        self.taken.clear()
        if order.kind == "layers" and order.part + 1 < order.parts:
            self.say("commit", order.part + 1, np.float64(squared).tobytes(), step=step)
        self._keep()
        if order.parts > 1 and (order.kind == "data" or order.part == ROOT):
            self._begin()

    def _keep(self) -> None:
        """The owner gets the state every so often, and the last one."""
        order = self.order
        due = self.done or self.steps % order.checkpoint_steps == 0
        if self.done:
            self.reported_s = 0.0
            self.report(time.monotonic())
        if due and (order.kind == "layers" or order.part == ROOT):
            state = shards.pack_state(self.piece.learner.arrays(), self.steps)
            self.say("result" if self.done else "state", OWNER, state, step=self.steps)

    def _take(self, whole: Whole) -> None:
        """Something from another part; what belongs to another step is too late, or came twice."""
        key = whole.kind, whole.of, whole.micro
        if whole.step != self.steps or key in self.taken:
            return
        self.taken.add(key)
        if whole.kind == "commit" and self.order.kind == "layers":
            self._descend(whole.step, float(np.frombuffer(whole.data, np.float64)[0]), 0.0)
        else:
            said = shards.unpack_said(whole.data)
            if isinstance(said, Passed) and whole.kind == "ahead":
                self._forward(whole.step, whole.micro, said)
            elif isinstance(said, Returned) and whole.kind == "back":
                self._returned(whole.step, whole.micro, self.piece.back(whole.micro, said, self.order.micros))
            elif isinstance(said, np.ndarray) and whole.kind == "sum":
                if said.shape != self.piece.learner.grads.flat.shape:
                    raise MessageError(f"a gradient of {said.size} numbers")
                if self.order.part == ROOT:
                    self._add(whole.step, whole.of, said)
                else:
                    self._follow(whole.step, said)


def measure(order: Order) -> list[dict[str, object]]:
    """Run every way to cut a job, part by part, in this process, and see what each part takes.

    Returns:
        One map a split: `kind`, `edges`, and `parts` as in `placement.jobs.Part`.

    Raises:
        ArtifactError, StoreError, UsageError: files that are not what they should be.
    """
    _, base_bytes = usage()
    bundle, shard = shards.read_files([Path(order.bundle), Path(order.shard)])
    policy, rows = artifact.load(bundle), shards.unpack_shard(shard)
    usable = shards.pick(rows, ~shards.held_out(rows))
    n = policy.spec.n_exits
    layers = [(0, k) for k in range(1, n)] + ([tuple(range(n))] if n > 2 else [])
    ways: list[tuple[str, tuple[int, ...], int]] = [("data", (0,), 1)]
    if order.split in ("auto", "data"):
        ways += [("data", (0,), workers) for workers in WORKERS if order.batch >= 2 * workers]
    if order.split in ("auto", "layers"):
        ways += [("layers", edges, 1) for edges in layers]
    shard_bytes = sum(column.nbytes for column in usable)
    if order.split != "auto" and len(ways) > 1:
        ways = ways[1:]
    return [_measure_one(order, policy, usable, way, base_bytes + len(bundle), shard_bytes) for way in ways]


def _measure_one(
    order: Order,
    policy: artifact.Policy,
    usable: Batch,
    way: tuple[str, tuple[int, ...], int],
    base_bytes: int,
    shard_bytes: int,
) -> dict[str, object]:
    kind, edges, workers = way
    spec, whole = policy.spec, Learner(policy.params.copy())
    cuts = split.cut(spec, edges)
    pieces = [Piece(split.take(whole, of), of, spec.n_exits, order.hyper) for of in cuts]
    rng = np.random.default_rng(order.seed)
    rows = len(range(0, order.batch, workers))
    cpu_s, peak_bytes, ahead_bytes = [0.0] * len(pieces), [0] * len(pieces), [0] * len(pieces)

    def timed(k: int, doing: Callable[[], Any]) -> Any:
        began_s = time.process_time()
        tracemalloc.reset_peak()
        done = doing()
        cpu_s[k] += time.process_time() - began_s
        if tracemalloc.is_tracing():
            peak_bytes[k] = max(peak_bytes[k], tracemalloc.get_traced_memory()[1] - before)
        return done

    for step in range(WARM + MEASURED + 1):
        before = 0
        if step == WARM:
            cpu_s = [0.0] * len(pieces)
        if step == WARM + MEASURED:  # with memory, which takes time
            kept_s = list(cpu_s)
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
        batch = shards.pick(usable, rng.integers(0, len(usable.action), rows))
        said: Passed | Returned = split.enter(batch, order.hyper)
        for k, piece in enumerate(pieces):
            assert isinstance(said, Passed)
            said = timed(k, partial(_forward, piece, said))
            ahead_bytes[k] = len(shards.pack_said(said)) if isinstance(said, Passed) else 0
        assert isinstance(said, Returned)
        returned: Returned = said
        back_bytes = [0] * len(pieces)
        for k in range(len(pieces) - 2, -1, -1):
            back_bytes[k] = len(shards.pack_said(returned))
            returned = timed(k, partial(_back, pieces[k], returned))
        for k, piece in enumerate(pieces):
            timed(k, partial(piece.descend, returned.squared))
        if tracemalloc.is_tracing():
            tracemalloc.stop()
    step_s = [each / MEASURED for each in kept_s]
    parts: list[dict[str, object]] = []
    grad_bytes = 2 * len(shards.pack_said(pieces[0].learner.grads.flat))
    for k in range(workers if kind == "data" else len(pieces)):
        at = 0 if kind == "data" else k
        held = shard_bytes // workers if at == 0 else 0
        state_bytes = 5 * pieces[at].learner.params.flat.nbytes
        if kind == "data":
            flows = [[other, grad_bytes] for other in range(1, workers)] if k == 0 else []
        else:
            flows = [[k + 1, ahead_bytes[k] + back_bytes[k]]] if k + 1 < len(pieces) else []
        parts.append(
            {
                "compute_core_s": max(1e-6, step_s[at]),
                "cores": 1.0 if kind == "data" else 1.0 / len(pieces),
                "memory_bytes": base_bytes + held + state_bytes + peak_bytes[at] + (grad_bytes if workers > 1 else 0),
                "flows": flows,
            }
        )
    return {"kind": kind, "edges": list(edges), "parts": parts}


def _forward(piece: Piece, passed: Passed) -> Passed | Returned:
    said = piece.forward(0, passed)
    shards.pack_said(said)  # which costs time as well
    return said


def _back(piece: Piece, returned: Returned) -> Returned:
    said = piece.back(0, returned)
    shards.pack_said(said)
    return said


def judge_result(order: Order) -> dict[str, object]:
    """Round what was learned to int8, and let the gate judge it on what was not trained on.

    Returns:
        The verdict; `path` is empty when it was refused.

    Raises:
        ArtifactError, StoreError: files that are not what they should be, or a disk that takes nothing.
    """
    bundle, shard, state = shards.read_files([Path(order.bundle), Path(order.shard), Path(order.state)])
    policy = artifact.load(bundle)
    rows = shards.unpack_shard(shard)
    probe = shards.pick(rows, shards.held_out(rows))
    arrays, steps = shards.unpack_state(state)
    if len(probe.action) < 2:
        return {"checks": {"held-out": False}, "detail": {"held_out": float(len(probe.action))}, "path": ""}
    fit, check = (shards.pick(probe, slice(start, None, 2)) for start in (0, 1))
    params = Params(policy.spec, arrays["params"])
    quantized = quant.fit(params, fit.obs)
    candidate = quant.IntNet(policy.spec, quantized.tensors)
    thresholds = exits.fit_thresholds(candidate.heads(fit.obs))
    base = Side(quant.IntNet(policy.spec, policy.tensors), policy.manifest.thresholds)
    acting = base
    if order.acting:
        (data,) = shards.read_files([Path(order.acting)])
        acts = artifact.load(data)
        if acts.spec == policy.spec:
            acting = Side(quant.IntNet(acts.spec, acts.tensors), acts.manifest.thresholds)
    evidence = judging.evidence(base, acting, Side(candidate, thresholds), params, check, order.hyper.gamma)
    verdict = judge(evidence, Limits())
    path = ""
    if verdict.accepted:
        trained = {"job": order.job, "steps": steps}
        provenance = {INSTALLED: identity(policy.manifest), "parent": policy.manifest.name, "placed": trained}
        data = artifact.derive(
            policy,
            params,
            quantized,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            provenance={**provenance, "gate": verdict.detail},
            thresholds=thresholds,
        )
        write_atomic(order.result, data)
        path = order.result
    return {"checks": verdict.checks, "detail": verdict.detail, "path": path}


def _run(fd: int) -> int:
    os.nice(19)
    with contextlib.suppress(OSError):  # where memory is short, others' work goes first
        Path("/proc/self/oom_score_adj").write_text("800")
    channel = ipc.Channel(socket.socket(fileno=fd))
    stopping = Stopping()
    while not channel.closed and not stopping:
        channel.wait(0.5)
        for message in channel.receive_maps():
            try:
                order = msgspec.convert(message, Order, builtin_types=(bytes,))
                if order.kind in ("judge", "measure"):
                    told = judge_result(order) if order.kind == "judge" else {"splits": measure(order)}
                    channel.send_map({"t": "verdict" if order.kind == "judge" else "measured", **told})
                    while channel.wants_write and not channel.closed:
                        channel.wait(0.5)
                    return 0
                return Worker(order, channel, stopping).run()
            except (EdgertError, msgspec.ValidationError) as error:
                log.error("%s", error)
                channel.send_map({"t": "failed", "why": f"{type(error).__name__}: {error}"[:500]})
                while channel.wants_write and not channel.closed:
                    channel.wait(0.5)
                return 0 if isinstance(error, ArtifactError | UsageError | MessageError) else 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one part; the placer starts it."""
    parser = argparse.ArgumentParser(prog="edgert.programs.placer.worker")
    parser.add_argument("--fd", type=int, required=True)
    args = parser.parse_args(argv)
    return run_program("placer.worker", lambda: _run(args.fd))


if __name__ == "__main__":
    sys.exit(main())
