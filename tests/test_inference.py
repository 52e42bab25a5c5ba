from __future__ import annotations

import msgspec
import pytest

from edgert import wire
from edgert.errors import MessageError
from edgert.inference import REFUSALS, InferAnswer, InferAsk, InferLoad

ASK = {"schema": "infer-ask", "v": 1, "model": "0" * 16, "rows": 1, "data": b"x", "left_s": 1.0}


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", "0" * 15), ("model", "G" * 16), ("rows", 257), ("rows", -1), ("left_s", float("nan")), ("left_s", -1.0)],
)
def test_a_question_that_makes_no_sense_is_not_decoded(key, value):
    import cbor2

    wire.decode(cbor2.dumps(ASK), InferAsk)
    with pytest.raises(MessageError):
        wire.decode(cbor2.dumps(ASK | {key: value}), InferAsk)


def test_a_refusal_that_nobody_knows_is_not_decoded():
    said = msgspec.to_builtins(InferAnswer(model="0" * 16, rows=0, data=b"", error="busy"), builtin_types=(bytes,))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(said | {"error": "bored"}, InferAnswer)
    assert "" not in REFUSALS and "busy" in REFUSALS


def test_a_load_of_nobody_is_bounded():
    said = msgspec.to_builtins(InferLoad(place="edge", accepts=True))
    for key, value in (("cpu_frac", 1.5), ("every_s", 0.0), ("models", [{"id": "0" * 16, "name": "n"}] * 65)):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(said | {key: value}, InferLoad)
