from __future__ import annotations

import select

import pytest

from edgert.errors import ConfigError
from edgert.ports.link import Ack, Address, Inbox, LinkDown, Published, Received, parse_url

GOOD_URLS = {
    "mqtt://broker": Address(host="broker", port=1883),
    "mqtt://10.0.0.1:21883/": Address(host="10.0.0.1", port=21883),
    "mqtt://[::1]": Address(host="::1", port=1883),
    "mqtt://dev%40home:p%2Fw@broker": Address(host="broker", port=1883, username="dev@home", password="p/w"),
    "mqtts://broker": Address(host="broker", port=8883, tls=True),
    "mqtts://b?ca=/c.pem&cert=/d.pem&key=/k": Address(
        host="b", port=8883, tls=True, ca_file="/c.pem", cert_file="/d.pem", key_file="/k"
    ),
}


@pytest.mark.parametrize("url", GOOD_URLS)
def test_good_urls(url):
    assert parse_url(url) == GOOD_URLS[url]


@pytest.mark.parametrize(
    "url",
    ["", "broker", "broker:1883", "http://b", "mqtt://", "mqtt://b:x", "mqtt://b:99999", "mqtt://b/path", "mqtts://b?x=1",
     "mqtt://b?ca=/c", "mqtts://b?ca"],
)  # fmt: skip
def test_bad_urls(url):
    with pytest.raises(ConfigError, match="broker url"):
        parse_url(url)


def test_a_bad_url_does_not_leak_the_password():
    with pytest.raises(ConfigError) as caught:
        parse_url("ftp://me:hunter2@b")
    assert "hunter2" not in str(caught.value)


def readable(inbox):
    return bool(select.select([inbox], [], [], 0)[0])


def message(n):
    return Received(topic="t", payload=b"%d" % n)


@pytest.fixture
def inbox():
    inbox = Inbox(3)
    yield inbox
    inbox.close()


def test_inbox_is_readable_exactly_while_something_waits(inbox):
    assert not readable(inbox)
    inbox.put(message(0))
    assert readable(inbox)
    assert inbox.take() == [message(0)]
    assert not readable(inbox)
    assert inbox.take() == [] and inbox.seen_to() == []


def test_inbox_drops_the_oldest_messages_and_nothing_else(inbox):
    down = LinkDown(reason_code=None, reason="", fault=None, retry_s=0.0, unconfirmed=())
    done = Published(token=1, ok=True, reason_code=0)
    inbox.put(down)
    assert [inbox.put(message(n), Ack(1, n)) for n in range(3)] == [(False, None)] * 3
    assert inbox.put(done) == (False, None)
    assert inbox.put(message(3), Ack(1, 3)) == (True, Ack(1, 0))
    assert inbox.put(message(4)) == (True, Ack(1, 1))
    assert inbox.seen_to() == [], "nobody has them yet"
    assert inbox.take() == [down, message(2), done, message(3), message(4)]
    inbox.put(message(5), Ack(1, 5))
    assert inbox.seen_to() == [Ack(1, 2), Ack(1, 3)]
    assert inbox.seen_to() == []


def test_inbox_survives_more_wakeups_than_its_socket_holds(inbox):
    done = Published(token=1, ok=True, reason_code=0)
    for _ in range(20_000):
        inbox.put(done)
    assert len(inbox.take()) == 20_000
    assert not readable(inbox)


def test_inbox_drops_what_may_be_lost_first(inbox):
    for n, qos in enumerate((1, 1, 0)):
        inbox.put(Received(topic="t", payload=b"%d" % n, qos=qos))
    assert inbox.put(Received(topic="t", payload=b"3", qos=1)) == (True, None)
    assert [e.payload for e in inbox.take()] == [b"0", b"1", b"3"]
