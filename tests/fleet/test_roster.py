from __future__ import annotations

import pytest

from edgert import wire
from edgert.errors import ConfigError, MessageError
from edgert.fleet import roster
from edgert.fleet.roster import Entry, Heard


def topic(device: str, *rest: str) -> str:
    return str(wire.Topic("f", device, *rest))


def told(*messages: tuple[str, wire.Message], now_s: float = 0.0) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for where, message in messages:
        heard = roster.hear(entries, where, wire.encode(message), now_s)
        assert heard == Heard(where.split("/")[3], message)
    return entries


STATUS = {
    "session": "s1",
    "board": {"temp_c": 41.5, "battery_frac": None, "load_frac": True},
    "actor": {"ticks": 1000, "missed": 3},
    "budget": {"why": {"max_exit": "heat", "train_steps_hz": "ok"}},
}


def test_a_device_is_known_by_all_that_is_said_of_it() -> None:
    report = wire.PolicyReport(id="r", stage="trial", name="n", version=7, kept="ab", floor=6, labels=("lab",))
    twin = wire.TwinReported(epoch=1, version=2, settings={"labels": {"site": "barn"}, "drained": True})
    entries = told(
        (topic("d", "status", "device"), wire.Status(online=True, session="s1", version="1.2", task="t", seq=1)),
        (topic("d", "tele", "device"), wire.Telemetry(at_s=5.0, status=STATUS, seq=1)),
        (topic("d", "policy", "report"), report),
        (topic("d", "twin", "reported"), twin),
        (topic("d", "job", "state", "j"), wire.JobState(id="j", kind="bench", state="running")),
        (topic("d", "job", "state", "k"), wire.JobState(id="k", kind="bench", state="done")),
    )
    labels = roster.labels_of(entries)
    assert labels == {"d": ("lab", "site=barn")}
    row = roster.row("d", entries["d"], labels["d"], 1.0)
    assert (row["state"], row["version"], row["policy"], row["update"]) == ("online", "1.2", "n 6", "trial n 7")
    assert (row["jobs"], row["drained"], row["why"], row["labels"]) == (1, True, "heat", "lab,site=barn")
    assert (row["temp_c"], row["battery_frac"], row["load_frac"], row["missed"]) == (41.5, None, None, 3.0)
    assert roster.hear(entries, topic("d", "job", "state", "j"), b"", 1.0) is None
    assert roster.row("d", entries["d"], (), 1.0)["jobs"] == 0


def test_what_is_counted_stays_a_whole_number() -> None:
    assert [repr(roster.number({"n": value}, "n")) for value in (3, 0.5, True, "3")] == ["3", "0.5", "None", "None"]


def test_nothing_known_is_no_number() -> None:
    row = roster.row("d", Entry(), (), 0.0)
    assert row["state"] == "unknown" and all(row[name] is None for name in roster.FIGURES)


@pytest.mark.parametrize(
    ("where", "payload"),
    [
        ("edgert/v1/f/d/status/device/-", b"\xff"),
        ("edgert/v1/f/d/cmd/exits/-", wire.encode(wire.ExitsCommand(id="x"))),
        ("somewhere/else", b""),
        ("edgert/v1/f/d/tele/device/-", wire.encode(wire.Status(online=True, session="s"))),
    ],
)
def test_what_cannot_be_read_changes_nothing(where: str, payload: bytes) -> None:
    entries: dict[str, Entry] = {}
    with pytest.raises(MessageError):
        roster.hear(entries, where, payload, 0.0)
    assert entries == {}


def test_a_flood_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "DEVICES_MAX", 2)
    birth = wire.Status(online=True, session="s")
    entries = told(*((topic(f"d{n}", "status", "device"), birth) for n in range(2)))
    with pytest.raises(MessageError, match="known already"):
        roster.hear(entries, topic("d9", "status", "device"), wire.encode(birth), 0.0)


def test_jobs_of_one_device_are_bounded() -> None:
    entries: dict[str, Entry] = {}
    for n in range(roster.JOBS_MAX + 5):
        state = wire.JobState(id=f"j{n}", kind="bench", state="done")
        roster.hear(entries, topic("d", "job", "state", f"j{n}"), wire.encode(state), 0.0)
    assert len(entries["d"].jobs) == roster.JOBS_MAX and "j0" not in entries["d"].jobs


LABELS = {"a": ("lab", "site=barn"), "b": ("site=field",), "c": ()}


@pytest.mark.parametrize(
    ("to", "meant"),
    [
        (["*"], "abc"),
        (["c", "a"], "ac"),
        (["label:site"], "ab"),
        (["label:site=barn"], "a"),
        (["label:lab", "c"], "ac"),
    ],
)
def test_devices_are_meant_by_names_and_labels(to: list[str], meant: str) -> None:
    assert roster.chosen(LABELS, to) == list(meant)


@pytest.mark.parametrize("nobody", ["d", "label:x", "label:site=", "label:la", "lab"])
def test_who_means_nobody_is_told(nobody: str) -> None:
    with pytest.raises(ConfigError, match="no device"):
        roster.chosen(LABELS, ["a", nobody])


def test_what_is_subscribed_to_is_understood() -> None:
    for each in roster.subscriptions("f"):
        payload = wire.encode(wire.Status(online=True, session="s"))
        try:
            roster.hear({}, each.replace("+", "d"), payload, 0.0)
        except MessageError as error:
            assert "nobody here listens" not in str(error)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_what_is_no_number_that_others_could_read_is_none(value: object) -> None:
    assert roster.number({"a": value}, "a") is None
