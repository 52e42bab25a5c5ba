from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgert.config import Broker
from edgert.errors import ConfigError
from edgert.ports import credentials


def put(path: Path, data: bytes = b"secret") -> None:
    path.write_bytes(data)
    path.chmod(0o600)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    put(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}.*chmod 600"):
        credentials.read_secret(path)


def test_a_credential_of_systemd_is_found_and_may_be_readable_for_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="LoadCredential=device-key"):
        credentials.credential("credential:device-key")
    monkeypatch.setenv(credentials.CREDENTIALS, str(tmp_path))
    path = credentials.credential("credential:device-key")
    assert path == tmp_path / "device-key" and credentials.credential("/etc/x") == Path("/etc/x")
    path.write_bytes(b"secret")
    path.chmod(0o440)
    assert credentials.read_secret(path) == b"secret"
    path.chmod(0o444)
    with pytest.raises(ConfigError, match="chmod"):
        credentials.read_secret(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    put(path)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="uid 12345"):
        credentials.read_secret(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a file"):
        credentials.read_secret(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        credentials.read_secret(tmp_path / "none")


def test_the_broker_is_reached_with_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "password", b"horse\nbattery\n")
    put(tmp_path / "d.key")
    monkeypatch.setenv(credentials.CREDENTIALS, str(tmp_path))
    address = credentials.address_of(
        Broker(
            url="mqtts://h",
            username="u",
            password_file=str(tmp_path / "password"),
            ca_file="/ca.pem",
            cert_file="/d.pem",
            key_file="credential:d.key",
        )
    )
    assert (address.username, address.password, address.port) == ("u", "horse", 8883)
    assert (address.ca_file, address.cert_file, address.key_file) == ("/ca.pem", "/d.pem", str(tmp_path / "d.key"))
    put(tmp_path / "password", b"")
    with pytest.raises(ConfigError, match="is empty"):
        credentials.address_of(Broker(username="u", password_file=str(tmp_path / "password")))


def test_a_key_that_others_can_read_keeps_the_device_off_the_broker(tmp_path: Path) -> None:
    put(tmp_path / "d.key")
    (tmp_path / "d.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        credentials.address_of(Broker(url="mqtts://h", cert_file="/d.pem", key_file=str(tmp_path / "d.key")))
