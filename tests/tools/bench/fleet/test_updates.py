from __future__ import annotations

import pytest

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: nothing was signed")
from tools.bench.fleet import updates


def test_every_device_takes_it_up_once_within_its_budget() -> None:
    told = updates.run(devices=6, loss=0.3, kill=0.05, seed=3)
    assert told["kept"] == 6 and told["held"] == told["duplicate_effects"] == 0
    assert told["power_cuts"] > 0 and told["lost_messages_frac"] > 0.1
    assert 1 < told["bytes_ratio_mean"] <= told["bytes_ratio_max"] < 1.05


def test_the_same_seed_gives_the_same_figures_but_for_what_is_signed() -> None:
    one, two = (updates.run(devices=2, loss=0.2, kill=0.01, seed=7) for _ in range(2))
    assert one["power_cuts"] == two["power_cuts"] and one["kept"] == two["kept"] == 2
