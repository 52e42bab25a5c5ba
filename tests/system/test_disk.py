"""A disk that is full: acting goes on, what could not be written is named and counted, and space is all it needs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.system


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An own file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        reason = f"no tmpfs can be mounted here ({made.stderr.strip()}): no test has met a full disk"
        print(f"\n*** SKIPPED: {reason} ***")
        pytest.skip(reason)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Take every byte there is."""
    with path.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size_bytes)
            except OSError:
                continue


def test_a_full_disk_stops_neither_acting_nor_training(
    small_disk: Path, make_lone: Callable[..., Any], acting: Any, measured: Callable[..., None], tmp_path: Path
) -> None:
    device = make_lone(tmp_path / "device", device__state_dir=str(small_disk / "state"))
    device.start()
    try:
        before = device.until_status(
            lambda s: acting(s) and s["trainer"] and s["trainer"]["checkpoint"] > 0, "acting and a checkpoint"
        )
        fill(small_disk / "ballast")
        # Ends of processes are events; they find no room.
        for _ in range(4):
            pid = device.status()["trainer"]["pid"]
            os.kill(pid, signal.SIGKILL)
            full = device.until_status(
                lambda s, pid=pid: s["trainer"]["pid"] != pid and s["trainer"]["faults"].get("checkpoint-not-written"),
                "a checkpoint that could not be written",
                60,
            )
            if full["store_faults"].get("event-lost"):
                break
        assert full["store_faults"]["event-lost"] >= 1
        assert full["trainer"]["steps"] >= 0
        assert full["actor"]["pid"] == before["actor"]["pid"]
        assert full["session"] == before["session"]
        assert full["actor"]["ticks"] > before["actor"]["ticks"]
        missed = full["actor"]["missed"] - before["actor"]["missed"]
        assert missed <= max(2, 0.05 * (full["actor"]["ticks"] - before["actor"]["ticks"]))
        log = device.log()
        for words in ("event-lost: child-exited", "the disk is full"):
            assert words in log
        (small_disk / "ballast").unlink()
        checkpoint, waiting = full["trainer"]["checkpoint"], full["link"]["events_waiting"]
        device.until_status(lambda s: s["trainer"]["checkpoint"] > checkpoint, "a checkpoint again")
        os.kill(device.status()["trainer"]["pid"], signal.SIGKILL)
        after = device.until_status(lambda s: s["link"]["events_waiting"] > waiting, "an event again", 60)
        assert after["actor"]["pid"] == before["actor"]["pid"]
        assert "Traceback" not in device.log()
        measured(store_faults=full["store_faults"], trainer_faults=full["trainer"]["faults"], missed=missed)
    finally:
        # Before the file system goes.
        assert device.end() == 0


def test_a_supervisor_that_starts_on_a_full_disk_finds_its_actor_and_leaves_it_alone(
    small_disk: Path, make_lone: Callable[..., Any], acting: Any, tmp_path: Path, measured: Callable[..., None]
) -> None:
    device = make_lone(tmp_path / "device", device__state_dir=str(small_disk / "state"))
    device.start()
    try:
        before = device.until_status(lambda s: acting(s) and s["trainer"], "acting")
        leader = device.process
        fill(small_disk / "ballast")
        leader.kill()
        leader.wait()
        device.start()
        second = device.until_status(lambda s: acting(s) and s["trainer"], "a successor that hears the actor")
        assert second["actor"]["pid"] == before["actor"]["pid"]
        measured(store_faults=second["store_faults"])
        (small_disk / "ballast").unlink()
    finally:
        assert device.end() == 0
