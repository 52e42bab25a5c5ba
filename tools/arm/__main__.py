"""Installs edgert on 64-bit ARM as a board does, and lets it work there; qemu executes the instructions.

A Debian root file system of packages that are only unpacked, the wheels of `tools.wheelhouse`, no network while they
are installed. The emulated processor is a Cortex-A53 unless told otherwise, which has none of the newer instructions:
what runs on it runs on every 64-bit Raspberry Pi and Jetson. Nothing that is timed here means anything, and nothing is.
Needs root, and the packages qemu-user-static, binfmt-support, mmdebstrap, arch-test and mosquitto.
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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgert.client import Policy
from edgert.config import commented_default
from edgert.errors import ArtifactError, EdgertError, LinkError, UsageError
from edgert.ports import broker as brokers
from edgert.ports.cluster import GAMES, Collector
from edgert.ports.plant import worlds
from tools import deb, wheelhouse, wheels
from tools.arm import inside

HERE = Path(__file__).parent
LOG = HERE / "last.log"
PYTHON = "3.11"
PACKAGES = (
    "bash,ca-certificates,coreutils,dash,diffutils,dpkg,findutils,libatomic1,libc-bin,libc6,libgcc-s1,libgomp1,"
    "libpython3.11-stdlib,libstdc++6,procps,python3.11,python3.11-venv,tar,util-linux"
)
HOUSES = {"edgert": ("onnx", "litert", "trust", "i2c", "ui"), "edgert-tflite": ("tflite",)}
"""Virtual environment below /opt -> its extras: tflite-runtime wants an older numpy than the others."""
CPUS = {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
"""Emulated processor -> its number in /proc/cpuinfo, which onnxruntime and edgert read."""
ENTER = """
set -e
root=$1 cpuinfo=$2; shift 2
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
mount -t tmpfs tmpfs "$root/dev"
for node in null zero urandom random; do : >"$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir "$root/dev/shm"; mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/sys"
for cpu in 0 1; do
  mkdir -p "$root/sys/devices/system/cpu/cpu$cpu/topology"
  echo $cpu >"$root/sys/devices/system/cpu/cpu$cpu/topology/core_id"
  echo 0 >"$root/sys/devices/system/cpu/cpu$cpu/topology/physical_package_id"
done
mkdir -p "$root/sys/class/thermal/thermal_zone0"
echo cpu-thermal >"$root/sys/class/thermal/thermal_zone0/type"
echo 47000 >"$root/sys/class/thermal/thermal_zone0/temp"
for name in possible present online; do echo 0-1 >"$root/sys/devices/system/cpu/$name"; done
exec chroot "$root" "$@"
"""
PARTS = ("install", "same", "live", "package")
PARTLY = "in more than one run, each of some parts (--only)"
GAME = "breakout"
PATIENCE_S = 2400.0
"""For what an emulated device does in a minute where it has a processor to itself."""
PLAY_S = 0.25
"""From one question to the next: an actor that is asked without pause would leave the niced trainer no time at all."""


class Proof:
    """The root file system, and a line of the log for each thing that was found so."""

    def __init__(self, root: Path, cpu: str, log: Path) -> None:
        self.root, self.cpu, self.log = root, cpu, log
        self.lines: list[str] = []
        self.cpuinfo = root.parent / f"{root.name}.cpuinfo"

    def say(self, line: str) -> None:
        """To the screen and the log."""
        print(line, flush=True)
        self.lines.append(line)

    def enter(self, *command: str, network: bool = False) -> list[str]:
        """The command line that runs one in there."""
        isolated = [] if network else ["--net"]
        return ["unshare", "--mount", *isolated, "sh", "-c", ENTER, "sh", str(self.root), str(self.cpuinfo), *command]

    def environment(self) -> dict[str, str]:
        """What every process in there gets; nothing of this machine's."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "QEMU_CPU": self.cpu,
            "OPENBLAS_NUM_THREADS": "1",
            "ORT_DISABLE_TELEMETRY": "1",
        }

    def run(self, *command: str, network: bool = False) -> str:
        """Run one in there; what it says.

        Raises:
            ArtifactError: it failed.
        """
        told = subprocess.run(
            self.enter(*command, network=network),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if told.returncode:
            raise ArtifactError(f"{' '.join(command)}: exit code {told.returncode}\n{told.stdout[-4000:]}")
        return told.stdout


def prepare(proof: Proof) -> None:
    """Unpack Debian, unless it is there, and let the kernel start foreign programs.

    Raises:
        UsageError: something is missing here.
    """
    missing = [name for name in ("mmdebstrap", "qemu-aarch64-static", "unshare") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise UsageError(f"needs root{' and ' + ', '.join(missing) if missing else ''}; see --help")
    binfmt = Path("/proc/sys/fs/binfmt_misc")
    if not (binfmt / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(binfmt)], check=True)
    if not (binfmt / "qemu-aarch64").exists():
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)
    if not (proof.root / "usr/bin/python3.11").exists():
        print("unpacking Debian 12 for arm64", flush=True)
        command = ["mmdebstrap", "--quiet", "--architectures=arm64", "--variant=extract", f"--include={PACKAGES}"]
        command += ['--aptopt=Acquire::Languages "none"', "bookworm", str(proof.root)]
        subprocess.run([*command, "deb http://deb.debian.org/debian bookworm main"], check=True)
    for folder in ("proc", "sys", "dev", "house", "run", "tmp", "etc/edgert"):
        (proof.root / folder).mkdir(parents=True, exist_ok=True)
    processor = "processor\t: {}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
    processor += f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {CPUS[proof.cpu]}\n"
    processor += "CPU revision\t: 3\n\n"
    proof.cpuinfo.write_text("".join(processor.format(i) for i in (0, 1)))


