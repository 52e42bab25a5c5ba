from __future__ import annotations

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes

from edgert.errors import UsageError
from edgert.ports import packets
from edgert.ports.link import Address, Received, Wanted

ADDRESS = Address(host="h", port=1, username="u", password="p")


@pytest.mark.parametrize("v5", [True, False])
def test_a_client_is_made_for_one_connection_and_makes_no_other_by_itself(v5: bool) -> None:
    client = packets.new_client(ADDRESS, "me", ("t", b"gone"), v5=v5, lasting=True)
    assert client.protocol == (paho.MQTTv5 if v5 else paho.MQTTv311)
    assert client.socket() is None and not client._reconnect_on_failure
    packets.abandon(client)


def test_properties_are_said_with_their_size() -> None:
    none, empty = packets.properties(PacketTypes.PUBLISH, ContentType=None)
    some, size = packets.properties(PacketTypes.PUBLISH, ContentType="a/b", MessageExpiryInterval=5)
    assert vars(none).get("ContentType") is None and empty == 1 and size == 1 + 6 + 5
    assert some.MessageExpiryInterval == 5


@pytest.mark.parametrize(
    "said", [{"MessageExpiryInterval": -1}, {"ContentType": "x" * 70_000}, {"WillDelayInterval": 1}]
)
def test_what_mqtt_cannot_say_is_the_callers_fault(said: dict) -> None:
    with pytest.raises(UsageError, match="cannot say"):
        packets.properties(PacketTypes.PUBLISH, **said)


def test_what_came_is_told_in_words_of_ours() -> None:
    message = paho.MQTTMessage(topic=b"a/b")
    message.payload, message.qos, message.retain = b"x", 1, True
    assert packets.received(message) == Received(topic="a/b", payload=b"x", qos=1, retain=True)
    message.properties, _ = packets.properties(PacketTypes.PUBLISH, UserProperty=[("a", "1")], CorrelationData=b"c")
    told = packets.received(message)
    assert (told.user, told.correlation) == ((("a", "1"),), b"c")


def test_what_is_known_is_said_to_be_where_it_can_be_said() -> None:
    wanted = {"a": Wanted(1, lambda: True), "b": Wanted(0, lambda: False)}
    assert packets.filters(wanted, v5=False) == [("a", 1), ("b", 0)]
    said = {name: (each.QoS, each.retainHandling) for name, each in packets.filters(wanted, v5=True)}
    assert said == {"a": (1, 1), "b": (0, 0)}
