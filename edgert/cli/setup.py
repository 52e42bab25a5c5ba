"""`edgert init`: a configuration file that explains itself, and what to do next."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from pathlib import Path

from edgert.cli import NOTHING_TO_DO, OK
from edgert.config import broker_address, commented_default
from edgert.errors import ConfigError, UsageError
from edgert.ports import boardfile
from edgert.ports.store import write_atomic

SYSTEM = Path("/etc/edgert/edgert.toml")
"""Where the systemd units look."""
SHIPPED = Path(sys.prefix) / "share/edgert/models/breakout.edgert"
"""Comes with the Debian package: something to begin with."""


def init(argv: list[str]) -> int:
    """Write a configuration file.

    Returns:
        0, or 2 when there is one already.

    Raises:
        ConfigError: a value that no configuration may have.
        StoreError: the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="edgert init", description="Write a configuration file with every key explained."
    )
    system = os.access(SYSTEM.parent, os.W_OK)
    where = "where to (/etc/edgert/edgert.toml if that folder is there and may be written, else edgert.toml)"
    parser.add_argument(
        "--path", type=Path, default=SYSTEM if system else Path(SYSTEM.name), help=f"where to ({where})"
    )
    parser.add_argument("--bundle", type=Path, help="the .edgert bundle to act with")
    parser.add_argument("--broker", metavar="URL", help="mqtt://host:1883 or mqtts://host:8883")
    parser.add_argument("--device", metavar="ID", help="name of this device (its host name)")
    parser.add_argument("--fleet", metavar="ID", help="name of its fleet (default)")
    parser.add_argument("--plant", choices=("socket", "simulated"), help="your program, or a gymnasium environment")
    parser.add_argument("--env", metavar="ID", help="gymnasium environment of a simulated plant")
    parser.add_argument("--state-dir", type=Path, help="folder for what must survive a reboot (/var/lib/edgert)")
    parser.add_argument("--run-dir", type=Path, help="folder for sockets (/run/edgert)")
    parser.add_argument("--board", metavar="NAME", help="start from this board's file (`edgert board list`), or auto")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    args = parser.parse_args(argv)
    if args.path.exists() and not args.force:
        print(f"{args.path} is there already and stays as it is; --force writes over it")
        return NOTHING_TO_DO
    if args.broker:
        broker_address(args.broker)
    plant = args.plant or ("simulated" if args.env else None)
    if plant == "simulated" and not args.env:
        raise ConfigError("--plant simulated needs --env, such as --env MinAtar/Breakout-v1")
    settings: dict[str, object] = _of_board(args.board)
    settings |= {"device.id": args.device or host_name(), "policy.bundle": _bundle(args.bundle)}
    given = {
        "device.fleet": args.fleet,
        "device.state_dir": args.state_dir and str(args.state_dir.absolute()),
        "device.run_dir": args.run_dir and str(args.run_dir.absolute()),
        "broker.url": args.broker,
        "plant.kind": plant,
        "plant.env": args.env,
        "board.kind": "fake" if plant == "simulated" else None,
        "battery.kind": "simulated" if plant == "simulated" else None,
    }
    settings |= {key: value for key, value in given.items() if value}
    try:
        text = commented_default(settings)
    except UsageError as error:
        # What the user typed is at fault, not the caller of a function.
        raise ConfigError(str(error)) from error
    write_atomic(args.path, text.encode(), mode=0o644)
    print(f"wrote {args.path}\n\nnext:")
    steps = [] if args.bundle or SHIPPED.exists() else [f"set policy.bundle in {args.path} to your .edgert bundle"]
    steps += [] if args.broker else [f"set broker.url in {args.path}, unless the broker runs on this machine"]
    steps += [
        f"edgert doctor --config {args.path}",
        f"edgert run --config {args.path}",
        f"edgert top --config {args.path}",
    ]
    for i, step in enumerate(steps, 1):
        print(f"  {i}. {step}")
    return OK


def _of_board(name: str | None) -> dict[str, object]:
    """What a board's file sets; `auto` takes the board that this is."""
    if name is None:
        return {}
    board, why = boardfile.load(None if name == "auto" else name)
    if board is None:
        raise ConfigError(f"{why}; name one, see `edgert board list`")
    print(f"board: {board.hardware.title}: {why}")
    return board.settings


def host_name() -> str:
    """This machine's name, as far as it can be a device's."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname() or "").strip("-._")[:63].rstrip("-._")
    return name or "device-1"


def _bundle(path: Path | None) -> str:
    # systemd starts with another working directory: only an absolute path means the same there.
    if path is None:
        path = SHIPPED if SHIPPED.exists() else Path("/var/lib/edgert/policy.edgert")
    return os.fspath(path.absolute())
