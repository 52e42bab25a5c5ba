"""A broker of an older MQTT: `mosquitto` behind a relay that lets nothing newer than 3.1.1 through."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from edgert.fleet.session import LinkRules
from edgert.ports.link import LinkUp, Received
from edgert.ports.mqtt import Mqtt

pytestmark = pytest.mark.system

SWIFT = LinkRules(base_s=0.05, cap_s=0.2)


class Old(threading.Thread):
    """In front of a broker: it takes MQTT 3.1.1 only, and says so of 5, or hangs up."""

    def __init__(self, port, *, says_so):
        super().__init__(daemon=True)
        self.port, self.says_so, self.refused = port, says_so, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self.server.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            first = near.recv(4096)
            if first[first.index(b"MQTT") + 4] == 5:
                with near:
                    self.refused += 1
                    near.sendall(bytes.fromhex("20020001") if self.says_so else b"")
                continue
            threading.Thread(target=self.pass_on, args=(near, first), daemon=True).start()

    def pass_on(self, near, first):
        with near, socket.create_connection(("127.0.0.1", self.port)) as far:
            far.sendall(first)
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (far if source is near else near).sendall(data)

    def close(self):
        self.server.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self.server.close()


@pytest.mark.parametrize("says_so", [True, False])
def test_a_broker_that_speaks_3_1_1_only(mosquitto: Any, until: Callable[..., None], says_so: bool) -> None:
    old, seen, watched = Old(mosquitto.port, says_so=says_so), [], []
    topic, status, name = f"edgert/old{says_so}", f"edgert/old{says_so}/status", f"old{says_so}"

    def payloads(link: Mqtt, into: list[Any]) -> list[bytes]:
        into += link.events()
        return [each.payload for each in into if isinstance(each, Received)]

    with Mqtt(mosquitto.url, f"new{says_so}", rules=SWIFT) as watcher:
        watcher.subscribe([(status, 1)])
        until(watcher.is_up)
        link = Mqtt(old.url, name, rules=SWIFT, will=(status, b"gone"), birth=(status, b"here")).start()
        link.subscribe([(topic, 1)])
        until(lambda: payloads(watcher, watched) == [b"here"])
        assert old.refused == (1 if says_so else 3) and link.faults() == {"mqtt-3.1.1": 1}
        said = {"expiry_s": 5, "content_type": "a/b", "correlation": b"1", "user": [("a", "b")]}
        assert link.publish(topic, b"said", qos=1, **said)
        until(lambda: payloads(link, seen) == [b"said"])
        assert next(each for each in seen if isinstance(each, Received)).correlation is None
        link.close(goodbye=False)
        until(lambda: payloads(watcher, watched) == [b"here", b"gone"])
        assert watcher.publish(topic, b"meanwhile", qos=1)  # the session lasts: it waits there
        with Mqtt(old.url, name, rules=SWIFT) as again:
            seen.clear()
            until(lambda: b"meanwhile" in payloads(again, seen))
            assert next(each for each in seen if isinstance(each, LinkUp)).session_present
        assert watcher.publish(status, b"", qos=1, retain=True)
    old.close()
