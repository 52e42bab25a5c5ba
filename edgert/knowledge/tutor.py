"""A student and its teacher: what is asked, who answered, whether it is believed, and when to leave it alone.

There is one teacher at a time, known by what its answers call it. What another says while this one is heard is not
used; a teacher that was found out is not believed again before its probation, and a refusal is not repeated at once.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from edgert import wire
from edgert.errors import MessageError, UsageError
from edgert.knowledge import codec
from edgert.knowledge.student import AskPlan, Student
from edgert.knowledge.trust import Lessons, Trust, TrustState
from edgert.nets import F32

Weighing: TypeAlias = Literal["measured", "return", "full"]

OTHER_S = 60.0
"""A teacher not heard of for so long makes room for another."""
PROBATION_S = 1800.0
"""First pause after a teacher was found out; doubles each time."""
LONGEST_PROBATION_S = 86_400.0
LOOK_S = 120.0
"""During the pause one question in so many seconds finds out whether another teacher has come."""
PROBATION_FRAC = 0.1
"""Share of the budget for a teacher on probation."""
REFUSED_S = 10.0
LONGEST_REFUSED_S = 300.0
MAX_OFF = 16
REFUSALS = frozenset(
    {"actions", "codec", "draining", "malformed-data", "n-actions", "not-finite", "obs-shape", "over-budget"}
    | {"model-failed", "schema", "too-many", "unknown-task"}
)
"""Refusals counted by name: whoever may publish answers could invent as many others as our memory holds."""


PASSING = frozenset({"draining", "over-budget"})
"""Refusals that say nothing about whether teacher and student fit one another."""


class Asks(NamedTuple):
    """What questions are about.

    Attributes:
        task: as teachers call it.
        obs_shape: (H, W, C).
        n_actions: A.
        actions: names the action set; empty where nobody named the actions.
    """

    task: str
    obs_shape: tuple[int, int, int]
    n_actions: int
    actions: str = ""


class _Out(msgspec.Struct):
    """A teacher that was found out, and until when that stands."""

    reason: str
    times: int
    until_s: float


class _State(msgspec.Struct):
    teacher: str
    kind: Literal["q", "policy"]
    trust: TrustState
    out: dict[str, _Out]


class Tutor:
    """Both ends of what a student has to do with its teacher but the bytes' way there.

    A row of knowledge, as it is joined, kept and remembered, is (A + 1,) float32: what the teacher says of each
    action, such that softmax(row / temperature) are its preferences, and of the state.

    Attributes:
        student: what waits, what was asked and what is known.
        teacher: identity of the one who is listened to; empty when nobody is.
        trust: in it; of a stranger, when nobody is.
        faults: named fault -> count, not counting the student's own.
        news: lines for a log since somebody last emptied it; each condition is said once.
    """

    def __init__(
        self,
        student: Student,
        asks: Asks,
        *,
        gamma: float,
        temperature: float,
        weighing: Weighing = "measured",
        vouched: Collection[str] = (),
    ) -> None:
        """Start with no teacher.

        Args:
            student: adopted.
            asks: what questions are about.
            gamma: discount of the training.
            temperature: of the distillation, in units of Q.
            weighing: `measured` as `trust` says; `return` by the returns alone, as QDagger; `full` never less than all.
            vouched: names of teachers that are believed on credit until they have proved themselves.
        """
        self.student, self.teacher = student, ""
        self.faults: dict[str, int] = {}
        self.news: list[str] = []
        self._asks, self._gamma, self._temperature, self._weighing = asks, gamma, temperature, weighing
        self._kind: Literal["q", "policy"] = "q"
        self._vouched = frozenset(vouched)
        self.trust = Trust("q", gamma)
        self._out: dict[str, _Out] = {}
        self._codec = codec.CODEC_BEST
        self._heard_s = self._quiet_until_s = self._look_s = -float("inf")
        self._refused = self._not_finite_before = 0

    @property
    def weight(self) -> float:
        """0 to 1: share of its full weight that the teacher's loss should have."""
        if not self.teacher or self._weighing == "full":
            return 1.0 if self._weighing == "full" else 0.0
        return self.trust.weight if self._weighing == "measured" else self.trust.state.lead

    @property
    def kind(self) -> Literal["q", "policy"]:
        """What the teacher's answers were."""
        return self._kind

    @property
    def proving(self) -> bool:
        """The teacher has yet to show that it is worth listening to: both ends of transitions are wanted."""
        return self._weighing == "measured" and not self.trust.state.shown

    def plan(self, now_s: float, bytes_per_s: float) -> AskPlan | None:
        """What to ask now, if anything.

        Args:
            now_s: monotonic time.
            bytes_per_s: what the budget allows.

        Returns:
            A plan, to be encoded with `question` and given to `student.sent` if it was sent.

        Raises:
            Nothing.
        Source:
            ours; see `Student.plan`.
        """
        self.student.expire(now_s)
        allowed = bytes_per_s
        if self._weighing == "measured":
            allowed *= self.trust.appetite
        if self.teacher in self._out:
            allowed *= PROBATION_FRAC
        looks = not self.teacher and any(now_s < out.until_s for out in self._out.values())
        if now_s < self._quiet_until_s or (looks and now_s - self._look_s < LOOK_S):
            allowed = 0.0  # choosing what to ask costs more than a gradient step of a small network
        plan = self.student.plan(now_s, allowed)
        if plan is not None and looks:
            self._look_s = now_s
        return plan

    def question(self, plan: AskPlan) -> bytes:
        """Put a plan into words.

        Args:
            plan: of `plan`.

        Returns:
            An encoded `wire.KnowAsk`.

        Raises:
            UsageError: it does not fit a message.
        Source:
            ours; see `wire.KnowAsk`.
        """
        return wire.encode(
            wire.KnowAsk(
                task=self._asks.task,
                obs_shape=self._asks.obs_shape,
                n_actions=self._asks.n_actions,
                count=len(plan.rows),
                codec=self._codec,
                data=codec.CODECS[self._codec].encode_obs(np.stack(plan.rows)),
                actions=self._asks.actions,
            )
        )

    def fitting(self, plan: AskPlan, most_bytes: int) -> tuple[AskPlan, bytes] | None:
        """Put as much of a plan into words as one message carries.

        Args:
            plan: of `plan`.
            most_bytes: of the payload.

        Returns:
            What of the plan is asked, and the payload; None, and a fault, where not even one observation fits: that
            one is not waited for any more.

        Raises:
            Nothing.
        Source:
            ours: how far observations compress is known only afterwards, and what does not fit must not be planned
            again and again.
        """
        while True:
            try:
                payload = self.question(plan)
            except UsageError:  # over the limit of the wire
                payload = b""
            if 0 < len(payload) <= most_bytes:
                return plan, payload
            fewer = len(plan.rows) // 2
            if not fewer:
                shape = "x".join(map(str, plan.rows[0].shape))
                self._fault("observation-too-large", f"an observation of {shape} does not fit {most_bytes} bytes")
                self.student.forget(plan.digests)
                return None
            plan = AskPlan(plan.seqs[:fewer], plan.rows[:fewer], plan.digests[:fewer])

    def answer(self, ask_id: int, payload: bytes, now_s: float) -> list[tuple[int, F32]]:
        """Take an answer in.

        Args:
            ask_id: of the question.
            payload: what came, whatever it is.
            now_s: monotonic time.

        Returns:
            (seq, (A + 1,) float32, read-only) for every transition that was waiting for one of these observations.

        Raises:
            Nothing.
        Source:
            ours; see `Student.answer`.
        """
        expected = self.student.expected(ask_id)
        if expected is None:
            # Whoever may publish must not silence us, nor take the place of our teacher, without being asked.
            return self.student.answer(ask_id, np.zeros((0, 1), np.float32), len(payload), now_s)
        try:
            told, _ = wire.decode(payload, wire.KnowAnswer)
            if told.error:
                self._heed_refusal(ask_id, told, now_s)
                return []
            if told.count != expected:
                raise MessageError(f"{told.count} rows where {expected} were asked for")
            columns = self._asks.n_actions + (told.kind == "policy")
            if told.codec not in codec.CODECS:
                raise MessageError(f"codec {told.codec} is not known here")
            rows = codec.CODECS[told.codec].decode_q(told.data, told.count, columns)
        except MessageError as error:
            self._fault("answer-malformed", f"answer {ask_id}: {error!s:.300}")
            return []
        if not self._listens(f"{told.kind}/{told.teacher:.64}", told.kind, now_s):
            self.student.give_up(ask_id)
            return []
        answered = self.student.counters.answered
        joined = self.student.answer(ask_id, self._row(rows, told.kind), len(payload), now_s)
        if self.student.counters.answered > answered:
            self._heard_s, self._refused, self._quiet_until_s = now_s, 0, -float("inf")
        counters, not_finite = self.student.counters, self.student.faults.get("answer-not-finite", 0)
        new = rows if self.student.counters.answered > answered else rows[:0]
        self.trust.rows(
            new[:, : self._asks.n_actions],
            counters.contradictions,
            counters.repeats,
            not_finite - self._not_finite_before,
        )
        return joined

    def judge(self, lessons: Lessons | None) -> None:
        """Let the teacher be weighed against what happened.

        Args:
            lessons: transitions with both ends valued by this teacher; None when there are none.

        Raises:
            UsageError: as `Trust.judge`.
        Source:
            as `Trust.judge`.
        """
        if lessons is not None and self.teacher:
            self.trust.judge(lessons)

    def review(self, now_s: float) -> str:
        """Part with the teacher if it was found out.

        Args:
            now_s: monotonic time.

        Returns:
            The identity of the teacher that is switched off now, all of whose knowledge is to be forgotten; else "".

        Raises:
            Nothing.
        Source:
            ours: what a bad teacher said would go on harming for as long as it is remembered.
        """
        reason, bad = self.trust.off, self.teacher
        if not reason or not bad or self._weighing != "measured":
            return ""
        times = self._out[bad].times + 1 if bad in self._out else 1
        pause_s = min(LONGEST_PROBATION_S, PROBATION_S * 2 ** (times - 1))
        self._out.pop(bad, None)
        self._out[bad] = _Out(reason, times, now_s + pause_s)
        while len(self._out) > MAX_OFF:
            del self._out[next(iter(self._out))]
        self._fault(f"teacher-off-{reason}", f"teacher {bad} is switched off ({reason}) for {pause_s:.0f} s")
        self._begin("", "q", now_s)
        self._look_s = now_s
        return bad

    def pack(self) -> bytes:
        """What a restart should know.

        Returns:
            Bytes for `restore`.

        Raises:
            Nothing.
        Source:
            ours: a verdict that is forgotten has to be paid for again.
        """
        return msgspec.json.encode(_State(self.teacher, self._kind, self.trust.state, self._out))

    def restore(self, data: bytes, now_s: float) -> bool:
        """Go on from `pack`; pauses begin anew, since nobody knows how long we were gone.

        Args:
            data: as packed.
            now_s: monotonic time.

        Returns:
            False when it is not what `pack` makes, and nothing was changed.

        Raises:
            Nothing.
        Source:
            as `pack`.
        """
        try:
            state = msgspec.json.decode(data, type=_State)
        except msgspec.DecodeError:
            return False
        self.teacher, self._kind, self._heard_s = state.teacher, state.kind, now_s
        self._out = state.out
        self.trust = self._meet(state.trust)
        for out in self._out.values():
            out.until_s = now_s + min(LONGEST_PROBATION_S, PROBATION_S * 2 ** (out.times - 1))
        return True

    def _row(self, rows: F32, kind: str) -> F32:
        if kind == "policy":
            # Such that the training, which divides by its temperature, aims at softmax(logits).
            rows[:, :-1] *= np.float32(self._temperature)
            return rows
        return np.concatenate([rows, rows.max(1, keepdims=True)], axis=1)

    def _listens(self, teacher: str, kind: Literal["q", "policy"], now_s: float) -> bool:
        if teacher == self.teacher:
            return True
        out = self._out.get(teacher)
        if out is not None and now_s < out.until_s and self._weighing == "measured":
            self._fault("teacher-off", "")
            return False
        if self.teacher and now_s - self._heard_s < OTHER_S:
            self._fault("teacher-other", f"{teacher} answers beside {self.teacher}, which is listened to")
            return False
        self._begin(teacher, kind, now_s)
        return True

    def _begin(self, teacher: str, kind: Literal["q", "policy"], now_s: float) -> None:
        if self.teacher:
            self.student.forget_answers()
        self.teacher, self._kind, self._heard_s = teacher, kind, now_s
        self.trust = self._meet()
        self._not_finite_before = self.student.faults.get("answer-not-finite", 0)

    def _meet(self, state: TrustState | None = None) -> Trust:
        """Who was found out once is nobody to give credit to again."""
        vouched = self.teacher.partition("/")[2] in self._vouched and self.teacher not in self._out
        return Trust(self._kind, self._gamma, state, vouched=vouched)

    def _heed_refusal(self, ask_id: int, told: wire.KnowAnswer, now_s: float) -> None:
        name = told.error if told.error in REFUSALS else "other"
        wait_s = min(LONGEST_REFUSED_S, REFUSED_S * 4.0 ** min(self._refused, 4))
        if name == "codec" and self._codec != codec.CODEC_FRAMES_ZSTD:
            self._codec, wait_s = codec.CODEC_FRAMES_ZSTD, 0.0  # an older teacher, which knows the first one
        elif name in PASSING:
            wait_s = 1.0
        else:
            self._refused += 1
        self._quiet_until_s = now_s + max(wait_s, min(told.retry_s, LONGEST_REFUSED_S))
        self.student.give_up(ask_id)
        self._fault("teacher-refused", "")
        self._fault(f"refused-{name}", f"a teacher refuses: {told.error:.80}")

    def _fault(self, name: str, why: str) -> None:
        self.faults[name] = self.faults.get(name, 0) + 1
        if self.faults[name] == 1 and why:
            self.news.append(why)
