"""The Debian package of edgert, for arm64 and amd64: a virtual environment of its own below /opt, units, manual page.

Its own environment, because Debian has no package of onnxruntime or LiteRT, and what it has of numpy and the others is
older than these want; nothing outside /opt/edgert is shared, so nothing outside can break it. It is built from the
wheels of `tools.wheelhouse` without running anything of the target; dpkg-deb packs it, and the same sources give the
same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

from edgert import __version__
from edgert.cli import VERBS
from edgert.errors import ArtifactError, EdgertError, UsageError
from tools import wheelhouse, wheels

ARCHES = {"arm64": "aarch64", "amd64": "x86_64"}
"""Debian's name -> that of wheels."""
PREFIX = "opt/edgert"
EXTRAS = ("onnx", "litert", "trust", "i2c", "ui")
MODELS = ("breakout.edgert", "breakout-teacher.edgert")
"""Something to begin with; the other bundles are larger than the rest of the package."""
UNITS = "usr/lib/systemd/system"
INSTALLED = {
    "edgert.service": UNITS,
    "edgert-recover.service": UNITS,
    "edgert-limits.service": UNITS,
    "edgert-teacher@.service": UNITS,
    "edgert-serve@.service": UNITS,
    "edgert.sysusers": "usr/lib/sysusers.d/edgert.conf",
    "edgert.tmpfiles": "usr/lib/tmpfiles.d/edgert.conf",
    "edgert.udev": "usr/lib/udev/rules.d/40-edgert.rules",
    "edgert-sensors.conf": "usr/share/edgert/edgert-sensors.conf",
    "README.md": "usr/share/doc/edgert/systemd.md",
}
"""File of systemd/ -> where it goes."""
LIBC = "2.34"
"""What the wheel of cryptography wants, the most demanding of all."""

POSTINST = """#!/bin/sh
set -e
if [ "$1" = configure ]; then
  # As Debian does for its own modules: at the first start nothing need be compiled, and the units may not write here.
  /opt/edgert/bin/python -m compileall -q -j 0 /opt/edgert/lib || true
  systemd-sysusers edgert.conf 2>/dev/null || true
  mkdir -p /etc/edgert
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    udevadm control --reload 2>/dev/null || true
    # An upgrade: what runs goes on with the new version. State is kept, and with it the policy that acts.
    if [ -n "$2" ]; then systemctl try-restart edgert.service 'edgert-*.service' || true; fi
  fi
  if [ -z "$2" ] && [ ! -e /etc/edgert/edgert.toml ]; then
    echo "edgert: next: edgert init && systemctl enable --now edgert"
  fi
fi
"""
PRERM = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl --quiet disable --now edgert.service edgert-limits.service 2>/dev/null || true
  systemctl --quiet stop 'edgert-*.service' || true
fi
"""
POSTRM = """#!/bin/sh
set -e
if [ "$1" = remove ] || [ "$1" = purge ]; then
  find /opt/edgert -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
  if [ -d /opt/edgert ]; then find /opt/edgert -depth -type d -empty -delete; fi
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
if [ "$1" = purge ]; then
  rm -rf /etc/edgert /var/lib/edgert-limits /etc/systemd/system/edgert.service.d
  if [ -L /var/lib/edgert ]; then rm -f /var/lib/edgert; fi
  rm -rf /var/lib/edgert /var/lib/private/edgert
