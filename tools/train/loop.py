"""The training loop: many environments, one replay, large batches, checkpoints from which it goes on.

Reinforcement is Double DQN (van Hasselt et al. 2016) with n-step returns and a slowly following target network, in
large batches over many environments, because that is what a few processor cores are good at. Distillation is the same
loop with a teacher asked at every step: the student acts, the teacher says what it would have done (DAgger, Ross et al.
2011, arXiv 1011.0686).
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgert.errors import StoreError, UsageError
from edgert.nets import F32, U8, NetSpec, Params
from tools.train import losses
from tools.train.replay import Batch, Replay
from tools.train.torchnet import Net, as_tensor


class Hyper(msgspec.Struct, frozen=True, kw_only=True):
    """What a training run is told; kept in its `run.json`.

    Attributes:
        frames: environment steps in all.
        n_envs: environments stepped together.
        batch: transitions a gradient step.
        frames_per_update: environment steps between two gradient steps.
        warm_up: environment steps before the first one.
        replay: transitions kept.
        learning_rate: of Adam, falling linearly to a tenth.
        gamma: discount per decision.
        n_step: rewards summed before the value takes over.
        target_rate: share of the network that the target takes over at each gradient step.
        epsilon: probability of a random action at the end.
        explore_frames: over which it falls there from 1.
        clip_reward: to -1, 0, 1 (Mnih et al. 2015).
        detached: no gradient of an early exit reaches the trunk.
        exit_weight: of each early exit's loss, against 1 of the last.
        meaning: of the confidence.
        confidence_from: share of the run after which confidences are trained: 0 is jointly, 1 never.
        temperature_frac: of the distillation, in units of the teacher's spread.
        value_weight: of the values in the distillation, against 1 of the preferences among actions.
        adam_eps: of Adam; small gradients need a smaller one.
        hold_max: a random action is repeated for up to so many frames, which leads further from the beaten track.
        frozen: the trunk and the last head stay as they began, only early heads learn.
        max_grad_norm: longer gradients are scaled down to it.
    """

    frames: int = 1_000_000
    n_envs: int = 16
    batch: int = 256
    frames_per_update: int = 64
    warm_up: int = 10_000
    replay: int = 100_000
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    n_step: int = 5
    target_rate: float = 0.005
    epsilon: float = 0.01
    explore_frames: int = 100_000
    clip_reward: bool = True
    detached: bool = False
    exit_weight: float = 1.0
    meaning: losses.Meaning = "regret"
    confidence_from: float = 0.0
    temperature_frac: float = 0.1
    value_weight: float = 1.0
    adam_eps: float = 1.5e-4
    hold_max: int = 1
    frozen: bool = False
    max_grad_norm: float = 10.0


class Progress(msgspec.Struct):
    """Where a run stands; goes into its checkpoint.

    Attributes:
        frames: environment steps taken.
        updates: gradient steps taken.
        cpu_s: of the process, all its threads.
        scale: running spread of the (final exit's or teacher's) Q-values.
        best: mean return of the best evaluation so far.
        best_at: its frames.
        evaluated_at: frames of the last evaluation.
    """

    frames: int = 0
    updates: int = 0
    cpu_s: float = 0.0
    scale: float = 0.0
    best: float | None = None
    best_at: int = 0
    evaluated_at: int = 0


class Score(NamedTuple):
    """Returns of one evaluation: mean, and standard error."""

    mean: float
    sem: float


class Trainer:
    """Everything one run owns.

    Attributes:
        net: the network that learns and acts.
        slow: follows it; gives TD targets, is what is evaluated and kept.
        progress: see `Progress`.
    """

    def __init__(
        self,
        envs: Any,
        initial: Params,
        hyper: Hyper,
        *,
        seed: int,
        teacher: Params | None = None,
        half: bool = False,
        env_id: str = "",
    ) -> None:
        """Prepare a run from its beginning.

        Args:
            envs: vector environment with NHWC uint8 observations and NEXT_STEP resets.
            initial: the network to start from.
            hyper: see `Hyper`.
            seed: of environments, exploration and batches.
            teacher: what to imitate; None means reinforcement.
            half: compute in bfloat16 where that is safe.
            env_id: what `envs` are; a checkpoint of others is refused.
        """
        self._env_id = env_id
        self.hyper, self._envs, self._half = hyper, envs, half
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.net, self.slow = (Net(initial).to(self._device) for _ in range(2))
        self.slow.requires_grad_(False)
        self._teacher = None if teacher is None else Net(teacher).to(self._device).requires_grad_(False)
        if hyper.frozen:
            for parameter in self.net.parts()[0]:
                parameter.requires_grad_(False)
        learning = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self._adam = torch.optim.Adam(learning, lr=hyper.learning_rate, eps=hyper.adam_eps, fused=True)
        self.best = initial.copy()
        self.progress = Progress()
        self._rng = np.random.default_rng(seed)
        spec = initial.spec
        self._replay = Replay(hyper.replay // hyper.n_envs, hyper.n_envs, spec.input_shape, spec.n_actions)
        self._obs, _ = envs.reset(seed=seed * 10_000)
        self._resets = np.zeros(hyper.n_envs, bool)
        self._returns = np.zeros(hyper.n_envs)
        self._held, self._random = np.zeros(hyper.n_envs, np.int64), np.zeros(hyper.n_envs, np.int64)
        self.finished: list[float] = []
        self._owed = 0.0

    @property
    def spec(self) -> NetSpec:
        """Of the network."""
        return self.net.spec

    # acting ----------------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """One step in every environment."""
        hyper, spec = self.hyper, self.spec
        epsilon = max(hyper.epsilon, 1 - (1 - hyper.epsilon) * self.progress.frames / max(hyper.explore_frames, 1))
        seen = as_tensor(self._obs, self._device)
        last = spec.n_exits - 1
        # A student meets the states that its early exits bring about as well, hence any of them may act.
        acting = last if self._teacher is None else int(self._rng.integers(spec.n_exits))
        with torch.inference_mode():
            q = self.net(seen, (acting,), half=self._half)[acting][:, : spec.n_actions]
            taught = None
            if self._teacher is not None:
                deepest = self._teacher.spec.n_exits - 1
                # Full precision: what is learnt from should not be rounded.
                taught = self._teacher(seen, (deepest,))[deepest][:, : spec.n_actions].cpu().numpy()
        action = self._explored(q.argmax(1).cpu().numpy(), epsilon)
        following, reward, terminated, truncated, _ = self._envs.step(action)
        reward = np.asarray(reward, np.float32)
        self._returns += reward
        learnt = np.sign(reward) if hyper.clip_reward else reward
        self._replay.add(self._obs, action, learnt, terminated, truncated, self._resets, taught)
        ended = terminated | truncated
        self.finished += self._returns[ended].tolist()
        self._returns[ended] = 0
        self._resets, self._obs = ended, following
        self.progress.frames += hyper.n_envs

    def _explored(self, greedy: npt.NDArray[np.int64], epsilon: float) -> npt.NDArray[np.int64]:
        """Put random actions in the place of some, and go on with those that are held."""
        hyper, n = self.hyper, self.hyper.n_envs
        self._held[self._resets] = 0
        begins = (self._rng.random(n) < epsilon) & (self._held == 0)
        drawn = self._rng.integers(self.spec.n_actions, size=n)
        self._random = np.where(begins, drawn, self._random)
        if hyper.hold_max > 1:
            self._held[begins] = self._rng.integers(1, hyper.hold_max, endpoint=True, size=int(begins.sum()))
        else:
            self._held[begins] = 1
        action = np.where(self._held > 0, self._random, greedy)
        self._held = np.maximum(self._held - 1, 0)
        return action

    # learning --------------------------------------------------------------------------------------------------------

    def _loss(self, batch: Batch) -> Tensor:
        hyper, spec, last = self.hyper, self.spec, self.spec.n_exits - 1
        device = self._device
        learning = tuple(range(last if hyper.frozen else last + 1))
        obs = as_tensor(batch.obs, device)
        if self._teacher is not None and self.progress.updates == 0:
            self._level(obs, torch.tensor(batch.teacher_q, device=device), learning)
        heads = self.net(obs, learning, detached=hyper.detached, half=self._half)
        if self._teacher is None:
            final = heads[last][:, :-1]
            with torch.inference_mode():
                following = as_tensor(batch.next_obs, device)
                online = self.net(following, (last,), half=self._half)[last][:, :-1]
                slow = self.slow(following, (last,), half=self._half)[last][:, :-1]
                discount, reward = (
                    torch.tensor(batch.discount, device=device),
                    torch.tensor(batch.reward, device=device),
                )
                wanted = losses.targets(online, slow, reward, discount)
            self._note_scale(losses.spread(final.detach()))
            parts = losses.temporal_difference(heads, torch.tensor(batch.action, device=device), wanted.clone())
            judge = final
        else:
            judge = torch.tensor(batch.teacher_q, device=device)
            self._note_scale(losses.spread(judge))
            scale = self.progress.scale
            parts = losses.distillation(heads, judge, hyper.temperature_frac * scale, scale, hyper.value_weight)
        total = torch.stack([part if k == last else hyper.exit_weight * part for k, part in parts.items()]).sum()
        if spec.n_exits > 1 and self.progress.frames >= hyper.confidence_from * hyper.frames:
            early = {k: head for k, head in heads.items() if k != last}
            for judged in losses.confidence(early, judge, hyper.meaning, self.progress.scale).values():
                total = total + judged
        return total

    def _level(self, obs: Tensor, wanted: Tensor, exits: tuple[int, ...]) -> None:
        """Lift every head to the teacher's mean values at once; gradient steps would take long to climb there."""
        with torch.no_grad():
            for k, head in self.net(obs, exits, half=self._half).items():
                short = (wanted - head[:, :-1]).mean(0)
                for net in (self.net, self.slow):
                    net.output_bias(k)[:-1] += short

    def _note_scale(self, spread: Tensor) -> None:
        """Follow the spread of the values, from the first batch on."""
        progress, now = self.progress, float(spread)
        progress.scale = now if progress.scale == 0 else 0.99 * progress.scale + 0.01 * now

    def update(self) -> float:
        """One gradient step.

        Returns:
            The loss before it.

        Raises:
            UsageError: it is not finite.
        """
        hyper, progress = self.hyper, self.progress
        n_step = 1 if self._teacher is not None else hyper.n_step
        batch = self._replay.sample(self._rng, hyper.batch, n_step=n_step, gamma=hyper.gamma)
        for group in self._adam.param_groups:
            group["lr"] = hyper.learning_rate * (1 - 0.9 * min(progress.frames / hyper.frames, 1))
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise UsageError(f"the loss is {loss.item()} after {progress.updates} updates: lower the learning rate")
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        # Detached exits must not shorten the trunk's step either: each part has a norm of its own.
        for part in self.net.parts() if hyper.detached else [list(self.net.parameters())]:
            torch.nn.utils.clip_grad_norm_(part, hyper.max_grad_norm)
        self._adam.step()
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), self.net.parameters(), strict=True):
                slow.lerp_(fast, hyper.target_rate)
        progress.updates += 1
        return float(loss.detach())

    def advance(self) -> float | None:
        """One step in every environment and the gradient steps that are due.

        Returns:
            The last one's loss, if there was one.
        """
        self.collect()
        hyper, loss = self.hyper, None
        if self._replay.size * hyper.n_envs >= hyper.warm_up:
            self._owed += hyper.n_envs / hyper.frames_per_update
            while self._owed >= 1:
                loss, self._owed = self.update(), self._owed - 1
        return loss

    # keeping ---------------------------------------------------------------------------------------------------------

    def keep_if_best(self, score: Score) -> bool:
        """Remember the slow network if no earlier one scored higher."""
        progress = self.progress
        progress.evaluated_at = progress.frames
        if progress.best is not None and score.mean < progress.best:
            return False
        progress.best, progress.best_at, self.best = score.mean, progress.frames, self.slow.params()
        return True

    def save(self, path: Path) -> None:
        """Write a checkpoint: whole or not at all. The replay is not in it; it fills again before learning goes on.

        Raises:
            StoreError: the disk does not take it; the checkpoint before is still there.
        """
        adam = self._adam.state_dict()["state"]
        state = {
            "progress": msgspec.to_builtins(self.progress),
            "net": torch.from_numpy(self.net.params().flat),
            "slow": torch.from_numpy(self.slow.params().flat),
            "best": torch.from_numpy(self.best.flat),
            "adam": adam,
            "rng": self._rng.bit_generator.state,
            "env": self._env_id,
        }
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
            raise StoreError(f"checkpoint {path}: {error}; free some space, the one before is still there") from error

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: it belongs to another network.
        """
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
            if state["env"] != self._env_id:
                raise ValueError(f"it was made in {state['env']}")
            flats = {name: state[name].cpu().numpy() for name in ("net", "slow", "best")}
            self.net.load(Params(self.spec, flats["net"]))
            self.slow.load(Params(self.spec, flats["slow"]))
            self.best = Params(self.spec, flats["best"])
            whole = self._adam.state_dict()
            whole["state"] = state["adam"]
            self._adam.load_state_dict(whole)
            self.progress = msgspec.convert(state["progress"], Progress)
            self._rng.bit_generator.state = state["rng"]
        except (
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
            EOFError,
            OSError,
            UnpicklingError,
        ) as error:
            raise UsageError(f"checkpoint {path}: {error}; remove it to start anew") from error


class Curve:
    """The learning curve, a CSV file with one line an evaluation; a resumed run goes on with it."""

    COLUMNS = ("frames", "updates", "cpu_s", "return_mean", "return_sem", "train_return", "loss")

    def __init__(self, path: Path, frames: int) -> None:
        """Open it; lines after `frames` belong to work that is lost and are dropped."""
        self._path = path
        kept = [row for row in self.rows() if int(row["frames"]) <= frames]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def rows(self) -> list[dict[str, str]]:
        """All lines."""
        if not self._path.exists():
            return []
        with self._path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, **values: float | int | None) -> None:
        """One more line."""
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self.COLUMNS).writerow({key: values.get(key) for key in self.COLUMNS})


def greedy(params: Params, *, exit_: int | None = None, half: bool = False) -> Callable[[U8], F32]:
    """A batched chooser: (n, H, W, C) uint8 -> (n,) greedy actions of one exit, the last by default."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, k = Net(params).to(device).requires_grad_(False), params.spec.n_exits - 1 if exit_ is None else exit_

    def choose(obs: U8) -> F32:
        with torch.inference_mode():
            return np.asarray(net(as_tensor(obs, device), (k,), half=half)[k][:, :-1].argmax(1).cpu().numpy())

    return choose


