"""Test that two processes share an evaluation and write the same file as one, with and without a filled cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from evaluation_examples import tiny_model, write_sets, write_task

from llm_forget.config import ModelConfig
from llm_forget.evaluation import evaluate as module
from llm_forget.evaluation.evaluate import evaluate
from llm_forget.evaluation.recipe import ControlsConfig, EvalRecipe
from llm_forget.evaluation.results import read_results
from llm_forget.model.load import load_model
from llm_forget.testing import tiny_tokenizer


def counted(folder: Path, output: str, cache: str | None) -> None:
    """Run one evaluation; each process records its number of forward passes."""
    torch.set_num_threads(1)
    forwards: list[int] = []

    def load(config: Any) -> tuple[Any, Any]:
        model, tokenizer = load_model(config)
        model.register_forward_pre_hook(lambda *_: forwards.append(1))
        return model, tokenizer

    module.load_model = load  # type: ignore[assignment]
    oracle = folder / "one" / "eval" / "small.json"
    evaluate(
        EvalRecipe(
            model=ModelConfig(name=str(folder / "model"), dtype="float32"),
            suite=str(folder / "small.yaml"),
            output_dir=str(folder / output),
            controls=ControlsConfig(oracle=str(oracle) if oracle.is_file() else None),
            cache=cache,
        )
    )
    (folder / output).mkdir(exist_ok=True)
    (folder / output / f"forwards-{PartialState().process_index}").write_text(str(len(forwards)))


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Yield the places where two results differ by more than 1e-6; times are ignored."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        return [
            found for key in one if key != "seconds" for found in differences(one[key], other[key], f"{place}.{key}")
        ]
    if isinstance(one, list):
        assert len(one) == len(other), place
        return [
            found
            for index, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{place}.{index}")
        ]
    if isinstance(one, float) and isinstance(other, float):
        return [] if math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6) else [f"{place}: {one} {other}"]
    return [] if one == other else [f"{place}: {one!r} {other!r}"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_FORGET_CACHE", raising=False)
    monkeypatch.setattr(module, "load_model", load_model)  # restored after `counted` ran in this process
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    write_sets(tmp_path, count=7)
    task = str(write_task(tmp_path))
    suite = {
        "sets": {
            "forget": {"data": {"path": "forget.jsonl"}},
            "retain": {"data": {"path": "retain.jsonl"}, "utility": "probability"},
        },
        "generation": {"max_new_tokens": 5, "batch_size": 2},
        "perplexity": {"path": "neutral.txt", "window": 40, "stride": 20},
        "capability": {"task": task},
        "benchmarks": {"tasks": [task], "limit": 3},
        "batch_tokens": 256,
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(folder: Path) -> None:
    counted(folder, "one", cache=None)  # no controls yet: this result is the oracle of all later ones
    counted(folder, "alone", cache=str(folder / "of-one"))
    alone = read_results(folder / "alone" / "eval" / "small.json")
    assert alone["forget_quality"]["forget"]["arithmetic"]["pvalue"] == 1
    assert alone["controls"]["oracle"]["model_utility"] == alone["model_utility"]

    for output, cache in (("cold", "of-two"), ("warm", "of-two"), ("from-one", "of-one")):
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # lm-eval created one for this process, and a fork inherits it
        debug_launcher(counted, (folder, output, str(folder / cache)), num_processes=2)
        found = read_results(folder / output / "eval" / "small.json")
        assert differences(alone, found) == [], output
    done = {
        output: [int((folder / output / f"forwards-{rank}").read_text()) for rank in ranks]
        for output, ranks in (("alone", [0]), ("cold", [0, 1]), ("warm", [0, 1]), ("from-one", [0, 1]))
    }
    # each process does its share, plus eight short forwards to test how its head and its attention can be used
    assert max(done["cold"]) < 0.75 * done["alone"][0], done
    assert max(done["warm"] + done["from-one"]) <= 8, done
    assert json.loads((folder / "cold" / "eval" / "small.json").read_text())["scores"]["rows"] == 7 + 7 + 6
