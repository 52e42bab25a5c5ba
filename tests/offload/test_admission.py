from __future__ import annotations

import math

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edgert.inference import REFUSALS
from edgert.offload.admission import SLACK_S, Pace, Queue, paced


def queue(**paces):
    made = Queue(max_bytes=1000, max_each=3)
    for model, row_s in paces.items():
        made.paces[model] = Pace(row_s)
    return made


def put(made, model="m", item=None, *, owner="d", rows=1, left_s=1.0, busy_s=0.0, now_s=0.0, size_bytes=1):
    given_ = {"rows": rows, "size_bytes": size_bytes, "left_s": left_s, "busy_s": busy_s, "now_s": now_s}
    return made.put(model, owner, item, **given_)


def test_what_fits_its_deadline_is_admitted_and_run():
    made = queue(m=0.1)
    assert put(made, item="x").refusal == ""
    assert made.take(0.0, 8) == ("m", ["x"], [])
    assert len(made) == 0 and made.size_bytes == 0


def test_what_even_an_idle_node_could_not_answer_in_time_is_late_at_once():
    assert put(queue(m=0.5), left_s=0.4).refusal == "late"


def test_a_pessimistic_pace_is_eased_by_what_it_refuses():
    made = queue(m=0.5)
    for _ in range(50):
        if not put(made, left_s=0.4).refusal:
            break
    assert len(made) == 1


def test_a_busy_node_refuses_and_says_when_to_ask_again():
    told = put(queue(m=0.1), left_s=0.3, busy_s=0.5)
    assert told.refusal == "busy" and told.retry_s == pytest.approx(0.5 + 0.1 + SLACK_S - 0.3)


def test_nobody_who_was_promised_an_answer_is_pushed_behind_its_deadline():
    made = queue(m=0.1)
    assert not put(made, item="first", left_s=0.11).refusal
    # It would run before the first, which then would be late.
    assert put(made, item="urgent", left_s=0.105).refusal == "busy"
    assert not put(made, item="patient", left_s=0.5).refusal


def test_the_most_urgent_runs_first_and_takes_others_of_its_model_along():
    made = queue(a=0.01, b=0.01)
    put(made, "a", "slow", left_s=0.9)
    put(made, "b", "other", left_s=0.8)
    put(made, "a", "fast", left_s=0.2)
    assert made.take(0.0, 8) == ("a", ["fast", "slow"], [])
    assert made.take(0.0, 8) == ("b", ["other"], [])


def test_a_batch_grows_only_as_far_as_its_first_can_bear():
    made = queue(m=0.1)
    for i in range(3):
        put(made, item=i, left_s=0.25 + i)
    assert made.take(0.0, 8).items == [0, 1]


def test_a_batch_has_no_more_rows_than_wanted_but_one_question_at_least():
    made = queue(m=0.001)
    put(made, item="big", rows=5, left_s=0.5)
    put(made, item="small", left_s=0.9)
    assert made.take(0.0, 2).items == ["big"]


def test_what_became_late_while_it_waited_is_told_apart():
    made = queue(m=0.1)
    put(made, item="x", left_s=0.2)
    assert made.take(0.5, 8) == ("", [], ["x"])


def test_one_owner_cannot_fill_the_queue_nor_all_of_them_the_memory():
    made = queue(m=0.001)
    assert [put(made, item=i).refusal for i in range(4)] == ["", "", "", "busy"]
    assert put(made, owner="e", size_bytes=999).refusal == "busy"
    made.drop()
    assert put(made, owner="d").refusal == ""


def test_dropping_gives_back_everything():
    made = queue(m=0.001)
    put(made, item=1)
    put(made, item=2, left_s=0.5)
    assert made.drop() == [2, 1] and made.size_bytes == 0 and made.waiting_s() == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.integers(1, 8))
def test_a_pace_stays_within_what_was_seen(runs, rows):
    pace = Pace()
    for run_s in runs:
        pace = paced(pace, run_s, rows)
    assert pace.row_s is not None
    assert min(runs) / rows - 1e-9 <= pace.row_s <= max(runs) / rows + 1e-9
    assert 0 <= pace.spread_s <= max(runs) / rows + 1e-9


def test_nonsense_teaches_no_pace():
    made = queue(m=0.1)
    for run_s in (math.nan, math.inf, -1.0):
        made.ran("m", run_s, 1)
    assert made.paces["m"] == Pace(0.1)


ASKS = st.lists(
    st.tuples(
        st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 4), st.floats(0.01, 2.0), st.floats(0, 0.3)
    ),
    max_size=25,
)


@settings(max_examples=200, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(ASKS, st.integers(1, 6))
def test_at_the_paces_it_counts_on_everything_admitted_is_answered_in_time(asks, most):
    """The promise itself: asks come while others are run, exactly as fast as believed."""
    made = Queue(max_bytes=1 << 20, max_each=99)
    made.paces = {"a": Pace(0.05), "b": Pace(0.11)}
    now_s, free_s, admitted, done = 0.0, 0.0, {}, {}

    def run(until_s):
        nonlocal free_s
        while len(made) and free_s <= until_s:
            batch = made.take(free_s, most)
            assert not batch.late
            free_s += sum(admitted[each][1] for each in batch.items) * made.paces[batch.model].likely_s
            done.update(dict.fromkeys(batch.items, free_s))

    for n, (model, owner, rows, left_s, pause_s) in enumerate(asks):
        now_s += pause_s
        run(now_s)
        free_s = max(free_s, now_s)
        paces = dict(made.paces)
        told = made.put(model, owner, n, rows=rows, size_bytes=1, left_s=left_s, busy_s=free_s - now_s, now_s=now_s)
        made.paces = paces  # without the easing, which makes no promise
        assert told.refusal in ("", *REFUSALS)
        if not told.refusal:
            admitted[n] = now_s + left_s, rows
    run(math.inf)
    assert done.keys() == admitted.keys()
    assert all(done[n] <= due_s + 1e-9 for n, (due_s, _) in admitted.items())
