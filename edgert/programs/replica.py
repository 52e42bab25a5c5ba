"""One replica of a service over MQTT, a teacher or a node, from its first subscription to its good end."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgert.ports.metrics import Exposition
from edgert.ports.mqtt import Mqtt

log = logging.getLogger(__name__)

_TURN_S = 0.25


class Replica(Protocol):
    """What a service does, a turn at a time."""

    def turn(self, timeout_s: float) -> bool:
        """Wait for something to happen, at most so long, and see to it."""

    def report(self, status_file: Path | None, exposition: Exposition | None) -> None:
        """Say how it is."""

    def drain(self) -> None:
        """Take nothing more, and finish what was begun."""


def serve(
    replica: Replica,
    mqtt: Mqtt,
    filters: Sequence[str],
    *,
    stopping: object,
    report_every_s: float,
    status_file: Path | None,
    exposition: Exposition | None,
) -> int:
    """Subscribe, and take turns until told to stop.

    Args:
        replica: the service.
        mqtt: its link, not started yet.
        filters: what it listens to.
        stopping: true once the process shall end.
        report_every_s: time between two reports.
        status_file: where reports go; None: nowhere.
        exposition: likewise, for Prometheus.

    Returns:
        0 stopped in good order, 1 the link's thread stands still.

    Blocks: until then.
    """
    mqtt.subscribe([(each, 1) for each in filters])
    mqtt.start()
    report_s = time.monotonic()
    while not stopping:
        replica.turn(_TURN_S)
        if time.monotonic() >= report_s:
            report_s = time.monotonic() + report_every_s
            replica.report(status_file, exposition)
        if not mqtt.healthy():
            log.error("the link's thread stands still")
            return 1
    replica.drain()
    replica.report(status_file, exposition)
    return 0
