"""The ledger and the twin as bytes: what is written to a disk, and how old or damaged records are read."""

from __future__ import annotations

import msgspec

from edgert import wire
from edgert.errors import MessageError
from edgert.fleet.ledger import Job, Order, State

HORIZON, DESIRED, SEEN = "horizon", "desired", "seen"
"""Names of the facts beside the jobs: `Ledger.horizon_s`, the twin's document, and the latest time that was sure."""

_encode = msgspec.msgpack.encode
_BAD = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def job_bytes(job: Job) -> bytes:
    """The record of a job.

    Args:
        job: in its new state.

    Returns:
        Its bytes.

    Raises:
        nothing.
    Source:
        MessagePack: what came in CBOR keeps its types, byte strings too.
    """
    return _encode(job)


def read_job(id_: str, body: bytes) -> Job:
    """Read a record.

    Args:
        id_: under which it was written.
        body: the record.

    Returns:
        The job. One that cannot be read has failed: whatever it was, it is not done a second time.

    Raises:
        nothing.
    Source:
        ours.
    """
    try:
        return msgspec.msgpack.decode(body, type=Job)
    except _BAD as error:
        order = Order(id=id_, kind="")
        return Job(order=order, number=0, state=State.FAILED, why=f"its record cannot be read: {error}"[:500])


def time_bytes(time_s: float) -> bytes:
    """The record of a time.

    Args:
        time_s: seconds since the Unix epoch.

    Returns:
        Its bytes.

    Raises:
        nothing.
    Source:
        ours.
    """
    return _encode(time_s)


def read_time(body: bytes | None) -> float | None:
    """Read one.

    Args:
        body: the record; None where there is none.

    Returns:
        Seconds since the Unix epoch; None where there is none that can be read.

    Raises:
        nothing.
    Source:
        ours.
    """
    try:
        return None if body is None else msgspec.msgpack.decode(body, type=float)
    except _BAD:
        return None


def read_desired(body: bytes | None) -> wire.TwinDesired | None:
    """Read the twin's document, which is kept as it came.

    Args:
        body: the record; None where there is none.

    Returns:
        The document; None where there is none that can be read: the broker has it too.

    Raises:
        nothing.
    Source:
        ours.
    """
    try:
        return None if body is None else wire.decode(body, wire.TwinDesired)[0]
    except MessageError:
        return None
