"""The student's side of teaching: which observations to ask about, when, and whose answer came back.

Observations, not transitions, are asked about: each is known by the digest of its content, so that transitions which
show the same thing share one question and one answer, and an answer can never be joined to anything but the very
observation it is about, however late, often or out of order it comes.
"""

from __future__ import annotations

import heapq
import math
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from edgert.errors import UsageError
from edgert.knowledge.codec import digest
from edgert.nets import F32, U8

MEAN_WEIGHT = 0.2
TINY = 1e-9
FIRST_ANSWER_GUESS_BYTES = 32
REMEMBERED_ASKS = 256
CHOOSE_FROM = 4
"""Questions' worth of the most valuable observations among which the cheap ones are sought."""
HUGE = 1e15
"""Finite, but no number that anything can be learned from: a temperature would make it infinite."""
SAME_FRAC = 0.01
"""Two answers about one observation agree if they differ by less than so much of their size: replicas round."""


class Counters(msgspec.Struct):
    """Totals since the student was made.

    Attributes:
        seen: transitions.
        joined: transitions that got their teacher's values.
        from_cache: of these, how many because the same observation had been answered before.
        forgotten: transitions dropped unanswered because better ones needed the room.
        asks: questions sent.
        asked: observations in them.
        answered: observations in the answers that were used.
        expired: questions whose time ran out.
        late: of these, how many were answered all the same.
        bytes_out: payload bytes of questions.
        bytes_in: payload bytes of answers, whether used or not.
        spared: observations not kept for asking, because an answer would have been worth too little.
        repeats: answers about an observation that was answered before.
        contradictions: of these, how many said something else.

    """

    seen: int = 0
    joined: int = 0
    from_cache: int = 0
    forgotten: int = 0
    asks: int = 0
    asked: int = 0
    answered: int = 0
    expired: int = 0
    late: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    spared: int = 0
    repeats: int = 0
    contradictions: int = 0


class AskPlan(NamedTuple):
    """What to put into one question.

    Attributes:
        seqs: the transitions waiting for each observation.
        rows: the observations, uint8 (H, W, C), read-only, in the order to ask them.
        digests: their names.

    """

    seqs: tuple[tuple[int, ...], ...]
    rows: tuple[U8, ...]
    digests: tuple[bytes, ...]


class _Waiting(msgspec.Struct):
    obs: U8
    seqs: list[int]
    value: float
    order: int
    planes: frozenset[int]
    asked: bool = False


class _Sent(msgspec.Struct):
    digests: tuple[bytes, ...]
    at_s: float
    charged_bytes: float
    late: bool = False


