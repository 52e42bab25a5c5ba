"""PPO on the board against stable-baselines3's, in one process: the real trainer, int8 acting, one gymnasium world.

`OPENBLAS_NUM_THREADS=1 python -m tools.bench.rlink.ppo --env CartPole-v1 --seeds 3` prints, for each seed and side, the
mean return of the episodes that ended in each equal part of the run. Both see as many transitions, with the same
observations, hidden layers and hyperparameters; ours takes a tenth fewer gradient steps, since it holds states out for
its gate. It acts as on a board: the int8 network that the gate let through last, each observation up to the first exit
that is sure enough. With `--teacher good` it is taught as well, in virtual time and over a fake link, as in
`tools.bench.rlink.simulate`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgert import config
from edgert.bundle import schema_hash
from edgert.nets import NetSpec, initialise
from edgert.policy import artifact, exits
from edgert.ports.plant import worlds
from edgert.ports.process import Layout
from edgert.ports.ring import TERMINATED, TRUNCATED, RingWriter
from edgert.programs.trainer import STEPS_AT_ONCE, Trainer
from edgert.values import Budget
from tools import export
from tools.bench.rlink import simulate
from tools.nets import NETS

RATE_HZ = 50.0
SETTINGS: dict[str, Any] = {
    "learn.batch": 64,
    "learn.learning_rate": 5e-4,
    "learn.rollout_transitions": 1024,
    "learn.epochs": 4,
    "learn.min_transitions": 64,
}


def untrained(spec: NetSpec, env_id: str, seed: int) -> bytes:
    """A bundle of kind policy that knows nothing yet."""
    rng = np.random.default_rng(seed)
    params = initialise(spec, rng)
    env = worlds.make(env_id)
    seen = [env.reset(seed=seed)[0]]
    while len(seen) < 256:
        obs, _, terminated, truncated, _ = env.step(int(rng.integers(spec.n_actions)))
        seen.append(env.reset()[0] if terminated or truncated else obs)
    env.close()
    obs = np.stack(seen).astype(np.uint8)
    return export.untrained(
        params, obs, task="ppo", rate_hz=RATE_HZ, threshold=1.0, kind="policy", golden=32, every_runtime=False
    )


def ours(
    env_id: str, net: str, transitions: int, seed: int, settings: dict[str, Any], values: simulate.Values | None = None
) -> dict[str, Any]:
    """Let one device learn, in virtual time; training is done before the next action."""
    env = worlds.make(env_id)
    spec = NETS[net](env.observation_space.shape, int(env.action_space.n))
    data = untrained(spec, env_id, seed)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="edgert-") as name:
        folder = Path(name)
        (folder / "p.edgert").write_bytes(data)
        told = config.parse(
            config.commented_default(
                {
                    "device.id": f"ppo-{seed}",
                    "device.state_dir": str(folder / "state"),
                    "device.run_dir": str(folder / "run"),
                    "policy.bundle": str(folder / "p.edgert"),
                    "teacher.enabled": values is not None,
                    **settings,
                }
            ),
            "ppo",
        )
        layout = Layout(told)
        layout.make()
        policy = artifact.load(data)
        trainer = Trainer(told, layout, policy, seed=seed)
        link = simulate.Link(values, 0.05, 0.0, seed)
        trainer.parent = link  # type: ignore[assignment]  # what the trainer needs of one
        trainer._heed(Budget(max_exit=spec.n_exits - 1, train_steps_hz=1e6, teacher_bytes_per_s=8000.0), 0.0)
        practice = trainer.practice
        assert practice is not None
        ring = RingWriter(layout.ring, spec.input_shape, told.learn.ring_transitions, schema_hash(policy.manifest))
        (obs, _), episode, total = env.reset(seed=1000 * seed), 1, 0.0
        returns: list[tuple[int, float]] = []
        taken = np.zeros(spec.n_exits, int)
        for step in range(1, transitions + 1):
            bars = exits.effective_thresholds(trainer.thresholds, spec.n_exits - 1)
            head, exit_ = trainer.acting.first_sure(obs[None], bars)
            drawn = exits.draw(head, rng.random())
            taken[exit_] += 1
            following, reward, terminated, truncated, _ = env.step(drawn.action)
            flags = TERMINATED * terminated + TRUNCATED * truncated
            ring.append(
                obs, episode=episode, action=drawn.action, reward=reward, flags=flags, exit=exit_,
                log_prob=drawn.log_prob,
            )  # fmt: skip
            obs, total = following, total + reward
            if flags:
                returns.append((step, total))
                (obs, _), episode, total = env.reset(), episode + 1, 0.0
            if step % STEPS_AT_ONCE == 0:
                link.now_s = step / RATE_HZ
                for said in link.receive():
                    trainer._heed(said, link.now_s)
                trainer.read_ring()
                trainer._ask(link.now_s)
                trainer.schooling.turn(link.now_s, trainer.replay)
                trainer._train(1.0)
                while practice.left(trainer.replay, trainer.learner):
                    trainer._train(1.0)
                if trainer._offers(False):
                    trainer.offer()
        ring.close()
        trainer.schooling.close()
    env.close()
    counters = {name: trainer.counters[name] for name in ("candidates", "accepted")}
    share = (taken / taken.sum()).round(3).tolist()
    totals = {**counters, "steps": trainer.learner.steps, "bytes": link.bytes}
    faults = {**trainer.faults, **trainer.schooling.all_faults()}
    trust = round(trainer.schooling.weight, 3)
    return {"returns": returns, "exits": share, "faults": faults, "trust": trust, **totals}


def theirs(env_id: str, transitions: int, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Let stable-baselines3 learn from the same, in float32."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.monitor import Monitor

    torch.set_num_threads(1)
    world = worlds.make(env_id)
    numbers = world.observation_space.shape[0] == 1
    env = Monitor(world)
    images = {"normalize_images": numbers, "net_arch": [64, 64] if numbers else [128]}
    model = PPO(
        "MlpPolicy",
        env,
        seed=seed,
        learning_rate=settings["learn.learning_rate"],
        n_steps=settings["learn.rollout_transitions"],
        batch_size=settings["learn.batch"],
        n_epochs=settings["learn.epochs"],
        gamma=0.99,
        gae_lambda=0.95,
        ent_coef=0.01,
        policy_kwargs=images,
        device="cpu",
    )
    ends: list[int] = []

    class Ends(BaseCallback):
        """Notes at which transition each episode ended."""

        def _on_step(self) -> bool:
            if self.locals["dones"][0]:
                ends.append(self.num_timesteps)
            return True

    model.learn(transitions, callback=Ends())
    returns = list(zip(ends, env.get_episode_rewards(), strict=True))
    env.close()
    steps = model._n_updates * settings["learn.rollout_transitions"] // settings["learn.batch"]
    return {"returns": returns, "steps": steps}


def main() -> None:
    """Print one line a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--net", default="values", choices=sorted(NETS))
    parser.add_argument("--transitions", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", nargs="+", default=["ours", "theirs"], choices=("ours", "theirs"))
    parser.add_argument("--teacher", default="none", choices=simulate.TEACHERS, help="of ours (none)")
    parser.add_argument("--game", default="breakout", help="stem of the bundles that the teacher is made of (breakout)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="of the device's configuration")
    args = parser.parse_args()
    settings = {**SETTINGS, **{key: json.loads(value) for key, _, value in (each.partition("=") for each in args.set)}}
    for seed in range(args.seeds):
        for side in args.side:
            began_s = time.process_time()
            if side == "ours":
                values = simulate.teacher(args.teacher, args.game, seed)
                found = ours(args.env, args.net, args.transitions, seed, settings, values)
            else:
                found = theirs(args.env, args.transitions, seed, settings)
            line = {"side": side, "seed": seed, "earned": simulate.earned(found, 8)}
            line["cpu_s"] = round(time.process_time() - began_s)
            print(json.dumps(line | {key: value for key, value in found.items() if key != "returns"}), flush=True)


if __name__ == "__main__":
    main()
