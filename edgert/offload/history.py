"""What was chosen lately and what came of it, in windows of equal numbers of requests; for people. Free of numpy."""

from __future__ import annotations

import msgspec

EACH, MOST = 25, 400
"""Requests in a window, and windows kept: with ten thousand behind it, a plot needs no more."""


class Window(msgspec.Struct, frozen=True):
    """Some requests in a row.

    Attributes:
        at_s: seconds since the Unix epoch, of the last one.
        requests: in it.
        response_s: mean.
        worst_s: the longest.
        late: that were answered after their deadline, or not at all.
        fell_back: answered by the local model in place of another.
        accuracy_frac: mean.
        below: answers below the accuracy that was asked for.
        choices: variant and place, as `digits-1-int8@edge` -> requests.
    """

    at_s: float
    requests: int = 0
    response_s: float = 0.0
    worst_s: float = 0.0
    late: int = 0
    fell_back: int = 0
    accuracy_frac: float = 0.0
    below: int = 0
    choices: dict[str, int] = {}


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One request, done.

    Attributes:
        at_s: seconds since the Unix epoch.
        choice: what answered, as `digits-1-int8@edge`.
        response_s: from request to answer.
        late: after its deadline, or not at all.
        fell_back: the local model answered in place of another.
        accuracy_frac: of what answered.
        below: less than was asked for.
    """

    at_s: float
    choice: str
    response_s: float
    late: bool
    fell_back: bool
    accuracy_frac: float
    below: bool


def added(windows: tuple[Window, ...], done: Answered) -> tuple[Window, ...]:
    """The history with one more request.

    Args:
        windows: before, oldest first; the last may be unfinished.
        done: the request.

    Returns:
        The history after, never more than `MOST` windows.

    Raises:
        Nothing.
    Source:
        running means: D. Knuth, TAOCP 2, 4.2.2.
    """
    unfinished = bool(windows) and windows[-1].requests < EACH
    last = windows[-1] if unfinished else Window(done.at_s)
    n = last.requests + 1
    grown = Window(
        at_s=done.at_s,
        requests=n,
        response_s=last.response_s + (done.response_s - last.response_s) / n,
        worst_s=max(last.worst_s, done.response_s),
        late=last.late + done.late,
        fell_back=last.fell_back + done.fell_back,
        accuracy_frac=last.accuracy_frac + (done.accuracy_frac - last.accuracy_frac) / n,
        below=last.below + done.below,
        choices={**last.choices, done.choice: last.choices.get(done.choice, 0) + 1},
    )
    return (*(windows[:-1] if unfinished else windows)[-(MOST - 1) :], grown)