class Student:
    """What is waiting for a teacher, what has been asked, and what is known; bounded in every direction.

    Attributes:
        counters: totals.
        faults: named fault -> how often: `answer-unknown` (nobody asked that), `answer-twice`, `answer-count`,
            `answer-shape`, `answer-not-finite`. Such an answer is ignored; its question goes on waiting until its time
            up, which also keeps a sick teacher from being asked in a tight loop.
        fresh: digest -> answer, of what was answered since somebody last emptied it, to keep it elsewhere; bounded.

    """

    def __init__(
        self,
        *,
        capacity: int,
        batch: int,
        timeout_s: float,
        max_pending: int,
        wait_s: float = 1.0,
        max_bytes: int = 16 << 20,
    ) -> None:
        """Start with nothing known.

        Args:
            capacity: most transitions waiting, and most answers remembered.
            batch: most observations in one question.
            timeout_s: a question unanswered for so long is given up, and its observations may be asked again.
            max_pending: most questions outstanding.
            wait_s: a question that is not full waits so long after the former one for more observations.
            max_bytes: most memory for waiting observations.

        Raises:
            UsageError: a number is not positive.

        """
        if not all(each > 0 for each in (capacity, batch, timeout_s, max_pending, max_bytes)) or not wait_s >= 0:
            raise UsageError("capacity, batch, timeout_s, max_pending and max_bytes must be positive, wait_s 0 or more")
        self.counters = Counters()
        self.faults: dict[str, int] = {}
        self.fresh: dict[bytes, F32] = {}
        self._capacity, self._batch, self._timeout_s = capacity, batch, timeout_s
        self._max_pending, self._wait_s, self._max_bytes = max_pending, wait_s, max_bytes
        self._waiting: dict[bytes, _Waiting] = {}
        self._n_seqs = self._n_asked = self._order = self._held_bytes = 0
        self._known: OrderedDict[bytes, F32] = OrderedDict()
        self._asks: OrderedDict[int, _Sent] = OrderedDict()
        self._done: OrderedDict[int, None] = OrderedDict()
        self._pending = 0
        self._tokens_bytes = 0.0
        self._refilled_s: float | None = None
        self._sent_s: float | None = None
        self._out_mean_bytes: float | None = None
        self._in_mean_bytes: float | None = None
        self._plane_mean_bytes: float | None = None

    def saw(self, seq: int, obs: U8, value: float, *, ask: bool = True) -> list[tuple[int, F32]]:
        """Register a transition that a teacher could say something about.

        Args:
            seq: the transition's number; comes back with the answer.
            obs: (H, W, C) uint8; copied.
            value: what an answer would be worth, higher first; not a number counts as the highest.
            ask: False where an answer is not worth its bytes: only what is known already is joined.

        Returns:
            [(seq, (A,) float32)] if the same observation has been answered before, else nothing.

        Raises:
            UsageError: not a uint8 array of rank 3.

        Source:
            ours: uncertainty sampling (Lewis & Gale 1994), asking for values instead of labels; the caller measures.

        """
        if obs.dtype != np.uint8 or obs.ndim != 3:
            raise UsageError(f"an observation must be uint8 (H, W, C), not {obs.dtype} {obs.shape}")
        self.counters.seen += 1
        name = digest(obs.tobytes())
        known = self._known.get(name)
        if known is not None:
            self._known.move_to_end(name)
            self.counters.from_cache += 1
            self.counters.joined += 1
            return [(seq, known)]
        value = math.inf if math.isnan(value) else value
        waiting = self._waiting.get(name)
        if waiting is None and not ask:
            self.counters.spared += 1
            return []
        self._order += 1
        if waiting is None:
            row = obs.copy()
            row.flags.writeable = False
            self._waiting[name] = _Waiting(row, [seq], value, self._order, _planes(row))
            self._held_bytes += row.nbytes
        else:
            waiting.seqs.append(seq)
            waiting.value, waiting.order = max(value, waiting.value), self._order
        self._n_seqs += 1
        if self._n_seqs > self._capacity or self._held_bytes > self._max_bytes:
            self._shed()
        return []

    def plan(self, now_s: float, bytes_per_s: float) -> AskPlan | None:
        """Choose what to ask now, if anything.

        A token bucket that holds the cost of one full question is filled at `bytes_per_s`. A question is charged with
        its own bytes and its answer's expected ones when it is sent, the difference is settled when the answer comes,
        and an answer that never comes is not paid back: a lossy link is asked less. Hence the questions of any period
        cost, with their answers, at most `bytes_per_s` times its length plus one full question, as far as answers cost
        what is expected of them.

        Args:
            now_s: monotonic time.
            bytes_per_s: allowed both ways; 0 forbids asking at once.

        Returns:
            A plan, which counts only once it is given to `sent`; None when there is nothing to ask, not enough to fill
            a question yet, no budget, or `max_pending` questions are outstanding.

        Raises:
            Nothing.

        Source:
            token bucket: RFC 2697 section 3 without the excess burst; waiting to fill a message: Nagle, RFC 896.

        """
        elapsed_s = 0.0 if self._refilled_s is None else max(0.0, now_s - self._refilled_s)
        self._refilled_s = now_s if self._refilled_s is None else max(now_s, self._refilled_s)
        each_bytes = self._each_bytes()
        full_bytes = self._batch * each_bytes
        self._tokens_bytes = min(full_bytes, self._tokens_bytes + max(0.0, bytes_per_s) * elapsed_s)
        self._sent_s = now_s if self._sent_s is None else self._sent_s
        n = min(self._batch, len(self._waiting) - self._n_asked)
        if n == 0 or not bytes_per_s > 0 or self._pending >= self._max_pending or self._tokens_bytes < n * each_bytes:
            return None
        if n < self._batch and now_s - self._sent_s < self._wait_s:
            return None
        free = ((w.value, w.order, name) for name, w in self._waiting.items() if not w.asked)
        names = self._cheapest([name for _, _, name in heapq.nlargest(CHOOSE_FROM * n, free)], n)
        chosen = [self._waiting[name] for name in names]
        return AskPlan(tuple(tuple(w.seqs) for w in chosen), tuple(w.obs for w in chosen), names)

    def _cheapest(self, names: list[bytes], n: int) -> tuple[bytes, ...]:
        """The `n` of most value a byte: one at a time, a plane that is in the question already costs nothing more."""
        if len(names) <= n:
            return tuple(names)
        fixed_bytes = self._each_answer_bytes()
        plane_bytes = 1.0 if self._plane_mean_bytes is None else self._plane_mean_bytes
        left = {name: self._waiting[name] for name in names}
        # No value below 0: what is worth nothing must not win by being dear.
        worth = {name: min(max(each.value, TINY), 1 / TINY) for name, each in left.items()}
        inside: set[int] = set()
        chosen: list[bytes] = []
        while len(chosen) < n:
            best = max(
                left,
                key=lambda name: worth[name] / (fixed_bytes + plane_bytes * len(left[name].planes - inside)),
            )
            inside.update(left.pop(best).planes)
            chosen.append(best)
        return tuple(chosen)

    def sent(self, ask_id: int, plan: AskPlan, payload_bytes: int, now_s: float) -> None:
        """A plan went on its way.

        Args:
            ask_id: comes back with the answer; never used before.
            plan: as `plan` gave it.
            payload_bytes: size of the question.
            now_s: monotonic time.

        Raises:
            UsageError: the id was used before, or `max_pending` questions are outstanding.

        Source:
            ours: planning and sending are apart, so that a question which could not be sent costs nothing.

        """
        if ask_id in self._asks or ask_id in self._done:
            raise UsageError(f"ask id {ask_id} was used before; draw a new one")
        if self._pending >= self._max_pending:
            raise UsageError(f"{self._pending} questions are outstanding already; send only what `plan` gives")
        n = len(plan.digests)
        planes = {plane for row in plan.rows for plane in _planes(row)}
        self._plane_mean_bytes = _towards(self._plane_mean_bytes, payload_bytes / max(1, len(planes)))
        for name in plan.digests:
            waiting = self._waiting.get(name)
            if waiting is not None and not waiting.asked:
                waiting.asked = True
                self._n_asked += 1
        each_bytes = payload_bytes / max(1, n)
        self._out_mean_bytes = _towards(self._out_mean_bytes, each_bytes)
        charged_bytes = n * self._each_answer_bytes()
        self._tokens_bytes -= payload_bytes + charged_bytes
        self._asks[ask_id] = _Sent(plan.digests, now_s, charged_bytes)
        self._pending += 1
        self._sent_s = now_s
        self.counters.asks += 1
        self.counters.asked += n
        self.counters.bytes_out += payload_bytes
        while len(self._asks) > self._max_pending + REMEMBERED_ASKS:
            self._forget_ask()

    def answer(self, ask_id: int, q: F32, answer_bytes: int, now_s: float) -> list[tuple[int, F32]]:
        """Take an answer in, whether in time or late.

        Args:
            ask_id: of the question.
            q: (count, A) float32, rows in the order asked.
            answer_bytes: size of the answer's payload.
            now_s: monotonic time.

        Returns:
            (seq, (A,) float32, read-only) for every transition that was waiting for one of these observations; nothing
            when the answer is at fault (see `faults`).

        Raises:
            Nothing.

        Source:
            ours: joined by content, see the module's docstring.

        """
        self.counters.bytes_in += answer_bytes
        sent = self._asks.get(ask_id)
        fault = self._fault_of(ask_id, sent, q)
        if sent is None or fault is not None:
            if sent is not None:  # asking less would not stop what nobody asked for, only silence us
                self._tokens_bytes -= answer_bytes
            self.faults[fault or ""] = self.faults.get(fault or "", 0) + 1
            return []
        n = len(sent.digests)
        self._tokens_bytes += sent.charged_bytes - answer_bytes
        self._in_mean_bytes = _towards(self._in_mean_bytes, answer_bytes / max(1, n))
        del self._asks[ask_id]
        self._pending -= not sent.late
        self._done[ask_id] = None
        while len(self._done) > REMEMBERED_ASKS:
            self._done.popitem(last=False)
        self.counters.late += sent.late or now_s - sent.at_s >= self._timeout_s
        self.counters.answered += n
        joined: list[tuple[int, F32]] = []
        for name, row in zip(sent.digests, q, strict=True):
            joined += self._learn(name, row)
            self.fresh[name] = self._known[name]
        while len(self.fresh) > self._capacity:
            del self.fresh[next(iter(self.fresh))]
        return joined

    def expected(self, ask_id: int) -> int | None:
        """How many observations an answer would be about.

        Args:
            ask_id: of the question.

        Returns:
            Their number, or None where no answer is awaited: nobody asked, or it was answered.

        Raises:
            Nothing.

        Source:
            ours: an answer that nobody asked for is not worth decoding.

        """
        sent = self._asks.get(ask_id)
        return None if sent is None else len(sent.digests)

    def remember(self, name: bytes, q: F32) -> list[tuple[int, F32]]:
        """Tell the student what is known from elsewhere, such as a file, so that it is not asked again.

        Args:
            name: digest of the observation.
            q: (A,) float32, a teacher's values for it.

        Returns:
            (seq, (A,) float32) for every transition that was waiting for it.

        Raises:
            Nothing.

        Source:
            ours: answers cost bytes, so a restart should not ask for them again.

        """
        return self._learn(name, q)

    def forget_answers(self) -> None:
        """Forget everything a teacher said, and what it was asked: neither is worth anything any more.

        Raises:
            Nothing.

        Source:
            ours: an answer under way is then one that nobody asked for.

        """
        self._known.clear()
        self.fresh.clear()
        for sent in self._asks.values():
            self._release(sent.digests)
        for ask_id in self._asks:
            self._done[ask_id] = None
        self._asks.clear()
        self._pending = 0
        self.counters.repeats = self.counters.contradictions = 0

    def give_up(self, ask_id: int) -> None:
        """A teacher refused a question: nothing more is awaited, but a true answer would still be taken.

        Args:
            ask_id: of the question; one that is not waiting changes nothing.

        Raises:
            Nothing.

        Source:
            ours: as `expire`, without waiting for what will not come.

        """
        sent = self._asks.get(ask_id)
        if sent is not None and not sent.late:
            sent.late = True
            self._release(sent.digests)
            self._pending -= 1

    def forget_transitions(self) -> None:
        """Forget which transitions are waiting, because their numbers now mean others; answers are kept.

        Raises:
            Nothing.

        Source:
            ours: a number is only as good as the ring that gave it.

        """
        self._drop(tuple(self._waiting))

    def forget(self, names: Iterable[bytes]) -> None:
        """Wait no longer for a teacher's word on these observations; met again, they are new.

        Args:
            names: digests of them; one that is not waiting changes nothing.

        Raises:
            Nothing.

        Source:
            ours: what no message can carry would be chosen again and again, before all others.

        """
        waiting = [name for name in names if name in self._waiting]
        self.counters.forgotten += sum(len(self._waiting[name].seqs) for name in waiting)
        self._drop(waiting)

    def expire(self, now_s: float) -> int:
        """Give up questions that have waited too long; their observations may be asked again.

        Args:
            now_s: monotonic time.

        Returns:
            How many were given up now.

        Raises:
            Nothing.

        Source:
            ours: a late answer is still used, so giving up is a decision about asking again only.

        """
        overdue = [s for s in self._asks.values() if not s.late and now_s - s.at_s >= self._timeout_s]
        for sent in overdue:
            sent.late = True
            self._release(sent.digests)
        self._pending -= len(overdue)
        self.counters.expired += len(overdue)
        return len(overdue)

    def _each_answer_bytes(self) -> float:
        return FIRST_ANSWER_GUESS_BYTES if self._in_mean_bytes is None else self._in_mean_bytes

    def _each_bytes(self) -> float:
        """Expected cost of one observation, both ways; before the first question one bit a value is the guess."""
        if self._out_mean_bytes is not None:
            return self._each_answer_bytes() + self._out_mean_bytes
        one = next(iter(self._waiting.values()), None)
        return self._each_answer_bytes() + (1.0 if one is None else one.obs.nbytes / 8)

    def _fault_of(self, ask_id: int, sent: _Sent | None, q: F32) -> str | None:
        if sent is None:
            return "answer-twice" if ask_id in self._done else "answer-unknown"
        if q.ndim != 2 or q.shape[1] < 1 or q.dtype != np.float32:
            return "answer-shape"
        if len(q) != len(sent.digests):
            return "answer-count"
        return None if bool((np.abs(q) < HUGE).all()) else "answer-not-finite"

    def _learn(self, name: bytes, row: F32) -> list[tuple[int, F32]]:
        row = np.array(row, np.float32)
        row.flags.writeable = False
        former = self._known.get(name)
        if former is not None:
            self.counters.repeats += 1
            size = float(np.abs(former).max(initial=0.0))
            self.counters.contradictions += former.shape != row.shape or bool(
                (np.abs(former - row) > SAME_FRAC * size).any()
            )
        self._known[name] = row
        self._known.move_to_end(name)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        waiting = self._waiting.get(name)
        if waiting is None:
            return []
        self._drop((name,))
        self.counters.joined += len(waiting.seqs)
        return [(seq, row) for seq in waiting.seqs]

    def _release(self, names: Iterable[bytes]) -> None:
        for name in names:
            waiting = self._waiting.get(name)
            if waiting is not None and waiting.asked:
                waiting.asked = False
                self._n_asked -= 1

    def _drop(self, names: Iterable[bytes]) -> None:
        for name in names:
            waiting = self._waiting.pop(name)
            self._n_seqs -= len(waiting.seqs)
            self._n_asked -= waiting.asked
            self._held_bytes -= waiting.obs.nbytes

    def _shed(self) -> None:
        """Make room: what is not under way goes first, then the least valuable, then the oldest; an eighth at once."""
        by_worth = sorted(self._waiting, key=lambda name: (w := self._waiting[name], w.asked, w.value, w.order)[1:])
        most_seqs, most_bytes = max(1, self._capacity * 7 // 8), self._max_bytes * 7 // 8
        for name in by_worth:
            if self._n_seqs <= most_seqs and self._held_bytes <= most_bytes:
                return
            self.counters.forgotten += len(self._waiting[name].seqs)
            self._drop((name,))

    def _forget_ask(self) -> None:
        """The oldest question given up is forgotten; those in time are at most `max_pending` and stay."""
        oldest = next(ask_id for ask_id, sent in self._asks.items() if sent.late)
        del self._asks[oldest]


def _planes(row: U8) -> frozenset[int]:
    """Names of the channels, which codecs send once a message; a mistaken one costs a byte or two."""
    return frozenset(zlib.crc32(plane) for plane in np.ascontiguousarray(row.transpose(2, 0, 1)))


def _towards(mean: float | None, sample: float) -> float:
    return sample if mean is None else mean + MEAN_WEIGHT * (sample - mean)
