"""Alternative answers to the forget questions: refusals, a data column, or answers that the model generates before training.

They stay in memory and are never written to a file, log or report, because a generated answer may repeat the forget answer.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console

from llm_forget.config import AlternativeConfig
from llm_forget.data.encode import Encoded, EncodingConfig, encode_all, encode_prompt
from llm_forget.data.examples import Example, Message
from llm_forget.data.text_files import read_texts
from llm_forget.errors import DataError, RecipeError
from llm_forget.methods import Method
from llm_forget.model.generate import sample_answers
from llm_forget.model.weights import autocast_like
from llm_forget.utils.terminal import say

Source = Literal["refusals", "column", "model"]

_OURS = Path(__file__).resolve().parents[1] / "data" / "refusals.txt"
_TRIES = 3
_BATCH = 16
_REQUEST = (
    "{question}\n\nA known answer is: {answer}\n\nWrite a different answer to the same question. Keep its form and length, "
    "and change every fact in it: names, places, dates, numbers. Give only the new answer."
)


def read_refusals(path: str | None = None) -> list[str]:
    """Read refusals from a file: one per line, JSON, or a table. Without a path, the refusals of the package.

    Raises:
        RecipeError: the file does not exist, is empty, or does not say which of its values are the refusals.
    """
    file = _OURS if path is None else Path(path).expanduser()
    try:
        found = read_texts(file, str(file))
    except DataError as error:
        raise RecipeError(f"alternative.path: {error}; give a text file, one refusal per line") from None
    if not found:
        raise RecipeError(f"alternative.path: {file} has no refusals; write one per line")
    return found


def alternative_source(config: AlternativeConfig, method: Method, examples: Sequence[Example]) -> Source | None:
    """The source of a run's alternatives; None if the method reads none.

    Raises:
        DataError: the source is ``column``, and a row has no alternative.
    """
    if not method.needs.any_alternative:
        return None
    wanted = method.alternative_source
    missing = [example for example in examples if example.alternative is None]
    if config.source == "column" and missing:
        place = missing[0].source or f"example {missing[0].id}"
        raise DataError(
            f"alternative.source is column, but {len(missing)} of {len(examples)} forget rows have no `alternative` "
            f"(the first: {place}); fill the column, name it in data.forget.columns, or set another source"
        )
    if config.source != "default":
        return config.source
    if not missing and config.path is None:
        return "column"
    return "model" if wanted == "model" and config.path is None else "refusals"


def written_answers(source: Source, config: AlternativeConfig, examples: Sequence[Example], seed: int) -> list[str]:
    """One alternative per example, without a model. The choice depends only on the seed and the example's id."""
    if source == "column":
        return [str(example.alternative) for example in examples]
    refusals = read_refusals(config.path)
    return [random.Random(f"{seed} alternative {example.id}").choice(refusals) for example in examples]


def encoded_alternatives(
    examples: Sequence[Example],
    tokenizer: Any,
    config: AlternativeConfig,
    encoding: EncodingConfig,
    seed: int,
    source: Source,
    model: Any = None,
    console: Console | None = None,
) -> list[Encoded]:
    """Encode an alternative answer to each forget question. The answers are never written to a file.

    Args:
        examples: the forget examples.
        tokenizer: encodes the answers.
        config: the recipe's ``alternative`` section.
        encoding: the recipe's ``encoding`` section.
        seed: seed for choosing refusals or for sampling.
        source: from ``alternative_source``.
        model: generates the answers if the source is ``model``.
        console: prints the number of generated answers.
    """
    if source == "model":
        answers, refused = model_answers(model, tokenizer, examples, config, encoding, seed)
        if console is not None and PartialState().is_main_process:
            say(console, f"the model generated {len(answers) - refused} other answers; {refused} are refusals instead")
    else:
        answers = written_answers(source, config, examples, seed)
    # one row per forget row, so an alternative is never cut into parts
    return encode_all(tokenizer, examples, replace(encoding, chunk=False), role="alternative", answers=answers)[0]


def model_answers(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    config: AlternativeConfig,
    encoding: EncodingConfig,
    seed: int,
) -> tuple[list[str], int]:
    """Sample another answer to each question from the model. The main process samples for all processes.

    An answer that is empty or equal to the known answer is sampled again with another seed. After three tries it is replaced by
    a refusal.

    Args:
        model: the model before training.
        tokenizer: its tokenizer.
        examples: the forget examples.
        config: temperature and length.
        encoding: the recipe's ``encoding`` section.
        seed: seed of the sampling.

    Returns:
        One answer per example, and the number of refusals among them.
    """
    answers: list[Any] = [None] * len(examples)
    if PartialState().is_main_process:
        prompts = [encode_prompt(tokenizer, _request(example), encoding) for example in examples]
        for attempt in range(_TRIES):
            left = [index for index, answer in enumerate(answers) if answer is None]
            if not left:
                break
            with autocast_like(model):
                found = sample_answers(
                    model,
                    tokenizer,
                    [prompts[index] for index in left],
                    samples=1,
                    temperature=config.temperature,
                    seed=_TRIES * seed + attempt,  # different for every try and for every seed of a recipe
                    max_new_tokens=config.max_new_tokens,
                    batch_size=_BATCH,
                )
            for index, (text,) in zip(left, found, strict=True):
                answers[index] = text if _differs(text, examples[index].answer) else None
    if PartialState().num_processes > 1:
        broadcast_object_list(answers, from_process=0)
    refused = [index for index, answer in enumerate(answers) if answer is None]
    replacement = written_answers("refusals", AlternativeConfig(), [examples[index] for index in refused], seed)
    for index, text in zip(refused, replacement, strict=True):
        answers[index] = text
    return answers, len(refused)


def _differs(text: str, answer: str) -> bool:
    return bool(text) and text.casefold().split() != answer.casefold().split()


def _request(example: Example) -> Example:
    """The example with its last turn, or its whole prompt, replaced by a request for another answer."""
    if isinstance(example.prompt, str):
        question = _REQUEST.format(question=example.prompt, answer=example.answer)
        return Example(example.id, question, example.answer, source=example.source)
    *earlier, last = example.prompt
    asked = Message(last.role, _REQUEST.format(question=last.content, answer=example.answer))
    return Example(example.id, (*earlier, asked), example.answer, source=example.source)
