from __future__ import annotations

import json

import pytest

from edgert.cli import main, offload
from edgert.errors import ConfigError

CHOICE = {
    "variant": "m-1",
    "place": "edge",
    "accuracy_frac": 0.9,
    "measured": False,
    "source": "a table",
    "expected_s": 0.01,
    "std_s": 0.001,
    "bytes": 1000,
    "joules": 0.5,
    "obstacle": "",
    "best": True,
}
WINDOW = {
    "at_s": 0.0,
    "requests": 25,
    "response_s": 0.02,
    "worst_s": 0.1,
    "late": 0,
    "fell_back": 1,
    "accuracy_frac": 0.9,
    "below": 0,
    "choices": {"m-1@edge": 20, "m-2@device": 5},
}
SHOWN = {
    "up": True,
    "choice": "m-1@edge",
    "why": "quickest by what was learned",
    "task": "pictures",
    "goal": "response",
    "floor_frac": 0.8,
    "deadline_s": 1.0,
    "left_bytes": 5_000_000,
    "state": {"users": [{"rtt_s": 0.004}]},
    "nodes": {"e": {"cpu_frac": 0.25}, "f": {"cpu_frac": None}},
    "requests": 50,
    "fell_back": 1,
    "late": 0,
    "refused": 2,
    "bytes": 123456,
    "decision_s": 0.0005,
    "learned": 50,
    "changes": 1,
    "choices": [CHOICE, CHOICE | {"variant": "m-2", "place": "device", "best": False, "obstacle": "deadline"}],
    "windows": [WINDOW, WINDOW | {"choices": {"m-2@device": 25}}],
}


def test_the_choice_its_reason_and_its_cost_are_told():
    told = offload.text(SHOWN)
    for said in (
        "m-1 at edge, 10.0 ms",
        "quickest by what was learned",
        "too slow for the deadline",
        "0.500 J",
        "90.0%q",
    ):
        assert said in told, told
    assert "quoted, not measured: a table" in told and "busy 25%" in told and "busy unknown" in told


def test_nothing_to_tell_is_told_as_well():
    empty = SHOWN | {"choice": None, "why": None, "windows": [], "nodes": {}, "state": {"users": [{"rtt_s": None}]}}
    empty["choices"] = [CHOICE | {"best": False, "measured": True, "expected_s": None, "obstacle": "link-down"}]
    told = offload.text(empty)
    assert "nothing may answer" in told and "nothing was asked yet" in told and "quoted" not in told
    assert "no link" in told


def test_every_obstacle_has_its_words():
    import inspect
    import re

    from edgert.programs.offload.chooser import Chooser

    named = set(re.findall(r'return "([a-z-]+)"', inspect.getsource(Chooser._obstacles)))
    named |= set(re.findall(r'"(failed|deadline)"', inspect.getsource(Chooser._obstacles)))
    assert named == offload._OBSTACLES.keys()


def test_learning_and_choices_are_drawn():
    pytest.importorskip("matplotlib")
    drawn = offload.plot(SHOWN["windows"])
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")
    with pytest.raises(ConfigError, match="nothing was asked"):
        offload.plot([])


def test_the_verb_prints_what_the_chooser_shows(tmp_path, monkeypatch, capsys):
    config = tmp_path / "edgert.toml"
    text = '[device]\nid = "a"\n[policy]\nbundle = "x"\n[offload]\n'
    config.write_text(text)
    assert main(["offload", "show", "--config", str(config)]) == 78
    config.write_text(text + f'enabled = true\nsocket = "{tmp_path}/none.sock"\n[[offload.variants]]\nbundle = "b"\n')
    monkeypatch.setattr(offload.Inference, "show", lambda self: SHOWN)
    assert main(["offload", "show", "--config", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == SHOWN
    pytest.importorskip("matplotlib")
    assert main(["offload", "show", "--config", str(config), "--plot", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_text().startswith("<svg")
