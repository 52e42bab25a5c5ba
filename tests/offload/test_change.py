from __future__ import annotations

import numpy as np
import pytest

from edgert.offload.change import Cusum


def feed(cusum: Cusum, values: list[float]) -> int | None:
    for at, value in enumerate(values):
        if cusum.feed(np.array([value]))[0]:
            return at
    return None


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_jump_is_found_within_a_few_requests(sign: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cusum = Cusum(1)
        feed(cusum, rng.standard_normal(50).tolist())
        assert (feed(cusum, (sign * (3 + rng.standard_normal(10))).tolist()) or 0) < 9


def test_noise_alone_seldom_raises_an_alarm() -> None:
    assert feed(Cusum(1), np.random.default_rng(1).standard_normal(5000).tolist()) is None


def test_one_answer_that_was_lost_is_no_change() -> None:
    assert feed(Cusum(1), [0.0, 500.0, 0.0, 0.0]) is None


def test_a_stream_without_news_keeps_its_suspicion() -> None:
    cusum = Cusum(2)
    cusum.feed(np.array([3.0, np.nan]))
    before = cusum.up.copy()
    cusum.feed(np.array([np.nan, 1.0]))
    assert cusum.up[0] == before[0]


def test_an_alarm_begins_anew() -> None:
    cusum = Cusum(1)
    assert feed(cusum, [9.0] * 5) is not None
    assert cusum.up[0] < 9.0
