from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.ports.plant import Fault, Plant, Shown, read_frame
from edgert.ports.plant.local import LocalPlant
from edgert.ports.plant.simulated import SimulatedPlant

SHAPE = (2, 3, 2)
WAIT_S = 10.0  # generous: passed only when something is broken


@pytest.fixture
def path() -> Iterator[Path]:
    # Not tmp_path: its name can be longer than a socket's address may be.
    directory = Path(tempfile.mkdtemp(dir="/tmp"))
    yield directory / "s"
    shutil.rmtree(directory)


def request(value: int = 0, **changes: object) -> dict[str, object]:
    frame = {"obs": bytes([value]) * 12, "shape": list(SHAPE), "dtype": "uint8", "reward": 0.5}
    return {**frame, "terminated": False, "truncated": False, **changes}


FAULTY = [
    ({"obs": b"short"}, "observation-shape"),
    ({"shape": [2, 3, 3]}, "observation-shape"),
    ({"shape": [12]}, "observation-shape"),
    ({"shape": [2, 3, 2, 1]}, "observation-shape"),
    ({"shape": ["2", 3, 2]}, "observation-shape"),
    ({"shape": [10**5000]}, "observation-shape"),
    ({"shape": [2, 3, 10**5000]}, "observation-shape"),
    ({"shape": [2, 3, -(10**5000)]}, "observation-shape"),
    ({"shape": [2.0, 3, 2]}, "observation-shape"),
    ({"shape": [2, True, 2]}, "observation-shape"),
    ({"shape": [[10**5000], 3, 2]}, "observation-shape"),
    ({"reward": 10**5000}, "reward-not-finite"),
    ({"dtype": "float32"}, "observation-dtype"),
    ({"dtype": "bool"}, "observation-dtype"),
    ({"reward": math.nan}, "reward-not-finite"),
    ({"reward": -math.inf}, "reward-not-finite"),
    ({"reward": 1e300}, "reward-not-finite"),
    ({"reward": 10**400}, "reward-not-finite"),
    ({"reward": "1"}, "malformed-frame"),
    ({"reward": True}, "malformed-frame"),
    ({"obs": "text"}, "malformed-frame"),
    ({"shape": 12}, "malformed-frame"),
    ({"dtype": None}, "malformed-frame"),
    ({"terminated": 1}, "malformed-frame"),
    ({"truncated": None}, "malformed-frame"),
]


@pytest.mark.parametrize(("changes", "name"), FAULTY)
def test_each_fault_has_its_name(changes: dict[str, object], name: str) -> None:
    fault = read_frame(request(**changes), SHAPE)
    assert isinstance(fault, Fault) and fault.name == name and fault.detail


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "obs": st.binary(min_size=12, max_size=12) | st.integers(),
            "shape": st.just([2, 3, 2]) | st.lists(st.integers() | st.text(), max_size=4),
            "dtype": st.sampled_from(["uint8", "int8"]) | st.none(),
            "reward": st.floats() | st.integers() | st.text(),
            "terminated": st.booleans() | st.none(),
            "truncated": st.booleans(),
        },
    )
)
def test_a_frame_is_sound_or_a_named_fault(frame: dict[str, object]) -> None:
    shown = read_frame(frame, SHAPE)
    if isinstance(shown, Shown):
        assert shown.obs.shape == SHAPE and shown.obs.dtype == np.uint8 and shown.obs.tobytes() == frame["obs"]
        assert math.isfinite(shown.reward) and np.isfinite(np.float32(shown.reward))
        assert (shown.terminated, shown.truncated) == (frame["terminated"], frame["truncated"])


def test_both_plants_meet_the_protocol(path: Path) -> None:
    plants: list[Plant] = [SimulatedPlant(path, SHAPE), LocalPlant(path, SHAPE, 3)]
    assert [plant.paced for plant in plants] == [True, False]
    for plant in plants:
        assert plant.observe(0.0) is None
        plant.apply(0, exit=0, confidence=None, generation=0)  # nobody there to be told: nothing happens
        plant.close()
