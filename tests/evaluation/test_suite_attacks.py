"""Test attacks, PrivLeak, leak@k and the KL to the target, from a suite to its results."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_examples import PLANTED, tiny_model, write_jsonl, write_sets
from peft import LoraConfig, get_peft_model

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import DataSource, read_examples
from llm_forget.errors import RecipeError, UserError
from llm_forget.evaluation.aggregates.auc import auc
from llm_forget.evaluation.aggregates.privleak import privleak_of
from llm_forget.evaluation.membership import AttacksConfig
from llm_forget.evaluation.results import write_results
from llm_forget.evaluation.run_suite import run_suite
from llm_forget.evaluation.sets import GenerationConfig, SamplingConfig, SetConfig
from llm_forget.evaluation.suite import PerplexityConfig, Suite, load_suite
from llm_forget.testing import memorise, tiny_tokenizer

Results = dict[str, Any]
DEFAULT = {"loss", "zlib", "min_k", "min_k_plus_plus"}


def make_suite(folder: Path, **changes: Any) -> Suite:
    write_sets(folder)
    rows = [
        {"question": f"What is the sum {index}?", "answer": f"Nobody knows {PLANTED} {index * 7}."}
        for index in range(4)
    ]
    write_jsonl(folder / "holdout.jsonl", rows)
    sets = {
        name: SetConfig(DataSource(str(folder / f"{name}.jsonl")), answers=["answer"], generate=False)
        for name in ("forget", "holdout")
    }
    return replace(
        Suite(name="tiny", sets=sets, generation=GenerationConfig(max_new_tokens=6, batch_size=8)), **changes
    )


def measure(suite: Suite, folder: Path, model: Any = None, **more: Any) -> Results:
    return run_suite(suite, model or tiny_model(), tiny_tokenizer(), **more)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a model that has learned the forget set, and a folder with the sets."""
    folder = tmp_path_factory.mktemp("attacks")
    make_suite(folder)
    model = tiny_model()
    rows, _ = encode_all(
        tiny_tokenizer(), read_examples(DataSource(str(folder / "forget.jsonl"))), EncodingConfig(max_length=512)
    )
    memorise(model, rows, steps=40)
    return folder, model


