"""Networks are loaded, verified and warmed beside the act loop, in a thread of their own."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from edgert.bundle import schema_hash
from edgert.errors import ArtifactError
from edgert.policy import artifact
from edgert.ports.runtime import Kind, Runtime
from edgert.ports.runtime.choice import Opened, open_chosen
from edgert.values import Swap

log = logging.getLogger("edgert.actor")


class Prepared(NamedTuple):
    """What the loader thread made of a swap; `runtime` is None when it was refused."""

    swap: Swap
    runtime: Runtime | None
    policy: artifact.Policy | None
    why: str
    prepare_s: float
    costs_s: tuple[float, ...] = ()
    """Median seconds at each exit that were measured on this board; empty when nobody did."""


class Loader(threading.Thread):
    """Loads, verifies and warms networks beside the act loop; the loop polls `done`."""

    def __init__(self, schema: str, n_exits: int, runtime_kind: Kind, measured: Path) -> None:
        """Start idle.

        Args:
            schema: observation and action schema that every network must have.
            n_exits: that every network must have: budgets and pinned thresholds count on them.
            runtime_kind: of the configuration.
            measured: file in which `edgert policy bench` left what is fastest here.
        """
        super().__init__(name="loader", daemon=True)
        self.done: SimpleQueue[Prepared] = SimpleQueue()
        self._todo: SimpleQueue[Swap] = SimpleQueue()
        self._schema, self._n_exits, self._kind = schema, n_exits, runtime_kind
        self._measured, self._said = measured, ""

    def ask(self, swap: Swap) -> None:
        """Prepare this one next."""
        self._todo.put(swap)

    def run(self) -> None:
        """Thread body: no exception leaves it, each becomes a refusal with its reason."""
        while True:
            swap = self._todo.get()
            started_s = time.monotonic()
            try:
                policy, (runtime, _, costs_s) = self._prepare(swap)
                self.done.put(Prepared(swap, runtime, policy, "", time.monotonic() - started_s, costs_s))
            except Exception as error:  # broad: a bundle is foreign data, and without this thread none is ever loaded
                self.done.put(
                    Prepared(swap, None, None, f"{type(error).__name__}: {error}", time.monotonic() - started_s)
                )

    def _prepare(self, swap: Swap) -> tuple[artifact.Policy, Opened]:
        data = Path(swap.path).read_bytes()
        if swap.sha256 and hashlib.sha256(data).hexdigest() != swap.sha256:
            raise ArtifactError(f"{swap.path} is not the file that was offered: its sha256 differs")
        policy = artifact.load(data)
        if schema_hash(policy.manifest) != self._schema:
            raise ArtifactError(f"{swap.path} has another observation or action schema than the installed policy")
        if policy.spec.n_exits != self._n_exits:
            raise ArtifactError(f"{swap.path} has {policy.spec.n_exits} exits, the installed policy {self._n_exits}")
        opened = open_chosen(policy, self._kind, self._measured)
        said = f"runtime {opened.runtime.name}: {opened.why}"
        if said != self._said:  # not at every swap
            log.info("%s", said)
            self._said = said
        return policy, opened
