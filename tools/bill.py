"""Bills of materials of wheels, in CycloneDX 1.6: what is in a folder, which version, which hash, which licence."""

from __future__ import annotations

import email
import hashlib
import zipfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


class Part(NamedTuple):
    """One wheel, as its own metadata and bytes describe it.

    Attributes:
        name: of the distribution, canonical.
        version: of it.
        licence: an SPDX expression or what the maker calls it; empty where it says nothing.
        spdx: whether `licence` is an expression of SPDX.
        needs: canonical names of the distributions that it asks for, under whatever condition.
        file: name of the file.
        sha256: of the file, hex.
    """

    name: str
    version: str
    licence: str
    spdx: bool
    needs: frozenset[str]
    file: str
    sha256: str

    @classmethod
    def of(cls, wheel: Path) -> Part:
        """Read a wheel."""
        with zipfile.ZipFile(wheel) as archive:
            (path,) = (one for one in archive.namelist() if one.count("/") == 1 and one.endswith(".dist-info/METADATA"))
            said = email.message_from_bytes(archive.read(path))
        expression = said.get("License-Expression")
        classified = [
            line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License")
        ]
        plain = next((text for text in (*classified, said.get("License", "")) if text and len(text) < 80), "")
        needs = frozenset(canonicalize_name(Requirement(line).name) for line in said.get_all("Requires-Dist", []))
        return cls(
            name=canonicalize_name(said["Name"]),
            version=said["Version"],
            licence=expression or plain,
            spdx=expression is not None,
            needs=needs - {"edgert"},  # whose extras name itself
            file=wheel.name,
            sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        )


def bill(parts: Sequence[Part], *, time_s: int) -> str:
    """The bill of some wheels; edgert's is what it is about, the others are what it is made with.

    Args:
        parts: the wheels; one is edgert's.
        time_s: Unix time that it bears, so that the same wheels have the same bill.

    Returns:
        A CycloneDX document, JSON.
    """
    made = {part.name: _component(part) for part in sorted(parts)}
    content = "".join(part.sha256 for part in sorted(parts))
    document = Bom(
        components=[component for name, component in made.items() if name != "edgert"],
        serial_number=uuid5(NAMESPACE_URL, f"edgert:{content}"),
    )
    document.metadata.component = made["edgert"]
    document.metadata.timestamp = datetime.fromtimestamp(time_s, tz=timezone.utc)
    for part in parts:
        document.register_dependency(made[part.name], [made[name] for name in sorted(part.needs) if name in made])
    return JsonV1Dot6(document).output_as_string(indent=1) + "\n"


def _component(part: Part) -> Component:
    licences = []
    if part.licence:
        licences = [LicenseExpression(part.licence) if part.spdx else DisjunctiveLicense(name=part.licence)]
    return Component(
        name=part.name,
        version=part.version,
        type=ComponentType.APPLICATION if part.name == "edgert" else ComponentType.LIBRARY,
        bom_ref=f"{part.name}@{part.version}",
        purl=PackageURL("pypi", None, part.name, part.version, {"file_name": part.file}),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)],
        licenses=licences,
    )
