"""What was trained elsewhere goes the way of what is trained here: it is offered to the actor, and acts on trial."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgert.errors import ArtifactError, StoreError
from edgert.placing import GENERATIONS
from edgert.ports import shards
from edgert.ports.process import Layout, Parent, noted_network
from edgert.ports.store import write_atomic
from edgert.programs.placer.own_jobs import OwnJobs
from edgert.values import Candidate


def acting(layout: Layout) -> str:
    """File of the network that acts here, if it is not the installed one."""
    noted, _ = noted_network(layout)
    return "" if noted is None else noted.path


def offer(own_jobs: OwnJobs, parent: Parent, layout: Layout) -> None:
    """Offer what passed the gate and was not offered yet; the supervisor has the actor try it.

    Blocks: while it writes files.
    """
    for record in list(own_jobs.records.values()):
        if not record.install or record.state != "done" or record.generation:
            continue
        try:
            generation, path, sha256 = keep(layout.policies, Path(str(record.result["path"])), acting(layout))
        except (ArtifactError, StoreError) as error:
            own_jobs.end(record, "failed", str(error))
            continue
        checks, detail = record.result["checks"], record.result["detail"]
        parent.send(Candidate(generation, str(path), sha256, checks, detail), keep=True)
        record.generation = generation
        own_jobs.note(record, "offered", {"generation": generation})


def keep(folder: Path, result: Path, acts: str) -> tuple[int, Path, str]:
    """Copy a result to where networks that act lie; gives its number, its file and the file's hash.

    Older results go, but for the one that acts and the one before this.

    Raises:
        ArtifactError, StoreError: it cannot be read, or not be written.
    """
    (data,) = shards.read_files([result])
    there = sorted(folder.glob("placed-" + 9 * "[0-9]" + ".edgert"))
    newest = max((int(path.stem.removeprefix("placed-")) for path in there), default=GENERATIONS)
    path = folder / f"placed-{newest + 1}.edgert"
    write_atomic(path, data)
    for old in there[:-1]:
        if str(old) != acts:
            old.unlink(missing_ok=True)
    return newest + 1, path, hashlib.sha256(data).hexdigest()
