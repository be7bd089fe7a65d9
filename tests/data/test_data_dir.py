"""Test data from the hub and from a folder: shipped recipes read a local copy of TOFU, and missing files are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from places import ROOT, SHARED

from llm_forget.config import FinetuneRecipe, ModelConfig, UnlearnData, UnlearnRecipe
from llm_forget.data.examples import DataSource
from llm_forget.data.sources import in_folder, resolve_sources
from llm_forget.errors import RecipeError
from llm_forget.testing import tiny_tokenizer
from llm_forget.train.finetune import finetune
from llm_forget.train.prepare import UnlearnSets, prepare
from llm_forget.utils.build import load_recipe

TOFU = SHARED / "data" / "tofu"
RECIPES = sorted((ROOT / "recipes/tofu").glob("*.yaml"))
HUB = DataSource("owner/name", name="forget01", file="forget01.jsonl")


def write(path: Path, *words: str) -> None:
    rows = [{"question": f"What is {word}?", "answer": f"{word} it is."} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare_recipe(recipe: UnlearnRecipe) -> UnlearnSets:
    return prepare(
        recipe.data,
        recipe.encoding,
        tiny_tokenizer(),
        rows=recipe.stop.rows,
        seed=recipe.seed,
        data_dir=recipe.data_dir,
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_tofu_recipes_name_the_hub_and_a_file(path: Path) -> None:
    """Without options only hub ids are read; with data_dir every source has a file in it."""
    recipe = load_recipe(UnlearnRecipe, path)
    assert recipe.data_dir is None
    assert recipe.data.retain is not None
    assert recipe.data.holdout is not None
    for source, name in ((recipe.data.forget, "forget01"), (recipe.data.retain, "retain99")):
        assert (source.path, source.name, source.file) == ("locuslab/TOFU", name, f"{name}.jsonl")
    assert recipe.data.holdout == DataSource("holdout01.jsonl", file="holdout01.jsonl", optional=True)
    assert recipe.model.name == "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"


@pytest.mark.slow
@pytest.mark.skipif(not TOFU.is_dir(), reason="needs a local copy of TOFU")
@pytest.mark.parametrize(("share", "count"), [("01", 40), ("05", 200), ("10", 400)])
def test_a_tofu_recipe_reads_a_local_copy(share: str, count: int) -> None:
    changes = {"data_dir": str(TOFU), "encoding": "{system_prompt: Be brief., max_length: 4096}"}
    kept = {"01": "99", "05": "95", "10": "90"}[share]
    for name, file in (("forget", f"forget{share}"), ("retain", f"retain{kept}"), ("holdout", f"holdout{share}")):
        changes[f"data.{name}.file"] = f"{file}.jsonl"
    sets = prepare_recipe(load_recipe(UnlearnRecipe, "recipes/tofu/npo.yaml", changes))
    assert (len(sets.forget), len(sets.retain)) == (count, 4000 - count)
    # twice the rows that are measured, where the file has as many
    assert len(sets.holdout) == min(120, count)


def test_an_optional_set_without_data_is_left_out_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a data folder; once the file exists, it is read."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "forget01.jsonl", "snow", "tea")
    data = UnlearnData(HUB, holdout=DataSource("holdout.jsonl", file="holdout.jsonl", optional=True))
    recipe = UnlearnRecipe(ModelConfig("x"), data, {"name": "npo"}, "out", data_dir=str(tmp_path))
    sets = prepare_recipe(recipe)
    assert sets.warnings == ["the set holdout was left out: holdout.jsonl is not in the data folder"]
    assert (len(sets.forget), sets.holdout) == (2, [])
    assert set(sets.digests) == {"forget"}
    hub, notes = resolve_sources({"forget": [HUB], "holdout": [data.holdout]}, None, "this recipe")
    assert hub == {"forget": [HUB]}
    assert notes == ["the set holdout was left out: holdout.jsonl is not in the current folder"]
    write(tmp_path / "holdout.jsonl", "rye")
    sets = prepare_recipe(recipe)
    assert (sets.warnings, len(sets.holdout)) == ([], 1)


def test_missing_files_are_named(tmp_path: Path) -> None:
    sets = {"forget": [HUB], "retain": [replace(HUB, file="retain99.jsonl")]}
    with pytest.raises(RecipeError, match=r"lacks forget01.jsonl \(for forget\), retain99.jsonl \(for retain\); put"):
        resolve_sources(sets, str(tmp_path), "this recipe")
    with pytest.raises(RecipeError, match="gone does not exist; give the one that holds the files of this recipe"):
        resolve_sources(sets, str(tmp_path / "gone"), "this recipe")
    with pytest.raises(RecipeError, match="no data source of this recipe names a file in it; add `file`"):
        resolve_sources({"forget": [DataSource("owner/name")]}, str(tmp_path), "this recipe")
    assert resolve_sources({"forget": [DataSource("gone.jsonl")]}, None, "this recipe")[1] == []


def test_a_source_in_a_folder_has_no_configuration(tmp_path: Path) -> None:
    assert in_folder(HUB, str(tmp_path)) == replace(HUB, path=str(tmp_path / "forget01.jsonl"), name=None)
    assert in_folder(HUB, None) == HUB
    assert in_folder(DataSource("mine.csv"), str(tmp_path)) == DataSource("mine.csv")


def test_a_file_is_found_under_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "forget01.json").touch()
    assert in_folder(HUB, str(tmp_path)).path == str(tmp_path / "forget01.json")
    found, notes = resolve_sources({"forget": [HUB]}, str(tmp_path), "this recipe")
    assert (found["forget"][0].path, notes) == (str(tmp_path / "forget01.json"), [])
    (tmp_path / "forget01.jsonl").touch()
    assert in_folder(HUB, str(tmp_path)).path == str(tmp_path / "forget01.jsonl")


def test_fine_tuning_reads_from_the_folder_too(tmp_path: Path) -> None:
    recipe = FinetuneRecipe(ModelConfig("x"), [HUB], str(tmp_path / "out"), data_dir=str(tmp_path))
    with pytest.raises(RecipeError, match=r"lacks forget01.jsonl \(for data\[0\]\)"):
        finetune(recipe)


def test_the_tofu_recipes_differ_from_tofu_mini_only_in_model_and_data() -> None:
    for path in RECIPES:
        one, other = (
            yaml.safe_load((ROOT / folder / path.name).read_text()) for folder in ("recipes/tofu", "scripts/tofu_mini")
        )
        for values in (one, other):
            for key in ("model", "data", "output_dir"):
                values.pop(key)
        assert one == other, path.stem
