from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgert import bundle, cli
from edgert.fleet import trust

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: nothing was signed")
MODEL = Path(__file__).parents[2] / "models" / "breakout.edgert"


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, list[str]]:
    keys = ["--keys", str(tmp_path / "keys")]
    path = tmp_path / "p.edgert"
    shutil.copy(MODEL, path)
    assert cli.main(["key", "new", "ann", *keys]) == cli.OK
    assert cli.main(["policy", "sign", str(path), "--release", "3", "--robot", "arm", "--days", "9", *keys]) == cli.OK
    return path, keys


def test_a_bundle_is_signed_without_changing_what_is_in_it(signed: tuple[Path, list[str]]) -> None:
    before, after = bundle.read(MODEL.read_bytes()), bundle.read(signed[0].read_bytes())
    assert after.encoded == before.encoded and after.members == before.members
    seal = trust.read_seal(after)
    assert seal is not None and seal.release.version == 3 and seal.release.robots == ("arm",)
    assert bundle.with_signature(signed[0].read_bytes(), None) == bundle.with_signature(MODEL.read_bytes(), None)


def test_what_a_device_would_say_is_said(signed: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    path, keys = signed
    capsys.readouterr()
    assert cli.main(["policy", "verify", str(path), "--robot", "arm", "--json", *keys]) == cli.OK
    assert json.loads(capsys.readouterr().out)["release"] == 3
    assert cli.main(["policy", "verify", str(path), *keys]) == cli.NOT_ALLOWED
    assert "wrong-robot" in capsys.readouterr().out
    assert cli.main(["policy", "verify", str(MODEL), *keys]) == cli.NOT_ALLOWED
    assert "unsigned" in capsys.readouterr().out
    assert cli.main(["policy", "verify", str(path), "--keys", str(path.parent / "none")]) == cli.BAD_CONFIG


def test_a_second_signature_stands_beside_the_first(signed: tuple[Path, list[str]]) -> None:
    path, keys = signed
    other = ["--keys", str(path.parent / "other")]
    assert cli.main(["key", "new", "bob", *other]) == cli.OK
    assert cli.main(["policy", "sign", str(path), "--release", "4", "--beside", *other]) == cli.BAD_CONFIG
    assert cli.main(["policy", "sign", str(path), "--release", "3", "--beside", *other]) == cli.OK
    for each in (keys, other):
        assert cli.main(["policy", "verify", str(path), "--robot", "arm", *each]) == cli.OK
    assert cli.main(["policy", "sign", str(path), "--release", "0", *keys]) == cli.BAD_CONFIG