fi
"""
PREINST = """#!/bin/sh
set -e
# What an older version left of its modules must not be found by the new one.
if [ "$1" = upgrade ]; then find /opt/edgert -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true; fi
"""


def manual() -> str:
    """edgert(1), its verbs from the command line itself."""
    date = datetime.fromtimestamp(int(wheels.epoch()), tz=timezone.utc).strftime("%Y-%m-%d")
    lines = [f'.TH EDGERT 1 "{date}" "edgert {__version__}" "User Commands"']
    lines += [".SH NAME", r"edgert \- run, adapt and teach early-exit policies on small boards"]
    lines += [".SH SYNOPSIS", r".B edgert", r".I VERB", r"[\fIOPTION\fR ...]"]
    lines += [
        ".SH DESCRIPTION",
        "A learned policy acts at a fixed rate and inside its deadline; beside it the network is",
    ]
    lines += [
        "trained further, with the answers of a teacher asked over MQTT.",
        r"\fBedgert\fR \fIVERB\fR \fB\-\-help\fR",
    ]
    lines += ["describes each verb.", ".SH VERBS"]
    for name, verb in VERBS.items():
        lines += [".TP", rf"\fB{name}\fR", _roff(verb.summary)]
    lines += [".SH EXIT STATUS"]
    codes = {
        0: "done",
        1: "an error",
        2: "nothing to do",
        75: "try again later",
        77: "not allowed",
        78: "wrong configuration",
    }
    for code, meaning in codes.items():
        lines += [".TP", rf"\fB{code}\fR", meaning]
    lines += [".SH FILES"]
    files = {
        "/etc/edgert/edgert.toml": "configuration, written by \\fBedgert init\\fR",
        "/var/lib/edgert": "what the device learned, and events that wait to be collected",
        "/run/edgert/policy.sock": "where programs ask for decisions",
        "/opt/edgert": "the program, in a virtual environment of its own",
    }
    for path, what in files.items():
        lines += [".TP", rf"\fI{path}\fR", what]
    lines += [".SH SEE ALSO", r"\fBsystemctl\fR(1), \fBmosquitto\fR(8), /usr/share/doc/edgert"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def stage(root: Path, house: Path, *, python: str, arch: str) -> None:
    """Lay out what the package installs.

    Args:
        root: an empty folder.
        house: a wheelhouse for that Python and arch.
        python: such as "3.11".
        arch: aarch64 or x86_64.

    Raises:
        ArtifactError: pip could not unpack the wheels.
    """
    venv = root / PREFIX
    site = venv / f"lib/python{python}/site-packages"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    command += ["--no-compile", "--target", str(site), "--require-hashes", "-r", str(house / "requirements.txt")]
    command += ["--find-links", str(house), *wheelhouse.tags(python, arch)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise ArtifactError(f"pip could not unpack the wheels: {told.stderr.strip()[-2000:]}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # scripts that name the Python of this machine
    shutil.move(site / "share", venv / "share")
    for stale in ("direct_url.json", "REQUESTED"):
        for path in site.glob(f"*.dist-info/{stale}"):
            path.unlink()
    for record in site.glob("*.dist-info/RECORD"):
        kept = [line for line in record.read_text().splitlines() if not re.match(r"\.\./|bin/|share/", line)]
        record.write_text("\n".join(kept) + "\n")
    models = venv / "share/edgert/models"
    models.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        shutil.copyfile(wheels.HOUSE / "models" / name, models / name)
    bin_ = venv / "bin"
    bin_.mkdir()
    for name in ("python", "python3"):
        (bin_ / name).symlink_to(f"/usr/bin/python{python}")
    (bin_ / "edgert").write_text(
        f"#!/{PREFIX}/bin/python\nimport sys\n\nfrom edgert.cli import main\n\nsys.exit(main())\n"
    )
    (venv / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    for name, where in INSTALLED.items():
        source = wheels.HOUSE / "systemd" / name
        if source.exists():
            target = root / where / name if where == UNITS else root / where
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    _write(root / "usr/share/man/man1/edgert.1.gz", gzip.compress(manual().encode(), mtime=0))
    document = root / "usr/share/doc/edgert"
    _write(document / "copyright", COPYRIGHT.encode())
    _write(document / "changelog.Debian.gz", gzip.compress(_changelog().encode(), mtime=0))
    shutil.copyfile(house / "edgert.cdx.json", document / "edgert.cdx.json")
    (root / "usr/bin").mkdir()
    (root / "usr/bin/edgert").symlink_to(f"/{PREFIX}/bin/edgert")
    for path in sorted(root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == bin_ / "edgert" else 0o644)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: edgert

Files: *
Copyright: The edgert authors
License: Apache-2.0

Files: opt/edgert/lib/*
Copyright: their authors
License: as-each-says
Comment: Wheels of other projects, unchanged. The licence of each is in its .dist-info folder, and named in
 /usr/share/doc/edgert/edgert.cdx.json.

License: Apache-2.0
 On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.

License: as-each-says
 See the .dist-info folder of each package.
"""


