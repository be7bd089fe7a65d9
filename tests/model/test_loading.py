"""Test that a model loads whole or not at all: no random weights, no attached adapters, no error without a remedy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import llm_forget
from llm_forget.config import ModelConfig, UnlearnData, UnlearnRecipe
from llm_forget.data.examples import DataSource
from llm_forget.errors import RecipeError, UserError
from llm_forget.memory.plan import plan
from llm_forget.model.load import load_model, load_tokenizer, locate_model
from llm_forget.testing import tiny_model, tiny_tokenizer
from llm_forget.utils.pretrained import load_pretrained

Change = Callable[[Path], None]
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(edit(load_file(path)), path, metadata={"format": "pt"})

    return change


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


CODE = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
BASES: dict[str, tuple[Change, str]] = {
    "one tensor fewer": (
        weights(lambda found: {name: value for name, value in found.items() if "1.mlp.up_proj" not in name}),
        r"files lack model\.layers\.1\.mlp\.up_proj\.weight, which would be random numbers. A shard is missing",
    ),
    "renamed tensors": (
        weights(lambda found: {name.replace("q_proj", "query"): value for name, value in found.items()}),
        r"lack .*q_proj.*They hold .*query.*names were changed",
    ),
    "another architecture": (config(model_type="gpt2"), "config.json names another architecture"),
    "not tied": (config(tie_word_embeddings=False), r"lack lm_head\.weight.*Check tie_word_embeddings"),
    "one layer fewer": (config(num_hidden_layers=1), r"hold model\.layers\.1\..*layers that config.json leaves out"),
    "no layers": (config(num_hidden_layers=0), r"hold model\.layers\.0\..*layers that config.json leaves out"),
    "more layers": (config(num_hidden_layers=3), r"lack model\.layers\.2\..*describes a larger model"),
    "9,000 layers": (
        config(num_hidden_layers=9_000),
        r"9000 layers \(num_hidden_layers\), and the files hold 20 tensors",
    ),
    "ten million layers": (config(num_hidden_layers=10_000_000), r"num_hidden_layers is 1e\+07.*correct it"),
    "a huge vocabulary": (config(vocab_size=10**12), r"describes 6\.4e\+13 weights, and the files hold"),
    "other shapes": (
        config(intermediate_size=96),
        r"down_proj\.weight is \(64, 128\) in the files and \(64, 96\) in the",
    ),
    "integers": (
        weights(lambda found: {name: value.to(torch.int8) for name, value in found.items()}),
        "is stored as I8, and config.json has no quantization_config",
    ),
    "a word as size": (config(hidden_size="x"), "cannot be loaded: .*expected int, got str.*check its config.json"),
    "a number as architectures": (config(architectures=5), "the model in .* cannot be loaded: "),
    "an unknown activation": (config(hidden_act="nothing"), "cannot be loaded: KeyError: 'nothing'"),
    "an unknown type": (config(model_type="nope"), "model type `nope`.*update transformers"),
    "code": (config(model_type="own", auto_map=CODE), "if you trust the code in it, set model.trust_remote_code: true"),
    "gptq without its package": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "install what it asks",
    ),
    "flash attention": (config(_attn_implementation="flash_attention_2"), "set model.attention: sdpa or eager"),
    "another adapter inside": (text("adapter_config.json", "{}"), "Transformers would attach the adapter"),
    "an empty config": (text("config.json", ""), r"config\.json is not a JSON mapping \(it is empty\)"),
    "a list as config": (text("config.json", "[1]"), r"config\.json is not a JSON mapping \(it is a list\)"),
    "a binary config": (text("config.json", b"\xff\x00"), r"config\.json is not a JSON mapping"),
    "no weights": (text("model.safetensors", ""), "is damaged: .*Copy or save it again"),
    "a list as generation config": (text("generation_config.json", "[1]"), "the model in .* cannot be loaded: "),
    "an empty tokenizer": (text("tokenizer.json", ""), "the tokenizer in .* cannot be loaded: .*tokenizer files"),
    "a list as tokenizer": (text("tokenizer.json", "[1]"), "the tokenizer in .* cannot be loaded: "),
    "a binary tokenizer config": (text("tokenizer_config.json", b"\xff\xfe"), "the tokenizer in .* cannot be loaded: "),
    "a list as longest row of the tokenizer": (
        text("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": [1]}'),
        "the tokenizer in .* cannot be loaded: .*tokenizer files",
    ),
    "brackets": (
        text("tokenizer_config.json", "[" * 100_000),
        "the tokenizer in .* cannot be loaded: maximum recursion",
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_a_damaged_base_is_refused_with_reason_and_remedy(whole: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    change, message = BASES[name]
    change(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(ModelConfig(str(folder), dtype="float32"))
    assert str(folder) in str(caught.value)


def test_tensors_that_the_model_does_not_use_are_told(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    weights(lambda found: {**found, "value_head.weight": torch.ones(2)})(folder)
    load_model(ModelConfig(str(folder), dtype="float32"))
    assert "does not use value_head.weight in its files" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/name with spaces", "no hub id: an id is owner/name"),
        ("./gone", "does not exist; give a model folder"),
        ("~/gone/model", "does not exist"),
        ("package:a.b", "package:a.b is no Python package"),
        ("package:..", r"package:\.\. is no Python package"),
        ("package:json", "found no GGUF file in a Python package 'json'"),
        ("package:__main__", "found no GGUF file in a Python package '__main__'"),
    ],
)
def test_names_that_are_no_model(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        locate_model(name)


def test_ids_of_the_hub_may_have_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate_model("gpt2") == "gpt2"
    (tmp_path / "my_model").mkdir()
    with pytest.raises(RecipeError, match="the folder my_modle does not exist, did you mean my_model"):
        locate_model("my_modle")


def test_a_hub_id_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        RecipeError, match=r"the model in nobody/nothing-here cannot be loaded: .*download the model first"
    ):
        load_model(ModelConfig("nobody/nothing-here"))
    with pytest.raises(RecipeError, match="the tokenizer in nobody/nothing-here cannot be loaded: "):
        load_tokenizer(ModelConfig("nobody/nothing-here"))


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True}),
    "untied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": False}),
    "buffers": ("GPT2Config", {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "renamed head": ("GPTNeoXConfig", {key: value for key, value in SMALL.items() if "key_value" not in key}),
    "experts": ("MixtralConfig", {**SMALL, "num_local_experts": 4}),
    "experts and shared expert": ("Qwen2MoeConfig", {**SMALL, "num_experts": 4, "moe_intermediate_size": 16}),
    "recurrent": ("MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "multimodal": (
        "Gemma3Config",
        {
            "text_config": {**SMALL, "head_dim": 8},
            "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
        },
    ),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_checkpoint_loads_as_it_was_saved(tmp_path: Path, kind: str) -> None:
    name, settings = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings))
    model.save_pretrained(tmp_path / "model", max_shard_size="50KB")
    loaded = load_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    saved = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], value) for key, value in saved.items())


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_loads_are_complete(whole: Path, quantization: Any) -> None:
    pytest.importorskip("bitsandbytes")
    model, tokenizer = load_model(ModelConfig(str(whole), dtype="float32", quantization=quantization))
    with torch.no_grad():
        assert model(**tokenizer("Ada", return_tensors="pt")).logits.isfinite().all()


def test_only_one_place_loads_weights() -> None:
    """So that its checks hold for every command. Cards and messages name the calls too."""
    package = Path(llm_forget.__file__).parent
    loads = re.compile(r"AutoModel\w*\.from_pretrained|PeftModel\.from_pretrained")
    places = {str(file.relative_to(package)) for file in package.rglob("*.py") if loads.search(file.read_text())}
    assert places <= {"utils/pretrained.py", "model/adapted.py", "adapters/parity.py", "adapters/card.py", "api.py"}


@pytest.mark.parametrize(
    "changes", [{"architectures": 5}, {"sub_configs": "x", "text_config": {"a": 1}}, {"num_attention_heads": 0}]
)
def test_plan_refuses_a_damaged_config_too(whole: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = shutil.copytree(whole, tmp_path / "model")
    config(**changes)(folder)
    recipe = UnlearnRecipe(
        model=ModelConfig(str(folder)),
        data=UnlearnData(DataSource("rows.jsonl"), DataSource("kept.jsonl")),
        method={"name": "npo"},
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(UserError, match=r"the model in .* cannot be loaded: "):
        plan(recipe, on_card=False)
