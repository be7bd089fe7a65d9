"""The counterfactual teacher of some methods: the reference on the forget rows with another name. It stays in memory."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from llm_forget.data.encode import Encoded, EncodingConfig, encode_all
from llm_forget.data.entities import Name, distinct_names, find_names, swap, swap_text
from llm_forget.data.examples import Example
from llm_forget.errors import DataError, RecipeError
from llm_forget.train.teacher import Teacher, teacher_of
from llm_forget.train.virtual import StandIns


def swapped_teacher(
    rows: Sequence[Encoded],
    examples: Sequence[Example],
    retain: Sequence[Example],
    model: Any,
    tokenizer: Any,
    encoding: EncodingConfig,
    pad_token_id: int,
    *,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Teacher:
    """Score the forget rows about stand-ins, and place the results at the positions of the rows themselves.

    The answer about the stand-in can have other tokens where the name stands. Its other tokens are matched with those of the
    row's own answer in order. The remaining positions, which are the name's, get the reference's distribution on the row itself.

    Args:
        rows: the encoded forget rows.
        examples: for each row, its example.
        retain: the retain examples, which help to find names.
        model: the model before training.
        tokenizer: its tokenizer.
        encoding: the recipe's ``encoding`` section.
        pad_token_id: the padding token.
        seed: seed of the stand-ins.
        say: called with the number of rows that have a name.

    Raises:
        RecipeError: a row is a part of a longer example.
        DataError: no row has a name.
    """
    if any(row.part for row in rows):
        raise RecipeError(
            "the method needs whole examples, and encoding.chunk cut some; raise max_length or set chunk: false"
        )
    found = find_names(examples, retain)
    named = [name.full for name in found if name is not None]
    if not named:
        raise DataError(
            f"the method needs names, and the {len(examples)} forget rows have none that was found; add a column `subject` with "
            "the name that each row is about, or take another method"
        )
    say(f"names: {len(named)} of {len(examples)} forget rows have a name; the others are not changed")
    names = StandIns(set(named), distinct_names(retain, examples), 0.5, tokenizer)
    order = random.Random(f"{seed} name swap")
    others = [example if name is None else _about(example, name, names.draw(name, order)) for example, name in
              zip(examples, found, strict=True)]  # fmt: skip
    swapped_rows = encode_all(tokenizer, others, replace(encoding, truncate=True, chunk=False), role="swapped")[0]
    own, swapped = (teacher_of(model, each, pad_token_id)[0] for each in (rows, swapped_rows))
    for index, (row, other) in enumerate(zip(rows, swapped_rows, strict=True)):
        for here, there in matched(row.input_ids[row.prompt_length :], other.input_ids[other.prompt_length :]):
            own.tokens[index][here] = swapped.tokens[index][there]
            own.logps[index][here] = swapped.logps[index][there]
    return own


def matched(answer: Sequence[int], other: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of positions of equal tokens, in order. (7, 1, 2, 3) and (8, 9, 1, 2, 3) give (1, 2), (2, 3), (3, 4)."""
    blocks = difflib.SequenceMatcher(None, answer, other, autojunk=False).get_matching_blocks()
    return [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]


def _about(example: Example, name: Name, stand_in: str) -> Example:
    return replace(swap(example, name, stand_in), answer=swap_text(example.answer, name, stand_in))
