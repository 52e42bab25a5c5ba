"""Bad policies, each as bad as it would come: whatever gets past the supervisor is refused by the actor's loader.

`tests/fleet/test_policies.py` has those that the supervisor refuses, `tests/test_guard.py` those that only show while
they act.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgert import bundle, wire
from edgert.errors import MessageError
from edgert.fleet import trust
from edgert.programs.loader import Loader, Prepared
from edgert.values import Swap

DATA = (Path(__file__).parents[2] / "models" / "breakout.edgert").read_bytes()
FOUND = bundle.read(DATA)


def with_member(name: str, content: bytes) -> bytes:
    return bundle.write(FOUND.manifest, {**FOUND.members, name: content}, FOUND.unknown)


def floats(name: str) -> np.ndarray:
    return np.frombuffer(FOUND.members[name], "<f4").copy()


def broken(name: str, value: float) -> bytes:
    array = floats(name)
    array[len(array) // 2] = value
    return with_member(name, array.tobytes())


def flipped() -> bytes:
    data = bytearray(DATA)
    at = data.index(FOUND.members["policy.onnx"][:64])
    data[at + len(FOUND.members["policy.onnx"]) // 2] ^= 1
    return bytes(data)


CORPUS: dict[str, Callable[[], bytes]] = {
    "NaN among the parameters": lambda: broken("params.f32", np.nan),
    "NaN among the golden answers": lambda: broken("golden.head", np.nan),
    "it answers otherwise than it says": lambda: with_member("golden.head", (floats("golden.head") + 3.0).tobytes()),
    "no graph": lambda: with_member("policy.onnx", b"graph"),
    "too few parameters": lambda: with_member("params.f32", FOUND.members["params.f32"][:-4]),
    "a bit was flipped": flipped,
    "torn": lambda: DATA[: len(DATA) // 2],
    "it lets any answer pass": lambda: bundle.write(
        msgspec.structs.replace(FOUND.manifest, golden=bundle.Golden(FOUND.manifest.golden.count, 1e9)), FOUND.members
    ),
}


@pytest.mark.parametrize("bad", CORPUS)
def test_a_bad_policy_is_refused_before_it_acts(tmp_path: Path, until: Callable[..., None], bad: str) -> None:
    data = CORPUS[bad]()
    path = tmp_path / "bad.edgert"
    path.write_bytes(data)
    loader = Loader(bundle.schema_hash(FOUND.manifest), len(FOUND.manifest.exits), "numpy", tmp_path / "none.json")
    loader.start()
    loader.ask(Swap(1_000_000_001, str(path), hashlib.sha256(data).hexdigest()))
    until(lambda: loader.done.qsize(), "the loader")
    made: Prepared = loader.done.get_nowait()
    assert made.runtime is None and made.why.startswith("ArtifactError"), made.why


def test_one_that_is_too_big_for_any_board_is_not_even_an_offer() -> None:
    offer = wire.PolicyOffer(
        id="r", name="n", sha256="0" * 64, size_bytes=1, chunk_bytes=4096, hashes=bytes(16), version=1
    )
    huge = wire.encode(msgspec.structs.replace(offer, size_bytes=(1 << 28) + 1))
    with pytest.raises(MessageError):
        wire.decode(huge, wire.PolicyOffer)
    told = trust.read_offer(huge)
    assert isinstance(told, trust.Refusal) and told.code == "unreadable"
