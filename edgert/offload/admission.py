"""Which questions a node takes: only those that it can answer in time. Refusing at once beats answering late.

Questions are run in the order of their deadlines, some of one model at a time. A question is admitted when it, and all
that were promised before it, will still be answered in time by what a row of each model has taken lately.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

_GAIN, _SPREAD_GAIN, _SPREADS = 1 / 8, 1 / 4, 2.0
_EASED = 0.95
SLACK_S = 0.002
"""For what lies between a run and its answer: encoding, and handing it to the broker."""


class Pace(msgspec.Struct, frozen=True):
    """What a row takes.

    Attributes:
        row_s: mean; None before the first run.
        spread_s: mean deviation from it.
    """

    row_s: float | None = None
    spread_s: float = 0.0

    @property
    def likely_s(self) -> float:
        """What to count on; 0 before the first run."""
        return 0.0 if self.row_s is None else self.row_s + _SPREADS * self.spread_s


def paced(pace: Pace, run_s: float, rows: int) -> Pace:
    """Learn from a run.

    Args:
        pace: before.
        run_s: of the whole batch.
        rows: in it.

    Returns:
        The pace after.

    Raises:
        Nothing.
    Source:
        RFC 6298 section 2: smoothed mean and mean deviation, with two deviations for its four, as a queue adds many.
    """
    row_s = run_s / max(1, rows)
    if pace.row_s is None:
        return Pace(row_s, row_s / 4)
    spread_s = pace.spread_s + _SPREAD_GAIN * (abs(row_s - pace.row_s) - pace.spread_s)
    return Pace(pace.row_s + _GAIN * (row_s - pace.row_s), spread_s)


class Verdict(NamedTuple):
    """Whether a question was admitted.

    Attributes:
        refusal: a name of `inference.REFUSALS`, or empty.
        retry_s: when there may be room.
    """

    refusal: str = ""
    retry_s: float = 0.0


class _Waiting(NamedTuple, Generic[T]):
    due_s: float
    order: int
    model: str
    owner: Hashable
    rows: int
    size_bytes: int
    item: T


class Batch(NamedTuple, Generic[T]):
    """What to run next.

    Attributes:
        model: of all of them.
        items: questions, the most urgent first; empty when nothing waits.
        late: questions that cannot be answered in time any more.
    """

    model: str
    items: list[T]
    late: list[T]


class Queue(Generic[T]):
    """Questions that wait for a node's only worker.

    Attributes:
        paces: model -> what a row of it takes.
        size_bytes: of all that waits.
    """

    def __init__(self, *, max_bytes: int, max_each: int) -> None:
        """Start empty.

        Args:
            max_bytes: most that may wait.
            max_each: most questions of one owner that may wait.
        """
        self.paces: dict[str, Pace] = {}
        self.size_bytes = 0
        self._max_bytes, self._max_each = max_bytes, max_each
        self._waiting: list[_Waiting[T]] = []
        self._owners: Counter[Hashable] = Counter()
        self._order = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting_s(self) -> float:
        """What all that waits will take.

        Returns:
            Seconds.

        Raises:
            Nothing.
        Source:
            ours.
        """
        return sum(self._work_s(each.model, each.rows) for each in self._waiting)

    def put(
        self,
        model: str,
        owner: Hashable,
        item: T,
        *,
        rows: int,
        size_bytes: int,
        left_s: float,
        busy_s: float,
        now_s: float,
    ) -> Verdict:
        """Admit a question, or say why not.

        Args:
            model: that it needs.
            owner: who asks.
            item: the question.
            rows: of it.
            size_bytes: of it.
            left_s: until its answer is of no use.
            busy_s: until the worker has done what it does now.
            now_s: monotonic time.

        Returns:
            An empty verdict; or `late`, where even an idle node would be too slow; or `busy`.

        Raises:
            Nothing.
        Source:
            earliest deadline first, and its test for one processor: C. L. Liu, J. W. Layland, "Scheduling Algorithms
            for Multiprogramming in a Hard-Real-Time Environment", J. ACM 20 (1973), section 7.
        """
        work_s = self._work_s(model, rows)
        if work_s + SLACK_S > left_s:
            # What is never run can never be found to have become faster.
            pace = self.paces.get(model, Pace())
            self.paces[model] = Pace((pace.row_s or 0.0) * _EASED, pace.spread_s * _EASED)
            return Verdict("late", 0.0)
        if self._owners[owner] >= self._max_each or self.size_bytes + size_bytes > self._max_bytes:
            return Verdict("busy", max(work_s, self.waiting_s()))
        added = _Waiting(now_s + left_s, self._order, model, owner, rows, size_bytes, item)
        done_s, own = now_s + busy_s, False
        for each in (*self._waiting, None):
            if not own and (each is None or each.due_s > added.due_s):
                own, done_s = True, done_s + work_s
                if done_s + SLACK_S > added.due_s:
                    return Verdict("busy", done_s + SLACK_S - added.due_s)
            if each is not None:
                done_s += self._work_s(each.model, each.rows)
                if own and done_s + SLACK_S > each.due_s:
                    return Verdict("busy", max(work_s, self.waiting_s()))
        insort(self._waiting, added, key=lambda each: (each.due_s, each.order))
        self._order += 1
        self._owners[owner] += 1
        self.size_bytes += size_bytes
        return Verdict()

    def take(self, now_s: float, max_rows: int) -> Batch[T]:
        """Take the most urgent question, and others of its model with it.

        Args:
            now_s: monotonic time.
            max_rows: most rows taken, but one question at least; fewer where anybody would come too late for it.

        Returns:
            The batch.

        Raises:
            Nothing.
        Source:
            ours: a batch is answered at its end, so it grows only as far as its first question, and those that it
            overtakes, can bear.
        """
        late: list[T] = []
        while self._waiting and now_s + self._work_s(self._waiting[0].model, self._waiting[0].rows) > (
            self._waiting[0].due_s
        ):
            late.append(self._pop(0).item)
        if not self._waiting:
            return Batch("", [], late)
        first = self._pop(0)
        items, rows, i = [first.item], first.rows, 0
        while i < len(self._waiting):
            each = self._waiting[i]
            ends_s = now_s + self._work_s(first.model, rows + each.rows)
            if (
                each.model == first.model
                and rows + each.rows <= max_rows
                and ends_s + SLACK_S <= first.due_s
                and self._kept(ends_s, i)
            ):
                items.append(self._pop(i).item)
                rows += each.rows
            else:
                i += 1
        return Batch(first.model, items, late)

    def _kept(self, free_s: float, without: int) -> bool:
        """Are all promises kept when the worker is free at `free_s`, and one that waits is done then?"""
        for i, each in enumerate(self._waiting):
            if i != without:
                free_s += self._work_s(each.model, each.rows)
                if free_s > each.due_s:
                    return False
        return True

    def ran(self, model: str, run_s: float, rows: int) -> None:
        """Learn what a row takes.

        Args:
            model: that ran.
            run_s: the whole batch.
            rows: in it.

        Raises:
            Nothing.
        Source:
            see `paced`.
        """
        if math.isfinite(run_s) and run_s >= 0:
            self.paces[model] = paced(self.paces.get(model, Pace()), run_s, rows)

    def drop(self) -> list[T]:
        """Empty it.

        Returns:
            All that waited, the most urgent first.

        Raises:
            Nothing.
        Source:
            ours.
        """
        return [self._pop(0).item for _ in range(len(self._waiting))]

    def _work_s(self, model: str, rows: int) -> float:
        return rows * self.paces.get(model, Pace()).likely_s

    def _pop(self, i: int) -> _Waiting[T]:
        taken = self._waiting.pop(i)
        self._owners[taken.owner] -= 1
        if not self._owners[taken.owner]:
            del self._owners[taken.owner]
        self.size_bytes -= taken.size_bytes
        return taken
