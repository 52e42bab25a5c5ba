"""What goes wrong around the demo's fleet, on purpose, and what its devices made of it.

Heat and an empty battery happen to simulated boards, in compressed time. A bad link is a real TCP relay between devices
and broker, and a hog is a real process on this machine.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgert.errors import LinkError
from edgert.ports import broker as brokers
from edgert.ports.board.physics import Model
from edgert.ports.board.scenario import Row, Scenario, cells, make
from edgert.ports.relay import Shape
from edgert.ports.screen import History, number
from edgert.ports.store import write_atomic


class Scene(NamedTuple):
    """One scenario of the demo.

    Attributes:
        hours: of it, which the demo lasts.
        hint: what to expect, for people.
        reasons: beginnings of the reasons that devices should name.
    """

    hours: float
    hint: str
    reasons: tuple[str, ...]


SCENES = {
    "heatwave": Scene(3.0, "the air grows too hot for the board, and cools again", ("temp-", "throttled")),
    "low-battery": Scene(4.0, "the battery runs down; in the last fifth a charger comes", ("battery-", "goal-until")),
    "bad-link": Scene(3.0, "the link to the broker is slow, lossy, and gone now and then", ("link-",)),
    "cpu-hog": Scene(1.0, "other programs take the processor now and then", ("cpu-", "deadline", "throttled")),
}
BOARD = ("heatwave", "low-battery")
"""Scenes that happen to a simulated board."""
SEEDS = {"heatwave": 1, "low-battery": 3, "bad-link": 5, "cpu-hog": 2}
QUICK = {"govern.period_s": 0.5, "govern.smooth_s": 1.0, "govern.dwell_s": 3.0}
"""Where hours pass in a minute, what counts in seconds must be shorter too."""
HOG = "while True: pass"
STOP_S = 5.0


class Stage:
    """A scenario that runs beside a cluster.

    Attributes:
        name: a key of `SCENES`.
        scenario: what happens, in its own time.
        speed: so much faster it happens.
        config: dotted key -> value, for every device.
        log: device -> rows of what it adapted to and how, one a status document.
    """

    def __init__(self, name: str, out: Path, minutes: float) -> None:
        """Write the trace; nothing runs yet.

        Args:
            name: a key of `SCENES`.
            out: the demo's folder.
            minutes: that the demo lasts.
        """
        self.name = name
        scene = SCENES[name]
        self.scenario = make(name, Model(), seed=SEEDS[name], hours=scene.hours)
        self.speed = scene.hours * 60 / minutes
        self.log: dict[str, list[dict[str, Any]]] = {}
        self.config: dict[str, object] = dict(QUICK)
        self._out, self._settings = out, out / "link.json"
        self._relay: subprocess.Popen[str] | None = None
        self._hogs: list[subprocess.Popen[bytes]] = []
        self._last: dict[str, float] = {}
        out.mkdir(parents=True, exist_ok=True)
        if name in BOARD:
            trace = out / "scenario.csv"
            write_atomic(trace, _csv(self.scenario).encode(), mode=0o644)
            self.config |= {"board.scenario": str(trace.absolute()), "board.speed": self.speed}
            self.config |= {"battery.kind": "simulated" if self.scenario.capacity_j else "none"}
        if name == "bad-link":
            self._port = brokers.free_port()
            self.config["broker.url"] = f"mqtt://127.0.0.1:{self._port}"

    def start(self, broker_port: int) -> None:
        """Begin: before the devices need their link.

        Raises:
            LinkError: the relay does not start.
        """
        if self.name != "bad-link":
            return
        self._shape(self.scenario.rows[0])
        command = [sys.executable, "-m", "edgert.ports.relay", "--listen", str(self._port)]
        command += ["--to", f"127.0.0.1:{broker_port}", "--settings", str(self._settings)]
        self._relay = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        told = self._relay.stdout.readline() if self._relay.stdout else ""
        if not told.strip().isdigit():
            raise LinkError(f"the relay did not start: {' '.join(command)}")

    def poll(self, elapsed_s: float) -> str:
        """Let happen what happens now; call it a few times a second.

        Args:
            elapsed_s: since the demo began.

        Returns:
            What that is, in words.
        """
        row = self.scenario.at(elapsed_s * self.speed)
        hour = f"hour {elapsed_s * self.speed / 3600:.1f} of {SCENES[self.name].hours:g}"
        if self.name == "heatwave":
            return f"{hour}: air {number(row.ambient_c, ' °C')}" + (", others load the board" if row.hog_cores else "")
        if self.name == "low-battery":
            return f"{hour}: " + ("a charger is there" if row.charger else "no charger")
        if self.name == "bad-link":
            self._shape(row)
            if not row.link_up:
                return f"{hour}: the link is down"
            rate = f"{row.link_bytes_per_s / 1024:,.1f} KiB/s"
            return f"{hour}: round trip {row.rtt_s:.2f} s, {100 * row.loss_frac:.0f} % loss, {rate}"
        wanted = round(row.hog_cores / Model().cores * 2 * len(os.sched_getaffinity(0)))
        self._hog(wanted)
        return f"{hour}: {wanted} hogs" if wanted else f"{hour}: no hog"

    def stop(self) -> None:
        """End what this started."""
        self._hog(0)
        if self._relay is not None:
            self._relay.terminate()
            try:
                self._relay.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._relay.kill()
                self._relay.wait()
            if self._relay.stdout:
                self._relay.stdout.close()
            self._relay = None

    def _shape(self, row: Row) -> None:
        shape = Shape(
            delay_s=row.rtt_s / 2,
            rate_bytes_s=row.link_bytes_per_s,
            loss_frac=min(0.3, row.loss_frac),
            blackhole=not row.link_up,
        )
        data = msgspec.json.encode(shape)
        if not self._settings.exists() or self._settings.read_bytes() != data:
            write_atomic(self._settings, data)

    def _hog(self, count: int) -> None:
        while len(self._hogs) > count:
            hog = self._hogs.pop()
            hog.kill()
            hog.wait()
        while len(self._hogs) < count:
            # An own session, as everything the demo starts: Ctrl-C is for the demo alone.
            hog = subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.DEVNULL, start_new_session=True)
            self._hogs.append(hog)

    def note(self, devices: Mapping[str, History], started_s: float) -> None:
        """Remember what each device said last, once.

        Args:
            devices: name -> history.
            started_s: the demo's beginning, seconds since the Unix epoch.
        """
        for name, history in devices.items():
            if not history.samples or history.samples[-1].t_s <= self._last.get(name, 0.0):
                continue
            self._last[name] = history.samples[-1].t_s
            self.log.setdefault(name, []).append(self._row(history, history.samples[-1].t_s - started_s))

    def _row(self, history: History, t_s: float) -> dict[str, Any]:
        status, last = history.status, history.samples[-1]
        board, budget = status.get("board") or {}, status.get("budget") or {}
        told = self.scenario.at(max(0.0, t_s) * self.speed)
        row: dict[str, Any] = {"t_s": round(t_s, 3), "exit_counts": list(last.exits), "step_count": last.steps}
        row |= {name: board.get(name) for name in ("temp_c", "battery_frac", "power_w", "load_frac", "freq_frac")}
        row |= {name: budget.get(name) for name in ("train_steps_hz", "teacher_bytes_per_s", "max_exit", "why")}
        row |= {"rtt_s": last.rtt_s, "link_up": last.link_up}
        if self.name == "heatwave":
            row |= {"ambient_c": told.ambient_c, "trip_c": Model().hot_c}
        if self.name == "low-battery":
            row["charger"] = told.charger
        if self.name == "bad-link":
            row |= {"link_up": told.link_up, "bare_rtt_s": told.rtt_s if told.link_up else None}
        if self.name == "cpu-hog":
            row["hog_cores"] = float(len(self._hogs))
        return row

    def columns(self, device: str) -> dict[str, list[Any]]:
        """What `ports.adaptation` draws of a device."""
        rows = self.log.get(device, [])
        names = dict.fromkeys(name for row in rows for name in row if name not in ("exit_counts", "step_count"))
        found: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in names}
        found.setdefault("t_s", [])
        found["exits"], found["steps_hz"] = [], []
        for k, row in enumerate(rows):
            before = rows[max(0, k - 1)]
            counts = [b - a for a, b in zip(before["exit_counts"], row["exit_counts"], strict=False)]
            total = sum(counts)
            fresh = total <= 0 or min(counts) < 0
            found["exits"].append((found["exits"][-1] if k else []) if fresh else [count / total for count in counts])
            elapsed_s = row["t_s"] - before["t_s"]
            done = (row["step_count"] or 0) - (before["step_count"] or 0)
            found["steps_hz"].append(done / elapsed_s if elapsed_s > 0 and done >= 0 else None)
        return found

    def named(self) -> dict[str, list[str]]:
        """Device -> reasons it named, in the order of their first appearance."""
        return {
            device: list(dict.fromkeys(why for row in rows for why in (row["why"] or {}).values() if why != "ok"))
            for device, rows in self.log.items()
        }

    def adapted(self, devices: list[str]) -> tuple[bool, str]:
        """Did every device name what happened to it? And in words."""
        wanted, named = SCENES[self.name].reasons, self.named()
        passed = bool(devices) and all(
            any(reason.startswith(wanted) for reason in named.get(device, [])) for device in devices
        )
        return passed, "; ".join(f"{device}: {', '.join(named.get(device, [])) or 'nothing'}" for device in devices)


def _csv(scenario: Scenario) -> str:
    text = io.StringIO()
    first = {"capacity_j": "" if scenario.capacity_j is None else scenario.capacity_j}
    first["charge_frac"] = scenario.charge_frac
    writer = csv.DictWriter(text, [*cells(Row()), *first])
    writer.writeheader()
    for row in scenario.rows:
        writer.writerow({**cells(row), **first})
        first = dict.fromkeys(first, "")
    return text.getvalue()
