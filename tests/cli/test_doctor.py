from __future__ import annotations

import datetime
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgert.cli import doctor
from edgert.config import commented_default
from edgert.ports import broker
from edgert.ports.runtime import PACKAGES


def config_file(folder: Path, **settings: object) -> Path:
    path = folder / "edgert.toml"
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    path.write_text(
        commented_default(
            {
                "device.id": "arm-7",
                "device.run_dir": str(folder / "r"),
                "device.state_dir": str(folder / "s"),
                "policy.bundle": str(folder / "none.edgert"),
                "board.kind": "fake",
                "broker.url": f"mqtt://127.0.0.1:{broker.free_port()}",
                **dotted,
            }
        )
    )
    return path


def found(path: Path) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(path)}


def test_a_broken_configuration_is_told_whole_and_ends_with_78(tmp_path: Path) -> None:
    path = tmp_path / "edgert.toml"
    path.write_text('[device]\nid = "a/b"\n[govern]\nperiod = 1\n')
    command = [sys.executable, "-m", "edgert", "doctor", "--config", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 78, ended.stderr
    for fault in ("device.id", "policy.bundle", "govern.period", "did you mean 'period_s'?"):
        assert fault in ended.stdout
    assert "\x1b" not in ended.stdout


def test_as_json_every_finding_has_a_verdict_and_what_fails_says_how_to_mend_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgert", "doctor", "--json", "--config", str(config_file(tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    by_name = {each["name"]: each for each in told["findings"]}
    assert told["ok"] is False
    assert {"versions", "kernels", "clock", "configuration", "bundle", "state_dir", "run_dir", "instance", "sensors",
            "plant", "broker", "trust"} <= by_name.keys()  # fmt: skip
    assert by_name["bundle"]["verdict"] == by_name["broker"]["verdict"] == "fail"
    assert all(each["mend"] for each in told["findings"] if each["verdict"] != "ok")
    assert all(each["verdict"] in ("ok", "warn", "fail") for each in told["findings"])


def test_a_good_broker_is_seen_to_be_good(tmp_path: Path, mosquitto: Any) -> None:
    assert found(config_file(tmp_path, broker__url=mosquitto.url))["broker"].verdict == "ok"


def test_a_broker_that_wants_a_password_is_not_judged(tmp_path: Path) -> None:
    finding = found(config_file(tmp_path, broker__username="u"))["broker"]
    assert finding.verdict == "warn"
    assert "username" in finding.found


def test_another_instance_is_told_by_its_pid(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    (tmp_path / "r").mkdir()
    assert found(path)["instance"].found == "none runs"
    with (tmp_path / "r" / "supervisor.lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "4711" in found(path)["instance"].found


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o500)
    finding = found(config_file(tmp_path))["state_dir"]
    assert finding.verdict == "fail"


def test_a_file_where_a_folder_should_be_fails(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    assert found(config_file(tmp_path, device__state_dir=str(tmp_path / "s" / "deeper")))["state_dir"].verdict == "fail"


def test_a_runtime_that_crashes_its_process_is_a_finding_and_not_the_end() -> None:
    ended_well, said = doctor._child("import os; os.abort()")
    assert (ended_well, said) == (False, "crashed the process with signal 6")
    assert doctor._child("import sys; sys.exit('no such thing')") == (False, "no such thing")
    assert doctor._child("import sys; print(sys.argv[1])", "x") == (True, "x")


def test_a_tflite_runtime_is_told_of_only_where_it_is_asked_for_or_the_bundle_has_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = str(Path(__file__).parents[2] / "models" / "breakout.edgert")
    monkeypatch.setattr(doctor, "find_spec", lambda name: name == "numpy")
    asked = found(config_file(tmp_path, policy__bundle=bundle, policy__runtime="litert"))
    assert asked["runtime litert"].verdict == "fail"
    assert "pip install 'edgert[litert]'" in asked["runtime litert"].mend
    assert "will act" not in asked["runtime numpy"].found
    assert "runtime tflite" not in asked
    auto = found(config_file(tmp_path, policy__bundle=bundle))
    assert "runtime litert" not in auto
    assert auto["runtime onnx"].verdict == "warn"
    assert "will act" in auto["runtime numpy"].found


def test_the_file_system_of_proc_is_proc() -> None:
    assert doctor.file_system(Path("/proc/self")) == "proc"


def test_it_knows_the_runtimes_in_the_order_in_which_they_are_tried() -> None:
    assert list(doctor._RUNTIMES.items()) == list(PACKAGES.items())


def test_keys_and_certificates_are_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="edgert[trust] is not installed: there is no certificate to look at")
    from edgert.ports import ca

    assert "no keys" in found(config_file(tmp_path))["trust"].found
    now = datetime.datetime.now(datetime.timezone.utc)
    made = ca.new_authority(tmp_path / "ca", "f", ["h"], now=now)

    def judged(days: int, at: datetime.datetime, mode: int = 0o600, **more: object) -> doctor.Finding:
        name = f"d{days}-{mode}-{len(more)}"
        cert, key = made.issue("device", name, days=days, now=at)
        key.chmod(mode)
        files = {"broker__url": "mqtts://127.0.0.1:1", "broker__cert_file": str(cert), "broker__key_file": str(key)}
        return found(config_file(tmp_path, **files, **more))["trust"]

    assert judged(397, now).verdict == "ok"
    assert judged(20, now).verdict == "warn"
    assert judged(1, now - datetime.timedelta(days=3)).verdict == "fail"
    assert "chmod 600" in judged(397, now, 0o644).found
    missing = judged(397, now, trust__keys_file=str(tmp_path / "none"))
    assert missing.verdict == "fail" and "edgert key new" in missing.found


def test_the_variants_of_inferences_are_looked_at(tmp_path: Path) -> None:
    models = Path(__file__).parents[2] / "models"
    path = config_file(tmp_path)
    names = ("digits-0.5-full-int8.edgert", "none.edgert")
    variants = "".join(f'[[offload.variants]]\nbundle = "{models / name}"\n' for name in names)
    path.write_text(path.read_text().replace("[offload]\n", "[offload]\nenabled = true\n") + variants)
    said = found(path)
    assert said["variant 1"].verdict == "ok" and "top-1 96.8%" in said["variant 1"].found
    assert said["variant 2"].verdict == "fail" and "number 2" in said["variant 2"].mend
