"""Turns and allowances: nobody is starved, nothing is lost, nothing grows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.knowledge.turns import BURST_S, DEBT_MAX_S, QUANTUM_ROWS, Allowances, Turns

ASKS = st.lists(st.tuples(st.sampled_from("tu"), st.sampled_from("abc"), st.integers(0, 300)), max_size=40)


def test_nothing_waits_at_first():
    assert Turns(3).take(10) == ("", [])


@given(ASKS, st.integers(1, 400))
def test_everything_is_taken_once_and_a_students_questions_stay_in_order(asks, max_rows):
    turns = Turns(100)
    for number, (task, student, rows) in enumerate(asks):
        assert turns.put(task, student, (student, number, max(1, rows)), rows, 7)
    taken = {"t": [], "u": []}
    while turns:
        before = turns.waiting("t"), turns.waiting("u")
        task, batch = turns.take(max_rows)
        assert batch
        assert before["tu".index(task)] - turns.waiting(task) == len(batch)
        assert turns.waiting("t") + turns.waiting("u") == len(turns)
        assert len(batch) == 1 or sum(rows for _, _, rows in batch) <= max_rows
        taken[task] += batch
    for task, items in taken.items():
        for student in "abc":
            mine = [number for who, number, _ in items if who == student]
            assert mine == [n for n, (t, s, _) in enumerate(asks) if (t, s) == (task, student)]
    assert turns.size_bytes == 0
    assert turns.take(max_rows) == ("", [])


def test_tasks_take_turns():
    turns = Turns(100)
    for number in range(6):
        turns.put("busy", "a", number, 10, 1)
    turns.put("quiet", "b", 99, 10, 1)
    assert turns.waiting("busy") == 6
    assert [turns.take(20) for _ in range(4)] == [("busy", [0, 1]), ("quiet", [99]), ("busy", [2, 3]), ("busy", [4, 5])]


def test_a_modest_student_is_not_behind_a_greedy_one():
    turns = Turns(100)
    for number in range(50):
        turns.put("t", "greedy", number, QUANTUM_ROWS, 1)
    turns.put("t", "modest", "please", 1, 1)
    assert "please" in turns.take(3 * QUANTUM_ROWS)[1]


def test_rows_are_shared_evenly_whatever_the_size_of_the_questions():
    turns = Turns(1000)
    for _ in range(300):
        turns.put("t", "large", ("large", 50), 50, 1)
        turns.put("t", "larger", ("larger", 200), 200, 1)
    for _ in range(900):
        turns.put("t", "small", ("small", 5), 5, 1)
    rows = Counter()
    while sum(rows.values()) < 10_000:
        for student, n in turns.take(500)[1]:
            rows[student] += n
    assert max(rows.values()) - min(rows.values()) <= 500 + 200 + QUANTUM_ROWS


def test_a_student_has_so_many_places_and_keeps_nobody_from_theirs():
    turns = Turns(3)
    assert [turns.put("t", "a", number, 1, 10) for number in range(5)] == [True] * 3 + [False] * 2
    assert turns.put("t", "b", 0, 1, 10)
    assert turns.put("u", "a", 0, 1, 10)
    assert (len(turns), turns.size_bytes) == (5, 50)
    assert [turns.waiting(task) for task in "tuv"] == [4, 1, 0]


def test_an_allowance_is_a_burst_then_a_rate():
    purse = Allowances(100.0, 10)
    assert purse.wait_s("a", 0.0) == 0
    purse.charge("a", int(100 * BURST_S) + 299, 0.0)
    assert purse.wait_s("a", 0.0) == pytest.approx(3.0)
    assert purse.wait_s("a", 2.0) == pytest.approx(1.0)
    assert purse.wait_s("b", 2.0) == 0
    assert purse.wait_s("a", 3.1) == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 5000)), min_size=1, max_size=60), st.floats(10, 1e4))
def test_who_waits_as_told_gets_no_more_than_the_rate_and_one_question(asks, bytes_per_s):
    purse, now_s, spent = Allowances(bytes_per_s, 10), 0.0, 0
    for gap_s, size_bytes in asks:
        now_s += gap_s
        now_s += purse.wait_s("a", now_s) * (1 + 1e-9) + 1e-6
        assert purse.wait_s("a", now_s) == 0, "the wait that was told is enough"
        purse.charge("a", size_bytes, now_s)
        spent += size_bytes
        assert spent <= bytes_per_s * (now_s + BURST_S) * (1 + 1e-6) + 5000


def test_debts_end_and_a_clock_that_stands_still_gives_nothing():
    purse = Allowances(1.0, 10)
    purse.charge("a", 1 << 30, 5.0)
    assert purse.wait_s("a", 5.0) == pytest.approx(DEBT_MAX_S)
    assert purse.wait_s("a", 4.0) == pytest.approx(DEBT_MAX_S)


def test_an_allowance_below_a_byte_lets_one_question_in():
    purse = Allowances(0.01, 10)
    assert purse.wait_s("a", 0.0) == 0
    purse.charge("a", 10, 0.0)
    assert purse.wait_s("a", 0.0) > 0


def test_thousands_of_students_take_the_memory_of_few():
    purse = Allowances(1.0, 100)
    purse.charge("first", 10_000, 0.0)
    for number in range(99):
        purse.charge(f"pi-{number}", 10_000, 0.0)
        assert purse.wait_s("first", 0.0) > 0, "who asks is remembered"
    for number in range(5000):
        purse.wait_s(f"other-{number}", 0.0)
    assert len(purse) == 100
