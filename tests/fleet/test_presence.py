from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.fleet import presence
from edgert.fleet.presence import Cloned, Down, Heard, Herald, Reconnect, Say, SayAll, Sighting, Tick, Up, Wanted, step

BIRTH = wire.Status(online=True, session="mine", version="1", task="t")


def birth(seq: int, session: str = "mine") -> wire.Status:
    return msgspec.structs.replace(BIRTH, session=session, seq=seq)


def will(session: str) -> wire.Status:
    return wire.Status(online=False, session=session)


def begun(now_s: float = 0.0) -> Herald:
    herald, effects = step(Herald(birth=BIRTH), Up(), now_s)
    assert effects == [Say(birth(1))]
    return herald


def heard(herald: Herald, status: wire.Status, now_s: float, *, retained: bool = False) -> tuple[Herald, list]:
    return step(herald, Heard(status, retained), now_s)


def test_each_birth_has_the_next_number_over_all_connections() -> None:
    herald = begun()
    for seq in (2, 3):
        herald, _ = step(herald, Down(), 1.0)
        herald, effects = step(herald, Up(), 2.0)
        assert effects == [Say(birth(seq))]


def test_a_birth_that_comes_back_is_asked_for_no_more_until_the_link_was_quiet_for_long() -> None:
    herald, effects = heard(begun(), birth(1), 0.1)
    assert effects == []
    for now_s in (presence.ECHO_S, presence.PROBE_S):
        assert step(herald, Tick(), now_s)[1] == []
    assert step(herald, Tick(), presence.PROBE_S + 1.0)[1] == [Say(birth(2))]


def test_a_link_over_which_nothing_comes_back_any_more_is_given_up() -> None:
    herald, _ = heard(begun(), birth(1), 0.1)
    herald, effects = step(herald, Tick(), 1000.0)
    assert effects == [Say(birth(2))]
    herald, effects = step(herald, Tick(), 1000.0 + presence.ECHO_S)
    assert effects == [Say(birth(3))]
    assert step(herald, Tick(), 1029.0 + presence.ECHO_S)[1] == []
    herald, effects = step(herald, Tick(), 1000.0 + 2 * presence.ECHO_S)
    assert [type(each) for each in effects] == [Reconnect]
    assert step(herald, Tick(), 1e6)[1] == []  # until it is up again
    herald, _ = step(herald, Down(), 1061.0)
    assert step(herald, Up(), 1062.0)[1] == [Say(birth(4))]


def test_a_late_birth_is_an_echo_and_an_early_one_is_none() -> None:
    herald, _ = heard(begun(), birth(1), 0.1)
    herald, _ = step(herald, Tick(), 1000.0)
    herald, _ = heard(herald, birth(1), 1000.1, retained=True)
    assert herald.awaited == 2
    herald, _ = heard(herald, birth(2), 1040.0)
    assert herald.awaited is None and herald.misses == 0


def test_where_a_broker_never_lets_a_device_hear_itself_no_link_is_given_up() -> None:
    herald, said = begun(), 0
    for now_s in range(0, 86_400, 10):
        herald, effects = step(herald, Tick(), float(now_s))
        assert all(isinstance(each, Say) for each in effects)
        said += len(effects)
    assert said < 150


@pytest.mark.parametrize(
    ("status", "retained"),
    [(will("old"), False), (will("old"), True), (will("mine"), False), (birth(1, "old"), True)],
)
def test_what_says_that_the_device_is_gone_is_answered_by_a_birth(status: wire.Status, retained: bool) -> None:
    herald, effects = heard(begun(), status, 1.0, retained=retained)
    assert effects == [] and herald.owed  # before it heard itself: it may have been its own, of an earlier day
    assert step(herald, Tick(), presence.REBIRTH_S - 0.1)[1] == []
    herald, effects = step(herald, Tick(), presence.REBIRTH_S)
    assert effects == [Say(birth(2))] and not herald.owed


def test_floods_of_wills_and_wishes_cost_a_birth_each_ten_seconds() -> None:
    herald, said = begun(), 0
    for now_s in range(100):
        for event in (Heard(will("x"), False), Wanted(), Tick(), Wanted()):
            herald, effects = step(herald, event, float(now_s))
            said += sum(isinstance(each, Say) for each in effects)
    assert said <= 10


