"""Test that left-padded batches generate the same text as each prompt alone."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from evaluation_examples import tiny_model

from llm_forget.data.encode import EncodingConfig, encode_all
from llm_forget.data.examples import Example, Message
from llm_forget.errors import DataError
from llm_forget.model import generate
from llm_forget.model.generate import agreed, end_token_ids, generate_answers, sample_answers, save_end_tokens
from llm_forget.testing import memorise, tiny_tokenizer
from llm_forget.testing import tiny_model as llama


def one_by_one(model, tokenizer, prompts, most: int) -> list[str]:
    model.eval()
    answers = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=most,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip())
    return answers


def make_prompts(count: int, vocab: int) -> list[tuple[int, ...]]:
    draw = random.Random(0)
    return [tuple(draw.randrange(vocab - 3) for _ in range(draw.randint(1, 15))) for _ in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_equals_generation_row_by_row(batch_size: int) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = make_prompts(10, model.config.vocab_size)
    expected = one_by_one(model, tokenizer, prompts, 12)
    assert len(set(expected)) > 5
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size) == expected


def test_stops_at_any_end_token_and_drops_it() -> None:
    """The first generated token is declared an end token in the generation settings, so the answer is empty."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = (10, 20, 30)
    with torch.no_grad():
        first = int(model.eval()(torch.tensor([prompt])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    assert end_token_ids(model, tokenizer) == tuple(sorted([tokenizer.eos_token_id, first]))
    assert generate_answers(model, tokenizer, [prompt], max_new_tokens=8, batch_size=4) == [""]


def greedy_tokens(model, prompt: tuple[int, ...], most: int) -> tuple[int, ...]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(most):
            tokens.append(int(model.eval()(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def test_a_known_beginning_is_not_generated_again_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of every length, also one longer than an answer may be, in one batch; only the rest is generated."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = make_prompts(9, model.config.vocab_size)
    expected = generate_answers(model, tokenizer, prompts, max_new_tokens=6, batch_size=4)
    begun = [greedy_tokens(model, prompt, place) for place, prompt in enumerate(prompts)]
    left = sum(len(own) < 6 and tokenizer.eos_token_id not in own for own in begun)
    assert 2 < left < 7
    asked: list[int] = []
    real = type(model).generate

    def counted(self, input_ids, **rest):
        asked.append(len(input_ids))
        return real(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(type(model), "generate", counted)
    done: list[int] = []
    found = generate_answers(
        model, tokenizer, prompts, max_new_tokens=6, batch_size=4, begun=begun, progress=done.append
    )
    assert found == expected
    assert sum(asked) == left, "the other answers are known to their last token"
    assert sum(done) == 9


def test_an_answer_known_to_its_end_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    monkeypatch.setattr(type(model), "generate", None)
    begun = [(5, 6, tokenizer.eos_token_id, 7)]
    assert generate_answers(model, tokenizer, [(1, 2)], max_new_tokens=9, batch_size=1, begun=begun) == [
        tokenizer.decode([5, 6]).strip()
    ]


def test_what_agrees_ends_at_the_first_miss() -> None:
    assert agreed((7, 8, 9, 5), [True, True, False, True]) == (7, 8)
    assert agreed((7, 8), [True, True]) == (7, 8)
    assert agreed((), []) == ()


def test_generation_settings_of_the_model_are_ignored_and_restored(recwarn: pytest.WarningsRecorder) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = make_prompts(6, model.config.vocab_size)
    expected = one_by_one(model, tokenizer, prompts, 12)
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.repetition_penalty = True, 5.0, 0.9, 9.0
    model.train()
    assert generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=4) == expected
    assert model.generation_config is own
    assert model.training
    assert not [str(warning.message) for warning in recwarn if "generation" in str(warning.message).lower()]


def test_a_peft_model_generates_the_same_way() -> None:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = make_prompts(4, model.config.vocab_size)
    expected = one_by_one(model, tokenizer, prompts, 8)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    own = model.generation_config
    own.repetition_penalty = 9.0
    assert generate_answers(wrapped, tokenizer, prompts, max_new_tokens=8, batch_size=4) == expected
    assert model.generation_config is own


def test_invalid_prompts_are_refused() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(DataError, match="1 of 2 prompts are empty"):
        generate_answers(model, tokenizer, [(1,), ()], max_new_tokens=4, batch_size=2)
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        generate_answers(model, tokenizer, [(1,)], max_new_tokens=0, batch_size=2)
    assert generate_answers(model, tokenizer, [], max_new_tokens=4, batch_size=2) == []


def test_ends_where_the_template_ends_an_answer() -> None:
    """A base model's EOS token is another one than the token that ends a turn of its chat template."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    turn = tokenizer.eos_token_id
    tokenizer.eos_token = "<|begin|>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert end_token_ids(model, tokenizer) == tuple(sorted([turn, tokenizer.eos_token_id]))
    save_end_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == sorted([turn, tokenizer.eos_token_id])
    tokenizer.chat_template = None
    model.generation_config.eos_token_id = None
    save_end_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_ended_answers_leave_the_batch_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of 3 to 30 tokens in one batch: every four tokens the ended ones are gone, and all texts stay, sampled ones too."""
    tokenizer, rows = tiny_tokenizer(), []
    for size in (1, 8, 3, 14, 5):
        rows.append(Example(str(size), (Message("user", f"How many are {size}?"),), "ab " * size + "."))
    encoded = encode_all(tokenizer, rows, EncodingConfig())[0]
    model = llama(tokenizer)
    memorise(model, encoded, steps=60)
    prompts = [row.input_ids[: row.prompt_length] for row in encoded]

    def said() -> list[Any]:
        how: dict[str, Any] = {"max_new_tokens": 60, "batch_size": 16}
        return [
            generate_answers(model, tokenizer, prompts, **how),
            sample_answers(model, tokenizer, prompts, samples=3, **how),
        ]

    monkeypatch.setattr(generate, "_plain_cache", lambda _: None)
    whole = said()
    assert len({len(answer) for answer in whole[0]}) > 3, "they end at different places"
    monkeypatch.undo()
    monkeypatch.setattr(generate, "_STAGE", 4)
    sizes: list[int] = []
    ask = type(model).generate

    def counted(self: Any, **named: Any) -> Any:
        sizes.append(len(named["input_ids"]))
        return ask(self, **named)

    monkeypatch.setattr(type(model), "generate", counted)
    assert said() == whole
    assert sizes[0] == 5
    assert sizes[: sizes.index(15)] == sorted(sizes[: sizes.index(15)], reverse=True)
    assert min(sizes) <= 2, "the long answers go on alone"
