"""The supervisor: talks to the broker, watches the board, keeps the other processes running, and obeys `control.step`.

No decision is made here and no number is crunched: this process imports no numpy. It may be killed at any time: actor
and trainer go on without it, its successor finds them by their hello, and what was recorded waits in the spool.
"""

from __future__ import annotations

import datetime
import logging
import os
import selectors
import time
from collections import deque
from pathlib import Path

import msgspec

from edgert import __version__, bus, control, wire
from edgert import bundle as bundles
from edgert import device as devices
from edgert import guard as guards
from edgert.children import roles, silent
from edgert.config import Config
from edgert.errors import ArtifactError, ConfigError, LinkError, StoreError, UsageError
from edgert.fleet import duties, policies, presence
from edgert.govern.cost import prices
from edgert.hardware import BoardFile
from edgert.ports import boardfile, ipc
from edgert.ports.board import Board, open_board
from edgert.ports.children import Children, waited_s
from edgert.ports.credentials import address_of
from edgert.ports.desk import Desk
from edgert.ports.limits import Limits, Standing, Wanted, asymmetric
from edgert.ports.link import LinkDown, LinkUp, Received
from edgert.ports.mqtt import Mqtt
from edgert.ports.notify import Notifier
from edgert.ports.process import Layout, Stopping, lock_holder, read_bundle, read_note, run_role, usage
from edgert.ports.spool import Spool
from edgert.ports.store import remove, write_atomic
from edgert.programs import chores, events
from edgert.programs.chores import Chores, Tail
from edgert.programs.deliveries import Deliveries
from edgert.status import document, refusal
from edgert.values import (
    Carried,
    Clock,
    Hello,
    Reading,
    Role,
    ServiceReport,
    StatusReply,
    StatusRequest,
    Stop,
    Swap,
    TrainOrder,
    TrainReply,
)

PACKET_BYTES = 16
"""Of a message besides topic and payload, in either direction, with its acknowledgement; what lies below is not ours
to know."""
CLOCK_SET_YEAR = 2025
"""A wall clock that shows an earlier year was never set."""
TRAINER_WEIGHT = 1
"""Of the trainer against 100 of everybody else, where the helper may set it: its niceness of 19 is worth 15 against
1024, which a group of its own would lift it out of."""

log = logging.getLogger("edgert.supervisor")


