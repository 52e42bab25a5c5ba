"""`edgert fleet place`: training jobs for a fleet, where they run, and why there."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import select
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgert import wire
from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli.key import home, vouched
from edgert.cli.talk import clean, named, table
from edgert.errors import ArtifactError, ConfigError, LinkError, MessageError
from edgert.ports.mqtt import LinkDown, Mqtt, Received
from edgert.ports.store import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDS = ("done", "refused", "failed")
AGAIN_S = 3.0
QUIET_S = 1.0
"""What the broker keeps has come when nothing more comes for so long."""
EXPIRY_S = 600
ROW = 0.3
"""Height of a job's line in the picture, inches."""


def place(argv: list[str]) -> int:
    """Submit a training job, show where jobs are and why, or have what one gave act.

    Returns:
        0 done, 1 a job that was waited for did not end well, 2 there is no such job, 75 no answer in time.

    Raises:
        ArtifactError: a file is not what it should be.
        ConfigError: names, files, keys or the broker's url are wrong.
        LinkError: the broker cannot be reached.
        StoreError: the picture cannot be written.
    """
    args = _parse(argv)
    named(args.fleet)
    if args.verb == "submit":
        return _submit(args)
    jobs = _jobs(args)
    if args.verb == "take":
        return _take(args, jobs.get(args.job))
    if args.verb == "why":
        job = jobs.get(args.job)
        if job is None:
            print(f"no job {args.job} in fleet {args.fleet}")
            return NOTHING_TO_DO
        print(json.dumps(_document(job)) if args.json else clean("\n".join(_why(job))))
        return OK
    if args.plot is not None:
        write_atomic(args.plot, timeline(jobs).encode(), 0o644)
    if args.json:
        print(json.dumps([_document(job) for job in jobs.values()]))
    elif jobs:
        print(clean(_table(jobs)))
    else:
        print(f"no jobs in fleet {args.fleet}")
    return OK if jobs else NOTHING_TO_DO


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert fleet place", description="Training jobs, placed over a fleet.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    submit = verbs.add_parser(
        "submit",
        help="have a network trained on some data",
        description="Give a device a training job. It finds places for it, gets the result and lets the gate judge it.",
    )
    submit.add_argument("--device", required=True, help="whose job it is")
    submit.add_argument("--bundle", type=Path, help="the network to begin with (the device's own)")
    submit.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="a shard, or an .npz with `obs` (n, height, width, channels) uint8 and `label` (n,); without it the device"
        " trains on what it has lived through",
    )
    submit.add_argument("--steps", type=int, required=True, help="gradient steps")
    submit.add_argument("--batch", type=int, default=64, help="transitions of a step (64)")
    submit.add_argument("--checkpoint-steps", type=int, default=200, help="steps between two states kept (200)")
    submit.add_argument(
        "--split", choices=["auto", "one", "data", "layers"], default="auto", help="how it may be cut (auto)"
    )
    submit.add_argument("--due-s", type=float, help="seconds that it should take at most")
    submit.add_argument(
        "--set", nargs="+", default=[], metavar="name=value", help="of the training: learning_rate=1e-3"
    )
    submit.add_argument("--id", help="the job's name for ever (drawn)")
    submit.add_argument("--wait-s", type=float, default=0.0, help="for its end (0)")
    submit.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="to sign with (%(default)s)")
    shows = verbs.add_parser("show", help="all jobs, where they are, and how far")
    shows.add_argument("--plot", type=Path, metavar="FILE", help="draw what happened when, as SVG")
    verbs.add_parser("why", help="who proposed what, and what the shield changed").add_argument("job")
    take = verbs.add_parser(
        "take",
        help="have what a job gave act on its owner",
        description="Offer what a job gave to its owner's actor. The gate judges it by what acts now, and it"
        " acts on trial, as what the device trains itself does.",
    )
    take.add_argument("job")
    take.add_argument("--wait-s", type=float, default=60.0, help="for the gate (60)")
    take.add_argument("--keys", type=Path, default=home(), metavar="DIR", help="to sign with (%(default)s)")
    for verb in verbs.choices.values():
        verb.add_argument("--fleet", default="default", help="(default)")
        verb.add_argument("--broker", required=True, help="mqtt://host[:1883] or mqtts://host[:8883][?ca=FILE&...]")
        verb.add_argument("--timeout-s", type=float, default=10.0, help="patience (10)")
        verb.add_argument("--json", action="store_true", help="as JSON")
    return parser.parse_args(argv)


