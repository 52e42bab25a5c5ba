"""The twin: every setting judged by itself, and two sides that meet whatever the link does to them."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import wire
from edgert.config import Config, Device, Goals, Learn, Policy
from edgert.fleet import twin
from edgert.fleet.twin import Twin

CONFIG = Config(device=Device(id="d"), policy=Policy(bundle="b"))


def desired(version: int, settings: dict, epoch: int = 1) -> wire.TwinDesired:
    return wire.TwinDesired(epoch=epoch, version=version, settings=settings)


GOOD = {
    "goals": ({"max_power_w": 3}, lambda w: w.goals == msgspec.structs.replace(Goals(), max_power_w=3.0)),
    "exits": ({"thresholds": [0.5, 0.9]}, lambda w: w.exits.operating.thresholds == (0.5, 0.9)),
    "learn.paused": (True, lambda w: w.paused is True),
    "learn.train_steps_hz": (5, lambda w: w.train_steps_hz == 5.0),
    "teacher.max_bytes_per_s": (100.0, lambda w: w.teacher_bytes_per_s == 100.0),
    "labels": ({"site": "north"}, lambda w: w.labels == {"site": "north"}),
    "schedules": (
        {"night": {"kind": "train", "cron": "0 3 * * *", "tz": "Europe/Berlin"}},
        lambda w: w.schedules["night"].tz == "Europe/Berlin",
    ),
    "drained": (True, lambda w: w.drained),
}


def test_every_key_has_a_good_value_here():
    assert set(GOOD) == set(twin.KEYS)


@pytest.mark.parametrize("key", GOOD)
def test_what_can_be_set_is_taken_over_and_reported(key):
    value, holds = GOOD[key]
    wishes, refused = twin.judge({key: value}, CONFIG, 3)
    assert not refused
    assert holds(wishes)
    got = twin.receive(Twin(), desired(4, {key: value}), CONFIG, 3)
    reported = twin.report(got, twin.configured(CONFIG, got.wishes), paused=bool(wishes.paused))
    assert (reported.epoch, reported.version, reported.refused) == (1, 4, {})
    told = reported.settings[key]
    assert told == value if key != "goals" else told["max_power_w"] == 3.0
    wire.encode(reported)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("goals", {"max_power_w": -1}, "max_power_w"),
        ("goals", {"speed": 1}, "no such goal: speed"),
        ("goals", {"priorities": ["return"]}, "priorities"),
        ("goals", [], "object"),
        ("exits", {"thresholds": [0.5]}, "1 thresholds for 3 exits"),
        ("exits", {"thresholds": [0.5, 0.5], "point": 1}, "only one"),
        ("exits", {"repeat": 2}, "need thresholds"),
        ("exits", {"depth": 2}, "depth"),
        ("exits", {"max_ops_frac": 2}, "max_ops_frac|<= 1"),
        ("learn.paused", "yes", "bool"),
        ("learn.train_steps_hz", 0, "> 0"),
        ("teacher.max_bytes_per_s", "much", "float"),
        ("labels", {"a b": "x"}, "a b"),
        ("labels", {"a": "x" * 65}, "64"),
        ("labels", {f"l{i}": "" for i in range(33)}, "33 labels"),
        ("broker.url", "mqtt://elsewhere", "cannot be set from afar"),
        ("schedules", 3, "object"),
        ("schedules", {f"s{i}": {} for i in range(65)}, "65 schedules"),
    ],
)
def test_what_cannot_be_is_refused_by_name(key, value, why):
    wishes, refused = twin.judge({key: value}, CONFIG, 3)
    assert wishes == twin.Wishes()
    assert re.search(why, refused[key]), refused[key]


def test_a_bad_setting_keeps_no_good_one_from_being_obeyed():
    told = {"labels": {"a": "b"}, "goals": {"max_power_w": "much"}, "schedules": {"x": {"kind": "train"}, "y/z": {}}}
    told["schedules"]["ok"] = {"kind": "bench", "every_s": 3600}
    wishes, refused = twin.judge(told, CONFIG, 3)
    assert wishes.labels == {"a": "b"}
    assert set(wishes.schedules) == {"ok"}
    assert set(refused) == {"goals", "schedules.x", "schedules.y/z"}


def test_what_the_configuration_rules_out_stays_ruled_out():
    still = msgspec.structs.replace(CONFIG, learn=Learn(enabled=False))
    assert "learn.enabled" in twin.judge({"learn.paused": True}, still, 3)[1]["learn.paused"]
    pinned = msgspec.structs.replace(CONFIG, policy=Policy(bundle="b", thresholds=(0.5, 0.5)))
    assert "pins" in twin.judge({"exits": {"point": 1}}, pinned, 3)[1]["exits"]


def test_an_actor_that_cannot_is_reported():
    got = twin.receive(Twin(), desired(1, {"exits": {"point": 9}}), CONFIG, 3)
    reported = twin.report(got, CONFIG, paused=False, exits_refused="there is no point 9")
    assert reported.refused == {"exits": "there is no point 9"}
    assert "exits" not in reported.settings


def test_two_operators_that_count_alike_end_alike():
    one, other = desired(2, {"labels": {"a": "1"}}), desired(2, {"labels": {"a": "2"}})
    ends = {
        twin.receive(twin.receive(Twin(), first, CONFIG, 3), second, CONFIG, 3).digest
        for first, second in ((one, other), (other, one))
    }
    assert len(ends) == 1


def test_an_operator_whose_broker_forgot_everything_still_gets_through():
    old = twin.receive(Twin(), desired(7, {}, epoch=10**10), CONFIG, 3)
    reported = twin.report(old, CONFIG, paused=False)
    fresh = twin.edit(None, None, lambda s: {**s, "labels": {"a": "b"}}, 1e9)
    assert twin.settled(fresh, reported) is False
    again = twin.edit(fresh, reported, lambda s: s, 1e9)
    assert twin.receive(old, again, CONFIG, 3).wishes.labels == {"a": "b"}


@given(st.dictionaries(st.text(max_size=9), st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)), max_size=4),
    st.sampled_from(twin.KEYS))  # fmt: skip
@settings(max_examples=60)
def test_no_nonsense_gets_through_or_breaks_it(told, key):
    for each in (told, {key: told}, {key: next(iter(told.values()), None)}):
        got = twin.receive(Twin(), desired(1, each), CONFIG, 3)
        wire.decode(wire.encode(twin.report(got, twin.configured(CONFIG, got.wishes), paused=False)), wire.TwinReported)


def test_what_is_told_of_a_monstrous_document_fits_into_a_message():
    told = {f"{i}" * 9: "x" * 9 for i in range(20_000)}
    told["schedules"] = {f"s{i}": {"kind": "k" * 9000} for i in range(64)}
    got = twin.receive(Twin(), desired(1, told), CONFIG, 3)
    wire.encode(twin.report(got, CONFIG, paused=False))
    assert len(got.refused) <= twin.REFUSED_MAX + 64


def test_a_version_that_can_grow_no_more_makes_a_new_epoch():
    last = desired(twin.VERSION_MAX, {"labels": {"a": "b"}})
    after = twin.edit(last, None, lambda s: s, 1e9)
    wire.decode(wire.encode(after), wire.TwinDesired)
    assert (after.epoch, after.version) == (2, 1)


class Sides:
    """A device, a broker that keeps two documents, an operator; and everything that can go wrong between them."""

    def __init__(self) -> None:
        self.device = Twin()
        self.disk = Twin()
        self.kept: wire.TwinDesired | None = None  # retained at the broker
        self.reported: wire.TwinReported | None = None
        self.wire: list[wire.TwinDesired] = []  # on the way to the device
        self.labels = 0

    def set(self) -> None:
        self.labels += 1
        self.kept = twin.edit(self.kept, self.reported, lambda s: {**s, "labels": {"n": str(self.labels)}}, 1e9)
        self.wire.append(self.kept)

    def publish(self) -> None:
        self.reported = twin.report(self.device, CONFIG, paused=False)

    def deliver(self, at: int, *, keep: bool) -> None:
        if self.wire:
            message = self.wire[at % len(self.wire)] if keep else self.wire.pop(at % len(self.wire))
            after = twin.receive(self.device, message, CONFIG, 3)
            if after is not self.device:
                assert after.rank > self.device.rank
                self.device = after
                self.disk = after
                self.publish()

    def connect(self) -> None:
        if self.kept is not None:
            self.wire.append(self.kept)
        self.publish()

    def forget(self) -> None:
        """The broker loses its disk."""
        self.kept = None

    def settle(self) -> None:
        """From here on everything works, and the operator looks whether its word has arrived."""
        for _ in range(3):
            self.connect()
            while self.wire:
                self.deliver(0, keep=False)
            if self.kept is None or twin.settled(self.kept, self.reported):
                return
            self.kept = twin.edit(self.kept, self.reported, lambda s: s, 1e9)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("set", "set", "deliver", "deliver", "repeat", "lose", "restart", "wipe", "connect", "forget", "late")
        ),
        st.integers(0, 7),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=150)
def test_any_interleaving_ends_at_what_was_wanted_last(steps):
    sides = Sides()
    old: list[wire.TwinDesired] = []
    for what, at in steps:
        match what:
            case "set":
                sides.set()
                old.append(sides.kept)
            case "deliver":
                sides.deliver(at, keep=False)
            case "repeat":
                sides.deliver(at, keep=True)
            case "lose" if sides.wire:
                sides.wire.pop(at % len(sides.wire))
            case "late" if old:
                sides.wire.append(old[at % len(old)])
            case "restart":
                sides.device = sides.disk
            case "wipe":
                sides.device = sides.disk = Twin()
            case "connect":
                sides.connect()
            case "forget":
                sides.forget()
    wanted = sides.kept
    sides.settle()
    if wanted is not None:
        assert sides.device.wishes.labels == wanted.settings["labels"]
        assert sides.reported.settings["labels"] == wanted.settings["labels"]
        assert (sides.reported.epoch, sides.reported.version) == (sides.kept.epoch, sides.kept.version)
