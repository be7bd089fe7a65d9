"""Test sanitising on a tiny model: the effect on rows to keep goes, the forgetting comes back, and the file keeps its form."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
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
from llm_forget.model.measure import answer_logps
from llm_forget.model.moments import input_moments
from llm_forget.search.behaviour import AdaptedModel, Probe
from llm_forget.search.sanitise import least_strength, sanitise_adapter
from llm_forget.search.sanitise_base import Rows, SanitiseBase
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


def base_of(folder: Path, rows: Rows, dtype: str = "float32") -> SanitiseBase:
    return SanitiseBase(Probe(ModelConfig(str(folder / "model"), dtype=dtype)), rows)  # type: ignore[arg-type]


def source(folder: Path, name: str) -> DataSource:
    return DataSource(str(folder / f"{name}.jsonl"))


def test_neighbours_that_were_not_given_come_back_at_the_same_forgetting(harmful: Path) -> None:
    adapter = load_adapter(harmful / "run" / "adapter")
    base = base_of(harmful, Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=24))
    found = sanitise_adapter(adapter, base, floor=0.0)
    assert found.before.forget is not None
    assert found.after.forget is not None
    assert found.after.forget <= found.before.forget
    assert found.after.kept(found.base) > found.before.kept(found.base) + 0.2
    projected = sanitise_adapter(adapter, base, energy=0.75)
    assert projected.after.kept(found.base) < found.after.kept(found.base), "it knows less"
    unseen = base_of(harmful, Rows(source(harmful, "neighbour"), None))
    kept = [unseen.probability("keep", one) or 0 for one in (adapter, found.adapter)]
    assert kept[1] > kept[0] + 0.2, "no neighbour was given"


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
        sanitise_adapter(load_adapter(harmful / "run" / "adapter"), base_of(harmful, rows), **settings)


def test_an_adapter_that_changes_nothing_is_refused(harmful: Path) -> None:
    """A run that broke its floor at once keeps such an adapter."""
    adapter = load_adapter(harmful / "run" / "adapter")
    zero = replace(adapter, modules={name: replace(one, B=0 * one.B) for name, one in adapter.modules.items()})
    rows = Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=0)
    with pytest.raises(AdapterError, match="the adapter changes nothing"):
        sanitise_adapter(zero, base_of(harmful, rows))


def test_a_floor_that_no_strength_keeps_is_refused(harmful: Path) -> None:
    rows = Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=0)
    with pytest.raises(AdapterError, match="no strength that was tried keeps 200%"):
        sanitise_adapter(load_adapter(harmful / "run" / "adapter"), base_of(harmful, rows), floor=2.0)


def test_one_base_for_two_adapters_gives_what_two_bases_give(harmful: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second adapter has fewer layers. Rows are asked and inputs measured once, and no adapter stays on the model."""
    adapter = load_adapter(harmful / "run" / "adapter")
    fewer = replace(adapter, modules={name: one for name, one in adapter.modules.items() if "mlp" in name})
    rows = Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=12)
    alone = [sanitise_adapter(one, base_of(harmful, rows)) for one in (fewer, adapter)]
    passes: list[int] = []

    def counted(model: Any, modules: Any, sets: Any, pad: int) -> Any:
        passes.append(len(modules))
        return input_moments(model, modules, sets, pad)

    monkeypatch.setattr("llm_forget.search.sanitise_base.input_moments", counted)
    base = base_of(harmful, rows)
    shared = [sanitise_adapter(one, base) for one in (fewer, adapter, fewer)]
    assert passes == [len(fewer.modules), len(adapter.modules) - len(fewer.modules)]
    for one, other in zip([*alone, alone[0]], shared, strict=True):
        assert (one.strength, one.base, one.before, one.after) == (
            other.strength,
            other.base,
            other.before,
            other.after,
        )
        assert all(
            torch.equal(factors.A, other.adapter.modules[name].A) for name, factors in one.adapter.modules.items()
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_probabilities_with_hooks_are_those_with_peft(harmful: Path, dtype: str) -> None:
    adapter = load_adapter(harmful / "run" / "adapter")
    base = base_of(harmful, Rows(source(harmful, "retain"), source(harmful, "forget"), virtual=0), dtype)
    found = [base.mean_probability(base.sets["keep"], one) for one in (adapter, None)]
    peft = AdaptedModel(base.probe.model, [adapter])
    wanted = float(answer_logps(peft.model, base.sets["keep"], peft.pad_token_id)[1].mean())
    assert found[0] == pytest.approx(wanted, abs=1e-5 if dtype == "float32" else 0.01)
    assert abs(found[0] - found[1]) > 0.1


@pytest.mark.parametrize(
    ("wanted", "floor", "maximum", "least", "most"),
    [
        # forget exp(-s): the least strength is 3, and the answer at most 10 % below the target
        (math.exp(-3), 0.0, 64.0, 2.92, 3.2),
        (math.exp(-0.3), 0.0, 64.0, 0.29, 0.37),
        (math.exp(-3), 0.0, 2.5, 2.5, 2.5),
        (math.exp(-3), 0.6, 64.0, 1.75, 2.0),  # kept 1 - s/5: the floor binds at 2
        (math.exp(-9), 1.1, 64.0, 0.0, 0.0),
    ],
)
def test_the_least_strength(wanted: float, floor: float, maximum: float, least: float, most: float) -> None:
    """Rows to keep are not measured without a floor."""
    measured: list[float] = []

    def kept(strength: float) -> float:
        measured.append(strength)
        return 1 - strength / 5

    found = least_strength(lambda s: math.exp(-s), kept, wanted=wanted, floor=floor, maximum=maximum)
    assert least <= found <= most
    assert bool(measured) == (floor > 0)
    assert not found or math.exp(-found) <= wanted * 1.0001 or found == maximum or floor


def test_a_strength_without_a_finite_probability_is_not_taken() -> None:
    found = least_strength(
        lambda s: math.nan if s > 0.6 else math.exp(-s), lambda _: 1.0, wanted=0.01, floor=0, maximum=64
    )
    assert 0.5 <= found <= 0.6


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
