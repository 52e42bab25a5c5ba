from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgert import modelfile
from edgert.config import parse
from edgert.offload import promise
from edgert.offload.admission import Pace
from edgert.offload.space import Floor, Load
from edgert.programs.offload.chooser import Chooser, Known, Refused
from edgert.values import Budget

MODELS = Path(__file__).parents[3] / "models"
NAMES = ("digits-1-full-int8", "digits-0.25-early-int8")


def found(name):
    bundle = modelfile.read((MODELS / f"{name}.edgert").read_bytes())
    return Known(modelfile.model_id(bundle.encoded), bundle.manifest)


KNOWN = [found(name) for name in NAMES]
TEXT = """
[device]
id = "a"
[policy]
bundle = "/x"
[offload]
enabled = true
max_bytes_per_s = 1000.0
burst_bytes = 1000
[[offload.variants]]
bundle = "/big"
[[offload.variants]]
bundle = "/small"
"""


class LocalModels:
    """What runs nothing, and knows what it would take."""

    def __init__(self, paces=(0.02, 0.002)):
        self.paces = {i: Pace(row_s) for i, row_s in enumerate(paces)}
        self.waits = 0.0

    def waits_s(self, now_s):
        return self.waits


def chooser(tmp_path, here=(0, 1), **changes):
    config = parse(TEXT, "test")
    return Chooser(config, KNOWN, set(here), LocalModels(), tmp_path / "offload.cbor")


def node(place="edge", models=KNOWN, cpu=0.1):
    load = Load(cpu_frac=cpu, rtt_s=0.01)
    ids = frozenset(each.id for each in models)
    return promise.Node(place=place, accepts=True, models=ids, load=load, at_s=time.monotonic(), lives_s=60.0)


def world(choice, space):
    """Seconds: the edge is four times as fast as the device, and the cloud is far."""
    one = space.choices[choice]
    return {"device": 1.0, "edge": 0.25, "cloud": 2.0}[one.place] * (0.02, 0.002)[one.variant]


def live(one, n, **ask):
    answers = []
    for _ in range(n):
        chosen = one.choose(1, ask.get("floor", Floor()), ask.get("left_s", 1.0))
        took_s = world(chosen.choice, one.space)
        one.learn(chosen, took_s, came=True, run_s=0.0, spent_bytes=0)
        one.note(chosen.choice, Floor(), took_s, late=False, fell_back=False)
        answers.append(one.label(chosen.choice))
    return answers


def test_without_a_link_it_stays_at_home_and_without_a_node_as_well(tmp_path):
    one = chooser(tmp_path)
    assert all(answer.endswith("@device") for answer in live(one, 20))
    one.up = True
    assert all(answer.endswith("@device") for answer in live(one, 20))
    obstacles = {each["obstacle"] for each in one.shown()["choices"] if each["place"] != "device"}
    assert obstacles == {"nobody-there"}


def test_it_learns_where_it_is_quickest_and_holds_the_floor_from_the_first(tmp_path):
    one = chooser(tmp_path)
    one.up, one.nodes = True, {"e": node(), "c": node("cloud")}
    floor = Floor(KNOWN[0].manifest.accuracy_frac)
    answers = live(one, 120, floor=floor)
    assert {answer.partition("@")[0] for answer in answers} == {NAMES[0]}
    assert answers[60:].count(f"{NAMES[0]}@edge") > 50
    assert not any(window.below for window in one.windows)


def test_what_was_learned_outlives_the_process_and_other_variants_do_not_inherit_it(tmp_path):
    one = chooser(tmp_path)
    live(one, 30)
    one.save()
    again = chooser(tmp_path)
    assert again.learners["response"].steps == 30 and again.windows == one.windows
    config = parse(TEXT, "test")
    other = Chooser(config, KNOWN[::-1], {0, 1}, LocalModels(), tmp_path / "offload.cbor")
    assert other.learners["response"].steps == 0 and not other.faults


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xa0", b"\xa1cids\x80", bytes(100)])
def test_a_torn_file_costs_what_was_learned_and_nothing_else(tmp_path, data):
    (tmp_path / "offload.cbor").write_bytes(data)
    assert chooser(tmp_path).learners["response"].steps == 0


def test_a_file_that_is_cut_at_any_place_is_survived(tmp_path):
    one = chooser(tmp_path)
    live(one, 5)
    one.save()
    whole = (tmp_path / "offload.cbor").read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 12)):
        (tmp_path / "offload.cbor").write_bytes(whole[:at])
        assert chooser(tmp_path).learners["response"].steps == 0


def obstacle(one, label, **ask):
    said = one._obstacles(
        ask.get("n", 1), ask.get("floor", Floor()), ask.get("left_s", 1.0), time.monotonic(), one.now(0)
    )
    return dict(zip(map(one.label, range(len(said))), said, strict=True))[label]


