"""The loader's thread: what it hands over is sound and warm, and whatever it refuses it says why and goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from edgert import bundle
from edgert.policy import artifact
from edgert.programs.loader import Loader, Prepared
from edgert.values import Swap

BUNDLE = Path(__file__).parents[2] / "models" / "breakout.edgert"
DATA = BUNDLE.read_bytes()
MANIFEST = bundle.read(DATA).manifest


@pytest.fixture
def prepare(tmp_path: Path, until: Callable[..., None]) -> Callable[[Swap], Prepared]:
    """Has a running loader for networks like the shipped one prepare a swap."""
    loader = Loader(bundle.schema_hash(MANIFEST), 3, "numpy", tmp_path / "runtime.json")
    loader.start()

    def ask(swap: Swap) -> Prepared:
        loader.ask(swap)
        until(lambda: loader.done.qsize(), "the loader")
        return loader.done.get_nowait()

    return ask


def test_a_sound_network_is_handed_over(prepare: Callable[[Swap], Prepared]) -> None:
    swap = Swap(5, str(BUNDLE), hashlib.sha256(DATA).hexdigest())
    made = prepare(swap)
    assert (made.swap, made.why, made.costs_s) == (swap, "", ())
    assert made.policy is not None and made.policy.manifest == MANIFEST
    assert made.runtime is not None and made.runtime.name == "numpy"


@pytest.mark.parametrize(
    ("data", "sha256", "words"),
    [
        (b"junk", "", "ArtifactError: bundle: not a readable ZIP"),
        (DATA, "0" * 64, "ArtifactError: .*sha256 differs"),
        (None, "", "FileNotFoundError"),
        ((BUNDLE.parent / "space_invaders.edgert").read_bytes(), "", "another observation or action schema"),
        ((BUNDLE.parent / "breakout-teacher.edgert").read_bytes(), "", "has 1 exits, the installed policy 3"),
    ],
)
def test_what_does_not_belong_here_is_refused_with_its_reason(
    prepare: Callable[[Swap], Prepared], tmp_path: Path, data: bytes | None, sha256: str, words: str
) -> None:
    path = tmp_path / "new.edgert"
    if data is not None:
        path.write_bytes(data)
    made = prepare(Swap(5, str(path), sha256))
    assert (made.runtime, made.policy) == (None, None)
    assert re.search(words, made.why)


def test_whatever_breaks_is_a_refusal_and_the_next_one_is_loaded(
    prepare: Callable[[Swap], Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> artifact.Policy:
        raise KeyError("a tensor nobody thought of")

    with monkeypatch.context() as patched:
        patched.setattr(artifact, "load", broken)
        assert prepare(Swap(5, str(BUNDLE), "")).why == "KeyError: 'a tensor nobody thought of'"
    assert prepare(Swap(6, str(BUNDLE), "")).runtime is not None
