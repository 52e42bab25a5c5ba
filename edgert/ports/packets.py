"""What is said to paho, and what it says, in words of ours; `mqtt` does the talking."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import paho.mqtt.client as paho
from paho.mqtt import MQTTException
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgert.errors import UsageError
from edgert.ports.link import Address, Received, Wanted

CONNECT_S = 5.0


class Outgoing(msgspec.Struct):
    """A message on its way to the broker.

    Attributes:
        token: of whoever wants to know what became of it; None: nobody does.
        size_bytes: of its packet.
        sent_s: monotonic; 0 before it was.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties
    token: object
    size_bytes: int
    sent_s: float = 0.0


def new_client(
    address: Address, client_id: str, will: tuple[str, bytes] | None, *, v5: bool, lasting: bool
) -> paho.Client:
    """A client that has not connected yet.

    Args:
        address: whose user and password it says.
        client_id: at the broker.
        will: topic and payload, retained.
        v5: MQTT 5, or else 3.1.1.
        lasting: the broker remembers us when we are gone; only 3.1.1 wants to know it here, and not for how long.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if v5 else not lasting,
        protocol=paho.MQTTv5 if v5 else paho.MQTTv311,
        manual_ack=True,
        reconnect_on_failure=False,  # paho would connect again by itself, and speak MQTT 3.1
    )
    client.connect_timeout = CONNECT_S
    client.on_socket_open = _no_delay
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    if will is not None:
        client.will_set(*will, qos=1, retain=True)
    return client


def _no_delay(client: paho.Client, _: object, sock: Any) -> None:
    # Nagle and delayed acknowledgements together cost 40 ms a round trip on small QoS 1 messages.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def properties(kind: int, **values: object) -> tuple[Properties, int]:
    """The properties that are not None, and their size in a packet.

    Raises:
        UsageError: MQTT cannot say this.
    """
    said = Properties(kind)  # type: ignore[no-untyped-call]  # paho leaves this one untyped
    try:
        for name, value in values.items():
            if value is not None:
                setattr(said, name, value)
        return said, len(said.pack())  # type: ignore[no-untyped-call]  # and this one
    except (MQTTException, struct.error, TypeError, ValueError) as error:
        raise UsageError(f"MQTT cannot say this: {error}") from error


def filters(wanted: Mapping[str, Wanted], *, v5: bool) -> list[tuple[str, Any]]:
    """What to subscribe to. In 3.1.1 what is kept comes with every subscription, known or not."""
    if not v5:
        return [(name, each.qos) for name, each in wanted.items()]
    new = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB, SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
    return [
        (name, SubscribeOptions(each.qos, retainHandling=new[0] if each.known() else new[1]))
        for name, each in wanted.items()
    ]


def received(message: paho.MQTTMessage) -> Received:
    """What came, in words of ours."""
    said = vars(message.properties) if message.properties is not None else {}
    return Received(
        topic=message.topic,
        payload=bytes(message.payload),
        qos=message.qos,
        retain=message.retain,
        content_type=said.get("ContentType"),
        response_topic=said.get("ResponseTopic"),
        correlation=said.get("CorrelationData"),
        expiry_s=said.get("MessageExpiryInterval"),
        user=tuple((str(k), str(v)) for k, v in said.get("UserProperty", ())),
    )


def abandon(client: paho.Client) -> None:
    """Close the socket without a word; paho has no call that does this without sending DISCONNECT."""
    sock: Any = client.socket()
    client.on_disconnect = None
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()
