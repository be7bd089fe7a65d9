"""Scores and answers of a model, in this process or behind a server. Nothing else in an evaluation needs to know which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llm_forget.data.encode import Encoded
from llm_forget.evaluation.passes.cache import Cache
from llm_forget.evaluation.passes.cached import score_rows
from llm_forget.evaluation.passes.served import score_served
from llm_forget.evaluation.tokens import TokenScores
from llm_forget.model.generate import end_token_ids, generate_answers, known_answer, sample_answers
from llm_forget.model.head import below_wrapper
from llm_forget.model.limits import check_rows, padding_id, position_limit
from llm_forget.model.served import ServedModel

Progress = Callable[[int], None] | None


def is_served(model: Any) -> bool:
    """Whether a model is behind a server, so that there are no weights, gradients or hidden states."""
    return isinstance(model, ServedModel)


def scores_of(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Encoded],
    *,
    batch_tokens: int,
    progress: Progress = None,
    accelerator: Any = None,
    cache: Cache | None = None,
) -> TokenScores:
    """Scores of the answers of rows; see ``score_rows`` and ``score_served``."""
    if isinstance(model, ServedModel):
        return score_served(model, rows, vocabulary=len(tokenizer), progress=progress)
    return score_rows(
        model,
        rows,
        pad_token_id=padding_id(tokenizer, model),
        batch_tokens=batch_tokens,
        progress=progress,
        accelerator=accelerator,
        cache=cache,
    )


def answers_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    max_new_tokens: int,
    batch_size: int,
    begun: Sequence[tuple[int, ...]],
    progress: Progress = None,
    accelerator: Any = None,
) -> list[str]:
    """Greedy answers to prompts; see ``generate_answers``. A server is not asked for answers that are known to their end."""
    if not isinstance(model, ServedModel):
        return generate_answers(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            begun=begun,
            progress=progress,
            accelerator=accelerator,
        )
    ends = end_tokens(model, tokenizer)
    said = [known_answer(tokenizer, own, ends, max_new_tokens) for own in begun]
    asked = [prompt for prompt, own in zip(prompts, said, strict=True) if own is None]
    if progress is not None and len(asked) < len(prompts):
        progress(len(prompts) - len(asked))
    told = iter(model.complete(asked, max_new_tokens=max_new_tokens, progress=progress))
    return [next(told) if own is None else own for own in said]


def samples_of(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    samples: int,
    temperature: float,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress = None,
    accelerator: Any = None,
) -> list[list[str]]:
    """Sampled answers to prompts; see ``sample_answers``. A server draws other random numbers from the same seed."""
    if isinstance(model, ServedModel):
        return model.sample(
            prompts,
            samples=samples,
            max_new_tokens=max_new_tokens,
            seed=seed,
            temperature=temperature,
            progress=progress,
        )
    return sample_answers(
        model,
        tokenizer,
        prompts,
        samples=samples,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
        accelerator=accelerator,
    )


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer; see ``end_token_ids``. A server also has those of its own generation config."""
    return end_token_ids(None if is_served(model) else below_wrapper(model), tokenizer)


def longest_row(model: Any) -> int | None:
    """The longest row that a model reads, in tokens; None if there is no such limit."""
    if isinstance(model, ServedModel):
        return None if model.length is None else model.length - 1  # each request asks for a token
    return position_limit(model)


def check_readable(model: Any, rows: Sequence[Encoded], role: str) -> list[str]:
    """Check that a model can read rows; see ``check_rows``. Returns notes for the user."""
    if isinstance(model, ServedModel):
        model.check_rows(rows, role)
        return []
    return check_rows(model, rows, role)
