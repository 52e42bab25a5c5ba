from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from edgert.programs import soak


def test_growth_is_between_the_second_and_the_last_quarter() -> None:
    filling = [1.0, 5.0, 9.0]
    assert soak.growth_mb([*filling, 10, 10, 10, 10, 10, 10, 10, 10, 10]) == 0
    assert soak.growth_mb([float(i) for i in range(16)]) == 8.0
    assert soak.growth_mb([10.0] * 15 + [900.0]) == 0, "one look is not a trend"


def test_few_samples_say_nothing() -> None:
    assert soak.growth_mb([1.0] * 7) is None


def test_deeds_are_counted_in_hours_of_the_nominal_pace() -> None:
    found = soak.hours({"decisions": 72_000, "checkpoints": 24, "looks at the sensors": 3600}, 20.0)
    assert found == {"decisions": 1.0, "checkpoints": 2.0, "looks at the sensors": 1.0}


def test_each_deed_that_is_counted_has_a_nominal_pace() -> None:
    done = dict.fromkeys(soak.NOMINAL_S, 3600)
    assert set(soak.hours(done, 20.0)) == set(soak.NOMINAL_S)
    assert soak.hours(done, 20.0)["midnights"] == 86_400.0


def test_what_ended_is_shown_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    whole = document(supervisor=0.0, actor=0.0, trainer=0.0)
    whole |= {"game": "g", "minutes": 31.0, "clock_h": 48.0, "machine": "m", "done": {"midnights": 2}, "load": 3.0}
    whole |= {"hours": {"midnights": 48.0}, "gradient_steps": 1, "answers": 2, "generation": 3}
    whole |= {"own_mb": {"trainer": [1.0]}, "ends": [{"at_min": 3.5, "name": "child-hung", "role": "trainer"}]}
    whole["growth_mb"]["trainer"] = None
    soak.show(whole)
    told = capsys.readouterr().out
    assert "by its own clock 48 hours" in told and "at_min 3.5, name child-hung, role trainer" in told
    assert told.endswith("NOT FLAT\n")


def document(**growth: float | None) -> dict[str, Any]:
    return {"growth_mb": growth, "processes": dict.fromkeys(growth, 1)}


@pytest.mark.parametrize(
    ("growth", "wanted"),
    [
        ({"supervisor": 0.0, "actor": 1.9, "trainer": -3.0, "world": 50.0}, True),
        ({"supervisor": 0.0, "actor": 2.1, "trainer": 0.0}, False),
        ({"supervisor": None, "actor": 0.0, "trainer": 0.0}, False),
        ({"supervisor": 0.0, "actor": 0.0}, False),
    ],
)
def test_flat_means_that_no_process_of_the_device_grew(growth: dict[str, float | None], wanted: bool) -> None:
    assert soak.flat(document(**growth)) is wanted


def test_a_process_that_was_started_again_hides_its_growth() -> None:
    found = document(supervisor=0.0, actor=0.0, trainer=0.0)
    found["processes"]["trainer"] = 2
    assert not soak.flat(found)


def test_what_a_process_holds_for_itself_is_read_from_the_kernel() -> None:
    before = soak.own_mb(os.getpid())
    with mmap.mmap(-1, 30_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:  # new pages, not freed ones
        held.write(b"x" * len(held))
        after = soak.own_mb(os.getpid())
    assert before is not None and after is not None
    assert after - before > 20
    assert soak.own_mb(2**22 + 1) is None