def _changelog() -> str:
    date = datetime.fromtimestamp(int(wheels.epoch()), tz=timezone.utc).strftime("%a, %d %b %Y %H:%M:%S +0000")
    head = f"edgert ({__version__}-1) unstable; urgency=medium"
    return f"{head}\n\n  * See README.md.\n\n -- edgert <edgert@localhost>  {date}\n"


def control(root: Path, *, python: str, arch: str) -> None:
    """Write DEBIAN/: what the package is, what it needs, and what is done around installing it."""
    size_bytes = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir())
    major, minor = python.split(".")
    folder = root / "DEBIAN"
    folder.mkdir()
    fields = {
        "Package": "edgert",
        "Version": f"{__version__}-1",
        "Architecture": arch,
        "Maintainer": "edgert <edgert@localhost>",
        "Installed-Size": str(-(-size_bytes // 1024)),
        "Depends": f"python3 (>= {python}~), python3 (<< {major}.{int(minor) + 1}~), libc6 (>= {LIBC}), libgcc-s1, "
        "libstdc++6, systemd",
        "Recommends": "mosquitto",
        "Section": "science",
        "Priority": "optional",
        "Description": "learned policies on small boards: inside the deadline, taught over MQTT\n"
        " A quantized early-exit network decides at a fixed rate; beside it the network is\n"
        " trained further with the answers of a teacher; one budget of heat, charge, load\n"
        " and link governs both. In a virtual environment of its own below /opt/edgert.",
    }
    (folder / "control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    for name, text in {"preinst": PREINST, "postinst": POSTINST, "prerm": PRERM, "postrm": POSTRM}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and folder not in path.parents
    )
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(root)}\n" for path in files]
    (folder / "md5sums").write_text("".join(sums))
    for name in ("control", "md5sums"):
        (folder / name).chmod(0o644)
    folder.chmod(0o755)


def build(arch: str, out: Path, *, python: str, wheel: Path | None = None) -> Path:
    """Make the package.

    Args:
        arch: key of `ARCHES`.
        out: folder.
        python: of the system it is for.
        wheel: edgert's own; None builds it.

    Returns:
        The file.

    Raises:
        ArtifactError: something does not fit.
        UsageError: dpkg-deb is missing.
    """
    if shutil.which("dpkg-deb") is None:
        raise UsageError("dpkg-deb is not installed")
    with tempfile.TemporaryDirectory(prefix="edgert-deb-") as folder:
        work = Path(folder)
        wheel = wheel or wheels.build(ARCHES[arch], work)
        wheelhouse.gather(python, EXTRAS, work / "house", arch=ARCHES[arch], wheel=wheel)
        root = work / "root"
        root.mkdir(mode=0o755)
        stage(root, work / "house", python=python, arch=ARCHES[arch])
        control(root, python=python, arch=arch)
        out.mkdir(parents=True, exist_ok=True)
        made = out / f"edgert_{__version__}-1_{arch}.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", str(root), str(made)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": wheels.epoch()}
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if told.returncode:
            raise ArtifactError(f"dpkg-deb: {told.stderr.strip()}")
    return made


def main(argv: list[str] | None = None) -> int:
    """Build the packages asked for."""
    parser = argparse.ArgumentParser(prog="python -m tools.deb", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=ARCHES, help="may be repeated (both)")
    parser.add_argument("--python", choices=wheelhouse.GLIBCS, default="3.11", help="of the system (3.11: bookworm)")
    parser.add_argument("--wheel", type=Path, help="edgert's own wheel, with one --arch; without it one is built")
    parser.add_argument("--out", type=Path, default=wheels.HOUSE / "dist", help="folder (dist)")
    args = parser.parse_args(argv)
    try:
        for arch in args.arch or ARCHES:
            print(f"{arch}: wheels, staging, packing", flush=True)
            made = build(arch, args.out, python=args.python, wheel=args.wheel)
            print(f"{made}, {made.stat().st_size / 1e6:.1f} MB, sha256 {wheels.digest(made)}")
    except EdgertError as error:
        print(f"tools.deb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
