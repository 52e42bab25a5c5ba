from __future__ import annotations

from pathlib import Path

import pytest

from edgert import modelfile, wire
from edgert.errors import ArtifactError, ConfigError
from edgert.fleet import trust
from edgert.ports.signing import new_signer
from edgert.ports.variants import read_variant

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits-0.25-early-int8.edgert"


def test_a_bundle_is_known_before_it_is_opened():
    variant = read_variant(DIGITS)
    assert variant.id == modelfile.model_id(modelfile.read(DIGITS.read_bytes()).encoded)
    assert variant.manifest.name == DIGITS.stem and variant.open().manifest == variant.manifest


def test_a_policy_is_a_variant_as_well():
    variant = read_variant(MODELS / "breakout.edgert", "numpy")
    assert variant.manifest.task == "breakout" and variant.open().runtime == "numpy"


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.edgert"):
        read_variant(tmp_path / "none.edgert")
    broken = tmp_path / "broken.edgert"
    broken.write_bytes(DIGITS.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"broken\.edgert"):
        read_variant(broken)


def test_what_nobody_vouches_for_is_refused_where_that_is_wanted():
    keys = wire.KeyList(serial=1, keys=())
    with pytest.raises(ConfigError, match="unsigned"):
        read_variant(DIGITS, keys=keys, required=True)
    assert read_variant(DIGITS, keys=keys).manifest.task == "digits"


def signed(path, signer, **terms):
    release = trust.Release(version=1, **terms)
    data = DIGITS.read_bytes()
    signature = signer.seal(modelfile.read(data).encoded, release)
    path.write_bytes(
        modelfile.with_signature(data, trust.encode_seal(trust.Seal(release=release, signatures=(signature,))))
    )
    return path


def test_what_is_vouched_for_is_taken_and_a_strangers_word_is_not(tmp_path):
    pytest.importorskip("cryptography")
    ours, stranger = new_signer(), new_signer()
    keys = wire.KeyList(serial=1, keys=(wire.Key(id=ours.id, public=ours.public, uses=("bundle",)),))
    path = signed(tmp_path / "m.edgert", ours)
    assert read_variant(path, keys=keys, required=True).id == read_variant(DIGITS).id
    # Terms that name robots are about acting, which a model does not.
    assert read_variant(signed(path, ours, robots=("arm",)), keys=keys, required=True).manifest.task == "digits"
    with pytest.raises(ConfigError, match="unknown-key"):
        read_variant(signed(path, stranger), keys=keys, required=True)
    with pytest.raises(ConfigError, match="expired"):
        read_variant(signed(path, ours, not_after_s=1.0), keys=keys, required=True)
