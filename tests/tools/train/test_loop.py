"""The loop on a task small enough to be learnt in a second: the board shows which action is right."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # two busy threads on small arrays only wait for each other

from edgert.errors import StoreError, UsageError  # noqa: E402
from edgert.nets import Conv, Dense, NetSpec, Relu, forward, initialise, strip_exits  # noqa: E402
from tools.train.loop import Curve, Hyper, Score, Trainer, greedy, play, score  # noqa: E402

SPEC = NetSpec((4, 4, 3), 3, trunk=((Conv(8, 2), Relu()), (Dense(32), Relu())), heads=((), ()))
HYPER = Hyper(
    frames=2400,
    n_envs=8,
    batch=64,
    frames_per_update=16,
    warm_up=200,
    replay=2000,
    learning_rate=3e-3,
    n_step=2,
    gamma=0.5,
    target_rate=0.05,
    explore_frames=1200,
)


class Signs:
    """Three boards; the action that belongs to the one shown gives 1. Episodes last five steps."""

    def __init__(self, n=8):
        self.n, self.rng, self.t = n, np.random.default_rng(0), np.zeros(n, int)
        self.shown = np.zeros(n, int)

    def _obs(self):
        obs = np.zeros((self.n, 4, 4, 3), np.uint8)
        obs[np.arange(self.n), :, :, self.shown] = 1
        return obs

    def reset(self, seed=None):
        self.rng = np.random.default_rng(seed)
        self.t[:] = 0
        self.shown = self.rng.integers(3, size=self.n)
        return self._obs(), {}

    def step(self, action):
        resets = self.t == 5
        reward = np.where(resets, 0.0, (action == self.shown).astype(float))
        self.t = np.where(resets, 0, self.t + 1)
        self.shown = self.rng.integers(3, size=self.n)
        return self._obs(), reward, self.t == 5, np.zeros(self.n, bool), {}


def trainer(seed=0, **changed):
    teacher = changed.pop("teacher", None)
    hyper = Hyper(**{**{f: getattr(HYPER, f) for f in Hyper.__struct_fields__}, **changed})
    return Trainer(Signs(), initialise(SPEC, np.random.default_rng(seed)), hyper, seed=seed, teacher=teacher)


def trained(**changed):
    made = trainer(**changed)
    while made.progress.frames < made.hyper.frames:
        made.advance()
    return made


def boards():
    return np.eye(3, dtype=np.uint8)[:, None, None, :].repeat(4, 1).repeat(4, 2)


@pytest.mark.parametrize("meaning", ["agreement", "regret"])
@pytest.mark.parametrize("detached", [False, True])
def test_every_exit_learns_and_knows_that_it_agrees(detached, meaning):
    made = trained(detached=detached, meaning=meaning)
    heads = forward(made.net.params(), boards())
    for head in heads.values():
        assert head[:, :-1].argmax(1).tolist() == [0, 1, 2]
    assert (heads[0][:, -1] > 0).all()


def test_the_trunk_learns_bit_for_bit_the_same_with_detached_exits_as_with_none():
    """What makes a detached run its own baseline without exits, however large the exits' gradients are."""
    pulls = ({"exit_weight": 50}, {"exit_weight": 0, "confidence_from": 1.0})
    runs = [trained(detached=True, **pull) for pull in pulls]
    mine, theirs = (strip_exits(run.net.params()).flat for run in runs)
    np.testing.assert_array_equal(mine, theirs)


def test_confidence_can_wait():
    made = trainer(confidence_from=1.0)
    while made.progress.frames < 1000:
        made.advance()
    fresh = trainer().net.params()
    np.testing.assert_array_equal(made.net.params().views["h0.out.w"][:, -1], fresh.views["h0.out.w"][:, -1])


def test_a_student_learns_from_the_teacher_alone():
    teacher = trained().slow.params()
    made = trained(teacher=teacher, seed=1)
    wanted = forward(teacher, boards())[1][:, :-1]
    for head in forward(made.net.params(), boards()).values():
        assert head[:, :-1].argmax(1).tolist() == wanted.argmax(1).tolist()
        np.testing.assert_allclose(head[:, :-1], wanted, atol=0.3)


def test_frozen_only_early_heads_learn():
    teacher = trained().slow.params()
    begun = teacher.copy()
    for part in ("w", "b"):
        begun.views[f"h0.out.{part}"][:] = 0
    hyper = Hyper(**{**{f: getattr(HYPER, f) for f in Hyper.__struct_fields__}, "frozen": True})
    made = Trainer(Signs(), begun, hyper, seed=1, teacher=teacher)
    while made.progress.frames < hyper.frames:
        made.advance()
    for params in (made.net.params(), made.slow.params()):
        np.testing.assert_array_equal(strip_exits(params).flat, strip_exits(teacher).flat)
    first = forward(made.net.params(), boards())[0]
    assert first[:, :-1].argmax(1).tolist() == [0, 1, 2]
    assert (first[:, -1] > 0).all()


