from __future__ import annotations

import random
from typing import Any

import cbor2
import pytest

from edgert import bus, guard, wire
from edgert.config import parse
from tools.bench.fleet import fuzz


def test_every_schema_is_bent() -> None:
    kinds = {str(each.__struct_config__.tag): each for each in wire.Message.__args__}
    said = [(topic, cbor2.loads(payload)["schema"], payload) for topic, payload in fuzz.samples(1.8e9)]
    for _, schema, payload in said:
        wire.decode(payload, kinds[schema])
    tested = {cbor2.loads(path.read_bytes())["schema"] for path in fuzz.GOLDEN.glob("*.cbor")}
    assert {schema for _, schema, _ in said} == tested
    config = parse(fuzz.CONFIG, "test")
    for filter_ in guard.subscriptions(config):
        start = filter_.removesuffix("+").removesuffix("+/")
        assert any(topic.startswith(start) for topic, _, _ in said), filter_


def test_what_is_bent_is_often_still_read() -> None:
    rng = random.Random(1)
    topic, payload = fuzz.samples(1.8e9)[0]
    sample = fuzz.Sample(topic, payload, wire.KnowAnswer, fuzz.places({"a": [1, {"b": 2}]}))
    assert sample.ways == [("a",), ("a", 0), ("a", 1), ("a", 1, "b")]
    assert len({fuzz.bent(sample, [sample], rng) for _ in range(500)}) > 300


def test_nothing_crashes_and_the_device_remembers_little() -> None:
    found = fuzz.run(messages=1500)
    assert (found["fuzz_crashes"], found["crashes"]) == (0, {})
    assert found["counted_by_the_device"]["malformed-messages"] > 100
    assert found["refused_by_decoders"] > 100


def test_a_crash_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = guard.step

    def broken(state: Any, event: Any, now_s: float) -> Any:
        if isinstance(event, bus.Received):
            raise KeyError("oh")
        return real(state, event, now_s)

    monkeypatch.setattr(guard, "step", broken)
    found = fuzz.run(messages=60)
    assert found["fuzz_crashes"] > 10
    assert any("oh" in each for each in found["crashes"])
