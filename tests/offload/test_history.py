from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgert.offload.history import EACH, MOST, Answered, added


def answered(i, response_s=0.1, choice="a@edge", **changes):
    said = {"late": False, "fell_back": False, "accuracy_frac": 0.9, "below": False}
    return Answered(at_s=float(i), choice=choice, response_s=response_s, **(said | changes))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=3 * EACH))
def test_windows_add_up_to_what_was_answered(times):
    windows = ()
    for i, response_s in enumerate(times):
        windows = added(windows, answered(i, response_s, late=i % 2 == 0, choice=f"{i % 3}@edge"))
    assert sum(each.requests for each in windows) == len(times)
    assert all(each.requests == EACH for each in windows[:-1])
    assert sum(each.late for each in windows) == (len(times) + 1) // 2
    assert all(sum(each.choices.values()) == each.requests for each in windows)
    total = sum(each.response_s * each.requests for each in windows)
    assert abs(total - sum(times)) < 1e-6
    assert max(each.worst_s for each in windows) == max(times)


def test_the_oldest_windows_give_way():
    windows = ()
    for i in range(EACH * (MOST + 3)):
        windows = added(windows, answered(i))
    assert len(windows) == MOST and windows[0].at_s == float(EACH * 4 - 1)


def test_the_mean_accuracy_and_answers_below_the_floor_are_kept():
    windows = added(added((), answered(0, accuracy_frac=0.8, below=True)), answered(1, accuracy_frac=1.0))
    assert windows[0].accuracy_frac == 0.9 and windows[0].below == 1
