"""Jobs as files and messages: what goes out comes back, and nothing else is believed."""

from __future__ import annotations

import zlib
from pathlib import Path

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.errors import ArtifactError, MessageError, StoreError
from edgert.fleet import fetch
from edgert.learn.dqn import Batch, Losses
from edgert.learn.split import Passed, Returned, Rows
from edgert.ports import shards

RNG = np.random.default_rng(1)


def batch(n: int) -> Batch:
    obs = RNG.integers(0, 2, (n, 4, 4, 2), dtype=np.uint8)
    q = RNG.normal(size=(n, 3)).astype(np.float32)
    ends = RNG.random(n) < 0.2
    return Batch(obs, RNG.integers(0, 3, n), np.ones(n, np.float32), obs[::-1].copy(), ends, q, np.ones(n, bool))


def equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


def test_a_shard_comes_back() -> None:
    made = batch(40)
    assert equal(shards.unpack_shard(shards.pack_shard(made)), made)


@pytest.mark.parametrize(
    "change",
    [
        {"action": np.full(40, 3)},
        {"action": np.full(40, -1)},
        {"reward": np.full(40, np.nan, np.float32)},
        {"reward": np.ones(39, np.float32)},
        {"teacher_q": np.full((40, 3), np.inf, np.float32)},
        {"next_obs": np.zeros((40, 4, 4, 3), np.uint8)},
    ],
)
def test_a_shard_that_does_not_fit_itself_is_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ArtifactError):
        shards.unpack_shard(shards.pack_shard(batch(40)._replace(**change)))


@given(st.binary(max_size=60))
def test_anything_else_is_no_shard_and_no_state(data: bytes) -> None:
    for read in (shards.unpack_shard, shards.unpack_state):
        with pytest.raises(ArtifactError):
            read(data)
    with pytest.raises(MessageError):
        shards.unpack_said(data)


@pytest.mark.parametrize("data", [b"\xc1\xfb\x7f\xd0" + b"\x00" * 6, b"\x81" * 100_000], ids=["no-date", "too-deep"])
def test_what_the_library_chokes_on_is_refused_like_anything_else(data: bytes) -> None:
    with pytest.raises(MessageError):
        shards.unpack_said(data)
    with pytest.raises(ArtifactError):
        shards.unpack_shard(zlib.compress(data))


def test_a_file_that_unpacks_beyond_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_BYTES", 1000)
    with pytest.raises(ArtifactError):
        shards.unpack_shard(shards.pack_shard(batch(40)))


def test_shares_hold_every_row_that_may_be_trained_on_once() -> None:
    made = batch(200)
    usable = shards.pick(made, ~shards.held_out(made))
    found = [shards.unpack_shard(data) for data in shards.shares(made, 3)]
    assert sum(len(each.action) for each in found) == len(usable.action) < 200
    assert equal(found[1].obs, usable.obs[1::3])
    assert not any(shards.held_out(each).any() for each in found)


def test_a_state_comes_back() -> None:
    arrays = {"params": RNG.normal(size=9).astype(np.float32), "m": np.zeros(9, np.float32)}
    found, steps = shards.unpack_state(shards.pack_state(arrays, 17))
    assert steps == 17 and all(np.array_equal(found[name], array) for name, array in arrays.items())


ROWS = Rows(
    np.array([0, 1], np.int64),
    np.array([0.5, -1], np.float32),
    np.array([True, False]),
    np.ones((2, 3), np.float32),
    np.array([True, True]),
    8,
    6,
)
X = RNG.normal(size=(2, 5)).astype(np.float32)
SAID = [
    Passed(X, None, None, ROWS),
    Passed(np.zeros((2, 4, 4, 1), np.uint8), X, X + 1, ROWS),
    Returned(X, X[:, 0], np.array([1, 2]), Losses(0.0, 1.0, 2.0, 0.0, 0.5), 3.5),
    Returned(np.empty(0, np.float32), X[:, 0], np.array([1, 2]), Losses(0.0, 0.0, 0.0, 0.0, 0.0), 0.0),
]


@pytest.mark.parametrize("said", SAID)
def test_what_pieces_say_comes_back(said: Passed | Returned) -> None:
    found = shards.unpack_said(shards.pack_said(said))
    assert type(found) is type(said) and equal(found, said)
    assert np.array_equal(shards.unpack_said(shards.pack_said(X)), X)


def test_arrays_of_another_kind_are_refused() -> None:
    for wrong in (
        ["passed", [[b"1234", "f4", [2]], *[shards.NOTHING] * 2], [], 1, 1],
        ["sum", [b"", "O", [0]]],
        ["x", 1],
    ):
        with pytest.raises(MessageError):
            shards.unpack_said(cbor2.dumps(wrong))


@given(data=st.binary(min_size=1, max_size=300), size=st.integers(1, 50), order=st.randoms())
def test_parcels_in_any_order_and_number_make_the_whole_once(data: bytes, size: int, order: object) -> None:
    sent = shards.parcels("ahead", 0, 1, 3, data, micro=2, size_bytes=size)
    assert max(len(each.data) for each in sent) <= size
    shuffled = [*sent, sent[0]] if len(sent) > 1 else list(sent)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    unpacking = shards.Unpacking()
    found = [whole for whole in map(unpacking.add, shuffled) if whole is not None]
    assert found[0] == shards.Whole("ahead", 0, 3, 2, data)
    assert len(found) == 1


def test_what_never_becomes_whole_is_forgotten() -> None:
    unpacking = shards.Unpacking(most_bytes=100)
    for step in range(9):
        first, *_ = shards.parcels("sum", 0, 1, step, bytes(120), size_bytes=60)
        assert unpacking.add(first) is None
    assert unpacking.waiting <= 100
    assert unpacking.add(shards.Parcel(kind="sum", of=0, to=1, step=0, index=5, count=2)) is None


def test_files_are_offered_and_kept_by_what_they_hold(tmp_path: Path) -> None:
    data = bytes(range(256)) * 300
    offer = shards.offer("shard", data, id_="j1")
    assert fetch.count(offer) == 3
    chunk = cbor2.loads(shards.chunk(data, offer, 2))["data"]
    assert fetch.is_chunk(offer, 2, chunk)
    path = shards.keep(tmp_path / "files", data)
    assert path == shards.keep(tmp_path / "files", data) and path.stem == offer.sha256
    assert shards.read_files([path]) == [data]
    with pytest.raises(StoreError):
        shards.read_files([tmp_path / "none"])
