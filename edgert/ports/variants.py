"""Bundles on disk as models: those of inference networks, and policies' whole networks beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgert import bundle, modelfile, wire
from edgert.errors import ArtifactError, ConfigError, UsageError
from edgert.fleet import trust
from edgert.modelfile import ModelManifest
from edgert.ports.runtime import Kind
from edgert.ports.runtime.model import Model, open_model, open_policy, policy_as_model
from edgert.ports.signing import verify


class Variant(NamedTuple):
    """A model that is known, and not loaded yet.

    Attributes:
        id: `modelfile.model_id` of it.
        manifest: what it says of itself.
        open: load it and hold it against its golden answers. Raises ConfigError or ArtifactError, with the file's name.
            Blocks: as long as that takes.
    """

    id: str
    manifest: ModelManifest
    open: Callable[[], Model]


def read_variant(
    path: Path, kind: Kind = "auto", keys: wire.KeyList | None = None, *, required: bool = False
) -> Variant:
    """Read a bundle, and see who vouches for it.

    Args:
        path: of a model bundle, or of a policy's.
        kind: what is to run it.
        keys: who may vouch for it; None where nobody was named.
        required: refuse one that nobody vouches for.

    Raises:
        ConfigError: no such file, or nobody who is trusted vouches for it.
        ArtifactError: it is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a model is a .edgert bundle") from error
    try:
        model = modelfile.read(data) if modelfile.is_model(data) else None
        found = model or bundle.read(data)
        manifest = model.manifest if model is not None else policy_as_model(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    told = trust.judge_bundle(
        found, keys, required=required, robot=None, board=None, floor=0, now_s=time.time(), verify=verify
    )
    # What answers a question moves no robot: terms that name robots or boards are about acting.
    if isinstance(told, trust.Refusal) and told.code not in ("wrong-robot", "wrong-board"):
        raise ConfigError(f"{path}: {told.code}: {told.why}")

    def opened() -> Model:
        try:
            return open_policy(data, kind) if model is None else open_model(model, kind)
        except UsageError as error:
            raise ConfigError(f"{path}: {error}") from error
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    return Variant(modelfile.model_id(found.encoded), manifest, opened)
