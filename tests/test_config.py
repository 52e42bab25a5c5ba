from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgert.config import Address, Config, Govern, broker_address, commented_default, parse
from edgert.errors import ConfigError, UsageError

SHIPPED = sorted((Path(__file__).parents[1] / "firmware_configs").glob("*.toml"))
LEAST = {"device": 'id = "pi-7"', "policy": 'bundle = "/b.edgert"'}
REQUIRED = {"device.id": "pi-7", "policy.bundle": "/b.edgert"}


def text(**sections: str) -> str:
    """The least valid file, with these sections added or, where they exist, lengthened."""
    whole = dict(LEAST)
    for name, body in sections.items():
        whole[name] = f"{whole.get(name, '')}\n{body}"
    return "\n".join(f"[{name}]\n{body}" for name, body in whole.items())


def faults(document: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(document, "edgert.toml")
    lines = str(raised.value).splitlines()
    assert all(line.startswith("edgert.toml: ") for line in lines)
    return [line.removeprefix("edgert.toml: ") for line in lines]


def test_the_least_file_gives_all_defaults() -> None:
    config = parse(text(), "edgert.toml")
    assert config.device.id == "pi-7"
    assert config.govern == Govern()
    assert config.plant.socket == "/run/edgert/policy.sock"


def test_the_socket_follows_the_run_directory_unless_it_is_given() -> None:
    assert parse(text(device='run_dir = "/tmp/x/"'), "f").plant.socket == "/tmp/x/policy.sock"
    assert parse(text(plant='socket = "/tmp/p"'), "f").plant.socket == "/tmp/p"


def test_whole_numbers_serve_where_a_number_is_wanted() -> None:
    deadline_s = parse(text(policy="deadline_s = 1"), "f").policy.deadline_s
    assert (deadline_s, type(deadline_s)) == (1.0, float)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_files_parse(file: Path) -> None:
    assert isinstance(parse(file.read_text(), file.name), Config)


def test_there_are_shipped_files() -> None:
    assert {"generic-aarch64.toml", "sim.toml"} <= {file.name for file in SHIPPED}


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"brokr": ""}, "brokr: unknown section; did you mean 'broker'?"),
        ({"policy": "bundel = 1"}, "policy.bundel: unknown key; did you mean 'bundle'?"),
        ({"policy": "gamma = 0.9"}, "policy.gamma: unknown key; it belongs in [learn]"),
        ({"broker": "keepalive_s = true"}, "broker.keepalive_s: is true; must be a whole number from 5 to 65535"),
        ({"broker": 'keepalive_s = "15"'}, 'broker.keepalive_s: is "15"; must be a whole number from 5 to 65535'),
        ({"learn": "gamma = 1.01"}, "learn.gamma: is 1.01; must be a number from 0 to 1"),
        ({"learn": "gamma = nan"}, "learn.gamma: is nan; must be a number from 0 to 1"),
        ({"learn": "checkpoint_s = 0"}, "learn.checkpoint_s: is 0; must be a number above 0, at most 86400"),
        ({"learn": "enabled = 1"}, "learn.enabled: is 1; must be true or false"),
        (
            {"policy": 'runtime = "torch"'},
            'policy.runtime: is "torch"; must be one of "auto", "onnx", "litert", "tflite", "numpy"',
        ),
        ({"policy": "thresholds = [0.5, 2]"}, "policy.thresholds: is [0.5, 2]; must be a list of numbers from 0 to 1"),
        ({"device": 'fleet = "a/b"'}, 'device.fleet: is "a/b"; must be 1 to 63 letters'),
        ({"device": 'fleet = ""'}, 'device.fleet: is ""; must be 1 to 63 letters'),
        ({"device": 'fleet = "-"'}, 'device.fleet: is "-"; must be 1 to 63 letters'),
        ({"device": 'fleet = "a\\n"'}, 'device.fleet: is "a\\n"; must be 1 to 63 letters'),
        ({"device": 'state_dir = "state"'}, 'device.state_dir: is "state"; must be an absolute path'),
        ({"teacher": 'task = "a+b"'}, 'teacher.task: is "a+b"; must be free of'),
        ({"plant": 'kind = "simulated"'}, "plant.env: missing"),
        ({"plant": 'socket = "p.sock"'}, "plant.socket: is"),
        ({"broker": 'url = "http://h"'}, "broker.url: 'http://h' is not a broker URL"),
        ({"broker": 'ca_file = "/ca"'}, "broker.ca_file: has no effect without TLS"),
        ({"broker": 'password_file = "/p"'}, "broker.username: missing; broker.password_file needs it"),
        ({"govern": "temp_high_c = 90"}, "govern.temp_high_c: is 90.0; must be below govern.temp_critical_c (85.0)"),
        ({"govern": "cpu_low_frac = 0.9"}, "govern.cpu_low_frac: is 0.9; must be below govern.cpu_high_frac"),
        ({"govern": "battery_critical_frac = 0.3"}, "govern.battery_critical_frac: is 0.3; must be below"),
        ({"govern": "stale_s = 1"}, "govern.stale_s: is 1.0; must exceed govern.period_s"),
        ({"govern": "battery_low_frac = 0.99"}, "govern.battery_hysteresis_frac: with battery_low_frac above 1"),
        ({"learn": "ring_transitions = 100"}, "learn.min_transitions: is 500; must be at most"),
        ({"learn": "td_weight = 0\ndistill_weight = 0"}, "learn.td_weight: is 0, and so is"),
        ({"board": 'kind = "fake"', "battery": 'kind = "linux"'}, 'battery.kind: is "linux"; a fake board'),
    ],
)
def test_each_fault_says_where_what_and_what_would_be_right(sections: dict[str, str], expected: str) -> None:
    found = faults(text(**sections))
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize(("size", "ok"), [(107, True), (108, False)])
def test_sockets_fit_their_address(size: int, ok: bool) -> None:
    run_dir = "/" + "r" * (size - 1 - len("/knowledge.sock"))
    document = text(device=f'run_dir = "{run_dir}"')
    if ok:
        parse(document, "f")
    else:
        assert faults(document)[0].startswith("device.run_dir:")


