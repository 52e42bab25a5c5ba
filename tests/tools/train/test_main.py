"""`python -m tools.train` from the outside: a real game, killed in the middle, imitated by another."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("minatar")

from edgert.errors import UsageError  # noqa: E402
from edgert.nets import forward, initialise, strip_exits  # noqa: E402
from tools.nets import NETS  # noqa: E402
from tools.train import __main__ as program  # noqa: E402
from tools.train import kept  # noqa: E402

FAST = [
    *("--env", "MinAtar/Breakout-v1", "--net", "board-20", "--n-envs", "4", "--batch", "32"),
    *("--frames-per-update", "16", "--warm-up", "200", "--replay", "1000", "--checkpoint-every", "400"),
    *("--eval-every", "500", "--eval-episodes", "2", "--test-episodes", "2"),
]


def train(out, *more):
    return program.main([*FAST, "--out", str(out), *more])


def test_a_run_leaves_network_curve_and_provenance(tmp_path):
    assert train(tmp_path / "a", "--frames", "1200") == 0
    params, document = kept(tmp_path / "a")
    assert np.isfinite(params.flat).all()
    assert not np.array_equal(params.flat, initialise(params.spec, np.random.default_rng(0)).flat)
    assert document["frames"] >= 1200 and document["gradient_steps"] >= 50
    assert document["hyper"]["frames_per_update"] == 16 and "--frames 1200" in document["command"]
    assert len(document["curve"]) == 3


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    out, real = tmp_path / "a", program.Trainer.save

    def save_and_die(self, path):
        real(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(program.Trainer, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(out, "--frames", "1200")
    assert not (out / "run.json").exists()
    assert train(out, "--frames", "1200") == 0
    document = json.loads((out / "run.json").read_text())
    with (out / "curve.csv").open() as file:
        frames = [int(row["frames"]) for row in csv.DictReader(file)]
    assert frames == sorted(set(frames)) and frames[-1] == document["frames"] == 1200


def test_a_student_starts_from_and_imitates_a_run(tmp_path):
    assert train(tmp_path / "a", "--frames", "600") == 0
    assert (
        train(tmp_path / "b", "--frames", "600", "--teacher", str(tmp_path / "a"), "--start", str(tmp_path / "a")) == 0
    )
    document = json.loads((tmp_path / "b" / "run.json").read_text())
    assert "t0.0.w" in document["start"]["layers"]
    assert document["teacher"]["frames"] == 600


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--teacher", "nowhere"), "nowhere holds no finished run"),
        (("--env", "Nowhere/Chess-v1"), "Nowhere/Chess-v1"),
        (("--n-envs", "0"), "--n-envs 0: one at least"),
        (("--frames", "-5"), "--frames -5: one at least"),
        (("--replay", "8"), "--replay 8: too small"),
        (("--frozen",), "--frozen: board-20 needs early exits"),
    ],
)
def test_bad_input_is_named(tmp_path, capsys, more, said):
    assert train(tmp_path / "a", "--frames", "600", *more) == 1
    assert said in capsys.readouterr().err


def test_frozen_only_the_first_exit_learns(tmp_path):
    runs = {name: str(tmp_path / name) for name in ("a", "b")}
    assert train(tmp_path / "a", "--net", "board2", "--frames", "600") == 0
    taught = ("--teacher", runs["a"], "--start", runs["a"], "--frozen")
    assert train(tmp_path / "b", "--net", "board2", "--frames", "600", *taught) == 0
    (before, _), (after, _) = kept(tmp_path / "a"), kept(tmp_path / "b")
    np.testing.assert_array_equal(strip_exits(after).flat, strip_exits(before).flat)
    assert not np.array_equal(after.views["h0.out.w"], before.views["h0.out.w"])


def test_grafting_copies_what_fits():
    rng = np.random.default_rng(0)
    wide, narrow = (initialise(NETS[name]((10, 10, 4), 6), rng) for name in ("board-34", "board-20"))
    assert program.graft(narrow, wide) == ["t0.0.w", "t0.0.b"]
    np.testing.assert_array_equal(narrow.views["t0.0.w"], wide.views["t0.0.w"])


def test_grafting_does_not_mind_where_the_stages_are_cut():
    rng = np.random.default_rng(0)
    three, two = (initialise(NETS[name]((84, 84, 4), 6), rng) for name in ("camera", "camera2"))
    obs = rng.integers(256, size=(2, 84, 84, 4)).astype(np.uint8)
    program.graft(two, three)
    for mine, theirs in ((0, 0), (1, 2)):
        np.testing.assert_array_equal(forward(two, obs)[mine], forward(three, obs)[theirs])


def test_a_run_with_a_torn_network_is_refused(tmp_path):
    assert train(tmp_path / "a", "--frames", "300") == 0
    (tmp_path / "a" / "best.f32").write_bytes(b"\0" * 40)
    with pytest.raises(UsageError, match="float32"):
        kept(tmp_path / "a")
