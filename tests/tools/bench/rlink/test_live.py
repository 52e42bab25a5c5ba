from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgert import bundle, quant
from edgert.config import commented_default
from edgert.policy import artifact
from edgert.ports.process import INSTALLED, Layout, identity
from edgert.ports.ring import TERMINATED, TRUNCATED, RingWriter
from edgert.ports.store import write_atomic
from edgert.values import Note
from tools.bench.rlink import live

MODELS = Path(__file__).parents[4] / "models"
BUNDLE = MODELS / "breakout.edgert"


class Cluster:
    """A device's files, with no device."""

    student = BUNDLE

    def __init__(self, folder: Path) -> None:
        self._config = folder / "edgert.toml"
        settings = {
            "device.id": "d",
            "device.state_dir": str(folder / "state"),
            "device.run_dir": str(folder / "run"),
            "policy.bundle": str(BUNDLE),
        }
        self._config.write_text(commented_default(settings))

    def config(self, name: str) -> Path:
        return self._config


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Any, Layout, RingWriter]:
    watcher = live._Watcher(Cluster(tmp_path), "d", tmp_path / "out")  # type: ignore[arg-type]  # as much as it needs
    watcher._layout.make()
    shape = bundle.read(BUNDLE.read_bytes()).manifest.observation.shape
    return watcher, watcher._layout, RingWriter(watcher._layout.ring, shape, 50, "s")


def append(ring: RingWriter, rewards: list[float], last: int) -> None:
    obs = np.zeros(400, np.uint8)
    for i, reward in enumerate(rewards):
        flags = last if i == len(rewards) - 1 else 0
        ring.append(obs, episode=1, action=0, reward=reward, flags=flags, exit=0)


def acts(layout: Layout, network: Path, generation: int) -> None:
    sha256 = hashlib.sha256(network.read_bytes()).hexdigest()
    write_atomic(layout.acting, msgspec.json.encode(Note(generation, str(network), sha256)))


def grown(path: Path, transitions: int) -> Path:
    """A network that was trained here on so many."""
    policy = artifact.load(BUNDLE.read_bytes())
    provenance = {INSTALLED: identity(policy.manifest), "trained_on_device": {"transitions": transitions}}
    quantized = quant.fit(policy.params, policy.golden_obs)
    path.write_bytes(artifact.derive(policy, policy.params, quantized, created="", provenance=provenance))
    return path


def test_what_the_device_lived_through_is_read_from_its_ring(watched: Any) -> None:
    watcher, _, ring = watched
    assert not watcher.look() and watcher.wall_s == 0
    append(ring, [1.0, 2.0], TERMINATED)
    append(ring, [0.5], 0)
    assert watcher.look() and watcher.seq == 3
    append(ring, [4.0], TRUNCATED)
    assert watcher.look() and not watcher.look()
    assert watcher.episodes == [(2, 3.0), (4, 4.5)]
    assert watcher.pace[0][1] == 3


def test_every_network_that_acts_is_kept_with_the_transition_it_was_made_at(watched: Any, tmp_path: Path) -> None:
    watcher, layout, ring = watched
    assert [copy.transitions for copy in watcher.copies] == [0]
    one, other = grown(tmp_path / "one.edgert", 5), grown(tmp_path / "other.edgert", 8)
    for network, generation in ((one, 1), (one, 1), (other, 2), (one, 1)):
        acts(layout, network, generation)
        append(ring, [1.0] * 5, 0)
        watcher.look()
    # The last one was put back: it acts from when that was seen.
    assert [copy.transitions for copy in watcher.copies] == [0, 5, 8, 20]
    assert [Path(copy.path).read_bytes() for copy in watcher.copies[1:]] == [
        each.read_bytes() for each in (one, other, one)
    ]


def test_the_two_bundles_lie_where_a_cluster_looks_for_them(tmp_path: Path) -> None:
    folder = live.models(tmp_path, "breakout", BUNDLE, MODELS / "breakout-teacher.edgert")
    again = live.models(tmp_path, "breakout", BUNDLE, BUNDLE)
    assert folder == again
    assert (folder / "breakout-teacher.edgert").read_bytes() == BUNDLE.read_bytes()


def test_wire_bytes_are_both_ways(tmp_path: Path) -> None:
    assert live.counted(tmp_path) == {}
    assert live.on_wire({}) == 0 and live.on_wire({"up_wire_bytes": 3, "down_wire_bytes": 4}) == 7