class _Line:
    """A link to the broker that hears of jobs."""

    def __init__(self, args: argparse.Namespace, topic: wire.Topic) -> None:
        self.mqtt = Mqtt(
            args.broker, f"edgert-place-{secrets.token_hex(8)}", session_expiry_s=0, max_queue_bytes=4 << 20
        )
        self.mqtt.subscribe([(str(topic), 1)])
        self.why = f"no broker at {args.broker.rpartition('@')[2]} within {args.timeout_s:g} s"

    def wait_up(self, until_s: float) -> None:
        """Wait for the link.

        Raises:
            LinkError: it takes too long.
        """
        while not self.mqtt.is_up():
            list(self.hear(0.1))
            if time.monotonic() > until_s:
                raise LinkError(self.why)

    def hear(self, patience_s: float) -> Iterator[wire.PlaceJob]:
        """What is said of jobs within that time."""
        poller = select.poll()
        poller.register(self.mqtt.fileno(), select.POLLIN)
        poller.poll(1000 * patience_s)
        for event in self.mqtt.events():
            if isinstance(event, LinkDown):
                self.why = f"no link: {event.fault or event.reason}"
            elif isinstance(event, Received):
                with contextlib.suppress(MessageError):
                    yield wire.decode(event.payload, wire.PlaceJob)[0]


def _jobs(args: argparse.Namespace) -> dict[str, wire.PlaceJob]:
    """Everything that the broker keeps about jobs of a fleet.

    Raises:
        LinkError: there is no link in time.
    """
    line = _Line(args, wire.Topic(args.fleet, "+", "place", "job", "+"))
    found: dict[str, wire.PlaceJob] = {}
    with line.mqtt:
        line.wait_up(time.monotonic() + args.timeout_s)
        quiet_s = time.monotonic() + QUIET_S
        while (left_s := quiet_s - time.monotonic()) > 0:
            for job in line.hear(left_s):
                found[job.id] = job
                quiet_s = time.monotonic() + QUIET_S
    return dict(sorted(found.items(), key=lambda item: _began(item[1])))


def _began(job: wire.PlaceJob) -> float:
    return float(str(job.history[0].get("at_s", 0.0))) if job.history else 0.0


def _document(job: wire.PlaceJob) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__ if name != "v"}


def _table(jobs: Mapping[str, wire.PlaceJob]) -> str:
    rows = [
        (
            job.id,
            job.owner,
            job.state,
            f"{job.step}/{job.steps}",
            " ".join(job.nodes) or "-",
            str(job.attempt),
            job.why or "-",
        )
        for job in jobs.values()
    ]
    return table(("JOB", "OWNER", "STATE", "STEP", "NODES", "ATTEMPT", "WHY"), rows)


def _why(job: wire.PlaceJob) -> Iterator[str]:
    """A job's history in words."""
    yield f"{job.id} of {job.owner}: {job.state}{f', {job.why}' if job.why else ''}, step {job.step} of {job.steps}"
    begin_s = _began(job)
    for each in job.history:
        detail = {name: value for name, value in each.items() if name not in ("at_s", "what")}
        yield f"{float(str(each.get('at_s', 0.0))) - begin_s:9.2f} s  {_words(str(each.get('what')), detail)}"