def test_all_faults_come_at_once_in_the_order_of_the_file() -> None:
    found = faults("device = 3\n[policy]\nbundl = 1\n[govern]\nperiod_s = false\n[extra]\n")
    assert [fault.partition(":")[0] for fault in found] == [
        "extra",
        "device",
        "device.id",
        "policy.bundl",
        "policy.bundle",
        "govern.period_s",
    ]


@pytest.mark.parametrize(
    "document", ["[device", "a = 1\na = 2", "[" * 100_000, "a = " + "[" * 100_000, "a = " + "1" * 9999]
)
def test_what_is_not_toml_is_one_fault(document: str) -> None:
    assert faults(document)[0].startswith("not TOML: ")


TOML_VALUE = (
    st.booleans().map(lambda value: str(value).lower())
    | st.integers().map(str)
    | st.floats().map(repr)
    | st.text(max_size=5).map(json.dumps)
    | st.sampled_from(['[[1, "x"]]', "{ a = 1 }", "1979-05-27", "07:32:00", "[]", "''"])
)


@given(
    st.sampled_from(list(typing.get_type_hints(Config))).flatmap(
        lambda name: st.tuples(
            st.just(name), st.sampled_from(typing.get_type_hints(Config)[name].__struct_fields__), TOML_VALUE
        )
    )
)
def test_any_value_anywhere_gives_a_config_or_a_config_error(change: tuple[str, str, str]) -> None:
    section, key, value = change
    other = {"device.id": "", "policy.bundle": ""}.get(f"{section}.{key}", LEAST.get(section, ""))
    document = "\n".join(f"[{name}]\n{body}" for name, body in {**LEAST, section: f"{other}\n{key} = {value}"}.items())
    try:
        assert isinstance(parse(document, "f"), Config)
    except ConfigError as error:
        assert "f: " in str(error)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", Address("broker", 1883, False)),
        ("mqtts://broker", Address("broker", 8883, True)),
        ("mqtt://10.0.0.1:1884/", Address("10.0.0.1", 1884, False)),
        ("mqtt://[::1]:9", Address("::1", 9, False)),
    ],
)
def test_broker_addresses(url: str, expected: Address) -> None:
    assert broker_address(url) == expected


@pytest.mark.parametrize(
    "url", ["", "broker:1883", "mqtt://", "mqtt://h:0", "mqtt://h:70000", "mqtt://h:x", "mqtt://h/t", "mqtt://[::1"]
)
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="write mqtt://"):
        broker_address(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as raised:
        broker_address("mqtt://me:secret@h")
    assert "secret" not in str(raised.value)


def test_the_commented_default_parses_back_to_the_defaults() -> None:
    assert parse(commented_default(REQUIRED), "f") == parse(text(), "f")


def test_the_commented_default_shows_every_key_with_its_default_and_a_comment() -> None:
    written = commented_default(REQUIRED)
    shown = re.sub(r"(?m)^#(?=\w+ = )(?!.*# an example)", "", written)
    assert parse(shown, "f") == parse(text(), "f")
    for name, section in typing.get_type_hints(Config).items():
        body = written.partition(f"\n[{name}]\n")[2].partition("\n\n")[0]
        for key in section.__struct_fields__:
            shown_as = rf"#\[\[{name}\.{key}\]\]$" if key in ("gauges", "regions") else rf"# \w.*\. \[.+\]\n#?{key} = "
            assert re.search(rf"(?m)^{shown_as}", body), f"{name}.{key}"


def test_examples_are_valid_too() -> None:
    examples = re.sub(r"(?m)^#(?=\w+ = )", "", commented_default({**REQUIRED, "broker.url": "mqtts://h"}))
    assert parse(examples, "f").plant.env == "MinAtar/Breakout-v1"


@pytest.mark.parametrize("tricky", ['a"b', "a\\b", "ünï", "tab\t", "#x", "a\nb", "\x7f"])
def test_settings_survive_quoting(tricky: str) -> None:
    written = commented_default({**REQUIRED, "policy.bundle": tricky, "policy.thresholds": (0.5, 0)})
    assert parse(written, "f").policy.bundle == tricky
    assert parse(written, "f").policy.thresholds == (0.5, 0.0)


@pytest.mark.parametrize("settings", [{}, {**REQUIRED, "policy.bundel": 1}, {**REQUIRED, "learn.gamma": 7}])
def test_settings_that_would_not_parse_are_the_callers_fault(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        commented_default(settings)