class Supervisor:
    """The shell round `control.step`: ports on one side, effects on the other."""

    def __init__(self, config: Config, config_path: Path, layout: Layout) -> None:
        """Open every port; nothing is started yet.

        Args:
            config: checked.
            config_path: handed on to the children.
            layout: of this device.

        Raises:
            ConfigError, ArtifactError, StoreError, UsageError: with what to do about it.
        """
        try:
            manifest = bundles.read(read_bundle(config)).manifest
        except ArtifactError as error:
            raise ArtifactError(f"{config.policy.bundle}: {error}") from error
        if config.policy.thresholds is not None and len(config.policy.thresholds) != len(manifest.thresholds):
            raise ConfigError(
                f"{config_path}: policy.thresholds has {len(config.policy.thresholds)} numbers; {config.policy.bundle} "
                f"has {len(manifest.thresholds)} exits that take one"
            )
        self.config, self.config_path, self.layout = config, config_path, layout
        self.session = os.urandom(8).hex()
        self.store_faults: dict[str, int] = {}
        self.told = 0  # status documents
        self.pause_fault = ""  # why a restart would not find what a person said last
        self.owes_ready = False  # the brain says it once; the service manager may be too busy to take it
        self.spool = Spool(layout.spool, events.bounds(config.spool))
        self.board: Board = open_board(config)
        self.limits = Limits(config.limits.socket if config.limits.enabled else None)
        self.standing = Standing()
        self.split = asymmetric(config.board.sysfs_root) if config.limits.enabled else None
        self.carried_bytes = 0
        self.service_bytes: dict[Role, int] = {}
        self.notifier = Notifier.from_environment()
        self.listener = ipc.listen(layout.control)
        self.desk = Desk(layout.knowledge)
        self.askers: tuple[int, ...] = ()
        self.channels: dict[ipc.Channel, Role | None] = {}
        now_s = time.monotonic()
        note, acting_fault = read_note(layout)
        adopted = {role: pid for role in roles(config) if (pid := lock_holder(layout.lock(role))) is not None}
        world = control.open_world(
            config,
            task=manifest.task,
            n_exits=len(manifest.exits),
            note=note,
            streams={name: (each.id, each.first_seq, each.last_seq) for name, each in self.spool.streams.items()},
            now_s=now_s,
            adopted=adopted,
            paused=layout.paused.exists(),
            prices=prices(manifest, self.board.name),
            cores=os.cpu_count() or 1,
            carried=_read_carried(layout),
            board=_board_file(config),
        )
        self.inputs: deque[bus.Input | bus.FleetInput | bus.PolicyTold] = deque()
        self.tail = Tail()
        self.selector = selectors.DefaultSelector()
        self.children = Children(config_path, layout, config.plant, self.selector, self.inputs.append)
        self.chores = Chores(layout, self.spool, self.selector, self.inputs.append)
        found = self.chores
        device, effects = devices.open_device(world, found.jobs, found.marks, found.facts, found.found, now_s)
        self.mqtt = self._open_link()
        self.deliveries = Deliveries(config, layout, self.mqtt, self.board.name)
        birth = wire.Status(online=True, session=self.session, version=__version__, task=manifest.task)
        self.guard = self.deliveries.guard(device, presence.Herald(birth=birth))
        self.selector.register(self.deliveries, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(self.mqtt, selectors.EVENT_READ)
        self.selector.register(self.desk, selectors.EVENT_READ)
        for role, pid in adopted.items():
            log.info("the %s of a predecessor is still at work, pid %d", role, pid)
            self.children.watch(role, pid)
        faults = {"spool-broken": self.spool.fault, "jobs-broken": self.chores.fault, "acting-broken": acting_fault}
        faults["fleet-broken"] = self.deliveries.fault
        for name, fault in faults.items():
            if fault:
                self._record(name, {"why": fault})
        for effect in effects:
            self._perform(effect)

    @property
    def world(self) -> control.World:
        """What keeps the device running."""
        return self.guard.device.world

    def _open_link(self) -> Mqtt:
        broker, device = self.config.broker, self.config.device
        topic = guards.status_topic(self.config)
        return Mqtt(
            address_of(broker),
            f"edgert-{device.fleet}-{device.id}",
            will=(topic, wire.encode(wire.Status(online=False, session=self.session))),
            session_expiry_s=broker.session_expiry_s,
            keepalive_s=broker.keepalive_s,
        )

    def run(self, stopping: Stopping) -> int:
        """Supervise until told to stop; then stop the children in good order."""
        log.info(
            "device %s, fleet %s, broker %s", self.config.device.id, self.config.device.fleet, self.config.broker.url
        )
        self.mqtt.subscribe([(topic, 1) for topic in guards.subscriptions(self.config)])
        offers = [(policies.offer_topic(self.config), 1)]
        self.mqtt.subscribe(offers, known=lambda: policies.offer_known(self.guard.policies))
        self.mqtt.subscribe([(guards.status_topic(self.config), 0)])
        self.mqtt.start()
        sense_s = telemetry_s = look_s = time.monotonic()
        settle_s = sense_s + events.PATIENT_S
        listened_s = sense_s
        while not stopping:
            now_s = time.monotonic()
            pace = control.pace(self.world, now_s)
            sense_s = min(sense_s, now_s + pace * self.config.govern.period_s)  # what wakes up is looked at at once
            if now_s >= sense_s:
                sense_s = now_s + pace * self.config.govern.period_s
                rtt_s = self.mqtt.rtt_s()
                readings = msgspec.structs.replace(self.board.read(now_s), link_rtt_s=Reading(rtt_s))
                starved = {role: waited_s(pid) for role, pid in silent(self.world.children, now_s).items()}
                waited = {role: seconds for role, seconds in starved.items() if seconds is not None}
                self.inputs.append(bus.Sensed(readings, _clock(), self.carried_bytes, usage()[1], waited))
                self._ask_limits(now_s)
            if now_s >= settle_s:
                settle_s = now_s + events.PATIENT_S
                self._settle_events()
            if now_s >= look_s:
                look_s = now_s + pace * chores.LOOK_S
                self.inputs.append(self.chores.timed())
            if now_s >= telemetry_s:
                telemetry_s = now_s + max(pace, self.world.budget.telemetry_s if self.world.budget else 1.0)
                self._publish_telemetry()
            self.inputs.append(bus.Tick(listened_s))  # after what was sensed, which may excuse silence
            self._step_all()
            self.mqtt.done()  # an order is acknowledged once it is on the disk
            wake_s = min(control.wake_s(self.world, now_s), self.desk.wake_s(), sense_s, telemetry_s, look_s)
            ready = self.selector.select(max(0.0, wake_s - time.monotonic()))
            listened_s = time.monotonic()
            for key, _ in ready:
                self._hear(key.fileobj)
            self._flush()
            if not self.mqtt.revive():
                raise LinkError("the thread that talks to the broker hangs: restarting the supervisor")
        return self._stop()

    def _step_all(self) -> None:
        """Feed the brain until nothing new has come of it."""
        while self.inputs:
            self._step(self.inputs.popleft())

    def _step(self, event: bus.Input | bus.FleetInput | bus.PolicyTold) -> None:
        self.guard, effects = guards.step(self.guard, event, time.monotonic())
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: bus.Effect) -> None:
        match effect:
            case bus.Publish():
                sent = self.mqtt.publish(
                    effect.topic,
                    effect.payload,
                    qos=effect.qos,
                    expiry_s=effect.expiry_s,
                    content_type=wire.CONTENT_TYPE,
                    correlation=effect.correlation,
                    response_topic=effect.response_topic,
                    retain=effect.retain,
                )
                self._count_bytes(sent, effect.topic, effect.payload)
            case bus.SendEvents():
                self._send_events(effect)
            case bus.ForgetEvents(stream, up_to):
                self._forget_events(stream, up_to)
            case bus.Record(name, detail):
                self._record(name, detail)
            case bus.Start(role):
                why = self.children.start(role)
                if why:
                    self._record("start-failed", {"role": role, "why": why})
            case bus.Kill(role, pid):
                log.warning("killing the %s, pid %d: it hangs", role, pid)
                self.children.kill(pid)
            case bus.Tell(role, told):
                for channel, who in self.channels.items():
                    if who == role:
                        channel.send(told)
            case bus.TellAsker(number, told):
                self.desk.tell(number, told)
            case bus.Commit(note):
                try:
                    write_atomic(self.layout.acting, msgspec.json.encode(note))
                except StoreError as error:
                    self._record("acting-not-noted", {"why": str(error)})
            case bus.Pause(paused):
                self._note_pause(paused)
            case bus.Price(network):
                self._price(network)
            case bus.PolicyDo(do):
                self.inputs += self.deliveries.perform(do, self.guard)
            case bus.Carry(carried):
                try:
                    write_atomic(self.layout.carried, msgspec.json.encode(carried))
                except StoreError as error:
                    self._store_fault("carried-not-noted", error)
            case bus.DoJob(id_, "upload", _):
                self._upload(id_)
            case bus.DoJob() | bus.StopJob() | bus.WriteJob() | bus.ForgetJobs() | bus.WriteMark() | bus.WriteFact():
                acting = Path(self.world.networks.target.path or self.config.policy.bundle)
                self.chores.perform(effect, chores.benches(acting, self.config_path))
            case bus.Reconnect(why):
                self.mqtt.reconnect(why)
            case bus.ShowLog(id_, lines):
                self._show_log(id_, lines)
            case bus.Notify(ready, alive, status):
                self.owes_ready = (self.owes_ready or ready) and not self.notifier.ready()
                if alive:
                    self.notifier.watchdog()
                self.notifier.status(status)

    def _price(self, network: Swap) -> None:
        """Read what a network can be run as; the loader of the actor has judged it, so this may fail in silence."""
        path = network.path or self.config.policy.bundle
        found = None
        try:
            found = prices(bundles.read(Path(path).read_bytes()).manifest, self.board.name)
        except (OSError, ArtifactError) as error:
            log.warning("%s: %s: the governor goes on with the former prices", path, error)
        self.inputs.append(bus.Priced(network, found))

    def _ask_limits(self, now_s: float) -> None:
        """Say to the privileged helper, if there is one, what the budget wants of it."""
        budget, children = self.world.budget, self.world.children
        if budget is None or not self.config.limits.enabled:
            return
        small, big = self.split or (None, None)
        wanted = Wanted(
            trainer_cpu_frac=budget.trainer_cpu_frac,
            trainer_weight=TRAINER_WEIGHT,
            cpu_cap_frac=budget.clock_frac,
            trainer_cores=small,
            actor_cores=big,
        )
        trainer, actor = (children[role].pid or None if role in children else None for role in ("trainer", "actor"))
        self.standing = self.limits.ask(wanted, now_s, trainer_pid=trainer, actor_pid=actor)

    def _upload(self, id_: str) -> None:
        """What an operator asks for first, as an event that is not lost; the event is its own evidence."""
        status = {**self._document(), "log": self.tail.lines()}
        kept = self._record(events.UPLOADED, {"id": id_, "status": status})
        self.inputs.append(bus.JobDone(id_, "" if kept else "the event store took nothing"))

    def _show_log(self, id_: str, lines: int) -> None:
        device = self.config.device
        topic = str(wire.Topic(device.fleet, device.id, "tele", "reply", id_))
        reply = wire.CommandReply(id=id_, ok=True, detail={"lines": self.tail.lines(lines)})
        self._perform(bus.Publish(topic, wire.encode(reply), qos=1, expiry_s=30))

    def _document(self) -> dict[str, object]:
        now_s = time.monotonic()
        shown = duties.shown(self.guard.device.duties, now_s, self.config.device.id)
        shown |= {"trust": policies.shown(self.guard.policies)}
        return {**document(self.world, now_s), **shown, **self._own_cost()}

    def _note_pause(self, paused: bool) -> None:
        self.pause_fault = ""
        try:
            if paused:
                write_atomic(self.layout.paused, b"")
            else:
                remove(self.layout.paused)
        except StoreError as error:
            self.pause_fault = f"{'paused' if paused else 'going on'}, but not after a restart: {error}"
            self._record("pause-not-noted", {"why": str(error)})

    def _record(self, name: str, detail: dict[str, object]) -> bool:
        """Make an event durable. A disk that takes nothing costs the event, not the device."""
        log.info("%s %s", name, str(detail)[:2000])
        try:
            events.record(self.spool, name, detail, time.time())
        except (StoreError, UsageError) as error:
            self._store_fault("event-lost", f"{name}: {error}")
            return False
        self._stored()
        return True

    def _stored(self) -> None:
        """The brain compares: a write of one stream brings what was deferred of others."""
        for name, stream in self.spool.streams.items():
            self.inputs.append(bus.Stored(name, stream.first_seq, stream.last_seq))

    def _settle_events(self) -> None:
        """Write what could wait."""
        try:
            if self.spool.settle():
                self._stored()
        except StoreError as error:
            self._store_fault("event-lost", error)

    def _forget_events(self, stream: str, up_to: int) -> None:
        try:
            self.spool.acknowledge(stream, up_to)
        except StoreError as error:
            # They stay until the next acknowledgement; a successor would send them again, and collectors count.
            self._store_fault("events-not-forgotten", error)
            return
        self._stored()

    def _store_fault(self, name: str, why: object) -> None:
        self.store_faults[name] = self.store_faults.get(name, 0) + 1
        log.error("%s: %s", name, why)

    def _send_events(self, wanted: bus.SendEvents) -> None:
        device, name = self.config.device, wanted.stream
        topic = str(wire.Topic(device.fleet, device.id, "evt", "device"))
        try:
            stored = self.spool.peek(name, wanted.after, wanted.up_to - wanted.after)
        except StoreError as error:
            self._store_fault("events-not-read", error)
            self.inputs.append(bus.Refused(name, wanted.after + 1))
            return
        for seq, payload in stored:
            if seq > wanted.up_to:
                break
            event, fault, why = events.encode(
                self.spool.streams[name].id, seq, wanted.first, payload, self.mqtt.max_payload_bytes(topic)
            )
            if fault:
                self._store_fault(fault, why)
            if not self.mqtt.publish(topic, event, qos=1, content_type=wire.CONTENT_TYPE):
                self.inputs.append(bus.Refused(name, seq))
                return
            self._count_bytes(True, topic, event)

    def _publish_telemetry(self) -> None:
        device = self.config.device
        self.told += 1
        telemetry = wire.encode(wire.Telemetry(at_s=time.time(), status=self._document(), seq=self.told))
        # QoS 1 so that its acknowledgement measures the round trip; expendable all the same.
        topic = str(wire.Topic(device.fleet, device.id, "tele", "device"))
        sent = self.mqtt.publish(topic, telemetry, qos=1, expiry_s=10, content_type=wire.CONTENT_TYPE)
        self._count_bytes(sent, topic, telemetry)

    def _count_bytes(self, sent: bool, topic: str, payload: bytes) -> None:
        self.carried_bytes += len(topic) + len(payload) + PACKET_BYTES if sent else 0

    def _count_service(self, role: Role, carried_bytes: int) -> None:
        """A link of a child's own costs the same money; its count begins anew with the child."""
        before = self.service_bytes.get(role, 0)
        self.service_bytes[role] = carried_bytes
        self.carried_bytes += carried_bytes - before if carried_bytes >= before else max(0, carried_bytes)

    def _own_cost(self) -> dict[str, object]:
        cpu_s, rss_bytes = usage()
        own = {"pid": os.getpid(), "cpu_s": cpu_s, "rss_bytes": rss_bytes, "link_faults": self.mqtt.faults()}
        store = {**events.shown(self.spool), "store_faults": {**self.store_faults, **self.chores.faults}}
        limits = {"limits": msgspec.to_builtins(self.standing)} if self.config.limits.enabled else {}
        return {"supervisor": own, "session": self.session, **store, **limits}

    def _hear(self, source: object) -> None:
        if source is self.listener:
            while (channel := ipc.accept(self.listener)) is not None:
                self.channels[channel] = None
                self.selector.register(channel, selectors.EVENT_READ)
                self._hear_channel(channel)  # a hello that waited here must not pass for silence
        elif source is self.mqtt:
            self._hear_broker()
        elif source is self.desk:
            asks = self.desk.receive()
            self._note_askers()
            self.inputs += [bus.Asked(number, ask) for number, ask in asks]
        elif source is self.deliveries:
            self.inputs += self.deliveries.events()
        elif isinstance(source, ipc.Channel):
            self._hear_channel(source)
        elif isinstance(source, int) and not self.chores.hear(source):
            self.children.bury(source)

    def _hear_broker(self) -> None:
        for event in self.mqtt.events(done=False):
            match event:
                case LinkUp():
                    self.inputs.append(bus.LinkUp())
                case LinkDown():
                    self.inputs.append(bus.LinkDown(event.fault or event.reason))
                case Received():
                    self._count_bytes(True, event.topic, event.payload)
                    self.inputs.append(bus.Received(event.topic, event.payload, event.correlation, event.retain))
                case _:
                    pass

    def _hear_channel(self, channel: ipc.Channel) -> None:
        for told in channel.receive():
            match told:
                case Hello(role, pid):
                    self.channels[channel] = role
                    self.inputs.append(bus.Connected(role, pid))
                case StatusRequest():
                    channel.send(StatusReply(self._document()))
                case TrainOrder():
                    # Whoever may connect here may order; children have nothing to say about it.
                    if self.channels.get(channel) in (None, "client"):
                        channel.send(TrainReply(told.id, self._order(told)))
                case _:
                    speaker = self.channels.get(channel)
                    if speaker is not None and speaker != "client":
                        if isinstance(told, ServiceReport):
                            self._count_service(speaker, told.carried_bytes)
                        self.inputs.append(bus.Heard(speaker, told))
        if channel.closed:
            self._forget(channel)

    def _order(self, order: TrainOrder) -> str:
        """Carry out a person's word about the training, or say why it is of no use; empty when it was."""
        why = refusal(self.world, order)
        if why:
            return why
        self._step(bus.TrainOrdered(order))  # at once, so that the reply knows what came of it
        return "" if order.verb == "now" else self.pause_fault

    def _note_askers(self) -> None:
        if self.askers != self.desk.numbers():
            self.askers = self.desk.numbers()
            self.inputs.append(bus.AskersHere(self.askers))

    def _forget(self, channel: ipc.Channel) -> None:
        del self.channels[channel]
        self.selector.unregister(channel)

    def _flush(self) -> None:
        for channel in list(self.channels):
            channel.flush()
        self.desk.flush()
        self._note_askers()  # telling may have ended some

    def _stop(self) -> int:
        """Stop the children; actor and trainer are asked, so one leaves the plant safe and the other a checkpoint."""
        self.notifier.stopping()
        for channel, role in self.channels.items():
            if role not in (None, "client"):
                channel.send(Stop())
        asked = {role for role in self.channels.values() if role is not None}
        self.children.stop(asked, self._await)
        # A broker forgets the will of a client that leaves in good order, so what the will says is said here.
        offline = wire.encode(wire.Status(online=False, session=self.session))
        self.mqtt.publish(guards.status_topic(self.config), offline, qos=1, retain=True)
        self.mqtt.close()
        self.limits.close()
        self.deliveries.close()
        self.desk.close()
        self.chores.close()
        self._settle_events()
        self.spool.close()
        return 0

    def _await(self) -> None:
        """One look at what the children say while they leave."""
        self._flush()
        for key, _ in self.selector.select(0.1):
            self._hear(key.fileobj)