def _names(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _words(what: str, detail: Mapping[str, object]) -> str:
    match what:
        case "proposed":
            return f"attempt {detail.get('attempt')}: {_proposer(detail)} proposes {_names(detail.get('nodes'))}"
        case "judged":
            shield, outcome = f"the shield of {detail.get('region')}", detail.get("outcome")
            reasons = detail.get("reasons")
            said = "; ".join(_reason(each) for each in reasons) if isinstance(reasons, list | tuple) else ""
            if outcome == "granted":
                return f"{shield} lets it pass"
            if outcome == "moved":
                return f"{shield} moves it to {_names(detail.get('nodes'))}: {said}"
            return f"{shield} puts it off: {said}"
        case "granted":
            how = "alone, as no shield answers" if detail.get("alone") else "room is kept"
            return f"{how} at {_names(detail.get('nodes'))}"
        case _:
            rest = ", ".join(f"{name} {_names(value)}" for name, value in detail.items())
            return f"{what}{': ' if rest else ''}{rest}"


def _proposer(detail: Mapping[str, object]) -> str:
    """Who proposes, and how the job is cut."""
    kind, cut = detail.get("kind"), detail.get("cut")
    parts = len(nodes) if isinstance(nodes := detail.get("nodes"), list | tuple) else 1
    if kind == "layers":
        return f"the agent, cut before stages {_names(cut[1:]) if isinstance(cut, list | tuple) else cut},"
    return "the agent" if parts == 1 else f"the agent, {parts} shares of each batch,"


def _reason(reason: object) -> str:
    if not isinstance(reason, Mapping):
        return str(reason)
    part, node = reason.get("part"), reason.get("node")
    said = str(reason.get("name")).replace("_", " ")
    if node:
        said += f" at {node}"
    if reason.get("need"):
        said += f", where {float(reason['need']):.4g} is needed and {float(reason.get('room') or 0):.4g} left"
    return said if part is None else f"part {part}: {said}"


def timeline(jobs: Mapping[str, wire.PlaceJob]) -> str:
    """When jobs waited, ran and broke off, and where: a line a job, as SVG.

    Args:
        jobs: by id.
    """
    from edgert.ports.report import picture

    nodes = sorted({str(n) for job in jobs.values() for e in job.history for n in _list(e.get("nodes"))})
    colour = {node: f"C{k % 10}" for k, node in enumerate(nodes)}
    begin_s = min((_began(job) for job in jobs.values()), default=0.0)

    def fill(figure: Any) -> None:
        panel: Axes = figure.subplots()
        for row, job in enumerate(jobs.values()):
            _draw(panel, row, job, begin_s, colour)
        panel.set_yticks(range(len(jobs)), list(jobs))
        panel.invert_yaxis()
        panel.set_xlabel("seconds")
        for node, shade in colour.items():
            panel.barh([0], [0], color=shade, label=node)
        if nodes:
            panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

    return picture(fill, 1.2 + ROW * len(jobs))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _draw(panel: Axes, row: int, job: wire.PlaceJob, begin_s: float, colour: Mapping[str, str]) -> None:
    held: tuple[float, list[object]] | None = None
    last_s = 0.0
    for each in job.history:
        at_s = float(str(each.get("at_s", begin_s))) - begin_s
        what, last_s = each.get("what"), at_s
        if what == "granted":
            held = at_s, _list(each.get("nodes"))
        elif what in ("broke-off", "trained", "failed", "restarted") and held is not None:
            _bars(panel, row, held, at_s, colour)
            held = None
            if what == "broke-off":
                panel.plot([at_s], [row], "kx", markersize=5)
        elif what == "checkpoint":
            panel.plot([at_s], [row], "k|", markersize=6)
    if held is not None:
        _bars(panel, row, held, last_s, colour)
    panel.plot([_began(job) - begin_s, last_s], [row, row], color="0.7", linewidth=0.8, zorder=0)


def _bars(panel: Axes, row: int, held: tuple[float, list[object]], until_s: float, colour: Mapping[str, str]) -> None:
    since_s, nodes = held
    height = 0.8 / max(1, len(nodes))
    for k, node in enumerate(nodes):
        at = row - 0.4 + (k + 0.5) * height
        panel.barh([at], [until_s - since_s], left=since_s, height=0.9 * height, color=colour[str(node)])


def _read_data(path: Path) -> bytes:
    """A shard, made of labelled observations where that is what the file holds.

    Raises:
        ArtifactError: it is neither.
        ConfigError: it cannot be read.
    """
    import numpy as np

    from edgert.learn.dqn import Batch
    from edgert.ports import shards

    try:
        data = path.read_bytes()
        if path.suffix != ".npz":
            shards.unpack_shard(data)
            return data
        with np.load(path) as arrays:
            obs, label = np.asarray(arrays["obs"], np.uint8), np.asarray(arrays["label"], np.int64)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}; an .npz holds `obs` and `label`") from error
    n = len(label)
    if obs.ndim != 4 or len(obs) != n or not n or label.min() < 0:
        raise ArtifactError(f"{path}: obs {obs.shape} and label {label.shape}: (n, height, width, channels) and (n,)")
    wanted = np.zeros((n, int(label.max()) + 1), np.float32)
    wanted[np.arange(n), label] = 1.0
    nothing = np.zeros(n, np.float32)
    return shards.pack_shard(Batch(obs, label, nothing, obs, np.ones(n, bool), wanted, np.ones(n, bool)))


