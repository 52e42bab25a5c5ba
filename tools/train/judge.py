"""Teach the early exits of a trained network how sure they may be: `python -m tools.train.judge --run RUN --out OUT`.

Actions stay as they are. The network plays, leaving early at random most of the time, so that the states are those that
its early exits bring about; what an exit gives away there by the teacher's values is what its confidence learns. It is
a logistic regression on what the head sees and on the gap between its two best Q-values: convex, solved to the end.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from edgert.errors import EdgertError, UsageError
from edgert.nets import F32, U8, Params, forward, run_layers, stages
from tools.episodes import play
from tools.train import commit, kept, losses
from tools.train.loop import cpu_s, write_run

F64 = npt.NDArray[np.float64]

SEED = 50_000_000
"""Of the first episode: apart from those of training, evaluation and export."""
NEWTON_STEPS = 30
BATCH = 512


class Judgement(NamedTuple):
    """A confidence: `features @ weight + bias + gap_logits * gap`."""

    weight: F64
    bias: float
    gap_logits: float


def fit(features: F32, gap: F32 | None, wanted: F32, *, ridge: float = 1e-3) -> Judgement:
    """Logistic regression by Newton's method, its columns scaled to unit spread.

    Args:
        features: (n, d) what the head's output layer sees.
        gap: (n,) between its two best Q-values, or None to judge without it.
        wanted: (n,) what the confidence should say, 0..1.
        ridge: weight of the squared coefficients against the mean cross entropy.

    Returns:
        The confidence. Its `gap_logits` is never negative: an exit that is nearly undecided is not to be believed more.
    """
    columns = features if gap is None else np.column_stack((features, gap))
    scale = np.maximum(columns.std(0, dtype=np.float64), 1e-6)
    x = np.column_stack((columns / scale, np.ones(len(columns))))
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 1e-9
    found = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        said = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        slope = x.T @ (said - wanted) / len(x) + penalty * found
        curvature = (x * (said * (1 - said))[:, None]).T @ x / len(x) + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        found -= step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))  # far from the end Newton overshoots
        if np.abs(step).max() < 1e-8:
            break
    *coefficients, bias = found
    if gap is None:
        return Judgement(np.array(coefficients) / scale, float(bias), 0.0)
    if coefficients[-1] < 0:
        return fit(features, None, wanted, ridge=ridge)
    weight = np.array(coefficients) / scale
    return Judgement(weight[:-1], float(bias), float(weight[-1]))


def met(params: Params, env: str, *, episodes: int, wanted: int, deep_frac: float, seed: int) -> U8:
    """Observations on the way of the early exits, about `wanted` of them, in random order."""
    last, rng = params.spec.n_exits - 1, np.random.default_rng(seed)
    seen: list[U8] = []
    share = 1.0

    def choose(obs: U8) -> npt.NDArray[np.integer]:
        nonlocal seen, share
        seen += list(obs[rng.random(len(obs)) < share])
        if len(seen) > 2 * wanted:
            seen, share = seen[::2], share / 2
        heads = forward(params, obs)
        exit_ = np.where(rng.random(len(obs)) < deep_frac, last, rng.integers(last, size=len(obs)))
        greedy = np.stack([heads[k][:, :-1].argmax(1) for k in range(last + 1)], 1)
        return np.asarray(greedy[np.arange(len(obs)), exit_])

    play(choose, env, episodes, seed=SEED + seed * 1000, max_steps=5_000)
    return np.array(seen)[rng.permutation(len(seen))[:wanted]]


def judge(params: Params, teacher: Params, obs: U8, meaning: losses.Meaning, *, use_gap: bool) -> Params:
    """The same network with confidences learnt from these observations.

    Args:
        params: of the network.
        teacher: whose last exit says what an action is worth.
        obs: (n, H, W, C) uint8.
        meaning: of the confidence.
        use_gap: whether the gap counts.
    """
    last, parts = params.spec.n_exits - 1, [obs[at : at + BATCH] for at in range(0, len(obs), BATCH)]
    deepest = teacher.spec.n_exits - 1
    values = torch.from_numpy(np.concatenate([forward(teacher, part, exits=(deepest,))[deepest] for part in parts]))
    values = values[:, :-1]
    scale = float(losses.spread(values))
    features: list[list[F32]] = [[] for _ in range(last)]
    for part in parts:
        x: F32 | U8 = part
        for k, stage in enumerate(stages(params.spec)[:last]):
            x = run_layers(stage.trunk, params, x, None)
            hidden = run_layers(stage.head[:-1], params, x, None) if len(stage.head) > 1 else x
            features[k].append(np.asarray(hidden, np.float32).reshape(len(part), -1).copy())
    made, gaps = params.copy(), []
    for k in range(last):
        seen, name = np.concatenate(features[k]), stages(params.spec)[k].head[-1].name
        weight, bias = made.views[f"{name}.w"], made.views[f"{name}.b"]
        q = seen @ weight[:, :-1] + bias[:-1]
        best = np.partition(q, -2, axis=1)
        wanted = losses.confidence_labels(torch.from_numpy(q), values, meaning, scale).numpy()
        found = fit(seen, best[:, -1] - best[:, -2] if use_gap else None, wanted)
        weight[:, -1], bias[-1] = found.weight, found.bias
        gaps.append(found.gap_logits)
    return Params(msgspec.structs.replace(params.spec, gap_logits=tuple(gaps) if any(gaps) else ()), made.flat)


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.train.judge", description=(__doc__ or "").splitlines()[0].split(":")[0] + "."
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run whose exits are judged")
    parser.add_argument("--teacher", type=Path, help="folder of the run that says what actions are worth; itself")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run that is made")
    parser.add_argument("--meaning", choices=get_args(losses.Meaning), default="regret", help="of the confidence")
    parser.add_argument("--gap", action=argparse.BooleanOptionalAction, default=True, help="the Q-gap counts")
    parser.add_argument("--deep-frac", type=float, default=0.2, help="decisions of the last exit while it plays")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--observations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, argv: list[str]) -> None:
    """Play, fit, and write a run like that of `tools.train`."""
    params, document = kept(args.run)
    teacher = kept(args.teacher)[0] if args.teacher else params
    if params.spec.n_exits < 2 or params.spec.n_actions < 2 or teacher.spec.n_actions != params.spec.n_actions:
        raise UsageError(f"{args.run} has {params.spec.n_exits} exits and {params.spec.n_actions} actions: two of each")
    if min(args.episodes, args.observations) < 1 or not 0 <= args.deep_frac <= 1:
        raise UsageError("--episodes and --observations are 1 at least, --deep-frac lies in 0..1")
    obs = met(
        params,
        document["env"],
        episodes=args.episodes,
        wanted=args.observations,
        deep_frac=args.deep_frac,
        seed=args.seed,
    )
    made = judge(params, teacher, obs, args.meaning, use_gap=args.gap)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "best.f32").write_bytes(made.flat.tobytes())
    how = {"command": "python -m tools.train.judge " + " ".join(argv), "commit": commit(), "observations": len(obs)}
    write_run(
        args.out / "run.json",
        {**document, "spec": msgspec.to_builtins(made.spec), "judged": {**how, "cpu_s": round(cpu_s())}},
    )
    print(f"{args.out}: {len(obs)} observations, gap_logits {made.spec.gap_logits}, {cpu_s():.0f} CPU-s")


def main(argv: list[str] | None = None) -> int:
    """Read the command line and judge."""
    argv = sys.argv[1:] if argv is None else argv
    torch.set_num_threads(1)
    try:
        run(parse(argv), argv)
    except EdgertError as error:
        print(f"tools.train.judge: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
