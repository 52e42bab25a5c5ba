from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

for package in ("ziglang", "auditwheel", "abi3audit", "elftools", "cyclonedx"):
    pytest.importorskip(package, reason=f"{package} is not installed (pip install -e '.[release]'): no wheel was built")

from edgert.errors import ArtifactError  # noqa: E402  after the skips above
from tools import bill, wheels  # noqa: E402

X86 = b"\x7fELF\x02\x01\x01"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One state of the sources, whoever edits the checkout meanwhile."""
    made = tmp_path_factory.mktemp("source")
    wheels.stage(made)
    return made


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build("aarch64", tmp_path_factory.mktemp("wheel"), source=source)


def test_a_wheel_for_boards_is_made_here_and_says_what_it_is_for(wheel: Path) -> None:
    assert wheel.name.endswith("-cp310-abi3-manylinux2014_aarch64.manylinux_2_17_aarch64.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        found = wheels.examine(archive.read("edgert/kernels/_kernels.abi3.so"))
    assert found.machine == "EM_AARCH64" and found.glibc <= (2, 17)
    assert found.exported == {"PyInit__kernels"} and found.needed <= wheels.LIBRARIES
    assert found.alignment_bytes == 65_536
    assert any(name.endswith("share/edgert/firmware_configs/raspberry-pi-4.toml") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "tools/"))]


def test_two_builds_give_the_same_bytes(wheel: Path, source: Path, tmp_path: Path) -> None:
    assert wheels.digest(wheels.build("aarch64", tmp_path, source=source)) == wheels.digest(wheel)


def test_a_wheel_for_another_machine_is_refused_by_name(wheel: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)lacks manylinux_2_17_x86_64.*is for EM_AARCH64"):
        wheels.check(wheel, "x86_64")


@pytest.mark.parametrize("missing", ["edgert/kernels/_codec.abi3.so", "edgert/kernels/_kernels.abi3.so"])
def test_a_wheel_without_a_kernel_is_refused(wheel: Path, tmp_path: Path, missing: str) -> None:
    made = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            if name != missing:
                new.writestr(name, old.read(name))
    with pytest.raises(ArtifactError, match="its libraries are"):
        wheels.check(made, "aarch64")


def test_a_wheel_under_another_name_is_refused(wheel: Path, tmp_path: Path) -> None:
    made = tmp_path / wheel.name.replace(
        "cp310-abi3-manylinux2014_aarch64.manylinux_2_17", "cp311-cp311-manylinux_2_36"
    )
    shutil.copy(wheel, made)
    with pytest.raises(ArtifactError, match="another version, Python or ABI"):
        wheels.check(made, "aarch64")


def test_what_is_no_elf_file_is_refused() -> None:
    with pytest.raises(ArtifactError, match="no ELF file"):
        wheels.examine(b"nonsense")


def test_headers_for_32_bits_say_so(tmp_path: Path) -> None:
    text = (wheels.headers(tmp_path / "inc", 32) / "pyconfig.h").read_text()
    assert "#define SIZEOF_VOID_P 4" in text and "#define SIZEOF_LONG 4" in text and "SIZEOF_LONG_LONG 8" in text
    assert "#define SIZEOF_VOID_P 8" in (wheels.headers(tmp_path / "inc64", 64) / "pyconfig.h").read_text()


def test_the_bill_of_materials_is_one_and_always_the_same(wheel: Path) -> None:
    part = bill.Part.of(wheel)
    assert (part.name, part.licence, part.spdx) == ("edgert", "Apache-2.0", True)
    assert {"numpy", "cbor2", "onnxruntime"} <= part.needs and "edgert" not in part.needs
    other = bill.Part("numpy", "2.0", "BSD License", False, frozenset(), "numpy-2.0-any.whl", "0" * 64)
    text = bill.bill([part, other], time_s=1_767_225_600)
    assert text == bill.bill([other, part], time_s=1_767_225_600)
    found = json.loads(text)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["hashes"][0]["content"] == wheels.digest(wheel)
    assert [each["name"] for each in found["components"]] == ["numpy"]
    assert {"ref": f"edgert@{part.version}", "dependsOn": ["numpy@2.0"]} in found["dependencies"]
