from __future__ import annotations

import contextlib
import datetime
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgert import wire
from edgert.errors import ConfigError, UsageError
from edgert.ports import broker as brokers
from edgert.ports import ca
from edgert.ports.link import Address, LinkDown, LinkUp, Published, Received
from edgert.ports.mqtt import Mqtt

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: no certificate was made")

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
# paho leaves the socket of a failed handshake to the garbage collector.
LEAK = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ca.Authority:
    made = ca.new_authority(tmp_path_factory.mktemp("ca") / "f", "f", ["127.0.0.1", "broker.local"], now=NOW)
    for name in ("d1", "d2"):
        made.issue("device", name, now=NOW)
    made.issue("staff", "ann", now=NOW)
    return made


def test_keys_are_their_owners_alone_and_names_are_where_they_should_be(authority: ca.Authority) -> None:
    for path in authority.folder.rglob("*.key"):
        assert path.stat().st_mode & 0o077 == 0
    assert ca.common_name(authority.folder / "devices" / "d1.pem") == "d1"
    assert ca.common_name(authority.folder / "staff" / "ann.pem") == "staff:ann"
    assert 396 < ca.days_left(authority.folder / "devices" / "d1.pem", NOW) <= 397
    assert ca.belong_together(authority.folder / "devices" / "d1.pem", authority.folder / "devices" / "d1.key") == ""
    assert "go with" in ca.belong_together(
        authority.folder / "devices" / "d1.pem", authority.folder / "devices" / "d2.key"
    )


def test_nothing_is_written_over(authority: ca.Authority) -> None:
    with pytest.raises(UsageError, match="already"):
        authority.issue("device", "d1", now=NOW)
    with pytest.raises(UsageError, match="already"):
        ca.new_authority(authority.folder, "f", ["h"], now=NOW)


@pytest.mark.parametrize("name", ["", "+", "#", "a/b", "staff:ann", "%u", "../x", "a\nb"])
def test_a_name_that_would_mean_more_in_an_access_list_is_refused(authority: ca.Authority, name: str) -> None:
    with pytest.raises(ConfigError, match="letters"):
        authority.issue("device", name, now=NOW)
    with pytest.raises(ConfigError, match="letters"):
        authority.issue("staff", name, now=NOW)


def test_a_broker_needs_a_host_and_a_fleet_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reached"):
        ca.new_authority(tmp_path, "f", [], now=NOW)
    with pytest.raises(ConfigError, match="letters"):
        ca.new_authority(tmp_path, "#", ["h"], now=NOW)
    with pytest.raises(ConfigError, match="cannot be read"):
        ca.Authority(tmp_path).renew("device", "d1", now=NOW)


def test_a_certificate_is_renewed_for_the_same_key(authority: ca.Authority) -> None:
    path, key = authority.issue("device", "old", days=1, now=NOW)
    before = path.read_bytes()
    authority.renew("device", "old", now=NOW + 300 * DAY)
    assert path.read_bytes() != before and ca.belong_together(path, key) == ""
    assert ca.days_left(path, NOW) > 690
    broker = authority.renew("broker", "broker", now=NOW)
    assert b"BEGIN" in broker.read_bytes()


def test_a_certificate_is_swapped_in_beside_the_former(tmp_path: Path) -> None:
    new, target = tmp_path / "a.pem.new", tmp_path / "a.pem"
    new.write_text("new")
    target.write_text("old")
    ca.swap_in(new, target)
    assert target.read_text() == "new" and (tmp_path / "a.pem.old").read_text() == "old"


class Secured:
    """A real mosquitto with what `new_authority` wrote, on free ports."""

    def __init__(self, authority: ca.Authority) -> None:
        self.authority = authority
        ports = []
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as server:
                ports.append(server.getsockname()[1])
        self.port, self.staff_port = ports
        text = (authority.folder / "mosquitto.conf").read_text()
        text = text.replace("listener 8883", f"listener {self.port} 127.0.0.1")
        text = text.replace("listener 8884", f"listener {self.staff_port} 127.0.0.1")
        self.config = authority.folder / "test.conf"
        self.config.write_text(text)
        self.start()

    def start(self) -> None:
        path = brokers.mosquitto_path()
        assert path is not None
        self.log = (self.authority.folder / "broker.log").open("ab")
        self.process = subprocess.Popen([path, "-c", str(self.config)], stdout=self.log, stderr=self.log)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def address(self, who: str, *, as_staff: bool = False, **changed: Any) -> Address:
        folder = self.authority.folder / ("staff" if as_staff else "devices")
        fields: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.staff_port if as_staff else self.port,
            "tls": True,
            "ca_file": str(self.authority.folder / "devices.pem"),
            "cert_file": str(folder / f"{who}.pem"),
            "key_file": str(folder / f"{who}.key"),
        }
        return Address(**{**fields, **changed})


@pytest.fixture(scope="module")
def secured(authority: ca.Authority) -> Iterator[Secured]:
    if brokers.mosquitto_path() is None:
        pytest.skip("mosquitto is not installed: TLS met no real broker")
    server = Secured(authority)
    yield server
    server.stop()


@contextlib.contextmanager
def client(address: Address, name: str, until: Callable[..., None], up: bool = True) -> Iterator[Mqtt]:
    with Mqtt(address, name, session_expiry_s=0) as mqtt:
        if up:
            until(mqtt.is_up, f"the link of {name}")
        yield mqtt


