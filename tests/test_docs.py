"""What the documentation says is so: its commands, files, names and examples.

Run as a program, this rewrites the table of keys.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
import pytest

from edgert import __version__, cli, wire
from edgert.config import commented_default, parse
from edgert.govern.reasons import REASONS as REASON_TEXTS
from tools.bench import overview

HOUSE = Path(__file__).parents[1]
README = HOUSE / "README.md"
FOLDERS_WITH_PAGES = ("edgert", "firmware_configs", "models", "systemd", "tools", "tools/bench")
PAGES = [README, *(HOUSE / name / "README.md" for name in FOLDERS_WITH_PAGES)]
KEYS = re.compile(r"(?<=<!-- KEYS:BEGIN -->\n).*?(?=<!-- KEYS:END -->)", re.DOTALL)
REFERENCE = HOUSE / "edgert" / "README.md"
MESSAGES = re.compile(r"(?<=<!-- MESSAGES:BEGIN -->\n).*?(?=<!-- MESSAGES:END -->)", re.DOTALL)
REASONS = re.compile(r"(?<=<!-- REASONS:BEGIN -->\n).*?(?=<!-- REASONS:END -->)", re.DOTALL)
FOLDERS = ("edgert", "firmware_configs", "models", "systemd", "tests", "tools")
# The reader makes them; a topic; environments.
NO_FILES = ("models/asterix.edgert", "models/freeway.edgert", wire.ROOT, "edgert/Drone-v0", "edgert/DroneTest-v0")
WAIT_S = 60.0


class Block(NamedTuple):
    """A fenced block of a page, its indentation removed."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(HOUSE)}: {self.text.splitlines()[0][:60]}"


def blocks(*languages: str) -> list[Block]:
    fence = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
    found = []
    for page in PAGES:
        for indent, language, text in fence.findall(page.read_text()):
            if language in languages:
                found.append(Block(page, language, "\n".join(line.removeprefix(indent) for line in text.splitlines())))
    return found


def commands() -> list[str]:
    """Every line that a reader is told to type, without prompt and comment."""
    lines = (line for block in blocks("console") for line in block.text.splitlines() if line.startswith("$ "))
    return [re.sub(r"\s+#.*$", "", line[2:]) for line in lines]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def config_table() -> str:
    """Every key with default, range and meaning, out of what `edgert init` writes."""
    rows, section, said = ["| key | default | right values | meaning |", "|---|---|---|---|"], "", ""
    for line in commented_default({"device.id": "x", "policy.bundle": "x"}).splitlines()[1:]:
        if begun := re.fullmatch(r"(?:\[|#\[\[)([\w.]+)\]{1,2}", line):
            section = begun[1]
        elif inner := re.fullmatch(r"#  (\w+) = (.*?)  #( required\.| an example\.)? (.*) \[(.*)\]", line):
            default = {" required.": "required", " an example.": "unset"}.get(inner[3], f"`{inner[2]}`")
            rows.append(f"| `{section}.{inner[1]}` | {default} | {inner[5]} | {inner[4]} |")
        elif line.startswith("# "):
            said = line[2:]
        elif key := re.fullmatch(r"(#?)(\w+) = (.*)", line):
            meaning, _, wanted = said.removesuffix("]").rpartition(" [")
            default = "required" if not key[1] else "unset" if key[3].endswith("unset by default") else f"`{key[3]}`"
            rows.append(f"| `{section}.{key[2]}` | {default} | {wanted} | {meaning} |")
    return "\n".join(rows) + "\n"


def explained(struct: Any) -> dict[str, str]:
    """Key -> its explanation in the struct's docstring, over as many lines as it takes, and "" -> the struct's own."""
    summary, _, attributes = inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.split(r"\n    (?=\w[\w, ]*: )", "\n" + attributes)
    pairs = [entry.strip().partition(": ") for entry in entries if entry.strip()]
    found = {name: " ".join(text.split()) for names, _, text in pairs for name in names.split(", ")}
    return {"": " ".join(summary.split()), **found}


def type_of(hint: Any) -> str:
    """A field's type, as a reader of another language would say it."""
    text = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
    return re.sub(r"\b[a-z_]+\.", "", text).replace(" | ", " or ").replace("NoneType", "None")


