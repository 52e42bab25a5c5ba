"""Whose question is next, and who has asked for enough: no student and no task can take a teacher from the others."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, TypeVar

T = TypeVar("T")

QUANTUM_ROWS: Final = 64
BURST_S: Final = 10.0
DEBT_MAX_S: Final = 3600.0


class _Waiting(NamedTuple, Generic[T]):
    item: T
    rows: int
    size_bytes: int


class _Line(Generic[T]):
    """What one student waits for, and the rows that its turns have earned and not used."""

    def __init__(self) -> None:
        self.waiting: deque[_Waiting[T]] = deque()
        self.earned_rows = 0


class Turns(Generic[T]):
    """Questions that wait. Tasks take turns by the batch, and within a task students take turns by the row.

    Attributes:
        size_bytes: of all that waits.
    """

    def __init__(self, max_each: int) -> None:
        """Start empty.

        Args:
            max_each: most questions of one student that may wait for one task.
        """
        self._max_each = max_each
        self._tasks: OrderedDict[str, OrderedDict[Hashable, _Line[T]]] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._count = self.size_bytes = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, task: str) -> int:
        """How much waits for one task.

        Args:
            task: any.

        Returns:
            Questions.

        Raises:
            Nothing.
        Source:
            ours: what waits longest is the first thing to know about a service that is too slow.
        """
        return self._waiting[task]

    def put(self, task: str, student: Hashable, item: T, rows: int, size_bytes: int) -> bool:
        """Let a question wait.

        Args:
            task: whose model it needs.
            student: whose it is.
            item: the question.
            rows: what it costs.
            size_bytes: what it weighs.

        Returns:
            False, and nothing has changed, where too many of this student wait already.

        Raises:
            Nothing.
        Source:
            ours: a place in the queue is the one thing that a token bucket does not ration.
        """
        lines = self._tasks.setdefault(task, OrderedDict())
        line = lines.setdefault(student, _Line())
        if len(line.waiting) >= self._max_each:
            return False
        line.waiting.append(_Waiting(item, max(1, rows), size_bytes))
        self._count += 1
        self._waiting[task] += 1
        self.size_bytes += size_bytes
        return True

    def take(self, max_rows: int) -> tuple[str, list[T]]:
        """Take the next batch, of the task whose turn it is.

        Args:
            max_rows: most rows taken, but one question at least.

        Returns:
            The task and its questions, each student's in the order they came; an empty batch when nothing waits.

        Raises:
            Nothing.
        Source:
            deficit round robin: M. Shreedhar, G. Varghese, "Efficient Fair Queueing Using Deficit Round-Robin",
            SIGCOMM 1995, with rows for bytes: who asks for many rows at once waits as many turns as they cost.
        """
        if not self._tasks:
            return "", []
        task, lines = next(iter(self._tasks.items()))
        taken: list[T] = []
        rows = 0
        while lines:
            student, line = next(iter(lines.items()))
            line.earned_rows += QUANTUM_ROWS
            while line.waiting and line.waiting[0].rows <= line.earned_rows:
                if taken and rows + line.waiting[0].rows > max_rows:
                    # Its turn was not over: it goes on where it was, with what this visit had given it taken back.
                    line.earned_rows -= QUANTUM_ROWS
                    self._tasks.move_to_end(task)
                    return task, taken
                each = line.waiting.popleft()
                line.earned_rows -= each.rows
                rows += each.rows
                taken.append(each.item)
                self._count -= 1
                self._waiting[task] -= 1
                self.size_bytes -= each.size_bytes
            if line.waiting:
                lines.move_to_end(student)
            else:
                del lines[student]
        del self._tasks[task], self._waiting[task]
        return task, taken


class _Bucket:
    __slots__ = ("at_s", "left_bytes")

    def __init__(self, left_bytes: float, at_s: float) -> None:
        self.left_bytes, self.at_s = left_bytes, at_s


class Allowances:
    """A token bucket a student. Memory is bounded: the bucket that was not touched for longest is forgotten."""

    def __init__(self, bytes_per_s: float, max_students: int) -> None:
        """Every bucket starts full.

        Args:
            bytes_per_s: what each student may send and receive; a bucket holds this for BURST_S.
            max_students: most buckets.
        """
        self._bytes_per_s, self._max_students = bytes_per_s, max_students
        self._full_bytes = bytes_per_s * BURST_S
        self._buckets: OrderedDict[Hashable, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, student: Hashable, now_s: float) -> float:
        """May it ask?

        Args:
            student: who.
            now_s: on any clock that does not go back.

        Returns:
            0 when it may; otherwise the seconds until it may, at most DEBT_MAX_S.

        Raises:
            Nothing.
        Source:
            token bucket: RFC 2697 section 3; a question is let in on credit, because its answer's size is not known
            before it is given, and the debt is waited for.
        """
        left_bytes = self._filled(student, now_s).left_bytes
        # A full byte: rounding must not turn what a peer was told to wait into not quite enough.
        return 0.0 if left_bytes >= min(1.0, self._full_bytes) else (1.0 - left_bytes) / self._bytes_per_s

    def charge(self, student: Hashable, size_bytes: int, now_s: float) -> None:
        """Take from a bucket, below zero if need be.

        Args:
            student: whose.
            size_bytes: sent or received.
            now_s: as for `wait_s`.

        Raises:
            Nothing.
        Source:
            ours, see `wait_s`; debts are bounded so that nobody is sent away for ever.
        """
        bucket = self._filled(student, now_s)
        bucket.left_bytes = max(bucket.left_bytes - size_bytes, 1.0 - DEBT_MAX_S * self._bytes_per_s)

    def _filled(self, student: Hashable, now_s: float) -> _Bucket:
        bucket = self._buckets.get(student)
        if bucket is None:
            bucket = self._buckets[student] = _Bucket(self._full_bytes, now_s)
            if len(self._buckets) > self._max_students:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(student)
        earned_bytes = max(0.0, now_s - bucket.at_s) * self._bytes_per_s
        bucket.left_bytes, bucket.at_s = min(self._full_bytes, bucket.left_bytes + earned_bytes), now_s
        return bucket
