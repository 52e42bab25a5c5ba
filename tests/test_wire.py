"""The wire: bytes that never change, round trips, and a decoder that random, mutated and hostile bytes cannot break."""

from __future__ import annotations

from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert import wire
from edgert.errors import MessageError, UsageError

GOLDEN = Path(__file__).parent / "golden" / "wire"

VECTORS: dict[str, wire.Message] = {
    "status": wire.Status(online=True, session="5f0c2a", version="0.1.0", task="breakout"),
    "status-will": wire.Status(online=False, session="5f0c2a"),
    "telemetry": wire.Telemetry(at_s=1_795_236_400.5, status={"actor": {"ticks": 7}, "why": ["hot"], "temp_c": None}),
    "event": wire.Event(
        stream="9b1d", seq=41, first=12, at_s=1_795_236_400.5, name="swapped", detail={"generation": 3, "ok": True}
    ),
    "event-bare": wire.Event(stream="9b1d", seq=0, first=0, at_s=0.0, name="started"),
    "event-ack": wire.EventAck(stream="9b1d", up_to=(1 << 63) - 1),
    "exits-command": wire.ExitsCommand(id="c1", thresholds=(0.25, 1.0), repeat=2, hold_threshold=0.5, valid_s=60.0),
    "exits-command-reset": wire.ExitsCommand(id="c2"),
    "goals-command": wire.GoalsCommand(id="g1", goals={"last_until": "18:00", "max_power_w": 2.5}, valid_s=3600.0),
    "rebirth": wire.Rebirth(),
    "logs-command": wire.LogsCommand(id="l1", lines=20),
    "status-numbered": wire.Status(online=True, session="5f0c2a", seq=3),
    "telemetry-numbered": wire.Telemetry(at_s=1.5, status={}, seq=7),
    "command-reply": wire.CommandReply(id="c1", ok=False, why="pinned", detail={"point": None}),
    "twin-desired": wire.TwinDesired(epoch=1_795_236_400, version=3, settings={"labels": {"site": "north"}}),
    "twin-reported": wire.TwinReported(
        epoch=1_795_236_400, version=3, digest="0123456789abcdef", settings={"learn.paused": False}, refused={"x": "no"}
    ),
    "job-order": wire.JobOrder(
        id="j1",
        kind="fetch",
        args={"for_s": 60.0},
        issued_s=1_795_236_400.5,
        valid_s=3600.0,
        when={"link": "unmetered"},
    ),
    "job-order-bare": wire.JobOrder(id="j2", kind="train", issued_s=0.0),
    "job-cancel": wire.JobCancel(id="j1", issued_s=1_795_236_401.5),
    "job-state": wire.JobState(id="j1", kind="fetch", state="done", attempt=1, origin="night", result={"bytes": 9}),
    "know-ask": wire.KnowAsk(
        task="breakout", obs_shape=(10, 10, 4), n_actions=6, count=2, codec=1, data=bytes(range(16))
    ),
    "know-ask-actions": wire.KnowAsk(
        task="pong", obs_shape=(84, 84, 4), n_actions=6, count=1, codec=1, data=b"\x07", actions="0a1b2c3d"
    ),
    "know-answer": wire.KnowAnswer(teacher="0123456789abcdef", count=2, codec=1, data=b"\x00\xff"),
    "know-answer-error": wire.KnowAnswer(teacher="0123456789abcdef", count=0, codec=1, data=b"", error="obs-shape"),
    "know-answer-policy": wire.KnowAnswer(teacher="0123456789abcdef", count=1, codec=1, data=b"\x09", kind="policy"),
    "know-answer-over-budget": wire.KnowAnswer(
        teacher="0123456789abcdef", count=0, codec=1, data=b"", error="over-budget", retry_s=2.5
    ),
    "placing": wire.Placing(body={"type": "release", "job": "j1", "attempt": 2}),
    "place-submit": wire.PlaceSubmit(
        id="j1", steps=300, batch=64, checkpoint_steps=50, split="layers", hyper={"learning_rate": 0.5}, due_s=60.0
    ),
    "place-take": wire.PlaceTake(id="j1"),
    "place-work": wire.PlaceWork(
        job="j1",
        attempt=2,
        part=1,
        order={"kind": "layers", "edges": [0, 1]},
        files=(
            wire.PolicyOffer(
                id="j1", name="shard", sha256="0" * 64, size_bytes=9, chunk_bytes=4096, hashes=b"", version=1
            ),
        ),
        hosts=("d1", "d2"),
    ),
    "place-go": wire.PlaceGo(job="j1", attempt=2),
    "place-state": wire.PlaceState(
        job="j1", attempt=2, part=1, state="running", step=17, have_bytes=9, rss_bytes=1 << 25, cpu_s=0.5
    ),
    "place-data": wire.PlaceData(
        job="j1", attempt=2, kind="back", of=1, to=0, step=17, micro=1, index=1, count=3, data=b"\x01\x02"
    ),
    "place-job": wire.PlaceJob(
        id="j1",
        owner="d1",
        state="running",
        attempt=2,
        step=17,
        steps=300,
        nodes=("d2",),
        history=({"at_s": 1.5, "what": "proposed", "nodes": ["d2"]},),
        result={"path": ""},
    ),
    "place-gone": wire.PlaceGone(session=1_795_236_400_500),
    "infer-ask": wire.InferAsk(model="0123456789abcdef", rows=1, data=b"\x01\x02", left_s=0.25),
    "infer-answer": wire.InferAnswer(
        model="0123456789abcdef", rows=1, data=b"\x00\x00\x80\x3f", waited_s=0.002, run_s=0.013
    ),
    "infer-answer-busy": wire.InferAnswer(model="0123456789abcdef", rows=0, data=b"", error="busy", retry_s=0.5),
    "infer-load": wire.InferLoad(
        place="edge",
        accepts=True,
        models=(wire.Offered(id="0123456789abcdef", name="digits-1-int8", row_s=0.001),),
        cpu_frac=0.25,
        memory_frac=0.5,
        waiting_s=0.1,
        rtt_s=0.02,
        every_s=1.0,
    ),
    "key-list": wire.KeyList(
        serial=2,
        keys=(wire.Key(id="66687aadf862bd77", public=bytes(32), uses=("bundle", "keys"), name="ci", not_after_s=2e9),),
        revoked=("0123456789abcdef",),
    ),
    "signed": wire.Signed(
        fleet="f", to="label:lab", counter=7, not_after_s=2e9, payload=b"p", key="66687aadf862bd77", signature=bytes(64)
    ),
    "policy-offer": wire.PolicyOffer(
        id="r1", name="n", sha256="0" * 64, size_bytes=5000, chunk_bytes=4096, hashes=bytes(32), version=3
    ),
    "policy-chunk": wire.PolicyChunk(data=b"\x00\xff"),
    "policy-report": wire.PolicyReport(id="r1", stage="held", code="no-space", why="full", version=3, size_bytes=5000),
}
SCHEMAS = (
    wire.Status,
    wire.Telemetry,
    wire.Event,
    wire.EventAck,
    wire.ExitsCommand,
    wire.GoalsCommand,
    wire.Rebirth,
    wire.LogsCommand,
    wire.CommandReply,
    wire.TwinDesired,
    wire.TwinReported,
    wire.JobOrder,
    wire.JobCancel,
    wire.JobState,
    wire.KnowAsk,
    wire.KnowAnswer,
    wire.InferAsk,
    wire.InferAnswer,
    wire.InferLoad,
    wire.KeyList,
    wire.Signed,
    wire.PolicyOffer,
    wire.PolicyChunk,
    wire.PolicyReport,
    wire.Placing,
    wire.PlaceSubmit,
    wire.PlaceTake,
    wire.PlaceWork,
    wire.PlaceGo,
    wire.PlaceState,
    wire.PlaceData,
    wire.PlaceJob,
    wire.PlaceGone,
)