def message_reference() -> str:
    """Every message with its fields, out of `wire`'s own docstrings."""
    parts = []
    for message in wire.Message.__args__:
        told, hints = explained(message), get_type_hints(message)
        parts.append(f"### `{message.__struct_config__.tag}`\n\n{told['']}\n")
        fields = [field for field in msgspec.structs.fields(message) if field.name != "v"]
        if fields:
            parts.append("| key | type | meaning |\n|---|---|---|")
            for field in fields:
                wanted = type_of(hints[field.name]) + ("" if field.required else ", may be missing")
                meaning = told.get(field.name, "as above").replace("|", "/")
                parts.append(f"| `{field.encode_name}` | {wanted} | {meaning} |")
            parts.append("")
    return "\n".join(parts) + "\n"


def catalogue() -> str:
    """Every named reason of the governor, what it means and what helps."""
    rows = ["| reason | what is so | what helps |", "|---|---|---|"]
    rows += [f"| `{name}` | {reason.means} | {reason.do} |" for name, reason in REASON_TEXTS.items()]
    return "\n".join(rows) + "\n"


def named_in_the_source() -> set[str]:
    """Every literal name under which something is counted or recorded."""
    call = re.compile(r"\b_?(?:fault|count|record|Fault|Record|Happened)\(\s*(?:world, )?\"([a-z][a-z-]+)\"")
    entry = re.compile(r"\bfaults\[\"([a-z-]+)\"\]")
    sources = [path.read_text() for path in sorted((HOUSE / "edgert").rglob("*.py"))]
    return {name for text in sources for name in (*call.findall(text), *entry.findall(text))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOUSE)))
def test_every_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    linked = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]*)\)", text) if "://" not in target]
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./@-]*\w)", text)
    missing = [target for target in linked if target and not (page.parent / target).exists()]
    missing += [name for name in named if name not in NO_FILES and not (HOUSE / name).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOUSE)))
def test_every_test_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    assert [name for path, name in named if f"def {name}(" not in (HOUSE / path).read_text()] == []


def test_every_anchor_leads_somewhere() -> None:
    headings = {
        page: {
            re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
            for line in re.findall(r"^#+ (.*)$", page.read_text(), re.M)
        }
        for page in PAGES
    }
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]*)\)", page.read_text()):
            assert anchor in headings[(page.parent / target).resolve() if target else page]


