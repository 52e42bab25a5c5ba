"""A fleet in the words of Home Assistant: which sensors a device has, and what they say. JSON, all of it retained.

Home Assistant finds devices by what lies under its discovery prefix (MQTT integration, "MQTT discovery": one topic
`<prefix>/<component>/<node>/<object>/config` a sensor). It reads JSON and no CBOR, so its values have topics of
their own, outside of `edgert/v1`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

PREFIX = "homeassistant"
EXPORTER = "-"
"""In the place of a device: whoever passes all this on. No device has this name."""
ONLINE, OFFLINE = b"online", b"offline"


class Sensor(NamedTuple):
    """How a figure is shown.

    Attributes:
        name: for people.
        unit: as Home Assistant writes it; empty for text.
        device_class: which of its kinds it is; empty for none.
        scale: a share becomes per cent.
        state_class: how it is summed up over time.
    """

    name: str
    unit: str = ""
    device_class: str = ""
    scale: float = 1.0
    state_class: str = "measurement"


SENSORS: Mapping[str, Sensor] = {
    "state": Sensor("State"),
    "policy": Sensor("Policy"),
    "battery_frac": Sensor("Battery", "%", "battery", 100.0),
    "temp_c": Sensor("Temperature", "°C", "temperature"),
    "load_frac": Sensor("Load", "%", "", 100.0),
    "power_w": Sensor("Power", "W", "power"),
    "link_rtt_s": Sensor("Round trip", "s", "duration"),
    "jobs": Sensor("Open jobs", "jobs"),
    "missed": Sensor("Missed deadlines", "ticks", state_class="total_increasing"),
}
"""Names of `roster.row` -> how they are shown."""


def topic(fleet: str, device: str, kind: str) -> str:
    """Where the values of a device are.

    Args:
        fleet: whose.
        device: of the fleet, or `EXPORTER`.
        kind: `state` or `availability`.

    Returns:
        The topic.

    Raises:
        nothing.
    Source:
        ours.
    """
    return f"edgert-home/{fleet}/{device}/{kind}"


def discovery(fleet: str, row: Mapping[str, object], prefix: str = PREFIX) -> dict[str, bytes]:
    """What makes Home Assistant show a device.

    Args:
        fleet: whose.
        row: of `roster.row`.
        prefix: that Home Assistant looks under.

    Returns:
        Topic -> payload, to be retained; sensors that say nothing on this device are left out.

    Raises:
        nothing.
    Source:
        Home Assistant, MQTT integration, MQTT discovery and MQTT sensor; "Sensor entity" for the state classes.
    """
    device = str(row["device"])
    node = f"edgert-{fleet}-{device}".replace(".", "_")  # a node is letters, digits, `_` and `-`
    about = {
        "identifiers": [f"edgert/{fleet}/{device}"],
        "name": device,
        "manufacturer": "edgert",
        "model": str(row["task"]) or "device",
        "sw_version": str(row["version"]),
    }
    found = {}
    for name, sensor in SENSORS.items():
        if row[name] is None:
            continue
        config: dict[str, object] = {
            "name": sensor.name,
            "unique_id": f"{node}-{name}",
            "state_topic": topic(fleet, device, "state"),
            "value_template": "{{ value_json." + name + " }}",
            "availability": [{"topic": topic(fleet, each, "availability")} for each in (device, EXPORTER)],
            "availability_mode": "all",
            "device": about,
            "origin": {"name": "edgert"},
        }
        if sensor.unit:
            config |= {"unit_of_measurement": sensor.unit, "state_class": sensor.state_class}
        if sensor.device_class:
            config["device_class"] = sensor.device_class
        found[f"{prefix}/sensor/{node}/{name}/config"] = json.dumps(config).encode()
    return found


def values(fleet: str, row: Mapping[str, object]) -> dict[str, bytes]:
    """What the sensors of a device say.

    Args:
        fleet: whose.
        row: of `roster.row`.

    Returns:
        Topic -> payload, to be retained.

    Raises:
        nothing.
    Source:
        Home Assistant, MQTT sensor: `value_template`, and `availability` with `online` and `offline`.
    """
    device = str(row["device"])
    said: dict[str, object] = {}
    for name, sensor in SENSORS.items():
        value = row[name]
        if isinstance(value, int | float):
            said[name] = round(sensor.scale * value, 4)
        elif value is not None:
            said[name] = value
    there = ONLINE if row["state"] == "online" else OFFLINE
    return {topic(fleet, device, "state"): json.dumps(said).encode(), topic(fleet, device, "availability"): there}