TEXT = st.text(max_size=12)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | TEXT | st.binary(max_size=9)
)
DOCUMENTS = st.dictionaries(
    TEXT,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)),
    max_size=4,
)
AT = st.floats(allow_nan=False)
SEQ = st.integers(0, (1 << 63) - 1)
COUNT, SIDE = st.integers(0, 4096), st.integers(1, 4096)
CODED = {"count": COUNT, "codec": st.integers(0, 2**40), "data": st.binary(max_size=60)}
KEY_ID = st.text("0123456789abcdef", min_size=16, max_size=16)
MESSAGES = st.one_of(
    st.builds(wire.Status, online=st.booleans(), session=TEXT, version=TEXT, task=TEXT),
    st.builds(wire.Telemetry, at_s=AT, status=DOCUMENTS),
    st.builds(wire.Event, stream=TEXT, seq=SEQ, first=SEQ, at_s=AT, name=TEXT, detail=DOCUMENTS),
    st.builds(wire.EventAck, stream=TEXT, up_to=SEQ),
    st.builds(
        wire.ExitsCommand,
        id=TEXT,
        thresholds=st.none() | st.lists(AT, max_size=3).map(tuple),
        repeat=st.integers(-5, 99),
        hold_threshold=AT,
        point=st.none() | st.integers(-5, 99),
        max_ops_frac=AT,
        valid_s=st.none() | AT,
    ),
    st.builds(wire.Rebirth),
    st.builds(wire.LogsCommand, id=TEXT, lines=st.integers(1, 200)),
    st.builds(wire.GoalsCommand, id=TEXT, goals=DOCUMENTS, valid_s=st.none() | AT),
    st.builds(wire.CommandReply, id=TEXT, ok=st.booleans(), why=TEXT, detail=DOCUMENTS),
    st.builds(wire.TwinDesired, epoch=SEQ, version=SEQ, settings=DOCUMENTS),
    st.builds(
        wire.TwinReported,
        epoch=SEQ,
        version=SEQ,
        digest=TEXT,
        settings=DOCUMENTS,
        refused=st.dictionaries(TEXT, TEXT, max_size=3),
    ),
    st.builds(wire.JobOrder, id=TEXT, kind=TEXT, args=DOCUMENTS, issued_s=AT, valid_s=st.none() | AT, when=DOCUMENTS),
    st.builds(wire.JobCancel, id=TEXT, issued_s=AT),
    st.builds(wire.JobState, id=TEXT, kind=TEXT, state=TEXT, attempt=st.integers(0, 9), result=DOCUMENTS),
    st.builds(wire.KnowAsk, task=TEXT, obs_shape=st.tuples(SIDE, SIDE, SIDE), n_actions=SIDE, actions=TEXT, **CODED),
    st.builds(
        wire.KnowAnswer,
        teacher=TEXT,
        error=TEXT,
        kind=st.sampled_from(["q", "policy"]),
        retry_s=st.floats(0, 86_400),
        **CODED,
    ),
    st.builds(
        wire.KeyList,
        serial=st.integers(1, (1 << 63) - 1),
        keys=st.lists(
            st.builds(wire.Key, id=KEY_ID, public=st.binary(min_size=32, max_size=32), uses=st.just(("keys",))),
            max_size=3,
        ).map(tuple),
        revoked=st.lists(KEY_ID, max_size=3).map(tuple),
    ),
    st.builds(
        wire.Signed,
        fleet=TEXT,
        to=st.text(max_size=20),
        counter=SEQ,
        not_after_s=AT,
        payload=st.binary(max_size=64),
        key=KEY_ID,
        signature=st.binary(max_size=64),
    ),
    st.builds(
        wire.PolicyOffer,
        id=TEXT,
        name=st.text(max_size=20),
        sha256=st.just("a" * 64),
        size_bytes=st.integers(1, 1 << 28),
        chunk_bytes=st.integers(1024, 1 << 18),
        hashes=st.binary(max_size=64),
        version=st.integers(1, 1 << 40),
        url=st.text(max_size=20),
    ),
    st.builds(
        wire.InferAsk, model=KEY_ID, rows=st.integers(0, 256), data=st.binary(max_size=64), left_s=st.floats(0, 86_400)
    ),
    st.builds(
        wire.InferAnswer,
        model=KEY_ID,
        rows=st.integers(0, 256),
        data=st.binary(max_size=64),
        error=st.sampled_from(("", "busy", "late")),
        retry_s=st.floats(0, 60),
    ),
    st.builds(
        wire.InferLoad,
        place=TEXT,
        accepts=st.booleans(),
        models=st.lists(st.builds(wire.Offered, id=KEY_ID, name=st.text(max_size=20)), max_size=3).map(tuple),
        cpu_frac=st.none() | st.floats(0, 1),
    ),
    st.builds(wire.Placing, body=DOCUMENTS),
    st.builds(wire.PlaceTake, id=st.just("j1")),
    st.builds(wire.PlaceSubmit, id=st.just("j1"), steps=st.integers(1, 99), hyper=st.just({"gamma": 0.5})),
    st.builds(
        wire.PlaceWork,
        job=st.just("j1"),
        attempt=st.integers(0, 9),
        part=st.integers(-1, 63),
        order=DOCUMENTS,
        files=st.just(()),
        hosts=st.just(("d1",)),
    ),
    st.builds(wire.PlaceGo, job=st.just("j1"), attempt=st.integers(0, 9)),
    st.builds(
        wire.PlaceState, job=st.just("j1"), attempt=st.integers(0, 9), part=st.just(0), state=st.just("ready"), why=TEXT
    ),
    st.builds(
        wire.PlaceData,
        job=st.just("j1"),
        attempt=st.integers(0, 9),
        kind=st.just("sum"),
        of=st.just(0),
        to=st.just(1),
        step=st.integers(0, 99),
        data=st.binary(max_size=64),
    ),
    st.builds(wire.PlaceJob, id=st.just("j1"), owner=st.just("d1"), state=TEXT, why=TEXT, result=DOCUMENTS),
    st.builds(wire.PlaceGone, session=st.integers(0, 1 << 52)),
    st.builds(wire.PolicyChunk, data=st.binary(max_size=256)),
    st.builds(wire.PolicyReport, id=TEXT, stage=TEXT, code=TEXT, why=TEXT, version=SEQ, kept=TEXT, floor=SEQ),
)


