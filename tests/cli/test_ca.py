from __future__ import annotations

import datetime
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.cli import OK, RETRY_LATER, ca
from edgert.config import commented_default
from edgert.errors import ConfigError
from edgert.ports import broker as brokers
from edgert.ports import ca as authority
from edgert.ports.link import parse_url

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: no certificate was made")
NOW = datetime.datetime.now(datetime.timezone.utc)


@pytest.fixture
def folder_of_ca(tmp_path: Path) -> Path:
    folder = tmp_path / "ca"
    assert ca.ca(["new", str(folder), "--fleet", "f", "--host", "127.0.0.1"]) == OK
    assert ca.ca(["device", str(folder), "d1"]) == OK
    assert ca.ca(["staff", str(folder), "ann"]) == OK
    return folder


@pytest.fixture
def port(folder_of_ca: Path) -> Iterator[int]:
    path = brokers.mosquitto_path()
    if path is None:
        pytest.skip("mosquitto is not installed: no certificate was tried")
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    config = folder_of_ca / "mosquitto.conf"
    text = config.read_text().replace("8883", f"{ports[0]} 127.0.0.1").replace("8884", f"{ports[1]} 127.0.0.1")
    config.write_text(text)
    with (folder_of_ca / "log").open("wb") as log:
        process = subprocess.Popen([path, "-c", str(config)], stdout=log, stderr=log)
        yield ports[0]
        process.terminate()
        process.wait(10)


def device(folder_of_ca: Path, port: int, name: str = "d1") -> tuple[Path, Path]:
    """A device's own folder with its certificate, and its configuration."""
    home = folder_of_ca.parent / "device"
    home.mkdir(exist_ok=True)
    for suffix in (".pem", ".key"):
        path = home / f"d1{suffix}"
        path.write_bytes((folder_of_ca / "devices" / f"d1{suffix}").read_bytes())
        path.chmod(0o600)
    text = commented_default(
        {
            "device.id": name,
            "device.fleet": "f",
            "policy.bundle": "/none",
            "broker.url": f"mqtts://127.0.0.1:{port}",
            "broker.ca_file": str(folder_of_ca / "devices.pem"),
            "broker.cert_file": str(home / "d1.pem"),
            "broker.key_file": str(home / "d1.key"),
        }
    )
    (home / "edgert.toml").write_text(text)
    return home, home / "edgert.toml"


@pytest.mark.system
def test_a_renewed_certificate_is_tried_and_swapped_in(folder_of_ca: Path, port: int) -> None:
    home, config = device(folder_of_ca, port)
    former = (home / "d1.pem").read_bytes()
    assert ca.ca(["renew", str(folder_of_ca), "d1", "--days", "500"]) == OK
    new = folder_of_ca / "devices" / "d1.pem"
    assert ca.ca(["install", str(new), "--config", str(config)]) == OK
    assert (home / "d1.pem").read_bytes() == new.read_bytes() != former
    assert (home / "d1.pem.old").read_bytes() == former and not (home / "d1.pem.new").exists()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a failed socket behind
def test_one_that_the_broker_does_not_take_changes_nothing(folder_of_ca: Path, port: int, tmp_path: Path) -> None:
    home, config = device(folder_of_ca, port)
    former = (home / "d1.pem").read_bytes()
    other = authority.new_authority(tmp_path / "other", "f", ["127.0.0.1"], now=NOW)
    (other.folder / "devices").mkdir()
    (other.folder / "devices" / "d1.pem").write_bytes(former)  # another authority vouches for the same key
    other.renew("device", "d1", now=NOW)
    words = ["install", str(other.folder / "devices" / "d1.pem"), "--config", str(config), "--timeout-s", "3"]
    assert ca.ca(words) == RETRY_LATER
    assert (home / "d1.pem").read_bytes() == former


@pytest.mark.system
def test_what_it_says_is_to_be_configured_is_right(
    folder_of_ca: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca.ca(["device", str(folder_of_ca), "d9"]) == OK
    said = tomllib.loads(capsys.readouterr().out.partition("alone:\n")[2])
    assert said["device"] == {"id": "d9", "fleet": "f"}
    assert said["broker"]["url"] == f"mqtts://127.0.0.1:{port}" and said["broker"]["key_file"] == "d9.key"
    assert ca.ca(["staff", str(folder_of_ca), "bob"]) == OK
    url = capsys.readouterr().out.rpartition("--broker '")[2].rstrip("'\n")
    assert ca.try_link(parse_url(url), "bob-tries", 20.0) == ""


def test_a_folder_that_is_none_of_an_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca new"):
        authority.Authority(tmp_path).fleet()


def test_one_that_is_not_this_devices_is_not_even_tried(folder_of_ca: Path) -> None:
    _, config = device(folder_of_ca, 1)
    ca.ca(["device", str(folder_of_ca), "d2"])
    with pytest.raises(ConfigError, match="go with"):
        ca.ca(["install", str(folder_of_ca / "devices" / "d2.pem"), "--config", str(config)])
    _, config = device(folder_of_ca, 1, name="d3")
    with pytest.raises(ConfigError, match="is of d1"):
        ca.ca(["install", str(folder_of_ca / "devices" / "d1.pem"), "--config", str(config)])


def test_a_certificate_is_revoked_and_the_brokers_renewed(folder_of_ca: Path) -> None:
    before = (folder_of_ca / "devices.crl").read_bytes()
    assert ca.ca(["revoke", str(folder_of_ca), "d1"]) == OK
    assert (folder_of_ca / "devices.crl").read_bytes() != before
    assert ca.ca(["revoke", str(folder_of_ca), "ann", "--staff"]) == OK
    assert ca.ca(["renew", str(folder_of_ca), "broker"]) == OK
    assert ca.ca(["renew", str(folder_of_ca), "ann", "--staff"]) == OK
