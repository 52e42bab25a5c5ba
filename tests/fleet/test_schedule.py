"""Schedules: what is due when, and that no clock, however it is set, makes anything happen twice."""

from __future__ import annotations

import itertools
from datetime import datetime, timezone
from zoneinfo import ZoneInfo

import msgspec
import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.fleet import schedule as schedules
from edgert.fleet.schedule import SETTLED_MAX, Mark, Moment, Schedule, fault, jitter, look, next_s, trusted

DAY_S = 86_400.0
START = datetime(2026, 11, 21, 12, 0, tzinfo=timezone.utc).timestamp()


def at(text: str, tz: str = "UTC", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz), fold=fold).timestamp()


def run(schedule: Schedule, walls: list[float | None], mark: Mark | None = None, boot: str = "b") -> tuple[list, Mark]:
    """Look at each wall time in turn, a second of the monotonic clock apart; every job that is due is written."""
    fired = []
    for second, wall_s in enumerate(walls):
        moment = Moment(now_s=float(second), wall_s=wall_s, boot=boot)
        while True:
            after, due = look("s", schedule, mark, moment, "d")
            if due is None:
                mark = after
                break
            mark = due.mark
            fired.append(due.order)
    return fired, mark


def times(fired: list) -> list[int]:
    return [int(order.id.partition(".")[2]) for order in fired]


def minutes(start_s: float, count: int, step_s: float = 60.0) -> list[float]:
    return [start_s + i * step_s for i in range(count)]


DAILY = Schedule(kind="train", cron="30 12 * * *")


def test_each_occurrence_fires_once_at_its_time():
    fired, _ = run(DAILY, minutes(START, 3 * 24 * 60))
    assert times(fired) == [int(START + 1800 + day * DAY_S) for day in range(3)]
    assert fired[0].kind == "train"
    assert fired[0].valid_s == 300.0
    assert fired[0].origin == "s"


def test_what_was_before_the_first_look_is_not_made_up_for():
    assert run(msgspec.structs.replace(DAILY, misfire="run_all"), [START + 1801.0])[0] == []


MISSED = [START, START + 5 * DAY_S]  # five occurrences in between, none of them still open


@pytest.mark.parametrize(
    ("policy", "days"), [("skip", []), ("run_once", [4]), ("run_all", [2, 3, 4])], ids=["skip", "run_once", "run_all"]
)
def test_misfires(policy, days):
    fired, mark = run(msgspec.structs.replace(DAILY, misfire=policy), MISSED)
    assert times(fired) == [int(START + 1800 + day * DAY_S) for day in days]
    assert run(msgspec.structs.replace(DAILY, misfire=policy), [MISSED[-1] + 1], mark)[0] == []


@pytest.mark.parametrize(("policy", "count"), [("skip", 1), ("run_once", 1), ("run_all", 3)])
def test_an_occurrence_that_is_still_open_is_no_misfire(policy, count):
    fired, _ = run(msgspec.structs.replace(DAILY, misfire=policy), [START, START + 4 * DAY_S + 1900.0])
    assert len(fired) == count
    assert times(fired)[-1] == int(START + 1800 + 4 * DAY_S)
    assert fired[-1].valid_s == 200.0


def test_a_window_is_an_occurrence_that_stays_open():
    night = Schedule(kind="train", cron="0 22 * * *", open_s=8 * 3600.0)
    fired, _ = run(night, [START, at("2026-11-22T04:00:00")])
    assert times(fired) == [int(at("2026-11-21T22:00:00"))]
    assert fired[0].valid_s == 2 * 3600.0


def test_ten_years_of_minutes_cost_no_more_than_one_day():
    every = Schedule(kind="train", cron="* * * * *", misfire="run_all", run_max=3)
    fired, mark = run(every, [START, START + 3650 * DAY_S])
    assert len(fired) == 3
    # Back, and there again: the stretch that is settled is stepped over.
    more, _ = run(every, [START + 60, START + 3650 * DAY_S, START + 3650 * DAY_S + 30], mark)
    assert not set(times(fired)) & set(times(more))


@pytest.mark.parametrize(
    ("cron", "first", "expected"),
    [
        # 2026-03-29, 02:00 -> 03:00: an hour that is not there is made up for right after it.
        ("30 2 * * *", "2026-03-28T12:00:00", ["2026-03-29T03:00:00", "2026-03-30T02:30:00"]),
        # 2026-10-25, 03:00 -> 02:00: an hour that is there twice counts once.
        ("30 2 * * *", "2026-10-24T12:00:00", ["2026-10-25T02:30:00", "2026-10-26T02:30:00"]),
    ],
)
def test_days_of_23_and_25_hours_have_one_occurrence_each(cron, first, expected):
    schedule = Schedule(kind="train", cron=cron, tz="Europe/Berlin")
    fired, _ = run(schedule, minutes(at(first, "Europe/Berlin"), 2 * 24 * 60))
    assert times(fired) == [int(at(each, "Europe/Berlin")) for each in expected]


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_what_goes_by_real_time_is_as_regular_on_such_days(day):
    schedule = Schedule(kind="train", cron="*/30 * * * *", tz="Europe/Berlin")
    fired, _ = run(schedule, minutes(at(day + "T00:00:00", "Europe/Berlin"), 5 * 60))
    assert [b - a for a, b in itertools.pairwise(times(fired))] == [1800] * (len(fired) - 1)


ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
CRONS = st.sampled_from(
    ["*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 1,2,3 * * SUN", "0 12 * * MON-FRI", "59 23 28-31 * *", "5 */2 * * *"]
)


