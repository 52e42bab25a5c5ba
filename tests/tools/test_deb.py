from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("cyclonedx", reason="cyclonedx-python-lib is not installed (pip install -e '.[release]')")

from edgert.cli import VERBS
from tools import deb, wheels

SYSTEMD = wheels.HOUSE / "systemd"


def test_the_manual_page_has_every_verb_and_is_right_roff(tmp_path: Path) -> None:
    text = deb.manual()
    assert [name for name in VERBS if f"\\fB{name}\\fR" not in text] == []
    if shutil.which("man") is None:
        pytest.skip("man is not installed: the page was not set")
    page = tmp_path / "edgert.1"
    page.write_text(text)
    told = subprocess.run(["man", "--warnings", "-l", str(page)], capture_output=True, text=True, check=False)
    assert told.returncode == 0 and told.stderr == ""


def test_every_unit_of_the_repository_is_in_the_package_where_systemd_looks() -> None:
    units = {path.name for path in SYSTEMD.glob("*.service")}
    assert units <= deb.INSTALLED.keys()
    assert {deb.INSTALLED[name] for name in units} == {deb.UNITS}
    for path in (*SYSTEMD.glob("edgert.*"), SYSTEMD / "edgert-sensors.conf"):
        assert path.name in deb.INSTALLED


@pytest.mark.parametrize("script", [deb.PREINST, deb.POSTINST, deb.PRERM, deb.POSTRM])
def test_every_maintainer_script_is_right_shell(script: str, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(script)
    told = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    assert script.startswith("#!/bin/sh\nset -e\n")


def test_state_and_configuration_go_with_purge_alone() -> None:
    removed, purged = deb.POSTRM.split('if [ "$1" = purge ]; then', 1)
    assert "/var/lib" not in removed and "/etc" not in removed and "/var/lib" not in deb.PRERM
    assert "/var/lib/private/edgert" in purged and "/etc/edgert" in purged


def test_control_names_the_python_that_the_environment_is_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    deb.control(tmp_path, python="3.11", arch="arm64")
    text = (tmp_path / "DEBIAN/control").read_text()
    assert "Architecture: arm64\n" in text and "python3 (>= 3.11~), python3 (<< 3.12~)" in text
    assert re.search(r"^Installed-Size: 5$", text, re.M)
    assert (tmp_path / "DEBIAN/md5sums").read_text().endswith("  file\n")
    assert (tmp_path / "DEBIAN/postinst").stat().st_mode & 0o777 == 0o755
