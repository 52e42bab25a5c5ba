"""`edgert diag collect`: one file with what somebody needs who is to help, and without a secret in it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2

from edgert import __version__, wire
from edgert.cli import OK
from edgert.cli.doctor import examine
from edgert.cli.watch import Asker
from edgert.config import Config
from edgert.errors import ConfigError, EdgertError
from edgert.ports.credentials import credential, read_secret
from edgert.ports.process import Layout, load_config
from edgert.ports.redact import redacted
from edgert.ports.store import write_atomic
from edgert.programs.events import opened

EVENTS, JOURNAL_LINES = 500, 2000
MEMBER_BYTES = 4 << 20
PACKAGES = (
    "numpy", "cbor2", "msgspec", "paho-mqtt", "psutil", "zstandard", "cronsim", "onnxruntime", "ai-edge-litert",
    "tflite-runtime", "cryptography", "rich", "smbus2", "gymnasium",
)  # fmt: skip


def diag(argv: list[str]) -> int:
    """Collect it.

    Returns:
        0.

    Raises:
        StoreError: the archive cannot be written.
    """
    parser = argparse.ArgumentParser(prog="edgert diag", description="What somebody needs who is to help.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    collect = verbs.add_parser("collect", help="put it into one archive, without secrets")
    collect.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    collect.add_argument("--out", type=Path, metavar="FILE", help="(edgert-diag-<device>-<time>.tar.gz, here)")
    collect.add_argument("--unit", default="edgert", help="whose journal is asked for (%(default)s)")
    collect.add_argument("--json", action="store_true", help="what was collected, as JSON")
    args = parser.parse_args(argv)
    members, missing = {}, {}
    name, config, secrets = "unknown", None, list[str]()
    with contextlib.suppress(ConfigError):
        config = load_config(args.config)
        name, secrets = config.device.id, _secrets(config)
    for member, make in _members(args, config):
        try:
            text = make()
        except (EdgertError, OSError, ValueError, subprocess.SubprocessError) as error:
            missing[member] = redacted(f"{type(error).__name__}: {error}", secrets)
            continue
        data = redacted(text, secrets).encode(errors="replace")  # names of files may be no text
        members[member] = data if len(data) <= MEMBER_BYTES else data[-MEMBER_BYTES:]
    index = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "edgert": __version__, "device": name}
    members["index.json"] = json.dumps({**index, "members": sorted(members), "missing": missing}, indent=1).encode()
    out = args.out or Path(f"edgert-diag-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.tar.gz")
    write_atomic(out, _archive(members), mode=0o600)
    if args.json:
        print(json.dumps({"file": str(out), "members": sorted(members), "missing": missing}))
        return OK
    print(f"{out}: {', '.join(sorted(members))}")
    for member, why in missing.items():
        print(f"  without {member}: {why}")
    print("secrets are taken out as far as they can be told: look into it before you hand it on")
    return OK


def _members(args: argparse.Namespace, config: Config | None) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "versions.json", _versions
    yield "config.toml", lambda: str(args.config.read_text(encoding="utf-8", errors="replace"))
    yield "doctor.json", lambda: json.dumps([each._asdict() for each in examine(args.config)], indent=1)
    yield "board.json", lambda: _said(["board", "show", "--json"], args.config)
    yield "journal.txt", lambda: _journal(args.unit)
    if config is not None:
        layout = Layout(config)
        yield "status.json", lambda: _status(layout)
        yield "events.jsonl", lambda: _events(layout)
        yield "files.txt", lambda: _files(layout)


def _secrets(config: Config) -> list[str]:
    """What stands in the files that hold secrets, as far as whoever asks may read them."""
    found = []
    for name in (config.broker.password_file, config.broker.key_file):
        if name is None:
            continue
        with contextlib.suppress(ConfigError):
            found += read_secret(credential(name)).decode(errors="replace").splitlines()
    return found


def _versions() -> str:
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    uname = platform.uname()
    about = {"edgert": __version__, "python": sys.version, "system": f"{uname.system} {uname.release} {uname.machine}"}
    return json.dumps({**about, "libc": " ".join(platform.libc_ver()), "packages": packages}, indent=1)


def _said(words: list[str], config: Path) -> str:
    """What a verb prints, from a process of its own: it may load what is broken."""
    command = [sys.executable, "-m", "edgert", *words, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
    if done.returncode:
        raise ValueError(f"ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _status(layout: Layout) -> str:
    asker = Asker(layout.control)
    try:
        document = asker.ask()
    finally:
        asker.close()
    if document is None:
        raise ValueError("no supervisor answers")
    return json.dumps(document, indent=1, default=str)


def _events(layout: Layout) -> str:
    """The newest events that no collector has, from a copy: the file itself is the supervisor's."""
    if not layout.spool.exists():
        raise ValueError("there are none")
    with tempfile.TemporaryDirectory() as name:
        for path in layout.spool.parent.glob(layout.spool.name + "*"):
            shutil.copyfile(path, Path(name) / path.name)
        with opened(Path(name) / layout.spool.name) as spool:
            newest = {
                stream: spool.peek(stream, max(0, each.last_seq - EVENTS), EVENTS)
                for stream, each in spool.streams.items()
            }
    return "\n".join(
        json.dumps({"stream": stream, "seq": seq, "event": _event(payload)}, default=str)
        for stream, rows in newest.items()
        for seq, payload in rows
    )


def _event(payload: bytes) -> object:
    try:
        return cbor2.loads(payload)
    except wire.UNREADABLE as error:
        return f"cannot be read: {error}"


def _journal(unit: str) -> str:
    command = ["journalctl", "--unit", unit, "--lines", str(JOURNAL_LINES), "--no-pager", "--output", "short-iso"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30.0, check=False, errors="replace")
    if done.returncode:
        raise ValueError(f"journalctl ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _files(layout: Layout) -> str:
    """Names, sizes, modes and times; no contents."""
    lines = []
    for folder in (layout.state, layout.run):
        for path in sorted(folder.rglob("*")):
            try:
                found = path.lstat()
            except OSError as error:
                lines.append(f"{path}: {error.strerror}")
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found.st_mtime))
            lines.append(f"{oct(found.st_mode)[-4:]} {found.st_uid:>6} {found.st_size:>12} {when} {path}")
    disk = shutil.disk_usage(layout.state)
    return "\n".join([f"{layout.state}: {disk.free} of {disk.total} bytes are free", *lines])


def _archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(f"edgert-diag/{name}")
            info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
            info.uid = info.gid = os.getuid()
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
