"""The status document: what a person asks first."""

from __future__ import annotations

import msgspec
import pytest

from edgert import bus, config, control
from edgert.control import World
from edgert.status import document, idle_because, refusal
from edgert.values import Budget, Note, Record, Swap, TrainerReport, TrainOrder

TEXT = '[device]\nid = "d1"\n[policy]\nbundle = "/p.edgert"\n'
TOLD = TrainerReport(
    pid=1, steps=3, loss=0.5, transitions=9, asked=0, answered=0, joined=0, candidates=0, accepted=0, generation=0,
    checkpoint=1, faults={}, cpu_s=0.1, rss_bytes=5, replay=100, needed=50,
)  # fmt: skip


def world(text: str = TEXT, note: Note | None = None) -> World:
    made = control.open_world(
        config.parse(text, "x"), task="t", n_exits=3, note=note, streams={"events": ("s", 1, 0)}, now_s=0.0
    )
    for event in (bus.Tick(), bus.Spawned("trainer", 1), bus.Connected("trainer", 1), bus.Heard("trainer", TOLD)):
        made, _ = control.step(made, event, 1.0)
    return made


def test_the_document_says_what_is_on_trial_and_what_was_rolled_back() -> None:
    best, bad = Record(Swap(2, "/g2", "b"), returns=(3.0, 5.0)), Swap(1, "/g1", "a")
    told = document(world(note=Note(3, "/g3", "c", best, (bad,))), 2.0)
    assert told["policy"] == {
        "generation": 3,
        "pending": None,
        "last_swap": None,
        "trial": {"against": 2, "returns": 2, "return_mean": 4.0},
        "refused": [1],
        "returns": 0,
        "return_mean": None,
        "exits_order": None,
    }
    assert told["training"] == {"paused": False, "idle_because": "", "networks_rolled_back": 0}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"paused": True}, "paused"),
        ({"trainer": None}, "not there"),
        ({"budget": Budget(0, 0.0, 0.0, {"train_steps_hz": "temp-high"})}, "budget: temp-high"),
        ({"trainer": msgspec.structs.replace(TOLD, replay=49)}, "49 transitions, it takes 50"),
        ({"children": {}}, "learn.enabled"),
        ({}, ""),
    ],
)
def test_why_nothing_is_learned(changes: dict[str, object], why: str) -> None:
    said = idle_because(msgspec.structs.replace(world(), **changes))
    assert why in said and bool(why) == bool(said)


def test_an_order_that_cannot_be_obeyed_says_why() -> None:
    here = world()
    gone, _ = control.step(here, bus.Exited("trainer", 1, -9), 2.0)
    never = world(TEXT + "[learn]\nenabled = false\n")
    pause, now = TrainOrder("a", "pause"), TrainOrder("b", "now")
    assert (refusal(here, pause), refusal(here, now), refusal(gone, pause)) == ("", "", "")
    assert "not there" in refusal(gone, now) and "does not learn" in refusal(never, pause)
