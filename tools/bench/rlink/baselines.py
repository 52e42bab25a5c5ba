"""Students that wait for their teacher, over the same link, broker, teacher and wire as `live`.

`sync` asks about every batch of observations and goes on when the answer is there, over one connection that is kept
open: a batch of 1 is the blocking query per step, one of 32 what anybody would do who has measured the first. What is
learned from is the same as with the other distillations: temporal difference and the teacher's preferences.

`advising` (Torrey & Taylor 2013, Teaching on a budget) asks what to do and does it, as often as its budget allows: in
its first transitions at once, later where its own two best actions are nearly equal (uncertainty as importance). It
learns from rewards alone.

Both train in the same process as they act, with the learner, the replay, the exploration, the number of gradient steps
and the interval between acting networks that the device's trainer has; the network that acts is the int8 one.
"""

from __future__ import annotations

import contextlib
import select
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgert import quant, wire
from edgert.bundle import action_set
from edgert.errors import LinkError, MessageError
from edgert.knowledge import codec
from edgert.learn.dqn import Hyper, Learner
from edgert.learn.replay import Replay
from edgert.nets import F32, U8
from edgert.policy import artifact, exits
from edgert.ports.broker import free_port
from edgert.ports.cluster import Cluster
from edgert.ports.mqtt import Mqtt, Received
from edgert.ports.plant import worlds
from edgert.ports.process import usage
from edgert.ports.relay import Shape
from tools.bench.rlink.live import Copy, Fault, Run, counted, models, on_wire, shaped

DEVICE = "student"
PROBE = 256
UNSURE_FRAC = 0.25
"""Share of observations that count as unsure, of those met lately."""
ANSWER_S = 10.0
GIVE_UP_S = 120.0


class Asker:
    """One kept connection to the broker, and the question that is waited for."""

    def __init__(self, port: int, fleet: str, policy: artifact.Policy) -> None:
        """Connect.

        Args:
            port: of the link.
            fleet: of the teachers.
            policy: of the student.
        """
        manifest = policy.manifest
        self._task, self._spec, self._actions = manifest.task, policy.spec, action_set(manifest.action.names)
        self._topics = [str(wire.Topic(fleet, DEVICE, "know", kind, self._task)) for kind in ("ask", "answer")]
        self._mqtt = Mqtt(f"mqtt://127.0.0.1:{port}", f"edgert-{DEVICE}", session_expiry_s=0)
        self._mqtt.subscribe([(self._topics[1], 1)])
        self._mqtt.start()
        self._id = int(time.time()) << 20
        self.asked = self.again = self.bytes_out = self.bytes_in = 0

    def ask(self, obs: U8) -> F32:
        """The teacher's values, (n, actions), when they are here.

        Raises:
            LinkError: no answer for `GIVE_UP_S`.

        Blocks: for a round trip, and longer when something is lost.
        """
        question = wire.KnowAsk(
            task=self._task,
            obs_shape=self._spec.input_shape,
            n_actions=self._spec.n_actions,
            count=len(obs),
            codec=codec.CODEC_BEST,
            data=codec.CODECS[codec.CODEC_BEST].encode_obs(obs),
            actions=self._actions,
        )
        payload = wire.encode(question)
        give_up_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up_s:
            self._id += 1
            correlation = self._id.to_bytes(8, "big")
            sent = self._mqtt.is_up() and self._mqtt.publish(
                self._topics[0],
                payload,
                qos=1,
                expiry_s=30,
                content_type=wire.CONTENT_TYPE,
                correlation=correlation,
                response_topic=self._topics[1],
            )
            if not sent:
                time.sleep(0.01)
                continue
            self.bytes_out += len(payload)
            told = self._await(correlation, min(give_up_s, time.monotonic() + ANSWER_S))
            if told is not None and len(told) == len(obs):
                self.asked += len(obs)
                return told
            self.again += 1
        raise LinkError(f"no teacher answers {DEVICE} about {self._task}")

    def _await(self, correlation: bytes, until_s: float) -> F32 | None:
        poller = select.poll()
        poller.register(self._mqtt.fileno(), select.POLLIN)
        while (left_s := until_s - time.monotonic()) > 0:
            poller.poll(left_s * 1000)
            for event in self._mqtt.events():
                if not isinstance(event, Received) or event.correlation != correlation:
                    continue
                self.bytes_in += len(event.payload)
                try:
                    answer, _ = wire.decode(event.payload, wire.KnowAnswer)
                    if answer.error:
                        raise LinkError(f"the teacher refuses {DEVICE}: {answer.error}")
                    return codec.CODECS[answer.codec].decode_q(answer.data, answer.count, self._spec.n_actions)
                except MessageError:
                    return None
        return None

    def close(self) -> None:
        """Leave the broker."""
        self._mqtt.close(goodbye=False, flush_s=0.0)


