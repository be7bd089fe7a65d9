"""General rows: questions that ship with the package, with the answers that the model gives to them before training.

They stay in memory, because a model that was fine-tuned on the forget rows may repeat them in any answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from llm_forget.data.encode import Encoded, EncodingConfig, encode_all, encode_prompt
from llm_forget.data.examples import Example, Message, example_id
from llm_forget.errors import DataError
from llm_forget.train.virtual import greedy_answers


@cache
def general_questions() -> tuple[str, ...]:
    """The questions of the package."""
    return tuple(files("llm_forget.data").joinpath("general.txt").read_text(encoding="utf-8").split("\n")[:-1])


def general_rows(
    model: Any,
    tokenizer: Any,
    encoding: EncodingConfig,
    *,
    seed: int,
    most: int,
    max_new_tokens: int,
    say: Callable[[str], None] = lambda _: None,
) -> list[Encoded]:
    """Ask general questions, and encode the model's greedy answers.

    Args:
        model: the model before training.
        tokenizer: its tokenizer.
        encoding: the recipe's ``encoding`` section.
        seed: seed of the choice and the order.
        most: number of questions to ask.
        max_new_tokens: longest answer.
        say: called with the number of rows.

    Raises:
        DataError: the model gives no answer to any of them.
    """
    known = general_questions()
    chosen = random.Random(f"{seed} general questions").sample(known, min(most, len(known)))
    asked = [Example(example_id(text, ""), (Message("user", text),), "-") for text in chosen]
    prompts = [encode_prompt(tokenizer, one, encoding) for one in asked]
    fits = [place for place, prompt in enumerate(prompts) if len(prompt) + 1 < encoding.max_length]
    answers = greedy_answers(model, tokenizer, [prompts[place] for place in fits], max_new_tokens)
    rows = [(asked[place], answer) for place, answer in zip(fits, answers, strict=True) if answer]
    if not rows:
        raise DataError("the model gives no answer to general questions; leave the retain term general_questions out")
    say(f"general questions: {len(rows)}, with the model's own answers")
    plain = replace(encoding, chunk=False, truncate=True)
    questions = [question for question, _ in rows]
    return encode_all(tokenizer, questions, plain, role="general", answers=[answer for _, answer in rows])[0]
