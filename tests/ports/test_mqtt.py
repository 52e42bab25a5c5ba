from __future__ import annotations

import gc
import os
import resource
import select
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from edgert.errors import UsageError
from edgert.fleet.session import LinkRules
from edgert.ports import broker, mqtt, packets
from edgert.ports.mqtt import LinkDown, LinkUp, Mqtt, Published, Received

pytestmark = pytest.mark.system

SWIFT = LinkRules(base_s=0.05, cap_s=0.2)


class Client:
    """An `Mqtt` and everything it has told so far."""

    def __init__(self, until, url, client_id, **options):
        self.until = until
        self.mqtt = Mqtt(url, client_id, **{"rules": SWIFT, **options})
        self.seen = []

    def look(self, kind=object):
        self.seen += self.mqtt.events()
        return [e for e in self.seen if isinstance(e, kind)]

    def up(self, times=1):
        self.until(lambda: len(self.look(LinkUp)) >= times, f"{times} LinkUp")
        return self

    def down(self, times=1):
        self.until(lambda: len(self.look(LinkDown)) >= times, f"{times} LinkDown")
        return self.look(LinkDown)[-1]

    def say(self, topic, payload=b"x", **options):
        """Publish at QoS 1 and wait for the broker's word."""
        token = object()
        assert self.mqtt.publish(topic, payload, qos=1, token=token, **options)
        self.until(lambda: any(e.token is token for e in self.look(Published)), "the confirmation")

    def got(self):
        return [e.payload for e in self.look(Received)]

    def hear(self, *payloads):
        self.until(lambda: len(self.got()) >= len(payloads), f"{len(payloads)} messages")
        assert self.got() == list(payloads)

    def hears(self, topic):
        """Subscribe, and wait until it is in force."""
        before = len(self.got())
        self.mqtt.subscribe([(topic, 1)])
        self.say(topic, b"sync")
        self.until(lambda: len(self.got()) > before, "the echo")
        self.seen = [e for e in self.seen if not isinstance(e, Received)]


@pytest.fixture
def client(until):
    made = []

    def make(url, client_id, **options):
        made.append(Client(until, url, client_id, **options))
        made[-1].mqtt.start()
        return made[-1]

    yield make
    for c in made:
        c.mqtt.close()
        assert not c.mqtt.healthy()


# ---- trap 1: a message the broker answers by closing the connection


def test_oversize_is_refused_here_and_never_poisons_the_link(fresh_mosquitto, client):
    fresh_mosquitto.configure("max_packet_size 20000\n")
    c = client(fresh_mosquitto.url, "big").up()
    c.hears("edgert/big")
    assert c.look(LinkUp)[0].server_max_packet_bytes == 20000
    assert not c.mqtt.publish("edgert/big", b"z" * 20001, qos=1)
    assert c.mqtt.faults() == {"outbound-oversize": 1}
    largest = 20000
    while not c.mqtt.publish("edgert/big", b"z" * largest, qos=1):
        largest -= 1
    c.say("edgert/big", b"after")
    c.until(lambda: len(c.got()) == 2)
    assert [len(p) for p in c.got()] == [largest, 5]
    assert largest > 20000 - 32
    assert c.look(LinkDown) == []
    assert 0 < c.mqtt.max_payload_bytes("edgert/big") < largest


def test_a_broker_that_closes_without_a_word_is_met_once_per_publish(tmp_path, client):
    pytest.importorskip("iotcore")
    with broker.start("iotcore", tmp_path) as server:
        config = tmp_path / "iotcore.toml"
        config.write_text(config.read_text().replace(f"= {broker.MAX_PACKET_BYTES}", "= 5000"))
        server.restart()
        c = client(server.url, "poison").up()
        c.hears("edgert/next")
        assert c.mqtt.publish("edgert/big", b"z" * 6000, qos=1, token="big")
        assert c.down().unconfirmed == ("big",)
        c.up(2)
        c.say("edgert/next", b"after")
        c.until(lambda: b"after" in c.got())
        assert len(c.look(LinkDown)) == 1


# ---- trap 2: an exception in a callback


def test_a_message_that_cannot_be_read_costs_only_itself(mosquitto, client, monkeypatch):
    c = client(mosquitto.url, "unreadable").up()
    c.hears("edgert/unreadable")
    real = packets.received

    def fragile(message):
        if message.payload == b"bad":
            raise RuntimeError("boom")
        return real(message)

    monkeypatch.setattr(packets, "received", fragile)
    c.say("edgert/unreadable", b"bad")
    c.say("edgert/unreadable", b"good")
    c.hear(b"good")
    assert c.mqtt.healthy()
    assert c.mqtt.faults() == {"inbound-unreadable": 1}
    assert c.look(LinkDown) == []


