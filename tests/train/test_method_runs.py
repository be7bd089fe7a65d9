"""Test whole runs of methods that need more than log-probs and of wrappers, and errors in their recipes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from memorised import SECRET
from rich.console import Console
from safetensors.torch import load_file

import llm_forget.train.unlearn
from llm_forget.config import UnlearnRecipe
from llm_forget.data.readers import locate
from llm_forget.errors import UserError
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build

RUNS: dict[str, dict[str, Any]] = {
    "idk_nll": {"method": {"name": "idk_nll"}},
    "dpo": {"method": {"name": "dpo"}, "retain": {"weight": 4.0}},
    "alt_npo": {"method": {"name": "alt_npo"}, "alternative": {"max_new_tokens": 5}},
    "jensun": {"method": {"name": "jensun"}},
    "undial": {"method": {"name": "undial"}, "retain": {"name": "nll"}},
    "rmu": {"method": {"name": "rmu", "coefficient": 5.0, "layer": 1}},
    "pdu": {"method": {"name": "pdu"}, "wrappers": [{"name": "dual"}], "forget_weight": 0.1},
    "npo_null_space": {"method": {"name": "npo"}, "wrappers": [{"name": "null_space", "energy": 0.5}]},
    "npo_wrapped": {
        "method": {"name": "npo"},
        "wrappers": [{"name": "straight_through"}, {"name": "sam"}, {"name": "gru"}],
    },
    "undial_full": {"method": {"name": "undial"}, "retain": {"name": "kl"}, "adapter": None},
    "rmu_full": {"method": {"name": "rmu", "coefficient": 5.0, "layer": 0}, "adapter": None},
}


def recipe_of(memorised_folder: Path, tmp_path: Path, **changes: Any) -> UnlearnRecipe:
    values: dict[str, Any] = {
        "model": {"name": str(memorised_folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(memorised_folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "adapter": {"rank": 8, "alpha": 16},
        "train": {"epochs": 10, "batch_size": 4, "learning_rate": 2e-3 if changes.get("adapter", 1) is None else 1e-2},
        "stop": {"forget_target": 0.2, "utility_floor": 0.0, "every": 2},
        "output_dir": str(tmp_path / "run"),
        **changes,
    }
    return build(UnlearnRecipe, yaml.safe_load(yaml.safe_dump(values)), "test")


@pytest.mark.parametrize("name", RUNS)
def test_forgets_and_does_not_store_the_alternative_answers(name: str, memorised_folder: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    record = unlearn(recipe_of(memorised_folder, tmp_path, **RUNS[name]), Console(file=shown))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record.before.forget > 0.8
    assert min(row["forget"] for row in rows if row["phase"] == "check") < record.before.forget - 0.1
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    for text in (shown.getvalue(), *(path.read_text(errors="replace") for path in files)):
        assert SECRET not in text
        assert "I don't know" not in text
    assert locate(str(memorised_folder / "forget.jsonl")), "the search above had something to find"


def test_rmu_trains_the_steered_block_and_the_two_before_it(memorised_folder: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": {"name": "rmu", "layer": 0, "coefficient": 5.0}}
    unlearn(recipe_of(memorised_folder, tmp_path, **changes), Console(file=io.StringIO()))
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert names
    assert all(".layers.0." in name for name in names)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_forget.train.unlearn, "load_weights", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrappers": [{"name": "samm"}]}, "unknown wrapper 'samm'; did you mean 'sam'"),
        ({"wrappers": [{"rho": 0.1}]}, "each entry needs a name"),
        ({"wrappers": [{"name": "sam", "rho": -1}]}, "rho is -1"),
        ({"wrappers": [{"name": "gru"}], "retain": {"name": None}}, "wrapper gru cannot be used in this run"),
        ({"wrappers": [{"name": "straight_through"}], "model": {"quantization": "nf4"}}, "quantization: null"),
        ({"wrappers": [{"name": "sam"}], "method": {"name": "adapter_subtraction"}}, "trains towards the forget set"),
        (
            {"method": {"name": "rmu", "layer": 1}, "retain": {"name": "activation", "settings": {"layer": 0}}},
            "different layers",
        ),
        ({"retain": {"name": "nll", "settings": {"layer": 0}}}, "layer: unknown key"),
        ({"method": {"name": "dpo"}, "alternative": {"source": "column"}}, "have no `alternative`"),
        ({"method": {"name": "dpo"}, "alternative": {"path": "gone.txt"}}, "gone.txt: cannot be read"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(
    changes: dict[str, Any], words: str, memorised_folder: Path, tmp_path: Path
) -> None:
    model = {"name": str(memorised_folder / "model"), "dtype": "float32", **changes.pop("model", {})}
    with pytest.raises(UserError) as caught:
        unlearn(recipe_of(memorised_folder, tmp_path, **{"method": {"name": "npo"}, **changes, "model": model}))
    assert words in str(caught.value)


def test_a_layer_outside_the_model_is_refused(memorised_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a block of this model, from 0 to 1"):
        unlearn(recipe_of(memorised_folder, tmp_path, method={"name": "rmu", "layer": 7}), Console(file=io.StringIO()))
