from __future__ import annotations

from edgert.govern.energy import Supply, Use
from edgert.govern.estimate import Mean
from edgert.govern.state import Setup, State, drawn_w
from edgert.values import Choice, Prices

OWN = Choice(max_exit=0, ops_frac=1.0, shares=(1.0,))
PRICES = Prices(rate_hz=10.0, exits_s=(0.01,), own=OWN)


def test_what_is_drawn_is_judged_by_the_prices_in_force_and_the_ticks_that_were_counted() -> None:
    setup = Setup(prices=PRICES, supply=Supply(cores=1, idle_w=1.0, busy_w=10.0))
    use = Use(overhead_s=Mean(0.0), factor=Mean(1.0))
    assert drawn_w(State(use=use), setup, OWN, train_steps_hz=0.0, long=False)[0] == 1.0 + 10.0 * 0.1
    counted = State(use=Use(overhead_s=Mean(0.0), factor=Mean(1.0), ticks_hz=Mean(20.0)))
    assert drawn_w(counted, setup, OWN, train_steps_hz=0.0, long=False)[0] == 1.0 + 10.0 * 0.2


def test_nobody_reported_nobody_holds_anything() -> None:
    assert State().held_bytes == 0
