"""`edgert recover`: what a device learned is set aside, so that it starts with the policy that was installed."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from edgert import bundle
from edgert.cli import NOTHING_TO_DO, OK
from edgert.errors import ArtifactError, UsageError
from edgert.ports.process import Layout, load_config, lock_holder, read_bundle
from edgert.ports.store import store_error, write_atomic

ASIDE = "set-aside"
"""Folder of the state folder; of what is in it, only the last recovery's is kept."""


def recover(argv: list[str]) -> int:
    """Set aside the networks, checkpoints and transitions of a device that does not run, and pause its training.

    Events, jobs, keys and counters of the fleet stay: they would not come back.

    Returns:
        0, or 2 when there is nothing to set aside.

    Raises:
        ConfigError, ArtifactError: of configuration or installed bundle; setting aside would not help.
        UsageError: the device runs.
        StoreError: a file cannot be moved.
    """
    parser = argparse.ArgumentParser(
        prog="edgert recover", description="Set aside what a device learned, so that its installed policy acts again."
    )
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    args = parser.parse_args(argv)
    config = load_config(args.config)
    try:
        bundle.read(read_bundle(config))
    except ArtifactError as error:
        raise ArtifactError(f"{config.policy.bundle}: {error}; install another, nothing was set aside") from error
    layout = Layout(config)
    for role in ("supervisor", "actor", "trainer"):
        if (pid := lock_holder(layout.lock(role))) is not None:
            raise UsageError(f"the device runs (its {role} is process {pid}): stop it first")
    there = [path for path in (layout.policies, layout.checkpoints, layout.ring) if _anything(path)]
    if not there:
        print("nothing to set aside: the device has learned nothing yet")
        return NOTHING_TO_DO
    aside = layout.state / ASIDE
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)
    except OSError as error:
        raise store_error(error, "move to", aside) from error
    write_atomic(layout.paused, b"")
    print(f"set aside in {aside}: {', '.join(path.name for path in there)}; training is paused (edgert train resume)")
    return OK


def _anything(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))
