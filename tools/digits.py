"""A family of models whose accuracies are measured here: handwritten digits, a data set that ships in scikit-learn.

`python -m tools.digits --out models` trains three widths, each with two exits, cuts every exit into a network of its
own, and writes each in fp32 and in int8: twelve variants of one task, from 3 to 60 thousand multiply-accumulates. Each
says in its manifest how many of the held-out digits it reads: 600 of 1,797 that were drawn before anything was trained
and that chose nothing, neither a network nor the ranges of int8.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch.nn import functional

from edgert import modelfile
from edgert.bundle import Cost, ExitCost
from edgert.nets import (
    U8,
    Conv,
    Dense,
    MaxPool,
    NetSpec,
    Params,
    Relu,
    initialise,
)
from edgert.ports.runtime.model import open_model
from edgert.ports.store import write_atomic
from tools import models
from tools.train import commit
from tools.train.torchnet import Net

SIDE, CLASSES, TOP = 8, 10, 16
"""Pictures of 8 x 8 counts of 0 to 16."""
HELD_OUT = 600
WIDTHS = (1.0, 0.5, 0.25)
EPOCHS, BATCH, RATE = 60, 32, 2e-3
SOURCE = "scikit-learn digits (UCI optical recognition of handwritten digits, its test part), held out"


class Data(NamedTuple):
    """Pictures (n, 8, 8, 1) uint8 and their digits."""

    seen: U8
    said: npt.NDArray[np.int64]
    held: U8
    held_said: npt.NDArray[np.int64]


def data(seed: int = 0) -> Data:
    """The data set, divided once for all.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = found.images.astype(np.uint8)[..., None]
    order = np.random.default_rng(seed).permutation(len(pictures))
    held, seen = order[:HELD_OUT], order[HELD_OUT:]
    said = found.target.astype(np.int64)
    return Data(pictures[seen], said[seen], pictures[held], said[held])


def spec(width: float) -> NetSpec:
    """Two exits over two small convolutions."""
    first, second, hidden = (max(4, int(each * width)) for each in (16, 32, 64))
    return NetSpec(
        input_shape=(SIDE, SIDE, 1),
        n_actions=CLASSES,
        trunk=((Conv(first, 3), Relu()), (Conv(second, 3), Relu(), Dense(hidden), Relu())),
        heads=((MaxPool(2, 2),), ()),
        input_scale=1 / TOP,
    )


def train(width: float, known: Data, seed: int) -> Params:
    """Both exits at once, cross entropy each.

    Args:
        width: of the network.
        known: only what is seen is looked at.
        seed: of weights and batches.

    Returns:
        The parameters after the last epoch; none is chosen by its accuracy.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(seed)
    net = Net(initialise(spec(width), rng))
    steps = EPOCHS * math.ceil(len(known.seen) / BATCH)
    adam = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    pictures, said = torch.from_numpy(known.seen), torch.from_numpy(known.said)
    for _ in range(EPOCHS):
        order = torch.from_numpy(rng.permutation(len(pictures)))
        for rows in torch.split(order, BATCH):
            heads = net(pictures[rows])
            losses = [functional.cross_entropy(head[:, :CLASSES], said[rows]) for head in heads.values()]
            adam.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch types it in part only
            adam.step()
            falling.step()
    return net.params()


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson 1927)."""
    share, spread = right / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / n / 4) / (1 + spread)
    return centre - half, centre + half


def bundled(params: Params, width: float, exit_: int, precision: Literal["fp32", "int8"], known: Data) -> bytes:
    """One variant: quantized on what was seen, judged on what was held out, timed here."""
    members, golden, answers = models.built(params, precision, ranges_of=known.seen[:256], asked=known.held)
    right = int((answers.argmax(1) == known.held_said).sum())
    low, high = wilson(right, HELD_OUT)
    measured = modelfile.Accuracy(
        metric="top-1",
        value_frac=right / HELD_OUT,
        measured=True,
        source=SOURCE,
        samples=HELD_OUT,
        low_frac=low,
        high_frac=high,
    )
    manifest = models.manifest(
        params,
        precision,
        golden,
        name=f"digits-{width:g}-{'early' if exit_ == 0 else 'full'}-{precision}",
        task="digits",
        accuracy=[measured],
        width=width,
        exit=exit_,
        provenance={"made_by": "tools.digits", "commit": commit(), "epochs": EPOCHS, "trained_on": len(known.seen)},
    )
    opened = open_model(modelfile.read(modelfile.write(manifest, members)))
    return modelfile.write(msgspec.structs.replace(manifest, costs=(_cost(opened.run, known, precision),)), members)


def _cost(run: Any, known: Data, precision: Literal["fp32", "int8"], calls: int = 400) -> Cost:
    """One row at a time, on this machine."""
    import time

    took, cpu_s = [], time.process_time()
    for i in range(calls):
        began_s = time.perf_counter()
        run(known.held[i : i + 1])
        took.append(time.perf_counter() - began_s)
    cpu_s = (time.process_time() - cpu_s) / calls
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "unknown",
    )
    exits = (ExitCost(float(np.median(took)), float(np.quantile(took, 0.99)), cpu_s),)
    rate_hz = calls / max(1e-9, sum(took))
    return Cost(
        board="linux",
        cpu=cpu,
        runtime="onnx",
        version=ort.__version__,
        precision=precision,
        rate_hz=rate_hz,
        exits=exits,
        samples=calls,
    )


def main(argv: list[str] | None = None) -> int:
    """Train, cut, judge, and write the twelve bundles."""
    parser = argparse.ArgumentParser(prog="python -m tools.digits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    known = data()
    for width in WIDTHS:
        whole = train(width, known, args.seed)
        for exit_ in (0, 1):
            params = models.cut(whole, exit_)
            for precision in ("fp32", "int8"):
                packed = bundled(params, width, exit_, precision, known)
                said = modelfile.read(packed).manifest
                path = args.out / f"{said.name}.edgert"
                write_atomic(path, packed, 0o644)
                best, cost = said.accuracy[0], said.costs[0].exits[0]
                print(
                    f"{path}: {len(packed)} bytes, {said.macs} MAC, top-1 {best.value_frac:.1%} "
                    f"({best.low_frac:.1%} to {best.high_frac:.1%}), {1e6 * cost.p50_s:.0f} us"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