@given(CRONS, ZONES, st.integers(0, 365 * 24 * 60))
@settings(max_examples=60)
def test_looking_back_finds_what_looking_ahead_announces(cron, tz, offset_min):
    """The library goes both ways; what it finds must be the same, or a look would miss or invent occurrences."""
    schedule = Schedule(kind="train", cron=cron, tz=tz)
    start_s = START + offset_min * 60.0
    ahead = CronSim(cron, datetime.fromtimestamp(start_s, ZoneInfo(tz)))
    announced = [next(ahead).timestamp() for _ in range(12)]
    back = []
    for time_s in schedules._backwards(schedule, announced[-1]):
        if time_s <= start_s:
            break
        back.append(time_s)
    assert back[::-1] == announced


@pytest.mark.parametrize("step_s", [DAY_S, -DAY_S])
@pytest.mark.parametrize("policy", ["skip", "run_once", "run_all"])
def test_a_clock_set_wrong_by_a_day_and_right_again_fires_nothing_twice(step_s, policy):
    schedule = msgspec.structs.replace(DAILY, cron="0 */4 * * *", misfire=policy)
    right = minutes(START, 12 * 60)
    wrong = [s + step_s for s in minutes(right[-1] + 60, 6 * 60)]
    again = minutes(right[-1] + 60 + 6 * 3600, 3 * 24 * 60)
    fired, _ = run(schedule, [*right, *wrong, *again])
    assert len(set(times(fired))) == len(fired)
    # And it goes on: nothing that lies after the wrong hours is lost to them for ever.
    assert int(again[-1] // (4 * 3600) * 4 * 3600) in times(fired)


JUMPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "jump", "unsynced", "reboot", "crash"]),
        st.floats(-DAY_S, DAY_S) | st.sampled_from([-DAY_S, DAY_S, -0.5, 3600.0, -3600.0]),
    ),
    min_size=1,
    max_size=25,
)


POLICIES = st.sampled_from(["skip", "run_once", "run_all"])


@given(JUMPS, CRONS, ZONES, POLICIES, st.floats(0, 600), st.integers(60, 90_000))
@settings(max_examples=100)
def test_no_clock_makes_anything_happen_twice(jumps, cron, tz, policy, jitter_s, open_s):
    schedule = Schedule(kind="train", cron=cron, tz=tz, misfire=policy, jitter_s=jitter_s, open_s=float(open_s))
    wall_s, mark, disk, fired = START, None, None, []
    for what, size_s in jumps:
        match what:
            case "run":
                walls = minutes(wall_s, 20, abs(size_s) / 20 + 1)
            case "jump":
                walls = [wall_s + size_s]
            case "unsynced":
                walls = [None, wall_s]
            case _:
                mark, walls = disk, [wall_s]  # what was not written with a job is forgotten
        for each in walls:
            while True:
                after, due = look("s", schedule, mark, Moment(now_s=0.0, wall_s=each, boot="b"), "d")
                if due is None:
                    mark = after
                    break
                if what == "crash":
                    what, mark = "", disk  # the power went before the job was written
                    continue
                mark = disk = msgspec.json.decode(msgspec.json.encode(due.mark), type=Mark)
                fired.append(due.order.id)
        wall_s = walls[-1]
        assert mark is None or len(mark.settled) <= SETTLED_MAX
    assert len(set(fired)) == len(fired)


@given(CRONS, ZONES, st.floats(1, 50))
@settings(max_examples=40)
def test_a_steady_clock_misses_nothing(cron, tz, step_s):
    schedule = Schedule(kind="train", cron=cron, tz=tz)
    walls = minutes(START, 60, step_s * 60)
    fired, _ = run(msgspec.structs.replace(schedule, open_s=60 * step_s), walls)
    expected = []
    for time in CronSim(cron, datetime.fromtimestamp(START, ZoneInfo(tz))):
        if time.timestamp() > walls[-1]:
            break
        expected.append(int(time.timestamp()))
    # Looks further apart than the occurrences see only the newest of those between two looks.
    between = [[t for t in expected if a < t <= b] for a, b in itertools.pairwise(walls)]
    assert times(fired) == [seen[-1] for seen in between if seen]


def test_an_unset_clock_fires_nothing_and_sets_nothing_off_when_it_is_set():
    fired, mark = run(DAILY, [None] * 5)
    assert fired == []
    assert run(DAILY, [START + DAY_S], mark)[0] == []


