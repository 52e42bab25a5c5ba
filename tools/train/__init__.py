"""Training of early-exit value networks on a workstation: by reinforcement, or from a network that is trained already.

`python -m tools.train --help`. PyTorch does the work (a GPU when there is one); what comes out are the parameters in
the order of `edgert.nets.Params`, which is all that the board and the exporter know. This file needs no PyTorch.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgert.errors import UsageError
from edgert.nets import NetSpec, Params


def commit() -> str:
    """The commit this tree stands on, with a mark when it has changes."""
    described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"


def kept(run: Path) -> tuple[Params, dict[str, Any]]:
    """The network that a run kept, and what its `run.json` says.

    Raises:
        UsageError: the folder holds no finished run.
    """
    try:
        document: dict[str, Any] = msgspec.json.decode((run / "run.json").read_bytes())
        spec = msgspec.convert(document["spec"], NetSpec)
        return Params(spec, np.fromfile(run / "best.f32", np.float32)), document
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        raise UsageError(f"{run} holds no finished run of tools.train: {error}") from error
