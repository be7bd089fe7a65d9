"""Test sanitising on a tiny model: the effect on rows to keep goes, the forgetting comes back, and the file keeps its form."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memorised import write_memorised
from rich.console import Console
from safetensors.torch import load_file
from townspeople import FORGET, NEIGHBOURS, RETAIN
from typer.testing import CliRunner

from llm_forget.adapters.lora import load_adapter
from llm_forget.cli.main import app
from llm_forget.config import ModelConfig, UnlearnRecipe
from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, Example, Message
from llm_forget.errors import AdapterError
from llm_forget.model.moments import input_moments
from llm_forget.search.behaviour import Probe
from llm_forget.search.sanitise import Rows, sanitise_adapter
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.train.unlearn import unlearn
from llm_forget.utils.build import build


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that forgets three people and harms all others: it was trained without retain rows."""
    folder = tmp_path_factory.mktemp("harmful")
    write_memorised(folder, {"forget": FORGET, "retain": RETAIN, "neighbour": NEIGHBOURS})
    values: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {name: {"path": str(folder / f"{name}.jsonl")} for name in ("forget", "retain")},
        "adapter": {"rank": 8, "alpha": 8},
        "output_dir": str(folder / "run"),
        "method": {"name": "npo"},
        "retain": {"name": None},
        "train": {"epochs": 40, "batch_size": 4, "learning_rate": 3e-3},
        "stop": {"forget_target": 0.1, "utility_floor": 0.0, "every": 1},
    }
    unlearn(build(UnlearnRecipe, values, "test"), Console(file=io.StringIO()))
    return folder


def probe(folder: Path) -> Probe:
    return Probe(ModelConfig(str(folder / "model"), dtype="float32"))


def source(folder: Path, name: str) -> DataSource:
    return DataSource(str(folder / f"{name}.jsonl"))


def test_neighbours_that_were_not_given_come_back_at_the_same_forgetting(harmful: Path) -> None:
    adapter = load_adapter(harmful / "run" / "adapter")
    rows = Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=24)
    found = sanitise_adapter(adapter, probe(harmful), rows, floor=0.0)
    assert found.before.forget is not None
    assert found.after.forget is not None
    assert found.after.forget <= found.before.forget
    assert found.after.kept(found.base) > found.before.kept(found.base) + 0.2
    projected = sanitise_adapter(adapter, probe(harmful), rows, energy=0.75)
    assert projected.after.kept(found.base) < found.after.kept(found.base), "it knows less"
    unseen = Rows(source(harmful, "neighbour"), source(harmful, "forget"), virtual=0)
    kept = [
        sanitise_adapter(one, probe(harmful), unseen, energy=0.01, rescale=False).before
        for one in (adapter, found.adapter)
    ]
    assert (kept[1].keep or 0) > (kept[0].keep or 0) + 0.2, "no neighbour was given"


def test_the_command_changes_a_alone_and_keeps_rank_alpha_and_config(harmful: Path, tmp_path: Path) -> None:
    before = harmful / "run" / "adapter"
    given = [
        "--adapter",
        before,
        "--base",
        harmful / "model",
        "--dtype",
        "float32",
        "--retain",
        harmful / "retain.jsonl",
    ]
    done = CliRunner().invoke(app, ["sanitise", *map(str, given), "--no-rescale", "--to", str(tmp_path / "clean")])
    assert done.exit_code == 0, done.output
    assert "norm of the change left: 0." in done.output
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (before, tmp_path / "clean"))
    assert old.keys() == new.keys()
    for name, value in old.items():
        assert new[name].shape == value.shape
        assert torch.equal(new[name], value) == ("lora_B" in name)
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (before, tmp_path / "clean")]
    assert configs[0]["r"] == configs[1]["r"]
    assert configs[0]["lora_alpha"] == configs[1]["lora_alpha"]
    written = (tmp_path / "clean" / "README.md").read_text() + done.output
    assert not any(name in written for name in ("Ada", "Where does"))


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (Rows(None, None), {}, "give --retain, --forget or both"),
        (Rows(DataSource("x"), None), {}, "needs --forget; give it, or --no-rescale"),
        (Rows(DataSource("x"), DataSource("x")), {"energy": 1.0}, "--energy is 1.0"),
        (Rows(DataSource("x"), DataSource("x")), {"weight": 0}, "--weight is 0"),
    ],
)
def test_what_cannot_work_is_refused(harmful: Path, rows: Rows, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        sanitise_adapter(load_adapter(harmful / "run" / "adapter"), probe(harmful), rows, **settings)


def test_a_floor_that_no_strength_keeps_is_refused(harmful: Path) -> None:
    rows = Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=0)
    with pytest.raises(AdapterError, match=r"no strength down to .* keeps 200%"):
        sanitise_adapter(load_adapter(harmful / "run" / "adapter"), probe(harmful), rows, floor=2.0)


def test_moments_against_a_loop_over_rows_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths in one batch; query, key and value share one moment; one pass per group gives the same."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    rows = encode_all(tokenizer, read_rows(), EncodingConfig())[0]
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name]
    found = list(input_moments(model, names, [rows, rows[:1]], 0))
    assert [len(group) for group, _ in found] == [3, 1, 2, 1] * 2
    wanted: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: wanted[name].append(x[0][0]))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([row.input_ids]))
    for group, (moment, _) in found:
        for name in group:
            flat = torch.nn.functional.normalize(torch.cat(wanted[name]), dim=-1)
            torch.testing.assert_close(moment, flat.T @ flat / len(flat), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr("llm_forget.model.moments._MEMORY", 1.0)
    again = {group[0]: moments[1] for group, moments in input_moments(model, names, [rows, rows[:1]], 0)}
    for group, (_, moment) in found:
        torch.testing.assert_close(again[group[0]], moment)


def read_rows() -> list[Example]:
    return [Example(str(size), (Message("user", "a" * size),), "b" * size) for size in (1, 9, 30)]
