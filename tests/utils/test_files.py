"""Files are written whole or not at all, and what a killed process left is removed by the next reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_forget.utils.files import new_file, tidy_files, write_json

_KILLED = """
import os, sys
from pathlib import Path
from llm_forget.utils.files import new_file
with new_file(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"x": 1})

    def fail() -> None:
        with new_file(file) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert json.loads(file.read_text()) == {"x": 1}
    assert names(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "a.json")], check=False)
    (left,) = names(tmp_path)
    assert left.startswith(".a.json.")
    mine = left.replace(left.split(".")[-2].split("-")[1], str(os.getpid()))  # a process that is alive
    others = [mine, left.replace(".a.json.", ".a.json.elsewhere"), ".hidden.new", "a.new", f"{left}.txt"]
    for name in others:
        (tmp_path / name).write_text("kept")
    (tmp_path / left.replace("a.json", "b")).mkdir()
    tidy_files(tmp_path)
    assert names(tmp_path) == sorted([*others, left.replace("a.json", "b")])
    tidy_files(tmp_path / "nowhere")


def test_a_name_that_is_not_utf8_is_written_as_an_escape(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"path": name})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"path": name}
