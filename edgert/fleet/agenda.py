"""All schedules of a device with their marks: which are due, and which mark counts once its job is written."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edgert.fleet import schedule as schedules
from edgert.fleet.ledger import Submit
from edgert.fleet.schedule import Mark, Moment, Schedule

MARKS_MAX = 2 * schedules.SCHEDULES_MAX
"""Of schedules that are gone as well: one that comes back under its name goes on where it was."""


class Agenda(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done when.

    Attributes:
        schedules: name -> schedule, without fault.
        marks: name -> what it has done; also of some that are gone.
        written: name -> the mark on the disk, as far as one is.
        pending: id of a job that is being written -> the schedule's name and the mark that then counts.
        quiet: name -> between which wall times nothing can be due.
    """

    schedules: dict[str, Schedule] = {}
    marks: dict[str, Mark] = {}
    written: dict[str, bytes] = {}
    pending: dict[str, tuple[str, Mark]] = {}
    quiet: dict[str, tuple[float, float]] = {}


_replace = msgspec.structs.replace


def open_agenda(written: Mapping[str, bytes]) -> tuple[Agenda, tuple[str, ...]]:
    """The agenda as its marks are found on the disk; its schedules come with the twin.

    Args:
        written: name -> mark.

    Returns:
        The agenda, and the names of marks that cannot be read: those schedules begin anew.

    Raises:
        nothing.
    Source:
        ours: what is to be done is the fleet's to say, what was done is the device's to know.
    """
    marks, broken = {}, []
    for name, body in written.items():
        try:
            marks[name] = msgspec.json.decode(body, type=Mark)
        except msgspec.MsgspecError:
            broken.append(name)
    return Agenda(marks=marks, written=dict(written)), tuple(broken)


def planned(agenda: Agenda, wanted: Mapping[str, Schedule]) -> Agenda:
    """The same with other schedules.

    Args:
        agenda: before.
        wanted: all schedules from now on, without fault.

    Returns:
        The agenda after; marks of those that are gone are kept, as long as there are not too many.

    Raises:
        nothing.
    Source:
        ours: a name that comes back must not do again what it has done.
    """
    marks = dict(agenda.marks)
    for name in [name for name in marks if name not in wanted]:
        if len(marks) <= MARKS_MAX:
            break
        del marks[name]
    return _replace(agenda, schedules=dict(wanted), marks=marks, quiet={})


def look(agenda: Agenda, moment: Moment, device: str) -> tuple[Agenda, list[Submit], dict[str, bytes]]:
    """See what is due.

    Args:
        agenda: before.
        moment: now.
        device: id of the device.

    Returns:
        The agenda after; the jobs that are due, at most one a schedule; and marks to write by themselves, as they are
        the first of their schedules.

    Raises:
        nothing.
    Source:
        ours.
    """
    submits: list[Submit] = []
    firsts: dict[str, bytes] = {}
    busy = {name for name, _ in agenda.pending.values()}
    marks, pending, quiet, written = dict(agenda.marks), dict(agenda.pending), dict(agenda.quiet), dict(agenda.written)
    for name, schedule in agenda.schedules.items():
        low_s, high_s = quiet.get(name, (0.0, 0.0))
        if name in busy or (moment.wall_s is not None and low_s <= moment.wall_s < high_s):
            continue
        mark, due = schedules.look(name, schedule, marks.get(name), moment, device)
        if due is not None:
            body = msgspec.json.encode(due.mark)
            submits.append(Submit(due.order, (name, body)))
            pending[due.order.id] = name, due.mark
            continue
        marks[name] = mark
        if name not in written and mark != Mark():
            firsts[name] = written[name] = msgspec.json.encode(mark)
        if schedule.cron is not None and moment.wall_s is not None:
            left_s = schedules.next_s(name, schedule, mark, moment, device)
            # At most a day: of a schedule that is never due again little is worth knowing, and time zones change.
            quiet_s = schedules.DAY_S if left_s is None else min(schedules.DAY_S, left_s)
            quiet[name] = moment.wall_s, moment.wall_s + quiet_s
    agenda = _replace(agenda, marks=marks, pending=pending, quiet=quiet, written=written)
    return agenda, submits, firsts


def settled(agenda: Agenda, job_id: str, *, written: bool) -> Agenda:
    """The disk has answered about a job.

    Args:
        agenda: before.
        job_id: of the job.
        written: it is on the disk, and the schedule's mark with it.

    Returns:
        The agenda after. What was not written is due again at the next look.

    Raises:
        nothing.
    Source:
        ours: memory is never ahead of the disk.
    """
    found = agenda.pending.get(job_id)
    if found is None:
        return agenda
    name, mark = found
    pending = {id_: each for id_, each in agenda.pending.items() if id_ != job_id}
    if not written:
        return _replace(agenda, pending=pending)
    quiet = {other: span for other, span in agenda.quiet.items() if other != name}
    marks = {**agenda.marks, name: mark}
    bodies = {**agenda.written, name: msgspec.json.encode(mark)}
    return _replace(agenda, pending=pending, quiet=quiet, marks=marks, written=bodies)
