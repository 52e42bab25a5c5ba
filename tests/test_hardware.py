from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from edgert.config import parse
from edgert.errors import ConfigError
from edgert.hardware import BoardFile, parse_board
from edgert.ports.board.physics import Model

FILES = sorted(
    path for path in (Path(__file__).parents[1] / "firmware_configs").glob("*.toml") if "[hardware]" in path.read_text()
)
LEAST = """
[hardware]
title = "x"
[hardware.match]
machine = ["x"]
[hardware.heat]
[hardware.physics]
cores = 4
idle_w = 1.0
busy_w_per_core = 1.0
static_w = 1.0
voltage_floor_frac = 0.6
r_c_per_w = [1.0]
tau_s = [1.0]
hot_c = 80.0
trip_c = 85.0
min_freq_frac = 0.5
freq_steps = 4
"""
# Digits in them are no figures.
WORDS = ("title", "name", "why", "file", "id", "model", "driver", "run")
named = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))


def board(path: Path) -> BoardFile:
    return parse_board(path.read_text(), path.stem)


def test_there_is_a_file_for_every_board_that_is_promised() -> None:
    promised = {"raspberry-pi-3b-plus", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w"}
    promised |= {"jetson-nano", "jetson-orin-nano", "generic-x86-64", "generic-aarch64"}
    assert {path.stem for path in FILES} == promised


@named
def test_a_boards_file_is_a_board_and_a_configuration(path: Path) -> None:
    config = parse(path.read_text(), path.name)
    assert config.board.model == path.stem
    heat, physics = board(path).hardware.heat, board(path).hardware.physics
    assert config.govern.temp_critical_c <= (heat.throttle_c or physics.trip_c) + 2.0, (
        "it slows down before the chip does"
    )
    if heat.throttle_c is not None:
        assert (physics.hot_c, physics.trip_c) == (heat.throttle_c, heat.hard_c)


@named
def test_every_figure_has_its_source_beside_it(path: Path) -> None:
    text = path.read_text()
    head = text[: text.index("\n\n")]
    tags = re.findall(r"^#   (\w+)  +\S", head, re.MULTILINE)
    assert {"estimate", "ours"} <= set(tags)
    faults = [
        line
        for line in text.splitlines()
        if (found := re.fullmatch(r"(\w+) = (.*?)(?:  # (\w+): \S.*)?", line))
        and re.search(r"\d", found[2])
        and found[1] not in WORDS
        and found[3] not in tags
    ]
    assert not faults
    for tag in tags:
        assert tag in ("estimate", "ours") or re.search(rf"\b{tag}\b", text[len(head) :]), f"{tag} is used nowhere"


@named
def test_every_board_can_be_simulated(path: Path) -> None:
    physics = msgspec.structs.asdict(board(path).hardware.physics)
    assert Model(**physics).cores == physics["cores"]


@named
def test_the_physics_agree_with_what_is_known(path: Path) -> None:
    hardware = board(path).hardware
    physics = hardware.physics
    if hardware.clusters:
        fastest = max(hardware.clusters, key=lambda cluster: cluster.max_hz)
        assert physics.min_freq_frac == pytest.approx(fastest.min_hz / fastest.max_hz, abs=0.01)
    busy_w = physics.idle_w + physics.cores * physics.busy_w_per_core
    busy_c = 25.0 + busy_w * sum(physics.r_c_per_w)
    assert 27.0 < 25.0 + physics.idle_w * sum(physics.r_c_per_w) < 60.0, "at rest in a room"
    assert busy_c < physics.trip_c + 10, "busy in a room it may throttle, but it does not melt"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("[hardware.heat]\nzone = 1", "duplicate|unknown|not TOML"),
        ("[[hardware.rails]]\nname = 'x'", r"hardware\.rails\[0\]\.driver: missing"),
        ("[[hardware.fragments]]\nname = 'x'\nwhy = 'y'", "needs a file"),
        (
            "[[hardware.fragments]]\nname = 'x'\nwhy = 'y'\nfile = ['/a']\nlines = ['b']\nwords = ['c']",
            "either lines or",
        ),
        ("[[hardware.fragments]]\nname = 'x'\nwhy = 'y'\nfile = ['/a']\nlines = [\"a\\nb\"]", "one line of text"),
        ("[[hardware.clusters]]\nname = 'x'\ncores = [0]\nmin_hz = 2.0\nmax_hz = 1.0", "min_hz is above max_hz"),
        ("[[hardware.clusters]]\nname = 'x'\ncores = [0]\nmin_hz = 1.0\nmax_hz = 2.0", "physics.cores says 4"),
        ("[hardware.advise]\nthreads = 1", "did you mean 'advice'"),
    ],
)
def test_a_wrong_file_is_refused_with_its_reason(more: str, fault: str) -> None:
    assert parse_board(LEAST, "x").hardware.title == "x"
    with pytest.raises(ConfigError, match=fault):
        parse_board(LEAST + more, "x")


@pytest.mark.parametrize(
    ("was", "now", "fault"),
    [
        ("tau_s = [1.0]", "tau_s = [1.0, 2.0]", "one for each of r_c_per_w"),
        ("hot_c = 80.0", "hot_c = 90.0", "must be below trip_c"),
        ('machine = ["x"]', "", "nothing would be recognised"),
        ("[hardware.heat]", "[hardware.heat]\nthrottle_c = 90.0\nhard_c = 85.0", "must rise"),
        ("idle_w = 1.0", "idle_w = -1.0", "must be a number from 0 to 1000"),
    ],
)
def test_what_cannot_be_is_refused(was: str, now: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_board(LEAST.replace(was, now), "x")


def test_settings_are_what_stands_in_the_other_sections() -> None:
    assert parse_board(LEAST + '[govern]\ntemp_high_c = 70.0\n[device]\nid = "a"', "x").settings == {
        "govern.temp_high_c": 70.0,
        "device.id": "a",
    }
