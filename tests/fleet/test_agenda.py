"""The agenda: a mark counts once its job is on the disk, and not before."""

from __future__ import annotations

from datetime import datetime, timezone

from edgert.fleet.agenda import MARKS_MAX, Agenda, look, open_agenda, planned, settled
from edgert.fleet.schedule import Moment, Schedule

START = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc).timestamp()
NOON = Schedule(kind="train", cron="30 12 * * *")


def at(wall_s: float | None, now_s: float = 0.0) -> Moment:
    return Moment(now_s=now_s, wall_s=wall_s, boot="b")


def opened(**schedules: Schedule) -> tuple[Agenda, dict[str, bytes]]:
    agenda, submits, firsts = look(planned(Agenda(), schedules), at(START), "d")
    assert submits == []
    return agenda, firsts


def test_what_is_due_is_due_until_it_is_written():
    agenda, firsts = opened(noon=NOON)
    assert set(firsts) == {"noon"}
    agenda, (submit,), firsts = look(agenda, at(START + 1801), "d")
    assert (submit.order.id, submit.mark[0], firsts) == (f"noon.{int(START + 1800)}", "noon", {})
    assert look(agenda, at(START + 1802), "d")[1] == [], "it is being written"
    refused = settled(agenda, submit.order.id, written=False)
    assert look(refused, at(START + 1803), "d")[1][0].order.id == submit.order.id
    done = settled(agenda, submit.order.id, written=True)
    assert look(done, at(START + 1803), "d")[1] == []
    # And so for a successor, that has what is on the disk.
    again, broken = open_agenda({"noon": submit.mark[1]})
    assert broken == ()
    assert look(planned(again, {"noon": NOON}), at(START + 1804), "d")[1] == []


def test_a_mark_that_cannot_be_read_is_told_and_begun_anew():
    agenda, broken = open_agenda({"noon": b"\x00", "night": b"{}"})
    assert broken == ("noon",)
    assert set(agenda.marks) == {"night"}


def test_a_power_cut_before_the_first_job_makes_nothing_up_twice_and_misses_nothing():
    _, firsts = opened(noon=Schedule(kind="train", cron="30 12 * * *", misfire="run_once"))
    again, _ = open_agenda(firsts)
    again = planned(again, {"noon": Schedule(kind="train", cron="30 12 * * *", misfire="run_once")})
    assert len(look(again, at(START + 86_000), "d")[1]) == 1


def test_between_two_occurrences_nothing_is_searched_but_the_clock_is_watched():
    agenda, _ = opened(noon=NOON)
    quiet = look(agenda, at(START + 60), "d")[0]
    assert quiet == agenda
    back, submits, _ = look(agenda, at(START - 3600), "d")
    assert (back == agenda, submits) == (False, [])


def test_a_schedule_that_comes_back_goes_on_where_it_was():
    agenda, _ = opened(noon=NOON)
    agenda, (submit,), _ = look(agenda, at(START + 1801), "d")
    agenda = settled(agenda, submit.order.id, written=True)
    back = planned(planned(agenda, {}), {"noon": NOON})
    assert look(back, at(START + 1805), "d")[1] == []


def test_marks_of_schedules_that_are_gone_are_bounded():
    agenda = Agenda()
    for i in range(2 * MARKS_MAX):
        agenda, _, _ = look(planned(agenda, {f"s{i}": NOON}), at(START), "d")
    assert len(agenda.marks) <= MARKS_MAX + 1


def test_several_are_due_at_once():
    agenda, _ = opened(a=NOON, b=NOON)
    agenda = planned(agenda, {"a": NOON, "b": NOON, "c": Schedule(kind="bench", every_s=10.0)})
    agenda, submits, _ = look(agenda, at(START + 1801, 100.0), "d")
    assert sorted(submit.order.origin for submit in submits) == ["a", "b", "c"]
    assert agenda.pending.keys() == {submit.order.id for submit in submits}
