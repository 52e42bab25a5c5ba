"""What the words about placed jobs may say; `test_wire` has their bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edgert import wire
from edgert.errors import MessageError

SUBMIT = wire.PlaceSubmit(id="j1", steps=10)
WORK = wire.PlaceWork(job="j1", attempt=1, part=0, order={}, files=(), hosts=("a",))
STATE = wire.PlaceState(job="j1", attempt=1, part=0, state="ready")
DATA = wire.PlaceData(job="j1", attempt=1, kind="ahead", of=0, to=1, step=3)


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (SUBMIT, {"id": "../j1"}),
        (SUBMIT, {"steps": 0}),
        (SUBMIT, {"batch": 0}),
        (SUBMIT, {"split": "half"}),
        (SUBMIT, {"due_s": 0.0}),
        (SUBMIT, {"hyper": {"gamma": "much"}}),
        (WORK, {"hosts": ()}),
        (WORK, {"hosts": ("a/b",)}),
        (WORK, {"part": 64}),
        (STATE, {"state": "asleep"}),
        (STATE, {"attempt": -1}),
        (DATA, {"kind": "aside"}),
        (DATA, {"to": -2}),
        (DATA, {"count": 0}),
        (wire.PlaceGone(session=1), {"session": -1}),
        (wire.PlaceJob(id="j1", owner="a", state="done"), {"owner": ""}),
    ],
)
def test_what_cannot_be_is_not_read(message: Any, changed: dict[str, Any]) -> None:
    wire.decode(wire.encode(message), type(message))
    with pytest.raises(MessageError):
        wire.decode(wire.encode(msgspec.structs.replace(message, **changed)), type(message))
