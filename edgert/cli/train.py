"""`edgert train`: what the training on this device is doing, and a person's word about it."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgert.cli import ERROR, NOTHING_TO_DO, OK, RETRY_LATER
from edgert.cli.watch import PATIENCE_S, Asker, nobody
from edgert.ports import ipc, screen
from edgert.ports.process import Layout, load_config
from edgert.values import TrainOrder, TrainReply

NOW_S = 60.0
"""Rounding, judging and packing one network takes seconds on a slow board, and a report comes once a second."""
POLL_S = 0.5
CODES: dict[str | None, int] = {
    "done": OK,
    "nothing-to-do": NOTHING_TO_DO,
    "too-early": RETRY_LATER,
    "candidate-not-made": ERROR,
    "checkpoint-not-written": ERROR,
}
"""`values.TrainCode` -> exit code. Another name, or none, is of a trainer that is not of this edgert: ERROR."""


def main(argv: list[str]) -> int:
    """Show the training, pause it, let it go on, or ask for a candidate and a checkpoint at once.

    Returns:
        0; 1 where this device does not learn, or the candidate could not be made or the checkpoint not be written; 2
        when there was nothing to do, as it was so already or nothing was learned; 75 when no supervisor runs, the
        trainer does not answer, or there is too little yet to judge a candidate by.

    Raises:
        ConfigError: the configuration cannot be read.
        LinkError: we may not connect to the supervisor's socket.
    """
    args = _parse(argv)
    layout = Layout(load_config(args.config))
    with contextlib.closing(Asker(layout.control)) as asker:
        return _run(args, layout, asker)


def _run(args: argparse.Namespace, layout: Layout, asker: Asker) -> int:
    document = asker.ask()
    if document is None:
        return nobody(layout, args.config)
    if args.verb == "status":
        told = summary(document)
        print(json.dumps(told, indent=2) if args.json else _text(told))
        return OK
    order = TrainOrder(secrets.token_hex(8), args.verb)
    why = _say(layout.control, order)
    if why is None:
        return nobody(layout, args.config)
    if why:
        return _done(args, order, why, ERROR if "trainer" not in document["children"] else RETRY_LATER)
    if args.verb != "now":
        already = bool(document["training"]["paused"]) == (args.verb == "pause")
        said = {"pause": "paused, also after a restart", "resume": "going on"}[args.verb]
        return _done(args, order, said, NOTHING_TO_DO if already else OK)
    deadline_s = time.monotonic() + NOW_S
    while time.monotonic() < deadline_s:
        trainer = (asker.ask() or {}).get("trainer") or {}
        if trainer.get("order") == order.id:
            named = trainer.get("order_code")
            return _done(args, order, str(trainer["order_told"]), CODES.get(named, ERROR), named)
        time.sleep(POLL_S)
    return _done(args, order, f"the trainer has not answered within {NOW_S:g} s", RETRY_LATER)


def summary(document: Mapping[str, Any]) -> dict[str, Any]:
    """What is worth knowing of the training, from a status document.

    Args:
        document: of `status.document`.

    Returns:
        Plain figures; None is unknown.
    """
    trainer, training, policy = document.get("trainer") or {}, document["training"], document["policy"]
    replay, taught = trainer.get("replay"), trainer.get("taught")
    figures = {name: trainer.get(name) for name in ("steps", "loss", "steps_hz", "replay", "replay_max", "taught")}
    return {
        "training": not training["idle_because"],
        "idle_because": training["idle_because"],
        "paused": training["paused"],
        **figures,
        "taught_frac": taught / replay if replay and taught is not None else None,
        **{name: trainer.get(name) for name in ("trust", "candidates", "accepted", "rolled_back", "checkpoint")},
        "checkpoint_age_s": trainer.get("checkpoint_age_s"),
        "generation": policy["generation"],
        "trial": policy["trial"],
        "return_mean": policy["return_mean"],
        "returns": policy["returns"],
        "refused": policy["refused"],
    }


def _text(told: Mapping[str, Any]) -> str:
    def count(name: str) -> str:
        return f"{told[name] or 0:,}"

    state = screen.paint("learning", "green") if told["training"] else screen.paint("not learning", "yellow")
    rate, loss = screen.number(told["steps_hz"], "/s"), screen.number(told["loss"], digits=4)
    held, share = f"{count('replay')} of {count('replay_max')}", screen.percent(told["taught_frac"])
    trust = "no teacher" if told["trust"] is None else f"{told['trust']:.2f} of the teacher's full weight"
    networks = f"{count('candidates')} candidates, {count('accepted')} accepted, {count('rolled_back')} rolled back"
    rows = [
        ("state", state + (f": {told['idle_because']}" if told["idle_because"] else "")),
        ("steps", f"{count('steps')}, {rate}, loss {loss}"),
        ("replay", f"{held} transitions, {share} taught"),
        ("trust", trust),
        ("networks", networks),
        ("acting", _acting(told)),
        ("checkpoint", f"{count('checkpoint')}, {screen.number(told['checkpoint_age_s'], ' s', 0)} old"),
    ]
    return "\n".join(f"  {name:<10} {figures}" for name, figures in rows)


def _acting(told: Mapping[str, Any]) -> str:
    own = (
        f"generation {told['generation']}, return {screen.number(told['return_mean'])} over {told['returns']} episodes"
    )
    trial = told["trial"]
    if trial is None:
        return own
    against = f"generation {trial['against']}, {screen.number(trial['return_mean'])} over {trial['returns']}"
    return f"{own}; on trial against {against}"


def _say(control: Path, order: TrainOrder) -> str | None:
    """Why the supervisor finds it of no use; None when there is no supervisor.

    Blocks: up to `PATIENCE_S`.
    """
    channel = ipc.connect(control)
    if channel is None:
        return None
    try:
        channel.send(order)
        deadline_s = time.monotonic() + PATIENCE_S
        while not channel.closed and (left_s := deadline_s - time.monotonic()) > 0:
            channel.wait(left_s)
            for told in channel.receive():
                if isinstance(told, TrainReply) and told.id == order.id:
                    return told.why
    finally:
        channel.close()
    return None


def _done(args: argparse.Namespace, order: TrainOrder, said: str, code: int, named: str | None = None) -> int:
    if args.json:
        told = {"ok": code in (OK, NOTHING_TO_DO), "code": named, "told": said}
        print(json.dumps({"id": order.id, "verb": order.verb, **told}))
    elif code in (OK, NOTHING_TO_DO):
        print(said)
    else:
        print(f"edgert: {said}", file=sys.stderr)
    return code


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="edgert train",
        description="The training of the device on this machine.",
        epilog="status: what it is doing, and why not when it does nothing. pause: no more steps, no questions to "
        "teachers, also after a restart; acting goes on. resume: go on. now: offer a candidate to the gate and "
        "commit a checkpoint at once.",
    )
    parser.add_argument("verb", choices=("status", "pause", "resume", "now"))
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser.parse_args(argv)
