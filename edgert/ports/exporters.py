"""A fleet's figures for Prometheus and for OpenTelemetry: only this file knows their libraries, and loads what is used.

Both are shown the same rows (`fleet.roster.row`) and ask for them in their own time, from threads of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgert.errors import ConfigError
from edgert.ports.store import write_atomic

Row = Mapping[str, object]
_MISSING = "the Python package {} is missing: pip install 'edgert[exporters]'"


class Figure(NamedTuple):
    """What a name of a row is called elsewhere.

    Attributes:
        name: with its unit, as Prometheus wants it.
        help: one line.
        total: it only grows, but for restarts of the device.
        otel: of OpenTelemetry, likewise.
        unit: as UCUM writes it.
    """

    name: str
    help: str
    total: bool
    otel: str
    unit: str


FIGURES: Mapping[str, Figure] = {
    "battery_frac": Figure("battery_ratio", "Charge of the battery.", False, "battery.charge", "1"),
    "temp_c": Figure("temperature_celsius", "Hottest zone that matters.", False, "temperature", "Cel"),
    "load_frac": Figure("load_ratio", "Share of the processors that is busy.", False, "cpu.utilization", "1"),
    "power_w": Figure("power_watts", "Power drawn.", False, "power", "W"),
    "link_rtt_s": Figure("link_rtt_seconds", "Round trip to the broker.", False, "link.rtt", "s"),
    "up_s": Figure("up_seconds", "Since the start of the supervisor.", False, "up", "s"),
    "events_waiting": Figure("events_waiting", "Events that no collector has.", False, "events.waiting", "{event}"),
    "ticks": Figure("ticks", "Decisions.", True, "ticks", "{tick}"),
    "missed": Figure("missed_ticks", "Decisions after their deadline.", True, "ticks.missed", "{tick}"),
    "spool_dropped": Figure("dropped_events", "Events that a full spool dropped.", True, "events.dropped", "{event}"),
    "jobs": Figure("open_jobs", "Jobs that have not ended.", False, "jobs.open", "{job}"),
    "missed_telemetry": Figure(
        "missed_telemetry", "Status documents that did not come.", True, "telemetry.missed", "{message}"
    ),
}


def _samples(rows: Iterable[Row], name: str) -> list[tuple[str, float]]:
    """(device, value), where there is one."""
    found = []
    for row in rows:
        value = row.get(name)
        if isinstance(value, int | float):
            found.append((str(row["device"]), float(value)))
    return found


class Prometheus:
    """Figures to be scraped from a port, or read from a file by node_exporter's textfile collector.

    Thread: a port is served by the library's own threads; `show` may be called from any.
    """

    def __init__(self, fleet: str, *, port: str | None = None, textfile: Path | None = None) -> None:
        """Open the port; the file is written by `show`.

        Args:
            fleet: label of all samples.
            port: `[HOST:]PORT`; 127.0.0.1 unless it says so.
            textfile: ends in `.prom`.

        Raises:
            ConfigError: the library is missing, the port cannot be had, or the file has another name.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise ConfigError(_MISSING.format("prometheus-client")) from error
        if textfile is not None and textfile.suffix != ".prom":
            raise ConfigError(f"--textfile {textfile}: its name must end in .prom, as node_exporter reads no other")
        self._fleet, self._textfile = fleet, textfile
        self._rows: Sequence[Row] = ()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._server: Any = None
        self.port: int | None = None
        if port is not None:
            host, _, number = port.rpartition(":")
            try:
                self._server, _ = start_http_server(int(number), host or "127.0.0.1", self._registry)
            except (OSError, ValueError, OverflowError) as error:
                raise ConfigError(f"--prometheus {port}: cannot listen there: {error}") from error
            self.port = self._server.server_port

    def describe(self) -> list[Any]:
        """The library asks at the beginning, when nothing is known."""
        return []

    def collect(self) -> list[Any]:
        """What the library reads."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        rows, labels = self._rows, ["fleet", "device"]
        families: list[Any] = []
        for name, figure in FIGURES.items():
            kind = CounterMetricFamily if figure.total else GaugeMetricFamily
            family = kind(f"edgert_device_{figure.name}", figure.help, labels=labels)
            for device, value in _samples(rows, name):
                family.add_metric([self._fleet, device], value)
            families.append(family)
        up = GaugeMetricFamily("edgert_device_online", "The device is there, and is heard.", labels=labels)
        info = GaugeMetricFamily(
            "edgert_device_info", "What it is.", labels=[*labels, "state", "version", "task", "policy"]
        )
        for row in rows:
            device = str(row["device"])
            up.add_metric([self._fleet, device], float(row["state"] == "online"))
            said = [str(row[each]) for each in ("state", "version", "task", "policy")]
            info.add_metric([self._fleet, device, *said], 1.0)
        return [*families, up, info]

    def show(self, rows: Sequence[Row]) -> None:
        """These are the figures from now on.

        Raises:
            StoreError: the file cannot be written.
        """
        from prometheus_client import generate_latest

        self._rows = rows
        if self._textfile is not None:
            write_atomic(self._textfile, generate_latest(self._registry), 0o644)

    def close(self) -> None:
        """Give the port back; a file stays, as its reader judges its age."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class Otlp:
    """Figures sent to an OpenTelemetry collector, over HTTP.

    Thread: sent by the library's own; `show` may be called from any.
    """

    def __init__(self, fleet: str, url: str, every_s: float) -> None:
        """Begin to send.

        Args:
            fleet: attribute of all figures.
            url: of the collector, such as http://localhost:4318; `/v1/metrics` is added where it has no path.
            every_s: between two reports.

        Raises:
            ConfigError: the library is missing, or the url is none.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.metrics import Observation
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
            from opentelemetry.sdk.resources import Resource
        except ModuleNotFoundError as error:
            raise ConfigError(_MISSING.format("opentelemetry-exporter-otlp-proto-http")) from error
        scheme, _, rest = url.partition("://")
        if scheme not in ("http", "https") or not rest.strip("/"):
            raise ConfigError(f"--otlp {url}: expected http://HOST:4318 or https://...")
        endpoint = url if "/" in rest.rstrip("/") else f"{url.rstrip('/')}/v1/metrics"
        self._rows: Sequence[Row] = ()
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=endpoint, timeout=10), export_interval_millis=1000.0 * every_s
        )
        resource = Resource.create({"service.name": "edgert", "edgert.fleet": fleet})
        self._provider = MeterProvider([reader], resource=resource)
        meter = self._provider.get_meter("edgert.fleet")

        def reading(name: str) -> Callable[[object], list[Observation]]:
            return lambda _: [
                Observation(value, {"edgert.device": device}) for device, value in _samples(self._rows, name)
            ]

        for name, figure in FIGURES.items():
            make = meter.create_observable_counter if figure.total else meter.create_observable_gauge
            make(f"edgert.device.{figure.otel}", [reading(name)], figure.unit, figure.help)

        def online(_: object) -> list[Observation]:
            return [
                Observation(float(row["state"] == "online"), {"edgert.device": str(row["device"])})
                for row in self._rows
            ]

        meter.create_observable_gauge("edgert.device.online", [online], "1", "The device is there, and is heard.")

    def show(self, rows: Sequence[Row]) -> None:
        """These are the figures from now on."""
        self._rows = rows

    def close(self) -> None:
        """Send what there is, and end.

        Blocks: up to the timeout of the sender, 10 s.
        """
        self._provider.shutdown()