class Waiting:
    """A student that acts, learns and waits, in one thread."""

    def __init__(
        self, policy: artifact.Policy, settings: dict[str, Any], env_id: str, steps: int, seed: int, asker: Asker
    ) -> None:
        """Begin.

        Args:
            policy: the initial network.
            settings: as of a device, and those of `bench`.
            env_id: of the environment.
            steps: transitions to come.
            seed: of environment and chance.
            asker: connected, or about to be.
        """
        self.policy, self.settings, self.asker, self.steps = policy, settings, asker, steps
        self.env = worlds.make(env_id)
        self.rng = np.random.default_rng(seed)
        learn = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("learn.")}
        self.hyper = Hyper(**{name: learn[name] for name in Hyper.__struct_fields__ if name in learn})
        self.batch, self.pays = int(learn["batch"]), float(learn["steps_per_transition"])
        self.every, self.least = int(learn["candidate_transitions"]), int(learn["min_transitions"])
        spec = policy.spec
        self.learner = Learner(policy.params.copy())
        self.replay = Replay(int(learn["ring_transitions"]), spec.input_shape, spec.n_actions)
        self.net, self.thresholds = quant.IntNet(spec, policy.tensors), list(policy.manifest.thresholds)
        self.obs, _ = self.env.reset(seed=seed)
        self.seq, self.owed, self.total = 0, 0.0, 0.0
        self.episodes: list[tuple[int, float]] = []
        self.unasked: list[tuple[int, U8]] = []
        self.gaps: list[float] = []
        frac = settings.get("bench.advice_frac")
        self.advice_left = None if frac is None else round(float(frac) * steps)
        self.ask_batch = int(settings["bench.ask_batch"])

    def turn(self) -> None:
        """One transition, with all that is due."""
        heads = self.net.heads(self.obs[None])
        action = self._advised(heads[self.policy.spec.n_exits - 1][0, : self.policy.spec.n_actions])
        if action is None:
            action = int(exits.decide(heads, self.thresholds)[0])
            if self.rng.random() < self._explore_frac():
                action = int(self.rng.integers(self.policy.spec.n_actions))
        following, reward, terminated, truncated, _ = self.env.step(action)
        self.seq += 1
        self.replay.add(
            np.array([self.seq]),
            self.obs[None],
            np.array([action]),
            np.array([reward], np.float32),
            np.array([terminated]),
            np.array([truncated]),
        )
        if self.advice_left is None:
            self.unasked.append((self.seq, self.obs))
            if len(self.unasked) >= self.ask_batch:
                self._be_taught()
        self.total += float(reward)
        self.obs = following
        if terminated or truncated:
            self.episodes.append((self.seq, round(self.total, 4)))
            self.total = 0.0
            self.obs, _ = self.env.reset()
        self._train()

    def _explore_frac(self) -> float:
        end, over = float(self.settings["policy.explore_frac"]), int(self.settings["policy.explore_transitions"])
        return end + (1 - end) * max(0.0, 1 - self.seq / max(1, over))

    def _advised(self, q: npt.NDArray[np.floating]) -> int | None:
        """What the teacher would do, if it is asked."""
        if not self.advice_left:
            return None
        best = np.sort(q)[::-1]
        gap = float(best[0] - best[1])
        self.gaps = [*self.gaps[-499:], gap]
        # Nobody knows anything at the beginning, so the first half of the budget is spent at once.
        early = self.seq < self.advice_left
        if not early and gap > np.quantile(self.gaps, UNSURE_FRAC):
            return None
        self.advice_left -= 1
        return int(self.asker.ask(self.obs[None])[0].argmax())

    def _be_taught(self) -> None:
        rows = self.asker.ask(np.stack([obs for _, obs in self.unasked]))
        for (seq, _), row in zip(self.unasked, rows, strict=True):
            # The last column is what the teacher says of the state.
            self.replay.teach(seq, np.append(row, row.max()).astype(np.float32))
        self.unasked.clear()

    def _train(self) -> None:
        self.owed += self.pays if self.seq >= self.least else 0.0
        # What may be drawn is gathered anew after each transition: only where there is something to draw it for.
        while self.owed >= 1 and len(self.replay):
            self.owed -= 1
            self.learner.step(self.replay.sample(self.rng, self.batch), self.hyper)

    def offer(self) -> bytes | None:
        """The network as a bundle, which acts from now on; None before it has learned anything."""
        obs = self.replay.newest(PROBE).batch.obs
        if not self.learner.steps:
            return None
        quantized = quant.fit(self.learner.params, obs)
        self.net = quant.IntNet(self.policy.spec, quantized.tensors)
        self.thresholds = list(exits.fit_thresholds(self.net.heads(obs)))
        return artifact.derive(
            self.policy,
            self.learner.params,
            quantized,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            provenance={"trained_on_device": {"transitions": self.seq, "steps": self.learner.steps}},
            thresholds=self.thresholds,
        )


