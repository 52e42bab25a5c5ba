from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgert import bus, config
from edgert.ports import children as ports
from edgert.ports.children import Children
from edgert.ports.process import Layout


class House:
    def __init__(self, tmp_path: Path) -> None:
        self.selector = selectors.DefaultSelector()
        self.told: list[bus.Spawned | bus.Exited] = []
        device = config.Device(id="d", state_dir=str(tmp_path / "state"), run_dir=str(tmp_path / "run"))
        layout = Layout(config.Config(device=device, policy=config.Policy(bundle="p")))
        self.children = Children(tmp_path / "no.toml", layout, config.Plant(), self.selector, self.told.append)

    def wait(self) -> None:
        for key, _ in self.selector.select(0.1):
            assert isinstance(key.fileobj, int)
            self.children.bury(key.fileobj)

    def until(self, kind: type[bus.Spawned] | type[bus.Exited]) -> bus.Spawned | bus.Exited:
        for _ in range(300):
            for each in self.told:
                if isinstance(each, kind):
                    return each
            self.wait()
        raise AssertionError(f"no {kind.__name__} in {self.told}")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.children.stop((), made.wait)
    made.selector.close()


def sleeper(stubborn: bool = False) -> subprocess.Popen[bytes]:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    code = f"import signal,sys,time;{ignore}print(flush=True);time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    process.stdout.close()
    return process


def test_the_code_of_one_that_cannot_work_reaches_the_brain(house: House) -> None:
    assert house.children.start("trainer") == ""
    spawned, exited = house.until(bus.Spawned), house.until(bus.Exited)
    assert isinstance(exited, bus.Exited) and (exited.role, exited.pid) == ("trainer", spawned.pid)
    assert exited.code == 78  # there is no configuration


def test_one_that_cannot_be_started_is_told_with_its_reason(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.sys, "executable", "/nowhere/python")
    assert "No such file" in house.children.start("actor")
    assert house.told == [bus.Spawned("actor", 0), bus.Exited("actor", 0, None)]


def test_the_end_of_an_adopted_one_is_told_without_a_code(house: House) -> None:
    with sleeper() as process:
        house.children.watch("actor", process.pid)
        house.children.kill(process.pid)
        assert house.until(bus.Exited) == bus.Exited("actor", process.pid, None)
    house.told.clear()
    house.children.watch("actor", process.pid)
    assert house.told == [bus.Exited("actor", process.pid, None)]  # gone before anybody could watch it


def test_who_does_not_hear_is_terminated_and_who_will_not_go_is_killed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "STOP_S", 0.3)
    monkeypatch.setattr(ports, "TERM_S", 0.3)
    starting, stubborn, world = sleeper(), sleeper(stubborn=True), sleeper()
    for role, process in (("trainer", starting), ("actor", stubborn), ("world", world)):
        house.children.watch(role, process.pid)  # type: ignore[arg-type]  # literals of the tuple
    house.children.stop({"actor"}, house.wait)
    assert {each.role for each in house.told} == {"actor", "trainer", "world"}
    assert next(each.role for each in house.told) == "trainer"  # the world stays while the actor may need it
    codes = [process.wait() for process in (starting, stubborn, world)]
    assert codes == [-signal.SIGTERM, -signal.SIGKILL, -signal.SIGTERM]
    assert all(not Path(f"/proc/{process.pid}").exists() for process in (starting, stubborn, world))


def test_how_long_a_process_waited_for_a_processor() -> None:
    assert ports.waited_s(2**22 + 1) is None
    if Path("/proc/self/schedstat").exists():
        before = ports.waited_s(os.getpid())
        after = ports.waited_s(os.getpid())
        assert before is not None and after is not None and 0.0 <= before <= after
