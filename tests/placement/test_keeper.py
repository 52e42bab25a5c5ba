from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.placement import keeper
from edgert.placement.jobs import HOST
from edgert.placement.keeper import Books, Done, Start, Stop
from edgert.placement.load import Capacity, Resources, overloads
from edgert.placement.protocol import Commit, Held, Release, Reserve, Send, Tick, Times, Vote

TIMES = Times(lease_s=10)
BOOKS = Books(node="x", session=1, capacity=Capacity(cores=2, memory_bytes=10, link_bytes_per_s=10))


def reserve(job: str = "j", attempt: int = 0, epoch: int = 1, cores: float = 1.0, part: int = 0) -> Reserve:
    parts = ((part, Resources(cores)),)
    return Reserve(region="r", epoch=epoch, shield="s", job=job, attempt=attempt, owner="o", parts=parts)


def commit(job: str = "j", attempt: int = 0, epoch: int = 1) -> Commit:
    return Commit(job=job, attempt=attempt, epoch=epoch, owner="o")


def after(*events: tuple[float, Tick | Reserve | Commit | Release], books: Books = BOOKS) -> tuple[Books, Done]:
    done: Done = []
    for at_s, event in events:
        books, done = keeper.step(books, event, at_s, TIMES)
    return books, done


def vote(done: Done) -> Vote:
    (found,) = [each.message for each in done if isinstance(each, Send) and isinstance(each.message, Vote)]
    return found


def held(done: Done) -> bool:
    (found,) = [each.message.ok for each in done if isinstance(each, Send) and isinstance(each.message, Held)]
    return found


def test_nothing_starts_that_was_not_reserved() -> None:
    _, done = after((0, commit()))
    assert not held(done) and not any(isinstance(each, Start) for each in done)


def test_what_was_reserved_starts_once_and_is_renewed() -> None:
    _, done = after((0, reserve()), (1, commit()))
    assert held(done) and Start("j", 0, "o", (0,)) in done
    books, done = after((0, reserve()), (1, commit()), (9, commit()))
    assert held(done) and not any(isinstance(each, Start) for each in done)
    assert books.holds["j"].until_s == 19


def test_the_end_of_a_hosts_traffic_is_held_and_starts_nothing() -> None:
    _, done = after((0, reserve(part=HOST)), (1, commit()))
    assert held(done) and not any(isinstance(each, Start) for each in done)


def test_a_lease_that_is_over_ends_what_ran() -> None:
    books, done = after((0, reserve()), (1, commit()), (11, Tick()))
    assert done == [Stop("j", 0)] and not books.holds
    assert not held(after((0, reserve()), (10, commit()))[1])


def test_a_full_node_says_for_want_of_what() -> None:
    _, done = after((0, reserve("a", cores=2)), (0, reserve("b")))
    assert not vote(done).ok and vote(done).lacks == ("cpu",) and vote(done).load.used.cores == 2


def test_asked_twice_it_keeps_once_and_says_yes_again() -> None:
    books, done = after((0, reserve(cores=2)), (3, reserve(cores=2)))
    assert vote(done).ok and keeper.used(books).cores == 2 and books.holds["j"].until_s == 10


@pytest.mark.parametrize(
    ("events", "lacks"),
    [
        ([(0, reserve(epoch=5)), (0, reserve("k", epoch=4))], ("stale_epoch",)),
        ([(0, reserve(attempt=3)), (0, reserve(attempt=2))], ("superseded",)),
        ([(0, reserve()), (0, Release(job="j", attempt=0)), (1, reserve())], ("superseded",)),
        ([(0, reserve()), (0, commit()), (1, reserve(epoch=2))], ("superseded",)),
    ],
)
def test_who_is_late_is_refused(events: list[tuple[float, Tick | Reserve | Commit | Release]], lacks: str) -> None:
    assert vote(after(*events)[1]).lacks == lacks


def test_a_new_attempt_puts_the_old_one_out() -> None:
    books, done = after((0, reserve()), (1, commit()), (2, reserve(attempt=1, epoch=2)))
    assert Stop("j", 0) in done and vote(done).ok and books.holds["j"].attempt == 1
    assert not held(keeper.step(books, commit(), 3, TIMES)[1])


def test_what_a_later_shield_found_replaces_what_the_former_had_only_reserved() -> None:
    books, done = after((0, reserve(part=0)), (1, reserve(epoch=2, part=1)))
    assert vote(done).ok and [part for part, _ in books.holds["j"].parts] == [1]
    assert not held(keeper.step(books, commit(epoch=1), 2, TIMES)[1])
    assert held(keeper.step(books, commit(epoch=2), 2, TIMES)[1])


def test_a_release_that_overtook_its_reservation_is_remembered_and_then_forgotten() -> None:
    books, done = after((0, Release(job="j", attempt=0)), (1, reserve()))
    assert not vote(done).ok
    books, _ = after((0, Release(job="j", attempt=0)), (1e6, Tick()))
    assert not books.ended


def test_a_node_that_shrank_keeps_what_it_promised_and_takes_nothing_more() -> None:
    books, _ = after((0, reserve(cores=2)))
    small = msgspec.structs.replace(books, capacity=Capacity(cores=1, memory_bytes=10, link_bytes_per_s=10))
    assert held(keeper.step(small, commit(), 1, TIMES)[1])
    assert not vote(keeper.step(small, reserve("k", cores=0.1), 1, TIMES)[1]).ok


def test_reports_go_out_in_their_rhythm_with_rising_numbers() -> None:
    books, sent = BOOKS, []
    for at_s in range(10):
        books, done = keeper.step(books, Tick(), float(at_s), TIMES, ("a", "b"))
        sent += [each for each in done if isinstance(each, Send)]
    assert [each.to for each in sent[:2]] == ["a", "b"] and len(sent) == 10
    assert books.seq == 5


event = st.one_of(
    st.builds(
        reserve,
        st.sampled_from("abc"),
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([0.5, 1.0, 2.0]),
        st.integers(-1, 1),
    ),
    st.builds(commit, st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 3)),
    st.builds(Release, job=st.sampled_from("abc"), attempt=st.integers(0, 2)),
    st.just(Tick()),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 6), event), max_size=30))
def test_whatever_comes_it_never_promises_more_than_it_has_and_stops_all_that_it_started(
    events: list[tuple[float, Tick | Reserve | Commit | Release]],
) -> None:
    books, now_s, running = BOOKS, 0.0, {}
    for wait_s, each in [*events, (100.0, Tick())]:
        now_s += wait_s
        books, done = keeper.step(books, each, now_s, TIMES)
        for what in done:
            if isinstance(what, Start):
                assert what.job not in running
                running[what.job] = what.attempt
            elif isinstance(what, Stop):
                running.pop(what.job, None)
        assert not overloads(books.capacity, keeper.used(books))
        assert {job: hold.attempt for job, hold in books.holds.items() if hold.committed}.items() >= running.items()
    assert not running and not books.holds