def run(
    game: str,
    env_id: str,
    *,
    student: Path,
    teacher: Path,
    steps: int,
    settings: dict[str, Any],
    shape: Shape,
    seed: int,
    out: Path,
    faults: tuple[Fault, ...] = (),
) -> Run:
    """As `live.live`, for a student that waits; nothing goes wrong on its way."""
    del faults
    copies_at = out / "copies"
    copies_at.mkdir(parents=True, exist_ok=True)
    policy = artifact.load(student.read_bytes())
    with contextlib.ExitStack() as stack:
        cluster = Cluster(
            out / "cluster", game, devices=0, broker="mosquitto", models=models(out, game, student, teacher)
        )
        stack.callback(cluster.stop)
        port = free_port()
        stack.enter_context(shaped(msgspec.structs.replace(shape, seed=seed), port, cluster.port, out))
        cluster.start()
        asker = Asker(port, cluster.fleet, policy)
        stack.callback(asker.close)
        asker.ask(policy.golden_obs[:1])  # from when on it is timed, everybody is there
        one = Waiting(policy, settings, env_id, steps, seed, asker)
        initial = copies_at / f"{0:08d}.edgert"
        initial.write_bytes(student.read_bytes())
        copies, pace = [Copy(0, 0.0, 0, str(initial))], [(0.0, 0)]
        began_s, cpu_s = time.monotonic(), usage()[0]
        while one.seq < steps:
            one.turn()
            wall_s = time.monotonic() - began_s
            if wall_s - pace[-1][0] >= 1:
                pace.append((round(wall_s, 3), one.seq))
                cluster.poll()
            if one.seq % one.every == 0 and (data := one.offer()) is not None:
                path = copies_at / f"{one.seq:08d}.edgert"
                path.write_bytes(data)
                copies.append(Copy(one.seq, round(wall_s, 3), on_wire(counted(out)), str(path)))
        wall_s = time.monotonic() - began_s
        pace.append((round(wall_s, 3), one.seq))
        spent_s = usage()[0] - cpu_s
    found = {"trainer": {"steps": one.learner.steps, "asked": asker.asked, "again": asker.again}}
    return Run(one.seq, round(wall_s, 3), round(spent_s, 2), pace, one.episodes, copies, counted(out), found)
