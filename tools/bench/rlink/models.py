"""Teachers that are bad on purpose: `python -m tools.bench.rlink.models third|adversarial --bundle B --env E --out F`.

`adversarial` prefers what the good teacher thinks worst: its Q-values are turned round about their mean, so that
they are as large and as consistent as before. `third` plays at about 30 % of the way from chance to the good teacher:
noise is added to the good teacher's weights, as little as it takes, which leaves a teacher that is confidently wrong in
some states and right in others, as a half-trained one is.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from edgert import bundle, quant
from edgert.errors import EdgertError, UsageError
from edgert.nets import Conv, Dense, Params, forward, stages
from edgert.policy import artifact
from edgert.ports.store import write_atomic
from tools.episodes import play

EPISODES = 10
WANTED_FRAC = 0.3
TOLERANCE_FRAC = 0.12
TRIES = 14


def adversarial(params: Params) -> Params:
    """The same network with its Q-values negated."""
    found = params.copy()
    last = f"h{params.spec.n_exits - 1}.out"
    n_actions = params.spec.n_actions
    found.views[f"{last}.w"][:, :n_actions] *= -1
    found.views[f"{last}.b"][:n_actions] *= -1
    return found


def noisy(params: Params, size: float, rng: np.random.Generator) -> Params:
    """Noise on every weight, as a share of the spread of its layer's weights."""
    found = params.copy()
    for stage in stages(params.spec):
        for placed in (*stage.trunk, *stage.head):
            if isinstance(placed.layer, Conv | Dense):
                weights = found.views[f"{placed.name}.w"]
                weights += (size * weights.std() * rng.standard_normal(weights.shape)).astype(np.float32)
    return found


def level(params: Params, env: str, seed: int = 80_000_000) -> float:
    """Mean return of the float network."""
    last = params.spec.n_exits - 1
    returns = play(lambda obs: forward(params, obs, exits=(last,))[last][:, :-1].argmax(1), env, EPISODES, seed=seed)
    return float(returns.mean())


def chance(env: str, n_actions: int, seed: int = 80_000_000) -> float:
    """Mean return of random actions."""
    rng = np.random.default_rng(seed)
    return float(play(lambda obs: rng.integers(n_actions, size=len(obs)), env, EPISODES, seed=seed).mean())


def third(params: Params, env: str, rng: np.random.Generator) -> tuple[Params, float]:
    """Search for the noise that leaves `WANTED_FRAC` of what the network is better than chance.

    Raises:
        UsageError: the network is no better than chance to begin with.
    """
    bottom, top = chance(env, params.spec.n_actions), level(params, env)
    if top <= bottom:
        raise UsageError(f"this teacher's return is {top}, that of chance {bottom}: there is no third of it")
    low, high = 0.0, 4.0
    tried: list[tuple[float, Params, float]] = []
    for _ in range(TRIES):
        size = (low + high) / 2
        spoilt = noisy(params, size, rng)
        share = (level(spoilt, env) - bottom) / (top - bottom)
        tried.append((abs(share - WANTED_FRAC), spoilt, share))
        if tried[-1][0] < TOLERANCE_FRAC:
            break
        low, high = (size, high) if share > WANTED_FRAC else (low, size)
        if high - low < 0.05:  # the noise itself is drawn: another draw at about this size
            low, high = 0.5 * low, 1.5 * high
    _, best, share = min(tried, key=lambda each: each[0])
    return best, share


def main(argv: list[str] | None = None) -> int:
    """Spoil a bundle."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.rlink.models")
    parser.add_argument("how", choices=("third", "adversarial"))
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        policy = artifact.load(args.bundle.read_bytes())
        if args.how == "third":
            params, share = third(policy.params, args.env, np.random.default_rng(0))
        else:
            params, share = adversarial(policy.params), None
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = artifact.derive(
            policy,
            params,
            quant.fit(params, policy.golden_obs),
            created=created,
            provenance={"spoilt": args.how, "share": share, "from": policy.manifest.name},
        )
        bundle.read(data)
        write_atomic(args.out, data, mode=0o644)
    except (EdgertError, OSError, msgspec.MsgspecError) as error:
        print(f"models: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {args.how}{'' if share is None else f', {share:.2f} of the way from chance'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
