"""Inferences for any program on a device, wherever they run best: here, on an edge box or in the cloud.

    answer = infer(x)                                          # the device's own choice, within its own deadline
    answer = infer(x, deadline_s=0.2, floor=0.89)              # in time, and by a model at least so accurate
    with Inference("/run/edgert/infer.sock") as inference:     # the connection kept
        answer = inference.infer(x, deadline_s=0.2)
    answer.values                                              # float32; answer.variant and answer.place say who it was

An answer comes from a model on the device itself when edge and cloud are slow, busy or gone. The accuracy floor is held
in any case: an answer that would be less accurate is not given, and the error says so.

The protocol is that of `edgert.client`: frames of one CBOR map each. A request has "id" (an integer of yours), "data"
(rows, C order, little-endian) and perhaps "rows" (1), "shape", "dtype" (to be checked), "deadline_s", "floor" (0..1),
"variant" and "place" (to have no choice). The answer has the same "id", and "data" (float32), "shape", "variant",
"place", "accuracy_frac", "response_s", "fell_back", "late", "why"; or "error" and "detail". A request with the key
"show" is answered by what `edgert offload show` prints.
"""

from __future__ import annotations

import itertools
import math
import os
from types import TracebackType
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from edgert.client.connection import Connection
from edgert.errors import LinkError, MessageError, UsageError

SOCKET = "/run/edgert/infer.sock"
GRACE_S = 1.0
"""Beyond the deadline, for an answer that is late; nobody is left without one because of a millisecond."""
_OURS = (
    "malformed",
    "shape",
    "not-finite",
    "too-large",
    "unknown-choice",
    "too-many-requests",
    "no-model",
)
"""Refusals that another request would not get."""


class Answer(msgspec.Struct, frozen=True):
    """What a model said.

    Attributes:
        values: float32, a row for a row.
        variant: the model that said it.
        place: `device`, `edge` or `cloud`.
        accuracy_frac: of that model, as its bundle tells it.
        response_s: from question to answer, as the device measured it.
        fell_back: the device's own model answered in place of another that did not.
        late: after the deadline.
        why: it was chosen.
    """

    values: npt.NDArray[np.float32]
    variant: str
    place: Literal["device", "edge", "cloud"]
    accuracy_frac: float
    response_s: float
    fell_back: bool
    late: bool
    why: str


class _Told(msgspec.Struct, frozen=True):
    data: bytes
    shape: tuple[int, ...]
    variant: str
    place: Literal["device", "edge", "cloud"]
    accuracy_frac: float
    response_s: float
    fell_back: bool
    late: bool
    why: str


class Inference:
    """A connection to the chooser of this device; made at the first question, and again after it was lost.

    Thread: one at a time.
    """

    def __init__(self, path: str | os.PathLike[str] = SOCKET, timeout_s: float = 10.0) -> None:
        """Connect later.

        Args:
            path: the socket that the device's configuration names.
            timeout_s: for requests without a deadline of their own, whose deadline is the configuration's.
        """
        self._connection, self._timeout_s = Connection(path), timeout_s
        self._ids = itertools.count(1)

    def infer(
        self,
        x: npt.ArrayLike,
        *,
        deadline_s: float | None = None,
        floor: float | None = None,
        rows: int | None = None,
        variant: str | None = None,
        place: Literal["device", "edge", "cloud"] | None = None,
    ) -> Answer:
        """Have a model look at something.

        Args:
            x: one row, of the shape and dtype that the models take; or several, with `rows`.
            deadline_s: within which an answer is wanted; None: the configuration's.
            floor: accuracy, 0 to 1, that the answering model must have; None: the configuration's.
            rows: x has this many rows, along a first axis of its own.
            variant: have this one; None leaves it to the device.
            place: have it there; None leaves it to the device.

        Returns:
            The answer. It may be `late`; see `GRACE_S`.

        Raises:
            UsageError: x, or what is asked for, is not what the models take or have; the message says what they do.
            LinkError: nobody answers at the path in time.
            MessageError: the answer makes no sense.
            ConfigError: the socket path is too long.

        Blocks: up to deadline_s and `GRACE_S`.
        """
        array = np.asarray(x)
        if array.dtype.kind not in "uf" or array.dtype.itemsize not in (1, 4) or array.dtype == np.float16:
            raise UsageError(f"models take uint8 or float32, not {array.dtype}: convert it, e.g. x.astype('float32')")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError("not-finite: a value of x is NaN or infinite")
        if rows is not None and (array.ndim < 1 or len(array) != rows):
            raise UsageError(f"x has {array.shape} and not {rows} rows")
        for name, value, most in (("deadline_s", deadline_s, 600.0), ("floor", floor, 1.0)):
            if value is not None and not 0 <= value <= most:
                raise UsageError(f"{name} {value}: 0 to {most:g}")
        request: dict[str, Any] = {
            "data": array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(),
            "shape": list(array.shape if rows is None else array.shape[1:]),
            "dtype": array.dtype.name,
            "rows": 1 if rows is None else rows,
        }
        said = {"deadline_s": deadline_s, "floor": floor, "variant": variant, "place": place}
        request |= {key: value for key, value in said.items() if value is not None}
        wait_s = self._timeout_s if deadline_s is None else deadline_s + GRACE_S
        told = self._ask(request, wait_s)
        try:
            answer = msgspec.convert(told, _Told)
            if not all(0 <= side <= 1 << 20 for side in answer.shape) or len(answer.data) != 4 * math.prod(
                answer.shape
            ):
                raise MessageError(f"{len(answer.data)} bytes for {answer.shape}")
        except (msgspec.ValidationError, MessageError) as error:
            self.close()
            raise MessageError(f"{self._connection} answered something else than an inference: {error}") from error
        values = np.frombuffer(answer.data, "<f4").reshape(answer.shape).astype(np.float32)
        return Answer(
            values=values[0] if rows is None else values,
            **{name: getattr(answer, name) for name in Answer.__struct_fields__[1:]},
        )

    def show(self) -> dict[str, Any]:
        """What the device would choose now, why, and what it has learned.

        Raises:
            LinkError, MessageError, ConfigError: as `infer`.
        """
        told = self._ask({"show": True}, self._timeout_s).get("show")
        if not isinstance(told, dict):
            raise MessageError(f"{self._connection} showed nothing: is that socket edgert's?")
        return told

    def _ask(self, request: dict[str, Any], wait_s: float) -> dict[str, object]:
        id_ = request["id"] = next(self._ids)
        told = self._connection.ask(request, wait_s, lambda answer: answer.get("id") in (id_, 0))
        if "error" not in told:
            return told
        why = f"{told['error']}: {told.get('detail', '')}"
        raise UsageError(why) if told["error"] in _OURS else LinkError(f"{self._connection}: {why}")

    def close(self) -> None:
        """End the connection; the next question makes a new one."""
        self._connection.close()

    def __enter__(self) -> Inference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def infer(
    x: npt.ArrayLike,
    *,
    deadline_s: float | None = None,
    floor: float | None = None,
    path: str | os.PathLike[str] = SOCKET,
) -> Answer:
    """One question over a connection of its own; who asks often keeps an `Inference`.

    Args:
        x: one row.
        deadline_s: within which an answer is wanted; None: the configuration's.
        floor: accuracy, 0 to 1, that the answering model must have; None: the configuration's.
        path: the socket that the device's configuration names.

    Returns:
        The answer.

    Raises:
        UsageError, LinkError, MessageError, ConfigError: as `Inference.infer`.

    Blocks: as `Inference.infer`.
    """
    with Inference(path) as inference:
        return inference.infer(x, deadline_s=deadline_s, floor=floor)
