"""Clusters and jobs that are drawn for the benchmark: boards with the figures of `firmware_configs`, measured jobs.

What a training step costs, and how much memory its process takes at most, is read from `results/train.json`, which
`python -m tools.bench train` measures with the project's own trainer. What a core of a board is worth beside the one
that was measured on is an estimate: clock rate times a factor a core design.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgert.placement.jobs import HOST, Flow, Job, Part, Split
from edgert.placement.load import Capacity

HOUSE = Path(__file__).parents[3]
PER_HZ = {  # estimate: work a clock cycle, Cortex-A53 = 1, after public single-core scores of the boards
    "Cortex-A53": 1.0,
    "Cortex-A57": 1.7,
    "Cortex-A72": 2.1,
    "Cortex-A76": 3.2,
    "Cortex-A78AE": 3.4,
}
REFERENCE_HZ = 16e9  # estimate: the x86 core that jobs were measured on, in cycles of a Cortex-A53
BOARDS = {  # share of the cluster; RAM and link are choices among what is sold: bytes, bytes a second
    "raspberry-pi-zero-2-w": (0.20, 0.5e9, 4e6),
    "raspberry-pi-3b-plus": (0.20, 1e9, 12e6),
    "raspberry-pi-4": (0.25, 4e9, 25e6),
    "raspberry-pi-5": (0.15, 8e9, 25e6),
    "jetson-nano": (0.10, 4e9, 25e6),
    "jetson-orin-nano": (0.10, 8e9, 25e6),
}
ALPHA = 0.9
"""Share of a board's cores, memory and link that placed work may take: more is overload, as in SROLE's papers."""
OWN_RAM_FRAC, OWN_RAM_BYTES = 0.4, 1e8  # taken by the system and by the device's own policy
PART_CORES = 0.9
"""What a data-parallel part keeps busy of a core in the mean: it pauses while parameters are exchanged."""
SWAP_BYTES = 200e6  # Raspberry Pi OS's default swap file
PAGE_BYTES_PER_S = 20e6  # estimate: of an SD card of class A1, there and back
PASS_S = 1.0  # estimate: in which a training process touches all its pages
HOT_SPEED_FRAC = 0.6  # of a board that throttles: Pi 4, 1.8 to 1.1 GHz or so


class Node(NamedTuple):
    """A node as it is, and what it offers.

    Attributes:
        name, board: of it.
        cores: of the board.
        speed: of a core beside the reference.
        memory_bytes, swap_bytes: before it pages, and how much it can page.
        link_bytes_per_s: of the link.
        heat_w: placed work may draw before the board throttles.
        watts_per_core: of a busy core.
        capacity: what is offered.
    """

    name: str
    board: str
    cores: float
    speed: float
    memory_bytes: float
    swap_bytes: float
    link_bytes_per_s: float
    heat_w: float
    watts_per_core: float
    capacity: Capacity


@functools.cache
def board(name: str) -> dict[str, Any]:
    """What a board's file says of its hardware."""
    read = msgspec.toml.decode((HOUSE / "firmware_configs" / f"{name}.toml").read_bytes())
    hardware: dict[str, Any] = read["hardware"]
    return hardware


def make_node(name: str, kind: str, ambient_c: float, energy_j: float | None) -> Node:
    """A node of a kind of board, somewhere warm or cool."""
    _, ram, link = BOARDS[kind]
    hardware = board(kind)
    physics, cluster = hardware["physics"], hardware["clusters"][0]
    speed = cluster["max_hz"] * PER_HZ[cluster["name"]] / REFERENCE_HZ
    watts = physics["busy_w_per_core"]
    hot_c = hardware["heat"].get("throttle_c", 80.0)
    heat_w = max(watts, (hot_c - ambient_c) / sum(physics["r_c_per_w"]) - physics["idle_w"])
    cores = float(physics["cores"])
    memory = ram * (1 - OWN_RAM_FRAC) - OWN_RAM_BYTES
    capacity = Capacity(
        cores=ALPHA * cores,
        speed=speed,
        memory_bytes=ALPHA * memory,
        link_bytes_per_s=ALPHA * link,
        energy_j=energy_j,
        heat_w=heat_w,
        watts_per_core=watts,
    )
    return Node(name, kind, cores, speed, memory, SWAP_BYTES, link, heat_w, watts, capacity)


