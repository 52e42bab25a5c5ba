from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgert.errors import LinkError
from edgert.ports import broker

pytestmark = pytest.mark.system


def test_auto_prefers_mosquitto(monkeypatch, tmp_path, mosquitto):
    with broker.start("auto", tmp_path) as server:
        assert server.kind == "mosquitto"
    pytest.importorskip("iotcore")
    monkeypatch.setattr(broker, "mosquitto_path", lambda: None)
    with broker.start("auto", tmp_path) as server:
        assert server.kind == "iotcore"
    with pytest.raises(LinkError, match="apt install mosquitto"):
        broker.start("mosquitto", tmp_path)


def test_mosquitto_does_all_we_need(mosquitto):
    assert broker.probe(mosquitto.url) == broker.Capabilities(
        mqtt5=True,
        shared_subscriptions=True,
        retained=True,
        offline_queue=True,
        message_expiry=True,
        large_packets=True,
        max_packet_bytes=broker.MAX_PACKET_BYTES,
    )


def test_iotcore_does_enough_for_a_demo(tmp_path):
    pytest.importorskip("iotcore")
    with broker.start("iotcore", tmp_path) as server:
        can = broker.probe(server.url)
        assert can.mqtt5
        assert can.shared_subscriptions
        assert can.retained
        assert can.offline_queue
        assert can.large_packets


def test_probe_tells_that_shared_subscriptions_are_off(fresh_mosquitto):
    # mosquitto cannot switch them off, but an access list that hides them looks as amqtt does: granted, silent.
    acl = fresh_mosquitto.dir / "acl"
    acl.write_text("topic write #\ntopic read edgert/probe/+/away\ntopic read edgert/probe/+/echo/+\n")
    acl.chmod(0o600)
    fresh_mosquitto.configure(f"acl_file {acl}\n")
    can = broker.probe(fresh_mosquitto.url, patience_s=0.5)
    assert (can.mqtt5, can.shared_subscriptions, can.retained, can.large_packets) == (True, False, False, False)
    assert can.offline_queue


def test_probe_of_a_small_broker(fresh_mosquitto):
    fresh_mosquitto.configure("max_packet_size 50000\n")
    can = broker.probe(fresh_mosquitto.url, patience_s=0.5)
    assert (can.large_packets, can.max_packet_bytes, can.retained) == (False, 50000, True)


def test_probe_of_something_that_speaks_no_mqtt5(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"mqtt://127.0.0.1:{deaf.getsockname()[1]}"
        assert broker.probe(url, patience_s=0.3) == broker.Capabilities(mqtt5=False)


@pytest.mark.parametrize("kind", ["mosquitto", "iotcore"])
def test_killed_and_started_again_on_the_same_port(tmp_path, kind, mosquitto):
    if kind == "iotcore":
        pytest.importorskip("iotcore")
    with broker.start(kind, tmp_path) as server:
        first = server.pid
        server.kill()
        with pytest.raises(LinkError, match="not running"):
            _ = server.pid
        server.restart()
        assert server.pid != first
        socket.create_connection(("127.0.0.1", server.port)).close()


def test_a_port_in_use_is_an_error_that_says_so(tmp_path, mosquitto):
    with pytest.raises(LinkError, match="did not start"):
        broker.start("mosquitto", tmp_path, mosquitto.port)


def test_it_listens_on_this_machine_only(mosquitto):
    listening = [
        bytes.fromhex(line.split()[1].split(":")[0])[::-1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == mosquitto.port
    ]
    assert listening == [socket.inet_aton("127.0.0.1")]
