"""Answers to prompts, greedy or sampled: what a model says when it is asked, for the metrics that read text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_forget.errors import DataError
from llm_forget.model.batching import evaluating, length_batches, share_of, sum_over_processes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
    found = _answers(model, tokenizer, prompts, None, max_new_tokens, batch_size, progress, accelerator)
    return [_text(tokenizer, row[row > 0] - 1) for row in found]


def sample_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    accelerator: Any = None,
) -> list[list[str]]:
    """Continue each prompt several times, each token drawn from ``softmax(logits / temperature)`` over the whole vocabulary.

    Each token is where one uniform number falls in the cumulated probabilities. The numbers of a sample come from a
    generator of its own, seeded by ``seed``, the prompt and the sample's number: other prompts, their order, the batch
    size and the number of processes change none of them.

    Args:
        model: a causal language model that can generate; under several processes each holds all of it.
        tokenizer: its tokenizer; special tokens are left out of the answers.
        prompts: (E) token ids, at least one each.
        samples: answers a prompt.
        temperature: above 0; below 1 likely tokens become likelier.
        seed: of the samples.
        max_new_tokens: longest answer, in tokens, its end token included.
        batch_size: answers a batch.
        progress: called after each batch with the answers that it held.
        accelerator: an ``accelerate.Accelerator``; each of its processes then draws a share, and has all at the end.

    Returns:
        (E) lists of ``samples`` answers, without surrounding white space.

    Raises:
        DataError: an empty prompt, a size below 1, or a temperature of 0 or less.
    """
    if samples < 1 or not temperature > 0:
        raise DataError(
            f"samples is {samples} and temperature {temperature}; samples must be 1 or more and temperature above 0"
        )
    uniforms = np.array(
        [row for name in _prompt_names(prompts) for row in _uniforms(name, samples, seed, max_new_tokens)]
    ).reshape(-1, max(max_new_tokens, 1))
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawing = (uniforms, temperature)
    found = _answers(model, tokenizer, repeated, drawing, max_new_tokens, batch_size, progress, accelerator)
    said = [_text(tokenizer, row[row > 0] - 1) for row in found]
    return [said[start : start + samples] for start in range(0, len(said), samples)]


def _prompt_names(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """A number for each prompt that goes by its tokens, and how often it came before."""
    seen: dict[int, int] = {}
    names = []
    for prompt in prompts:
        digest = hashlib.sha256(" ".join(map(str, prompt)).encode()).digest()
        name = int.from_bytes(digest[:16], "big")
        names.append((name, seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return names


def _uniforms(name: tuple[int, int], samples: int, seed: int, length: int) -> Floats:
    """(samples, length) numbers in [0, 1), each row by itself."""
    return np.stack([np.random.default_rng([seed, *name, sample]).random(max(length, 1)) for sample in range(samples)])


def _answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    drawing: tuple[Floats, float] | None,
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int], None] | None,
    accelerator: Any,
) -> Ints:
    """(P, max_new_tokens) the new tokens of each prompt plus one, 0 where there are none."""
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
            processors = [] if drawing is None else [_Draw(drawing[0][batch], drawing[1])]
            new = _continue(inner, [prompts[index] for index in batch], ends, processors)
            if not counts_here:
                continue
            for index, tokens in zip(batch, new, strict=True):
                found[index, : len(tokens)] = np.asarray(tokens, dtype=np.int64) + 1
            if progress is not None:
                progress(len(batch))
    return np.asarray(sum_over_processes(found, accelerator), dtype=np.int64)


class _Draw:
    """Turns greedy generation into sampling: leaves of each row's logits only the token that its number falls on."""

    def __init__(self, uniforms: Floats, temperature: float) -> None:
        self.uniforms = torch.as_tensor(uniforms)
        self.temperature = temperature
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = draw_tokens(scores, self.uniforms[:, self.step].to(scores.device), self.temperature)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """The token of each row on which its number falls when the vocabulary's probabilities are laid end to end.

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1), doubles.
        temperature: what the logits are divided by.

    Returns:
        (B,) tokens, none of them of probability 0. For probabilities ½, 0, ½ the numbers 0, 0.49 and 0.5 give 0, 0, 2.
    """
    # doubles: in fp32 the sum over a large vocabulary is off by more than a rare token's share
    ends = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # the last end is 1 but for rounding; scaled by it, no number can fall behind the last token
    places = (uniforms * ends[:, -1])[:, None]
    return torch.searchsorted(ends, places, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


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


def _continue(
    model: Any, prompts: Sequence[tuple[int, ...]], ends: Sequence[int], processors: list[_Draw]
) -> list[list[int]]:
    """The new tokens of each prompt, up to and without the first end token."""
    from transformers import LogitsProcessorList

    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), ends[0] if ends else 0, dtype=torch.long)
    attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    device = next(model.parameters()).device
    output = model.generate(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        logits_processor=LogitsProcessorList(processors),
    )
    return [_before_end(row, ends) for row in output[:, width:].tolist()]


def _before_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]


def _text(tokenizer: Any, tokens: Any) -> str:
    text: str = tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
    return text.strip()
