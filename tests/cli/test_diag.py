"""One archive for whoever is to help, and no secret in it: they are planted wherever one could come in."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import cbor2
import pytest

from edgert import cli
from edgert.programs.events import opened

CANARIES = ("canary-password", "canary-key-line", "canary-in-a-comment", "canary-in-an-url", "canary-token")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device's files, with secrets in all of them."""
    (tmp_path / "password").write_text("canary-password\n")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\ncanary-key-line\n-----END PRIVATE KEY-----\n")
    (tmp_path / "cert.pem").write_text("x")
    for name in ("password", "key.pem"):
        (tmp_path / name).chmod(0o600)
    state = tmp_path / "state"
    state.mkdir()
    with opened(state / "events.db") as spool:
        for n in range(3):
            detail = {"why": f"mqtt://u:canary-in-an-url@h said canary-password, token=canary-token {n}"}
            spool.append("events", cbor2.dumps({"at_s": 1.0, "name": "link-lost", "detail": detail}), 1.0)
    (state / "checkpoint").write_bytes(b"canary-key-line")  # a file's content is nobody's business
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    journal = bin_ / "journalctl"
    journal.write_text(f"#!/bin/sh\ncat {tmp_path}/key.pem\necho 'url mqtt://a:canary-in-an-url@b; canary-password'\n")
    journal.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    config = tmp_path / "edgert.toml"
    config.write_text(
        f"""# password = "canary-in-a-comment"
[device]
id = "d1"
state_dir = "{state}"
run_dir = "{tmp_path}/run"
[broker]
url = "mqtts://127.0.0.1:1"
username = "d1"
password_file = "{tmp_path}/password"
cert_file = "{tmp_path}/cert.pem"
key_file = "{tmp_path}/key.pem"
[policy]
bundle = "/nowhere.edgert"
"""
    )
    return config


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        members = {each.name.rpartition("/")[2]: archive.extractfile(each) for each in archive.getmembers()}
        return {name: file.read().decode() for name, file in members.items() if file is not None}


def test_everything_is_there_and_no_secret(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "diag.tar.gz"
    assert cli.main(["diag", "collect", "--config", str(planted), "--out", str(out), "--json"]) == cli.OK
    said = json.loads(capsys.readouterr().out)
    found = unpacked(out)
    assert sorted(found) == said["members"] or set(found) == {*said["members"], "index.json"}
    assert {"versions.json", "config.toml", "doctor.json", "board.json", "events.jsonl", "journal.txt"} <= set(found)
    assert list(said["missing"]) == ["status.json"]  # nothing runs here, and that is said
    for name, text in found.items():
        assert not [canary for canary in CANARIES if canary in text], name
    assert 'password_file = "' in found["config.toml"] and 'id = "d1"' in found["config.toml"]
    assert [json.loads(line)["event"]["name"] for line in found["events.jsonl"].splitlines()] == ["link-lost"] * 3
    assert "checkpoint" in found["files.txt"]
    assert json.loads(found["versions.json"])["packages"]["msgspec"]
    assert out.stat().st_mode & 0o777 == 0o600
    with opened(tmp_path / "state" / "events.db") as spool:
        assert spool.streams["events"].last_seq == 3  # what is copied is left as it was


def test_without_a_configuration_there_is_still_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "diag.tar.gz"
    config = tmp_path / "bad.toml"
    config.write_text('[broker]\npassword = "canary-password"\n')
    assert cli.main(["diag", "collect", "--config", str(config), "--out", str(out), "--unit", "no-such-unit"]) == cli.OK
    found = unpacked(out)
    assert "versions.json" in found and "canary-password" not in "".join(found.values())
    assert "look into it" in capsys.readouterr().out


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("edgert.cli.diag._members", lambda *_: iter(()))
    assert cli.main(["diag", "collect", "--out", str(tmp_path / "no" / "x.tar.gz")]) == cli.ERROR
    assert "x.tar.gz" in capsys.readouterr().err