@pytest.mark.parametrize(
    ("wall_s", "synced", "rtc", "known"),
    [
        (0.0, None, True, False),  # 1970
        (0.0, True, True, False),
        (START - 1, None, True, False),  # before what was written down
        (START - 1, True, False, True),  # what was written down was wrong
        (START, None, False, True),
        (START, False, False, False),  # it may be where it was switched off
        (START, False, True, True),
        (START - 1, False, True, False),
        (START + 1, True, False, True),
    ],
)
def test_time_before_the_floor_is_no_time(wall_s, synced, rtc, known):
    told = trusted(wall_s, built_s=START - DAY_S, seen_s=START, synced=synced, rtc=rtc)
    assert told == (wall_s if known else None)


def test_bounds_of_a_schedule():
    bounded = msgspec.structs.replace(DAILY, not_before_s=START + DAY_S, not_after_s=START + 3 * DAY_S)
    fired, _ = run(bounded, minutes(START, 5 * 24 * 60))
    assert times(fired) == [int(START + 1800 + day * DAY_S) for day in (1, 2)]


EVERY = Schedule(kind="bench", every_s=100.0)


def test_an_interval_goes_by_the_clock_that_nobody_sets():
    walls = [START + (DAY_S if i % 7 else -DAY_S) * (i % 3) for i in range(1000)]
    fired, _ = run(EVERY, walls)
    assert [order.id for order in fired] == [f"s.{n}" for n in range(1, len(fired) + 1)]
    assert len(fired) == 10


def step(schedule, mark, now_s, wall_s, boot):
    return look("s", schedule, mark, Moment(now_s=now_s, wall_s=wall_s, boot=boot), "d")


def test_an_interval_goes_on_after_a_restart_and_after_a_boot():
    mark, _ = step(EVERY, None, 0.0, START, "b1")
    _, due = step(EVERY, mark, 100.0, START + 100, "b1")
    mark = due.mark
    assert step(EVERY, mark, 199.0, None, "b1")[1] is None
    assert step(EVERY, mark, 200.0, None, "b1")[1].order.id == "s.2"
    # Another start of the machine: the wall's clock says how long it was off, if it is known.
    soon, due = step(EVERY, mark, 5.0, START + 160, "b2")
    assert due is None
    assert step(EVERY, soon, 5.0 + 39.0, None, "b2")[1] is None
    assert step(EVERY, soon, 5.0 + 41.0, None, "b2")[1].order.id == "s.2"
    blind, due = step(EVERY, mark, 5.0, None, "b2")
    assert due is None
    assert step(EVERY, blind, 104.0, None, "b2")[1] is None
    assert step(EVERY, blind, 105.0, None, "b2")[1].order.id == "s.2"


def test_jitter_is_the_devices_own_and_spreads():
    spread = msgspec.structs.replace(DAILY, jitter_s=600.0)
    drawn = [jitter(spread, "s", f"d{i}") for i in range(300)]
    assert drawn == [jitter(spread, "s", f"d{i}") for i in range(300)]
    assert 0 <= min(drawn) < 60
    assert 540 < max(drawn) < 600
    fired, _ = run(spread, minutes(START, 24 * 60, 1.0 * 60))
    assert times(fired) == [int(START + 1800)]


@pytest.mark.parametrize(
    ("schedule", "why"),
    [
        (Schedule(kind="train"), "exactly one"),
        (Schedule(kind="train", cron="* * * * *", every_s=60.0), "exactly one"),
        (Schedule(kind="dance", cron="* * * * *"), "dance"),
        (Schedule(kind="fetch", args={"for_s": -1}, every_s=60.0), "for_s"),
        (Schedule(kind="train", cron="* * * * * *"), "five fields"),
        (Schedule(kind="train", cron="61 * * * *"), "minute"),
        (Schedule(kind="train", cron="0 0 30 2 *"), "day"),
        (Schedule(kind="train", cron="0 0 * * 9"), "week"),
        (Schedule(kind="train", cron="0 0 * * *", tz="Mars/Olympus"), "Mars"),
        (Schedule(kind="train", cron="0 0 * * *", tz="../../etc/passwd"), "no such"),
        (Schedule(kind="train", cron="0 0 * * *", not_after_s=float("nan")), "1970"),
    ],
)
def test_faults_are_found_when_it_is_set(schedule, why):
    assert why in fault("s", schedule)
    assert fault("s", DAILY) == ""
    assert "name" in fault("s" * 41, DAILY)


def test_when_it_is_due_next():
    moment = Moment(now_s=50.0, wall_s=START, boot="b")
    assert next_s("s", DAILY, None, moment, "d") == 1800.0
    assert next_s("s", DAILY, None, msgspec.structs.replace(moment, wall_s=None), "d") is None
    assert next_s("s", msgspec.structs.replace(DAILY, not_after_s=START), None, moment, "d") is None
    mark, _ = look("s", EVERY, None, moment, "d")
    assert 0 <= next_s("s", EVERY, mark, msgspec.structs.replace(moment, now_s=90.0), "d") <= 60.0
