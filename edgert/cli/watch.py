"""`edgert status` and `edgert top`: ask the running supervisor what it knows."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from edgert.cli import OK, RETRY_LATER
from edgert.govern.reasons import REASONS
from edgert.ports import ipc, screen
from edgert.ports.process import Layout, load_config
from edgert.ports.screen import History
from edgert.values import StatusReply, StatusRequest

PATIENCE_S = 5.0


class Asker:
    """A line to the supervisor that is opened anew when it broke.

    Blocks: `ask`, up to `PATIENCE_S`.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self._path = path
        self._channel: ipc.Channel | None = None

    def ask(self, patience_s: float = PATIENCE_S) -> dict[str, Any] | None:
        """The status document, or None when no supervisor answers.

        Raises:
            LinkError: we may not connect to its socket.
        """
        if self._channel is None or self._channel.closed:
            self._channel = ipc.connect(self._path)
        if self._channel is None:
            return None
        self._channel.send(StatusRequest())
        deadline_s = time.monotonic() + patience_s
        while not self._channel.closed and (left_s := deadline_s - time.monotonic()) > 0:
            self._channel.wait(left_s)
            for told in self._channel.receive():
                if isinstance(told, StatusReply):
                    return dict(told.status)
        self._channel.close()
        return None

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()


def status(argv: list[str]) -> int:
    """Print one status document.

    Returns:
        0, or 75 when no supervisor runs.

    Raises:
        ConfigError: the configuration cannot be read.
        LinkError: we may not connect to its socket.
    """
    args = _parse("status", "What the device on this machine is doing.", argv)
    layout = Layout(load_config(args.config))
    document = Asker(layout.control).ask()
    if document is None:
        return nobody(layout, args.config)
    if args.json:
        print(json.dumps(document, indent=2))
        return OK
    history = History()
    history.add(document, time.time())
    ready = screen.paint("ready", "green") if document["ready"] else screen.paint("not ready", "yellow")
    print(f"{screen.paint(_name(document), 'bold')}: {document['task']}, up {document['up_s']:.0f} s, {ready}")
    for name, figures in screen.cells(history):
        print(f"  {name:<9} {figures}")
    why = (document["budget"] or {}).get("why", {})
    unmet = {each["why"] for each in document["goals"]["verdicts"].values()}
    for name in sorted({*why.values(), *unmet} - {"ok", ""}):
        reason = REASONS.get(name)
        if reason is not None:
            print(f"  {screen.paint(name, 'yellow')}: {reason.means} What to do: {reason.do}")
    for role, child in document["children"].items():
        print(f"  {role:<9} {'pid ' + str(child['pid']) if child['pid'] else screen.paint('down', 'red')}")
    return OK


def top(argv: list[str]) -> int:
    """Show the status every second until Ctrl-C; a line each time where no live table can be.

    Returns:
        0, or 75 when no supervisor ran at the start.

    Raises:
        ConfigError: the configuration cannot be read.
        LinkError: we may not connect to its socket.
    """
    args = _parse("top", "What the device on this machine is doing, live.", argv)
    layout = Layout(load_config(args.config))
    asker, history = Asker(layout.control), History(keep=3600)
    document = asker.ask()
    if document is None:
        return nobody(layout, args.config)
    name, seen = _name(document), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        display = None if args.json or not screen.can_live() else stack.enter_context(screen.live())
        while True:
            if document is not None:
                history.add(document, time.time())
                seen += 1
            state = f"up {history.status['up_s']:.0f} s" if document is not None else "NO SUPERVISOR ANSWERS"
            if args.json:
                print(json.dumps(document), flush=True)
            elif display is None:
                print(screen.line(name, history) if document is not None else f"{name}: {state}", flush=True)
            else:
                display.show(f"edgert top: {name}, {state} (Ctrl-C leaves)", {name: history})
            if args.count and seen >= args.count:
                break
            time.sleep(1.0)
            document = asker.ask(1.0)
    return OK


def _parse(verb: str, description: str, argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"edgert {verb}", description=description)
    parser.add_argument(
        "--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(/etc/edgert/edgert.toml)"
    )
    parser.add_argument("--json", action="store_true", help="the whole document")
    if verb == "top":
        parser.add_argument("--count", type=int, default=0, help="leave after this many (never)")
    return parser.parse_args(argv)


def _name(document: dict[str, Any]) -> str:
    return f"{document['fleet']}/{document['device']}"


def nobody(layout: Layout, config: Path) -> int:
    """Say that no supervisor answers, and what to do; 75."""
    print(f"edgert: nothing answers on {layout.control}; start it with `edgert run --config {config}`", file=sys.stderr)
    return RETRY_LATER