def test_who_lost_sight_is_told_everything() -> None:
    _, effects = step(begun(), Wanted(), presence.REBIRTH_S)
    assert effects == [Say(birth(2)), SayAll()]
    down, _ = step(begun(), Down(), 1.0)
    assert step(down, Wanted(), 100.0) == (down, [])


def test_another_device_of_the_same_name_is_told_once() -> None:
    herald, _ = heard(begun(), birth(1), 0.1)
    herald, effects = heard(herald, birth(1, "theirs"), 1.0)
    assert effects == [Cloned("theirs")]
    herald, effects = heard(herald, birth(2, "theirs"), 2.0)
    assert effects == []
    told = []
    for n in range(200):
        herald, effects = heard(herald, birth(1, f"s{n}"), 3.0 + 10.0 * n)
        told += effects
    assert len(herald.strangers) == presence.STRANGERS_MAX and len(told) == 3  # made up, they fill no store


def test_two_with_one_client_id_hear_of_each_other_by_what_is_left_behind() -> None:
    """A broker lets in one of them at a time, and says the will of the one that it throws out."""
    heralds = {name: Herald(birth=birth(0, name)) for name in ("a", "b")}
    kept, told, now_s = wire.Status(online=True, session="before"), dict[str, int](), 0.0
    for turn in range(12):
        name = "ab"[turn % 2]
        now_s += 20.0
        heralds[name], effects = step(heralds[name], Up(), now_s)
        heralds[name], more = heard(heralds[name], kept, now_s, retained=True)  # subscribing comes before the birth
        (said,) = [each.status for each in effects if isinstance(each, Say)]
        heralds[name], _ = heard(heralds[name], said, now_s)
        told[name] = told.get(name, 0) + sum(isinstance(each, Cloned) for each in more)
        heralds[name], _ = step(heralds[name], Down(), now_s + 19.0)
        kept = will(name)
    assert told == {"a": 1, "b": 1}


def test_the_last_word_of_its_own_earlier_session_is_no_other_device() -> None:
    herald, _ = heard(begun(), birth(7, "yesterday"), 0.1, retained=True)
    herald, _ = heard(herald, birth(1), 0.2)
    assert heard(herald, will("yesterday"), 5.0)[1] == []


def test_two_clones_do_not_answer_each_other_for_ever() -> None:
    """Each hears the other's births; neither is made to say its own by them."""
    one, two = begun(), step(Herald(birth=birth(0, "theirs")), Up(), 0.0)[0]
    said = 0
    for now_s in range(1, 600):
        for mine, other in ((0, 1), (1, 0)):
            heralds = [one, two]
            heralds[mine], effects = step(heralds[mine], Tick(), float(now_s))
            for effect in effects:
                assert isinstance(effect, Say)
                said += 1
                heralds[other], more = heard(heralds[other], effect.status, float(now_s))
                heralds[mine], _ = heard(heralds[mine], effect.status, float(now_s))
                assert not any(isinstance(each, Say) for each in more)
            one, two = heralds
    assert said <= 4


EVENTS = st.one_of(
    st.just(Up()),
    st.just(Down()),
    st.just(Tick()),
    st.just(Wanted()),
    st.builds(Heard, st.sampled_from([will("x"), will("mine"), birth(1), birth(9), birth(1, "x")]), st.booleans()),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0.0, 40.0)), max_size=60))
def test_whatever_happens_it_says_little_and_gives_up_only_what_it_has_heard(acts: list) -> None:
    herald, now_s, up, ups, said = Herald(birth=BIRTH), 0.0, False, 0, []
    for event, apart_s in acts:
        now_s += apart_s
        before = herald
        herald, effects = step(herald, event, now_s)
        up = isinstance(event, Up) or (up and not isinstance(event, Down))
        ups += isinstance(event, Up)
        assert up or not effects
        said += [each.status.seq for each in effects if isinstance(each, Say)]
        for each in effects:
            assert not isinstance(each, Reconnect) or before.heard
    assert said == list(range(1, len(said) + 1))
    assert len(said) <= ups + now_s / presence.REBIRTH_S + 1


