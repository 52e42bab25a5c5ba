from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgert import cli

pytest.importorskip("cryptography", reason="edgert[trust] is not installed: no key was made")


def test_keys_are_made_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = cli.main(["key", *words, "--keys", str(tmp_path / "keys")])
        return code, capsys.readouterr().out

    def listed() -> dict[str, Any]:
        return json.loads(run("list", "--json")[1])

    assert run("list")[0] == cli.NOTHING_TO_DO
    assert run("new", "root")[0] == cli.OK
    assert run("new", "ci", "--use", "bundle", "--days", "10")[0] == cli.OK
    assert run("new", "ci")[0] == cli.ERROR
    assert run("new", "a/b")[0] == cli.BAD_CONFIG
    told = listed()
    assert told["serial"] == 2 and [each["uses"] for each in told["keys"]] == [
        ["bundle", "command", "keys"],
        ["bundle"],
    ]
    assert told["keys"][1]["until"] and told["keys"][0]["until"] is None
    assert run("revoke", "root")[0] == cli.BAD_CONFIG  # nobody could sign the next list
    assert run("revoke", "nobody")[0] == cli.BAD_CONFIG
    assert run("new", "root2", "--use", "keys")[0] == cli.OK
    assert run("revoke", "root")[0] == cli.OK
    assert run("revoke", told["keys"][1]["id"])[0] == cli.OK
    told = listed()
    assert [each["name"] for each in told["keys"]] == ["root2"] and len(told["revoked"]) == 2
    code, text = run("list")
    assert code == cli.OK and text.count("revoked") == 2 and "root2" in text
