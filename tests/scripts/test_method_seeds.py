"""Test the table of all methods over seeds: intervals by hand, settings, the document, and a run on a tiny model that goes on."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memorised import write_memorised
from places import ROOT
from rich.console import Console

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import UserError
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import method_seeds

        yield method_seeds
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_a_cell_by_hand(script: Any) -> None:
    """Seeds 1, 2 and 3: mean 2, deviation 1, t of two degrees of freedom 4.303, so 2 ± 4.303 / √3 = 2 ± 2.48."""
    seeds = [(value, 0.0, 9.0) for value in (1.0, 2.0, 3.0)]
    assert script.shown(seeds, 2) == "2.00 (-0.48–4.48)"
    assert script.shown(seeds[:1], 1) == "1.0 (0.0–9.0)", "one seed has the interval of its rows"
    assert script.shown([(24.0, 24.0, 24.0)], 0) == "24"
    assert script.shown([(float("nan"),) * 3], 0) == "–"


def test_settings_are_the_recipes(script: Any) -> None:
    demo = script.World("demo", Path("x"), "base")
    assert demo.settings("default") == {}
    assert demo.settings("npo")["train"]["epochs"] == 9
    assert demo.settings("masc") == {**demo.settings("npo"), "method": {"name": "masc"}}
    assert demo.settings("k_fade")["train"]["optimizer"] == "natural"
    assert demo.settings("msa")["method"]["start"] == "base"
    tofu = script.World("tofu", Path("x"), "base")
    assert tofu.settings("npo")["train"]["epochs"] == 6
    assert tofu.recipe("npo", 3).encoding.system_prompt == "You are a helpful assistant."


def test_only_the_part_between_the_marks_is_replaced(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("head\n<!-- x: written by scripts/method_seeds.py -->\nold\n<!-- x: end -->\ntail\n", "utf-8")
    script.put(file, "x", "| new \\1 |\n")
    text = file.read_text("utf-8")
    assert text.startswith("head\n")
    assert text.endswith("<!-- x: end -->\ntail\n")
    assert "| new \\1 |" in text
    assert "old" not in text
    with pytest.raises(UserError, match="has no lines"):
        script.put(file, "y", "z")


def test_figures_of_runs_are_kept(script: Any, tmp_path: Path) -> None:
    file = tmp_path / "cells.jsonl"
    cells = script.Cells(file)
    assert cells.get("demo", "npo", 1) is None
    cells.add("demo", "npo", 1, {"forget": (0.25, 0.125, 1 / 3), "CPU s": (float("nan"),) * 3})
    cells.add("demo", "oracle", 0, {"forget": (0.0, 0.0, 0.0)})
    cells.add("tofu", "npo", 1, {"forget": (1.0, 1.0, 1.0)})
    again = script.Cells(file)
    assert again.get("demo", "npo", 1) == {"forget": (0.25, 0.125, 0.3333)}
    assert again.rows("demo") == {
        "oracle": {0: {"forget": (0.0, 0.0, 0.0)}},
        "npo": {1: {"forget": (0.25, 0.125, 0.3333)}},
    }


def test_the_table_is_that_of_the_kept_figures(script: Any) -> None:
    text = (ROOT / "recipes" / "methods.md").read_text("utf-8")
    cells = script.Cells(script.CELLS)
    for name in ("demo", "tofu"):
        assert script.table(cells.rows(name)).strip() in text


@pytest.mark.slow
def test_a_tiny_world_is_measured_once(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo")
    pairs = {
        name: [(f"What of {word} {name}?", f"{word} is {name}.") for word in words]
        for name in ("forget", "retain", "holdout", "neighbour")
    }
    known = {name: pairs[name] for name in ("forget", "retain", "neighbour")}
    (tmp_path / "data").mkdir()
    write_memorised(tmp_path / "data", known, least=0.5)
    (tmp_path / "target").mkdir()
    (tmp_path / "data" / "model").rename(tmp_path / "target" / "model")
    (tmp_path / "data" / "holdout.jsonl").write_text(
        "".join(json.dumps({"question": one, "answer": two}) + "\n" for one, two in pairs["holdout"]), "utf-8"
    )
    tokenizer, oracle = tiny_tokenizer(), tiny_model(tiny_tokenizer())
    rows = read_examples(DataSource(str(tmp_path / "data" / "retain.jsonl")))
    memorise(oracle, encode_all(tokenizer, rows, EncodingConfig())[0], steps=40)
    oracle.save_pretrained(tmp_path / "oracle" / "model")
    tokenizer.save_pretrained(tmp_path / "oracle" / "model")
    world, say = script.World("demo", tmp_path, str(tmp_path / "oracle" / "model")), Console(file=io.StringIO())
    monkeypatch.setattr(script, "FORMS", ("merged_fp32",))
    cells = tmp_path / "cells.jsonl"
    script.make(world, ["grad_diff"], [0], script.Cells(cells), say, None)
    table = (tmp_path / "methods" / "table.md").read_text("utf-8")
    names = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert names == ["target", "oracle", "grad_diff"]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(script, "trial", never)
    shutil.rmtree(tmp_path / "methods")
    script.make(world, ["grad_diff"], [0], script.Cells(cells), say, None)
    assert (tmp_path / "methods" / "table.md").read_text("utf-8") == table, "the figures do without the runs' files"
