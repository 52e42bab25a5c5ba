"""Runs one command for one job, and leaves its outcome where a supervisor finds it, also one that comes later."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from edgert.errors import EdgertError, UsageError
from edgert.ports import ipc
from edgert.ports.jobrun import Runs
from edgert.ports.process import Stopping

NICE = 10


def main(argv: list[str] | None = None) -> int:
    """Run it, unless somebody does or did.

    Returns:
        0 there is an outcome, 1 there is none, 2 another process is at it.
    """
    parser = argparse.ArgumentParser(prog="edgert.programs.job")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args(argv)
    stopping = Stopping()
    try:
        runs = Runs(args.folder)
        held = ipc.single_instance(runs.lock(args.id))
    except UsageError:
        return 2
    except EdgertError as error:
        print(f"edgert: job {args.id}: {error}", file=sys.stderr)
        return 1
    os.nice(NICE)  # whatever a job does, the actor goes first
    try:
        return runs.run(args.id, args.command, lambda: bool(stopping))
    except EdgertError as error:
        print(f"edgert: job {args.id}: {error}", file=sys.stderr)
        return 1
    finally:
        os.close(held)


if __name__ == "__main__":
    raise SystemExit(main())
