"""Test that rows, prompts and padding stay within a model's embedding and position table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_forget.data.encode import Encoded
from llm_forget.errors import DataError
from llm_forget.model.generate import generate_answers, sample_answers
from llm_forget.model.limits import check_rows, embedding_rows, padding_id, position_limit
from llm_forget.testing import tiny_model, tiny_tokenizer

_SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "dff"), 64),
    **{"num_key_value_heads": 2, "vocab_size": 400, "rotary_dim": 8, "is_decoder": True, "head_dim": 8},
}
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")


def model_of(kind: str, positions: int = 32, **more: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind)
    for name, value in {**_SMALL, **dict.fromkeys(_LENGTHS, positions), **more}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config).eval()


def row(length: int, source: str = "f:1") -> Encoded:
    return Encoded("x", tuple(3 + index % 50 for index in range(length)), 1, source=source)


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        *[
            (kind, 32)
            for kind in ("gpt2", "gptj", "codegen", "opt", "biogpt", "ctrl", "mpt", "openai-gpt", "bert", "bart")
        ],
        *[(kind, 32) for kind in ("gpt_bigcode", "marian", "gpt_neo")],
        ("roberta", 30),
        *[(kind, None) for kind in ("llama", "gpt_neox", "bloom", "xglm", "qwen2", "mamba")],
    ],
)
def test_the_limit_is_where_the_model_fails(kind: str, limit: int | None) -> None:
    more = {"pad_token_id": 1} if kind in ("roberta", "bart", "marian") else {}
    layers = {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"], "num_layers": 2}
    model = model_of(kind, **more, **(layers if kind == "gpt_neo" else {}))
    assert position_limit(model) == limit
    with torch.no_grad():
        model(torch.tensor([row(limit or 40).input_ids]))
        if limit is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.tensor([row(limit + 1).input_ids]))


def test_rows_beyond_the_model_are_refused_or_noted() -> None:
    model = model_of("gpt2")
    assert check_rows(model, [row(32)], "forget") == []
    with pytest.raises(
        DataError, match=r"1 of 2 rows of the forget set .* 32 positions .*longest has 33 tokens; at f:2"
    ):
        check_rows(model, [row(3), row(33, "f:2")], "forget")
    notes = check_rows(model_of("llama"), [row(33)], "retain")
    assert "1 of 1 rows of the retain set are longer than the 32 tokens" in notes[0]
    unknown = Encoded("x", (1, 400, 401), 1, source="f:7")
    with pytest.raises(DataError, match=r"embedding of 400 rows does not have \(ids 400, 401; at f:7\)"):
        check_rows(model, [unknown], "forget")


def test_padding_has_a_row_in_the_embedding() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    assert embedding_rows(model) == len(tokenizer)
    assert padding_id(tokenizer, model) == tokenizer.pad_token_id
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == embedding_rows(model)
    assert padding_id(tokenizer, model) == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    assert padding_id(tokenizer, model) == 0


def _first_tokens(model, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    out = model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False) if count else [prompt]
    return tuple(map(int, out[0][len(prompt) :]))


def test_answers_end_where_the_positions_do() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    model = model_of("gpt2", eos_token_id=399, bos_token_id=399)
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    prompts = [row(length).input_ids for length in (30, 5, 32, 31, 30, 8)]
    alone = [generate_answers(model, tokenizer, [prompt], max_new_tokens=20, batch_size=1)[0] for prompt in prompts]
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=20, batch_size=4) == alone
    begun = [_first_tokens(model, prompt, count) for prompt, count in zip(prompts, (1, 9, 1, 0, 2, 0), strict=True)]
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=20, batch_size=6, begun=begun) == alone
    drawn = sample_answers(model, tokenizer, prompts, samples=2, max_new_tokens=20, batch_size=4)
    assert drawn == [
        sample_answers(model, tokenizer, [prompt], samples=2, max_new_tokens=20, batch_size=1)[0]
        if prompts.count(prompt) == 1
        else drawn[place]
        for place, prompt in enumerate(prompts)
    ]
    with pytest.raises(DataError, match="1 of 2 prompts are longer than the 32 positions"):
        generate_answers(model, tokenizer, [prompts[0], row(33).input_ids], max_new_tokens=4, batch_size=2)
