"""The turns of a service, with a link that is only said to be well."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest

from edgert.programs import replica


class After:
    """True once asked so often."""

    def __init__(self, turns: int) -> None:
        self.left = turns

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(
    ("healthy", "turns", "code", "ended"),
    [([True, True, True], 3, 0, [call.drain(), call.report(None, None)]), ([True, False], 9, 1, [])],
)
def test_it_takes_turns_until_it_is_told_or_its_link_stands_still(healthy, turns, code, ended) -> None:
    service, mqtt = Mock(), Mock()
    mqtt.healthy.side_effect = healthy
    told = replica.serve(
        service,
        mqtt,
        ["a", "b"],
        stopping=After(turns),
        report_every_s=1e9,
        status_file=None,
        exposition=None,
    )
    assert told == code
    assert mqtt.mock_calls[:2] == [call.subscribe([("a", 1), ("b", 1)]), call.start()]
    took = [each for each in service.mock_calls if each == call.turn(0.25)]
    assert len(took) == len(healthy)
    # One report at the first turn, and one behind the drain.
    rest = [each for each in service.mock_calls if each != call.turn(0.25)]
    assert rest == [call.report(None, None), *ended]