@pytest.mark.parametrize("name", VECTORS)
def test_version_1_bytes_are_read_for_ever(name):
    payload = (GOLDEN / f"v1-{name}.cbor").read_bytes()
    assert wire.decode(payload, type(VECTORS[name])) == (VECTORS[name], {})


@pytest.mark.parametrize("name", VECTORS)
def test_version_1_bytes_are_still_written(name):
    assert wire.encode(VECTORS[name]) == (GOLDEN / f"v1-{name}.cbor").read_bytes()


def test_every_schema_has_a_golden_vector_and_every_vector_a_file():
    assert {type(message) for message in VECTORS.values()} == set(SCHEMAS)
    assert {path.name for path in GOLDEN.glob("v1-*.cbor")} == {f"v1-{name}.cbor" for name in VECTORS}


@given(MESSAGES)
def test_a_message_comes_back(message):
    assert wire.decode(wire.encode(message), type(message)) == (message, {})


@given(MESSAGES, DOCUMENTS)
def test_unknown_keys_are_kept_and_never_override(message, extra):
    known = {"schema", *type(message).__struct_fields__}
    back, unknown = wire.decode(wire.encode(message, extra), type(message))
    assert back == message
    assert unknown == {key: value for key, value in extra.items() if key not in known}


@given(MESSAGES, st.sampled_from(SCHEMAS))
def test_a_message_is_read_as_nothing_else(message, schema):
    if schema is not type(message):
        with pytest.raises(MessageError):
            wire.decode(wire.encode(message), schema)


