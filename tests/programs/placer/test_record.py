from __future__ import annotations

import msgspec

from edgert.programs.placer.record import Record


def test_a_record_is_read_again_and_so_is_one_that_knows_less() -> None:
    record = Record(id="j", steps=9, batch=4, checkpoint_steps=3, install=True, generation=7, nodes=("a",))
    written = msgspec.json.encode(record)
    assert msgspec.json.decode(written, type=Record) == record
    older = {key: value for key, value in msgspec.json.decode(written).items() if key not in ("install", "generation")}
    assert not msgspec.json.decode(msgspec.json.encode(older), type=Record).install