def _settings(pairs: list[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, _, value in (pair.partition("=") for pair in pairs)}
    except ValueError as error:
        raise ConfigError(f"--set: {error}; write name=value, as learning_rate=1e-3") from error


def _submit(args: argparse.Namespace) -> int:
    from edgert.fleet import fetch
    from edgert.ports import shards
    from edgert.programs.placer.transport import chunk_topic

    id_ = named(args.id or f"t-{secrets.token_hex(4)}")
    files: dict[str, bytes] = {}
    if args.bundle is not None:
        try:
            files["bundle"] = args.bundle.read_bytes()
        except OSError as error:
            raise ConfigError(f"{args.bundle}: {error.strerror}") from error
    if args.data is not None:
        files["shard"] = _read_data(args.data)
    offers = {name: shards.offer(name, data, id_=id_) for name, data in files.items()}
    job = wire.PlaceSubmit(
        id=id_,
        steps=args.steps,
        batch=args.batch,
        checkpoint_steps=args.checkpoint_steps,
        split=args.split,
        hyper=_settings(args.set),
        due_s=args.due_s,
        bundle=offers.get("bundle"),
        shard=offers.get("shard"),
    )
    try:
        wire.decode(wire.encode(job), wire.PlaceSubmit)
    except MessageError as error:
        raise ConfigError(f"a job that no device could take on: {error}") from error
    payload = vouched(args, wire.encode(job))
    named(args.device)
    line = _Line(args, wire.Topic(args.fleet, args.device, "place", "job", id_))
    laid = [
        (chunk_topic(args.fleet, "-", offer.sha256, k), shards.chunk(files[name], offer, k))
        for name, offer in offers.items()
        for k in range(fetch.count(offer))
    ]
    told: wire.PlaceJob | None = None
    with line.mqtt:
        end_s = time.monotonic() + args.timeout_s
        line.wait_up(end_s)
        for topic, data in laid:
            _publish(line.mqtt, topic, data, end_s, retain=True)
        said_s = 0.0
        topic = str(wire.Topic(args.fleet, args.device, "place", "submit", id_))
        wait_s = end_s + args.wait_s if args.wait_s else 0.0
        while (told is None and time.monotonic() < end_s) or _goes_on(told, wait_s):
            if told is None and time.monotonic() >= said_s:
                said_s = time.monotonic() + AGAIN_S
                _publish(line.mqtt, topic, payload, end_s)
            for heard in line.hear(0.2):
                told = heard
        for topic, _ in laid if told is not None else []:
            _publish(line.mqtt, topic, b"", time.monotonic() + args.timeout_s, retain=True)
    if told is None:
        print(f"{args.fleet}/{args.device} says nothing of job {id_} within {args.timeout_s:g} s")
        return RETRY_LATER
    print(
        json.dumps(_document(told)) if args.json else clean(f"{id_}: {told.state}{f', {told.why}' if told.why else ''}")
    )
    if told.state in ("refused", "failed"):
        return ERROR
    return OK if told.state == "done" or not args.wait_s else RETRY_LATER


def _take(args: argparse.Namespace, job: wire.PlaceJob | None) -> int:
    if job is None or job.state != "done":
        print(f"no job {args.job} in fleet {args.fleet} that is done{f': it is {job.state}' if job else ''}")
        return NOTHING_TO_DO
    payload = vouched(args, wire.encode(wire.PlaceTake(id=job.id)))
    line = _Line(args, wire.Topic(args.fleet, job.owner, "place", "job", job.id))
    topic, told = str(wire.Topic(args.fleet, job.owner, "place", "take", job.id)), job
    with line.mqtt:
        line.wait_up(time.monotonic() + args.timeout_s)
        end_s, said_s = time.monotonic() + args.wait_s, 0.0
        while not _taken(told) and told.state not in ("refused", "failed") and time.monotonic() < end_s:
            if told.state == "done" and time.monotonic() >= said_s:
                said_s = time.monotonic() + AGAIN_S
                _publish(line.mqtt, topic, payload, end_s)
            for heard in line.hear(0.2):
                told = heard
    if _taken(told):
        print(clean(f"{job.id}: offered to the actor of {job.owner}, on trial"))
        return OK
    print(clean(f"{job.id}: {told.state}{f', {told.why}' if told.why else ''}"))
    return ERROR if told.state in ("refused", "failed") else RETRY_LATER


def _taken(job: wire.PlaceJob) -> bool:
    return any(each.get("what") == "offered" for each in job.history)


def _goes_on(told: wire.PlaceJob | None, until_s: float) -> bool:
    return told is not None and told.state not in ENDS and time.monotonic() < until_s


def _publish(mqtt: Mqtt, topic: str, payload: bytes, end_s: float, *, retain: bool = False) -> None:
    """Hand a message over.

    Raises:
        LinkError: the broker takes nothing in time.

    Blocks: until then.
    """
    content = wire.CONTENT_TYPE if payload else None
    while not mqtt.publish(topic, payload, qos=1, expiry_s=EXPIRY_S, retain=retain, content_type=content):
        if time.monotonic() > end_s:
            raise LinkError("the broker takes nothing")
        time.sleep(0.05)
