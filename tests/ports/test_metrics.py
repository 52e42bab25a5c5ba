"""Metrics that Prometheus can read, from a file and from a port."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading

import pytest

from edgert.errors import ConfigError, StoreError
from edgert.ports.metrics import Exposition, Metric, Sample, histogram, render

LINE = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\["\\n])*"(,|(?=\})))*\})? -?[0-9.e+]+(inf)?$')


def test_the_text_is_what_the_format_says():
    said = render(
        [
            Metric("a_total", "counter", "What is counted.", [Sample({"task": 'x"\\\ny'}, 3), Sample({}, 0.25)]),
            Metric("none", "gauge", "Left out.", []),
            Metric("rows", "histogram", "Sizes.", [*histogram({"t": "u"}, (1, 4), (2, 0, 3), 17)]),
        ]
    )
    assert said.splitlines() == [
        "# HELP a_total What is counted.",
        "# TYPE a_total counter",
        r'a_total{task="x\"\\\ny"} 3',
        "a_total 0.25",
        "# HELP rows Sizes.",
        "# TYPE rows histogram",
        'rows_bucket{t="u",le="1"} 2',
        'rows_bucket{t="u",le="4"} 2',
        'rows_bucket{t="u",le="+Inf"} 5',
        'rows_sum{t="u"} 17',
        'rows_count{t="u"} 5',
    ]
    assert all(LINE.fullmatch(line) for line in said.splitlines() if not line.startswith("#"))
    assert said.endswith("\n")


def test_a_counter_keeps_its_last_digit():
    assert (
        render([Metric("a", "gauge", "h", [Sample({}, 123_456_789_012_345)])]).splitlines()[-1] == "a 123456789012345"
    )


def test_a_file(tmp_path):
    path = tmp_path / "teacher.prom"
    with contextlib.closing(Exposition(str(path))) as exposition:
        exposition.publish("a 1\n")
        exposition.publish("a 2\n")
    assert path.read_text() == "a 2\n"
    assert [each.name for each in tmp_path.iterdir()] == ["teacher.prom"], "a collector reads every file here"
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_port():
    with contextlib.closing(Exposition("127.0.0.1:0")) as exposition:

        def get(path):
            link = http.client.HTTPConnection("127.0.0.1", exposition.port, timeout=10)
            with contextlib.closing(link):
                link.request("GET", path)
                answer = link.getresponse()
                return answer.status, answer.read(), answer.headers["Content-Type"]

        assert get("/metrics")[0] == 404, "nothing is known yet"
        exposition.publish("a 1\n")
        assert get("/metrics") == (200, b"a 1\n", "text/plain; version=0.0.4; charset=utf-8")
        assert get("/other")[0] == 404


def served() -> bool:
    return not any("process_request" in thread.name for thread in threading.enumerate())


def test_a_reader_that_hangs_up_is_not_worth_a_traceback(capsys, until):
    with contextlib.closing(Exposition("127.0.0.1:0")) as exposition:
        exposition.publish("a" * (64 << 20))
        for request in (b"GET /metrics HTTP/1.1\r\n\r\n", b"GET"):
            with socket.create_connection(("127.0.0.1", exposition.port)) as link:
                link.sendall(request)
                until(lambda: not served(), "its thread")
                if request != b"GET":
                    assert link.recv(1)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # as a crash would
            until(served, "the end of its thread")
    assert capsys.readouterr().err == ""


def test_a_fault_of_our_own_is_said(capsys, until):
    with contextlib.closing(Exposition("127.0.0.1:0")) as exposition:
        exposition.text = None  # what no code of ours does
        with socket.create_connection(("127.0.0.1", exposition.port)) as link:
            link.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            until(lambda: link.recv(1) == b"", "the end")
        until(served, "the end of its thread")
    assert "TypeError" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["teacher.json", "nowhere.example.invalid:9000", "127.0.0.1:99999"])
def test_where_nothing_can_be_put(target):
    with pytest.raises(ConfigError, match="--metrics"):
        Exposition(target)


def test_a_port_that_is_taken():
    with contextlib.closing(Exposition("0")) as exposition, pytest.raises(ConfigError):
        Exposition(str(exposition.port))


def test_a_folder_that_is_not_there(tmp_path):
    with contextlib.closing(Exposition(str(tmp_path / "no" / "t.prom"))) as exposition, pytest.raises(StoreError):
        exposition.publish("a 1\n")
