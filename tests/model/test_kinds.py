"""Test that models that are no causal language models of text are refused in words, and that attention is what the model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import TYPES, tiny, tiny_config
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from llm_forget.config import ModelConfig
from llm_forget.errors import RecipeError
from llm_forget.model.kinds import check_attention, check_config, check_forward
from llm_forget.model.load import attention_for, load_model
from llm_forget.testing import tiny_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def others() -> dict[str, nn.Module]:
    tokenizer = tiny_tokenizer()
    words = {"vocab_size": len(tokenizer)}
    return {
        "masked": BertForMaskedLM(BertConfig(**SIZES, **words)),
        "encoder": BertLMHeadModel(BertConfig(**SIZES, **words)),
        "encoder-decoder": T5ForConditionalGeneration(
            T5Config(**words, d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2)
        ),
        "vision": ViTForImageClassification(ViTConfig(**SIZES, image_size=16, patch_size=8)),
        "reward": LlamaForSequenceClassification(tiny_config("llama", tokenizer, num_labels=1)),
    }


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("masked", "saved as BertForMaskedLM"),
        ("encoder", r"lets a token see later ones"),
        ("encoder-decoder", "a t5 model, an encoder-decoder"),
        ("vision", "a vit model that was saved as ViTForImageClassification"),
        ("reward", "saved as LlamaForSequenceClassification"),
    ],
)
def test_other_kinds_of_models_are_refused_in_words(kind: str, reason: str, tmp_path: Path) -> None:
    model: Any = others()[kind]
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(RecipeError, match=reason) as refused:
        load_model(ModelConfig(str(tmp_path / "model"), dtype="float32"))
    assert refused.match("give a model that AutoModelForCausalLM loads")


def test_a_model_without_a_class_for_text_is_refused() -> None:
    with pytest.raises(RecipeError, match="m is a clip model, for which transformers has no causal language model"):
        check_config(AutoConfig.for_model("clip"), "m")


class _Peeking(nn.Module):
    """Adds to the logits of each position something that belongs to another place."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.model, self.what = tiny("llama", tiny_tokenizer()), what
        self.config, self.get_output_embeddings = self.model.config, self.model.get_output_embeddings

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        if self.what == "images":
            raise ValueError("You must specify pixel_values")
        out = self.model(input_ids=input_ids, **more)
        out.logits = out.logits + (out.logits.mean(1, keepdim=True) if self.what == "mean" else out.logits.roll(1, 0))
        return out


def test_a_short_trial_finds_models_that_cannot_be_used() -> None:
    with pytest.raises(RecipeError, match="cannot run on text alone: ValueError: You must specify pixel_values"):
        check_forward(_Peeking("images"))
    with pytest.raises(RecipeError, match="lets a token see later ones"):
        check_forward(_Peeking("mean"))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "mamba", "falcon_h1", "recurrent_gemma", "xlstm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_leaves_the_model_as_it_was(kind: str, dtype: torch.dtype) -> None:
    model = tiny(kind, tiny_tokenizer(), spread=3.0).to(dtype).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    check_forward(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "bloom", "mamba", "gpt_neo", "mpt"])
def test_attention_auto_is_what_the_model_has(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny(kind, tokenizer).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    model, *_ = load_model(ModelConfig(str(tmp_path / kind), dtype="float32"))
    if kind == "gemma2" and model._supports_sdpa:
        pytest.skip("this version of transformers computes Gemma 2's soft caps with sdpa")
    with pytest.raises(RecipeError, match=r"model.attention: \w+ has no sdpa attention; set it to auto or eager"):
        load_model(ModelConfig(str(tmp_path / kind), dtype="float32", attention="sdpa"))


def test_attention_is_checked_from_the_config_alone() -> None:
    config = tiny_config("llama", tiny_tokenizer())
    for wanted in ("auto", "eager", "sdpa", "flash_attention_2"):
        check_attention(wanted, config)
    assert attention_for(ModelConfig("m"), torch.float32, on_cpu=True) is None
    assert attention_for(ModelConfig("m"), torch.bfloat16, on_cpu=True) == "eager"
    assert len(TYPES) >= 40