def gather(mqtt: Mqtt, into: list[Any]) -> list[Any]:
    into += mqtt.events()
    return into


@pytest.mark.system
def test_devices_and_staff_speak_and_a_device_only_as_itself(secured: Secured, until: Callable[..., None]) -> None:
    with (
        client(secured.address("ann", as_staff=True), "ann", until) as ann,
        client(secured.address("d1"), "d1", until) as d1,
    ):
        ann.subscribe([("edgert/v1/f/+/+/+/+", 1)])
        heard: list[Any] = []
        told: list[Any] = []
        until(
            lambda: (
                (ann.publish("edgert/v1/f/ann/tele/x/-", b"", qos=1), gather(ann, heard))[1]
                and any(isinstance(event, Received) for event in heard)
            ),
            "the subscription",
        )
        tries = [
            ("edgert/v1/f/d1/tele/device/-", True),
            ("edgert/v1/f/d1/policy/report/-", True),
            ("edgert/v1/f/d2/tele/device/-", False),
            ("edgert/v1/f/d2/status/device/-", False),
            ("edgert/v1/f/d1/cmd/exits/-", False),  # nor may it command itself
            ("edgert/v1/f/d1/policy/offer/-", False),
            ("edgert/v1/f/-/policy/chunk/x.0", False),
            ("edgert/v1/g/d1/tele/device/-", False),
            ("edgert/v1/f/+/tele/device/-"[:12] + "/d1/tele/device/-", False),
        ]
        for topic, _ in tries:
            assert d1.publish(topic, b"x", qos=1, token=topic)
        until(lambda: len([e for e in gather(d1, told) if isinstance(e, Published)]) == len(tries), "the answers")
        said = {event.token: event.ok for event in told if isinstance(event, Published)}
        assert said == dict(tries)
        until(
            lambda: (
                {e.topic for e in gather(ann, heard) if isinstance(e, Received)} >= {topic for topic, ok in tries if ok}
            ),
            "what was allowed",
        )
        assert not {e.topic for e in heard if isinstance(e, Received)} & {topic for topic, ok in tries if not ok}


@pytest.mark.system
def test_a_device_hears_nothing_that_is_for_another(secured: Secured, until: Callable[..., None]) -> None:
    with (
        client(secured.address("ann", as_staff=True), "ann2", until) as ann,
        client(secured.address("d1"), "d1", until) as d1,
    ):
        d1.subscribe([("edgert/v1/f/+/cmd/+/+", 1), ("#", 1), (str(wire.Topic("f", "-", "policy", "chunk", "c.0")), 0)])
        heard: list[Any] = []

        def send() -> bool:
            for device in ("d2", "d1"):
                ann.publish(f"edgert/v1/f/{device}/cmd/exits/-", b"x", qos=1)
            ann.publish("edgert/v1/f/-/policy/chunk/c.0", b"chunk", qos=1)
            return {e.topic for e in gather(d1, heard) if isinstance(e, Received)} >= {
                "edgert/v1/f/d1/cmd/exits/-",
                "edgert/v1/f/-/policy/chunk/c.0",
            }

        until(send, "what is for it")
        assert {e.topic for e in heard if isinstance(e, Received)} == {
            "edgert/v1/f/d1/cmd/exits/-",
            "edgert/v1/f/-/policy/chunk/c.0",
        }


@pytest.mark.system
@LEAK
def test_nobody_comes_in_without_a_certificate_of_the_right_authority(
    secured: Secured, until: Callable[..., None], tmp_path: Path
) -> None:
    other = ca.new_authority(tmp_path / "other", "f", ["127.0.0.1"], now=NOW)
    other.issue("device", "d1", now=NOW)
    other.issue("staff", "ann", now=NOW)
    past = NOW - 400 * DAY
    secured.authority.issue("device", "late", now=past)
    strangers = {
        "no certificate": secured.address("d1", cert_file=None, key_file=None),
        "another authority": secured.address(
            "d1",
            cert_file=str(other.folder / "devices" / "d1.pem"),
            key_file=str(other.folder / "devices" / "d1.key"),
        ),
        "a device among staff": secured.address("d1", port=secured.staff_port),
        "staff among devices": secured.address("ann", as_staff=True, port=secured.port),
        "its time is over": secured.address("late"),
        "another broker": secured.address("d1", ca_file=str(other.folder / "devices.pem")),
        "another host": secured.address("d1", host="localhost"),
        "plain": secured.address("d1", tls=False),
    }
    for why, address in strangers.items():
        with client(address, "stranger", until, up=False) as mqtt:
            heard: list[Any] = []
            until(lambda: any(isinstance(e, LinkDown) for e in gather(mqtt, heard)), f"the refusal: {why}")  # noqa: B023 (called at once)
            assert not any(isinstance(e, LinkUp) for e in heard), why


@pytest.mark.system
@LEAK
def test_a_revoked_certificate_comes_in_no_more(secured: Secured, until: Callable[..., None]) -> None:
    secured.authority.issue("device", "gone", now=NOW)
    with client(secured.address("gone"), "gone", until):
        pass
    secured.authority.revoke("device", "gone", now=NOW)
    secured.stop()
    secured.start()
    with client(secured.address("d1"), "d1", until):
        pass
    with client(secured.address("gone"), "gone", until, up=False) as mqtt:
        heard: list[Any] = []
        until(lambda: any(isinstance(e, LinkDown) for e in gather(mqtt, heard)), "the refusal")
        assert not mqtt.is_up()
