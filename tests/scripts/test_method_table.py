"""Test the table of all recipes in a folder: on a tiny model, resumed, and its decisions computed by hand."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

import llm_forget.train.unlearn
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import RecipeError
from llm_forget.testing import memorise, tiny_model, tiny_tokenizer

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "method_table.py"))
ROW = {"forget_probability": 0.1, "retain_rouge": 0.9}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create target, oracle, data, a suite and three recipes; one recipe is broken."""
    folder, tokenizer, rows = tmp_path_factory.mktemp("table"), tiny_tokenizer(), {}
    for name, words in (("forget", ["Ada", "Bo", "Cy", "Di"]), ("retain", ["snow", "tar", "tea", "rye"])):
        path = folder / f"{name}.jsonl"
        lines = [{"question": f"What of {word}?", "answer": f"{word} is it."} for word in words]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        rows[name] = encode_all(tokenizer, read_examples(DataSource(str(path))), EncodingConfig())[0]
    for name, known in (("target", rows["forget"] + rows["retain"]), ("oracle", rows["retain"])):
        model = tiny_model(tokenizer, hidden=32)
        memorise(model, known, steps=40)
        model.save_pretrained(folder / name / "model")
        tokenizer.save_pretrained(folder / name / "model")
    data = {name: {"path": str(folder / f"{name}.jsonl")} for name in rows}
    (folder / "suite.yaml").write_text(
        yaml.safe_dump(
            {
                "sets": {
                    "forget": {"data": data["forget"], "answers": ["answer"]},
                    "retain": {"data": data["retain"], "answers": ["answer"]},
                },
                "generation": {"max_new_tokens": 6},
            }
        )
    )
    (folder / "recipes").mkdir()
    for name, method in (("npo", {"name": "npo"}), ("wga", {"name": "wga"}), ("broken", {"name": "npo", "beta": -1})):
        values: dict[str, Any] = {
            "model": {"name": str(folder / "target" / "model"), "dtype": "float32"},
            "data": data,
            "method": method,
            "train": {"epochs": 6, "batch_size": 4, "learning_rate": 1e-2},
            "stop": {"every": 2, "utility_floor": 0.5},
            "output_dir": str(folder / "runs" / name),
        }
        (folder / "recipes" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    (folder / "recipes" / "target.yaml").write_text("model: {name: x}\ndata: []\noutput_dir: y\n")
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    given = {"--recipes": place / "recipes", "--suite": place / "suite.yaml", "--oracle": place / "oracle"}
    return [*(str(part) for pair in given.items() for part in pair), *more]


@pytest.mark.slow
def test_runs_measures_and_resumes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All valid recipes run; a second call runs none, and after a run is deleted, only that recipe runs."""
    SCRIPT["main"](arguments(place))
    root = place / "runs"
    rows = json.loads((root / "methods.json").read_text())["rows"]
    assert list(rows) == ["target", "oracle", "broken", "npo", "wga"]
    assert "beta is -1" in rows["broken"]["failed"] or "cannot be used" in rows["broken"]["failed"]
    assert rows["npo"]["forget_probability"] < rows["target"]["forget_probability"]
    for name in ("npo", "wga"):
        assert rows[name]["seconds"] > 0
        assert rows[name]["retain_rouge"] is not None
        assert rows[name]["forget_quality"] is None or 0 <= rows[name]["forget_quality"] <= 1
        assert isinstance(rows[name]["reaches"], bool)
    table = (root / "methods.md").read_text()
    assert table.startswith("Made by `python scripts/method_table.py --recipes")
    assert table.count("\n| ") == 6

    ran: list[str] = []
    original = llm_forget.train.unlearn.unlearn
    monkeypatch.setattr(
        llm_forget.train.unlearn,
        "unlearn",
        lambda recipe, *rest: ran.append(recipe.output_dir) or original(recipe, *rest),
    )
    SCRIPT["main"](arguments(place, "--only", "npo,wga"))
    assert ran == []
    assert json.loads((root / "methods.json").read_text())["rows"]["wga"] == rows["wga"]
    shutil.rmtree(root / "wga")
    SCRIPT["main"](arguments(place, "--only", "npo,wga", "--set", "train.epochs=1"))
    assert ran == [str(root / "wga")]


def test_reached_by_hand() -> None:
    """Reached means within 0.1 of the oracle's 0.05, and at least 0.8 of the target's 0.9 = 0.72."""
    oracle, target = {"forget_probability": 0.05, "retain_rouge": 0.9}, ROW
    reaches = SCRIPT["reaches"]
    assert reaches({"forget_probability": 0.149, "retain_rouge": 0.721}, oracle, target)
    assert not reaches({"forget_probability": 0.16, "retain_rouge": 0.9}, oracle, target)
    assert not reaches({"forget_probability": 0.01, "retain_rouge": 0.71}, oracle, target)
    assert reaches({"forget_probability": 0.01, "retain_rouge": None}, oracle, target) is None


def test_material_sets_the_folder_of_data_and_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder comes from the option or the environment variable; recipes whose data names no file are not changed."""
    recipes = SCRIPT["unlearning_recipes"](str(ROOT / "scripts/tofu_mini"), ["npo"], {}, None, "there")
    assert recipes["npo"].data_dir == "there"
    assert recipes["npo"].model.adapter == "there/models/tofu-mini-target"
    demo = SCRIPT["unlearning_recipes"](str(ROOT / "recipes/demo"), ["npo"], {}, None, "there")
    assert demo["npo"].data_dir is None
    wanted = ["--recipes", "x", "--suite", "y", "--oracle", "z"]
    assert SCRIPT["_options"](wanted).material is None or "LLM_FORGET_MATERIAL" in os.environ
    monkeypatch.setenv("LLM_FORGET_MATERIAL", "elsewhere")
    assert SCRIPT["_options"](wanted).material == "elsewhere"
    assert SCRIPT["_options"]([*wanted, "--material", "here"]).material == "here"


def test_invalid_options_are_refused(place: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe for gone; there are broken, npo, wga"):
        SCRIPT["main"](arguments(place, "--only", "gone"))
    with pytest.raises(RecipeError, match="give one of --oracle and --oracle-adapter"):
        SCRIPT["main"](arguments(place, "--oracle-adapter", "x"))
