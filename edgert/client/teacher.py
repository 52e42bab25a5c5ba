"""What teachers know, for a training loop of one's own: asked and answered beside it, never waited for.

    with Teacher("/run/edgert/knowledge.sock", task="breakout", n_actions=3) as teacher:      # a device's daemon
        ...
    with Teacher("mqtt://broker.lan", task="breakout", n_actions=3) as teacher:               # no daemon: a workstation
        number = teacher.saw(obs)        # somebody met this; teachers may be asked about it
        known = teacher.known(obs)       # None until an answer came

Through the daemon the questions keep to the byte budget that it grants, which is shared with everybody on the device
who asks. `edgert.client.gym` puts all this round a gymnasium environment.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import select
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from edgert import wire
from edgert.client.links import MAX_PENDING, RECONNECT_S, Broker, Daemon, Link
from edgert.errors import ConfigError, EdgertError, UsageError
from edgert.knowledge.codec import digest
from edgert.knowledge.student import Student
from edgert.knowledge.trust import Lessons
from edgert.knowledge.tutor import Asks, Tutor
from edgert.nets import F32, U8

POLL_S = 0.02
INBOX = 4096
"""Observations on their way to the thread that asks; more arrive only while it cannot keep up, and the oldest go."""
ASK_BYTES = 200_000
"""Most raw observation bytes in one question."""
JUDGED_LATER = 512
"""Transitions that an answer may take to be still weighed against what happened."""
UNJUDGED = 65_536
"""Transitions and episodes kept for that, at most."""
STAGE_TRANSITIONS = 1000
"""The mean return of the episodes of so many transitions is one figure of how well the student does: single episodes
may be of a few steps, and no student gets better within a few."""

log = logging.getLogger("edgert.client")


class Knowledge(msgspec.Struct, frozen=True):
    """What a teacher said of one observation.

    Attributes:
        kind: what `scores` are: "q" values of the actions, "policy" their logits.
        scores: (A,) float32, read-only.
        value: of the observation, in the teacher's discounted reward; of kind "q" the best action's.
        at_s: monotonic time of its arrival.
    """

    kind: Literal["q", "policy"]
    scores: F32
    value: float
    at_s: float

    @property
    def action(self) -> int:
        """The one the teacher prefers."""
        return int(self.scores.argmax())

    def told(self) -> dict[str, Any]:
        """For `info`: under "q" or "logits", "value" and "age_s"."""
        scores = {"q" if self.kind == "q" else "logits": self.scores}
        return {**scores, "value": self.value, "age_s": time.monotonic() - self.at_s}


class _Lived(NamedTuple):
    """A transition whose answers may still be on their way; `after` is None where the episode terminated."""

    before: bytes
    action: int
    reward: float
    after: bytes | None


class _Finished(NamedTuple):
    discounted_return: float
    length: int
    start: bytes


class Teacher:
    """Teachers of one task, as one process's training sees them. Any number of environments may share it.

    It can be pickled (what is known is not taken along), so that environments in processes of their own each make
    their connection from the same description.

    Thread: any; a thread of its own does the asking. Blocks: only `close`.
    """

    def __init__(
        self,
        where: str | os.PathLike[str],
        *,
        task: str,
        n_actions: int,
        actions: str = "",
        gamma: float = 0.99,
        fleet: str = "default",
        name: str = "",
        bytes_per_s: float = 64_000.0,
        capacity: int = 100_000,
        batch: int = 32,
        timeout_s: float = 10.0,
        wait_s: float = 0.1,
        vouched: Sequence[str] = (),
    ) -> None:
        """Describe whom to ask; the connection is made when the first observation is shown.

        Args:
            where: the daemon's knowledge.sock, or mqtt://host[:port], mqtts://host[:port] (see `ports.link.parse_url`).
            task: what is taught.
            n_actions: of the student.
            actions: names its action set, if it has a name; a teacher of another one refuses.
            gamma: discount of the student.
            fleet: whose teachers are asked over MQTT.
            name: of this student in its topics over MQTT, for brokers and teachers that tell students apart; drawn
                where there is none.
            bytes_per_s: most bytes over MQTT, both ways; the daemon says itself what it grants.
            capacity: observations known, and transitions remembered.
            batch: most observations in one question.
            timeout_s: after this a question is given up; a late answer is used all the same.
            wait_s: how long a question waits to be filled.
            vouched: names of teachers that you vouch for, as `edgert teacher` prints them: believed at once, on credit.

        Raises:
            UsageError: a number is out of range, or task, fleet or name cannot be part of a topic.
        """
        for word, said in (("task", task), ("fleet", fleet), ("name", name or "drawn")):
            if not wire.is_name(said):
                raise UsageError(f"{word} {said!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")
        numbers = {"n_actions": n_actions, "bytes_per_s": bytes_per_s, "capacity": capacity, "batch": batch}
        numbers |= {"timeout_s": timeout_s}
        if not all(number > 0 for number in numbers.values()) or not wait_s >= 0 or not 0 <= gamma <= 1:
            raise UsageError(f"{numbers}, wait_s {wait_s}, gamma {gamma}: positive; 0 or more; 0 to 1")
        named = {"where": os.fspath(where), "task": task, "actions": actions, "fleet": fleet, "name": name}
        self._said: dict[str, Any] = {**named, **numbers, "gamma": gamma, "wait_s": wait_s, "vouched": tuple(vouched)}
        self.n_actions, self.gamma = n_actions, gamma
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        # Under the lock.
        self._known: OrderedDict[bytes, Knowledge] = OrderedDict()
        self._met: list[bytes] = []  # transition number -> observation, the newest `capacity` of them
        self._count = 0
        # From the others to the thread, which alone touches what follows below.
        self._inbox: deque[tuple[int, bytes, U8]] = deque(maxlen=INBOX)
        self._lived: deque[_Lived] = deque(maxlen=UNJUDGED)
        self._finished: deque[_Finished] = deque(maxlen=UNJUDGED)
        self._faults: dict[str, int] = {}
        self._visits: OrderedDict[bytes, int] = OrderedDict()
        self._stage: list[tuple[_Finished, Knowledge | None]] = []
        self._teacher = ""
        self._ask_s = 0.0  # nothing is asked before
        # Drawn, so that an answer to a question of somebody before us matches none of ours.
        self._ask_id = secrets.randbits(48) << 8
        # From the thread to the others, each set at once.
        self._obs_shape: tuple[int, ...] | None = None
        self._tutor: Tutor | None = None
        self._link: Link | None = None
        self._weight = self._value_mean = 0.0

    def saw(self, obs: U8) -> int:
        """Show an observation that was met; teachers are asked about it, if it is worth its bytes.

        Args:
            obs: (H, W, C) uint8, always of one shape; copied.

        Returns:
            The number of this transition, for `knowledge`.

        Raises:
            UsageError: no such array, or of another shape than the first.
        """
        if obs.dtype != np.uint8 or obs.ndim != 3 or (self._obs_shape or obs.shape) != obs.shape:
            raise UsageError(f"an observation is uint8 {self._obs_shape or '(H, W, C)'}, not {obs.dtype} {obs.shape}")
        self._here()
        if self._thread is None:
            self._start(obs)
        name = digest(obs.tobytes())
        with self._lock:
            number, self._count = self._count, self._count + 1
            if len(self._met) < self._said["capacity"]:
                self._met.append(name)
            else:
                self._met[number % len(self._met)] = name
            unknown = name not in self._known
        if unknown:
            self._inbox.append((number, name, np.array(obs)))
        return number

    def known(self, obs: U8) -> Knowledge | None:
        """What is known of an observation now, or None."""
        self._here()
        return self._of(digest(obs.tobytes()))

    def knowledge(self, numbers: Sequence[int]) -> list[Knowledge | None]:
        """What is known by now of transitions that `saw` numbered; None for those too old as well."""
        self._here()
        return [self._of(self._name(number)) for number in numbers]

    def lived(self, before: int, action: int, reward: float, after: int | None) -> None:
        """Tell what came of an action: what teachers say is weighed against it, once it is known.

        Args:
            before: number of the observation it was taken in.
            action: that was executed, from 0, whoever chose it.
            reward: of the environment itself, without shaping.
            after: number of the observation that followed; None when the episode terminated.
        """
        self._here()
        if not math.isfinite(reward):
            # It proves nothing against the teacher.
            self._fault("reward-not-finite", f"reward {reward} of the environment")
            return
        self._lived.append(_Lived(self._name(before), action, reward, None if after is None else self._name(after)))

    def finished(self, discounted_return: float, length: int, start: int) -> None:
        """Tell how an episode ended that the student played all by itself.

        Args:
            discounted_return: of the environment's own rewards, from the start.
            length: transitions in it.
            start: number of its first observation.
        """
        self._here()
        if not math.isfinite(discounted_return):
            self._fault("return-not-finite", f"return {discounted_return} of the environment")
            return
        self._finished.append(_Finished(discounted_return, max(1, length), self._name(start)))

    @property
    def weight(self) -> float:
        """0 to 1: how far the teacher is believed now; see `knowledge.trust`."""
        return self._weight

    @property
    def heard(self) -> str:
        """Who is listened to now, "" while nobody is; what another one said is forgotten."""
        return self._teacher

    @property
    def usual_value(self) -> float:
        """Mean of the values known so far: the best guess where nothing is known."""
        return self._value_mean

    def status(self) -> dict[str, Any]:
        """Whether the link is up, what was asked and answered, and what went wrong."""
        self._here()
        tutor, link = self._tutor, self._link
        counters = {} if tutor is None else msgspec.structs.asdict(tutor.student.counters)
        faults = dict(self._faults) if tutor is None else {**self._faults, **tutor.faults, **tutor.student.faults}
        return {
            "up": link is not None and link.up(),
            "bytes_per_s": None if link is None else link.bytes_per_s,
            "teacher": "" if tutor is None else tutor.teacher,
            "weight": self._weight,
            "known": len(self._known),
            **counters,
            "faults": faults,
        }

    def close(self) -> None:
        """Ask no more; what is known stays."""
        self._here()
        self._closing.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def __enter__(self) -> Teacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self._said,)

    def _name(self, number: int) -> bytes:
        with self._lock:
            return self._met[number % len(self._met)] if self._count - len(self._met) <= number < self._count else b""

    def _of(self, name: bytes) -> Knowledge | None:
        with self._lock:
            known = self._known.get(name)
            if known is not None:
                self._known.move_to_end(name)
            return known

    def _here(self) -> None:
        if self._pid != os.getpid():
            # A fork has our memory and not our thread, nor may it use our connection; our lock may be held for ever.
            self._begin()

    def _start(self, obs: U8) -> None:
        said = self._said
        student = Student(
            capacity=said["capacity"],
            batch=max(1, min(said["batch"], ASK_BYTES // max(1, obs.nbytes))),
            timeout_s=said["timeout_s"],
            max_pending=MAX_PENDING,
            wait_s=said["wait_s"],
        )
        height, width, channels = obs.shape
        asks = Asks(said["task"], (height, width, channels), self.n_actions, said["actions"])
        # A temperature of 1, so that logits come as the teacher gave them.
        tutor = Tutor(student, asks, gamma=self.gamma, temperature=1.0, vouched=said["vouched"])
        with self._lock:
            if self._closing.is_set() or self._thread is not None:
                return
            self._obs_shape, self._tutor = obs.shape, tutor
            self._thread = threading.Thread(target=self._run, args=(tutor,), name="edgert teacher", daemon=True)
            self._thread.start()

    # The thread.

    def _run(self, tutor: Tutor) -> None:
        while not self._closing.is_set():
            try:
                if self._link is None:
                    self._link = self._open()
                self._turn(tutor, self._link)
            except ConfigError as error:
                self._fault("link-broken", error)
                break  # nobody will correct the description that we were given
            except EdgertError as error:
                self._fault("link-broken", error)
                self._closing.wait(RECONNECT_S)
            except Exception as error:
                # The training that we serve must never hear of a bug of ours.
                self._fault("internal-error", repr(error))
                self._closing.wait(RECONNECT_S)
        if self._link is not None:
            self._link.close()

    def _open(self) -> Link:
        said = self._said
        if "://" not in said["where"]:
            return Daemon(said["where"])
        name = said["name"] or f"student-{secrets.token_hex(6)}"
        return Broker(said["where"], said["fleet"], name, said["task"], said["bytes_per_s"])

    def _turn(self, tutor: Tutor, link: Link) -> None:
        if link.mend():
            self._fault("link-thread-dead", "the thread that talks to the broker had died: there is another now")
            self._closing.wait(RECONNECT_S)  # that one may die at once, too
        now_s = time.monotonic()
        while self._inbox:
            number, name, obs = self._inbox.popleft()
            visits = self._visits[name] = self._visits.pop(name, 0) + 1
            if len(self._visits) > self._said["capacity"]:
                self._visits.popitem(last=False)
            # What was met most often will be met again: an answer about it serves most.
            tutor.student.saw(number, obs, float(visits))
        for ask_id, payload in link.receive():
            tutor.answer(ask_id, payload, now_s)
        self._learn(tutor, now_s)
        self._judge(tutor, now_s)
        if link.up() and now_s >= self._ask_s:
            self._ask(tutor, link, now_s)
        while tutor.news:
            log.warning("%s", tutor.news.pop(0))
        poller = select.poll()
        if link.fileno() >= 0:
            poller.register(link.fileno(), select.POLLIN)
        poller.poll(POLL_S * 1000)

    def _ask(self, tutor: Tutor, link: Link, now_s: float) -> None:
        """Ask as much at once as fits a message."""
        plan, most_bytes = tutor.plan(now_s, link.bytes_per_s), link.most_bytes()
        if plan is None or most_bytes <= 0:
            return
        fitting = tutor.fitting(plan, most_bytes)
        if fitting is None:
            self._ask_s = now_s + RECONNECT_S  # the next will hardly fit either, and it is costly to find out
        elif link.send(self._ask_id + 1, fitting[1]):
            self._ask_id += 1
            tutor.student.sent(self._ask_id, fitting[0], len(fitting[1]), now_s)

    def _learn(self, tutor: Tutor, now_s: float) -> None:
        """Show everybody what is new; what a teacher said who is heard no more is forgotten."""
        new, tutor.student.fresh = tutor.student.fresh, {}
        if tutor.teacher != self._teacher:
            self._teacher, self._value_mean = tutor.teacher, 0.0
            with self._lock:
                self._known.clear()
        kind: Literal["q", "policy"] = "policy" if self._teacher.startswith("policy/") else "q"
        for name, row in new.items():
            self._visits.pop(name, None)
            with self._lock:
                self._known[name] = Knowledge(kind, row[: self.n_actions], float(row[-1]), now_s)
                if len(self._known) > self._said["capacity"]:
                    self._known.popitem(last=False)
                self._value_mean += (float(row[-1]) - self._value_mean) / len(self._known)

    def _judge(self, tutor: Tutor, now_s: float) -> None:
        """Weigh what the teacher said against what happened, once there was time to answer."""
        if len(self._lived) >= 2 * JUDGED_LATER:
            tutor.judge(self._lessons([self._lived.popleft() for _ in range(len(self._lived) - JUDGED_LATER)]))
        while self._finished:
            finished = self._finished.popleft()
            self._stage.append((finished, self._of(finished.start)))
            transitions = sum(each.length for each, _ in self._stage)
            if transitions < STAGE_TRANSITIONS:
                continue
            n, claims = len(self._stage), [known.value for _, known in self._stage if known is not None]
            mean = sum(each.discounted_return for each, _ in self._stage) / n
            tutor.trust.episode(mean, max(1, transitions // n), sum(claims) / len(claims) if claims else None)
            self._stage.clear()
        tutor.review(now_s)
        self._weight = tutor.weight

    def _lessons(self, lived: list[_Lived]) -> Lessons | None:
        rows = []
        for each in lived:
            before = self._of(each.before)
            after = before if each.after is None else self._of(each.after)
            if before is not None and after is not None:
                rows.append((each, before, after))
        if not rows:
            return None
        value = np.array([before.value for _, before, _ in rows], np.float32)
        next_value = np.array([after.value for _, _, after in rows], np.float32)
        action = np.array([each.action for each, _, _ in rows], np.int64)
        return Lessons(
            told=np.stack([before.scores for _, before, _ in rows]),
            value=value,
            next_value=next_value,
            action=action,
            reward=np.array([each.reward for each, _, _ in rows], np.float32),
            terminated=np.array([each.after is None for each, _, _ in rows]),
            # What the student thinks is its library's affair. With the teacher's own values in its place, what is
            # tested against it says no more than the other tests, and nothing wrong.
            critic=value,
            next_critic=next_value,
            favourite=action,
        )

    def _fault(self, name: str, why: object) -> None:
        self._faults[name] = self._faults.get(name, 0) + 1
        log.log(logging.WARNING if self._faults[name] == 1 else logging.DEBUG, "%s: %s", name, why)


def _make(said: dict[str, Any]) -> Teacher:
    return Teacher(**said)
