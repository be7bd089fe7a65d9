"""Test the fuzz campaign: damage is reproducible, faults are recognised, and a few cases of every kind pass."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fuzz
import fuzz_damage
import pytest
import torch
from safetensors.torch import save_file


def write_files(folder: Path) -> list[Path]:
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps({"x": [1, {"y": "z"}]}))
    (folder / "b.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 3)
    (folder / "c.yaml").write_text("x: {y: [1, 2]}\n")
    (folder / "d.parquet").write_bytes(bytes(range(200)))
    save_file({"model.w": torch.ones(4, 4), "model.b": torch.ones(4)}, folder / "e.safetensors", {"format": "pt"})
    return fuzz.files_of(folder)


def test_a_seed_gives_the_same_damage_and_most_damage_changes_a_file(tmp_path: Path) -> None:
    def state(path: Path) -> bytes | str:
        return path.read_bytes() if path.is_file() else "no file"

    changed = 0
    for seed in range(60):
        states = []
        for turn in ("one", "two"):
            paths = write_files(tmp_path / f"{seed}-{turn}")
            path, before = paths[seed % len(paths)], state(paths[seed % len(paths)])
            fuzz_damage.damage(random.Random(seed), path)
            states.append(state(path))
        assert states[0] == states[1]
        changed += states[0] != before
    assert changed > 50


@pytest.mark.parametrize(
    ("status", "said", "after", "fault"),
    [
        (0, "done", {"x": 1}, ""),
        (2, "error: no", {"x": 1}, ""),
        (3, "error: inside", {"x": 1}, "internal error"),
        (None, "", {"x": 1}, "hang"),
        (-11, "", {"x": 1}, "signal 11"),
        (1, "Traceback (most recent call last)", {"x": 1}, "traceback"),
        (2, " ", {"x": 1}, "no message"),
        (0, "done", {"x": 2}, "wrong number: {'x': 2} instead of {'x': 1}"),
    ],
)
def test_faults_are_recognised(status: int | None, said: str, after: dict[str, Any], fault: str) -> None:
    assert fuzz.judge(status, said, {"x": 1}, after) == fault


@pytest.mark.slow
def test_a_few_cases_of_every_kind_pass(capfd: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--cases", "6", "--jobs", "1"]) == 0
    assert "6 cases (recipe 1, data 1, adapter 1, base 1, run 1, cache 1)" in capfd.readouterr().out
