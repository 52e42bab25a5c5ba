from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from edgert.values import Operating
from tools.bench.rapidrl import choice
from tools.bench.rapidrl.evaluation import Book, Note, Record
from tools.bench.rapidrl.policies import Policy

NUMBERS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=2, max_size=30)


@given(NUMBERS)
def test_auroc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, int]]) -> None:
    score, wrong = np.array([float(each[0]) for each in pairs]), np.array([each[1] > 2 for each in pairs])
    both = [(good, bad) for good in score[~wrong] for bad in score[wrong]]
    wanted = sum((good > bad) + (good == bad) / 2 for good, bad in both) / len(both) if both else None
    assert choice.auroc(score, wrong) == (None if wanted is None else pytest.approx(wanted))


@given(NUMBERS)
def test_no_order_beats_that_of_the_regrets(pairs: list[tuple[int, int]]) -> None:
    score, regret = (np.array([float(each[i]) for each in pairs]) for i in (0, 1))
    found, best = choice.left(score, regret), choice.left(-regret, regret)
    assert (found >= best - 1e-12).all()
    assert found[0] == pytest.approx(regret.mean())
    assert found[-1] == pytest.approx(0, abs=1e-12)
    if regret.min() < regret.max():
        assert choice.avoided(-regret, regret) == pytest.approx(1)
        assert choice.avoided(regret, regret) == pytest.approx(-1)
    else:
        assert choice.avoided(score, regret) is None


def test_a_useless_score_avoids_nothing() -> None:
    rng = np.random.default_rng(0)
    regret = rng.exponential(size=20_000)
    found = choice.ranking(rng.normal(size=20_000), regret, regret > 1)
    assert found["auroc"] == pytest.approx(0.5, abs=0.02)
    assert found["avoided"] == pytest.approx(0, abs=0.03)
    assert found["avoided_at_0.1"] == pytest.approx(0.1, abs=0.02)


def record(returns: list[float], deep: int) -> Record:
    return Record(
        key="", policy=Policy(role="exits", operating=Operating((0.5,))), costs=[1, 4], returns=returns,
        exit_ticks=[[100 - deep, deep]] * len(returns), held_ticks=[0] * len(returns),
    )  # fmt: skip


def test_gains_are_paired_by_episode_and_normalised() -> None:
    scores = {"auroc": 0.8, "avoided": 0.6, "avoided_at_0.1": 0.4, "avoided_at_0.25": 0.7}
    books = {}
    for seed in range(3):
        base = np.random.default_rng(seed).normal(10, 5, 40)
        books[seed] = Book(
            records={
                "random": record([0.0], 0),
                "full-int8": record([20.0], 0),
                "choice judged@0.1": record((base + 2).tolist(), 10),
                "choice chance@0.1": record(base.tolist(), 9),
            },
            notes={"choice": Note("", {"judged": scores, "chance": {**scores, "auroc": None}})},
        )
    found = choice.document(books, np.random.default_rng(0), draws=50)
    gain = found["over_chance"]["judged@0.1"]
    assert (gain["gain"], gain["gain_ci"], gain["episodes"]) == (0.1, [0.1, 0.1], 120)
    assert gain["last_exit_share"] == [0.1, 0.09]
    assert list(found["over_chance"]) == ["judged@0.1"]
    assert found["order"]["judged"]["avoided"] == 0.6
    assert found["order"]["chance"]["auroc"] is None
    assert choice.document({}, np.random.default_rng(0)) == {"order": {}, "over_chance": {}}