def install(proof: Proof, wheel: Path) -> None:
    """Fill the wheelhouses here, and install from them there, with no network.

    Raises:
        ArtifactError: what was installed is not what was gathered.
    """
    for name, extras in HOUSES.items():
        house = proof.root / "house" / name
        parts = wheelhouse.gather(PYTHON, extras, house, arch="aarch64", wheel=wheel)
        proof.run("rm", "-rf", f"/opt/{name}")
        proof.run("sh", f"/house/{name}/install.sh", f"/opt/{name}")
        told = proof.run(f"/opt/{name}/bin/edgert", "--version").strip()
        proof.say(f"ok  installed with no network: {told}, {len(parts)} wheels, extras {', '.join(extras)}")


def bring(proof: Proof) -> None:
    """Copy in what is judged by: bundles, golden answers, tests."""
    shutil.rmtree(proof.root / "proof", ignore_errors=True)
    for name in ("models", "tests/kernels", "tests/boards"):
        shutil.copytree(wheels.HOUSE / name, proof.root / "proof" / name, dirs_exist_ok=True)
    for path in (HERE / "inside.py", HERE / "golden.json", wheels.HOUSE / "tests/conftest.py"):
        shutil.copy(path, proof.root / "proof" / ("tests" if path.name == "conftest.py" else "") / path.name)


