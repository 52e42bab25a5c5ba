"""The Debian package on a really booted systemd: installed, started, hung, starved, crashed, upgraded, removed.

Debian 12 in a container of systemd-nspawn, on an overlay, so that every run begins anew. What is found is written to a
log. Needs root, and the packages mmdebstrap and systemd-container. Where the host has its memory controller in cgroup
version 1, the container gets groups of its own in it; version 2 is not tried there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgert import __version__
from edgert.errors import ArtifactError, EdgertError, UsageError
from tools import deb, wheels

LOG = wheels.HOUSE / "systemd" / "booted.log"
PACKAGES = "apt,dbus,mosquitto,procps,python3,systemd,systemd-sysv,udev"
GROUPS = ("cpu", "cpuacct", "memory", "pids")
PATIENCE_S = 240.0
UNIT = "edgert.service"
PARTS = ("install", "hung_tick", "hung_broker", "starved_trainer", "stop", "upgrade", "crash_loop", "remove")
"""Methods of `Trial`, in this order; the first one is needed by all."""
PROGRAM = """
import json, os, sys, time
from edgert.client import Policy

asked, episode = 0, 0
with Policy("/run/edgert/policy.sock", timeout_s=60.0) as policy:
    shape = (10, 10, 4)
    while True:
        obs = bytes((asked * 7 + i) % 13 == 0 for i in range(400))
        try:
            decision = policy.decide(obs, float(asked % 3 == 0), asked % 50 == 49, False, shape=shape)
        except (OSError, RuntimeError, ValueError):
            time.sleep(0.2)
            continue
        asked += 1
        if asked % 5 == 0:
            with open("/srv/asked.new", "w") as file:
                json.dump({"asked": asked, "generation": decision.generation, "at_s": time.monotonic()}, file)
            os.rename("/srv/asked.new", "/srv/asked.json")
        time.sleep(0.05)
