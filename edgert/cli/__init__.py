"""The command line: finds the verb, runs it, and is the only place that turns errors into exit codes.

0 ok, 1 error, 2 nothing to do, 75 retry later, 77 not allowed, 78 bad configuration (systemd does not restart on it).
Nothing is imported before its verb is chosen: a board with a slow SD card should not read gymnasium for `--version`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NamedTuple

from edgert import __version__
from edgert.errors import ArtifactError, ConfigError, EdgertError, LinkError

OK, ERROR, NOTHING_TO_DO, RETRY_LATER, NOT_ALLOWED, BAD_CONFIG = 0, 1, 2, 75, 77, 78
INTERRUPTED = 130
"""128 + SIGINT, as shells count."""


class Verb(NamedTuple):
    """Where a verb lives, and what it is for; its function takes the arguments after the verb."""

    module: str
    function: str
    summary: str


VERBS = {
    "init": Verb("edgert.cli.setup", "init", "write a configuration file that explains itself"),
    "doctor": Verb("edgert.cli.doctor", "doctor", "check this machine, its configuration, bundle and broker"),
    "run": Verb("edgert.programs.supervisor", "main", "run this device (what the systemd unit does)"),
    "recover": Verb("edgert.cli.recover", "recover", "set aside what this device learned, after a crash loop"),
    "status": Verb("edgert.cli.watch", "status", "what the device on this machine is doing"),
    "top": Verb("edgert.cli.watch", "top", "the same, live"),
    "train": Verb("edgert.cli.train", "main", "the training on this device: status, pause, resume, now"),
    "policy": Verb("edgert.cli.policy", "policy", "check or sign a bundle, find what runs it fastest here"),
    "key": Verb("edgert.cli.key", "key", "the keys that policies and commands are signed with"),
    "fleet": Verb("edgert.cli.fleet", "main", "devices over MQTT: see, command, update, collect from them"),
    "diag": Verb("edgert.cli.diag", "diag", "collect what somebody needs who is to help, without secrets"),
    "board": Verb("edgert.cli.board", "main", "this board: what it is, what it measures, what can be set on it"),
    "limits": Verb("edgert.programs.limits", "main", "the privileged helper that sets limits (a systemd unit)"),
    "teacher": Verb("edgert.programs.teacher", "main", "answer the questions of devices with a bigger policy"),
    "serve": Verb("edgert.programs.serve", "main", "run models for devices, on an edge box or in the cloud"),
    "offload": Verb("edgert.cli.offload", "main", "where inferences run, with which model, and why"),
    "demo": Verb("edgert.programs.demo", "main", "see it all work on this machine, in two minutes"),
    "sim": Verb("edgert.cli.sim", "main", "simulate: a board in heat or on an empty battery, a fleet on a real broker"),
    "bench": Verb("edgert.cli.bench", "main", "measure this machine: a device, its footprint, a soak, the board"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: without the program's name; sys.argv when None.

    Returns:
        The exit code.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has had enough. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return OK if argv else BAD_CONFIG
    if argv[0] in ("-V", "--version"):
        print(f"edgert {__version__}")
        return OK
    verb = VERBS.get(argv[0])
    if verb is None:
        print(f"edgert: no verb {argv[0]!r}; choose one of {', '.join(VERBS)}", file=sys.stderr)
        return BAD_CONFIG
    try:
        return int(getattr(importlib.import_module(verb.module), verb.function)(argv[1:]))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("edgert.programs"):
            return _fail(f"`edgert {argv[0]}` is not part of this installation", ERROR)
        return _fail(f"the Python package {error.name} is missing: pip install 'edgert[demo]' brings all", ERROR)
    except (EdgertError, OSError) as error:
        return _fail(str(error), code_of(error))
    except SystemExit as error:
        # argparse ends with 2, which would say "nothing to do"; a command line it does not understand is configuration.
        return BAD_CONFIG if error.code == 2 else error.code if isinstance(error.code, int) else OK


def code_of(error: BaseException) -> int:
    """The exit code that an error deserves."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, PermissionError):
            return NOT_ALLOWED
        chain = chain.__cause__
    if isinstance(error, ConfigError | ArtifactError):
        return BAD_CONFIG
    return RETRY_LATER if isinstance(error, LinkError) else ERROR


def _fail(message: str, code: int) -> int:
    print(f"edgert: {message}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "edgert: run, adapt and teach early-exit policies on small ARM boards.\n\n"
        f"usage: edgert VERB [OPTIONS]; edgert VERB --help explains one\n\n{verbs}\n\n"
        "options:\n  --version  say which edgert this is\n\n"
        "exit codes: 0 ok, 1 error, 2 nothing to do, 75 retry later, 77 not allowed, 78 bad configuration"
    )