def cluster(count: int, rng: np.random.Generator) -> list[Node]:
    """Draw a cluster: boards by their share, ambient 20 to 40 degrees, a fifth on battery with 1 to 4 kJ to spare."""
    kinds = list(BOARDS)
    share = np.array([BOARDS[kind][0] for kind in kinds])
    drawn = rng.choice(len(kinds), size=count, p=share / share.sum())
    roomy = [kind for kind, (_, ram, _) in enumerate(BOARDS.values()) if ram > 2e9]
    if not set(drawn) & set(roomy):
        drawn[0] = roomy[0]  # else there are jobs that fit nowhere
    nodes = []
    for n, kind in enumerate(drawn):
        battery = float(rng.uniform(1e3, 4e3)) if rng.random() < 0.2 else None
        nodes.append(make_node(f"n{n:03d}", kinds[kind], float(rng.uniform(20, 40)), battery))
    large = [n for n, kind in enumerate(drawn) if kind in roomy]
    if all(nodes[n].capacity.energy_j is not None for n in large):  # else there are jobs that nobody can end
        first = nodes[large[0]]
        nodes[large[0]] = first._replace(capacity=msgspec.structs.replace(first.capacity, energy_j=None))
    return nodes


class Kind(NamedTuple):
    """A network to train: measured seconds of a batch of 32, resident bytes, bytes of its parameters, batches a step.

    A step is what is done between two exchanges of parameters: local SGD, so the batches of a step are shared out.
    """

    name: str
    batch_s: float
    memory_bytes: float
    params_bytes: float
    batches: int


@functools.cache
def kinds() -> tuple[Kind, ...]:
    """The networks of `tools.bench train`, as measured; steps of about two core-seconds."""
    nets = json.loads((HOUSE / "tools" / "bench" / "results" / "train.json").read_text())["nets"]
    parameters = {"minatar": 0.34e6, "nature": 6.7e6, "drone": 4.0e6}  # float32, of the networks that are timed there
    found = []
    for name, size in parameters.items():
        own = nets[name]["edgert"]
        batch_s = own["step_ms"] / 1e3
        found.append(Kind(name, batch_s, own["peak_mib"] * 2**20, size, max(1, round(2.0 / batch_s))))
    return tuple(found)


ACTIVATION_BYTES = 2 * 32 * 3136 * 4  # of a batch, there and back, where the drone's network is cut


def splits(kind: Kind, shard_bytes: float) -> tuple[Split, ...]:
    """The ways to cut a job: one, two or four data-parallel workers; two stages where the network has a waist."""
    work_s = kind.batch_s * kind.batches
    found = []
    for workers in (1, 2, 4):
        moved = kind.params_bytes * (1 if workers == 1 else 2)
        part = Part(
            compute_core_s=work_s / workers,
            cores=PART_CORES,
            memory_bytes=kind.memory_bytes + shard_bytes / workers,
            flows=(Flow(HOST, moved),),
        )
        found.append(Split(kind="data", parts=(part,) * workers))
    if kind.name == "drone":
        first = Part(
            compute_core_s=0.6 * work_s,
            cores=0.6,
            memory_bytes=0.7 * kind.memory_bytes + shard_bytes,
            flows=(Flow(HOST, kind.params_bytes / 2), Flow(1, ACTIVATION_BYTES * kind.batches)),
        )
        second = Part(
            compute_core_s=0.4 * work_s,
            cores=0.4,
            memory_bytes=0.5 * kind.memory_bytes,
            flows=(Flow(HOST, kind.params_bytes / 2),),
        )
        found.append(Split(kind="layers", parts=(first, second)))
    return tuple(found)


def draw_jobs(nodes: list[Node], count: int, load: float, rng: np.random.Generator) -> list[Job]:
    """Poisson arrivals at random devices that bring `load` times the work that all offered cores can do."""
    power = sum(node.speed * node.capacity.cores for node in nodes)
    made: list[tuple[Kind, int, float]] = []
    for _ in range(count):
        kind = kinds()[int(rng.choice(3, p=(0.4, 0.3, 0.3)))]
        steps = int(np.clip(np.exp(rng.normal(np.log(14), 0.9)), 3, 80))
        made.append((kind, steps, float(rng.uniform(10e6, 150e6))))
    mean_s = 14 * np.exp(0.9**2 / 2) * 2.0
    at_s, jobs = 0.0, []
    for j, (kind, steps, shard) in enumerate(made):
        at_s += float(rng.exponential(mean_s / (load * power)))
        jobs.append(
            Job(
                id=f"j{j:04d}",
                owner=nodes[int(rng.integers(len(nodes)))].name,
                splits=splits(kind, shard),
                steps=steps,
                ship_bytes=int(kind.params_bytes * 3 + shard / 4),
                born_s=at_s,
            )
        )
    return jobs