"""

LEAK = (
    "import sys, threading; 'edgert.programs.trainer' in getattr(sys, 'orig_argv', ()) and "
    "threading.Thread(daemon=True, target=exec, args=('import os, time\\nheld = []\\nwhile True:\\n"
    ' if os.path.exists("/var/lib/edgert/leak"): held.append(b"x" * 20_000_000)\\n time.sleep(0.2)\', {})).start()\n'
)
"""A .pth file of site-packages: Python obeys its line as it starts."""


class Container:
    """A booted Debian."""

    def __init__(self, rootfs: Path, work: Path) -> None:
        self.root, self.work = work / "root", work
        for name in ("root", "upper", "work"):
            (work / name).mkdir()
        layers = f"lowerdir={rootfs},upperdir={work / 'upper'},workdir={work / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)], check=True)
        self.process: subprocess.Popen[bytes] | None = None
        self.leader = 0
        self.name = f"edgert-booted-{os.getpid()}"
        self.limits = all(Path("/sys/fs/cgroup", group, "cgroup.procs").exists() for group in GROUPS)

    def boot(self) -> None:
        """Start systemd as process 1 of the container."""
        joins = [Path("/sys/fs/cgroup", group, self.name) for group in GROUPS] if self.limits else []
        for folder in joins:
            folder.mkdir()
        script = "".join(f"echo $$ >{folder}/cgroup.procs; " for folder in joins) + 'exec "$@"'
        command = ["systemd-nspawn", "--quiet", "--directory", str(self.root), "--boot", "--register=no", "--keep-unit"]
        command += ["--private-network", "--console=pipe"]
        with (self.work / "console.log").open("wb") as console:
            self.process = subprocess.Popen(
                ["sh", "-c", script, "sh", *command], stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )
        wait(lambda: self._find_leader(), "the container")
        wait(lambda: self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"), "systemd")
        if self.limits:
            for group in GROUPS:
                self.run("mount", "-o", "remount,rw,bind", f"/sys/fs/cgroup/{group}")
            self.run("systemctl", "daemon-reexec")

    def _find_leader(self) -> bool:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                self.leader = int(pid)
        return bool(self.leader)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run something in there, as root."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run([*enter, *command], env=environment, capture_output=True, text=True, check=False)

    def must(self, *command: str) -> str:
        """The same, and it has to end well."""
        told = self.run(*command)
        if told.returncode:
            raise ArtifactError(f"{' '.join(command)}: exit code {told.returncode}\n{told.stdout}{told.stderr}")
        return told.stdout

    def show(self, key: str, unit: str = UNIT) -> str:
        """A property of a unit."""
        return self.must("systemctl", "show", "--value", "-p", key, unit).strip()

    def status(self) -> dict[str, Any]:
        """The device's own document; empty while it says none."""
        told = self.run("/usr/bin/edgert", "status", "--json")
        try:
            return dict(json.loads(told.stdout))
        except ValueError:
            return {}

    def asked(self) -> dict[str, Any]:
        """What the program beside the device had answered."""
        try:
            return dict(json.loads((self.root / "srv/asked.json").read_text()))
        except (OSError, ValueError):
            return {"asked": 0}

    def pid(self, role: str) -> int:
        """A process of the device, by its number in the container."""
        told = self.status().get("children", {}).get(role) or {}
        return int(told.get("pid") or 0)

    def close(self) -> None:
        """Power off, and leave nothing behind."""
        if self.process is not None:
            if self.leader:
                self.run("systemctl", "poweroff", "--force", "--force")
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        subprocess.run(["umount", "-R", str(self.root)], check=False, stderr=subprocess.DEVNULL)
        for group in GROUPS if self.limits else ():
            for folder in sorted(Path("/sys/fs/cgroup", group, self.name).rglob("*/"), reverse=True):
                _remove(folder)
            _remove(Path("/sys/fs/cgroup", group, self.name))


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def wait(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll until it is so.

    Raises:
        ArtifactError: it did not come to be.
    """
    end_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end_s:
            raise ArtifactError(f"{what} did not come about in {patience_s:.0f} s")
        time.sleep(0.3)


class Trial:
    """Every promise of systemd/README.md in turn, on one container."""

    def __init__(self, box: Container, package: Path, say: Callable[[str], None]) -> None:
        self.box, self.package, self.say = box, package, say

    def acts(self, since: int | None = None) -> None:
        """Wait until the program beside the device has got more answers."""
        before = self.box.asked()["asked"] if since is None else since
        wait(lambda: self.box.asked()["asked"] > before + 20, "an action for the program beside it")

    def restarts(self) -> int:
        """How often systemd has started the unit again."""
        return int(self.box.show("NRestarts"))

    def install(self) -> None:
        """`apt install`, `edgert init`, `systemctl enable --now`."""
        box = self.box
        shutil.copy(self.package, box.root / "srv/edgert.deb")
        box.must("apt-get", "install", "-y", "--no-install-recommends", "/srv/edgert.deb")
        box.must("systemctl", "start", "mosquitto")
        box.must("sh", "-c", "cd / && edgert init && systemctl enable --now edgert")
        if box.show("ActiveState") != "active" or not box.status().get("ready"):
            raise ArtifactError("systemctl start came back before a policy acted")
        (box.root / "srv/program.py").write_text(PROGRAM)
        box.must("systemd-run", "--unit=program", "/opt/edgert/bin/python", "/srv/program.py")
        self.acts()
        self.say(f"apt install, edgert init, systemctl enable --now: acts; status {box.show('StatusText')!r}")
        told = box.run("edgert", "doctor", "--json").stdout
        bad = [one["name"] for one in json.loads(told)["findings"] if one["verdict"] == "fail"]
        if bad:
            raise ArtifactError(f"edgert doctor: {told}")
        user = box.must("ps", "-o", "user=", "-p", box.show("MainPID")).strip()
        self.say(f"edgert doctor finds nothing that fails; the device's user is {user}, its state in /var/lib/private")

    def hung_tick(self) -> None:
        """An actor that hangs is started again by the supervisor; a supervisor that hangs, by the watchdog."""
        box = self.box
        before, actor = self.restarts(), box.pid("actor")
        box.must("kill", "-STOP", str(actor))
        wait(lambda: box.pid("actor") not in (0, actor), "another actor")
        self.acts()
        if self.restarts() != before:
            raise ArtifactError("a hung actor cost the whole unit")
        self.say("actor stopped: the supervisor starts another, the unit is not restarted")
        box.must("kill", "-STOP", box.show("MainPID"))
        wait(lambda: self.restarts() == before + 1, "the watchdog")
        wait(lambda: box.show("ActiveState") == "active", "the unit after the watchdog")
        self.acts()
        if "watchdog" not in box.must("journalctl", "-u", UNIT, "--no-pager").lower():
            raise ArtifactError("it was restarted, but not by the watchdog")
        self.say("supervisor stopped: the watchdog ends the unit after WatchdogSec, and it acts again")

    def hung_broker(self) -> None:
        """A broker that hangs costs nothing."""
        box = self.box
        before, since = self.restarts(), box.asked()["asked"]
        box.must("systemctl", "kill", "--signal=SIGSTOP", "mosquitto")
        hung_s = 2 * 30.0
        end_s = time.monotonic() + hung_s
        while time.monotonic() < end_s:
            time.sleep(1)
        self.acts()
        got = box.asked()["asked"] - since
        box.must("systemctl", "kill", "--signal=SIGCONT", "mosquitto")
        if self.restarts() != before or got < 100:
            raise ArtifactError(f"a hung broker: {self.restarts() - before} restarts, {got} actions")
        self.say(f"broker stopped for {hung_s:.0f} s, twice WatchdogSec: no restart, {got} actions meanwhile")

    def starved_trainer(self) -> None:
        """The kernel takes the trainer first, and the actor does not notice."""
        box = self.box
        if not self.box.limits:
            self.say("not tried: memory limits (no memory controller for the container here)")
            return
        before, actor, first = self.restarts(), box.pid("actor"), box.pid("trainer")
        site = "/opt/edgert/lib/python3.11/site-packages/leak.pth"
        box.must("sh", "-c", f"cat >{site} <<'END'\n{LEAK}END")
        box.run("kill", "-KILL", str(first))
        wait(lambda: box.pid("trainer") not in (0, first), "a trainer that can leak")
        since = box.asked()["asked"]
        box.must("touch", "/var/lib/private/edgert/leak")
        wait(lambda: self._killed() > 0, "the kernel's verdict")
        self.acts()
        counted = box.asked()["asked"] - since
        killed = self._killed()
        box.must("rm", site, "/var/lib/private/edgert/leak")
        box.run("kill", "-KILL", str(box.pid("trainer")))
        wait(self._trains, "another trainer")
        if box.pid("actor") != actor or self.restarts() != before or box.show("ActiveState") != "active":
            raise ArtifactError("the actor did not outlive the trainer's end")
        self.say(
            f"a trainer that leaks: at MemoryMax the kernel kills it alone ({killed} times); the same actor gave "
            f"{counted} actions meanwhile"
        )

    def _trains(self) -> bool:
        """The trainer that runs now has taken a step; the document goes on showing the report of one that ended."""
        told = self.box.status().get("trainer") or {}
        return told.get("steps", 0) > 0 and told.get("pid") == self.box.pid("trainer")

    def _killed(self) -> int:
        """Processes of the unit that the kernel killed for want of memory."""
        group = Path("/sys/fs/cgroup/memory", self.box.name, "system.slice", UNIT, "memory.oom_control")
        return int((re.findall(r"oom_kill (\d+)", group.read_text()) or ["0"])[0])

    def stop(self) -> None:
        """It stops in good order and in time, and starts with what it had."""
        box = self.box
        wait(self._trains, "a gradient step")
        begun_s = time.monotonic()
        box.must("systemctl", "stop", UNIT)
        took_s = time.monotonic() - begun_s
        if box.show("Result") != "success":
            raise ArtifactError(f"it did not stop in good order: {box.show('Result')}")
        if not any((box.root / "var/lib/private/edgert/checkpoints").iterdir()):
            raise ArtifactError("the trainer left no checkpoint")
        box.must("systemctl", "start", UNIT)
        self.acts()
        within = int(re.sub(r"\D", "", box.show("TimeoutStopUSec").removesuffix("s")))
        if took_s > within:
            raise ArtifactError(f"it took {took_s:.0f} s to stop")
        self.say(f"systemctl stop: in good order, within TimeoutStopSec={within}, with a checkpoint")

    def upgrade(self) -> None:
        """A newer package replaces a running one; state stays."""
        box = self.box
        steps = (box.status().get("trainer") or {}).get("steps", 0)
        before = box.show("MainPID")
        newer = self._newer()
        shutil.copy(newer, box.root / "srv/newer.deb")
        box.must("apt-get", "install", "-y", "--no-install-recommends", "/srv/newer.deb")
        wait(lambda: box.show("ActiveState") == "active", "the unit after the upgrade")
        if box.show("MainPID") == before:
            raise ArtifactError("the old version still runs")
        self.acts()
        wait(lambda: (box.status().get("trainer") or {}).get("steps", 0) > 0, "the trainer after the upgrade")
        after = box.status()["trainer"]
        if not after.get("checkpoint"):
            raise ArtifactError(f"the training began anew: {after}")
        version = box.must("dpkg-query", "-W", "-f", "${Version}", "edgert")
        self.say(
            f"apt install of {version} over a running device: restarted, acts, trains on from its checkpoint ({steps})"
        )

    def _newer(self) -> Path:
        folder = self.box.work / "newer"
        subprocess.run(["dpkg-deb", "-R", str(self.package), str(folder)], check=True)
        control = folder / "DEBIAN/control"
        control.write_text(control.read_text().replace(f"Version: {__version__}-1", f"Version: {__version__}-2"))
        made = self.box.work / "newer.deb"
        subprocess.run(["dpkg-deb", "-Znone", "--build", str(folder), str(made)], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)
        return made

    def crash_loop(self) -> None:
        """What was learned keeps it from starting: it is set aside, and the installed policy acts."""
        box = self.box
        box.must("systemctl", "stop", UNIT)
        # As a checkpoint would that makes the device crash: it cannot start as long as one is there.
        dropin = box.root / "run/systemd/system/edgert.service.d/crash.conf"
        script = "! ls /var/lib/edgert/checkpoints/* >/dev/null 2>&1"
        box.must("mkdir", "-p", "/run/systemd/system/edgert.service.d")
        text = f'[Service]\nRestartSec=1\nExecStartPre=/bin/sh -c "{script}"\n'
        box.must("sh", "-c", f"cat >/{dropin.relative_to(box.root)} <<'END'\n{text}END")
        box.must("systemctl", "daemon-reload")
        box.run("systemctl", "start", UNIT)
        journal = ("journalctl", "--no-pager", "-u", UNIT, "-u", "edgert-recover.service")
        wait(lambda: "Start request repeated too quickly" in box.must(*journal), "the start limit")
        wait(lambda: "set aside in" in box.must(*journal), "the recovery")
        wait(lambda: box.show("ActiveState") == "active", "the unit after the recovery")
        self.acts()
        status = box.status()
        if status["policy"]["generation"] != 0 or not status["training"]["paused"]:
            raise ArtifactError(f"not the installed policy: {status['policy']}, {status['training']}")
        aside = box.must("ls", "/var/lib/private/edgert/set-aside").split()
        self.say(
            f"crash loop: five starts, then edgert-recover sets aside {', '.join(aside)}; the installed policy acts"
        )

    def remove(self) -> None:
        """Removed, state and configuration stay; purged, nothing does."""
        box = self.box
        box.must("apt-get", "remove", "-y", "edgert")
        left = [name for name in ("etc/edgert/edgert.toml", "var/lib/private/edgert") if (box.root / name).exists()]
        if (
            len(left) != 2
            or (box.root / "opt/edgert").exists()
            or box.run("systemctl", "is-active", UNIT).stdout.strip() == "active"
        ):
            raise ArtifactError(f"after remove: {left}, {list((box.root / 'opt').iterdir())}")
        box.must("apt-get", "purge", "-y", "edgert")
        names = ("etc/edgert", "var/lib/private/edgert", "var/lib/edgert", "opt/edgert")
        left = [name for name in names if (box.root / name).exists() or (box.root / name).is_symlink()]
        if left:
            raise ArtifactError(f"after purge: {left}")
        self.say("apt remove keeps configuration and state, apt purge leaves nothing")


def rootfs(path: Path) -> None:
    """Make a Debian 12, unless it is there."""
    if (path / "usr/bin/systemctl").exists() or (path / "bin/systemctl").exists():
        return
    print("unpacking and configuring Debian 12", flush=True)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}"]
    command += [
        '--aptopt=Acquire::Languages "none"',
        "bookworm",
        str(path),
        "deb http://deb.debian.org/debian bookworm main",
    ]
    subprocess.run(command, check=True)


def main(argv: list[str] | None = None) -> int:
    """Try everything, and write the log."""
    parser = argparse.ArgumentParser(prog="python -m tools.booted", description=__doc__.splitlines()[0])
    parser.add_argument("--deb", type=Path, help="the package for this machine; without it one is built")
    parser.add_argument("--rootfs", type=Path, default=wheels.HOUSE / "build/debian", help="(build/debian)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--log", type=Path, default=LOG, help="what was found (systemd/booted.log)")
    args = parser.parse_args(argv)
    missing = [name for name in ("systemd-nspawn", "nsenter", "dpkg-deb") if shutil.which(name) is None]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    try:
        if missing or os.geteuid() != 0:
            raise UsageError(f"needs root, and: {', '.join(missing) or 'nothing else'}; see --help")
        rootfs(args.rootfs.absolute())
        with tempfile.TemporaryDirectory(prefix="edgert-booted-") as folder:
            arch = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
            package = args.deb or deb.build(arch, Path(folder), python="3.11")
            box = Container(args.rootfs.absolute(), Path(folder))
            try:
                box.boot()
                say(f"{package.name}, {box.must('systemctl', '--version').splitlines()[0]}")
                trial = Trial(box, package, lambda line: say(f"ok  {line}"))
                for name in PARTS:
                    if name in args.only:
                        getattr(trial, name)()
            except EdgertError:
                if box.leader:
                    print(box.run("journalctl", "--no-pager", "-n", "60").stdout, file=sys.stderr)
                raise
            finally:
                box.close()
    except (EdgertError, subprocess.CalledProcessError) as error:
        print(f"tools.booted: {error}", file=sys.stderr)
        return 1
    args.log.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