def test_a_bug_in_a_callback_costs_a_connection_and_not_the_thread(mosquitto, client, monkeypatch):
    c = client(mosquitto.url, "buggy").up()

    def bug(*_):
        monkeypatch.undo()
        raise RuntimeError("boom")

    monkeypatch.setattr(Mqtt, "_confirm", bug)
    assert c.mqtt.publish("edgert/buggy", b"x", qos=1, token=7)
    assert "boom" in c.down().reason
    c.up(2)
    c.say("edgert/buggy")
    assert c.mqtt.faults() == {"internal-error": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_noticed_and_replaced(mosquitto, client, monkeypatch):
    c = client(mosquitto.url, "dead").up()
    assert c.mqtt.healthy()
    victim = threading.get_ident()

    class Deadly:
        def __init__(self):
            if threading.get_ident() != victim:
                raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(select, "poll", Deadly)
        c.until(lambda: not c.mqtt.healthy())
    before = len(c.look(LinkUp))
    assert c.mqtt.revive() and c.mqtt.revive()
    assert "died" in c.down().reason
    c.up(before + 1)
    c.say("edgert/dead")
    assert c.mqtt.faults() == {"thread-replaced": 1}


# ---- trap 3: a half-open link


@pytest.mark.parametrize("how", ["frozen broker", "black hole"])
def test_a_half_open_link_is_noticed_and_mended(fresh_mosquitto, client, tcp_link, how):
    link = tcp_link(fresh_mosquitto.port)
    c = client(link.url, "half", keepalive_s=2).up()
    c.hears("edgert/half")
    if how == "black hole":
        link.blackhole()
        assert c.mqtt.publish("edgert/half", b"lost", qos=1, token=1)
        assert c.down().unconfirmed == (1,)
        link.mend()
    else:
        with fresh_mosquitto.stop_cont():
            assert c.mqtt.publish("edgert/half", b"lost", qos=1, token=1)
            assert c.down().unconfirmed == (1,)
            assert not c.mqtt.is_up()
            assert c.mqtt.rtt_s() is None
    c.up(2)
    c.say("edgert/half", b"found")
    c.until(lambda: b"found" in c.got())


# ---- trap 4: publishing while offline


def test_nothing_is_queued_while_offline(fresh_mosquitto, client):
    fresh_mosquitto.stop()
    c = client(fresh_mosquitto.url, "offline")
    c.mqtt.subscribe([("edgert/offline", 1)])
    c.down()
    assert [c.mqtt.publish("edgert/offline", b"lost", qos=q) for q in (0, 1)] == [False, False]
    assert c.mqtt.max_payload_bytes("t") is None
    fresh_mosquitto.restart()
    c.up()
    c.say("edgert/offline", b"kept")
    c.hear(b"kept")


# ---- trap 5: waiting inside a callback


def test_the_owner_may_publish_and_wait_while_handling_a_message(mosquitto, client):
    asker = client(mosquitto.url, "asker").up()
    asker.hears("edgert/answer")
    server = client(mosquitto.url, "answerer").up()
    server.hears("edgert/ask")
    asker.say(
        "edgert/ask", b"?", response_topic="edgert/answer", correlation=b"\x00\xff", content_type="application/cbor",
        user=[("a", "1"), ("a", "2")], expiry_s=60,
    )  # fmt: skip
    server.until(lambda: server.look(Received))
    asked = server.look(Received)[0]
    assert asked == Received(
        topic="edgert/ask", payload=b"?", qos=1, retain=False, content_type="application/cbor", expiry_s=60,
        response_topic="edgert/answer", correlation=b"\x00\xff", user=(("a", "1"), ("a", "2")),
    )  # fmt: skip
    server.say(asked.response_topic, b"!", correlation=asked.correlation)
    asker.hear(b"!")
    assert asker.look(Received)[0].correlation == b"\x00\xff"


# ---- trap 6: sessions


@pytest.mark.parametrize("expiry_s", [60, 0])
def test_messages_wait_for_a_client_with_a_lasting_session(fresh_mosquitto, client, expiry_s):
    c = client(fresh_mosquitto.url, "sleeper", session_expiry_s=expiry_s).up()
    assert not c.look(LinkUp)[0].session_present
    c.hears("edgert/sleeper")
    c.mqtt.close()
    client(fresh_mosquitto.url, "speaker").up().say("edgert/sleeper", b"m")
    again = client(fresh_mosquitto.url, "sleeper", session_expiry_s=expiry_s).up()
    assert again.look(LinkUp)[0].session_present is (expiry_s > 0)
    again.say("edgert/nobody")
    assert again.got() == ([b"m"] if expiry_s else [])


def test_a_cut_link_continues_its_session(fresh_mosquitto, client, tcp_link):
    link = tcp_link(fresh_mosquitto.port)
    c = client(link.url, "cut", rules=LinkRules(base_s=0.5)).up()
    c.hears("edgert/cut")
    speaker = client(fresh_mosquitto.url, "speaker").up()
    link.cut()
    speaker.say("edgert/cut", b"meanwhile")
    c.up(2)
    assert c.look(LinkUp)[1].session_present
    c.hear(b"meanwhile")


@pytest.mark.parametrize("done", [True, False])
def test_what_an_owner_had_not_seen_to_when_it_died_is_sent_again(fresh_mosquitto, client, until, done):
    c = client(fresh_mosquitto.url, "mortal").up()
    c.hears("edgert/order")
    client(fresh_mosquitto.url, "speaker").up().say("edgert/order", b"order")
    taken = []

    def took(kind):
        taken.extend(c.mqtt.events(done=False))
        return any(isinstance(event, kind) for event in taken)

    until(lambda: took(Received))
    if done:
        c.mqtt.done()
    assert c.mqtt.publish("edgert/nobody", b"x", qos=1, token=1)
    until(lambda: took(Published))  # whatever is acknowledged is by now
    c.mqtt.close(goodbye=False)
    again = client(fresh_mosquitto.url, "mortal").up()
    again.say("edgert/order", b"echo")
    again.until(lambda: b"echo" in again.got(), "the echo")
    assert again.got() == ([] if done else [b"order"]) + [b"echo"]


@pytest.mark.parametrize("expiry_s", [60, 0])
def test_what_is_known_comes_again_only_where_the_session_was_forgotten(fresh_mosquitto, client, tcp_link, expiry_s):
    link, knows = tcp_link(fresh_mosquitto.port), []
    client(fresh_mosquitto.url, "speaker").up().say("edgert/kept", b"kept", retain=True)
    c = client(link.url, "knower", rules=LinkRules(base_s=0.5), session_expiry_s=expiry_s)
    c.mqtt.subscribe([("edgert/kept", 1)], known=lambda: bool(knows))
    c.hear(b"kept")
    c.say("edgert/nobody")  # by now it is acknowledged, and not to be sent again
    knows.append(True)
    link.cut()
    c.up(2).say("edgert/kept", b"echo")  # whatever comes of the subscription comes before
    c.until(lambda: b"echo" in c.got(), "the echo")
    assert c.got() == [b"kept"] * (1 if expiry_s else 2) + [b"echo"]
    knows.clear()
    link.cut()
    c.up(3).until(lambda: c.got()[-1] == b"kept", "what is known no more")


# ---- trap 7: a broker that is down, or refuses


def test_a_broker_that_is_down_is_retried_quietly(fresh_mosquitto, client):
    fresh_mosquitto.stop()
    c = client(fresh_mosquitto.url, "early")
    assert "cannot connect" in c.down(3).reason
    assert c.mqtt.healthy()
    assert c.mqtt.faults() == {}
    fresh_mosquitto.restart()
    c.up()


def test_a_wrong_password_holds_off(fresh_mosquitto, client):
    passwords = fresh_mosquitto.dir / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "dev", "right"], check=True, capture_output=True)
    passwords.chmod(0o644)
    fresh_mosquitto.configure(f"allow_anonymous false\npassword_file {passwords}\n")
    where = f"@127.0.0.1:{fresh_mosquitto.port}"
    wrong = client(f"mqtt://dev:wrong{where}", "wrong", rules=LinkRules())
    down = wrong.down()
    assert (down.fault, down.reason_code) == ("refused", 0x87)
    assert down.retry_s > 55.0
    client(f"mqtt://dev:right{where}", "right").up()
    assert wrong.mqtt.faults() == {"refused": 1}
    assert wrong.look(LinkDown) == [down]


