"""What a training step costs on one core, against PyTorch: `python -m tools.bench train`.

Every contestant is a process of its own with one thread and takes the same step: double-DQN targets, the loss of
`edgert.learn.dqn` at every exit, its gradient, clipping, Adam, on the same batch. They take turns, and a ratio is taken
within each round, so that all of its sides met the same machine; its interval is a bootstrap over rounds. Time is the
processor time of the whole process. Memory is its largest resident set (VmHWM) after the last step, the interpreter and
all libraries included; beside it stands how much that is above the resident set after the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgert.learn.dqn import Batch, Hyper, Learner
from edgert.nets import Conv, Dense, MaxPool, NetSpec, Params, Placed, Relu, initialise, stages
from edgert.programs import blas

RESULTS = Path(__file__).parent / "results"
BATCH = 32
HYPER = Hyper(match_weight=0.1)
ROUNDS = (30, 5)
"""In full, and quick."""
STEPS = {"minatar": 20, "nature": 3, "drone": 3}
"""In a row, per turn."""
Step = Callable[[], float]

NETS = {
    "minatar": NetSpec(
        (10, 10, 4),
        6,
        trunk=((Conv(16, 3), Relu()), (Conv(32, 3), Relu()), (Dense(128), Relu())),
        heads=((MaxPool(2, 2), Dense(32), Relu()), (MaxPool(2, 2), Dense(64), Relu()), ()),
    ),
    "nature": NetSpec(
        (84, 84, 4),
        6,
        trunk=((Conv(32, 8, 4), Relu()), (Conv(64, 4, 2), Relu()), (Conv(64, 3), Relu(), Dense(512), Relu())),
        heads=((MaxPool(4, 4), Dense(128), Relu()), (MaxPool(3, 3), Dense(256), Relu()), ()),
        input_scale=1 / 255,
    ),
    "drone": NetSpec(
        (103, 103, 3),
        25,
        trunk=(
            (Conv(96, 7, 4), Relu(), MaxPool(3, 2)),
            (Conv(64, 5, 1, 2), Relu(), MaxPool(3, 2)),
            (Conv(64, 3, 1, 1), Relu(), MaxPool(3, 2), Dense(1024), Relu()),
        ),
        heads=((MaxPool(3, 3), Dense(256), Relu()), (Dense(256), Relu()), ()),
        input_scale=1 / 255,
    ),
}
"""Three exits each: MinAtar's boards, Nature-DQN's frames (Mnih et al. 2015), a drone's camera (PEDRA's C3F2)."""


def random_batch(spec: NetSpec, n: int, seed: int = 0) -> Batch:
    """Transitions of noise: time does not depend on what they show."""
    rng = np.random.default_rng(seed)
    high = 2 if spec.input_scale == 1 else 256
    obs, next_obs = (rng.integers(0, high, (n, *spec.input_shape)).astype(np.uint8) for _ in range(2))
    return Batch(
        obs=obs,
        action=rng.integers(0, spec.n_actions, n),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=next_obs,
        terminated=rng.random(n) < 0.1,
        teacher_q=rng.normal(size=(n, spec.n_actions)).astype(np.float32),
        taught=rng.random(n) < 0.6,
    )


def start(spec: NetSpec) -> Params:
    """Where every contestant starts from."""
    return initialise(spec, np.random.default_rng(0))


def edgert_step(spec: NetSpec) -> Step:
    """The step that the trainer takes."""
    learner = Learner(start(spec))
    batch = random_batch(spec, BATCH)
    return lambda: learner.step(batch, HYPER).total


def torch_step(spec: NetSpec, *, channels_last: bool) -> Step:
    """The same step as PyTorch's users write it: modules, autograd, fused Adam; frames lie as its kernels like them."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    torch.set_num_threads(1)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    views = start(spec).views

    def filled(made: nn.Conv2d | nn.Linear, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> nn.Module:
        made.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        return made

    def linear(placed: Placed, columns: slice) -> nn.Module:
        """A dense layer; where it flattens an image, its inputs are reordered to (channel, row, column)."""
        weight, bias = views[f"{placed.name}.w"][:, columns], views[f"{placed.name}.b"][columns]
        if len(placed.in_shape) == 3:
            weight = weight.reshape(*placed.in_shape, -1).transpose(2, 0, 1, 3).reshape(len(weight), -1)
        return filled(nn.Linear(*weight.shape), weight.T, bias)

    def module(layers: list[Placed]) -> nn.Sequential:
        made: list[nn.Module] = []
        for placed in layers:
            match placed.layer:
                case Conv(channels, kernel, stride, padding):
                    weight = views[f"{placed.name}.w"].reshape(kernel, kernel, placed.in_shape[-1], channels)
                    each = nn.Conv2d(placed.in_shape[-1], channels, kernel, stride, padding)
                    made.append(filled(each, weight.transpose(3, 2, 0, 1), views[f"{placed.name}.b"]))
                case MaxPool(kernel, stride):
                    made.append(nn.MaxPool2d(kernel, stride))
                case Relu():
                    made.append(nn.ReLU())
                case Dense():
                    made += [nn.Flatten(), linear(placed, slice(None))]
        return nn.Sequential(*made)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            laid = stages(spec)
            outputs = [stage.head[-1] for stage in laid]
            self.trunk = nn.ModuleList(module(stage.trunk) for stage in laid)
            self.heads = nn.ModuleList(module(stage.head[:-1]) for stage in laid)
            self.values = nn.ModuleList(linear(out, slice(spec.n_actions)) for out in outputs)
            self.confidence = nn.ModuleList(linear(out, slice(spec.n_actions, None)) for out in outputs)

        def forward(self, obs: Tensor) -> list[tuple[Tensor, Tensor]]:
            x, found = obs.float() * spec.input_scale, []
            for trunk, head, values, confidence in zip(
                self.trunk, self.heads, self.values, self.confidence, strict=True
            ):
                x = trunk(x)
                features = head(x).flatten(1)
                found.append((values(features), confidence(features.detach())[:, 0]))
            return found

        def final(self, obs: Tensor) -> Tensor:
            x = obs.float() * spec.input_scale
            for trunk in self.trunk:
                x = trunk(x)
            q: Tensor = self.values[-1](self.heads[-1](x).flatten(1))
            return q

    net, slow = Net(), Net()
    for each in (net, slow):
        each.to(memory_format=memory_format)  # type: ignore[call-overload, unused-ignore]  # stubs before torch 2.15 lack this
    slow.load_state_dict(net.state_dict())
    optimiser = torch.optim.Adam(net.parameters(), lr=HYPER.learning_rate, fused=True)
    batch = random_batch(spec, BATCH)
    obs, next_obs = (
        torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
        for frames in (batch.obs, batch.next_obs)
    )
    action, reward, terminated, teacher, taught = map(
        torch.from_numpy, (batch.action, batch.reward, batch.terminated, batch.teacher_q, batch.taught)
    )

    def step() -> float:
        with torch.no_grad():
            chosen = net.final(next_obs).argmax(1, keepdim=True)
            value = slow.final(next_obs).gather(1, chosen)[:, 0]
            y = reward + HYPER.gamma * torch.where(terminated, 0.0, value)
            known = teacher[taught]
            wanted = (known / HYPER.temperature).softmax(1)
        outputs = net(obs)
        best = outputs[-1][0].detach().argmax(1)
        loss = torch.zeros(())
        for k, (q, logit) in enumerate(outputs):
            loss = loss + HYPER.td_weight * functional.smooth_l1_loss(q.gather(1, action[:, None])[:, 0], y)
            own = q[taught]
            preferred = (own / HYPER.temperature).log_softmax(1)
            loss = loss + HYPER.distill_weight * functional.kl_div(preferred, wanted, reduction="batchmean")
            loss = loss + HYPER.match_weight * functional.mse_loss(own, known)
            if k < spec.n_exits - 1:
                agrees = (q.detach().argmax(1) == best).float()
                loss = loss + HYPER.confidence_weight * functional.binary_cross_entropy_with_logits(logit, agrees)
        loss = loss / spec.n_exits
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        nn.utils.clip_grad_norm_(net.parameters(), HYPER.max_grad_norm)
        optimiser.step()
        return loss.item()

    return step


PEERS: dict[str, tuple[Callable[[NetSpec], Step], dict[str, str]]] = {
    "edgert": (edgert_step, blas.environment({})),
    "edgert, blas alone": (edgert_step, {}),
    "torch": (lambda spec: torch_step(spec, channels_last=False), {}),
    "torch channels_last": (lambda spec: torch_step(spec, channels_last=True), {}),
}
"""How each contestant makes its step, and the environment that it needs. `blas alone` has not been told what the
processor can do, see `edgert.programs.blas`; PyTorch finds out by itself."""


def resident_bytes(which: str) -> int:
    """VmRSS or VmHWM of this process."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1]) * 1024


def work(net: str, peer: str) -> int:
    """Be a contestant: for each line, take so many steps and say what they took; in the end, say what memory."""
    make, _ = PEERS[peer]
    if peer.startswith("torch"):
        import torch  # noqa: F401 - so that the imports' share of the memory is known
    imported_bytes = resident_bytes("VmRSS")
    step = make(NETS[net])
    for line in sys.stdin:
        began_s = time.process_time()
        for _ in range(int(line)):
            step()
        print(time.process_time() - began_s, flush=True)
    print(json.dumps({"peak_bytes": resident_bytes("VmHWM"), "imported_bytes": imported_bytes}))
    return 0


class Contestant:
    """A process that takes steps when told to."""

    def __init__(self, net: str, peer: str) -> None:
        """Start it."""
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.bench.train", "--work", net, peer],
            env={**os.environ, **one_thread, **PEERS[peer][1]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step_s(self, steps: int) -> float:
        """Processor seconds of one step, over so many."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline()) / steps

    def end(self) -> dict[str, int]:
        """Stop it; its memory."""
        said, _ = self._process.communicate()
        memory: dict[str, int] = json.loads(said)
        return memory

    def kill(self) -> None:
        """Stop it, whatever it does."""
        self._process.kill()
        self._process.wait()


def measure(net: str, peers: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Times, (rounds,) seconds a step, and memory of each contestant."""
    started: dict[str, Contestant] = {}
    try:
        started.update((peer, Contestant(net, peer)) for peer in peers)
        for each in started.values():
            each.step_s(3)
        took: dict[str, list[float]] = {peer: [] for peer in peers}
        for i in range(rounds):
            for peer in peers[i % len(peers) :] + peers[: i % len(peers)]:
                took[peer].append(started[peer].step_s(steps))
        return {"step_s": took, "memory": {peer: each.end() for peer, each in started.items()}}
    finally:
        for each in started.values():
            each.kill()


def ratio(taken_s: npt.NDArray[np.float64], base_s: npt.NDArray[np.float64]) -> list[float]:
    """Median over rounds of the ratio, and a 95 % bootstrap interval of it."""
    each, rng = taken_s / base_s, np.random.default_rng(0)
    drawn = np.median(each[rng.integers(0, len(each), (2000, len(each)))], 1)
    return [round(float(x), 4) for x in (np.median(each), *np.percentile(drawn, (2.5, 97.5)))]


def judge(measured: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds, ratios of time and memory to both kinds of PyTorch, of every contestant."""
    took = {peer: np.array(step_s) for peer, step_s in measured["step_s"].items()}
    memory, found = measured["memory"], {}
    for peer, step_s in took.items():
        peak, imported = memory[peer]["peak_bytes"], memory[peer]["imported_bytes"]
        found[peer] = {
            "step_ms": round(float(np.median(step_s)) * 1e3, 3),
            "time_vs_torch": ratio(step_s, took["torch"]),
            "time_vs_channels_last": ratio(step_s, took["torch channels_last"]),
            "peak_mib": round(peak / 2**20, 1),
            "peak_above_imports_mib": round((peak - imported) / 2**20, 1),
            "peak_vs_torch": round(peak / memory["torch"]["peak_bytes"], 4),
        }
    return found


def summarise(nets: dict[str, Any]) -> dict[str, Any]:
    """Ratios of edgert to eager PyTorch with fused Adam; below 1 is better. Time: median, low, high."""
    found: dict[str, Any] = {
        f"train_time_vs_torch_{net}": figures["edgert"]["time_vs_torch"] for net, figures in nets.items()
    }
    found["train_peak_memory_vs_torch_max"] = max(figures["edgert"]["peak_vs_torch"] for figures in nets.values())
    return found


def run(nets: list[str], *, quick: bool) -> dict[str, Any]:
    """Measure some networks.

    Args:
        nets: names in `NETS`.
        quick: fewer rounds.

    Returns:
        `summary` as `summarise` makes it, and `nets`: per network and contestant what `judge` found.
    """
    found = {}
    for net in nets:
        found[net] = judge(measure(net, list(PEERS), ROUNDS[quick], STEPS[net]))
        show(net, found[net])
    return {"summary": summarise(found), "nets": found}


def show(net: str, figures: dict[str, Any]) -> None:
    """Print a plain table."""
    print(f"\n{net:<20}{'ms':>9}{'x torch':>9}{'95 %':>14}{'x ch.last':>11}{'peak MiB':>10}{'+':>8}{'x torch':>9}")
    for peer, row in figures.items():
        middle, low, high = row["time_vs_torch"]
        print(
            f"{peer:<20}{row['step_ms']:>9.2f}{middle:>9.3f}{f'{low:.3f}..{high:.3f}':>14}"
            f"{row['time_vs_channels_last'][0]:>11.3f}{row['peak_mib']:>10.1f}{row['peak_above_imports_mib']:>8.1f}"
            f"{row['peak_vs_torch']:>9.3f}",
            flush=True,
        )


def main(argv: list[str]) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench train", description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", nargs=2, metavar=("NET", "PEER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(*args.work)
    from edgert.ports.runtime.choice import cpu_name
    from tools.train import commit

    found = run(args.nets, quick=args.quick)
    document = {
        "command": "python -m tools.bench train " + " ".join(argv),
        "commit": commit(),
        "machine": f"{platform.machine()}, {cpu_name()}, Python {platform.python_version()}, numpy {np.__version__}",
        "batch": BATCH,
        **found,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "train.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
