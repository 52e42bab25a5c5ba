from __future__ import annotations

import json

from edgert.fleet import homeassistant, roster
from edgert.fleet.presence import Sighting
from edgert.fleet.roster import Entry

ROW = roster.row(
    "arm.7",
    Entry(
        sighting=Sighting(session="s", online=True, version="1", task="drone"),
        status={"board": {"temp_c": 41.0, "battery_frac": 0.5}},
    ),
    (),
    0.0,
)


def test_each_sensor_is_found_under_a_topic_of_its_own_and_says_where_its_value_is() -> None:
    found = homeassistant.discovery("f", ROW, "ha")
    assert all(name.startswith("ha/sensor/edgert-f-arm_7/") and name.endswith("/config") for name in found)
    config = json.loads(found["ha/sensor/edgert-f-arm_7/temp_c/config"])
    assert config["device_class"] == "temperature" and config["unit_of_measurement"] == "°C"
    said = homeassistant.values("f", ROW)
    device, exporter = (each["topic"] for each in config["availability"])
    assert device in said and config["availability_mode"] == "all"
    assert exporter == "edgert-home/f/-/availability", "an exporter that has died can say nothing of the devices"
    assert json.loads(said[config["state_topic"]])["temp_c"] == 41.0
    assert config["value_template"] == "{{ value_json.temp_c }}"
    ids = {json.loads(payload)["unique_id"] for payload in found.values()}
    assert len(ids) == len(found)
    assert len({json.dumps(json.loads(payload)["device"]) for payload in found.values()}) == 1


def test_what_only_grows_is_told_from_what_goes_up_and_down() -> None:
    found = homeassistant.discovery("f", {**ROW, "missed": 3.0}, "ha")
    classes = {name.split("/")[3]: json.loads(payload).get("state_class") for name, payload in found.items()}
    assert classes["missed"] == "total_increasing" and classes["temp_c"] == "measurement" and classes["state"] is None


def test_what_a_device_does_not_say_is_no_sensor() -> None:
    found = homeassistant.discovery("f", ROW)
    assert "homeassistant/sensor/edgert-f-arm_7/power_w/config" not in found
    assert len(found) < len(homeassistant.SENSORS)


def test_shares_are_per_cent_and_the_device_is_there() -> None:
    said = homeassistant.values("f", ROW)
    assert json.loads(said["edgert-home/f/arm.7/state"])["battery_frac"] == 50.0
    assert said["edgert-home/f/arm.7/availability"] == b"online"
    assert homeassistant.values("f", {**ROW, "state": "silent"})["edgert-home/f/arm.7/availability"] == b"offline"


def test_every_sensor_is_a_figure_that_there_is() -> None:
    assert set(homeassistant.SENSORS) <= set(ROW)
