"""Counters for Prometheus: its text format, as a file for node_exporter's textfile collector or on a port."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, NamedTuple

from edgert.errors import ConfigError
from edgert.ports.store import write_atomic


class Sample(NamedTuple):
    """One value; `end` is what a histogram's sample adds to the family's name."""

    labels: Mapping[str, str]
    value: float
    end: str = ""


class Metric(NamedTuple):
    """One family of samples.

    Attributes:
        name: counters end in `_total`, and units are in the name.
        kind: as Prometheus calls it.
        help: one line.
        samples: of every set of labels.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[Sample]


def render(metrics: Iterable[Metric]) -> str:
    """The text that Prometheus reads (exposition format 0.0.4).

    Args:
        metrics: families; those without samples are left out.
    """
    lines = []
    for name, kind, help_, samples in metrics:
        if samples:
            lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
        for labels, value, end in samples:
            said = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            lines.append(f"{name}{end}{{{said}}} {value:.15g}" if said else f"{name}{end} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def histogram(
    labels: Mapping[str, str], bounds: Sequence[float], counts: Sequence[int], total: float
) -> Iterator[Sample]:
    """Samples of a histogram.

    Args:
        labels: of all of them.
        bounds: upper, inclusive, rising.
        counts: what fell at or below each bound and above the one before, and last what was above all; not cumulative.
        total: sum of what was observed.
    """
    below = 0
    for bound, count in zip((*(f"{each:g}" for each in bounds), "+Inf"), counts, strict=True):
        below += count
        yield Sample({**labels, "le": bound}, below, "_bucket")
    yield Sample(labels, total, "_sum")
    yield Sample(labels, below, "_count")


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Who hangs up in the middle is no news; anything else is said as the library says it."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # passed on as it came


class Exposition:
    """Where metrics are put: a file that ends in `.prom`, or `[HOST:]PORT` to be scraped.

    Thread: a port is served by threads of its own, which only ever see a finished text.
    """

    def __init__(self, target: str) -> None:
        """Open the port; a file is written by `publish` alone.

        Args:
            target: a file's path, or a port of 127.0.0.1, or HOST:PORT.

        Raises:
            ConfigError: the port cannot be had.
        """
        self.text = b""
        self.port: int | None = None
        host, _, port = target.rpartition(":")
        if not port.isdecimal():
            self.path: Path | None = Path(target)
            if self.path.suffix != ".prom":
                raise ConfigError(f"--metrics {target}: a port, HOST:PORT, or a file whose name ends in .prom")
            return
        self.path = None
        exposition = self

        class Scrape(BaseHTTPRequestHandler):
            timeout = 10.0

            def do_GET(self) -> None:
                text = exposition.text if self.path in ("/metrics", "/") else b""
                self.send_response(200 if text else 404)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                pass

        try:
            self._server = _Server((host or "127.0.0.1", int(port)), Scrape)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"--metrics {target}: cannot listen there: {error}") from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def publish(self, text: str) -> None:
        """Make this what is read from now on.

        Raises:
            StoreError: the file cannot be written.
        """
        self.text = text.encode()
        if self.path is not None:
            write_atomic(self.path, self.text, 0o644)

    def close(self) -> None:
        """Give the port back; a file stays, as its reader judges its age."""
        if self.path is None:
            self._server.shutdown()
            self._server.server_close()
