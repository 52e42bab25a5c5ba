"""Train an early-exit value network: `python -m tools.train --env ALE/Pong-v5 --net camera --out runs/pong`.

With `--teacher RUN` it imitates the network of that run instead, in states that it meets itself. Run it again with the
same `--out` and it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec
import numpy as np
import torch

from edgert.errors import EdgertError, UsageError
from edgert.nets import Conv, Dense, NetSpec, Params, Placed, initialise, stages
from edgert.ports.plant import worlds
from tools.nets import NETS
from tools.progress import bar
from tools.train import commit, kept
from tools.train.loop import Curve, Hyper, Trainer, cpu_s, greedy, play, score, write_run

EVAL_SEED, TEST_SEED = 10_000_000, 20_000_000
"""Evaluations that choose a network, and the one that is reported, see episodes that nothing else saw."""


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; every field of `Hyper` is an option."""
    parser = argparse.ArgumentParser(prog="python -m tools.train", description=__doc__.splitlines()[0])
    parser.add_argument("--env", required=True, help="gymnasium id, for example MinAtar/Breakout-v1 or ALE/Pong-v5")
    parser.add_argument("--net", choices=NETS, default="student")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; made when missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--teacher", type=Path, help="folder of a run to imitate; nothing is learnt from rewards then")
    parser.add_argument("--start", type=Path, help="folder of a run whose parameters to start from, where they fit")
    parser.add_argument("--eval-every", type=int, default=50_000)
    parser.add_argument("--eval-episodes", type=int, default=16)
    parser.add_argument(
        "--test-episodes", type=int, default=32, help="of the kept network, on seeds that chose nothing"
    )
    parser.add_argument("--checkpoint-every", type=int, default=50_000)
    parser.add_argument("--half", action="store_true", help="bfloat16 where it is safe; for processors that have it")
    defaults = Hyper()
    for field in msgspec.structs.fields(Hyper):
        option, default = "--" + field.name.replace("_", "-"), getattr(defaults, field.name)
        if isinstance(default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    return parser.parse_args(argv)


def graft(onto: Params, source: Params, *, last_only: bool = False) -> list[str]:
    """Copy the trunk as far as it is the same, and every head that fits, or only the last.

    The trunks are compared layer by layer from the observation on, wherever the stages are cut; a network may so start
    from one with other exits.

    Returns:
        Names of the arrays that were filled.
    """
    pairs: list[tuple[str, str]] = []
    for mine, theirs in zip(_trunk(onto.spec), _trunk(source.spec), strict=False):
        if mine.layer != theirs.layer or mine.in_shape != theirs.in_shape:
            break
        pairs.append((mine.name, theirs.name))
    ours, others = stages(onto.spec), stages(source.spec)
    early = [] if last_only else [*zip(ours[:-1], others[:-1], strict=False)]
    heads = [*early, (ours[-1], others[-1])]
    for mine_stage, their_stage in heads:
        mine_head, their_head = (_weighted(stage.head) for stage in (mine_stage, their_stage))
        if [(p.layer, p.in_shape) for p in mine_head] == [(p.layer, p.in_shape) for p in their_head]:
            pairs += [(a.name, b.name) for a, b in zip(mine_head, their_head, strict=True)]
    for mine_name, their_name in pairs:
        for part in ("w", "b"):
            onto.views[f"{mine_name}.{part}"][:] = source.views[f"{their_name}.{part}"]
    return [f"{name}.{part}" for name, _ in pairs for part in ("w", "b")]


def _weighted(layers: list[Placed]) -> list[Placed]:
    return [placed for placed in layers if isinstance(placed.layer, Conv | Dense)]


def _trunk(spec: NetSpec) -> list[Placed]:
    """The layers with weights from the observation to the last head."""
    return [placed for stage in stages(spec) for placed in _weighted(stage.trunk)]


def run(args: argparse.Namespace, argv: list[str]) -> int:
    """Train, evaluate, write `best.f32`, `curve.csv` and `run.json`."""
    for name in ("frames", "n_envs", "batch", "frames_per_update", "n_step", "eval_episodes", "test_episodes"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(args, name)}: one at least")
    if args.replay // args.n_envs <= args.n_step:
        raise UsageError(f"--replay {args.replay}: too small for {args.n_envs} environments and {args.n_step} steps")
    args.out.mkdir(parents=True, exist_ok=True)
    hyper = msgspec.convert({f: getattr(args, f) for f in Hyper.__struct_fields__}, Hyper)
    envs, judged = worlds.vector(args.env, hyper.n_envs), worlds.vector(args.env, min(16, args.eval_episodes))
    spec = NETS[args.net](envs.single_observation_space.shape, int(envs.single_action_space.n))
    stages(spec)
    initial = initialise(spec, np.random.default_rng(args.seed))
    teacher = kept(args.teacher)[0] if args.teacher else None
    # Early heads that learnt values have large features, of which int8 makes noise; those that learn anew have not.
    grafted = graft(initial, kept(args.start)[0], last_only=hyper.frozen) if args.start else []
    kept_still = {name for name in initial.views if name.startswith(("t", f"h{spec.n_exits - 1}."))}
    if hyper.frozen and (teacher is None or spec.n_exits == 1 or not kept_still <= set(grafted)):
        raise UsageError(f"--frozen: {args.net} needs early exits, a --teacher, and a --start that fills all the rest")
    if args.start and not grafted:
        raise UsageError(f"no layer of {args.start} fits the network {args.net}")
    trainer = Trainer(envs, initial, hyper, seed=args.seed, teacher=teacher, half=args.half, env_id=args.env)
    judged_exit = spec.n_exits - 2 if hyper.frozen else None  # the last exit plays as it began
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.resume(checkpoint)
        print(f"going on from frame {trainer.progress.frames:,} (replay starts empty)", flush=True)
    progress = trainer.progress
    curve = Curve(args.out / "curve.csv", progress.frames)
    spent_s, loss, saved_at = cpu_s() - progress.cpu_s, 0.0, progress.frames
    with bar(f"{args.env} {args.net}", hyper.frames) as show:
        while progress.frames < hyper.frames:
            found = trainer.advance()
            loss = loss if found is None else found if loss == 0 else 0.98 * loss + 0.02 * found
            show(progress.frames)
            if progress.frames - progress.evaluated_at >= args.eval_every or progress.frames >= hyper.frames:
                chooser = greedy(trainer.slow.params(), exit_=judged_exit, half=args.half)
                now = score(play(judged, chooser, args.eval_episodes, seed=EVAL_SEED + args.seed * 1000))
                trainer.keep_if_best(now)
                progress.cpu_s = cpu_s() - spent_s
                recent, trainer.finished = trainer.finished, trainer.finished[-100:]
                curve.add(
                    frames=progress.frames,
                    updates=progress.updates,
                    cpu_s=round(progress.cpu_s),
                    return_mean=round(now.mean, 3),
                    return_sem=round(now.sem, 3),
                    train_return=round(float(np.mean(recent[-100:])), 3) if recent else None,
                    loss=round(loss, 5),
                )
                print(
                    f"{progress.frames:>10,} frames {progress.updates:>8,} updates  return {now.mean:8.2f} "
                    f"+- {now.sem:.2f}  exploring {np.mean(recent[-100:]) if recent else float('nan'):8.2f}  "
                    f"loss {loss:.4f}  {progress.cpu_s:.0f} CPU-s",
                    flush=True,
                )
            if progress.frames - saved_at >= args.checkpoint_every:
                trainer.save(checkpoint)
                saved_at = progress.frames
    trainer.save(checkpoint)
    tested = score(
        play(judged, greedy(trainer.best, exit_=judged_exit), args.test_episodes, seed=TEST_SEED + args.seed * 1000)
    )
    (args.out / "best.f32").write_bytes(trainer.best.flat.tobytes())
    document = {
        "command": "python -m tools.train " + " ".join(argv),
        "commit": commit(),
        "env": args.env,
        "net": args.net,
        "spec": msgspec.to_builtins(spec),
        "seed": args.seed,
        "hyper": msgspec.to_builtins(hyper),
        "teacher": kept(args.teacher)[1] if args.teacher else None,
        "start": {"run": kept(args.start)[1], "layers": grafted} if args.start else None,
        "frames": progress.frames,
        "gradient_steps": progress.updates,
        "cpu_s": round(cpu_s() - spent_s),
        "kept_from_frame": progress.best_at,
        "test_episodes": args.test_episodes,
        "test_return_mean": round(tested.mean, 3),
        "test_return_sem": round(tested.sem, 3),
        "curve": curve.rows(),
    }
    write_run(args.out / "run.json", document)
    print(f"test return {tested.mean:.2f} +- {tested.sem:.2f} over {args.test_episodes} episodes")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Read the command line and train."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    torch.set_num_threads(1 if not torch.cuda.is_available() else 4)
    try:
        return run(args, argv)
    except EdgertError as error:
        print(f"tools.train: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
