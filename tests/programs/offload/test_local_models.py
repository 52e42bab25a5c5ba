from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from edgert import modelfile
from edgert.ports.runtime.model import Model
from edgert.programs.offload.local_models import LocalModels, Work

MANIFEST = SimpleNamespace(input=modelfile.Tensor(shape=(2,), dtype="float32"), name="m")


def model(run):
    return Model(MANIFEST, "numpy", run)  # what it needs of a manifest


def rows(value=0.0):
    return np.full((1, 2), value, np.float32)


@pytest.fixture
def models():
    made = []

    def make(*runs):
        made.append(LocalModels({i: model(run) for i, run in enumerate(runs)}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_work_is_done_and_its_pace_learned(models, until):
    one = models(lambda x: x * 2)
    before = one.paces[0]
    one.put(Work(7, 0, rows(3.0), lambda: True), 1.0)
    (done,) = until_done(one, 1, until)
    assert done.key == 7 and done.answer.tolist() == [[6, 6]] and done.run_s >= 0
    assert one.paces[0] != before and one.waits_s(0.0) == 0


def until_done(models, n, until):
    found = []

    def ready():
        found.extend(models.done())
        return len(found) >= n

    until(ready, "work")
    return found


def test_the_earliest_due_is_done_first_and_what_nobody_wants_not_at_all(models, until):
    hold, began = threading.Event(), []

    def run(x):
        if x[0, 0]:
            began.append(x[0, 0])
            hold.wait(10)
        return x

    one = models(run)
    one.put(Work(1, 0, rows(1.0), lambda: True), 9.0)
    until(lambda: began, "the first")
    one.put(Work(2, 0, rows(2.0), lambda: True), 8.0)
    one.put(Work(3, 0, rows(3.0), lambda: True), 2.0)
    one.put(Work(4, 0, rows(4.0), lambda: False), 1.0)
    assert one.waits_s(0.0) > 0
    hold.set()
    done = until_done(one, 4, until)
    assert [each.key for each in done] == [1, 4, 3, 2] and began == [1, 3, 2]
    assert done[1].run_s is None


@pytest.mark.parametrize(("wrong", "failed"), [(lambda x: 1 / 0, True), (lambda x: x * np.nan, False)])
def test_a_model_that_fails_is_told_and_the_thread_lives_on(models, until, wrong, failed):
    one = models(lambda x: wrong(x) if x[0, 0] == 1 else x)
    one.put(Work(1, 0, rows(1.0), lambda: True), 1.0)
    one.put(Work(2, 0, rows(2.0), lambda: True), 2.0)
    first, second = until_done(one, 2, until)
    assert first.answer is None and first.run_s is not None and second.answer is not None
    # A question that makes a model say NaN does not cost the model.
    assert first.failed == failed and (0 in one.paces) == (not failed)