def test_every_verb_is_described_and_no_other_is_named() -> None:
    rows = set(re.findall(r"^\| `edgert (\w+)`", README.read_text(), re.M))
    assert rows == set(cli.VERBS)
    spoken = {verb for page in PAGES for verb in re.findall(r"`edgert ([a-z]+)\b", prose(page))}
    assert spoken <= set(cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_a_command_exists(verb: str) -> None:
    lines = [line for line in commands() if re.search(rf"\bedgert {verb}\b", line)]
    lines += [
        line.replace("tools/demo", "edgert demo") for line in commands() if verb == "demo" and "tools/demo" in line
    ]
    used = {option for line in lines for option in re.findall(r"(--[a-z-]+)", line.split(f"edgert {verb}", 1)[1])}
    if not used:
        pytest.skip("no page uses an option of it")
    command = [sys.executable, "-m", "edgert", verb, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert used <= set(re.findall(r"--[a-z-]+", told))


def test_every_module_that_is_run_is_there() -> None:
    modules = {name for page in PAGES for name in re.findall(r"python -m ((?:tools|edgert)[\w.]*)", page.read_text())}
    assert modules
    for module in modules:
        path = HOUSE / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_piece_of_configuration_is_accepted(block: Block) -> None:
    required = {"device": '[device]\nid = "x"\n', "policy": '[policy]\nbundle = "/x"\n'}
    parse(
        "\n".join([block.text, *(text for name, text in required.items() if f"[{name}]" not in block.text)]), "README"
    )


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_every_program_compiles(block: Block) -> None:
    compile(block.text, str(block.page), "exec")


def test_the_table_of_keys_is_the_one_of_the_code() -> None:
    written = KEYS.search((HOUSE / "firmware_configs" / "README.md").read_text())
    assert written is not None
    assert written[0] == config_table(), "run `python tests/test_docs.py`"


def test_the_reference_of_messages_and_reasons_is_the_one_of_the_code() -> None:
    text = REFERENCE.read_text()
    for pattern, made in ((MESSAGES, message_reference()), (REASONS, catalogue())):
        written = pattern.search(text)
        assert written is not None
        assert written[0] == made, "run `python tests/test_docs.py`"


def test_the_overview_of_figures_is_the_one_of_the_result_files() -> None:
    written = overview.TABLE.search(README.read_text())
    assert written is not None
    assert written[0] == overview.table(), "run `python -m tools.bench overview --write`"


def test_every_name_under_which_something_is_counted_is_explained() -> None:
    names = named_in_the_source()
    assert len(names) > 30
    plain = {"asks", "answers", "ask-bytes", "answer-bytes", "swaps"}  # how much, not what went wrong
    plain |= {"networks-accepted", "networks-refused", "swaps-refused"}  # totals of events that are explained
    explained = set(re.findall(r"`([a-z][a-z-]+)`", README.read_text()))
    assert names - plain <= explained, "explain them in README.md"


def test_every_name_that_is_explained_is_in_the_source() -> None:
    text = README.read_text()
    section = text[text.index("## Names of what can go wrong") : text.index("## Figures")]
    names = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", section)) - {"actor-exits", "actor-hung", "malformed-frame"}
    source = "\n".join(path.read_text() for path in sorted((HOUSE / "edgert").rglob("*.py")))
    assert {name for name in names if f'"{name}"' not in source} == set()


def test_every_topic_and_schema_of_the_wire_is_in_the_table() -> None:
    text = README.read_text()
    rows = re.findall(
        r"^\| `([\w/<>-]+)` \| `([\w-]+)` \|", text[text.index("## Topics") : text.index("## Bundles")], re.M
    )
    schemas = {str(message.__struct_config__.tag) for message in wire.Message.__args__}
    assert {schema for _, schema in rows} == schemas
    for topic, _ in rows:
        wire.parse_topic(f"{wire.ROOT}/fleet/device/" + topic.replace("<", "").replace(">", ""))


def test_it_is_the_version_that_the_readme_speaks_of() -> None:
    assert f"version {__version__.rpartition('.')[0]};" in README.read_text()


@pytest.mark.system
def test_the_example_of_a_program_of_ones_own_runs_against_a_real_device(folder: Path) -> None:
    pytest.importorskip("minatar", reason="the example plays a game of MinAtar")
    (block,) = (block for block in blocks("python") if "edgert.client import Policy" in block.text)
    typed = [line for line in commands() if "/tmp/edgert/my.toml" in line]
    assert [line.split()[1] for line in typed] == ["init", "run"]
    init, run = ([sys.executable, "-m", *line.replace("/tmp/edgert", str(folder)).split()] for line in typed)
    # A port of nobody: the device must act without a broker.
    subprocess.run([*init, "--broker", "mqtt://127.0.0.1:1"], cwd=HOUSE, check=True, stdout=subprocess.DEVNULL)
    log = folder / "log"
    with log.open("wb") as out:
        device = subprocess.Popen(run, cwd=HOUSE, stdout=out, stderr=out)
    try:
        end_s = time.monotonic() + WAIT_S
        while not (folder / "run" / "policy.sock").exists() and time.monotonic() < end_s and device.poll() is None:
            time.sleep(0.1)
        program = [sys.executable, "-c", block.text.replace("/tmp/edgert", str(folder))]
        played = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert played.returncode == 0, played.stderr + log.read_text()
        said = re.fullmatch(
            r"([\d.]+) points in (\d+) episodes; last Decision\(action=(\d), exit=(\d).*\)\n", played.stdout
        )
        assert said is not None, played.stdout
        assert int(said[2]) > 0
    finally:
        device.terminate()
        ended = device.wait(WAIT_S)
    assert ended == 0, log.read_text()


QUICK = re.compile(r"edgert board (list|show|apply --dry-run)")
"""Commands of the pages that take no time, change nothing and need nothing but this machine."""


@pytest.mark.parametrize("line", [line for line in commands() if QUICK.match(line)])
def test_a_command_that_takes_no_time_does_what_a_page_says(line: str) -> None:
    command = [sys.executable, "-m", *line.split()]
    told = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    # 2 is nothing to do: there is nothing to set on a machine that is no known board.
    assert told.returncode in (0, 2), told.stderr
    assert told.stdout.strip() or told.stderr.strip()


@pytest.mark.system
def test_the_quick_start_by_hand_and_the_orders_to_its_training_work(
    folder: Path, mosquitto: Any, until: Callable[..., None]
) -> None:
    pytest.importorskip("minatar", reason="the quick start plays a game of MinAtar")
    typed = [line for line in commands() if "/tmp/edgert/sim.toml" in line or "/tmp/edgert/state" in line]
    typed = [line for line in typed if "my.toml" not in line]
    by_verb = {" ".join(line.split()[1:3]) if " train " in line else line.split()[1]: line for line in typed}
    assert list(by_verb) == ["init", "doctor", "run", "top", "train status", "train pause", "train resume"]

    def words(verb: str, *more: str) -> list[str]:
        line = by_verb[verb].removesuffix(" &").replace("/tmp/edgert", str(folder))
        return [sys.executable, "-m", *line.split(), *more]

    def ran(verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words(verb, *more), cwd=HOUSE, capture_output=True, text=True, check=False)

    assert ran("init", "--broker", mosquitto.url).returncode == 0
    found = {one["name"]: one["verdict"] for one in json.loads(ran("doctor", "--json").stdout)["findings"]}
    assert [name for name, verdict in found.items() if verdict == "fail"] == []
    log = folder / "log"
    with log.open("wb") as out:
        device = subprocess.Popen(words("run"), cwd=HOUSE, stdout=out, stderr=out)
    try:
        until((folder / "run" / "control.sock").exists, "the supervisor", WAIT_S)
        assert ran("train pause").returncode == 0
        assert "paused" in ran("train status").stdout
        assert ran("train resume").returncode == 0
        table = subprocess.Popen(words("top"), cwd=HOUSE, stdout=subprocess.PIPE, text=True)
        assert table.stdout is not None
        assert table.stdout.readline()
        table.terminate()
        table.wait(WAIT_S)
        table.stdout.close()
    finally:
        device.terminate()
        ended = device.wait(WAIT_S)
    assert ended == 0, log.read_text()


@pytest.mark.system
def test_the_example_of_a_students_own_library_runs_with_a_real_teacher(
    folder: Path, mosquitto: Any, until: Callable[..., None]
) -> None:
    reason = "stable-baselines3 and minatar are not installed: the example of a foreign student was not run"
    for package in ("stable_baselines3", "minatar"):
        pytest.importorskip(package, reason=reason)
    (block,) = (block for block in blocks("python") if "stable_baselines3" in block.text)
    (typed,) = re.findall(r"`edgert (teacher --model \S+ --broker) mqtt://127.0.0.1`", README.read_text())
    status = folder / "status.json"
    command = [sys.executable, "-m", "edgert", *typed.split(), mosquitto.url, "--status-file", str(status)]
    teacher = subprocess.Popen(command, cwd=HOUSE, stderr=subprocess.DEVNULL)
    try:
        until(lambda: status.exists() and json.loads(status.read_text())["up"], "the teacher", WAIT_S)
        text = block.text.replace("mqtt://127.0.0.1", mosquitto.url).replace("20_000", "2_000")
        program = [sys.executable, "-c", text]
        ran = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=2 * WAIT_S, check=False)
    finally:
        teacher.terminate()
        teacher.wait(WAIT_S)
    assert ran.returncode == 0, ran.stderr
    told = ast.literal_eval(ran.stdout)
    assert told["known"] > 100 and (folder / "dqn.zip").exists()


def main() -> None:
    """Write the table of keys, and the reference of messages and reasons."""
    page = HOUSE / "firmware_configs" / "README.md"
    page.write_text(KEYS.sub(lambda _: config_table(), page.read_text()))
    text = MESSAGES.sub(lambda _: message_reference(), REFERENCE.read_text())
    REFERENCE.write_text(REASONS.sub(lambda _: catalogue(), text))


if __name__ == "__main__":
    main()
