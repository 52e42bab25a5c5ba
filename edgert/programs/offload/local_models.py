"""The device's own models, run one request at a time on a thread of their own: who waits for them can do other things.

What is most urgent runs first, and what was answered meanwhile by somebody else does not run at all.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from queue import PriorityQueue
from typing import NamedTuple

import numpy as np

from edgert.nets import F32
from edgert.offload.admission import Pace, paced
from edgert.ports.link import drain, wake_pair
from edgert.ports.runtime.model import Model, Rows, row_s

log = logging.getLogger("edgert.offload")


class Work(NamedTuple):
    """One request for one of the models.

    Attributes:
        key: the request's.
        choice: whose model.
        rows: asked about.
        wanted: whether it still is; asked when its turn comes.
    """

    key: int
    choice: int
    rows: Rows
    wanted: Callable[[], bool]


class Done(NamedTuple):
    """What came of it.

    Attributes:
        key, choice: of the work.
        answer: None where there is none.
        run_s: it took; None where it was not wanted any more.
        failed: the model raised an error.
    """

    key: int
    choice: int
    answer: F32 | None
    run_s: float | None
    failed: bool = False


class LocalModels:
    """The thread and what waits for it.

    Attributes:
        paces: choice -> what a row of it takes here; those that are missing failed when they were tried.

    Thread: the one that made it, but for its own.
    """

    def __init__(self, models: Mapping[int, Model]) -> None:
        """Try each model once more, warm, and start.

        Args:
            models: choice -> its model.

        Blocks: for a few runs of each.
        """
        self.models = dict(models)
        self.paces = {choice: paced(Pace(), row_s(model), 1) for choice, model in self.models.items()}
        self._todo: PriorityQueue[tuple[float, int, Work | None]] = PriorityQueue()
        self._done: deque[Done] = deque()
        self._owed: dict[int, float] = {}  # order -> what it is likely to take
        self._began_s: float | None = None
        self._order = itertools.count()
        self._woken, self._waker = wake_pair()
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Readable when something is done."""
        return self._woken.fileno()

    def put(self, work: Work, due_s: float) -> None:
        """Let it wait for its turn: the earliest due first."""
        order = next(self._order)
        self._owed[order] = len(work.rows) * self.paces[work.choice].likely_s
        self._todo.put((due_s, order, work))

    def done(self) -> list[Done]:
        """What was finished since the last call."""
        drain(self._woken)
        found = []
        while self._done:
            found.append(self._done.popleft())
        for each in found:
            pace = self.paces.get(each.choice)
            if each.failed:
                # A model that failed once is not asked again before the next start.
                self.paces.pop(each.choice, None)
            elif pace is not None and each.run_s is not None and each.answer is not None:
                self.paces[each.choice] = paced(pace, each.run_s, max(1, len(each.answer)))
        return found

    def waits_s(self, now_s: float) -> float:
        """Until whoever comes last may begin."""
        owed_s, began_s = sum(list(self._owed.values())), self._began_s
        return max(0.0, owed_s - (0.0 if began_s is None else now_s - began_s))

    def close(self) -> None:
        """End the thread, at the latest after the run that it is in."""
        self._todo.put((float("-inf"), -1, None))
        self._thread.join(5.0)
        self._woken.close()
        self._waker.close()

    def _work(self) -> None:
        while True:
            _, order, work = self._todo.get()
            if work is None:
                return
            answer, run_s, failed = None, None, False
            if work.wanted():
                self._began_s = began_s = time.monotonic()
                try:
                    answer = self.models[work.choice].run(work.rows)
                    # What is not finite may be the question's fault, and a question must not cost a model.
                    answer = answer if np.isfinite(answer).all() else None
                except Exception as error:  # without this thread nothing is ever answered here again
                    log.error("model %s: %s", self.models[work.choice].manifest.name, error)
                    failed = True
                run_s, self._began_s = time.monotonic() - began_s, None
            self._owed.pop(order, None)
            self._done.append(Done(work.key, work.choice, answer, run_s, failed))
            with contextlib.suppress(OSError):
                self._waker.send(b"\0")
