"""Sections of the configuration for what few devices do. `config` reads and checks them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgert.hardware import Name, Share, Text


class OffloadVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A model that may answer. All of one device answer the same task, each in its own way.

    Attributes:
        bundle: Path of a .edgert bundle: a model's, or a policy's.
        local: Run it here as well; false where it is too heavy for this board and edge or cloud must.
    """

    bundle: Text
    local: bool = True


LearnerName = Literal[
    "hybrid",
    "structured",
    "linucb",
    "thompson",
    "dqn",
    "branching-dqn",
    "joint-table",
    "user-tables",
    "drift-plus-penalty",
]


class Offload(msgspec.Struct, frozen=True, kw_only=True):
    """Where an inference runs, and with which model.

    Attributes:
        enabled: Serve inferences here, choosing among local variants, edge and cloud.
        socket: Unix socket on which programs ask, through edgert.client.infer; empty means infer.sock in run_dir.
        runtime: What runs the local variants; auto: the first of onnx, litert, tflite, numpy that works.
        accuracy_frac: Accuracy that every answer must have, 0 to 1, unless a program asks for another.
        deadline_s: Seconds within which a request is answered, unless a program says another.
        minimise: What is made small: the time to the answer, or the energy it takes.
        learner: What learns where to run them; all but hybrid are there to compare with.
        max_bytes_per_s: Bytes a second to edge and cloud, both ways; [govern] lowers it. 0 means none is sent.
        burst_bytes: Bytes that may be sent at once after a silence.
        core_w: Watts that one busy core adds, to compare energies; `edgert board show` may know.
        radio_j_per_mb: Joules to send or receive a million bytes, likewise.
        variants: The models to choose from.
    """

    enabled: bool = False
    socket: str = ""
    runtime: Literal["auto", "onnx", "litert", "tflite", "numpy"] = "auto"
    accuracy_frac: Share = 0.0
    deadline_s: Annotated[float, Meta(gt=0, le=600)] = 1.0
    minimise: Literal["time", "energy"] = "time"
    learner: LearnerName = "hybrid"
    max_bytes_per_s: Annotated[float, Meta(ge=0, le=1_000_000_000)] = 1_000_000.0
    burst_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] = 4_000_000
    core_w: Annotated[float, Meta(gt=0, le=1000)] = 1.5
    radio_j_per_mb: Annotated[float, Meta(ge=0, le=1000)] = 1.0
    variants: Annotated[tuple[OffloadVariant, ...], Meta(max_length=32)] = ()


class PlacementRegion(msgspec.Struct, frozen=True, kw_only=True):
    """Devices over which one shield watches, led by the first of them that is alive; a boundary device is in two.

    Attributes:
        name: Name of the region, the same on all devices.
        members: Device ids, in the order in which they lead.
    """

    name: Name
    members: tuple[Name, ...]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Training jobs placed over the devices of a fleet.

    Attributes:
        enabled: Offer this board to jobs of others, and let its own jobs run elsewhere.
        regions: Who places over whom; the same on all devices. Without any, jobs stay where they come from.
        agent: Who chooses: a network that learned it, or a rule.
        bundle: Path of the .edgert bundle of the network that chooses; unset means the one that comes with edgert.
        learn: Let the network go on learning from what became of this device's own jobs; it then explores.
        shield: regions: nothing starts but where room was kept for it; none: as chosen, for comparison only.
        head: Device that chooses for all, for comparison only; unset means that each chooses for its own jobs.
        cores: Processor cores that jobs of others may keep busy here.
        speed: Speed of a core here, as a share of that of the device that jobs are measured on.
        memory_bytes: Resident bytes that jobs may hold here.
        link_bytes_per_s: Bytes a second that jobs may move over the link here, both ways.
        watts_per_core: Watts that a busy core draws above idle; 0 means unknown.
        window_s: Seconds between two judgements of a shield, which judges together what was proposed meanwhile.
        lease_s: Seconds after which what nobody renews is given up.
        stall_s: Seconds without progress after which a job is placed anew.
    """

    enabled: bool = False
    regions: tuple[PlacementRegion, ...] = ()
    agent: Literal["learned", "least-loaded", "random"] = "learned"
    bundle: Text | None = None
    learn: bool = False
    shield: Literal["regions", "none"] = "regions"
    head: Name | None = None
    cores: Annotated[float, Meta(ge=0, le=1024)] = 1.0
    speed: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 40)] = 256 << 20
    link_bytes_per_s: Annotated[float, Meta(ge=0, le=1e12)] = 1e6
    watts_per_core: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    window_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    lease_s: Annotated[float, Meta(ge=1, le=3600)] = 15.0
    stall_s: Annotated[float, Meta(ge=1, le=86_400)] = 60.0
