"""Measure what each setting of a network's exits brings and costs, by playing.

On-policy: the exit that answers is the one whose action is played, so a setting is judged on the states that it leads
to itself, with the integer network that goes into the bundle. Many settings play side by side in one batch; a stage of
the network is computed only for those observations that go on to it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgert import quant
from edgert.bundle import Frontier, Reference, Risk
from edgert.errors import UsageError
from edgert.nets import F32, U8, NetSpec, ops
from edgert.policy import frontier, risk
from edgert.policy.exits import answer, effective_thresholds
from edgert.policy.hold import Holds
from edgert.values import REPEAT_MAX, Operating
from tools.episodes import play_each
from tools.progress import bar

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SWEEP_SEED, RISK_SEED, SEEDS = 60_000_000, 70_000_000, 100_000
"""Of the first episode, and how many an export may use: apart from training's and the rest of the export's."""
REFERENCE_TIMES = 4
"""The references divide every point of the frontier, so they are measured this many times as long."""
PROPOSED_FROM = 4096
"""Observations that settings are proposed from."""
Job = tuple[Operating | None, int]
"""A setting (None: random actions) and the seed of an episode."""


class Played(NamedTuple):
    """What came of some episodes, in their order.

    Attributes:
        returns: (n,) undiscounted.
        exit_ticks: (n, n_exits) ticks that each exit answered.
        held_ticks: (n,) ticks that repeated the action before.
        met: (m, H, W, C) some of the observations.
    """

    returns: F64
    exit_ticks: I64
    held_ticks: I64
    met: U8


class Player(NamedTuple):
    """Everything needed to play, in this process or in another.

    Attributes:
        spec, tensors: the integer network.
        env_id: gymnasium id.
        parallel: episodes side by side.
        max_steps: an episode is cut here.
    """

    spec: NetSpec
    tensors: quant.Tensors
    env_id: str
    parallel: int = 32
    max_steps: int = 10_000

    def play(self, jobs: Sequence[Job], keep: int = 0, ended: Callable[[], None] = lambda: None) -> Played:
        """Play one episode a job.

        Args:
            jobs: settings and seeds.
            keep: about how many observations to bring back, at most twice as many.
            ended: called after each episode.
        """
        net, last = quant.IntNet(self.spec, self.tensors), self.spec.n_exits - 1
        settings = [setting or Operating((0.0,) * last) for setting, _ in jobs]
        bars: F32 = np.stack([effective_thresholds(setting.thresholds, last) for setting in settings])
        # Not the seed alone: environments draw from the very generator that it would give.
        dice = [None if setting else np.random.default_rng((seed, 1)) for setting, seed in jobs]
        at_random = np.array([each is not None for each in dice])
        holds = Holds(settings)
        exit_ticks = np.zeros((len(jobs), last + 1), np.int64)
        held_ticks = np.zeros(len(jobs), np.int64)
        met: list[U8] = []
        rng, share = np.random.default_rng(jobs[0][1]), 1.0

        def choose(obs: U8, episodes: I64, fresh: npt.NDArray[np.bool_]) -> I64:
            nonlocal share, met
            if keep:
                met += list(obs[rng.random(len(obs)) < share])  # indexing by a mask copies
                if len(met) > 2 * keep:
                    met, share = met[::2], share / 2
            decides = holds.due(episodes, fresh)
            held_ticks[episodes[~decides]] += 1
            thinks = decides & ~at_random[episodes]
            if thinks.any():
                asked = episodes[thinks]
                head, exit_ = answer(net, obs[thinks], bars[asked])
                holds.decided(asked, head[:, :-1].argmax(1), exit_, head[:, -1])
                exit_ticks[asked, exit_] += 1
            actions = holds.action[episodes]
            for row in np.flatnonzero(at_random[episodes]):
                actions[row] = dice[episodes[row]].integers(self.spec.n_actions)
            return actions

        seeds = [seed for _, seed in jobs]
        returns = play_each(choose, self.env_id, seeds, parallel=self.parallel, max_steps=self.max_steps, ended=ended)
        return Played(returns, exit_ticks, held_ticks, np.array(met, np.uint8).reshape(-1, *self.spec.input_shape))


Run = Callable[[Sequence[Job], int], Played]


@contextmanager
def running(player: Player, processes: int, progress: Callable[[int], None] = lambda done: None) -> Iterator[Run]:
    """What plays many jobs, in this many processes; `progress` is called with the episodes done so far."""
    done = 0
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) if processes > 1 else None

    def advance(by: int = 1) -> None:
        nonlocal done
        done += by
        progress(done)

    def run(jobs: Sequence[Job], keep: int) -> Played:
        if pool is None:
            return player.play(jobs, keep, advance)
        # Four parts a process: environments are slow to make, and whoever is done early should find more to do.
        size = -(-len(jobs) // (4 * processes))
        parts = [jobs[first : first + size] for first in range(0, len(jobs), size)]
        found: list[Played] = []
        for played in pool.map(partial(player.play, keep=-(-keep // len(parts))), parts):
            found.append(played)
            advance(len(played.returns))
        return Played(*(np.concatenate(each) for each in zip(*found, strict=True)))

    try:
        yield run
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def about_episodes(n: int, repeats: Sequence[int], episodes: int) -> int:
    """About how many episodes a sweep plays: the total of its progress bar."""
    return round((n * (1 + 2 / 3 * len(repeats)) + 2 * REFERENCE_TIMES) * episodes)


def sweep(
    run: Run,
    player: Player,
    obs: U8,
    *,
    always: Sequence[Operating] = (),
    n: int = 12,
    repeats: Sequence[int] = (2, 4),
    episodes: int = 30,
    seed: int = 0,
) -> tuple[Frontier, tuple[float, float]]:
    """Propose settings, play them, and say what they bring and cost.

    Args:
        run: of `running`.
        player: that `run` was made from.
        obs: (m, H, W, C) uint8 that the full network meets: the first proposal. The settings that are measured are
            proposed from what some of the first ones meet themselves.
        always: settings that are measured in any case.
        n: settings of thresholds alone; see `policy.frontier.candidates`.
        repeats: how often sure decisions may be repeated.
        episodes: of each setting.
        seed: of this export.

    Returns:
        The frontier, and the lowest and highest return of any episode.

    Raises:
        UsageError: the full network is no better than a random policy.
    """
    spec, first, last = player.spec, SWEEP_SEED + seed * SEEDS, player.spec.n_exits - 1
    costs, net = ops(spec), quant.IntNet(spec, player.tensors)

    def propose(met: U8, count: int, repeated: Sequence[int]) -> list[Operating]:
        some = met[np.random.default_rng(seed).permutation(len(met))[:PROPOSED_FROM]]
        parts = [net.heads(some[at : at + 256]) for at in range(0, len(some), 256)]
        return frontier.candidates(
            {k: np.concatenate([part[k] for part in parts]) for k in range(last + 1)}, costs, count, repeated
        )

    scouts = propose(obs, max(3, n // 3), repeats[:1])
    scouted = run([(setting, first + SEEDS // 2 + i) for i, setting in enumerate(scouts)], PROPOSED_FROM)
    full = Operating((1.0,) * last)
    settings = list(dict.fromkeys([full, *always, *propose(scouted.met, n, repeats)]))
    seeds = range(first, first + episodes)
    reference_seeds = range(first, first + REFERENCE_TIMES * episodes)
    jobs: list[Job] = [(setting, each) for setting in settings[1:] for each in seeds]
    references: list[Job] = [(setting, each) for setting in (None, full) for each in reference_seeds]
    played = run([*references, *jobs], 0)

    random, full_returns = np.split(played.returns[: len(references)], 2)
    rng, full_ops = np.random.default_rng(seed), frontier.full_ops(spec)
    points = []
    for i, setting in enumerate(settings):
        here = slice(len(references) // 2, len(references))
        if i:
            here = slice(len(references) + (i - 1) * episodes, len(references) + i * episodes)
        returns = played.returns[here]
        points.append(
            frontier.as_point(
                setting,
                played.exit_ticks[here].sum(0).tolist(),
                int(played.held_ticks[here].sum()),
                costs,
                returns,
                full_ops,
                frontier.normalised(returns, full_returns, random, rng),
            )
        )
    measured = Frontier(
        env=player.env_id,
        random=Reference(float(random.mean()), len(random)),
        full=Reference(float(full_returns.mean()), len(full_returns)),
        full_ops=full_ops,
        points=tuple(sorted(points, key=lambda point: point.ops_frac)),
    )
    return measured, (float(played.returns.min()), float(played.returns.max()))


def promise(
    run: Run,
    measured: Frontier,
    *,
    max_loss_frac: float,
    delta: float,
    episodes: int,
    bounds: tuple[float, float],
    seed: int = 0,
) -> tuple[Risk, Operating]:
    """Find the cheapest setting that loses at most so much, except with probability `delta`, on fresh episodes.

    Args:
        run: of `running`.
        measured: the frontier: its undominated settings are tested from dear to cheap, those that lost too much when
            it was measured left out. Its episodes are not looked at again.
        max_loss_frac: share of the normalised return that may be lost.
        delta: probability of losing more.
        episodes: of each tested setting and both references.
        bounds: returns are clipped to these.
        seed: of this export.

    Returns:
        The promise, and the setting that keeps it: the full network's when none of the others was found to.
    """
    first = RISK_SEED + seed * SEEDS
    seeds = range(first, first + episodes)
    full = Operating((1.0,) * (len(measured.points[0].thresholds)))
    tested = [
        point.operating
        for point in reversed(frontier.pareto(measured.points))
        if point.operating != full and point.return_frac >= 1 - max_loss_frac
    ]
    references = run([(setting, each) for setting in (None, full) for each in seeds], 0).returns
    random, full_returns = np.split(references, 2)
    plays = [partial(_returns, run, setting, seeds) for setting in tested]
    found = risk.risk_controlled(plays, full_returns, random, max_loss_frac=max_loss_frac, delta=delta, bounds=bounds)
    kept = Risk(
        max_loss_frac=max_loss_frac,
        delta=delta,
        low=bounds[0],
        high=bounds[1],
        method=risk.METHOD,
        episodes=episodes,
        p_values=found.p_values,
        holds=found.chosen is not None,
    )
    return kept, full if found.chosen is None else tested[found.chosen]


def _returns(run: Run, setting: Operating, seeds: Sequence[int]) -> F64:
    return run([(setting, each) for each in seeds], 0).returns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a command line says about frontiers."""
    parser.add_argument("--frontier-episodes", type=int, default=0, help="of each setting of the exits; 0: no frontier")
    parser.add_argument("--frontier-settings", type=int, default=12, help="of thresholds alone")
    parser.add_argument("--repeats", type=int, nargs="*", default=[2, 4], help="how often sure actions may be repeated")
    parser.add_argument("--parallel", type=int, default=32, help="episodes side by side, in each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=10_000, help="an episode of the frontier is cut here")
    parser.add_argument("--risk", type=float, help="take the cheapest setting that loses at most this share")
    parser.add_argument("--delta", type=float, default=0.1, help="probability that it loses more all the same")
    parser.add_argument("--risk-episodes", type=int, default=300, help="of each setting that is tested for it")
    parser.add_argument(
        "--return-bounds", type=float, nargs=2, help="returns are clipped to these; by default what the frontier met"
    )


def check(args: argparse.Namespace) -> None:
    """See that what `add_arguments` asked for can be had, before anything is played.

    Raises:
        UsageError: it cannot.
    """
    bounds = args.return_bounds or (0.0, 1.0)
    faults = {
        "--risk tests settings of the frontier: add --frontier-episodes": args.risk is not None
        and not args.frontier_episodes,
        f"--frontier-episodes: 0 to {SEEDS // 2 // REFERENCE_TIMES}": not 0
        <= args.frontier_episodes
        <= SEEDS // 2 // REFERENCE_TIMES,
        f"--risk-episodes: 1 to {SEEDS}": not 1 <= args.risk_episodes <= SEEDS,
        "--frontier-settings, --parallel, --processes, --max-steps: at least 1": min(
            args.frontier_settings, args.parallel, args.processes, args.max_steps
        )
        < 1,
        f"--repeats: 2 to {REPEAT_MAX}": not all(2 <= repeat <= REPEAT_MAX for repeat in args.repeats),
        "--risk and --delta: between 0 and 1": not (0 < args.delta < 1 and (args.risk is None or 0 < args.risk < 1)),
        "--return-bounds: two finite numbers, the lower first": not (
            all(map(math.isfinite, bounds)) and bounds[0] < bounds[1]
        ),
    }
    if wrong := [fault for fault, is_so in faults.items() if is_so]:
        raise UsageError("; ".join(wrong))


def measure(
    args: argparse.Namespace, spec: NetSpec, tensors: quant.Tensors, env_id: str, obs: U8, default: Operating
) -> tuple[Frontier | None, Risk | None, Operating]:
    """Do what `add_arguments` asked for.

    Args:
        args: parsed; has `seed`, too.
        spec: the network.
        tensors: its integers.
        env_id: gymnasium id.
        obs: (m, H, W, C) uint8 that the full network meets.
        default: the setting to keep unless a promise is asked for.

    Returns:
        The frontier, the promise, and the setting for the bundle.

    Raises:
        UsageError: as `check`, or a full network that is no better than random actions.
    """
    check(args)
    if not args.frontier_episodes:
        return None, None, default
    player = Player(spec, tensors, env_id, args.parallel, args.max_steps)
    total = about_episodes(args.frontier_settings, args.repeats, args.frontier_episodes)
    with bar("frontier", total) as progress, running(player, args.processes, progress) as run:
        measured, met = sweep(
            run,
            player,
            obs,
            always=[default],
            n=args.frontier_settings,
            repeats=args.repeats,
            episodes=args.frontier_episodes,
            seed=args.seed,
        )
    if args.risk is None:
        return measured, None, default
    with bar("promise", 3 * args.risk_episodes) as progress, running(player, args.processes, progress) as run:
        kept, setting = promise(
            run,
            measured,
            max_loss_frac=args.risk,
            delta=args.delta,
            episodes=args.risk_episodes,
            bounds=tuple(args.return_bounds or met),
            seed=args.seed,
        )
    return measured, kept, setting


def table(measured: Frontier) -> str:
    """The frontier for people; `*` marks what no other point beats."""
    best = frontier.pareto(measured.points)
    lines = ["point   ops  return  95 %           held  exits                thresholds, repeat, hold_threshold"]
    for i, point in enumerate(measured.points):
        shares = " ".join(f"{share:.2f}" for share in point.exit_share)
        setting = " ".join(f"{each:.3f}" for each in point.thresholds)
        lines.append(
            f"{i:>4}{'*' if point in best else ' '} {point.ops_frac:5.3f} {point.return_frac:7.3f}"
            f"  {point.return_low:5.2f} .. {point.return_high:5.2f}  {point.held_share:4.2f}  {shares:<19}"
            f"  {setting}, {point.repeat}, {point.hold_threshold:.3f}"
        )
    return "\n".join(lines)
