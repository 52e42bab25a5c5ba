"""Networks exported from PyTorch: the only file of edgert that imports torch, and only a teacher ever imports it.

`torch.export` files (.pt2) say the shape and type of their input; TorchScript files do not. Loading either may run code
that the file brings along, so load only what you would run.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgert.errors import ArtifactError
from edgert.ports.runtime import Graph


def open_graph(data: bytes, *, exported: bool) -> Graph:
    """Open a network for batches, on one core.

    Args:
        data: the file.
        exported: by `torch.export.save`; otherwise by `torch.jit.save`.

    Raises:
        ArtifactError: PyTorch does not take it, or it wants more than one input.
    """
    torch.set_num_threads(1)
    shape: tuple[int | None, ...] | None = None
    dtype = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch thinks of its own older formats helps nobody here
            if exported:
                program = torch.export.load(io.BytesIO(data))
                network: Any = program.module()
                names = program.graph_signature.user_inputs
                inputs = [node.meta["val"] for node in program.graph.nodes if node.name in names]
                if len(inputs) != 1:
                    raise ArtifactError(f"it has {len(inputs)} inputs: one is what can be asked about")
                # A dimension of any size is a symbol.
                shape = tuple(side if isinstance(side, int) else None for side in inputs[0].shape)
                dtype = str(inputs[0].dtype).removeprefix("torch.")
            else:
                network = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()  # type: ignore[no-untyped-call]  # torch's
    except ArtifactError:
        raise
    except Exception as error:  # a torn file can fail anywhere in PyTorch's readers
        raise ArtifactError(f"PyTorch {torch.__version__} does not take it: {error!s:.300}") from error

    def run(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        try:
            with torch.inference_mode():
                found = network(torch.from_numpy(rows))
            several = isinstance(found, tuple | list)
            return [np.asarray(each.numpy()) for each in (found if several else (found,))]
        except Exception as error:  # as above
            raise ArtifactError(f"PyTorch {torch.__version__} cannot run it: {error!s:.300}") from error

    return Graph(run=run, shape=shape, dtype=dtype, outputs=(), said={})
