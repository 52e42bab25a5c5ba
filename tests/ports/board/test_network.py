from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgert.ports.board.files import Files
from edgert.ports.board.network import Network

ROUTE = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT"
WIRELESS = "Inter-| sta-|\n face | tus |\n"
DEV = "Inter-|\n face |\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")


def route(
    name: str, metric: int = 100, destination: str = "00000000", mask: str = "00000000", flags: str = "0003"
) -> str:
    return f"{name} {destination} 0101A8C0 {flags} 0 0 {metric} {mask} 0 0 0"


def network(root: Path, *routes: str, metered: bool | None = None, **files: str) -> Network:
    write(root, {"proc/net/route": "\n".join([ROUTE, *routes]), **files})
    found = Network(Files(str(root)), metered=metered)
    found.scan()
    return found


def carried(received: int, sent: int, name: str = "wlan0") -> str:
    return DEV + f"    lo: 9 9 0 0 0 0 0 0 9 9 0\n {name}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0"


def snmp(sent: int, again: int) -> str:
    return f"Ip: a\nIp: 1\nTcp: InSegs OutSegs RetransSegs\nTcp: 1 {sent} {again}"


@pytest.mark.parametrize(
    ("routes", "interface"),
    [
        ([route("eth0", 200), route("wlan0", 100)], "wlan0"),
        ([route("eth0", 1, mask="00FFFFFF", destination="0001A8C0"), route("wlan0", 900)], "wlan0"),
        ([route("eth0", flags="0002")], ""),
        (["eth0 zz 0 0003 0 0 1 0", "", "eth0"], ""),
        ([], ""),
    ],
)
def test_the_interface_is_that_of_the_best_default_route(tmp_path: Path, routes: list[str], interface: str) -> None:
    assert network(tmp_path, *routes).interface == interface


def test_a_machine_of_ipv6_alone_has_a_default_route_too(tmp_path: Path) -> None:
    zero, gateway = "0" * 32, "fe80" + "0" * 28
    lines = [
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo",
        f"{zero} 00 {zero} 00 {gateway} 00000258 00000001 00000000 00000003 eth1",
    ]
    assert network(tmp_path, **{"proc/net/ipv6_route": "\n".join(lines)}).interface == "eth1"


@pytest.mark.parametrize(
    ("line", "dbm"),
    [
        (" wlan0: 0000   54.  -56.  -256  0 0", -56.0),
        (" wlan0: 0000   54.  -256.  -256  0 0", None),
        (" wlan0: 0000   54.  40.  -256  0 0", None),
        (" wlan0: 0000   54.  x  -256  0 0", None),
        (" wlan0: 0000", None),
        (" wlan1: 0000   54.  -30.  -256  0 0", None),
        ("", None),
    ],
)
def test_the_level_of_the_radio(tmp_path: Path, line: str, dbm: float | None) -> None:
    found = network(tmp_path, route("wlan0"), **{"proc/net/wireless": WIRELESS + line})
    told = found.read(0.0).readings.get("rssi_dbm")
    assert (None if told is None else told.value) == dbm


def test_throughput_is_the_best_of_lately(tmp_path: Path) -> None:
    found = network(tmp_path, route("wlan0"), **{"proc/net/dev": carried(1000, 500)})
    assert found.read(0.0).readings == {}
    write(tmp_path, {"proc/net/dev": carried(3000, 1500)})
    assert found.read(1.0).readings["link_bytes_per_s"].value == 3000.0
    told = found.read(301.0).readings
    assert told["link_now_bytes_per_s"].value == 0.0
    assert told["link_bytes_per_s"].value == pytest.approx(3000 * math.exp(-1))


def test_an_interface_that_came_anew_has_no_rate(tmp_path: Path) -> None:
    found = network(tmp_path, route("wlan0"), **{"proc/net/dev": carried(9000, 0)})
    found.read(0.0)
    write(tmp_path, {"proc/net/dev": carried(10, 0)})
    assert found.read(1.0).readings == {}
    write(tmp_path, {"proc/net/dev": carried(30, 0)})
    assert found.read(2.0).readings["link_now_bytes_per_s"].value == 20.0


def test_loss_is_what_was_sent_again_of_all_that_was_sent(tmp_path: Path) -> None:
    found = network(tmp_path, **{"proc/net/snmp": snmp(1000, 10)})
    assert found.read(0.0).readings == {}
    write(tmp_path, {"proc/net/snmp": snmp(1090, 20)})
    assert found.read(1.0).readings["link_loss_frac"].value == pytest.approx(0.1)


def test_a_loss_is_told_of_enough_segments_and_grows_old(tmp_path: Path) -> None:
    found = network(tmp_path, **{"proc/net/snmp": snmp(0, 0)})
    found.read(0.0)
    write(tmp_path, {"proc/net/snmp": snmp(1, 1)})
    assert found.read(1.0).readings == {}, "half of two segments is no loss of one half"
    write(tmp_path, {"proc/net/snmp": snmp(99, 1)})
    assert found.read(2.0).readings["link_loss_frac"].value == pytest.approx(0.01)
    told = found.read(30.0).readings["link_loss_frac"]
    assert (told.value, told.age_s) == (pytest.approx(0.01), 28.0)
    assert found.read(100.0).readings == {}


@pytest.mark.parametrize(
    "text", ["", "Tcp: OutSegs RetransSegs", "Tcp: OutSegs\nTcp: 1", "Tcp: OutSegs RetransSegs\nTcp: x 1"]
)
def test_counters_that_are_missing_or_start_again_are_no_loss(tmp_path: Path, text: str) -> None:
    found = network(tmp_path, **{"proc/net/snmp": snmp(1000, 100)})
    found.read(0.0)
    write(tmp_path, {"proc/net/snmp": text})
    assert found.read(1.0).readings == {}
    write(tmp_path, {"proc/net/snmp": snmp(10, 0)})
    assert found.read(2.0).readings == {}


@pytest.mark.parametrize(
    ("said", "files", "metered"),
    [
        (None, {}, None),
        (False, {"sys/class/net/wlan0/uevent": "DEVTYPE=wwan"}, False),
        (True, {}, True),
        (None, {"sys/class/net/wlan0/uevent": "INTERFACE=wlan0\nDEVTYPE=wwan"}, True),
        (None, {"sys/class/net/wlan0/ifindex": "3", "run/systemd/netif/leases/3": "ADDRESS=1.2.3.4"}, None),
        (
            None,
            {
                "sys/class/net/wlan0/ifindex": "3",
                "run/systemd/netif/leases/3": "VENDOR_SPECIFIC=" + b"ANDROID_METERED".hex().upper(),
            },
            True,
        ),
    ],
)
def test_metered(tmp_path: Path, said: bool | None, files: dict[str, str], metered: bool | None) -> None:
    found = network(tmp_path, route("wlan0"), metered=said, **files)
    assert found.read(0.0).metered is metered
    assert found.facts()["network"].startswith("wlan0, ")


def test_a_machine_without_a_network_says_so(tmp_path: Path) -> None:
    assert network(tmp_path).facts() == {"network": "no default route"}