def play(envs: Any, choose: Callable[[U8], Any], episodes: int, *, seed: int, max_steps: int = 20_000) -> list[float]:
    """Returns of `episodes` whole episodes in a vector environment.

    Each environment plays the same number of episodes, so that short ones are not preferred.

    Args:
        envs: vector environment with NEXT_STEP resets.
        choose: (n, H, W, C) uint8 -> (n,) actions.
        episodes: how many; rounded up to a multiple of the number of environments.
        seed: of the environments.
        max_steps: an environment is given up after so many steps; what it has collected counts as an episode.
    """
    obs, _ = envs.reset(seed=seed)
    n = len(obs)
    each = -(-episodes // n)
    returns: list[list[float]] = [[] for _ in range(n)]
    running = np.zeros(n)
    for _ in range(max_steps):
        obs, reward, terminated, truncated, _ = envs.step(np.asarray(choose(obs)))
        running += reward
        for i in np.flatnonzero(terminated | truncated):
            if len(returns[i]) < each:
                returns[i].append(float(running[i]))
            running[i] = 0
        if all(len(own) == each for own in returns):
            break
    for own, value in zip(returns, running, strict=True):
        if not own:
            own.append(float(value))
    return [value for own in returns for value in own]


def score(returns: list[float]) -> Score:
    """Mean and standard error."""
    values = np.asarray(returns)
    return Score(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0)


def cpu_s() -> float:
    """CPU-seconds of this process so far."""
    return time.process_time()


def write_run(path: Path, document: dict[str, Any]) -> None:
    """Write `run.json`."""
    path.write_text(json.dumps(document, indent=1) + "\n")