def test_attacks_on_a_model_that_learned_the_set(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    suite = make_suite(folder)
    results = measure(suite, folder, model)
    attacks = results["attacks"]
    assert (attacks["members"], attacks["nonmembers"]) == ("forget", "holdout")
    assert set(attacks["auc"]) == DEFAULT
    for found in attacks["auc"].values():
        assert (found["value"], found["n"], found["n_nonmembers"], found["n_nan"]) == (1, 5, 4, 0)
        assert (found["forgotten"], found["bounds"]) == ("oracle", [0, 1])
    rows = results["sets"]["forget"]["examples"].values()
    assert all(row["attack_loss"] == pytest.approx(math.log(row["probability"])) for row in rows)
    fresh = measure(suite, folder)
    columns = [
        [row["attack_min_k"] for row in fresh["sets"][name]["examples"].values()] for name in ("forget", "holdout")
    ]
    assert fresh["attacks"]["auc"]["min_k"]["value"] == auc(*columns).value < 1
    assert "attacks" in results["seconds"]
    assert PLANTED not in json.dumps(results)


def test_privleak_needs_the_oracle(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    suite = make_suite(folder)
    alone = measure(suite, folder, model)
    assert alone["privleak"] is None
    assert any("PrivLeak was not computed: it needs the oracle" in warning for warning in alone["warnings"])
    oracle = json.loads(json.dumps(measure(suite, folder)))
    found = measure(suite, folder, model, controls={"oracle": oracle})
    expected = oracle["attacks"]["auc"]["min_k"]["value"]
    assert (found["privleak"]["auc"], found["privleak"]["oracle_auc"]) == (1, expected)
    assert found["privleak"]["value"] == pytest.approx(float(privleak_of(1.0, expected))) == -100
    assert any(line.startswith("PrivLeak is -100.0") for line in found["verdict"])
    assert any("min_k attack's AUC is 1.000" in line for line in found["verdict"])
    # an oracle measured without attacks, or on other rows
    for row in oracle["sets"]["holdout"]["examples"].values():
        del row["attack_min_k"]
    older = measure(suite, folder, model, controls={"oracle": oracle})
    assert older["privleak"] is None
    assert any("have no Min-K scores of holdout" in warning for warning in older["warnings"])
    fewer = replace(suite, sets={**suite.sets, "holdout": replace(suite.sets["holdout"], limit=3)})
    with pytest.raises(UserError, match="not measured on the same holdout set"):
        measure(suite, folder, model, controls={"oracle": measure(fewer, folder)})


def test_named_sets_and_attacks(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    suite = make_suite(folder)
    renamed = replace(
        suite,
        sets={"learned": suite.sets["forget"], "new": suite.sets["holdout"]},
        attacks=AttacksConfig("learned", "new", [{"name": "min_k", "k": 0.2}, "grad_norm"]),
    )
    found = measure(renamed, folder, model)
    assert set(found["attacks"]["auc"]) == {"min_k_0.2", "grad_norm"}
    assert found["attacks"]["auc"]["min_k_0.2"]["settings"] == {"k": 0.2}
    assert found["attacks"]["auc"]["grad_norm"]["value"] == 1  # a learned row has a small gradient
    assert found["privleak"] is None
    assert not any("PrivLeak" in warning for warning in found["warnings"])
    assert measure(replace(suite, attacks=None), folder)["attacks"] is None
    alone = measure(replace(suite, sets={"forget": suite.sets["forget"]}), folder)
    assert (alone["attacks"], alone["privleak"]) == (None, None)


def test_the_reference_attack(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    suite = make_suite(folder)
    base = measure(suite, folder)
    write_results(base, folder / "base.json")
    against = replace(suite, attacks=AttacksConfig(reference=str(folder / "base.json")))
    found = measure(against, folder, model)
    assert set(found["attacks"]["auc"]) == DEFAULT | {"reference"}
    for name in ("forget", "holdout"):
        for one, row in found["sets"][name]["examples"].items():
            gained = row["attack_loss"] - base["sets"][name]["examples"][one]["attack_loss"]
            assert row["attack_reference"] == pytest.approx(gained)
    # results without attacks still have the probability; its log is the score
    for part in base["sets"].values():
        for row in part["examples"].values():
            del row["attack_loss"]
    write_results(base, folder / "base.json")
    again = measure(against, folder, model)
    assert again["attacks"]["auc"]["reference"]["value"] == found["attacks"]["auc"]["reference"]["value"]
    with pytest.raises(RecipeError, match="needs another model's scores"):
        measure(replace(suite, attacks=AttacksConfig(attacks=["reference"])), folder)
    with pytest.raises(RecipeError, match=r"attacks\.reference: .*nowhere\.json"):
        measure(replace(suite, attacks=AttacksConfig(reference="nowhere.json")), folder)


def test_leak_of_a_model_that_learned_the_set(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    sampling = SamplingConfig(samples=4, temperature=0.2, k=[1, 4])
    generation = GenerationConfig(max_new_tokens=40, batch_size=8, sampling=sampling)
    suite = make_suite(folder, generation=generation)
    assert measure(suite, folder, model)["leak"] is None  # its sets have no prompts to sample from
    suite = replace(suite, metrics=["probability"], sets={"forget": replace(suite.sets["forget"], generate=True)})
    found = measure(suite, folder, model)["leak"]
    assert set(found) == {"forget"}
    assert (found["forget"]["temperature"], found["forget"]["seed"], found["forget"]["threshold"]) == (0.2, 0, 0.8)
    at = found["forget"]["at"]
    assert at["4"]["value"] >= at["1"]["value"] > 0.5
    assert at["4"]["low"] <= at["4"]["value"] <= at["4"]["high"]
    results = measure(suite, folder)
    assert results["leak"]["forget"]["at"]["4"]["value"] == 0
    assert results["leak"]["forget"]["at"]["4"]["high"] == pytest.approx(
        3.8415 / (5 + 3.8415), abs=1e-4
    )  # Wilson, 0 of 5
    assert [row["leak_samples"] for row in results["sets"]["forget"]["examples"].values()] == [0] * 5
    assert PLANTED not in json.dumps(results)
    assert measure(make_suite(folder), folder)["leak"] is None


def test_a_reference_is_added_to_the_named_attacks(knowing: tuple[Path, Any]) -> None:
    folder, model = knowing
    suite = make_suite(folder)
    write_results(measure(suite, folder), folder / "fresh.json")
    for named in (["min_k"], ["min_k", "reference"], ["min_k", {"name": "reference"}]):
        config = AttacksConfig(attacks=named, reference=str(folder / "fresh.json"))
        found = measure(replace(suite, attacks=config), folder, model)
        assert set(found["attacks"]["auc"]) == {"min_k", "reference"}


def test_an_attack_that_the_model_does_not_support_is_refused_before_any_work(tmp_path: Path) -> None:
    """Quantised weights have no gradient, and a model without an adapter has no adapter matrices."""
    packed = tiny_model()
    packed.register_parameter("packed", torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    packed.forward = None  # any work would fail
    suite = make_suite(tmp_path, attacks=AttacksConfig(attacks=["grad_norm"]))
    with pytest.raises(UserError, match=r"attacks, grad_norm: .*quantised.*leave the attack out"):
        measure(suite, tmp_path, packed)
    by_adapter = make_suite(tmp_path, attacks=AttacksConfig(attacks=[{"name": "grad_norm", "parameters": "adapter"}]))
    with pytest.raises(UserError, match="no weight of the model matches"):
        measure(by_adapter, tmp_path)


def test_expensive_results_are_cached(knowing: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples, gradients and KL are computed once, and again for another seed, target or model. No text is stored."""
    folder, model = knowing
    sampling = SamplingConfig(samples=2, temperature=0.2, k=[1, 2])
    suite = make_suite(
        folder,
        attacks=AttacksConfig(attacks=["grad_norm"]),
        generation=GenerationConfig(max_new_tokens=20, batch_size=8, sampling=sampling),
        perplexity=PerplexityConfig(str(folder / "neutral.txt"), window=40, stride=20, kl=True),
        metrics=["probability", "kl_to_target"],
    )
    suite = replace(suite, sets={name: replace(one, generate=True, kl=True) for name, one in suite.sets.items()})
    cache = folder / "cache"

    def again(model: Any, changed: Suite = suite, target: int = 1) -> Results:
        found = measure(changed, folder, model, target_model=tiny_model(target), cache=cache)
        return {**found, "seconds": 0}

    first = again(model)
    assert {file.parent.parent.name for file in cache.rglob("*.safetensors")} >= {"leak", "gradients", "kl"}
    kept = [file for file in cache.rglob("*") if file.is_file()]
    assert not any(PLANTED.encode() in file.read_bytes() for file in kept)
    done: list[str] = []

    def watch(module: str, name: str) -> None:
        original = getattr(importlib.import_module(f"llm_forget.evaluation.{module}"), name)

        def counted(*args: Any, **settings: Any) -> Any:
            done.append(name)
            return original(*args, **settings)

        monkeypatch.setattr(f"llm_forget.evaluation.{module}.{name}", counted)

    watch("leak", "samples_of")
    watch("membership", "gradient_norms")
    watch("sets", "token_kl")
    assert again(model) == first
    assert done == []
    again(model, replace(suite, seed=1))
    assert done == ["samples_of"]
    done.clear()
    assert again(model, target=2)["kl_to_target"]["value"] != first["kl_to_target"]["value"]
    assert done == ["token_kl"] * 3
    done.clear()
    again(tiny_model(3))
    assert sorted(done) == ["gradient_norms"] * 2 + ["samples_of"] + ["token_kl"] * 3


def kl_suite(folder: Path) -> Suite:
    suite = make_suite(
        folder, attacks=None, perplexity=PerplexityConfig(str(folder / "neutral.txt"), window=40, stride=20, kl=True)
    )
    return replace(suite, sets={**suite.sets, "holdout": replace(suite.sets["holdout"], kl=True)})


def test_kl_to_the_target(tmp_path: Path) -> None:
    suite = kl_suite(tmp_path)
    other = tiny_model(1)
    found = measure(suite, tmp_path, target_model=other)
    assert "kl_to_target" not in found["sets"]["forget"]["metrics"]
    one = found["sets"]["holdout"]["metrics"]["kl_to_target"]
    assert one["low"] < one["value"] < one["high"]
    assert (one["n"], one["n_nan"], one["bounds"]) == (4, 0, [0, None])
    text = found["kl_to_target"]
    assert (text["n"], text["windows"]) == (found["perplexity"]["n"], found["perplexity"]["windows"])
    assert text["low"] <= text["value"] <= text["high"]
    itself = measure(suite, tmp_path, target_model=tiny_model())
    assert itself["sets"]["holdout"]["metrics"]["kl_to_target"]["value"] == pytest.approx(0, abs=1e-5)
    assert itself["kl_to_target"]["value"] == pytest.approx(0, abs=1e-5)


def test_kl_with_and_without_an_adapter(tmp_path: Path) -> None:
    suite = kl_suite(tmp_path)
    wrapped = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    own = measure(suite, tmp_path, wrapped)
    given = measure(suite, tmp_path, wrapped, target_model=tiny_model())
    for found in (own, given):
        assert found["kl_to_target"]["value"] > 0.01
        assert not found["warnings"]
    np.testing.assert_allclose(own["kl_to_target"]["value"], given["kl_to_target"]["value"], rtol=1e-4)
    without = measure(suite, tmp_path)
    assert without["kl_to_target"] is None
    assert "kl_to_target" not in without["sets"]["holdout"]["metrics"]
    assert any("no KL to the target" in warning for warning in without["warnings"])
    assert suite.perplexity is not None
    auto = replace(suite, perplexity=replace(suite.perplexity, kl="auto"))
    auto = replace(auto, sets={**auto.sets, "holdout": replace(auto.sets["holdout"], kl="auto")})
    silent = measure(auto, tmp_path)
    assert (silent["kl_to_target"], silent["warnings"]) == (None, [])
    assert measure(auto, tmp_path, wrapped)["kl_to_target"] == own["kl_to_target"]
    assert "kl_to_target" in measure(auto, tmp_path, wrapped)["sets"]["holdout"]["metrics"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("attacks: {members: forgot}", "attacks names forgot"),
        ("attacks: {members: forget, nonmembers: forget}", "give two different sets"),
        ("attacks: {member: forget}", "did you mean 'members'"),
        ("generation: {sampling: {k: [100]}}", "from 1 up to samples"),
        ("generation: {sampling: {temprature: 1}}", "did you mean 'temperature'"),
    ],
)
def test_mistakes_in_a_suite_file_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text("sets: {forget: {data: {path: a}}}\n" + line)
    with pytest.raises(RecipeError, match=message):
        load_suite(str(tmp_path / "bad.yaml"))


def test_a_broken_model_gives_counted_nan(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    suite = make_suite(tmp_path, attacks=AttacksConfig(attacks=["loss", "min_k", "grad_norm"]))
    found = measure(suite, tmp_path, model, controls={"oracle": measure(suite, tmp_path)})
    for one in found["attacks"]["auc"].values():
        assert (one["value"], one["n"], one["n_nan"]) == (None, 0, 9)
    assert found["privleak"]["value"] is None
    assert found["privleak"]["n_nan"] == 9
    assert any("no row of one class could be scored" in warning for warning in found["warnings"])
