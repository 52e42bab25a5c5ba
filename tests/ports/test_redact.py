from __future__ import annotations

import json

import pytest

from edgert.ports.redact import GONE, address, redacted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@h:8443/a/b.edgert?X-Signature=s&t=1#f", "https://h:8443/a/b.edgert"),
        ("http://a@b@h/", "http://h/"),
        ("", ""),
        ("http://[half/?t=s", GONE),
    ],
)
def test_an_address_says_where_it_leads_and_not_who_may_go_there(url: str, shown: str) -> None:
    assert address(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        'password = "canary-1"',
        "password=canary-1",
        '{"mqtt_password": "canary-1", "n": 1}',
        "Passwd: canary-1, and more",
        "api-key: 'canary-1'",
        "Authorization: Bearer canary-1",
        "x_token=canary-1;",
        "mqtt://dev:canary-1@broker:1883/x",
        "failed: mqtts://canary-1@b",
        "-----BEGIN PRIVATE KEY-----\ncanary-1\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\ncanary-1\n(cut off)",
        "said canary-1 in the middle",
        'secret = "with \\" canary-1"',
        "mqtt://dev:half@canary-1@broker:1883/x",
        'password = """\ncanary-1 and more canary-1\n"""',
        "password = '''canary-1'''",
        '{"why": "{\\"password\\": \\"with space canary-1\\"}"}',
        "Authorization: token canary-1",
    ],
)
def test_what_is_or_looks_like_a_secret_is_gone(text: str) -> None:
    known = ["canary-1"] if "in the middle" in text else []
    assert "canary-1" not in redacted(text, known) and GONE in redacted(text, known)


@pytest.mark.parametrize(
    "text",
    [
        'password_file = "/etc/edgert/password"',
        'key_file = "credential:device-key"',
        "mqtt://broker:1883",
        "tokens 7 of 9",
        '{"keys": 3, "author": "ann"}',
        'keys_file = "/etc/edgert/keys.cbor"',
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text, ["abc", ""]) == text


def test_a_secret_inside_a_longer_one_leaves_nothing_of_it() -> None:
    assert redacted("x longer-canary y", ["canary", "longer-canary"]) == f"x {GONE} y"


def test_a_hostile_text_takes_no_longer_than_its_length() -> None:
    """Each of these has as many beginnings of a name as letters: with unbounded names this would take hours."""
    for text in (
        "a." * 200_000,
        "password" * 20_000,
        "x-token" * 20_000,
        "://" * 100_000,
        "-----BEGIN A-----" * 20_000,
    ):
        assert redacted(text) is not None


def test_a_secret_is_known_in_json_as_well() -> None:
    secret = 'a"b\\ü'
    assert redacted(json.dumps({"said": f"x {secret}"}), [secret]) == json.dumps({"said": f"x {GONE}"})