def same(proof: Proof) -> None:
    """Actions, bytes and kernels are those of x86-64."""
    asks = {"edgert": ["onnx", "litert", "numpy"], "edgert-tflite": ["tflite", "numpy"]}
    for name, runtimes in asks.items():
        command = [f"/opt/{name}/bin/python", "/proof/inside.py", "--models", "/proof/models"]
        try:
            proof.run(*command, "--golden", "/proof/golden.json", "--runtimes", *runtimes)
        except ArtifactError as error:
            differ = re.findall(r"DIFFERS: (.*)", str(error))
            if not differ:
                raise
            proof.say(f"NO  not as on x86-64: {'; '.join(differ)}")
            continue
        site = proof.root / f"opt/{name}/lib/python{PYTHON}/site-packages"
        versions = dict(path.name.removesuffix(".dist-info").split("-") for path in site.glob("*.dist-info"))
        packages = [wheelhouse.RUNTIMES.get(one, one).replace("-", "_") for one in runtimes]
        said = ", ".join(f"{package} {versions[package]}" for package in packages)
        golden = json.loads((HERE / "golden.json").read_text())
        proof.say(f"ok  the actions of {len(golden)} bundles on their golden vectors are those of x86-64: {said}")
        for own in [one for one in inside.OWN if one in runtimes]:
            others, of = inside.apart(golden, own)
            proof.say(f"    {own} rounds in a way of its own, here and there: {others} of {of} are not the reference's")
    proof.say("ok  the codec's bytes are those of x86-64")
    tools = proof.root / "opt/tests"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--upgrade"]
    command = [*pip, "--target", str(tools), *wheelhouse.tags(PYTHON, "aarch64"), "pytest", "hypothesis"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    script = (
        "import sys; sys.path.append('/opt/tests'); import hypothesis, pytest; "
        "hypothesis.settings.register_profile('emulated', max_examples=20, deadline=None, "
        "suppress_health_check=list(hypothesis.HealthCheck)); "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--import-mode=importlib', "
        "'--hypothesis-profile=emulated', '/proof/tests/kernels']))"
    )
    told = proof.run("/opt/edgert/bin/python", "-c", script)
    (passed,) = re.findall(r"(\d+) passed", told)
    proof.say(f"ok  C kernels and codec equal their twins in numpy bit for bit: {passed} tests of tests/kernels")


@contextlib.contextmanager
def _started(command: list[str], environment: dict[str, str] | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def live(proof: Proof) -> None:
    """A device acts, is taught, learns and swaps, with a broker, a teacher and a game outside.

    Raises:
        ArtifactError: it did not.
    """
    folder = proof.root.parent / f"{proof.root.name}.live"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for part in ("var/lib/edgert", "run/edgert"):
        shutil.rmtree(proof.root / part, ignore_errors=True)
        (proof.root / part).mkdir(parents=True)
    broker = brokers.start("mosquitto", folder / "broker")
    try:
        given = {
            "device.id": "arm",
            "broker.url": broker.url,
            "policy.bundle": f"/proof/models/{GAME}.edgert",
            "policy.deadline_s": 2.0,
            "govern.cpu_high_frac": 1.0,
            "learn.min_transitions": 100,
            "learn.candidate_s": 20.0,
        }
        (proof.root / "etc/edgert/edgert.toml").write_text(commented_default(given))
        proof.say(f"ok  edgert doctor finds nothing wrong in {_doctor(proof)}")
        device = proof.enter("/opt/edgert/bin/edgert", "run", "--config", "/etc/edgert/edgert.toml", network=True)
        model = wheels.HOUSE / f"models/{GAME}-teacher.edgert"
        teacher = [sys.executable, "-m", "edgert", "teacher", "--bundle", str(model), "--broker", broker.url]
        with (
            _started(teacher, None, folder / "teacher.log"),
            _started(device, proof.environment(), folder / "device.log") as running,
        ):
            _watch(proof, broker.url, running, folder / "device.log")
    finally:
        broker.stop()
    proof.say(f"ok  stopped by SIGTERM with exit code {running.returncode}")


def _doctor(proof: Proof) -> str:
    """How many things it looked at.

    Raises:
        ArtifactError: it is not content.
    """
    told = json.loads(proof.run("/opt/edgert/bin/edgert", "doctor", "--json", network=True))
    bad = {one["name"]: one for one in told["findings"] if one["verdict"] != "ok"}
    clock = bad.pop("clock", None)  # the emulating machine's, whose time service is not ours to start
    if bad:
        raise ArtifactError(f"edgert doctor is not content: {bad}")
    return f"{len(told['findings'])} checks" + (f", the clock aside: {clock['found']}" if clock else "")


def package(proof: Proof, wheel: Path) -> None:
    """The Debian package is installed by dpkg, content with its system, and leaves nothing behind.

    Raises:
        ArtifactError: it does not.
    """
    bare = Proof(proof.root.with_name(f"{proof.root.name}-deb"), proof.cpu, proof.log)  # where /opt is empty
    prepare(bare)
    for folder in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"):
        (bare.root / folder).mkdir(parents=True, exist_ok=True)
    (bare.root / "var/lib/dpkg/status").touch()
    made = deb.build("arm64", bare.root / "house", python=PYTHON, wheel=wheel)
    # Debian's own packages are only unpacked here, so dpkg knows of none of them.
    bare.run("dpkg", "--force-depends", "--install", f"/house/{made.name}")
    told = bare.run("edgert", "--version").strip()
    broker = brokers.start("mosquitto", proof.root.with_name(f"{proof.root.name}-deb.broker"))
    try:
        bare.run("edgert", "init", "--broker", broker.url, network=True)
        for part in ("var/lib/edgert", "run/edgert"):
            (bare.root / part).mkdir(parents=True, exist_ok=True)  # as the unit does
        found = _doctor(bare)
    finally:
        broker.stop()
    proof.say(f"ok  {made.name}, sha256 {wheels.digest(made)}: dpkg installs {told}; doctor: nothing wrong in {found}")
    bare.run("dpkg", "--force-depends", "--purge", "edgert")
    left = [name for name in ("opt/edgert", "etc/edgert", "var/lib/edgert") if (bare.root / name).exists()]
    if left:
        raise ArtifactError(f"dpkg --purge left {', '.join(left)}")
    proof.say("ok  dpkg --purge leaves nothing of it")


def _watch(proof: Proof, url: str, device: subprocess.Popen[bytes], log: Path) -> None:
    """Play until the device has done all that it should."""
    collector = Collector(url, "default")
    socket = proof.root / "run/edgert/policy.sock"
    end_s = time.monotonic() + PATIENCE_S
    done: dict[str, bool] = {}
    try:
        while not socket.exists():
            _patience(end_s, device, log, "has no socket")
            time.sleep(0.5)
        with Policy(str(socket), timeout_s=120.0) as policy:
            game = _Game()
            while not done or not all(done.values()):
                next_s = time.monotonic() + PLAY_S
                game.step(policy)
                time.sleep(max(0.0, next_s - time.monotonic()))
                collector.poll()
                status = collector.devices["arm"].status if "arm" in collector.devices else {}
                found = _deeds(status)
                for what, so in found.items():
                    if so and not done.get(what):
                        proof.say(f"ok  {what}")
                    done[what] = done.get(what, False) or so
                _patience(end_s, device, log, f"has not: {', '.join(what for what, so in done.items() if not so)}")
    finally:
        collector.close()


def _deeds(status: dict[str, Any]) -> dict[str, bool]:
    """What the device's own document says it has done."""
    actor, trainer, policy = (status.get(key) or {} for key in ("actor", "trainer", "policy"))
    return {
        "the device acts for a program that asks on its socket": actor.get("ticks", 0) >= 100,
        "it asks a teacher over MQTT, and gets answers": (status.get("counters") or {}).get("answers", 0) > 0,
        "it trains": trainer.get("steps", 0) > 0,
        "a network that it learned passed the gate and acts": actor.get("generation", 0) > 0,
        "the supervisor says so, too": policy.get("generation", 0) > 0,
    }


class _Game:
    """A program of somebody's own, as in README.md."""

    def __init__(self) -> None:
        self.env = worlds.make(GAMES[GAME])
        self.obs, _ = self.env.reset(seed=1)
        self.reward, self.terminated, self.truncated = 0.0, False, False

    def step(self, policy: Policy) -> None:
        """Ask once, and do what it says."""
        try:
            decision = policy.decide(self.obs, self.reward, self.terminated, self.truncated)
        except LinkError:  # emulated on a busy machine, an actor may be late, and is then started again
            time.sleep(0.5)
            return
        self.obs, self.reward, self.terminated, self.truncated, _ = self.env.step(decision.action)
        if self.terminated or self.truncated:
            self.obs, _ = self.env.reset()


def _patience(end_s: float, device: subprocess.Popen[bytes], log: Path, what: str) -> None:
    if device.poll() is not None or time.monotonic() > end_s:
        raise LinkError(f"the device {what}; its log ends:\n" + "\n".join(log.read_text().splitlines()[-20:]))


def written(log: Path, lines: list[str]) -> list[str]:
    """The lines of the log: what was found now, after what was found before of the same wheel on the same processor."""
    before = log.read_text().splitlines() if log.exists() else []
    if before[:2] != lines[:2]:
        return lines
    kept = [line for line in before[2:] if not line.startswith("NO") and line != PARTLY]
    return [*lines[:2], PARTLY, *kept, *(line for line in lines[2:] if line not in kept)]


def main(argv: list[str] | None = None) -> int:
    """Prove it all."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root", type=Path, default=wheels.HOUSE / "build/arm", help="the root file system (build/arm)"
    )
    parser.add_argument("--cpu", choices=CPUS, default="cortex-a53", help="what qemu is (cortex-a53)")
    parser.add_argument("--wheel", type=Path, help="edgert's own for aarch64; without it one is built")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some of the parts")
    parser.add_argument("--log", type=Path, default=LOG, help="what was found (tools/arm/last.log)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    proof = Proof(args.root.absolute(), args.cpu, args.log)
    try:
        prepare(proof)
        wheel = args.wheel or wheels.build("aarch64", args.root.parent)
        emulator = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True)
        version = emulator.stdout.split("(")[0].strip()
        proof.say(f"{wheel.name}, sha256 {wheels.digest(wheel)}")
        proof.say(f"{version}, {args.cpu}; Debian 12 arm64; on {platform.machine()}")
        bring(proof)
        if "install" in args.only:
            install(proof, wheel)
        if "same" in args.only:
            same(proof)
        if "live" in args.only:
            live(proof)
        if "package" in args.only:
            package(proof, wheel)
    except (EdgertError, subprocess.CalledProcessError) as error:
        print(f"tools.arm: {error}", file=sys.stderr)
        proof.say(f"NO  {str(error).splitlines()[0]}")
    args.log.write_text("\n".join(written(args.log, proof.lines)) + "\n")
    return 1 if any(line.startswith("NO") for line in proof.lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