def _clock() -> Clock | None:
    """The time of the wall, here; None while the machine does not know it."""
    here = time.localtime()
    if here.tm_year < CLOCK_SET_YEAR:
        return None
    day = datetime.date(here.tm_year, here.tm_mon, here.tm_mday).toordinal()
    return Clock(day, 3600.0 * here.tm_hour + 60.0 * here.tm_min + here.tm_sec)


def _board_file(config: Config) -> BoardFile | None:
    """What is known of the kind of board; None where there is no file about it.

    Raises:
        ConfigError: there is no file of the name in the configuration, or it is wrong.
    """
    try:
        found, why = boardfile.load(config.board.model, config.board.sysfs_root)
    except ConfigError as error:
        if config.board.model is not None:
            raise
        log.warning("%s: nothing is known of this kind of board", error)
        return None
    # A simulated board without a name is none of those that this machine may be.
    found = None if config.board.kind == "fake" and config.board.model is None else found
    log.info("board: %s: %s", found.name if found else "unknown", why)
    return found


def _read_carried(layout: Layout) -> Carried | None:
    """What a predecessor noted; what nobody can read is nothing, and the day begins anew."""
    try:
        return msgspec.json.decode(layout.carried.read_bytes(), type=Carried)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _run(config: Config, config_path: Path, layout: Layout, stopping: Stopping) -> int:
    try:
        supervisor = Supervisor(config, config_path, layout)
    except UsageError as error:
        # Nothing runs yet: something of the user's is in the way, and only the user can clear it.
        raise ConfigError(str(error)) from error
    return supervisor.run(stopping)


def main(argv: list[str] | None = None) -> int:
    """Run one device."""
    return run_role("supervisor", "edgert run", argv, _run)


if __name__ == "__main__":
    raise SystemExit(main())