def test_a_session_taken_over_holds_off(client):
    with socket.create_server(("127.0.0.1", 0)) as server:
        c = client(f"mqtt://127.0.0.1:{server.getsockname()[1]}", "twin", rules=LinkRules())
        peer, _ = server.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(bytes.fromhex("2003000000 e0028e00"))
            down = c.down()
    assert (down.reason_code, down.fault) == (0x8E, "duplicate-identity")
    assert down.retry_s > 55.0


def test_two_with_one_identity_do_not_fight_at_full_speed(fresh_mosquitto, client):
    # mosquitto 2.0.11 ends the older connection without the DISCONNECT that MQTT 5 asks for.
    twins = [client(fresh_mosquitto.url, "twin") for _ in range(2)]
    twins[0].until(lambda: any("flapping" in t.mqtt.faults() for t in twins))
    for twin in twins:
        downs = twin.look(LinkDown)
        assert all(d.fault == "flapping" for d in downs[4:])


# ---- the socket


def test_no_delay_is_set(mosquitto, client):
    client(mosquitto.url, "nodelay").up()
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not files
        try:
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.getpeername()[1:2] == (mosquitto.port,):
                    found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        except OSError:
            continue
    assert found == [1]


def test_more_than_1024_file_descriptors(mosquitto, client):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"only {hard} file descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    spare = [os.dup(0) for _ in range(1100)]
    try:
        c = client(mosquitto.url, "many").up()
        assert c.mqtt.fileno() > 1024
        c.hears("edgert/many")
        c.say("edgert/many", b"x")
        c.hear(b"x")
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def tls_broker(fresh_mosquitto, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    key.chmod(0o644)
    port = broker.free_port()
    fresh_mosquitto.configure(f"listener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}\n")
    return f"mqtts://127.0.0.1:{port}", cert


def test_tls(tls_broker, client):
    url, cert = tls_broker
    c = client(f"{url}?ca={cert}", "tls").up()
    c.hears("edgert/tls")
    payloads = [bytes([n]) * 40_000 for n in range(5)]
    for payload in payloads:
        c.say("edgert/tls", payload)
    c.hear(*payloads)


# paho drops the socket of a failed handshake without closing it; the interpreter does, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_certificate_nobody_vouches_for(tls_broker, client):
    url, _ = tls_broker
    c = client(url, "stranger")
    assert "certificate" in c.down().reason.lower()
    c.mqtt.close()
    gc.collect()


# ---- living through faults


def test_kill_minus_nine_and_restart(fresh_mosquitto, client):
    c = client(fresh_mosquitto.url, "survivor", birth=("edgert/survivor/status", b"on")).up()
    c.hears("edgert/survivor")
    fresh_mosquitto.kill9()
    c.down()
    fresh_mosquitto.restart()
    c.up(2)
    c.say("edgert/survivor", b"after")
    c.hear(b"after")
    watcher = client(fresh_mosquitto.url, "watcher").up()
    watcher.mqtt.subscribe([("edgert/survivor/status", 1)])
    watcher.hear(b"on")
    assert watcher.look(Received)[0].retain


def test_who_subscribes_and_then_publishes_is_heard_in_that_order(mosquitto, client, monkeypatch):
    """Whenever the owner does so, also while the thread is at work on what it was told before."""
    c = client(mosquitto.url, "orderly").up()
    real = mqtt.paho.Client.unsubscribe

    def in_the_middle(paho_client, filters):
        c.mqtt.subscribe([("edgert/orderly", 1)])
        assert c.mqtt.publish("edgert/orderly", b"echo", qos=1)
        return real(paho_client, filters)

    monkeypatch.setattr(mqtt.paho.Client, "unsubscribe", in_the_middle)
    c.mqtt.unsubscribe(["edgert/other"], again=False)
    c.hear(b"echo")


def test_the_owner_may_have_it_connect_again(mosquitto, client):
    c = client(mosquitto.url, "again").up()
    c.hears("edgert/again")
    c.mqtt.reconnect("nothing comes through")
    assert c.down().reason == "nothing comes through"
    c.up(2)
    c.say("edgert/again", b"m")
    c.hear(b"m")


@pytest.mark.parametrize("goodbye", [True, False])
def test_the_will_speaks_only_after_a_crash(mosquitto, client, goodbye):
    topic = f"edgert/will/{goodbye}"
    watcher = client(mosquitto.url, f"heir{goodbye}").up()
    watcher.hears(topic)
    c = client(mosquitto.url, f"mortal{goodbye}", will=(topic, b"gone"), birth=(topic, b"here")).up()
    watcher.hear(b"here")
    c.mqtt.publish(topic, b"last words", qos=1)
    c.mqtt.close(goodbye=goodbye)
    watcher.say("edgert/other")
    expected = [b"here", b"last words"] + ([] if goodbye else [b"gone"])
    watcher.hear(*expected)
    watcher.say(topic, b"", retain=True)


# ---- bounds


def test_the_outbound_queue_is_bounded_and_told_to_be_full(fresh_mosquitto, client):
    c = client(fresh_mosquitto.url, "flood", max_queue_bytes=20_000).up()
    with fresh_mosquitto.stop_cont():
        accepted = 0
        while c.mqtt.publish("edgert/flood", b"x" * 1000, qos=1, token=accepted):
            accepted += 1
            assert accepted < 100
        assert accepted == 19
        assert c.mqtt.faults() == {"outbound-full": 1}
    c.until(lambda: len(c.look(Published)) == accepted)
    assert [e.token for e in c.look(Published)] == list(range(accepted))
    assert all(e.ok for e in c.look(Published))
    c.say("edgert/flood")


def test_a_slow_owner_slows_the_broker_and_loses_no_qos1_message(mosquitto, client, until):
    c = client(mosquitto.url, "slow", receive_maximum=5).up()
    c.hears("edgert/slow")
    speaker = client(mosquitto.url, "slow-speaker").up()
    for n in range(20):
        speaker.say("edgert/slow", b"%d" % n)
    until(lambda: len(c.mqtt._inbox) == 5)
    c.hear(*(b"%d" % n for n in range(20)))
    assert c.mqtt.faults() == {}


def test_qos0_floods_drop_the_oldest(mosquitto, client, until):
    c = client(mosquitto.url, "deluge", max_events=10).up()
    c.hears("edgert/deluge")
    speaker = client(mosquitto.url, "deluge-speaker").up()
    for n in range(50):
        speaker.until(lambda n=n: speaker.mqtt.publish("edgert/deluge", b"%d" % n, qos=0))
    until(lambda: c.mqtt.faults().get("inbound-overflow") == 40)
    c.hear(*(b"%d" % n for n in range(40, 50)))


def test_a_broker_that_ignores_our_packet_limit(tmp_path, client):
    pytest.importorskip("iotcore")
    with broker.start("iotcore", tmp_path) as server:
        c = client(server.url, "small", max_packet_bytes=1000).up()
        c.hears("edgert/small")
        speaker = client(server.url, "large").up()
        speaker.say("edgert/small", b"z" * 2000)
        speaker.say("edgert/small", b"fits")
        c.hear(b"fits")
        assert c.mqtt.faults() == {"inbound-oversize": 1}


# ---- words


def test_round_trip_time_is_known_after_a_confirmation(mosquitto, client):
    c = client(mosquitto.url, "rtt").up()
    assert c.mqtt.rtt_s() is None
    c.say("edgert/rtt")
    assert 0.0 < c.mqtt.rtt_s() < 30.0


def test_refusals_of_the_access_list_are_told(fresh_mosquitto, client):
    acl = fresh_mosquitto.dir / "acl"
    acl.write_text("topic readwrite edgert/mine/#\n")
    acl.chmod(0o600)
    fresh_mosquitto.configure(f"acl_file {acl}\n")
    c = client(fresh_mosquitto.url, "acl").up()
    c.say("edgert/yours")
    assert c.look(Published)[0].reason_code == 0x87
    assert not c.look(Published)[0].ok
    assert c.mqtt.faults()["publish-refused"] == 1
    c.say("edgert/mine/x")
    assert c.look(Published)[1].ok


def test_unsubscribe(mosquitto, client):
    c = client(mosquitto.url, "fickle").up()
    c.hears("edgert/a")
    c.hears("edgert/b")
    c.mqtt.unsubscribe(["edgert/a"])
    c.say("edgert/a", b"a")
    c.say("edgert/b", b"b")
    c.hear(b"b")


@pytest.mark.parametrize(("topic", "options"), [("a/+", {}), ("a/#", {}), ("", {}), ("a", {"expiry_s": -1})])
def test_what_mqtt_cannot_say_is_the_callers_fault(topic, options):
    link = Mqtt("mqtt://127.0.0.1:1", "never-started")
    with pytest.raises(UsageError):
        link.publish(topic, b"", qos=1, **options)
    with pytest.raises(UsageError):
        link.publish("a", b"", qos=2)
    link.close()


def test_close_is_quick_and_final_when_the_broker_is_gone(fresh_mosquitto, client):
    c = client(fresh_mosquitto.url, "leaver").up()
    fresh_mosquitto.kill9()
    c.down()
    c.mqtt.close()
    assert not c.mqtt.publish("t", b"", qos=0)


def test_only_one_file_knows_paho():
    package = Path(mqtt.__file__).parent.parent
    users = [p.name for p in package.rglob("*.py") if "import paho" in p.read_text() or "from paho" in p.read_text()]
    assert sorted(users) == ["mqtt.py", "packets.py"]
