from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgert import bundle, bus, cli, control, offers
from edgert import device as devices
from edgert.config import Config, commented_default, parse
from edgert.errors import ConfigError
from edgert.fleet import fetch
from edgert.ports.process import Layout
from edgert.programs.deliveries import Deliveries

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: nothing was signed")
MODEL = Path(__file__).parents[2] / "models" / "breakout.edgert"
NO_LINK: Any = None


def config_of(folder: Path, **settings: object) -> Config:
    shutil.copy(MODEL, folder / "p.edgert")
    known = {
        "device.id": "d1",
        "device.state_dir": str(folder),
        "device.run_dir": str(folder),
        "policy.bundle": str(folder / "p.edgert"),
    }
    return parse(commented_default({**known, **{k.replace("__", "."): v for k, v in settings.items()}}), "test")


def deliveries(config: Config) -> Any:
    return contextlib.closing(Deliveries(config, Layout(config), NO_LINK, "pi4"))


def device_of(config: Config) -> devices.Device:
    world = control.open_world(config, task="t", n_exits=3, note=None, streams={"events": ("s", 1, 0)}, now_s=0.0)
    return devices.open_device(world, {}, {}, {}, {}, 0.0)[0]


def keys_in(folder: Path) -> str:
    assert cli.main(["key", "new", "ann", "--keys", str(folder / "keys")]) == cli.OK
    return str(folder / "keys" / "keys.cbor")


def test_a_device_without_keys_is_guarded_by_none(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with deliveries(config) as made:
        guard = made.guard(device_of(config))
        assert guard.policies.keys is None and guard.policies.board == "pi4" and made.fault == ""
        assert guard.policies.needs.n_exits == len(bundle.read(MODEL.read_bytes()).manifest.exits)
        assert made.perform(offers.Note(b"{}"), guard) == [bus.PolicyTold(offers.Noted(True))]
        assert made.events() == [] and made.fileno() >= 0


def test_keys_are_read_from_where_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keys_in(tmp_path)
    config = config_of(tmp_path, trust__keys_file=path)
    with deliveries(config) as made:
        assert made.guard(device_of(config)).policies.keys.serial == 1
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "keys"))
    config = config_of(tmp_path, trust__keys_file="credential:keys.cbor")
    with deliveries(config) as made:
        assert made.guard(device_of(config)).policies.keys.serial == 1
    with pytest.raises(ConfigError, match="cannot be read"):
        deliveries(config_of(tmp_path, trust__keys_file=str(tmp_path / "none")))


def test_where_a_signature_is_required_the_installed_policy_needs_one_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, trust__keys_file=keys_in(tmp_path), trust__require_signed=True)
    with pytest.raises(ConfigError, match="unsigned"):
        deliveries(config)
    words = ["policy", "sign", str(tmp_path / "p.edgert"), "--release", "1", "--keys", str(tmp_path / "keys")]
    assert cli.main(words) == cli.OK
    with deliveries(config) as made:
        assert made.fault == ""
    assert cli.main([*words, "--robot", "leg"]) == cli.OK
    with pytest.raises(ConfigError, match="wrong-robot"):
        deliveries(config)


def test_what_is_remembered_and_cannot_be_read_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "update.json").write_bytes(b"{")
    with deliveries(config) as made:
        made.guard(device_of(config))
        assert "note about the last update" in made.fault


def test_a_bundle_is_judged_by_the_keys_of_the_moment(tmp_path: Path) -> None:
    config = config_of(tmp_path, trust__keys_file=keys_in(tmp_path))
    data = MODEL.read_bytes()
    offer = offers.PolicyOffer(
        id="r",
        name="n",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        chunk_bytes=1 << 18,
        hashes=fetch.hashes(data, 1 << 18),
        version=1,
    )
    with deliveries(config) as made:
        guard = made.guard(device_of(config))
        made.perform(offers.Open(offer), guard)
        for k in range(fetch.count(offer)):
            chunk = data[k << 18 : (k + 1) << 18]
            assert made.perform(offers.Keep(k, chunk, offer.sha256), guard) == [bus.PolicyTold(offers.Kept(k))]
        (told,) = made.perform(offers.Check(offer), guard)
        assert told.told.code == "unsigned"