def try_decode(payload: bytes) -> None:
    for schema in SCHEMAS:
        try:
            message, unknown = wire.decode(payload, schema)
        except MessageError:
            continue
        assert wire.decode(wire.encode(message, unknown), schema) == (message, unknown)


@given(st.binary(max_size=200))
def test_random_bytes_are_message_errors(payload):
    for schema in SCHEMAS:
        with pytest.raises(MessageError):
            wire.decode(payload, schema)


@given(st.sampled_from(list(VECTORS.values())), st.data())
def test_mutated_bytes_are_message_errors_or_messages(message, data):
    hurt = bytearray(wire.encode(message))
    for at in data.draw(st.lists(st.integers(0, len(hurt) - 1), min_size=1, max_size=3)):
        hurt[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(hurt)))
    try_decode(bytes(hurt))
    try_decode(bytes(hurt[:cut]))


@given(
    st.sampled_from(SCHEMAS),
    st.dictionaries(
        st.sampled_from(
            [
                "v",
                "schema",
                "task",
                "obs_shape",
                "n_actions",
                "count",
                "codec",
                "data",
                "teacher",
                "error",
                "seq",
                "at_s",
                "name",
                "detail",
                "up_to",
                "online",
                "session",
                "version",
                "status",
            ]
        ),
        LEAVES | DOCUMENTS,
    ),
)
def test_well_formed_maps_with_wrong_values_are_message_errors_or_messages(schema, document):  # fmt: skip
    tag = schema.__struct_config__.tag
    try:
        message, _ = wire.decode(cbor2.dumps({**document, "v": 1, "schema": tag}), schema)
    except MessageError:
        return
    assert isinstance(message, schema)


