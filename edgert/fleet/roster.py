"""A fleet as an onlooker sees it: of every device what the broker keeps of it, and what was heard last."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from edgert import wire
from edgert.errors import ConfigError, MessageError
from edgert.fleet import presence
from edgert.fleet.presence import Sighting

DEVICES_MAX = 100_000
JOBS_MAX = 512
RESULT_BYTES = 4096
"""A longer result of a job is not kept here: hundreds of jobs of thousands of devices are."""
UPDATES = ("fetching", "held", "checking", "trial")


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Attributes:
        sighting: whether it is there.
        status: its newest status document; None before the first.
        at_s: of that, by the device's clock.
        report: where it stands with policies.
        twin: what it reports of itself.
        jobs: id, or name of the schedule -> where it stands.
    """

    sighting: Sighting = Sighting()
    status: dict[str, object] | None = None
    at_s: float = 0.0
    report: wire.PolicyReport | None = None
    twin: wire.TwinReported | None = None
    jobs: dict[str, wire.JobState] = {}


class Heard(msgspec.Struct, frozen=True):
    """What a message was about.

    Attributes:
        device: whose.
        said: the message.
    """

    device: str
    said: wire.Status | wire.Telemetry | wire.Event | wire.PolicyReport | wire.TwinReported | wire.JobState


def subscriptions(fleet: str, device: str = "+") -> dict[str, int]:
    """What an onlooker listens on.

    Args:
        fleet: whose.
        device: one, or `+` for all.

    Returns:
        Filter -> QoS. Telemetry comes at QoS 0: the next is worth more than the last.

    Raises:
        nothing.
    Source:
        ours: one filter a channel, thanks to the fixed depth.
    """
    kinds = [("status", "device", "-", 1), ("tele", "device", "-", 0), ("evt", "device", "-", 1)]
    kinds += [("policy", "report", "-", 1), ("twin", "reported", "-", 1), ("job", "state", "+", 1)]
    return {str(wire.Topic(fleet, device, *kind[:3])): kind[3] for kind in kinds}


def hear(entries: dict[str, Entry], topic_text: str, payload: bytes, now_s: float) -> Heard | None:
    """Take a message in.

    Args:
        entries: device -> what is known; changed in place, as fleets are large and messages many.
        topic_text: of it.
        payload: as received; empty where the broker forgot a job.
        now_s: monotonic seconds.

    Returns:
        What it was about; None where something was only forgotten.

    Raises:
        MessageError: it is none that `subscriptions` asks for, or malformed.
    Source:
        ours.
    """
    topic = wire.parse_topic(topic_text)
    entry = entries.get(topic.device)
    if entry is None:
        if len(entries) >= DEVICES_MAX:
            raise MessageError(f"{topic.device}: {DEVICES_MAX} devices are known already")
        entry = Entry()
    replace = msgspec.structs.replace
    said: wire.Status | wire.Telemetry | wire.Event | wire.PolicyReport | wire.TwinReported | wire.JobState
    match topic.channel, topic.type:
        case "job", "state":
            if not payload:
                jobs = {id_: each for id_, each in entry.jobs.items() if id_ != topic.id}
                entries[topic.device] = replace(entry, jobs=jobs)
                return None
            said = wire.decode(payload, wire.JobState)[0]
            kept = said if len(payload) <= RESULT_BYTES else replace(said, why=said.why[:500], result={})
            jobs = {**entry.jobs, topic.id: kept}
            entry = replace(entry, jobs=dict(list(jobs.items())[-JOBS_MAX:]))
        case "status", "device":
            said = wire.decode(payload, wire.Status)[0]
            entry = replace(entry, sighting=presence.saw_status(entry.sighting, said))
        case "tele", "device":
            said = wire.decode(payload, wire.Telemetry)[0]
            sighting = presence.saw_telemetry(entry.sighting, said, now_s)
            entry = replace(entry, sighting=sighting, status=said.status, at_s=said.at_s)
        case "policy", "report":
            said = wire.decode(payload, wire.PolicyReport)[0]
            entry = replace(entry, report=said)
        case "twin", "reported":
            said = wire.decode(payload, wire.TwinReported)[0]
            entry = replace(entry, twin=said)
        case "evt", "device":
            said = wire.decode(payload, wire.Event)[0]
        case _:
            raise MessageError(f"{topic_text[:120]}: nobody here listens on that")
    entries[topic.device] = entry
    return Heard(topic.device, said)


