"""The bytes benchmark: everybody gets the same content, and the summary keeps the worst."""

from __future__ import annotations

import numpy as np
import pytest

from edgert.knowledge.stream import Transitions
from tools.bench.rlink import codec


def made_up(n: int = 96) -> codec.Rollout:
    obs = np.zeros((n, 10, 10, 3), np.uint8)
    obs[np.arange(n), np.arange(n) % 10, 4, 1] = 1
    actions = (np.arange(n) // 5 % 3).astype(np.uint8)
    steps = Transitions(obs, actions, np.zeros(n, np.float32), np.zeros(n, np.uint8))
    return codec.Rollout("MinAtar/MadeUp-v1", steps, np.ones((n, 3), np.float32), "nobody")


@pytest.mark.parametrize("batch", codec.BATCHES)
def test_messages_hold_every_whole_batch_once(batch):
    rollout = made_up()
    raws = list(codec.messages(rollout, batch))
    assert len(raws) == 96 // batch
    assert b"".join(raw.steps.obs.tobytes() for raw in raws) == rollout.steps.obs.tobytes()
    assert sum(len(raw.whole) for raw in raws) == 96 * (300 + 6)


def test_the_race_is_run_and_summed_up():
    rollout = made_up()
    found = codec.race(rollout, 32, slow=False)
    assert {len(coded.sizes) for coded in found.values()} == {2}
    one = codec.figures(rollout, 32, found)
    assert one["vs_zstd9_stream_x"] == pytest.approx(
        one["coders"][codec.ZSTD9]["bytes_per_step"] / one["coders"][codec.OURS]["bytes_per_step"], abs=0.01
    )
    better = {**one, "task": "ALE/MadeUp-v5", "vs_zstd3_x": one["vs_zstd3_x"] + 1}
    summary = codec.summarise([one, better], {rollout.task: codec.answers(rollout) or 0.0})
    assert summary["codec_vs_zstd3_min_x"] == one["vs_zstd3_x"]
    assert summary["codec_encode_us_max"] == one["coders"][codec.OURS]["encode_us_p50"]
    assert summary["wire_bytes_per_transition"] > 2 * codec.WIRE_BYTES / 32


@pytest.mark.parametrize("batch", codec.BATCHES)
def test_a_film_of_the_newest_frames_is_raced_and_comes_back_whole(batch):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (12, 1, 1), np.uint8), 84, 1).repeat(84, 2)
    frames[:, 10:20, 30:40] = rng.integers(0, 256, (12, 10, 10), np.uint8)
    obs = np.stack([np.roll(frames, 3 - i, 0) for i in range(4)], -1).repeat(8, 0)
    n = len(obs)
    steps = Transitions(obs, np.zeros(n, np.uint8), np.ones(n, np.float32), np.zeros(n, np.uint8))
    rollout = codec.Rollout("ALE/MadeUp-v5", steps, None, "nobody")
    encode, decode = codec.x265(obs.shape[1:])
    raws = list(codec.messages(rollout, batch))
    sent = [encode(raw) for raw in raws]
    for data, raw in zip(sent, raws, strict=True):
        decode(data, raw)
    assert 6 * n < sum(map(len, sent)) < sum(len(raw.once) for raw in raws) / 2
    wrong = raws[0]._replace(steps=raws[0].steps._replace(obs=raws[0].steps.obs ^ 1))
    encode, decode = codec.x265(obs.shape[1:])
    with pytest.raises(AssertionError, match="lost"):
        decode(encode(raws[0]), wrong)