def test_heads_begin_at_the_level_of_the_teachers_values():
    teacher = trained().slow.params()
    teacher.views["h1.out.b"][:-1] += 50
    made = trainer(teacher=teacher, seed=1, value_weight=0.0)
    while made.progress.updates < 1:
        made.advance()
    for head in forward(made.net.params(), boards()).values():
        np.testing.assert_allclose(head[:, :-1].mean(0), forward(teacher, boards())[1][:, :-1].mean(0), atol=2)


def test_random_actions_are_held_and_end_with_the_episode():
    made = trainer(hold_max=4)
    greedy_action, said = np.full(8, 7), []
    for _ in range(400):
        made._resets = np.zeros(8, bool)
        said.append(made._explored(greedy_action, 0.05))
    random = np.array(said) != 7
    assert 0.05 < random.mean() < 0.2  # starts at one frame in twenty, 2.5 frames long on average
    made._held[:], made._resets = 3, np.ones(8, bool)
    assert (made._explored(greedy_action, 0.0) == 7).all()
    alone = trainer(hold_max=1)
    begun = np.array([alone._explored(greedy_action, 0.05) != 7 for _ in range(400)])
    assert 0.03 < begun.mean() < 0.07


def test_resume_keeps_network_optimiser_and_place(tmp_path):
    made = trainer()
    for _ in range(100):
        made.advance()
    made.keep_if_best(Score(1.0, 0.1))
    made.save(tmp_path / "c.pt")
    other = trainer(seed=5)
    other.resume(tmp_path / "c.pt")
    assert other.progress == made.progress
    for mine, theirs in ((made.net, other.net), (made.slow, other.slow)):
        np.testing.assert_array_equal(mine.params().flat, theirs.params().flat)
    np.testing.assert_array_equal(made.best.flat, other.best.flat)
    while other.progress.updates < made.progress.updates + 5:
        other.advance()
    assert not np.array_equal(made.net.params().flat, other.net.params().flat)


def test_a_torn_checkpoint_is_named(tmp_path):
    made = trainer()
    made.save(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:500])
    with pytest.raises(UsageError, match=r"c\.pt"):
        trainer().resume(tmp_path / "c.pt")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}."])
def test_a_checkpoint_that_is_none_is_named(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"c\.pt"):
        trainer().resume(tmp_path / "c.pt")


def test_a_checkpoint_of_another_environment_is_refused(tmp_path):
    made = trainer()
    made._env_id = "Other-v0"
    made.save(tmp_path / "c.pt")
    with pytest.raises(UsageError, match="Other-v0"):
        trainer().resume(tmp_path / "c.pt")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    made = trainer()
    made.save(tmp_path / "c.pt")
    before = (tmp_path / "c.pt").read_bytes()

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match="free some space"):
        made.save(tmp_path / "c.pt")
    assert (tmp_path / "c.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops():
    made = trainer()
    for _ in range(50):
        made.collect()
    made._replay.reward[:] = np.inf
    with pytest.raises(UsageError, match=r"loss is (inf|nan)"):
        made.update()


def test_the_best_network_is_kept():
    made = trainer()
    assert made.keep_if_best(Score(1.0, 0.0))
    first = made.best.flat.copy()
    for _ in range(100):
        made.advance()
    assert not made.keep_if_best(Score(0.5, 0.0))
    np.testing.assert_array_equal(made.best.flat, first)
    assert made.keep_if_best(Score(1.0, 0.0)), "of equals the later, which has learnt longer"


def test_every_environment_plays_equally_many_episodes():
    returns = play(Signs(4), lambda obs: obs[:, 0, 0].argmax(1), 10, seed=3)
    assert len(returns) == 12 and set(returns) == {5.0}


def test_greedy_follows_the_chosen_exit():
    params = initialise(SPEC, np.random.default_rng(3))
    for k in (0, 1):
        wanted = forward(params, boards())[k][:, :-1].argmax(1)
        assert greedy(params, exit_=k)(boards()).tolist() == wanted.tolist()


def test_score_is_mean_and_standard_error():
    assert score([1.0, 3.0]) == Score(2.0, 1.0)


def test_a_resumed_curve_forgets_what_was_lost(tmp_path):
    curve = Curve(tmp_path / "curve.csv", 0)
    for frames in (100, 200, 300):
        curve.add(frames=frames, return_mean=1.5)
    assert [row["frames"] for row in Curve(tmp_path / "curve.csv", 200).rows()] == ["100", "200"]