def test_every_obstacle_has_its_name(tmp_path):
    one = chooser(tmp_path)
    edge, home = f"{NAMES[0]}@edge", f"{NAMES[0]}@device"
    assert obstacle(one, edge) == "link-down"
    one.up, one.nodes = True, {"e": node(models=KNOWN[1:])}
    assert obstacle(one, edge) == "not-offered"
    assert obstacle(one, f"{NAMES[0]}@cloud") == "nobody-there"
    one.nodes = {"e": node()}
    assert obstacle(one, edge) == ""
    assert obstacle(one, f"{NAMES[1]}@edge", floor=Floor(0.97)) == "floor"
    assert obstacle(one, home, left_s=0.001) == "deadline"
    assert obstacle(one, edge, n=200) == "bytes"
    one.shy[next(i for i in range(len(one.space.choices)) if one.label(i) == edge)] = time.monotonic() + 60
    assert obstacle(one, edge) == "busy"
    del one.local.paces[0]
    assert obstacle(one, home) == "failed"


def test_nothing_is_sent_over_a_link_that_costs_money(tmp_path):
    one = chooser(tmp_path)
    one.up, one.nodes = True, {"e": node()}
    one.granted(Budget(0, 0.0, 0.0, {"teacher_bytes_per_s": "link-metered"}))
    one.spend(one.said.burst_bytes, time.monotonic())
    assert obstacle(one, f"{NAMES[0]}@edge") == "bytes"
    assert one._purse(time.monotonic() + 3600).left_bytes < 0


def test_a_low_battery_makes_it_choose_by_energy(tmp_path):
    one = chooser(tmp_path)
    assert one.goal() == "response"
    one.granted(Budget(0, 0.0, 100.0, {"max_exit": "battery-critical"}))
    assert one.goal() == "energy" and one.shown()["goal"] == "energy"


def test_who_asks_for_one_by_name_gets_it_or_a_reason(tmp_path):
    one = chooser(tmp_path)
    assert one.label(one.choose(1, Floor(), 1.0, (NAMES[1], "device")).choice) == f"{NAMES[1]}@device"
    assert one.label(one.choose(1, Floor(), 1.0, (None, "device")).choice) == f"{NAMES[0]}@device"
    for pinned, said in (
        ((NAMES[1], "edge"), "not-available"),
        (("x", None), "unknown-choice"),
        ((5, None), "unknown"),
    ):
        with pytest.raises(Refused) as refused:
            one.choose(1, Floor(), 1.0, pinned)
        assert refused.value.name.startswith(said)


def test_a_floor_that_only_edge_and_cloud_meet_is_refused_without_them(tmp_path):
    one = chooser(tmp_path, here=(1,))
    with pytest.raises(Refused) as refused:
        one.choose(1, Floor(0.97), 1.0)
    assert refused.value.name == "no-model"
    one.up, one.nodes = True, {"e": node()}
    assert one.label(one.choose(1, Floor(0.97), 1.0).choice) == f"{NAMES[0]}@edge"


def test_what_is_believed_too_slow_is_tried_now_and_then_while_the_device_can_still_answer(tmp_path):
    one = chooser(tmp_path)
    one.up, one.nodes = True, {"e": node()}
    one.rng = SimpleNamespace(random=lambda: 0.0, standard_normal=np.random.default_rng(0).standard_normal)
    labels = [one.label(i) for i in range(len(one.space.choices))]
    slow = [i for i, label in enumerate(labels) if label.endswith("@edge")]
    one._obstacles = lambda *_: [
        "" if i == 1 else "deadline" if i in slow else "nobody-there" for i in range(len(labels))
    ]
    assert one.choose(1, Floor(0.97), 1.0).choice in (*slow, 1)


def test_it_looks_at_the_machine_and_at_the_link(tmp_path):
    one = chooser(tmp_path)
    one.nodes = {"e": node()}
    one.look(0.0)
    one.look(1.0)
    assert one.nodes
    one.look(time.monotonic() + 601.0)
    assert not one.nodes
    one.measured(0.1, 1.0)
    one.measured(0.2, 2.0)
    state = one.now(3.0)
    assert state.users[0].rtt_s == pytest.approx(0.15) and state.users[0].age_s == 1.0
    one.local.waits = 5.0
    assert one.now(3.0).users[0].cpu_frac == 1.0


@pytest.mark.parametrize("name", ["linucb", "dqn"])
def test_another_learner_may_decide_and_begins_with_nothing(tmp_path, name):
    before = chooser(tmp_path)
    live(before, 10)
    before.save()
    config = parse(TEXT.replace("[offload]", f'[offload]\nlearner = "{name}"'), "test")
    one = Chooser(config, KNOWN, {0, 1}, LocalModels(), tmp_path / "offload.cbor")
    assert one.learners["response"].steps == 0 and not one.faults
    one.up, one.nodes = True, {"e": node(), "c": node("cloud")}
    answers = live(one, 40, floor=Floor(KNOWN[0].manifest.accuracy_frac))
    assert {answer.partition("@")[0] for answer in answers} == {NAMES[0]}
    one.save()
    again = Chooser(config, KNOWN, {0, 1}, LocalModels(), tmp_path / "offload.cbor")
    assert again.learners["response"].steps == 40
    expected = [each["expected_s"] for each in one.shown()["choices"]]
    assert (expected == [None] * len(expected)) == (name == "dqn")
    assert one.report()["changes"] == 0