def at(document: object, *path: str) -> object:
    """A value inside nested maps.

    Args:
        document: the outermost.
        path: keys.

    Returns:
        The value; None where there is none.

    Raises:
        nothing.
    Source:
        ours: a status document is a device's, perhaps of another version.
    """
    for key in path:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def number(document: object, *path: str) -> int | float | None:
    """A number inside nested maps.

    Args:
        document: the outermost.
        path: keys.

    Returns:
        The number; None where there is none, or none that is finite: JSON has no word for the others.

    Raises:
        nothing.
    Source:
        ours.
    """
    found = at(document, *path)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return found


FIGURES: Mapping[str, tuple[str, ...]] = {
    "battery_frac": ("board", "battery_frac"),
    "temp_c": ("board", "temp_c"),
    "load_frac": ("board", "load_frac"),
    "power_w": ("board", "power_w"),
    "link_rtt_s": ("link", "rtt_s"),
    "up_s": ("up_s",),
    "events_waiting": ("link", "events_waiting"),
    "ticks": ("actor", "ticks"),
    "missed": ("actor", "missed"),
    "spool_dropped": ("spool_dropped",),
    "generation": ("policy", "generation"),
}
"""Numbers of a status document that a table, a file or another system is told of -> where they are."""


def labels_of(entries: Mapping[str, Entry]) -> dict[str, tuple[str, ...]]:
    """What devices are called besides their names.

    Args:
        entries: device -> what is known.

    Returns:
        Device -> labels, as `name` or `name=value`.

    Raises:
        nothing.
    Source:
        ours: those of its configuration are in its report, those it was given in its twin as well.
    """
    found = {}
    for device, entry in entries.items():
        given = at(None if entry.twin is None else entry.twin.settings, "labels")
        own = () if entry.report is None else entry.report.labels
        pairs = [f"{name}={value}" for name, value in given.items()] if isinstance(given, Mapping) else []
        found[device] = tuple(sorted({*own, *pairs}))
    return found


def chosen(labels: Mapping[str, tuple[str, ...]], to: Iterable[str]) -> list[str]:
    """Which devices are meant.

    Args:
        labels: device -> labels.
        to: names, `label:NAME`, `label:NAME=VALUE`, or `*`.

    Returns:
        Devices, sorted. `label:site` means every device with such a label, whatever its value.

    Raises:
        ConfigError: one means nobody.
    Source:
        ours.
    """
    found: set[str] = set()
    for each in to:
        label = each.removeprefix("label:") if each.startswith("label:") else None
        matching = {
            device
            for device, own in labels.items()
            if each in ("*", device)
            or (label is not None and (label in own or any(one.startswith(f"{label}=") for one in own)))
        }
        if not matching:
            raise ConfigError(f"{each}: no device of this fleet ever said that it is one")
        found |= matching
    return sorted(found)


def row(device: str, entry: Entry, labels: tuple[str, ...], now_s: float) -> dict[str, object]:
    """A device in one flat map.

    Args:
        device: its name.
        entry: what is known.
        labels: of it.
        now_s: monotonic seconds.

    Returns:
        Name -> text, number or None: those of `FIGURES`, and `device`, `state`, `version`, `task`, `labels`, `policy`,
        `update`, `jobs`, `drained`, `missed_telemetry`, `why`.

    Raises:
        nothing.
    Source:
        ours: one answer for tables, JSON and other systems.
    """
    seen, status, report = entry.sighting, entry.status, entry.report
    open_jobs = [job for job in entry.jobs.values() if job.state in ("received", "scheduled", "running")]
    why = at(status, "budget", "why")
    reasons = sorted({str(each) for each in why.values()} - {"ok", ""}) if isinstance(why, Mapping) else []
    updating = report is not None and report.stage in UPDATES
    drained = at(None if entry.twin is None else entry.twin.settings, "drained")
    return {
        "device": device,
        "state": presence.state(seen, now_s),
        "version": seen.version,
        "task": seen.task,
        "labels": ",".join(labels),
        **{name: number(status, *path) for name, path in FIGURES.items()},
        "policy": "" if report is None or not report.kept else f"{report.name} {report.floor}".strip(),
        "update": f"{report.stage} {report.name} {report.version}" if report is not None and updating else "",
        "jobs": len(open_jobs),
        "drained": drained is True,
        "missed_telemetry": seen.missed,
        "why": ",".join(reasons),
    }
