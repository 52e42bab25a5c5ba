from __future__ import annotations

import pytest

from edgert.config import parse
from edgert.errors import ConfigError

DEVICE = """
[device]
id = "a"
[policy]
bundle = "/x.edgert"
[offload]
"""


def offload(text: str):
    return parse(DEVICE + text, "test").offload


def test_nothing_is_offloaded_unless_it_is_asked_for():
    found = offload("")
    assert not found.enabled and found.variants == ()
    assert found.socket == "/run/edgert/infer.sock"


def test_variants_are_read_in_order_and_are_local_unless_said_otherwise():
    found = offload(
        'enabled = true\n[[offload.variants]]\nbundle = "a"\n[[offload.variants]]\nbundle = "b"\nlocal = false'
    )
    assert [(each.bundle, each.local) for each in found.variants] == [("a", True), ("b", False)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("enabled = true", "none is local"),
        ('enabled = true\n[[offload.variants]]\nbundle = "b"\nlocal = false', "none is local"),
        ('socket = "infer.sock"', "absolute path"),
        ('socket = "/' + "x" * 120 + '"', "offload.socket"),
        ("accuracy_frac = 1.5", "offload.accuracy_frac"),
        ("deadline_s = 0.0", "offload.deadline_s"),
        ('minimise = "money"', "offload.minimise"),
        ("core_w = 0", "offload.core_w"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(text, said):
    with pytest.raises(ConfigError, match=said):
        offload(text)
