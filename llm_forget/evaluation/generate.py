"""Greedy answers to prompts: what a model says when it is asked, for the metrics that read text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from llm_forget.errors import DataError
from llm_forget.evaluation.score import evaluating, length_batches, share_of, sum_over_processes


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> list[str]:
    """Continue each prompt greedily until an end token or ``max_new_tokens``.

    Padding is on the left and masked by position, so that ``pad == eos`` hides nothing. Batches are formed by length
    alone, so the same prompts give the same batches and, in bf16 too, the same answers; in bf16 another ``batch_size``
    may turn a near tie and with it the rest of an answer.

    Args:
        model: a causal language model that can generate; under several processes each holds all of it.
        tokenizer: its tokenizer; special tokens are left out of the answers.
        prompts: token ids, at least one each (``data.encode.encode_prompt``).
        max_new_tokens: longest answer, in tokens, its end token included.
        batch_size: prompts a batch.
        progress: called after each batch with the prompts that it held.
        accelerator: an ``accelerate.Accelerator``; each of its processes then answers a share, and has all answers at
            the end.

    Returns:
        The answers in the order of ``prompts``, without surrounding white space.

    Raises:
        DataError: an empty prompt, or a size below 1.
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise DataError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}; both must be 1 or more")
    empty = sum(not prompt for prompt in prompts)
    if empty:
        raise DataError(
            f"{empty} of {len(prompts)} prompts are empty; generation needs at least one token to start from"
        )
    inner = getattr(model, "module", model)  # DDP has no generate
    ends = end_token_ids(inner, tokenizer)
    # One more than the token, so that 0 is "nothing here", in a shape that can be added up over processes.
    found = np.zeros((len(prompts), max_new_tokens), dtype=np.int64)
    # A token budget of longest prompt × rows, so that batch_size alone decides.
    budget = batch_size * max((len(prompt) for prompt in prompts), default=1)
    batches = length_batches([len(prompt) for prompt in prompts], budget, batch_size)
    with evaluating(inner), torch.no_grad(), _plain_greedy(inner, max_new_tokens, ends):
        for batch, counts_here in share_of(batches, accelerator):
            new = _continue(inner, [prompts[index] for index in batch], ends)
            if not counts_here:
                continue
            for index, tokens in zip(batch, new, strict=True):
                found[index, : len(tokens)] = np.asarray(tokens, dtype=np.int64) + 1
            if progress is not None:
                progress(len(batch))
    found = sum_over_processes(found, accelerator)
    return [_text(tokenizer, row[row > 0] - 1) for row in found]


def end_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: the tokenizer's, and those that the model's own generation settings name."""
    config = getattr(model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ids = named if isinstance(named, list | tuple) else [named]
    return tuple(sorted({int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}))


@contextmanager
def _plain_greedy(model: Any, max_new_tokens: int, ends: Sequence[int]) -> Iterator[None]:
    """Inside, the model generates greedily and by nothing else.

    What a published model brings (temperatures, repetition penalties) is merged by ``generate`` into whatever it is
    given; so it is put aside instead of overridden. A PEFT wrapper hands its own settings down, hence both.
    """
    from transformers import GenerationConfig

    pad = ends[0] if ends else 0
    plain = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=list(ends) or None, pad_token_id=pad
    )
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    before = [getattr(owner, "generation_config", None) for owner in owners]
    for owner in owners:
        owner.generation_config = plain
    try:
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


def _continue(model: Any, prompts: Sequence[tuple[int, ...]], ends: Sequence[int]) -> list[list[int]]:
    """The new tokens of each prompt, up to and without the first end token."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), ends[0] if ends else 0, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    output = model.generate(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device))
    return [_before_end(row, ends) for row in output[:, width:].tolist()]


def _before_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


def _text(tokenizer: Any, tokens: Any) -> str:
    text: str = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text.strip()
