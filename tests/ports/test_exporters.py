"""Figures for Prometheus and OpenTelemetry, read back over HTTP and from a file."""

from __future__ import annotations

import contextlib
import http.server
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert.errors import ConfigError
from edgert.fleet import roster
from edgert.fleet.presence import Sighting
from edgert.fleet.roster import Entry
from edgert.ports import exporters
from edgert.ports.exporters import Otlp, Prometheus

ROWS = [
    roster.row(
        "a",
        Entry(
            sighting=Sighting(session="s", online=True, version="1", task='t"'),
            status={"board": {"temp_c": 41.5}, "actor": {"ticks": 123_456_789_012, "missed": 2}},
        ),
        (),
        0.0,
    ),
    roster.row("b", Entry(sighting=Sighting(online=False)), (), 0.0),
]


def test_every_figure_is_one_that_there_is() -> None:
    assert set(exporters.FIGURES) <= set(ROWS[0])


def lines(text: str) -> dict[str, float]:
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}


def test_prometheus_reads_a_port_and_a_file(tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    path = tmp_path / "fleet.prom"
    with contextlib.closing(Prometheus("f", port="0", textfile=path)) as prometheus:
        prometheus.show(ROWS)
        with urllib.request.urlopen(f"http://127.0.0.1:{prometheus.port}/metrics") as answer:
            served = lines(answer.read().decode())
    said = lines(path.read_text())
    assert said['edgert_device_temperature_celsius{device="a",fleet="f"}'] == 41.5
    assert said['edgert_device_ticks_total{device="a",fleet="f"}'] == 123_456_789_012
    assert said['edgert_device_online{device="b",fleet="f"}'] == 0.0
    assert not any("power" in name for name in said)  # unknown is no number
    assert any('task="t\\""' in name for name in said)
    assert served == said
    assert path.stat().st_mode & 0o444 == 0o444
    assert [each.name for each in tmp_path.iterdir()] == ["fleet.prom"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"port": "x"}, "cannot listen"),
        ({"port": "127.0.0.1:99999"}, "cannot listen"),
        ({"textfile": Path("a.txt")}, "end in .prom"),
    ],
)
def test_where_nothing_can_be_put(options: dict, why: str) -> None:
    pytest.importorskip("prometheus_client")
    with pytest.raises(ConfigError, match=why):
        Prometheus("f", **options)


class _Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], body))  # type: ignore[attr-defined]  # ours
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Collector)
    server.got = []  # type: ignore[attr-defined]  # for the handler
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_opentelemetry_collector_is_told(collector: http.server.HTTPServer) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    otlp = Otlp("f", f"http://127.0.0.1:{collector.server_port}", 3600.0)
    otlp.show(ROWS)
    otlp.close()
    ((path, content_type, body),) = collector.got  # type: ignore[attr-defined]  # ours
    assert (path, content_type) == ("/v1/metrics", "application/x-protobuf")
    (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    assert "edgert.fleet" in {each.key for each in resource.resource.attributes}
    figures = {each.name: each for each in resource.scope_metrics[0].metrics}
    (point,) = figures["edgert.device.temperature"].gauge.data_points
    assert point.as_double == 41.5 and figures["edgert.device.temperature"].unit == "Cel"
    assert figures["edgert.device.ticks"].sum.is_monotonic
    assert len(figures["edgert.device.online"].gauge.data_points) == 2


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://x", "http://"])
def test_an_url_that_is_none(url: str) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with pytest.raises(ConfigError, match="--otlp"):
        Otlp("f", url, 1.0)


def test_libraries_are_loaded_by_who_uses_them_and_never_by_a_device() -> None:
    code = "import edgert.programs.supervisor, edgert.cli.export, edgert.ports.exporters, sys;"
    code += "print([m for m in sys.modules if m.startswith(('prometheus_client', 'opentelemetry', 'google.protobuf'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.metrics", None)
    with pytest.raises(ConfigError, match=r"edgert\[exporters\]"):
        Prometheus("f", port="0")
    with pytest.raises(ConfigError, match=r"edgert\[exporters\]"):
        Otlp("f", "http://localhost:4318", 1.0)