# ---- whoever looks on


def tele(session: str, seq: int) -> wire.Telemetry:
    return wire.Telemetry(at_s=0.0, status={"session": session}, seq=seq)


def test_the_will_of_an_old_session_does_not_end_a_newer_one() -> None:
    seen = presence.saw_status(Sighting(), birth(1, "a"))
    seen = presence.saw_status(seen, birth(1, "b"))
    seen = presence.saw_status(seen, will("a"))
    assert presence.state(seen, 0.0) == "online"
    assert presence.state(presence.saw_status(seen, will("b")), 0.0) == "offline"


@given(st.permutations([birth(1, "a"), will("a"), birth(1, "b"), birth(2, "b"), birth(1, "b")]))
def test_in_whatever_order_they_come_nothing_but_its_own_will_ends_a_session(told: list[wire.Status]) -> None:
    seen = Sighting()
    for status in told:
        seen = presence.saw_status(seen, status)
        if not status.online and seen.session != status.session:
            assert seen.online
    assert presence.saw_status(seen, birth(3, "b")).online


def test_who_is_heard_no_more_is_silent_though_no_will_came() -> None:
    seen = presence.saw_status(Sighting(), birth(1, "a"))
    for now_s in range(10):
        seen = presence.saw_telemetry(seen, tele("a", now_s + 1), float(now_s))
    assert presence.state(seen, 9.0 + presence.SILENT_S) == "online"
    assert presence.state(seen, 10.0 + presence.SILENT_S) == "silent"
    slow = Sighting()
    for n in range(40):
        slow = presence.saw_telemetry(slow, tele("a", n + 1), 60.0 * n)
    assert presence.state(slow, 60.0 * 39 + 200.0) == "online"  # it is slow, and was all along
    assert presence.state(slow, 60.0 * 39 + 300.0) == "silent"


def test_numbers_that_were_skipped_are_counted() -> None:
    seen = Sighting()
    for seq in (5, 6, 9, 8, 10):
        seen = presence.saw_telemetry(seen, tele("a", seq), 0.0)
    assert seen.missed == 2
    seen = presence.saw_telemetry(seen, tele("b", 1), 0.0)
    assert seen.missed == 2


def test_sessions_that_take_turns_are_two_devices_and_a_restart_is_none() -> None:
    seen = Sighting()
    for session in ("a", "b", "c"):
        seen = presence.saw_status(seen, birth(1, session))
    assert presence.state(seen, 0.0) == "online"
    for session, _ in zip(itertools.cycle("cd"), range(6), strict=False):
        seen = presence.saw_telemetry(seen, tele(session, 1), 0.0)
    assert presence.state(seen, 0.0) == "duplicate"


def test_nothing_known_is_unknown() -> None:
    assert presence.state(Sighting(), 0.0) == "unknown"


def test_who_was_out_of_reach_for_long_is_not_waited_for_as_long() -> None:
    seen = presence.saw_telemetry(Sighting(), tele("a", 1), 0.0)
    seen = presence.saw_telemetry(seen, tele("a", 2), 1.0)
    seen = presence.saw_telemetry(seen, tele("a", 86_402), 86_401.0)  # it went on, and nobody heard it
    assert seen.period_s == pytest.approx(1.0)
    seen = presence.saw_telemetry(seen, tele("b", 1), 200_000.0)  # it was off
    assert seen.period_s == pytest.approx(1.0)
    assert presence.state(seen, 200_001.0 + presence.SILENT_S) == "silent"


def test_two_of_one_name_are_forgiven_once_one_was_alone_for_long() -> None:
    seen = Sighting()
    for n, session in enumerate("abab"):
        seen = presence.saw_telemetry(seen, tele(session, 1), float(n))
    assert presence.state(seen, 4.0) == "duplicate"
    for n in range(2, 62):
        seen = presence.saw_telemetry(seen, tele("b", n), 10.0 * n)
    assert presence.state(seen, 610.0) == "online"