HOSTILE = {
    "empty": b"",
    "a list": cbor2.dumps([1, 2]),
    "a number": cbor2.dumps(1),
    "keys that are no text": cbor2.dumps({1: 2, "v": 1, "schema": "event-ack", "stream": "s", "up_to": 1}),
    "no version": cbor2.dumps({"schema": "event-ack", "stream": "s", "up_to": 1}),
    "a version of true": cbor2.dumps({"v": True, "schema": "event-ack", "stream": "s", "up_to": 1}),
    "version 0": cbor2.dumps({"v": 0, "schema": "event-ack", "stream": "s", "up_to": 1}),
    "a newer version": cbor2.dumps({"v": 2, "schema": "event-ack", "stream": "s", "up_to": 1}),
    "no schema": cbor2.dumps({"v": 1, "stream": "s", "up_to": 1}),
    "another schema": cbor2.dumps({"v": 1, "schema": "event", "up_to": 1}),
    "a negative sequence": cbor2.dumps({"v": 1, "schema": "event-ack", "stream": "s", "up_to": -1}),
    "a bignum sequence": cbor2.dumps({"v": 1, "schema": "event-ack", "stream": "s", "up_to": 1 << 200}),
    "a float sequence": cbor2.dumps({"v": 1, "schema": "event-ack", "stream": "s", "up_to": 1.5}),
    "a thousand nested lists": b"\x81" * 5000 + b"\x00",
    "a thousand nested maps": b"\xa1\x61a" * 5000 + b"\x00",
    "an array that claims 2^60 entries": b"\x9b\x10\x00\x00\x00\x00\x00\x00\x00",
    "a string that claims 2^60 bytes": b"\x5b\x10\x00\x00\x00\x00\x00\x00\x00",
    "a map that claims 2^32 entries": b"\xba\xff\xff\xff\xff",
    "a decimal with a monstrous exponent": b"\xa1\x61v" + b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",
    "a fraction by zero": b"\xa1\x61v" + b"\xd8\x1e\x82\x01\x00",
    "a date that is none": b"\xa1\x61v" + b"\xc0\x63abc",
    "an epoch beyond time": b"\xa1\x61v" + b"\xc1\x1b\x7f\xff\xff\xff\xff\xff\xff\xff",
    "a regular expression that is none": b"\xa1\x61v" + b"\xd8\x23\x61(",
    "a bad address": b"\xa1\x61v" + b"\xd9\x01\x04\x41\x01",
    "a bad uuid": b"\xa1\x61v" + b"\xd8\x25\x41\x01",
    "a shared reference to nothing": b"\xa1\x61v" + b"\xd8\x1d\x05",
    "a map that contains itself": b"\xd8\x1c\xa1\x61v\xd8\x1d\x00",
    "text that is not UTF-8": b"\xa1\x61v\x62\xff\xfe",
    "too large": b"\x00" * (wire.MAX_PAYLOAD_BYTES + 1),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_bytes_are_message_errors(why):
    for schema in SCHEMAS:
        with pytest.raises(MessageError):
            wire.decode(HOSTILE[why], schema)


def test_bytes_after_the_message_are_refused():
    with pytest.raises(MessageError):
        wire.decode(wire.encode(wire.EventAck(stream="9b1d", up_to=1)) + b"\x00", wire.EventAck)


@pytest.mark.parametrize("tail", [b"\xd8\x1c\x81\xd8\x1d\x00"], ids=["a list that contains itself"])
def test_what_is_accepted_can_be_written_again(tail):
    """A status document is forwarded and stored: one that cannot be written must not come in."""
    payload = b"\xa4\x61v\x01\x66schema\x69telemetry\x64at_s\x00\x66status\xa1\x61a" + tail
    with pytest.raises(MessageError):
        wire.decode(payload, wire.Telemetry)


def test_too_much_to_send_is_a_usage_error():
    with pytest.raises(UsageError):
        wire.encode(wire.KnowAnswer(teacher="t", count=1, codec=1, data=bytes(wire.MAX_PAYLOAD_BYTES)))


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(NAMES, NAMES, NAMES, NAMES, NAMES | st.just("-"))
def test_topics_come_back(fleet, device, channel, kind, id):
    topic = wire.Topic(fleet, device, channel, kind, id)
    assert wire.parse_topic(str(topic)) == topic
    assert all(wire.is_name(part) for part in topic[:4])


@given(st.text(max_size=80))
def test_other_text_is_no_topic(text):
    try:
        topic = wire.parse_topic(text)
    except MessageError:
        return
    assert str(topic) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "edgert/v1/f/d/know/ask",
        "edgert/v1/f/d/know/ask/x/y",
        "edgert/v2/f/d/know/ask/x",
        "edgert/v1/f/+/know/ask/x",
        "edgert/v1/f/#/know/ask/x",
        "edgert/v1/f//know/ask/x",
        "edgert/v1/f/d/know/ask/x\n",
        "/edgert/v1/f/d/know/ask",
        "edgert/v1/f/..d\0/know/ask/x",
        "edgert/v1/f/" + "d" * 65 + "/know/ask/x",
    ],
)
def test_these_are_no_topics(text):
    with pytest.raises(MessageError):
        wire.parse_topic(text)


@pytest.mark.parametrize("name", ["", "-", "-a", ".a", "a/b", "a+", "#", "a b", "a\n", "ä", "a" * 65])
def test_these_are_no_names(name):
    assert not wire.is_name(name)
